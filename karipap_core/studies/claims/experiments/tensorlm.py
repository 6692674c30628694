"""TensorLM (a post): 18 times smaller by a tree over the layers, beside everything else in those bytes."""

from collections.abc import Callable, Iterator, Mapping

import torch

from karipap_core.errors import InputError
from karipap_core.networks.dense import Dense
from karipap_core.networks.qlr import Qlr
from karipap_core.plan.budget import Budget
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import Plan
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.studies.claims.experiments.bench import Bench, grid, lines
from karipap_core.studies.claims.experiments.registry import experiment

TIMES = 18
METRIC = RULE = "loss"
PLANNED = {  # in the same bytes
    "tree": ("tree over layers", Choice("tree")),
    "lowrank": ("low rank", Choice("lowrank")),
    "mpo": ("MPO", Choice("mpo")),
    "tree4": ("tree with 4-bit cores", Choice("tree", "int4")),
    "lowrank4": ("low rank with 4-bit cores", Choice("lowrank", "int4")),
}
LEAST = "int2g128"  # the fewest bytes of integers that are offered
Matrices = Iterator[tuple[str, torch.Tensor]]


@experiment("tree")
def tree(study: Study, progress: Progress) -> dict:
    """Plans of 1/18 of the blocks' 16-bit bytes in several networks, and 2 bits at the least that they take."""
    bench = Bench(study, progress)
    weights = study.measurable
    if len({weight.layer for weight in weights if weight.layer is not None}) < 2:
        raise InputError(f"{study.checkpoint.name} has fewer than two layers: a tree over layers has nothing to join.")
    rows: dict[str, dict] = {}
    left_out: list[str] = []
    dense = 2 * study.checkpoint.block_parameters
    for key, (label, choice) in PLANNED.items():
        progress("forms", len(rows), len(PLANNED) + 2, label)
        try:
            plan = planned(study, choice, progress)
        except InputError as error:
            left_out.append(f"{label[0].upper()}{label[1:]} cannot be that small: {error}")
            continue
        taken = block_bytes(study, plan)
        rows[key] = {"label": label, "bytes_kept": taken / dense} | bench.cut(_of_plan(study, plan))
    for key, (label, make) in _least(study).items():
        progress("forms", len(rows), len(PLANNED) + 2, label)
        sizes: dict[str, int] = {}
        found = bench.cut(make(sizes))
        rest = sum(2 * weight.parameters for weight in study.weights if weight.name not in sizes)
        rows[key] = {"label": label, "bytes_kept": (sum(sizes.values()) + rest) / dense} | found
    progress("forms", len(PLANNED) + 2, len(PLANNED) + 2)
    measured = {key: f"{row['bytes_kept']:.1%} of the bytes: {bench.words(row)}" for key, row in rows.items()}
    return bench.document(
        verdict(rows, bench.unit.split(",")[0]),
        measured | {key: "cannot be that small here" for key in PLANNED if key not in rows},
        {"rows": rows, "times": TIMES},
        grid(
            ["form", "bytes kept", bench.unit, "rise in loss"],
            [[r["label"], r["bytes_kept"], r["damage"], r["rise"]] for r in rows.values()],
        ),
        [
            lines(
                "Damage by bytes",
                "Bytes kept of the block weights",
                bench.unit,
                [(row["label"], [row["bytes_kept"]], [row["damage"]]) for row in rows.values()],
                log=True,
                points=True,
            )
        ],
        left_out,
    )


def planned(study: Study, choice: Choice, progress: Progress) -> Plan:
    """The plan of a choice whose weights in the blocks take at most 1/18 of the bytes that they take in 16 bits."""
    checkpoint = study.checkpoint
    planner = Planner(study, choice, METRIC, progress=progress)
    if choice.quantize is None:  # 16 bits a number, whatever the checkpoint is stored in
        budget = Budget(kept=1 / TIMES, scope="blocks")
    else:
        blocks = sum(weight.bytes for weight in checkpoint.weights if weight.compressible)
        rest = checkpoint.bytes - blocks
        budget = Budget(kept_bytes=(rest + 2 * checkpoint.block_parameters / TIMES) / checkpoint.bytes)
    limit, unit = budget.limit(checkpoint)
    return planner.plan(planner.allocated(RULE, limit, unit), RULE, budget)


def block_bytes(study: Study, plan: Plan) -> int:
    """What the weights of the blocks take under a plan, 16 bits for each number that is not quantized."""
    return plan.ledger(study.checkpoint).block_bytes


def _of_plan(study: Study, plan: Plan) -> Matrices:
    decompositions = study.decompositions_of(plan)
    for name in plan.weights:
        if (spec := plan.spec(name)) is not None:
            yield name, decompositions.matrix(name, spec)


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
    """In words: whether the tree loses least among what is as small, and what 2 bits lose in the bytes they take."""
    small = {key: row for key, row in rows.items() if key in PLANNED}
    two = rows["int2"]
    beside = f"2 bits take {two['bytes_kept']:.1%} of the bytes and lose {two['damage']:.3g}".replace("%", " %")
    trees = [key for key in ("tree", "tree4") if key in small]
    if not trees:
        return f"Cannot be tried: no tree over this model's layers is {TIMES} times smaller. {beside}."
    best = min(small, key=lambda key: small[key]["damage"])
    of_tree = min(trees, key=lambda key: small[key]["damage"])
    others = {key: row for key, row in small.items() if key not in trees}
    line = f"at {TIMES} times smaller the {small[of_tree]['label']} loses {small[of_tree]['damage']:.3g} ({name})"
    if not others:
        return f"Nothing else here is as small: {line}. {beside}."
    rival = min(others, key=lambda key: others[key]["damage"])
    says = "The tree loses least" if best == of_tree else "The tree does not lose least"
    ratio = small[best]["damage"] / max(two["damage"], 1e-12)
    times = f"{ratio:.2g} times less" if ratio >= 1 else f"{1 / max(ratio, 1e-12):.2g} times more"
    return (
        f"{says}: {line}, {others[rival]['label']} {others[rival]['damage']:.3g}. {beside}, "
        f"{times} than the best of these."
    )
