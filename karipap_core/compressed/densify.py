"""An ordinary dense folder made from a compressed one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.tensorfile import Piece, copied, raw_bytes
from karipap_core.compressed.folder import (
    CORE,
    SHARD_BYTES,
    computed,
    fill_folder,
    in_natural_order,
    new_folder,
    with_progress,
)
from karipap_core.compressed.saved_again import WORDS, as_saved, entry_of, names_on_disk
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.workspace.locks import only_writer

if TYPE_CHECKING:  # torch takes a second to import
    import torch

    from karipap_core.networks.base import Spec

Instead = Callable[[str], list[Piece] | None]


@dataclass(frozen=True)
class Held:
    """How the dense model holds a compressed weight: tensor, its shape and dtype ("bfloat16"), and whether that is
    Wᵀ; `stack`: a slice of that tensor, of expert stacks."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    transposed: bool
    stack: bool = False


class DenseForm:
    """The ordinary model that a compressed folder stands for, one tensor at a time: the original's names and dtypes; of
    a folder that was saved again in another dtype, that one. Weights go by their names in the folder.

    checkpoint : the folder. config : the ordinary model's. names : the weights with cores, in
    natural order. plan : as JSON.
    Raises InputError where `folder` is no compressed folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.checkpoint = open_checkpoint(folder, compressed=True)
        settings = self.checkpoint.config.get("quantization_config") or {}
        if settings.get("quant_method") != "karipap":
            raise InputError(f"{folder} is not a model compressed by Karipap: there is nothing to make dense.")
        self.settings = as_saved(self.checkpoint, settings)
        self.original, self.plan = self.settings["original"], self.settings["plan"]
        self.disk = names_on_disk(self.checkpoint, self.settings)
        added = {"quantization_config", *self.original.get("config", ())}
        self.config = {key: value for key, value in self.checkpoint.config.items() if key not in added}
        found = [core[1] for tensor, _ in in_natural_order(self.checkpoint.tensors) if (core := CORE.fullmatch(tensor))]
        self.names = list(dict.fromkeys(found))

    def known(self, name: str) -> str:
        """What the plan calls a weight of the folder."""
        return entry_of(name, self.settings)[0]

    def spec(self, name: str) -> "Spec":
        from karipap_core.networks import spec_from_json

        return spec_from_json(entry_of(name, self.settings)[1])

    def reader(self, name: str) -> "Callable[[str, str], torch.Tensor]":
        """(plan's name of the weight or of one that it shares cores with, tensor) → that tensor, as `read_cores` asks
        for it."""
        known = self.known(name)

        def read(owner: str, core: str) -> "torch.Tensor":
            if owner != known and owner not in self.disk:
                raise InputError(f"The folder lacks the cores of {owner}, which {name} shares: write it anew.")
            return self.checkpoint.read_tensor(f"{name if owner == known else self.disk[owner]}.{core}")

        return read

    def exact(self, name: str) -> "torch.Tensor":
        """Ŵ (out, in) of a compressed weight, formed in float64 from the stored cores."""
        from karipap_core.layers.cores import read_cores

        spec = self.spec(name)
        return spec.dense(read_cores(spec, self.known(name), self.reader(name)))

    def matrix(self, name: str) -> "torch.Tensor":
        """Ŵ (out, in) of a compressed weight, or a slice that stayed dense, in the original's dtype."""
        import torch

        if f"{name}.weight" in self.checkpoint.tensors:
            return self.checkpoint.read_tensor(f"{name}.weight")
        return self.exact(name).to(getattr(torch, self.held(name).dtype))

    def held(self, name: str) -> Held:
        """Where the ordinary model holds a compressed weight. Raises InputError where its plan does not fit that."""
        known, original = self.known(name), self.original
        dtype = original["dtypes"].get(known, original["dtype"])
        spec = self.spec(name)
        if stack := self._stack(name):
            turned = original["stacks"][stack]
            return Held(stack, (spec.n_in, spec.n_out) if turned else (spec.n_out, spec.n_in), dtype, turned, True)
        turned = original["transposed"] and known not in original.get("tables", ())
        usual = {
            "tensor": f"{known}.weight",
            "shape": (spec.n_in, spec.n_out) if turned else (spec.n_out, spec.n_in),
            "transposed": turned,
        }
        said = original.get("others", {}).get(known, usual)
        if math.prod(said["shape"]) != spec.n_out * spec.n_in:
            raise InputError(
                f"{self.checkpoint.name}: {known} was stored as {said['shape']}, which its plan does not fit."
            )
        # Under the name that it has here: saved again, a model's prefix may have come or gone.
        return Held(name + said["tensor"].removeprefix(known), tuple(said["shape"]), dtype, said["transposed"])

    def pieces(self, instead: Instead = lambda name: None) -> dict[str, Piece]:
        """Every tensor of the ordinary model, by name. instead: a compressed weight → what is to stand in the place of
        its dense tensor, None for that; slices of stacks are not asked for."""
        slices: dict[str, dict[int, str]] = {}  # tensor of a stack → number of a slice → the slice's name
        pieces: dict[str, Piece] = {}
        asked: set[str] = set()
        for tensor, info in in_natural_order(self.checkpoint.tensors):
            core = CORE.fullmatch(tensor)
            name = core[1] if core else tensor.removesuffix(".weight")
            if stack := self._stack(name):
                slices.setdefault(stack, {})[int(name.rpartition(".")[2])] = name
            elif not core:
                pieces[tensor] = copied(tensor, info)
            elif name not in asked:
                asked.add(name)
                pieces |= {piece.name: piece for piece in instead(name) or [self._piece(name)]}
        for stack, members in slices.items():
            pieces[stack] = self._stack_piece(stack, [members[index] for index in sorted(members)])
        return pieces

    def _piece(self, name: str) -> Piece:
        held = self.held(name)

        def stored() -> "torch.Tensor":
            W = self.matrix(name)
            return (W.T if held.transposed else W).reshape(held.shape)

        return computed(held.tensor, WORDS[held.dtype], held.shape, stored)

    def _stack(self, name: str) -> str | None:
        """The stacked tensor that a weight is a slice of."""
        base, _, number = name.rpartition(".")
        for stack in (base, f"{base}.weight"):
            if number.isdigit() and stack in self.original["stacks"]:
                return stack
        return None

    def _stack_piece(self, stack: str, names: list[str]) -> Piece:
        first = self.matrix(names[0])
        transposed = self.original["stacks"][stack]

        def write(file: BinaryIO) -> None:
            for name in names:
                W = self.matrix(name)
                file.write(raw_bytes(W.T if transposed else W))

        rows, columns = first.shape[::-1] if transposed else first.shape
        flat = stack in self.original.get("flat", ())
        shape = (len(names) * rows, columns) if flat else (len(names), rows, columns)
        return Piece(stack, WORDS[str(first.dtype).removeprefix("torch.")], shape, write)


def densify(
    folder: str | Path,
    out: str | Path,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
) -> dict:
    """Writes a compressed folder as an ordinary dense one, with the original's names and dtypes; of a folder that was
    saved again in another dtype, in that.

    Returns {"folder", "weights" (how many were made dense), "parameters", "bytes"} of what was written. W = the
    network's dense form in float64 from the stored cores, rounded once to the original's dtype. Raises
    InputError where `folder` is no compressed folder or `out` exists (unless `overwrite`).
    """
    form = DenseForm(folder)
    pieces = with_progress(list(form.pieces().values()), progress, "densify")
    with only_writer(out, "densify"), new_folder(out, form.checkpoint.path, overwrite) as target:
        fill_folder(target, form.checkpoint, form.config, pieces, shard_bytes)
    dense = open_checkpoint(out)
    return {"folder": str(out), "weights": len(form.names), "parameters": dense.parameters, "bytes": dense.bytes}
