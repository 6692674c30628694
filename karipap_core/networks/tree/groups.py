"""Which weights a `tree` shares a basis between by default, and on which side."""

from collections.abc import Sequence

from karipap_core.checkpoint.model import Weight
from karipap_core.checkpoint.roles import role_of

# The layers that share a basis by default (`python -m bench.trees`). On the demo model (6 layers, its own moments;
# error over that of `lowrank` on each layer, ranks at one price, equal parameters) all six layers at kept .1 / .3 / .6
# of the group: loss metric q .88 / .77 / .84, k .88 / .74 / .77, v .82 / .80 / 1.17, gate .97 / .96 / 1.01, up .99 /
# .97 / 1.01; functional q .80 / .59 / .45, k .76 / .53 / .37, v .75 / .45 / .42, gate .94 / .90 / .93, up .94 / .91 /
# .93. Smaller groups gain less at .1 / .3 (loss, in pairs and in threes: q .95 / .95 and .96 / .90, k 1.09 / .98 and
# .93 / .85, v .96 / 1.10 and .94 / .92). down 1.04 / 1.05 / 1.10 and o 1.05 / 1.25 / 2.02: what writes into the
# residual stream shares no basis there. Share "both" on q: loss .78 / 1.01 at kept .1 / .3, functional 1.14 / 1.70; one
# layer less on the layer bond only loses (.84 / 1.26): its entropy is 1.73 of the 1.79 that unlike layers have.
GROUP = 6
ALONE = ("o", "down", "fc2")


def side_of(name: str) -> str:
    """The side that weights of this name share: the residual stream is what o, down and fc2 give out, and what all
    others take in."""
    role = role_of(name, mixture=False).removeprefix("shared_")
    return "out" if role in ("o", "down", "fc2") else "in"


def group_names(weights: Sequence[Weight]) -> list[list[str]]:
    """The groups that share a basis by default: at most `GROUP` consecutive layers of one role and shape, experts with
    those of the same number; a weight that finds no other, or whose role gains nothing (`ALONE`), is a group alone.

    Every compressible weight is in one group; groups and members stand in the order of the weights.
    """
    runs: dict[tuple, list[Weight]] = {}
    groups: list[list[Weight]] = []
    for weight in sorted((w for w in weights if w.compressible), key=lambda w: -1 if w.layer is None else w.layer):
        key = (weight.role, weight.shape, weight.expert, weight.dtype)
        run, layer = runs.get(key), weight.layer
        alone = weight.role.removeprefix("shared_") in ALONE
        if layer is None or alone or run is None or len(run) == GROUP or run[-1].layer != layer - 1:
            run = runs[key] = []
            groups.append(run)
        run.append(weight)
    place = {weight.name: at for at, weight in enumerate(weights)}
    return sorted(([weight.name for weight in run] for run in groups), key=lambda names: place[names[0]])
