"""TensorLM (a post): 18 times smaller by a tree over the layers, beside everything else in those bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec
from karipap_core.networks.dense import Dense
from karipap_core.networks.qlr import Qlr
from karipap_core.networks.tree.network import Tree, group_curve
from karipap_core.plan.allocate import allocate, options
from karipap_core.plan.budget import Budget
from karipap_core.plan.document import Entry
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.studies.claims.experiments.bench import Bench
from karipap_core.studies.claims.experiments.registry import experiment

TIMES = 18
LITTLE = 0.021  # what was published as lost: here a rise in loss, in nats, which is 2.1 % of perplexity
METRIC = RULE = "loss"
FORMS = {  # in the same bytes: (label, network, format of its cores)
    "tree": ("tree over layers", "tree", None),
    "lowrank": ("low rank", "lowrank", None),
    "mpo": ("MPO", "mpo", None),
    "tree4": ("tree with 4-bit cores", "tree", "int4"),
    "lowrank4": ("low rank with 4-bit cores", "lowrank", "int4"),
}
PARTS = (0.02, 1 / 36, 0.04, 1 / 18, 0.08, 0.12, 0.2, 0.3)  # of a group's numbers, at which a small tree is fitted
HALVINGS = 12  # of the share of parameters at which cores in few bits take the bytes
LEAST = "int2g128"  # the fewest bytes of integers that are offered
Matrices = Iterator[tuple[str, torch.Tensor]]


@experiment("tree")
def tree(study: Study, progress: Progress) -> dict:
    """Plans of 1/18 of the blocks' 16-bit bytes in several networks, and 2 bits at the least that they take."""
    # As `karipap plan` would, on as much text: what is known of the model from there is found again.
    study = Study(study.checkpoint, study.text, None, study.device_name, study.workspace, progress)
    bench = Bench(study, progress)
    weights = study.measurable
    if len({weight.layer for weight in weights if weight.layer is not None}) < 2:
        raise InputError(f"{study.checkpoint.name} has fewer than two layers: a tree over layers has nothing to join.")
    rows: dict[str, dict] = {}
    left_out: list[str] = []
    dense = 2 * study.checkpoint.block_parameters
    for key, (label, network, quantize) in FORMS.items():
        progress("forms", len(rows), len(FORMS) + 2, label)
        try:
            specs = small_tree(study) if key == "tree" else planned(study, network, quantize)
        except InputError as error:
            left_out.append(f"{label[0].upper()}{label[1:]} cannot be that small: {error}")
            continue
        decompositions = study.decompositions(METRIC)
        made = ((name, decompositions.matrix(name, spec)) for name, spec in specs.items())
        rows[key] = {"label": label, "bytes_kept": block_bytes(study, specs) / dense} | bench.cut(made)
    for key, (label, make) in _least(study).items():
        progress("forms", len(rows), len(FORMS) + 2, label)
        sizes: dict[str, int] = {}
        found = bench.cut(make(sizes))
        rest = sum(2 * weight.parameters for weight in study.weights if weight.name not in sizes)
        rows[key] = {"label": label, "bytes_kept": (sum(sizes.values()) + rest) / dense} | found
    progress("forms", len(FORMS) + 2, len(FORMS) + 2)
    measured = {key: f"{row['bytes_kept']:.1%} of the bytes: {bench.words(row)}" for key, row in rows.items()}
    return bench.document(
        verdict(rows, bench.unit.split(",")[0]),
        measured | {key: "cannot be that small here" for key in FORMS if key not in rows},
        {"rows": rows, "times": TIMES},
        *bench.by_bytes(rows.values(), [(row["label"], [row["bytes_kept"]], [row["damage"]]) for row in rows.values()]),
        left_out,
    )


def planned(study: Study, network: str, quantize: str | None) -> dict[str, Spec]:
    """Name → network of the weights that do not stay dense in a plan whose blocks take at most 1/18 of the bytes that
    they take in 16 bits. With `quantize` the plan of the most parameters whose cores in that format are so small.

    Raises InputError where none is.
    """
    planner = Planner(study, network, METRIC)
    most = 2 * study.checkpoint.block_parameters / TIMES

    def at(kept: float) -> dict[str, Spec]:
        entries = planner.allocated(RULE, *Budget(kept=kept, scope="blocks").limit(study.checkpoint))
        specs = {name: Entry.of(entry).spec for name, entry in entries.items()}
        return {name: replace(spec, quantize=quantize) for name, spec in specs.items() if spec is not None}

    if quantize is None:
        return at(1 / TIMES)
    low, high, found = 1 / TIMES, 1.0, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            specs = at(middle)
        except InputError:  # nothing of this network is so small
            low = middle
            continue
        if block_bytes(study, specs) <= most:
            low, found = middle, specs
        else:
            high = middle
    if found is None:
        raise InputError(f"with its cores in {quantize} it takes more bytes than that.")
    return found


