"""Formats of few bits: what each one gives (`Format`), and all of them by name.

Nothing here imports a format: each format's file registers its class, and which files there are stands in
`quantization/__init__.py`, which Python runs before any other file of this package. Adding a format of numbers is
adding its file and its import there; `float8.py` is the shortest one to read first.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, TypeVar

import torch

from karipap_core.errors import InputError, unknown

if TYPE_CHECKING:
    from karipap_core.quantization.rounding import Columns
    from karipap_core.quantization.two_sided import Rows

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # tensor's name → (shape, dtype)


class StoredMatrix(Protocol):
    """A matrix (rows, columns) as a format holds it."""

    @property
    def bytes(self) -> int:
        """Bytes on disk, packed without gaps."""
        ...

    def dense(self) -> torch.Tensor:
        """Ŵ (rows, columns), float32."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is written, by the names and in the shapes of `Format.shapes`."""
        ...


Stored = StoredMatrix | torch.Tensor  # a core of a network: in a format, or as it is


@dataclass(frozen=True)
class Format(ABC):
    """How the numbers of a matrix (rows, columns) are stored; made from its name by `Format.parse("int4g128")`.

    A subclass states its names, reads its own options from them (`named`), and gives the tensors on disk (`shapes`,
    `read`) and the rounding (`nearest`, `on_grid`); the rest follows.
    """

    name: str

    pattern: ClassVar[str]  # a regular expression of every name of this format
    names: ClassVar[tuple[str, ...]]  # the names that are shown to people
    calibrates: ClassVar[bool] = False  # whether rounding can make errors good in other columns, as GPTQ does

    # What a format's file gives.

    @classmethod
    @abstractmethod
    def named(cls, found: re.Match[str]) -> Self:
        """The format of a name that `pattern` matches."""

    @abstractmethod
    def shapes(self, rows: int, columns: int) -> Shapes:
        """The tensors on disk of a matrix (rows, columns): name → (shape, dtype)."""

    @abstractmethod
    def read(self, rows: int, columns: int, tensors: Mapping[str, torch.Tensor]) -> StoredMatrix:
        """The matrix that `tensors`, which are those of `shapes`, were written from; on their device."""

    @abstractmethod
    def nearest(self, W: torch.Tensor) -> StoredMatrix:
        """W (rows, columns), any float dtype, rounded to the format's nearest numbers."""

    # What a format overrides where it can do more.

    def on_grid(self, W: torch.Tensor) -> StoredMatrix | None:
        """W without any loss where it holds numbers of this format already (it was dequantized from it), else None."""
        return None

    def calibrated(
        self, W: torch.Tensor, columns: "Columns | None", rows: "Rows | None" = None, refit: bool = True
    ) -> StoredMatrix:
        """W rounded so that ‖G^{1/2} (W − Ŵ) C^{1/2}‖² is small; None is the identity. refit : whether
        scales are fitted to the codes where that is known how, which takes half as long again."""
        return self.rounded(W)

    def some_rows(
        self, tensors: Mapping[str, torch.Tensor], matrix: tuple[int, int], entries: int, index: torch.Tensor
    ) -> StoredMatrix | None:
        """Of a table of `entries` entries, each one or several rows of the stored matrix (rows, columns), the entries
        `index` (k,) alone, one below the other; None where they cannot be cut out of `tensors`."""
        return None

    def product(
        self, x: torch.Tensor, rows: int, columns: int, tensors: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """x Ŵᵀ (n, rows) for a few vectors x (n, columns), float32, without Ŵ as a whole; None where that is no
        quicker than with it. Not differentiable."""
        return None

    # What all share.

    @staticmethod
    def parse(name: object) -> "Format":
        """The format of that name. Raises InputError with the nearest name for one that is none of the formats."""
        found = _parsed(name) if isinstance(name, str) else None
        if found is None:
            known = [each for kind in FORMATS for each in kind.names]
            raise InputError(f"{unknown('Format', name, known)} A number behind a g sets the group: int4g128.")
        return found

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes on disk of a matrix (rows, columns)."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.shapes(rows, columns).values())

    def rounded(self, W: torch.Tensor) -> StoredMatrix:
        """W (rows, columns) as it is where it is `on_grid`, else rounded to `nearest`."""
        return self.on_grid(W) or self.nearest(W)


FORMATS: list[type[Format]] = []

Kind = TypeVar("Kind", bound=type[Format])


def register(kind: Kind) -> Kind:
    """Adds a format; a decorator. Raises ValueError where one of its names is taken, or `pattern` does not match it."""
    for name in kind.names:
        if re.fullmatch(kind.pattern, name) is None:
            raise ValueError(f"Format {name!r} is listed by {kind.__name__} and does not match its pattern.")
        if other := next((each for each in FORMATS if re.fullmatch(each.pattern, name)), None):
            raise ValueError(f"Format {name!r} is registered already, by {other.__module__}: choose another name.")
    FORMATS.append(kind)
    _parsed.cache_clear()
    return kind


@lru_cache(maxsize=1024)
def _parsed(name: str) -> Format | None:
    for kind in FORMATS:
        if found := re.fullmatch(kind.pattern, name):
            return kind.named(found)
    return None


def from_tensors(name: str, rows: int, columns: int, tensors: Mapping[str, torch.Tensor]) -> StoredMatrix:
    """The matrix (rows, columns) of the format `name` that `tensors` were written from, on the tensors' device.

    Raises InputError naming a tensor that is missing or of another shape or dtype than the format's.
    """
    form = Format.parse(name)
    for key, (shape, dtype) in form.shapes(rows, columns).items():
        if key not in tensors:
            raise InputError(f"Tensor {key!r} of a matrix in {name} is missing.")
        if tuple(tensors[key].shape) != shape or tensors[key].dtype != dtype:
            raise InputError(
                f"Tensor {key!r} of a matrix {rows} × {columns} in {name} is {tuple(tensors[key].shape)} "
                f"{tensors[key].dtype}: it must be {shape} {dtype}."
            )
    return form.read(rows, columns, tensors)
