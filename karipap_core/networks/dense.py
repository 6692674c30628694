"""`dense`: the weight itself as its only core, there so that it can be stored in fewer bits. Not a network to choose:
a plan's entry {"network": "dense"} without `quantize` leaves its weight alone and has no spec."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec
from karipap_core.networks.curve import Curve
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Format, Stored
from karipap_core.quantization.gptq import factors
from karipap_core.spectra.metric import Metric


@dataclass(frozen=True)
class Dense(Spec):
    """JSON: {"network": "dense", "out": [n_out], "in": [n_in], "chi": [], "quantize": "int4"}."""

    network: ClassVar[str] = "dense"

    def validate(self) -> None:
        self.check_single("out", "in_")
        if self.chi:
            raise InputError(f"Field 'chi' is {list(self.chi)}: a 'dense' entry has no bonds, it must be [].")

    @classmethod
    def for_shape(
        cls,
        n_out: int,
        n_in: int,
        chi: int = 0,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
    ) -> Self:
        return cls(tuple(out or (n_out,)), tuple(in_ or (n_in,)), (), quantize)

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        return [(self.n_out, self.n_in)]

    def core_matrix(self, index: int) -> tuple[int, int]:
        return self.n_out, self.n_in

    @property
    def max_chi(self) -> int:
        return 0

    @property
    def break_even_chi(self) -> int:
        return 0

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        return [W]

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        return x @ cores[0].T

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        return cores[0]

    def calibrated(self, cores: Sequence[torch.Tensor], W: torch.Tensor, metric: Metric) -> Sequence[Stored]:
        """Under C and G."""
        form = Format.parse(self.quantize)
        return [form.calibrated(cores[0].double(), *factors(metric, W.device))]

    def rows(self, indices: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        return cores[0][indices]

    def multiply_adds(self, batch: int = 1) -> int:
        return batch * self.parameters

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        *given: Any,
        **options: Any,
    ) -> Curve:
        """No bonds, so nothing to list."""
        total = (metric or Metric("weight")).absolute(W)
        return Curve(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), total, exact=True)