def small_tree(study: Study) -> dict[str, Spec]:
    """The same for a tree in 16 bits, whose curves in plans begin at a larger size: every group of layers is fitted at
    `PARTS` of its numbers, and shares the room with the others by the error in the loss metric.

    Raises InputError where no tree is so small.
    """
    decompositions, groups, tables = study.decompositions(METRIC), {}, []
    free = {weight.name for weight in study.measurable}
    for members in Tree.groups(study.measurable):
        Ws = [study.checkpoint.read(name) for name in members]
        metrics = [decompositions.metric_of(name) for name in members]
        dense = sum(W.numel() for W in Ws)
        curve = group_curve(members, Ws, metrics, levels=[max(1, round(part * dense)) for part in PARTS])
        groups[members[0]] = members, curve.specs
        tables.append(options(members[0], range(1, len(curve.specs) + 1), curve.parameters, curve.error.sum(1), dense))
    stays = sum(weight.parameters for weight in study.weights if weight.name not in free)
    chosen = allocate(tables, study.checkpoint.block_parameters / TIMES - stays)
    specs: dict[str, Spec] = {}
    for table in tables:
        members, levels = groups[table.name]
        if at := int(table.chi[chosen[table.name]]):
            specs |= zip(members, levels[at - 1], strict=True)
    return specs


def block_bytes(study: Study, specs: Mapping[str, Spec]) -> int:
    """What the weights of the blocks take with these networks in their places, 16 bits for each number that is not
    quantized."""
    stays = sum(2 * weight.parameters for weight in study.weights if weight.name not in specs)
    return stays + sum(spec.bytes(2) for spec in specs.values())


def _least(study: Study) -> dict[str, tuple[str, Callable[[dict[str, int]], Matrices]]]:
    """Forms of 2 bits that cannot be as small as 1/18: (label, what yields the matrices and notes each one's bytes)."""

    def made(of: Callable) -> Callable[[dict[str, int]], Matrices]:
        def make(sizes: dict[str, int]) -> Matrices:
            decompositions = study.decompositions(METRIC)
            for weight in study.measurable:
                spec = of(weight.shape)
                sizes[weight.name] = spec.bytes(2)
                yield weight.name, decompositions.matrix(weight.name, spec)

        return make

    return {
        "int2": ("2 bits", made(lambda shape: Dense((shape[0],), (shape[1],), (), LEAST))),
        "qlr": ("2 bits and rank 1", made(lambda shape: Qlr((shape[0],), (shape[1],), (1,), "int4", LEAST))),
    }


def verdict(rows: Mapping[str, Mapping], name: str) -> str:
    """In words: whether a tree of 1/18 loses as little as was published, whether it loses less than all else that is as
    small, and what 2 bits lose in the bytes that they take."""
    small = {key: row for key, row in rows.items() if key in FORMS}
    trees = {key: row for key, row in small.items() if key in ("tree", "tree4")}
    others = [row for key, row in small.items() if key not in trees]
    two = rows["int2"]
    beside = f"2 bits take {two['bytes_kept']:.1%} of the bytes and lose {two['damage']:.3g}".replace("%", " %")
    if not trees:
        return f"Cannot be tried: no tree over this model's layers is {TIMES} times smaller. {beside}."
    tree = min(trees.values(), key=lambda row: row["damage"])
    best = min(small.values(), key=lambda row: row["damage"])
    seen = "Seen here" if tree["rise"] <= LITTLE else "Not seen here"
    line = f"{seen}: {TIMES} times smaller, the {tree['label']} loses {tree['damage']:.3g} ({name})"
    if others:
        rival = min(others, key=lambda row: row["damage"])
        than = "less than" if best is tree else "not less than"
        line += f", {than} all else as small ({rival['label']}, {rival['damage']:.3g})"
    ratio = best["damage"] / max(two["damage"], 1e-12)
    times = f"{ratio:.2g} times less" if ratio >= 1 else f"{1 / max(ratio, 1e-12):.2g} times more"
    return f"{line}. {beside}, {times} than the best of these."
