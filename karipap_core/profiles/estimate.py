"""What a pass over a model's blocks takes, from the shapes of its weights alone: operations, memory, disk, reads.

With T tokens for the moments and P for probing (P = 0 where nothing is probed), and for a weight W (out o, in i; m the
smaller, M the larger side) t of them, which is all of T + P but for an expert's share k / E, in floating-point
operations (a multiply-add is two):

    forwards and backwards   2 t o i forwards, as much for the gradient of its input, and, block by block, forwards once
                             more; attention 4 t w d of a window w and d = heads · width, and twice that backwards; the
                             head 2 t · hidden · vocabulary each way
    moments                  T o² + (once where weights share their input) T i²; from 512 on 9/8 of that, in panels
    whitening                o³/3 + i³/3 for the Cholesky factors, 2 o i² (functional) and 2 o² i + 2 o i² (loss)
    spectra, each metric     m² M, and the eigenvalues of an m × m matrix, `EIGENVALUES` of what its vectors cost too
    cores to break-even χ    the whitening again, m² M, an eigendecomposition (9 m³) and 2 o i χ + m² χ
    damages                  P (2 o i + 2 χ (o + i)), and the errors of the cuts: whitening, 2 o i χ and 2 χ (o² + i²)

Half of each symmetric product is made. Times are these operations over what this machine does (`speeds`).
"""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.errors import StorageError
from karipap_core.progress import Progress
from karipap_core.spectra.symmetric import PANELS
from karipap_core.terminal import about, size
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json

EIGENVALUES = 0.45  # of the time of an eigendecomposition
TRIED = 512  # side of the matrices that speeds are measured on
SHARING = ({"q", "k", "v"}, {"gate", "up"})  # roles of one layer that are given the same input
ENDS = ("o", "down", "fc2", "ssm_out", "shared_down")  # roles whose outputs are as wide as what a block hands on
ROWS = 2048  # tokens that go through a block together
LOGITS = 1 << 23  # numbers: a batch of several windows has no more logits, of which there are several copies
COPIES = 6
PROGRAM = 450_000_000  # bytes that Python and its libraries take
SLOWEST = 1e10  # operations a second that any machine does: below a minute at these nothing is looked at or told
LONG = 60.0  # seconds of a pass from which on it is told what it takes
BETWEEN = 14  # bytes of a number between two blocks: it, its gradient, and both in 16 bits as they are kept

Speeds = dict[str, float]  # operations a second, by kind: "float32" and "float64" products, "eigh"


USUAL: Speeds = {"float32": 1.0, "float64": 0.5, "eigh": 0.2}  # of a CPU, beside one another


@dataclass
class Part:
    """Operations of one kind of work, by what does them ("float32", "float64", "eigh")."""

    name: str
    operations: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def seconds(self, speeds: Speeds) -> float:
        return sum(operations / speeds[kind] for kind, operations in self.operations.items())


@dataclass(frozen=True)
class PassEstimate:
    """memory: bytes at its peak; scratch: on disk at most while it is under way; kept: on disk afterwards, by what it
    is; reads: how often each weight is read from its file."""

    parts: list[Part]
    memory: int
    scratch: int
    kept: dict[str, int]
    reads: int

    def seconds(self, speeds: Speeds) -> float:
        return sum(part.seconds(speeds) for part in self.parts)


@dataclass(frozen=True)
class Wanted:
    """What a pass is for: tokens for the moments and for probing, in windows; spectra under these metrics; cores up to
    break-even under `cores` (None: none), and where there is probing what cuts to some of them damage; whether moments
    are kept; block by block (`apart`), or with the whole model in memory."""

    moments: int
    probing: int
    window: int
    metrics: Collection[str] = ()
    cores: str | None = None
    keep_moments: bool = False
    apart: bool = True


