"""What every network has to be held against, in the same bytes: plain SVD, SVD-LLM's rule, integers of 8 to 2 bits
rounded to nearest and calibrated (GPTQ), magnitude pruning, and torchao's int8 where it is installed.

Bytes count everything, 16 bits for each number that is not quantized: 1.0 is the whole model in 16 bits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch

from karipap_core.errors import InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.plan.document import Plan
from karipap_core.profiles.blockpass import runs_apart
from karipap_core.progress import Progress, silent
from karipap_core.quantization.packing import Quantized
from karipap_core.quantization.rounding import quantize_gptq, quantize_rtn
from karipap_core.tradeoffs.effort import QUANTIZED, SPARSITIES
from karipap_core.tradeoffs.sequential import in_sequence

WAYS = ((True, False), (True, True), (False, True))  # of GPTQ: columns by falling activations, ranges searched


@dataclass(frozen=True)
class Replacement:
    """What a baseline makes of one weight: Ŵ (out, in), and what is stored for it."""

    name: str
    matrix: torch.Tensor
    bytes: int
    parameters: int


@dataclass(frozen=True)
class Baseline:
    """method: svd, svd-llm, rtn, gptq, magnitude or torchao, or "PACKAGE VERSION METHOD" of what another program made
    (`handover`); `make` yields a Replacement for each weight it changes; plan: of baselines that are plans (the two
    SVDs); notes: what there is to say of its sizes; seconds: what making it took elsewhere."""

    method: str
    label: str
    settings: dict
    make: Callable[[], Iterator[Replacement]]
    plan: Plan | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def baselines(
    study, kept: Sequence[float] = (), scope="blocks", quantized=QUANTIZED, sparsities=SPARSITIES
) -> list[Baseline]:
    """Baselines for the checkpoint of a study: the SVDs at the budgets `kept` (as `budget.Budget`, those
    too small for the model left out), integers in (bits, group), pruning of the share `sparsities` of each weight."""
    found = []
    for fraction in kept:
        for method, metric in (("svd", "weight"), ("svd-llm", "functional")):
            found += svd_baselines(study, method, metric, fraction, scope)
    for bits, group in quantized:
        # At 8 bits there is nothing left for calibration to win.
        found += [integers(study, method, bits, group) for method in ("rtn", "gptq") if bits < 8 or method == "rtn"]
    if find_spec("torchao"):
        found.append(Baseline("torchao", "int8, torchao", {"bits": 8, "group": None}, lambda: _torchao(study)))
    for share in sparsities:
        label = f"magnitude pruning, {share:.0%} zero"
        found.append(Baseline("magnitude", label, {"sparsity": share}, partial(_pruned, study, share)))
    return found


def measure_baseline(baseline: Baseline, bench: InPlace, checkpoint, progress: Progress = silent) -> dict:
    """Its sizes (`sizes`) and its figures (`InPlace.measure`) in one dictionary."""
    blocks = {weight.name: weight.parameters for weight in checkpoint.weights if weight.compressible}
    stored = {name: (2 * count, count) for name, count in blocks.items()}

    def matrices() -> Iterator[tuple[str, torch.Tensor]]:
        for item in baseline.make():
            if item.name in bench.sites:
                stored[item.name] = item.bytes, item.parameters
                progress("baseline", len(stored), len(blocks), baseline.label)
                yield item.name, item.matrix

    measured = bench.measure(matrices(), progress)
    n_bytes, parameters = (sum(column) for column in zip(*stored.values(), strict=True))
    return sizes(checkpoint, n_bytes, parameters) | measured


def sizes(checkpoint, block_bytes: int, block_parameters: int, saved: int = 0, saved_bytes: int = 0) -> dict:
    """{"parameters", "bytes", "kept", "bytes_kept", "kept_blocks", "bytes_kept_blocks"} of a model whose compressible
    weights take so many bytes and numbers; what is left (embeddings, head, norms) counts 2 bytes a number less what was
    saved there, and so does the dense model that fractions are of, whatever it is stored in."""
    rest = checkpoint.parameters - checkpoint.block_parameters
    return {
        "parameters": rest - saved + block_parameters,
        "bytes": 2 * rest - saved_bytes + block_bytes,
        "kept": (rest - saved + block_parameters) / checkpoint.parameters,
        "bytes_kept": (2 * rest - saved_bytes + block_bytes) / (2 * checkpoint.parameters),
        "kept_blocks": block_parameters / checkpoint.block_parameters,
        "bytes_kept_blocks": block_bytes / (2 * checkpoint.block_parameters),
    }


def plan_sizes(checkpoint, ledger) -> dict:
    """`sizes` of a plan, from its ledger."""
    saved = checkpoint.parameters - checkpoint.block_parameters - (ledger.parameters - ledger.block_parameters)
    saved_bytes = ledger.table_bytes_dense - ledger.table_bytes
    return sizes(checkpoint, ledger.block_bytes, ledger.block_parameters, saved, saved_bytes)


def prune(W: torch.Tensor, share: float) -> tuple[torch.Tensor, int]:
    """W without the `share` of its entries that are smallest in magnitude, and its bytes: 16 bits for each entry that
    stays, one bit for each place."""
    stays = W.numel() - round(share * W.numel())
    pruned = torch.zeros_like(W).flatten()
    largest = W.flatten().abs().topk(stays).indices
    pruned[largest] = W.flatten()[largest]
    return pruned.reshape(W.shape), 2 * stays + -(-W.numel() // 8)


def _weights(study) -> Iterator[tuple[str, torch.Tensor]]:
    for weight in study.measurable:  # what the text does not reach would be cut for nothing
        yield weight.name, study.checkpoint.read(weight.name).float().to(study.device)


def svd_baselines(study, method: str, metric: str, fraction: float, scope: str) -> list[Baseline]:
    """A truncated SVD of every weight in a metric, the same share of parameters kept of each, as a list of one; empty
    where the model cannot be so small. method : "svd" (in the metric weight) or "svd-llm" (functional), for its label.
    fraction : of the parameters of `scope`, to keep."""
    from karipap_core.plan.budget import Budget
    from karipap_core.plan.planner import Planner

    try:
        plan = Planner(study, "lowrank", metric).unpredicted(Budget(fraction, scope=scope), "uniform")
    except InputError:
        return []

    def make() -> Iterator[Replacement]:
        for name in plan.weights:
            spec = plan.spec(name)
            if spec is not None:
                matrix = study.decompositions(metric).matrix(name, spec)
                yield Replacement(name, matrix, 2 * spec.parameters, spec.parameters)

    label = f"{'SVD' if method == 'svd' else 'SVD-LLM'}, uniform, kept {fraction:g}"
    settings = {"network": "lowrank", "rule": "uniform", "metric": metric, "budget": fraction, "scope": scope}
    return [Baseline(method, label, settings, make, plan)]


def integers(study, method: str, bits: int, group: int | None) -> Baseline:
    """Every weight in integers of so many bits, one scale for each `group` numbers of a row (None: for a whole row);
    method : "rtn", rounded to nearest, or "gptq", calibrated on the text of the study, block after block behind the
    quantized ones where the model runs block by block. A weight is rounded by GPTQ in three ways and keeps the one with
    the smallest error of its outputs: as llm-compressor does by default, columns by falling activations and groups with
    the range of their numbers; the same with searched ranges; and columns in their own order with ranges that are
    searched as they are reached."""

    def rounded() -> Iterator[tuple[str, Quantized]]:
        for name, W in _weights(study):
            yield name, quantize_rtn(W, bits, group)

    def make() -> Iterator[Replacement]:
        for name, quantized in rounded() if method == "rtn" else _gptq(study, bits, group):
            yield Replacement(name, quantized.dense(), quantized.bytes, quantized.codes.numel())

    label = f"int{bits}{f' g{group}' if group else ''}, {method.upper()}"
    calibrated = {"order": "activation", "ranges": "searched"} if method == "gptq" else {}
    settings = {"bits": bits, "group": group} | calibrated
    return Baseline(method, label, settings, make)


def _gptq(study, bits: int, group: int | None) -> Iterable[tuple[str, Quantized]]:
    def quantize(name: str, C: torch.Tensor) -> Quantized:
        W = study.checkpoint.read(name).to(C.device)
        # Which way loses least differs between models by as much as two bits do: a weight gets its best one.
        ways = [quantize_gptq(W, bits, group, C, order=order, clip=clip, weigh=True) for order, clip in WAYS]
        return min(ways, key=lambda way: _squares(W.double() - way.dense().double(), C))

    names = [weight.name for weight in study.measurable]
    if study.why_not_run is None and runs_apart(study.checkpoint, study.device):
        return in_sequence(study, names, quantize).items()
    return ((name, quantize(name, study.moments.metric(name, "functional").C)) for name in names)


def _squares(D: torch.Tensor, C: torch.Tensor) -> float:
    """tr(D C Dᵀ), the error of the outputs."""
    return float((D @ C.double() * D).sum())


def _pruned(study, share: float) -> Iterator[Replacement]:
    for name, W in _weights(study):
        matrix, n_bytes = prune(W, share)
        yield Replacement(name, matrix, n_bytes, W.numel() - round(share * W.numel()))


def _torchao(study) -> Iterator[Replacement]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for name, W in _weights(study):
        n_out, n_in = W.shape
        linear = torch.nn.Linear(n_in, n_out, bias=False, device=W.device)
        linear.weight.data = W
        quantize_(linear, Int8WeightOnlyConfig())
        yield Replacement(name, linear.weight.dequantize(), W.numel() + 2 * len(W), W.numel())
