"""What each weight saw of the calibration text: a weight that saw nothing has no measured damage, and none is made up.

A text does not run the vision of an image-text model, nor an expert that no token is routed to: cutting such a weight
changes nothing that is measured, which says nothing of what it costs. Whatever measures leaves it as it is.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.model import Checkpoint, Weight

if TYPE_CHECKING:  # torch: seconds
    import torch

    from karipap_core.plan.probe import Probe
    from karipap_core.plan.streamed_probe import StreamedProbe

RULES_OF_SPECTRA = ("uniform", "entropy")  # under the metric `weight` these measure nothing
FEW = 64  # tokens: what is measured of an expert on fewer is rough
LOUD = 100.0  # times as large as a weight is the noise in its place: what it does is not lost in rounding
SAME = 1e-4  # by how much inputs may differ, relatively, and be one
NOTHING = "the calibration text does not reach it, so that nothing measured says what it is worth."


@dataclass(frozen=True)
class Seen:
    """unseen : weights that change nothing of what the model puts out on the text.  uncalled : weights that a model
    multiplies without calling their layer, so that their damage can be measured and their activations cannot.  few : of
    weights of experts, tokens that they saw, where these are fewer than `FEW`.  tokens : that were looked at."""

    unseen: frozenset[str] = frozenset()
    uncalled: frozenset[str] = frozenset()
    few: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0

    def held(self, metric: str, rule: str) -> frozenset[str]:
        """The weights that stay dense under a rule, since it goes by what was not measured of them."""
        if metric == "weight" and rule in RULES_OF_SPECTRA:
            return frozenset()
        return self.unseen | self.uncalled if rule in ("functional", "loss") else self.unseen

    def notes(
        self, checkpoint: Checkpoint, weights: Mapping[str, Mapping[str, Any]], held: Collection[str], images: bool
    ) -> list[str]:
        """What a plan with these entries has to say of weights that saw nothing or little, a sentence each; `images`:
        whether it is calibrated on images besides."""
        what = "the calibration text and images" if images else "the calibration text"
        dense = {name for name in self.unseen if weights.get(name, {}).get("network", "dense") == "dense"}
        said = [
            f"{_count(names, tower)} {_are(names)} not reached by {what} and {_stay(names)} dense"
            + (": give images with --images." if tower == "vision" and not images else ".")
            for tower, names in _by_tower(checkpoint, self.unseen & dense & set(held)).items()
        ]
        said += [
            f"{_count(names, tower)} {_are(names)} not reached by {what} and cut by "
            f"{'its' if len(names) == 1 else 'their'} numbers alone: no prediction says what that costs."
            for tower, names in _by_tower(checkpoint, self.unseen & set(weights) - dense).items()
        ]
        said += [
            f"{_count(names, tower)} {_are(names)} multiplied without {'its' if len(names) == 1 else 'their'} layer "
            f"being called and {_stay(names)} dense: activations, by which this rule goes, are not seen of them."
            for tower, names in _by_tower(checkpoint, self.uncalled & set(held)).items()
        ]
        few = [name for name in self.few if weights.get(name, {}).get("network", "dense") != "dense"]
        if few:
            said.append(
                f"{len(few):,} of the experts' weights saw fewer than {FEW} of the {self.tokens:,} tokens that damages "
                "are measured on: of these the measurements are rough."
            )
        return said

    def to_json(self) -> dict[str, Any]:
        return {
            "unseen": sorted(self.unseen),
            "uncalled": sorted(self.uncalled),
            "few": dict(self.few),
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Seen":
        return cls(frozenset(document["unseen"]), frozenset(document["uncalled"]), document["few"], document["tokens"])


def look(probe: "Probe", checkpoint: Checkpoint, weights: Sequence[Weight]) -> Seen:
    """What each of these weights sees where the probe's dense model runs on its windows.

    A weight whose layer is not called, or to which no gradient comes back, is unseen where other numbers in its place
    change no output (the vision of a model that reads text, its last block where the one before is looked at); in a
    model whose encoder is given zeros in place of sound or images, so is one whose inputs are the same whatever the
    text is.
    """
    from karipap_core.models import running

    counts: Counter[str] = Counter()
    first: dict[str, torch.Tensor] = {}
    varied: set[str] = set()

    def on_input(name: str, x: "torch.Tensor") -> None:
        counts[name] += len(x)
        if name not in varied and _differs(x, first, name):
            varied.add(name)

    probe.watched(on_input)
    names = [weight.name for weight in weights]
    idle = {name for name in names if not counts[name]}
    suspects = idle | set(names) - _with_gradients(probe)
    unseen, uncalled = _of_suspects(probe, checkpoint, idle, suspects)
    if running.given_nothing(probe.model):
        unseen |= {name for name in names if counts[name] and name not in varied}
    few = {w.name: counts[w.name] for w in weights if w.expert is not None and 0 < counts[w.name] < FEW}
    return Seen(frozenset(unseen), frozenset(uncalled), few, probe.tokens)


def looked_at(
    probe: "Probe | StreamedProbe",
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    counts: Mapping[str, int],
    touched: Collection[str],
) -> Seen:
    """The same of a model that is not held in memory, from what one pass over its blocks found: the tokens that each
    weight saw, and the weights that a gradient came back to."""
    idle = {weight.name for weight in weights if not counts.get(weight.name)}
    suspects = idle | {weight.name for weight in weights if weight.name not in touched}
    unseen, uncalled = _of_suspects(probe, checkpoint, idle, suspects)
    few = {w.name: counts[w.name] for w in weights if w.expert is not None and 0 < counts.get(w.name, 0) < FEW}
    return Seen(frozenset(unseen), frozenset(uncalled), few, probe.tokens)


def _of_suspects(
    probe: "Probe | StreamedProbe", checkpoint: Checkpoint, idle: set[str], suspects: set[str]
) -> tuple[set[str], set[str]]:
    """(the unseen, the uncalled) of weights that saw nothing (`idle`) or that no gradient came back to."""
    used = set(_used(probe, checkpoint, sorted(suspects)))
    return suspects - used, idle & used


def _differs(x: "torch.Tensor", first: "dict[str, torch.Tensor]", name: str) -> bool:
    """Whether the inputs in this window are not those in the first one."""
    x = x.float()
    if name not in first:
        first[name] = x
        return False
    known = first[name]
    size = min(len(known), len(x))
    return bool((x[:size] - known[:size]).abs().max() > SAME * known.abs().max())


def _with_gradients(probe: "Probe") -> set[str]:
    """The weights to whose outputs a gradient comes back that is not zero."""
    found: set[str] = set()

    def on_gradient(name: str, g: "torch.Tensor") -> None:
        if name not in found and bool(g.any()):
            found.add(name)

    probe.gradients(on_gradient)
    return found


def _used(probe: "Probe | StreamedProbe", checkpoint: Checkpoint, names: list[str]) -> list[str]:
    """Those of these weights with which the outputs change when noise takes their place: halves of those that do."""
    if not names or not probe.differs({name: partial(_noise, checkpoint, name) for name in names}):
        return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    return _used(probe, checkpoint, names[:half]) + _used(probe, checkpoint, names[half:])


def _noise(checkpoint: Checkpoint, name: str) -> "torch.Tensor":
    import torch

    matrix = checkpoint.read(name).float()
    scale = float(matrix.square().mean().sqrt()) or 1.0
    return LOUD * scale * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))


def _by_tower(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(checkpoint.weight(name).tower, []).append(name)
    return found


def _count(names: Sequence[str], tower: str) -> str:
    return f"{len(names):,} {'weight' if len(names) == 1 else 'weights'}" + (f" of {tower}" if tower else "")


def _stay(names: Sequence[str]) -> str:
    return "stays" if len(names) == 1 else "stay"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
