"""How a compressed model is healed."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from karipap_core.errors import InputError, unknown

OBJECTIVES = ("distill", "next-token")
MOST_RATE = 1e15  # what the documents of a healed folder hold
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Settings:
    """How to heal. All of it decides the result, so a killed healing goes on only under the same settings.

    steps: of the optimizer, each on `tokens` tokens in windows of `window` (None: the model's default) over all
    processes together. objective: "distill" (the dense model's probabilities) or "next-token" (the text's own tokens).
    rate: the largest step size, None to search for one. norms: let the norms learn too. requantize: open cores in few
    bits, let them learn as floats, and quantize them again at the end. every: steps between two looks at the validation
    text, None for a tenth of the steps, 50 at most. patience: looks without improvement before it stops. accumulate:
    parts that a step's tokens are cut into, so that less memory is needed. seed: of the order of the text.
    Raises InputError that names the setting that cannot be.
    """

    steps: int
    objective: str = "distill"
    rate: float | None = None
    norms: bool = False
    requantize: bool = False
    tokens: int = 2048
    window: int | None = None
    accumulate: int = 1
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    every: int | None = None
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        checked_counts(self, "steps", "tokens", "window", "accumulate", "every", "patience")
        checked_rate(self.rate)
        for name, allowed in (("objective", OBJECTIVES), ("mixed_precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}.")

    @property
    def look_every(self) -> int:
        """Steps between two looks at the validation text."""
        return self.every or max(1, min(50, self.steps // 10))


@dataclass(frozen=True)
class ScaleSettings:
    """How scales and factors are healed block by block (blocks.py); all of it decides the result.

    windows: of the text, that a block learns from; passes: over them; rate: the largest step size, relative to the
    numbers that move; window: tokens of a window (None: the model's default);
    seed: of the order of the text. Raises InputError that names the setting that cannot be.
    """

    windows: int = 64
    passes: int = 4
    rate: float = 3e-3
    window: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checked_counts(self, "windows", "passes", "window")
        checked_rate(self.rate)


def checked_counts(settings: object, *names: str) -> None:
    """Raises InputError where one of these settings is below 1."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: at least 1.")


def checked_rate(rate: float | None) -> None:
    """Raises InputError for a step size that cannot be."""
    if rate is not None and not 0 < rate <= MOST_RATE:
        raise InputError(f"rate is {rate}: a number above 0, and at most {MOST_RATE:g}.")


NAMES = tuple(dict.fromkeys(each.name for kind in (Settings, ScaleSettings) for each in fields(kind)))


def settings_of(scales: bool, given: Mapping[str, Any]) -> Settings | ScaleSettings:
    """The settings of a healing, of scales or of whole cores, from those that are `given` by their names; None says
    nothing. Raises InputError for an unknown name, for a setting of the other kind, and where `steps` are lacking."""
    kind = ScaleSettings if scales else Settings
    names = {each.name for each in fields(kind)}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in NAMES:
            raise unknown("Setting", name, NAMES)
        if name in names:
            found |= {} if value is None else {name: value}
        elif value is not None and value != getattr(Settings, name, None):
            raise InputError(f"{name} has no meaning {'with' if scales else 'without'} scales: leave it out.")
    if "steps" in names and "steps" not in found:
        raise InputError("steps are missing: say how many (--steps), or heal scales alone (--scales).")
    return kind(**found)
