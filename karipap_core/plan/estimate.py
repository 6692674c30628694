"""What profile, plan and compress take from nothing, told before they begin (`--dry-run`): hours, memory, disk, reads.

The pass over the blocks is profiles/estimate.py's. Beside it a forward pass of t tokens is t (2 · parameters of the
blocks + attention + head) operations; of a weight cut alone the blocks before its own answer from a record, so that
half of the blocks run, on average, and the head. What is in the workspace already is not made again, and not told here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.plan.behind import WINDOWS
from karipap_core.plan.calibrate import PICKED
from karipap_core.plan.calibration import LEVELS
from karipap_core.plan.document import Plan
from karipap_core.plan.effort import MEASURING, PLANS_FITTED, ROUNDS
from karipap_core.plan.on_text import FEW_WINDOWS, REFINED, is_large
from karipap_core.plan.onepass import KEPT_MOMENTS
from karipap_core.plan.outputs import LOGITS
from karipap_core.plan.probe import RECORD
from karipap_core.plan.streamed_probe import MATRICES
from karipap_core.plan.study import WHOLE_PROFILE
from karipap_core.profiles import estimate
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.profiles.blockpass import wanted
from karipap_core.profiles.estimate import Part, PassEstimate

FORMAT, VERSION = "karipap-estimate", 1
RULES_MEASURED = 4  # plans that the rule `best` measures besides those of `refined`
OUTPUTS = 4  # copies of what a batch puts out
INPUTS = 4  # different ones of a block's weights, as most blocks have
SHARING = ("k", "v", "up")  # roles that are given what another is given
SETTINGS = CalibrationSettings()


def of_profile(checkpoint: Checkpoint, device: str, metrics: Sequence[str], network: str | None = None) -> dict:
    """The estimate of a profile under these metrics: {"format", "version", "what", "model", "parts", "seconds",
    "cpu_hours", "memory", "scratch", "kept", "reads", "threads", "speeds", "notes"}; bytes, and floating-point
    operations by what does them."""
    notes = [f"The spectra of the bonds of {network} are not counted."] if network else []
    return _document("profile", checkpoint, _pass(checkpoint, metrics, None), [], 0, device, notes)


def of_plan(
    checkpoint: Checkpoint,
    device: str,
    rule: str,
    metric: str = "loss",
    network: str = "lowrank",
    measure: str = "gradients",
    quantize: str | None = None,
) -> dict:
    """The estimate of a plan by a rule, as of a profile."""
    measuring = rule in MEASURING
    runs = measuring or metric != "weight"
    of_all = _pass(checkpoint, WHOLE_PROFILE if runs else ("weight",), metric if runs else None)
    notes = []
    if network != "lowrank" or quantize:
        notes = ["Fits and rounding of anything but plain low-rank cores are not counted: they take longer than these."]
    more = _forward_passes(checkpoint, rule, measure) if measuring else []
    if runs and not measuring:
        more = [_forward("whole plans", checkpoint, 2 * SETTINGS.check_windows * SETTINGS.window)]
    return _document("plan", checkpoint, of_all, more, _whole_model(checkpoint, rule) if runs else 0, device, notes)


def of_compress(checkpoint: Checkpoint, device: str, plan: Plan) -> dict:
    """The estimate of writing a plan's model where no core of it was made yet, as of a profile."""
    cut = {entry["network"] for entry in plan.weights.values()} - {"dense"}
    quantized = any(entry.get("quantize") for entry in plan.weights.values())
    notes = [] if plan.prefix else ["Cores that a plan has made already are not made again."]
    if cut - {"lowrank"} or quantized:
        notes.append("Fits and rounding of anything but plain low-rank cores are not counted: they take longer.")
    found = _pass(
        checkpoint, (), plan.metric if "lowrank" in cut else None, probing=False, keep=plan.metric != "weight"
    )
    found.kept["the compressed model"] = plan.ledger(checkpoint).bytes
    more = []
    if plan.prefix:
        more.append(_behind_the_prefix(checkpoint))
    return _document("compress", checkpoint, found, more, 0, device, notes)


def _behind_the_prefix(checkpoint: Checkpoint) -> Part:
    """Windows, dense and compressed, once on to the next block, and for the two moments of each different input so far
    into the block as that comes: half of it, in the middle. Besides a product for what residual connections lost."""
    tokens = WINDOWS * SETTINGS.window
    found = _forward("behind the prefix", checkpoint, (2 + INPUTS) * tokens)
    weights = [weight for weight in checkpoint.weights if weight.compressible]
    sums = sum(weight.shape[1] ** 2 for weight in weights if weight.role not in SHARING)
    lost = sum(weight.parameters for weight in weights if weight.role in estimate.ENDS)
    found.operations["float32"] += 2 * tokens * (2 * sums + lost)
    return found


def _pass(
    checkpoint: Checkpoint, metrics: Sequence[str], cores: str | None, probing: bool = True, keep: bool = False
) -> PassEstimate:
    runs = probing and (cores is not None or tuple(metrics) != ("weight",)) or keep
    tokens = asdict(wanted(checkpoint, SETTINGS))
    if not runs:
        tokens |= {"moments": 0, "probing": 0, "apart": False}
    tokens |= {} if probing and cores is not None else {"probing": 0}
    settings = tokens | {"metrics": metrics, "cores": cores}
    settings["keep_moments"] = keep or (runs and _moments(checkpoint) <= KEPT_MOMENTS)
    return estimate.of_pass(checkpoint, estimate.Wanted(**settings))