def of_pass(checkpoint: Checkpoint, wanted: Wanted) -> PassEstimate:
    """What a pass takes; see the head of this file. Nothing but headers is read."""
    weights = [weight for weight in checkpoint.weights if weight.compressible]
    parts = [_running(checkpoint, weights, wanted), Part("moments"), Part("spectra")]
    streams = list(_streams(weights))
    for side, weight in streams:
        tokens = wanted.moments * share_of(checkpoint, weight)
        parts[1].operations["float32"] += tokens * side**2 * (9 / 8 if side >= PANELS else 2)
    for weight in checkpoint.weights if wanted.metrics else ():
        for metric in wanted.metrics if weight.compressible else ("weight",):
            _spectrum(parts[2], weight.shape, metric)
    if wanted.cores:
        parts += [Part("cores"), Part("damages")]
        for weight in weights:
            _cores(parts[3], weight.shape, wanted.cores)
            if wanted.probing:
                _damages(parts[4], weight.shape, wanted.cores, wanted.probing * share_of(checkpoint, weight))
    kept = {
        "spectra": sum(8 * min(w.shape) * (len(wanted.metrics) if w.compressible else 1) for w in checkpoint.weights)
    }
    kept = kept if wanted.metrics else {}
    kept |= {"moments": sum(8 * side**2 for side, _ in streams)} if wanted.keep_moments else {}
    if wanted.cores:
        sizes = ((2 if w.dtype == "bfloat16" else 4) * break_even(w.shape) * sum(w.shape) for w in weights)
        kept["cores"] = sum(sizes)
    scratch = 0
    if wanted.apart:  # what each block puts out, what the first is given, and gradients on both sides of one
        each = widths(checkpoint)
        # Weights outside the blocks see nothing twice: all stays till the end.
        held = 2 * sum(each) if any(w.layer is None for w in weights) else sum(each) + 2 * max(each, default=0)
        scratch = 2 * (wanted.moments + wanted.probing) * (held + max(each, default=0))
    reads = (2 if wanted.apart else 1) + bool(wanted.metrics) + 2 * bool(wanted.cores)
    return PassEstimate(parts, _memory(checkpoint, weights, wanted), scratch, kept, reads)


