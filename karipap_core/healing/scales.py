"""The numbers of a compressed weight that may move while its codes stay: scales, and cores that are floats.

A core in few bits is Ŵ_ij = s_g (c_ij − z_g) for the group g of column j in row i (fp8: s_i c_ij). Codes c and zero
points z, which are stored in the core's few bits themselves, stay; its scale is s_g (1 + δ_g). A core that is stored as
floats is A + r δ, r the root mean square of its numbers. So every δ is 0 to begin with, one step size fits all, and at
δ = 0 what is stored comes back bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from karipap_core.layers.cores import INDEX, SCALES
from karipap_core.networks import Spec
from karipap_core.quantization.formats import Format, from_tensors


class Moving:
    """One weight whose numbers move. tensors: what its cores are stored as, by the names of
    `layers.cores.stored_tensors`, those that it borrows among them; only: the numbers of the cores that may move
    (default: all that are its own)."""

    def __init__(
        self, spec: Spec, tensors: Mapping[str, torch.Tensor], device: str = "cpu", only: Sequence[int] | None = None
    ) -> None:
        self.spec = spec
        self.moves: dict[str, torch.Tensor] = {}  # name on disk → δ
        self._base: dict[str, torch.Tensor] = {}  # what is stored there now, in its own dtype
        self._cores: list[Any] = []  # a tensor that stays, (name, r) of floats that move, or (name, matrix) of scales
        for k, (shape, form) in enumerate(zip(spec.core_shapes, spec.formats, strict=True)):
            name, moves = f"cores.{k}", spec.owned[k] and (only is None or k in only)
            if form is None or form == INDEX:
                core = tensors[name].to(device)
                if form == INDEX or not moves:
                    self._cores.append(core.float() if form is None else core)
                    continue
                size = core.float().square().mean().sqrt().item()
                self._move(name, core)
                self._cores.append((name, size or 1.0))
                continue
            parts = {part: tensors[f"{name}.{part}"].to(device) for part in Format.parse(form).shapes(*_sides(spec, k))}
            matrix = from_tensors(form, *_sides(spec, k), parts)
            if not moves or SCALES not in parts:
                self._cores.append(matrix.dense().reshape(shape))
                continue
            self._move(f"{name}.{SCALES}", parts[SCALES])
            self._cores.append((f"{name}.{SCALES}", matrix))

    def _move(self, name: str, stored: torch.Tensor) -> None:
        self._base[name] = stored
        self.moves[name] = torch.zeros(stored.shape, device=stored.device, requires_grad=True)

    def matrix(self, rounded: bool = False) -> torch.Tensor:
        """Ŵ (out, in), float32, differentiable in `moves`; `rounded`: of the numbers as they would be stored."""
        cores = []
        for shape, core in zip(self.spec.core_shapes, self._cores, strict=True):
            if isinstance(core, torch.Tensor):
                cores.append(core)
                continue
            name, how = core
            value = self._stored(name, how).float() if rounded else self._value(name, how)
            dense = value if isinstance(how, float) else replace(cast(Any, how), scales=value).dense()
            cores.append(dense.reshape(shape))
        return self.spec.dense(cores)

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What moves as it is stored: name on disk → numbers in the dtype and shape that they had."""
        return {core[0]: self._stored(*core) for core in self._cores if not isinstance(core, torch.Tensor)}

    def _value(self, name: str, how: Any) -> torch.Tensor:
        base = self._base[name].float()
        return base + how * self.moves[name] if isinstance(how, float) else base * (1 + self.moves[name])

    def _stored(self, name: str, how: Any) -> torch.Tensor:
        return self._value(name, how).to(self._base[name].dtype)


def _sides(spec: Spec, k: int) -> tuple[int, int]:
    return spec.core_matrix(k)
