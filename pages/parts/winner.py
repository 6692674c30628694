"""Who is better at which size: sentences that measured points support. Nothing here draws."""

from collections import Counter

from karipap_core.evaluation import scores
from karipap_core.figures.axes import QUALITIES, SIZES, Axis, measurable, quality
from karipap_core.statistics.pareto import known
from karipap_core.tradeoffs.equal import Curve, best, curves, level

ALLOWED = {"rise": (0.01, 0.1, 1.0), "kl": (0.01, 0.1, 1.0)}  # what may be lost, the strictest that anybody meets
WORDS = {
    "network": "a network is better",
    "baseline": "a baseline is better",
    "tie": "no difference between the two can be measured",
}


SHORT = {"network": "a network is better", "baseline": "a baseline is better", "tie": "neither is measurably better"}


def verdict(points: list[dict], x: str = "bytes_kept", y: str = "rise") -> str:
    """Networks against baselines, in a few sentences: all that `told` has to say."""
    return told(points, x, y)[1]


def told(points: list[dict], x: str = "bytes_kept", y: str = "rise") -> tuple[str, str]:
    """Networks against baselines: (one line, a few sentences with examples). The two are equal where there is nothing
    to compare.

    At every measured size the best network stands against the best baseline, each read off its own method's curve
    (equal.py); it is a tie where no difference can be measured (`equal.level`). A side that was not measured around a
    size wins there if a smaller model of it is better already, and is not said to lose. What holds at most sizes is
    said first. Then: how small each side gets while losing little, and with no measurable difference to the dense one.
    """
    axis = quality(points, y)
    points = points if y in QUALITIES else scores.with_score(points, y)
    measured = [point for point in points if known(point, x) and known(point, y)]
    networks = [point for point in measured if point["kind"] == "network"]
    rivals = [point for point in measured if point["kind"] == "baseline"]
    if not networks:
        return ("No network has been measured on this text yet.",) * 2
    if not rivals:
        return ("No baseline has been measured on this text yet, so nothing can be said about who wins.",) * 2
    sides = [curves(side, x, y, axis.more) for side in (networks, rivals)]
    rounds = [each for at in sorted({point[x] for point in measured}) if (each := _round(sides, at, axis)) is not None]
    if not rounds:
        said = "Networks and baselines were measured at sizes too far apart: neither can be held against the other."
        return said, said
    size = SIZES[x].label.lower()
    ranked = [winner for winner, _ in Counter(entry[0] for entry in rounds).most_common()]
    sentences, short = [], []
    for winner in ranked:
        mine = [entry for entry in rounds if entry[0] == winner]
        if len(ranked) == 1:
            where = f"at every size where both were measured ({size} {rounds[0][1]:.1%} to {rounds[-1][1]:.1%})"
        elif winner == ranked[0]:
            where = f"at {len(mine)} of {len(rounds)} sizes"
        else:
            where = f"at {_spans(rounds, winner)} {size}"
        such = f", such as {mine[len(mine) // 2][1]:.1%}" if len(mine) > 1 else ""
        sentences.append(f"{WORDS[winner]} {where}{such} {_example(mine[len(mine) // 2], axis)}.")
        short.append(f"{SHORT[winner]} {where if winner == ranked[0] else f'at {len(mine)}'}")
    sentences += _little_lost(networks, rivals, x, y)
    sentences += _nothing_lost(networks, rivals, x, y)
    smallest = min(point[x] for point in networks), min(point[x] for point in rivals)
    if smallest[0] < smallest[1] - 1e-9:
        sentences.append(f"below {smallest[1]:.1%} no baseline was measured.")
    by = f"By {axis.label.lower() if y in QUALITIES else axis.label}"
    said = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences[1:])
    return f"{by}, {', '.join(short)}.", f"{by}, {sentences[0]} {said}".strip()


def _example(entry: tuple, axis: Axis) -> str:
    """Both sides' best at one size: the winner first."""
    winner, _, ours, theirs = entry
    best, other = (theirs, ours) if winner == "baseline" else (ours, theirs)
    form, y = axis.form, axis.key
    return f"({best['label']}: {best[y]:{form}}; {other['label']}: {other[y]:{form}})"


def _spans(rounds: list, winner: str) -> str:
    """The sizes at which `winner` wins, neighbours joined; at most three."""
    spans: list[list[float]] = []
    before = None
    for who, at, *_ in rounds:
        if who == winner:
            if before == winner:
                spans[-1].append(at)
            else:
                spans.append([at])
        before = who
    words = [f"{span[0]:.1%} to {span[-1]:.1%}" if len(span) > 1 else f"{span[0]:.1%}" for span in spans]
    return ", ".join(words[:3]) + (" and elsewhere" if len(words) > 3 else "")


def _little_lost(networks: list, rivals: list, x: str, y: str) -> list[str]:
    """The smallest model of each side that loses no more than a bound that somebody meets."""
    for bound in ALLOWED.get(y, ()):
        small = [
            min((p for p in side if p[y] <= bound), key=lambda p: p[x], default=None) for side in (networks, rivals)
        ]
        if any(small):
            words = [f"{p[x]:.1%} ({p['label']})" if p else "no size measured" for p in small]
            what = f"losing at most {bound:g} nats, the smallest network takes"
            return [f"{what} {words[0]}, the smallest baseline {words[1]}."]
    return []


def _nothing_lost(networks: list, rivals: list, x: str, y: str) -> list[str]:
    """The smallest model of each side whose interval to the dense model holds 0, where intervals were kept."""
    small = [
        min((p for p in side if measurable(p, y) is False), key=lambda p: p[x], default=None)
        for side in (networks, rivals)
    ]
    words = [
        f"{'network' if side == 0 else 'baseline'} takes {p[x]:.1%} ({p['label']})"
        for side, p in enumerate(small)
        if p is not None
    ]
    return [f"with no measurable difference to dense, the smallest {', the smallest '.join(words)}."] if words else []


def _round(sides: list[list[Curve]], at: float, axis: Axis) -> tuple[str, float, dict, dict] | None:
    """(who wins, size, the network, the baseline) at one size; None where the side that would lose was not measured
    there."""
    found = [best(side, at, axis.key, axis.more) for side in sides]
    if found[0] is None or found[1] is None:
        return None
    (_, ours, measured), (_, theirs, they_measured) = found
    winner = _winner(ours, theirs, axis)
    told = {"network": they_measured, "baseline": measured, "tie": measured and they_measured}[winner]
    return (winner, at, ours, theirs) if told else None


def _winner(ours: dict, theirs: dict, axis: Axis) -> str:
    if level(ours, theirs, axis.key):
        return "tie"
    better = ours[axis.key] - theirs[axis.key]
    return "network" if (better > 0) == axis.more else "baseline"