def _moments(checkpoint: Checkpoint) -> int:
    return sum(8 * side**2 for weight in checkpoint.weights if weight.compressible for side in weight.shape)


def _forward(name: str, checkpoint: Checkpoint, tokens: float, part_of_blocks: float = 1.0) -> Part:
    blocks, head = estimate.forward(checkpoint, SETTINGS.window)
    found = Part(name)
    found.operations["float32"] = tokens * (part_of_blocks * blocks + head)
    return found


def _forward_passes(checkpoint: Checkpoint, rule: str, measure: str) -> list[Part]:
    """What a rule that measures runs besides the pass."""
    probe, check = (count * SETTINGS.window for count in (SETTINGS.probe_windows, SETTINGS.check_windows))
    weights = sum(weight.compressible for weight in checkpoint.weights)
    apart, refines = is_large(checkpoint), sum(ROUNDS) if _refines(checkpoint, rule) else 0.0
    plans: float = PLANS_FITTED + 1 + (RULES_MEASURED if rule == "best" else 0)
    plans += apart * (refines + (rule == "best"))  # the dense model again, each time
    if measure == "all":
        found = [_forward("every weight cut alone", checkpoint, weights * len(LEVELS) * probe, _ran(checkpoint, probe))]
    else:
        few, each = 2 * min(PICKED, weights) + 1, FEW_WINDOWS * SETTINGS.window
        found = [_forward("a handful of weights cut alone", checkpoint, few * each, _ran(checkpoint, each))]
    found.append(_forward("whole plans", checkpoint, (plans + refines) * check))
    if refines and measure == "all":
        again = _forward("every weight at the plan", checkpoint, refines * weights * probe, _ran(checkpoint, probe))
        found.append(again)
    elif refines:  # forwards, twice backwards, and the change of what each weight puts out
        again = _forward("gradients at the plan", checkpoint, 3 * refines * probe)
        again.operations["float32"] += refines * probe * 2 * checkpoint.block_parameters
        found.append(again)
    return found


def _ran(checkpoint: Checkpoint, tokens: int) -> float:
    """The part of the blocks that run where one weight was cut: see probe.py."""
    return 0.5 if is_large(checkpoint) or 4 * tokens * sum(estimate.widths(checkpoint)) <= RECORD else 1.0


def _in_blocks(checkpoint: Checkpoint) -> int:
    """Bytes of memory where plans are measured block by block: the largest block and all outside the blocks, the
    matrices in the place of a block's, and what stands between two blocks for every change."""
    blocks: Counter[int | None] = Counter()
    for weight in checkpoint.weights:
        blocks[weight.layer] += 4 * weight.parameters if weight.layer is not None else 0
    outside = 4 * checkpoint.parameters - sum(blocks.values())
    most = max(blocks.values(), default=0)
    width = max(estimate.widths(checkpoint), default=0)
    changes = (2 * PICKED + 1) * FEW_WINDOWS, (PLANS_FITTED + 1) * SETTINGS.check_windows
    between = 4 * width * SETTINGS.window * max(changes)
    return estimate.PROGRAM + outside + most + min(MATRICES, PLANS_FITTED * most) + between + OUTPUTS * 4 * LOGITS


def _refines(checkpoint: Checkpoint, rule: str) -> bool:
    """Whether a rule measures at the plan itself, with the model in memory."""
    return rule == "refined" or (rule == "best" and (4 * checkpoint.parameters <= REFINED or not is_large(checkpoint)))


def _whole_model(checkpoint: Checkpoint, rule: str) -> int:
    """Bytes of memory where plans are measured: the whole model in float32 and the cut weights, and of what it put out
    when it was dense as much as is kept."""
    if is_large(checkpoint) and not _refines(checkpoint, rule):
        return _in_blocks(checkpoint)
    widths, kept = estimate.widths(checkpoint), 0
    for count in (FEW_WINDOWS, SETTINGS.check_windows, SETTINGS.probe_windows):
        tokens = count * SETTINGS.window
        outputs, blocks = 4 * tokens * (checkpoint.vocabulary or 0), 4 * tokens * sum(widths)
        kept += outputs if outputs <= RECORD else 4 * tokens * max(widths, default=0)
        kept += blocks if blocks <= RECORD else 0
    return estimate.PROGRAM + 4 * checkpoint.parameters + 4 * checkpoint.block_parameters + kept


def _document(
    what: str, checkpoint: Checkpoint, found: PassEstimate, more: Sequence[Part], memory: int, device: str, notes: list
) -> dict[str, Any]:
    speeds, threads = estimate.speeds(device), torch.get_num_threads()
    parts = [part for part in (*found.parts, *more) if part.operations]
    seconds = sum(part.seconds(speeds) for part in parts)
    rows: list[Mapping] = [
        {"part": part.name, "operations": dict(part.operations), "seconds": part.seconds(speeds)} for part in parts
    ]
    if device != "cpu":
        notes = [*notes, f"Speeds were measured on {device}; what is read and moved is not counted."]
    return {
        "format": FORMAT,
        "version": VERSION,
        "what": what,
        "model": {"name": checkpoint.name, "parameters": checkpoint.parameters, "bytes": checkpoint.bytes},
        "parts": rows,
        "seconds": seconds,
        "cpu_hours": seconds * threads / 3600,
        "memory": max(found.memory, memory),
        "scratch": found.scratch,
        "kept": found.kept,
        "reads": found.reads + (len(more) if is_large(checkpoint) else bool(more)),
        "threads": threads,
        "speeds": speeds,
        "notes": notes,
    }
