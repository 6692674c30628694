"""What every export gives: a subclass of `Exporter` in a file of its own, under `@register`, and its line
in `TARGETS` of this package.

An exporter says for each weight how its engine will hold it and what that changes (`lines`), writes the folder
(`write`), and names what runs it (`commands`, `script`). All else (the folder's safety, the card, the measurement in
the engine) is in export.py, card.py and check.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from karipap_core.errors import InputError, unknown
from karipap_core.exports import TARGETS
from karipap_core.exports.source import Part, Source
from karipap_core.progress import Progress

if TYPE_CHECKING:  # torch takes a second to import
    import torch

EXACT = 1e-12  # a relative error below which a weight counts as stored unchanged


@dataclass(frozen=True)
class Line:
    """How an export stores one compressed weight.

    says : as the plan has it. stored : as the engine has it, in words that many weights share. rank : of a pair.
    error : ‖W' − Ŵ‖ / ‖Ŵ‖, W' what the engine holds. bytes : what the export stores of it. source_bytes : what
    Karipap's folder does. why : where it is not the same form or not exact, the reason in a few words, else "".
    """

    weight: str
    says: str
    stored: str
    error: float
    bytes: int
    source_bytes: int
    rank: int = 0
    why: str = ""

    @property
    def exact(self) -> bool:
        return self.error <= EXACT

    def to_json(self) -> dict:
        return self.__dict__ | {"exact": self.exact}


@dataclass(frozen=True)
class Wanted:
    """What an export may be asked for. one_rank : low-rank pairs padded with zeros to the largest rank."""

    one_rank: bool = False


class Exporter(ABC):
    """One target. Stateless: everything is in the arguments.

    name : what `--to` takes. title : what people call it. library : the hub's `library_name`. packages : pip names that
    writing needs. engine : pip name of what runs it. script : the file in `engines/` that runs it (see check.py).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    library: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    engine: ClassVar[str]
    script: ClassVar[str]

    @abstractmethod
    def lines(self, source: Source, wanted: Wanted) -> Iterator[Line]:
        """One line a compressed weight, nothing written. Raises InputError where the engine cannot hold the model."""

    @abstractmethod
    def write(self, source: Source, wanted: Wanted, folder: Path, progress: Progress) -> None:
        """Fills an empty folder with what the engine loads."""

    @abstractmethod
    def commands(self, source: Source, out: Path) -> str:
        """Lines for a terminal or Python that run the export at `out`, as its card and the screen show them."""

    def notes(self, source: Source, wanted: Wanted) -> list[str]:
        """What whoever runs it has to know, in whole sentences."""
        return []

    def dtype(self, source: Source, wanted: Wanted) -> str:
        """In which its engine computes when the export is measured: float32 where it can."""
        return "float32"

    def missing(self) -> list[str]:
        """The pip names of what has to be installed to write this export and is not."""
        return [name for name in self.packages if not _installed(name)]

    def runs_here(self) -> bool:
        """Whether its engine is installed in this environment."""
        return _installed(self.engine)

    def check_packages(self) -> None:
        """Raises InputError naming what has to be installed to write this export."""
        if missing := self.missing():
            raise InputError(f"Exporting for {self.title} needs {' and '.join(missing)}: pip install karipap[export].")


EXPORTERS: dict[str, Exporter] = {}


def register(kind: type[Exporter]) -> type[Exporter]:
    """Adds an exporter; a decorator."""
    EXPORTERS[kind.name] = kind()
    return kind


def exporter_named(name: str) -> Exporter:
    """Raises InputError with the nearest name for one that is none."""
    if name not in TARGETS:
        raise unknown("Target", name, TARGETS)
    import_module(f"karipap_core.exports.{TARGETS[name]}")
    return EXPORTERS[name]


def error_of(stored: "torch.Tensor", wanted: "torch.Tensor") -> float:
    """‖stored − wanted‖ / ‖wanted‖ in float64, 0 where both are 0."""
    difference, size = (stored.double() - wanted.double()).norm().item(), wanted.double().norm().item()
    return difference / size if size else difference


def dense_line(source: Source, part: Part, dtype: str, why: str) -> Line:
    """The line of a weight that is stored as a dense matrix in `dtype` ("bfloat16")."""
    import torch

    kind, exact = getattr(torch, dtype), source.exact(part.name)
    error = error_of(exact.to(kind), exact)
    return Line(part.name, part.says, f"dense, {dtype}", error, exact.numel() * kind.itemsize, part.bytes, why=why)


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
