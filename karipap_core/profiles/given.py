"""The metrics of a few weights, for another process: what of a `Moments` is asked for there."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch
    from karipap_core.spectra.metric import Metric


@dataclass
class Given:
    """`metric` and `borrowed` of some weights, as `moments.Moments` has them."""

    metrics: "dict[tuple[str, str], Metric]" = field(default_factory=dict)
    few: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, moments: Any, names: Iterable[str], which: Iterable[str]) -> "Given":
        """Of `moments`, or of a `BlockSeen`."""
        found = cls()
        wanted = [each for each in which if each != "weight"]
        for name in names if wanted else ():
            found.metrics |= {(name, each): moments.metric(name, each) for each in wanted}
            found.few[name] = moments.borrowed(name)
        return found

    def metric(self, name: str, which: str) -> "Metric":
        """See `Moments.metric`."""
        from karipap_core.spectra.metric import Metric

        return Metric("weight") if which == "weight" else self.metrics[name, which]

    def borrowed(self, name: str) -> str | None:
        """See `Moments.borrowed`."""
        return self.few.get(name)
