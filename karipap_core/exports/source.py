"""A compressed folder read for an export: each weight as the parts that other engines have words for.

A weight of a plan is whole numbers on a grid (`int4`, `int8` …), a low-rank pair L R, or both (`qlr`: W ≈ Q + L R);
every other network is a dense matrix to anybody else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.roles import TABLES, role_of
from karipap_core.checkpoint.tensorfile import ITEM_BYTES
from karipap_core.compressed.densify import DenseForm, Held
from karipap_core.compressed.saved_again import WORDS

if TYPE_CHECKING:  # torch takes a second to import
    import torch

    from karipap_core.networks.base import Spec
    from karipap_core.quantization.packing import Quantized

GRID, PAIR, BOTH, MATRIX = "integers", "low-rank", "integers + low-rank", "dense"


@dataclass(frozen=True)
class Part:
    """One weight Ŵ (out, in) of a compressed model: Ŵ = grid + L R, whichever of the two are there; where none is,
    Ŵ is `Source.matrix` of its name.

    name : as in the folder. held : the ordinary model's tensor that holds it. role : as `checkpoint.roles` has it.
    grid : whole numbers with scales and zeros. pair : L (out, χ) and R (χ, in), float32.
    packed : whether the pair is stored in few bits. says : the network in a few words. bytes : what it is stored in.
    """

    name: str
    held: Held
    role: str
    shape: tuple[int, int]
    grid: "Quantized | None"
    pair: "tuple[torch.Tensor, torch.Tensor] | None"
    packed: bool
    says: str
    bytes: int

    @property
    def form(self) -> str:
        """One of `GRID`, `PAIR`, `BOTH`, `MATRIX`."""
        if self.grid is None:
            return MATRIX if self.pair is None else PAIR
        return GRID if self.pair is None else BOTH

    @property
    def rank(self) -> int:
        """χ of the pair, 0 where there is none."""
        return 0 if self.pair is None else self.pair[0].shape[1]

    @property
    def linear(self) -> bool:
        """Whether the model holds it as a matrix (out, in) of its own, of an ordinary linear layer."""
        own = self.held.tensor == f"{self.name}.weight" and len(self.held.shape) == 2
        return own and not self.held.transposed and not self.held.stack and self.role not in TABLES


class Source(DenseForm):
    """A compressed folder. `plain`: every weight counts as a dense matrix, whatever it is.

    Raises InputError where `folder` is no compressed folder.
    """

    def __init__(self, folder: str | Path, plain: bool = False) -> None:
        super().__init__(folder)
        self.folder, self.plain = Path(folder), plain
        self.worked_out: dict[str, Any] = {}  # by an exporter, under its name, once for all that it is asked

    def parts(self) -> Iterator[Part]:
        """One weight after another; nothing of one is kept when the next is read."""
        for name in self.names:
            yield self.part(name)

    def part(self, name: str) -> Part:
        from karipap_core.layers.cores import read_cores
        from karipap_core.networks.dense import Dense
        from karipap_core.networks.lowrank import LowRank
        from karipap_core.networks.qlr import Qlr

        spec = self.spec(name)
        grid, pair, own = None, None, self.known(name)
        if not self.plain:
            if isinstance(spec, Dense | Qlr):
                grid = self._grid(name, spec)
            if isinstance(spec, LowRank | Qlr):
                left, right = read_cores(spec, own, self.reader(name))[-2:]
                pair = left.float(), right.float()
        held, role = self.held(name), role_of(name, mixture=False)
        itemsize = ITEM_BYTES[WORDS[held.dtype]]
        packed = spec.formats[-1] is not None
        shape = (spec.n_out, spec.n_in)
        return Part(name, held, role, shape, grid, pair, packed, spec.describe(), spec.bytes(itemsize))

    def _grid(self, name: str, spec: "Spec") -> "Quantized | None":
        """The first core, where its format is one of whole numbers."""
        from karipap_core.quantization.formats import Format, from_tensors
        from karipap_core.quantization.packing import Quantized

        form, matrix, read, own = str(spec.formats[0]), spec.core_matrix(0), self.reader(name), self.known(name)
        tensors = {part: read(own, f"cores.0.{part}") for part in Format.parse(form).shapes(*matrix)}
        found = from_tensors(form, *matrix, tensors)
        return found if isinstance(found, Quantized) else None
