"""What a deployment is asked for: the load, the machine that is to serve it, and what the answer must respect."""

import math
from dataclasses import dataclass
from pathlib import Path

from karipap_core.deployment import hardware
from karipap_core.deployment.evidence import TOLERANCE
from karipap_core.deployment.footprint import Footprint
from karipap_core.deployment.hardware import Gpu
from karipap_core.errors import InputError


@dataclass(frozen=True)
class Load:
    """What is to be served: `batch` sequences of `tokens` (prompt and answer together) at once.

    kv_dtype: numbers of the KV cache, one of `kv.BITS`. keep: fraction of the tokens whose keys and values stay cached.
    sparse: something says which tokens matter in each step, an indexer or an attention that was trained so.
    """

    tokens: int
    batch: int = 1
    kv_dtype: str = "fp16"
    keep: float = 1.0
    sparse: bool = False


@dataclass(frozen=True)
class Machine:
    """What the model is to run on, and what that costs.

    gpu: a name of hardware.json, "auto" (this machine's first CUDA device), or None (not decided: nothing is said of
    what fits). price: $ an hour of that GPU. throughput: tokens a second of all sequences together, as measured by
    whoever asks on what is deployed, the plan if there is one, else the dense model. host_memory: GB outside the GPU
    for a cache that does not fit it (None: not known, and believed to be enough). fp8_benchmarked: fp8 was compared
    with int8 on this Ada card; fp4_validated: the model's quality was measured in fp4.
    Raises InputError for a price, a throughput or a host memory that is not a number above 0.
    """

    gpu: str | None = "auto"
    price: float | None = None
    throughput: float | None = None
    host_memory: float | None = None
    fp8_benchmarked: bool = False
    fp4_validated: bool = False

    def __post_init__(self) -> None:
        named = (("Price", self.price), ("Throughput", self.throughput), ("Host memory", self.host_memory))
        for name, value in named:
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value:g} must be a number above 0.")

    @property
    def card(self) -> Gpu | None:
        """The GPU, None where none is named or found. Raises InputError for a name that is unknown or ambiguous."""
        if self.gpu == "auto":
            return hardware.detect()
        return hardware.find(self.gpu) if self.gpu else None


@dataclass(frozen=True)
class Constraints:
    """What the answer has to respect.

    fixed: whether the checkpoint is given, by a licence, data residency, a fine-tune with no smaller twin, or hardware
    on site (None: not said). smaller: the dense model that could take its place, as a Footprint or whatever
    `footprint.footprint` opens. tolerance: the relative squared error of a layer's outputs that still counts as small.
    """

    fixed: bool | None = None
    smaller: Footprint | str | Path | None = None
    tolerance: float = TOLERANCE