def break_even(shape: tuple[int, int]) -> int:
    """The largest χ at which low-rank cores have fewer numbers than the weight, at least 1."""
    return max(1, (shape[0] * shape[1] - 1) // sum(shape))


def share_of(checkpoint: Checkpoint, weight: Weight) -> float:
    """The part of the tokens that comes to a weight: of an expert's, as many as are chosen of all, evenly."""
    if weight.expert is None:
        return 1.0
    config = checkpoint.config.get("text_config") or checkpoint.config
    chosen = config.get("num_experts_per_tok") or config.get("num_experts_per_token") or 1
    experts = max(w.expert or 0 for w in checkpoint.weights if w.layer == weight.layer and w.role == weight.role) + 1
    return min(1.0, chosen / experts)


def forward(checkpoint: Checkpoint, window: int) -> tuple[float, float]:
    """Operations of a forward pass for each token, (of the blocks, of the head)."""
    weights = [weight for weight in checkpoint.weights if weight.compressible]
    linear = sum(2 * weight.parameters * share_of(checkpoint, weight) for weight in weights)
    return linear + sum(4 * window * weight.shape[1] for weight in weights if weight.role == "o"), _head(checkpoint)


def _head(checkpoint: Checkpoint) -> float:
    if not checkpoint.predicts:
        return 0.0
    return 2.0 * max((w.parameters for w in checkpoint.weights if w.role in ("head", "embed")), default=0)


def _running(checkpoint: Checkpoint, weights: list[Weight], wanted: Wanted) -> Part:
    tokens = wanted.moments + wanted.probing
    linear = sum(2 * weight.parameters * share_of(checkpoint, weight) for weight in weights)
    attention = sum(4 * wanted.window * weight.shape[1] for weight in weights if weight.role == "o")
    again = 1 if wanted.apart else 0
    found = Part("forwards and backwards")
    each = (2 + again) * linear + (3 + again) * attention + 2 * _head(checkpoint)
    found.operations["float32"] = float(tokens) * each
    return found


def _streams(weights: Iterable[Weight]) -> Iterable[tuple[int, Weight]]:
    """(side, weight) of every moment: an input once for all weights that share it, each output."""
    seen: set[tuple] = set()
    for weight in weights:
        group = next((number for number, roles in enumerate(SHARING) if weight.role in roles), None)
        key = (weight.tower, weight.layer, weight.expert, weight.role if group is None else group, weight.shape[1])
        if group is None or key not in seen:
            yield weight.shape[1], weight
        seen.add(key)
        yield weight.shape[0], weight


def whitening(shape: tuple[int, int], metric: str) -> float:
    """Operations of A W B."""
    o, i = shape
    return {"weight": 0.0, "functional": 2.0 * o * i**2, "loss": 2.0 * o * i * (o + i)}[metric]


def _spectrum(part: Part, shape: tuple[int, int], metric: str) -> None:
    o, i = shape
    small, large = sorted(shape)
    factors = {"weight": 0.0, "functional": i**3 / 3, "loss": o**3 / 3}[metric]  # that of C is kept for `loss`
    part.operations["float64"] += whitening(shape, metric) + factors + small**2 * large
    part.operations["eigh"] += EIGENVALUES * 9 * small**3


def _cores(part: Part, shape: tuple[int, int], metric: str) -> None:
    small, large = sorted(shape)
    chi = break_even(shape)
    part.operations["float64"] += whitening(shape, metric) + small**2 * large
    part.operations["float64"] += 2 * chi * small * large + chi * small**2
    part.operations["eigh"] += 9 * small**3


def _damages(part: Part, shape: tuple[int, int], metric: str, tokens: float) -> None:
    o, i = shape
    chi = break_even(shape)
    sides = {"weight": 0, "functional": i**2, "loss": o**2 + i**2}[metric]
    part.operations["float64"] += whitening(shape, metric) + 2 * chi * (o * i + sides)
    part.operations["float32"] += tokens * (2 * o * i + 2 * chi * (o + i))


def widths(checkpoint: Checkpoint) -> list[int]:
    """Numbers a token that each block hands on."""
    config = checkpoint.config.get("text_config") or checkpoint.config
    usual = config.get("hidden_size") or config.get("n_embd") or config.get("d_model")
    found: dict[tuple, int] = {}
    for weight in checkpoint.weights:
        if weight.compressible and weight.layer is not None:
            width = weight.shape[0] if weight.role in ENDS else found.get((weight.tower, weight.layer), usual or 0)
            found[weight.tower, weight.layer] = width or min(weight.shape)
    return list(found.values())


def _memory(checkpoint: Checkpoint, weights: list[Weight], wanted: Wanted) -> int:
    """Bytes at the peak. Block by block there are all the time what lies outside the blocks and the largest block in
    float32, and of every token what stands between two blocks; besides, whichever is most:

    - running forwards: of one batch its logits and what goes through a block;
    - running backwards: the block's moments in float64, what its weights see of the tokens for probing in 16 bits, and
      what goes through it;
    - taking weights apart, one after the other: the moments of those to come, and of the one at hand its factors and
      the matrices of its decomposition.
    """
    blocks: dict[tuple, list[Weight]] = defaultdict(list)
    for weight in weights:
        blocks[(weight.tower, weight.layer) if wanted.apart else ()].append(weight)
    outside = checkpoint.parameters - sum(weight.parameters for weight in weights)
    parameters = max((sum(w.parameters for w in block) for block in blocks.values()), default=0)
    width = max(widths(checkpoint), default=0)
    always = PROGRAM + 4 * (outside + parameters)
    always += BETWEEN * (wanted.moments + wanted.probing) * width if wanted.apart else 0
    seen = max((sum(share_of(checkpoint, w) * sum(w.shape) for w in block) for block in blocks.values()), default=0)
    batch = min(ROWS, max(wanted.window, LOGITS // max(1, checkpoint.vocabulary or 1))) if wanted.moments else 0
    through = 4 * batch * 2 * seen
    most = 4 * batch * COPIES * (checkpoint.vocabulary or 0) + through
    for block in blocks.values():
        moments = sum(8 * side**2 for side, _ in _streams(block)) if wanted.moments else 0
        kept = 2 * wanted.probing * seen if wanted.apart else 0
        apart = max(_taken_apart(block, moments, wanted)) if wanted.metrics or wanted.cores else 0
        most = max(most, moments + kept + through, kept + apart)
    return int(always + most)


def _taken_apart(block: Sequence[Weight], moments: int, wanted: Wanted) -> Iterator[int]:
    """Bytes while each weight of a block is taken apart, its turn having come."""
    sides = defaultdict(list)
    for side, weight in _streams(block):
        sides[weight.name].append(side)
    for weight in block:
        matrices = 8 * (3 * weight.parameters + 4 * min(weight.shape) ** 2)
        if not wanted.moments:
            yield matrices
            continue
        factors, making = 8 * sum(side**2 for side in weight.shape), 8 * max(weight.shape) ** 2
        yield moments + factors + max(making, matrices)
        moments -= sum(8 * side**2 for side in sides[weight.name]) if wanted.apart else 0


# What this machine does.


def speeds(device: str = "cpu") -> Speeds:
    """Operations a second of float32 and float64 products and of an eigendecomposition in float64 (9 n³) with torch's
    present number of threads: measured in about half a second, once, and kept in the workspace."""
    machine = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "device": device,
    }
    file = Workspace().cache_file("speeds", settings_key(machine))
    if (known := kept_json(file)) is not None:
        return known["speeds"]
    one = torch.randn(TRIED, TRIED, generator=torch.Generator().manual_seed(0)).to(device)
    two = one.double()
    found = {
        "float32": _pace(lambda: one @ one, 2 * TRIED**3, device),
        "float64": _pace(lambda: two @ two, 2 * TRIED**3, device),
        "eigh": _pace(lambda: torch.linalg.eigh(two @ two.T), 9 * TRIED**3, device),
    }
    keep_json(file, machine | {"speeds": found})
    return found


def _pace(work: Any, operations: float, device: str, seconds: float = 0.12) -> float:
    """Operations a second: the median of some tries."""
    paces: list[float] = []
    work()
    began = time.perf_counter()
    while not paces or time.perf_counter() - began < seconds:
        if device != "cpu":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        paces.append(operations / max(time.perf_counter() - start, 1e-9))
    return sorted(paces)[len(paces) // 2]


def check_room(folder: Path, estimate: PassEstimate) -> None:
    """Raises StorageError where the disk has no room for what a pass writes, less what a killed one left there."""
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    home = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    needed, free = estimate.scratch + sum(estimate.kept.values()) - there, shutil.disk_usage(home).free
    if needed > free:
        raise StorageError(
            f"The pass needs {size(needed)} on the disk of {home} ({size(estimate.scratch)} while it is under way, "
            f"{size(sum(estimate.kept.values()))} to keep), and {size(free)} are free there: name another workspace "
            "(--workspace), or calibrate on fewer tokens."
        )


def tell(folder: Path, estimate: PassEstimate, device: str, progress: Progress) -> None:
    """Checks that there is room for a pass, and says what it takes where that is more than a minute."""
    check_room(folder, estimate)
    if sum(sum(part.operations.values()) for part in estimate.parts) < LONG * SLOWEST:
        return
    if (seconds := estimate.seconds(speeds(device))) > LONG:
        said = f"One pass over the blocks: about {about(seconds)}, {size(estimate.memory)} of memory"
        kept = sum(estimate.kept.values())
        said += f", {size(estimate.scratch)} on disk meanwhile" if estimate.scratch else ""
        progress("activations", 0, 1, "", f"{said}{f', {size(kept)} to keep' if kept else ''} (estimated).")
