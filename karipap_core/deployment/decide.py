"""Does it fit, and is it worth doing: four questions about one deployment, each answered with its reasons.

1. What do the layers' outputs on real activations say: tensor network, higher rank or dense?
2. Which numbers is this generation of GPU fast with?
3. How large is the KV cache, and where can it lie?
4. Do weights, cache and activations fit, what does a token cost, and which of four ways is right: dense, quantization
   alone, the full pipeline, or a smaller dense model?
"""

from dataclasses import asdict, replace
from pathlib import Path

from karipap_core.checkpoint.model import Weight
from karipap_core.checkpoint.roles import compressible, place, role_of
from karipap_core.deployment import evidence, hardware, kv
from karipap_core.deployment.footprint import Footprint, footprint
from karipap_core.deployment.request import Constraints, Load, Machine
from karipap_core.deployment.verdict import verdict
from karipap_core.deployment.ways import Case, dollars
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan
from karipap_core.progress import Progress, silent
from karipap_core.terminal import size
from karipap_core.workspace import Workspace

FORMAT, VERSION = "karipap-deployment", 1
THIS_MACHINE, NO_CONSTRAINTS = Machine(), Constraints()


def precision(generation: str | None, fp8_benchmarked: bool = False, fp4_validated: bool = False) -> tuple[str, str]:
    """(format, why) of node 2: the numbers that a GPU generation is fast with."""
    if generation == "Ampere":
        return "int8", "Ampere has int8 tensor cores and none for fp8."
    if generation == "Ada":
        if fp8_benchmarked:
            return "fp8", "Ada has fp8 tensor cores, and fp8 was benchmarked here."
        return "int8", "Ada has fp8 tensor cores, but kernels differ from card to card: int8 until fp8 is benchmarked."
    if generation == "Hopper":
        return "fp8", "Hopper has fp8 tensor cores and mature kernels for them."
    if generation == "Blackwell":
        if fp4_validated:
            return "fp4", "Blackwell has fp4 tensor cores, and fp4 was validated on this model."
        return "fp8", "Blackwell has fp8 tensor cores; fp4 halves the bytes again once it is validated on this model."
    if generation is None:
        return "int8", "No GPU is named: int8 runs everywhere."
    return "int8", f"A GPU that is {generation} has no fp8 tensor cores: int8, and benchmark it."


def deploy(
    model: str | Path | Footprint,
    load: Load,
    machine: Machine = THIS_MACHINE,
    plan: Plan | str | Path | None = None,
    constraints: Constraints = NO_CONSTRAINTS,
    force: bool = False,
    workspace: Workspace | None = None,
    progress: Progress = silent,
) -> dict:
    """The decision for one model and one load, as a document of JSON values.

    model: what `footprint.footprint` opens, or a Footprint. plan: its bytes are counted exactly, by its ledger; force:
    also where it was made for another model. workspace: whose profiles and runs are the evidence.

    Returns "weights_bytes", "kv_bytes", "activation_bytes", "total_bytes", "fits" (None without a GPU), "answer"
    (as `verdict.Verdict`), "verdict", "reasons", "nodes", "ways" (`ways.Way`), "placements" (`kv.Placement`) and what
    they rest on.
    Raises InputError for loads, models, plans and GPUs that cannot be.
    """
    progress("deploy", 0, 4, "model")
    foot = _counted(model)
    cache = kv.cache_of(foot.config)
    load = replace(load, sparse=load.sparse or cache.sparse)
    card = machine.card
    plan = Plan.load(plan) if plan is not None and not isinstance(plan, Plan) else plan
    progress("deploy", 1, 4, "weights")
    weights = plan_bytes(plan, foot, force) if plan is not None else foot.bytes
    case = Case(foot, cache, load, machine, card, plan)
    kv_bytes, total, usable = case.cache_bytes, case.total(weights), case.usable
    progress("deploy", 2, 4, "evidence")
    runs = evidence.runs_of(foot.checkpoint, workspace) if foot.checkpoint is not None else []
    generation = card.generation if card else None
    format_name, why_format = precision(generation, machine.fp8_benchmarked, machine.fp4_validated)
    smaller = None if constraints.smaller is None else _counted(constraints.smaller)
    ways = case.ways(weights if plan is not None else None, runs, format_name, smaller)
    served, words = weights, "the plan" if plan is not None else f"dense weights in {foot.dtype}"
    if plan is None and ways[0]["fits"] is False:
        quantized = ways[1]["quantize"]
        served, words = case.quantized(quantized), f"{quantized} weights"
    places = case.placements(served)
    progress("deploy", 3, 4, "verdict")
    found = verdict(case, ways, runs, constraints.fixed)
    sentence = found.sentence
    if load.keep < 1 and not load.sparse and cache.layers:
        sentence += (
            f" This counts on keeping {load.keep:.0%} of the tokens, which changes what dense attention answers."
        )
    nodes = [
        functional_node(foot, plan, constraints.tolerance, workspace),
        {
            "node": 2,
            "title": "Quantization by GPU generation",
            "answer": format_name,
            "reasons": [why_format, *_unwritten(format_name)],
        },
        cache_node(case, places, words),
        {"node": 4, "title": "Budget", "answer": found.answer, "reasons": list(found.reasons)},
    ]
    progress("deploy", 4, 4)
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": foot.name,
        "parameters": foot.parameters,
        "active_parameters": foot.active_parameters,
        "dtype": foot.dtype,
        "dtype_assumed": foot.assumed,
        "stored": foot.stored,
        "plan": plan.model["name"] if plan else None,
        "load": asdict(load),
        "gpu": asdict(card) if card else None,
        "usable_bytes": usable,
        "weights_bytes": weights,
        "kv_bytes": kv_bytes,
        "kv_bytes_whole": cache.bytes(load.tokens, load.batch, load.kv_dtype),
        "activation_bytes": case.activations,
        "total_bytes": total,
        "fits": None if usable is None else total <= usable,
        "attention": {
            "kind": cache.kind,
            "layers": len(cache.layers),
            "windowed": cache.windowed,
            "stateful": cache.stateful,
            "sparse": load.sparse,
        },
        "dollars_per_mtoken": dollars(machine.price, machine.throughput)
        if machine.price and machine.throughput
        else None,
        "answer": found.answer,
        "verdict": sentence,
        "reasons": [reason for node in nodes for reason in node["reasons"]],
        "nodes": nodes,
        "ways": ways,
        "placements": [case.row(place) for place in places],
        "placed_beside": words,
        "cache_room_bytes": None if usable is None else usable - served - case.activations,
        "published": hardware.document()["published"],
    }


def _counted(model: str | Path | Footprint) -> Footprint:
    return model if isinstance(model, Footprint) else footprint(model)


def plan_bytes(plan: Plan, foot: Footprint, force: bool = False) -> int:
    """Bytes of the model under a plan: `Plan.ledger`, of the checkpoint or, with a config alone, of the sizes in the
    plan and the counted rest. Raises InputError for a plan of another model."""
    if foot.checkpoint is not None:
        plan.check(foot.checkpoint, force)
        return plan.ledger(foot.checkpoint).bytes
    if plan.model.get("parameters") != foot.parameters and not force:
        raise InputError(
            f"This plan was made for {plan.model['name']} with {plan.model.get('parameters', 0):,} parameters; the "
            f"config of {foot.name} makes {foot.parameters:,}: name the plan's own model."
        )
    return plan.ledger(_Unread(plan, foot)).bytes


class _Unread:
    """What `Plan.ledger` asks of a checkpoint, where there is only a config: the weights that the plan changes."""

    def __init__(self, plan: Plan, foot: Footprint) -> None:
        self.parameters, self.bytes, self.block_parameters = foot.parameters, foot.bytes, foot.block_parameters
        tied = getattr(foot.config.get_text_config(decoder=True), "tie_word_embeddings", False)
        self.tied = {"head": "embed"} if tied else {}
        mixture = any(matrix.expert for matrix in foot.matrices)
        self.weights = []
        for name in plan.weights:
            spec, role, (layer, expert) = plan.spec(name), role_of(name, mixture), place(name)
            if spec is not None:
                shape, ready = (spec.n_out, spec.n_in), compressible(role)
                weight = Weight(name, f"{name}.weight", layer, role, shape, foot.dtype, False, expert, None, ready)
                self.weights.append(weight)

    def weight(self, name: str) -> Weight:
        return next(weight for weight in self.weights if weight.name == name)


def functional_node(foot: Footprint, plan: Plan | None, tolerance: float, workspace: Workspace | None) -> dict:
    """Node 1: the layers, by the error of their outputs on real activations."""
    node = {"node": 1, "title": "Functional error on real activations", "evidence": False, "weights": []}
    if foot.checkpoint is None:
        reason = (
            f"No evidence: {foot.name} is a config without weights. With the checkpoint at hand run: "
            "karipap profile MODEL --metrics weight,functional"
        )
        return node | {"answer": "no evidence", "reasons": [reason]}
    profile = evidence.functional_profile(foot.checkpoint, workspace)
    rows = evidence.advise(profile, plan, tolerance) if profile is not None else []
    if profile is None or not rows:
        reason = (
            "No evidence: this checkpoint has no functional spectra in the workspace. Run: karipap "
            f"profile {foot.checkpoint.path} --metrics weight,functional"
        )
        return node | {"answer": "no evidence", "reasons": [reason]}
    counts = {advice: sum(row.advice == advice for row in rows) for advice in evidence.ADVICE}
    text = profile.settings.get("text") or "its calibration text"
    reasons = [
        f"Of {len(rows)} weights, {counts['tensor network']} keep the error of their outputs on {text} within "
        f"{tolerance:.0%} with {evidence.AGGRESSIVE:.0%} of their parameters, {counts['higher rank']} need a higher "
        f"rank, and {counts['dense']} would save nothing: those stay dense."
    ]
    against = [row for row in rows if row.advice == "dense" and row.planned and not row.planned.startswith("dense")]
    if against:
        reasons.append(f"The plan cuts {len(against)} weights that should stay dense, such as {against[0].name}.")
    most = max(counts, key=lambda advice: counts[advice])
    return node | {
        "answer": most,
        "evidence": True,
        "counts": counts,
        "tolerance": tolerance,
        "text": text,
        "weights": [asdict(row) for row in rows],
        "reasons": reasons,
    }


def cache_node(case: Case, places: list[kv.Placement], served: str) -> dict:
    """Node 3: the size of the KV cache, and where it can lie beside the weights as `served` names them."""
    cache, load = case.cache, case.load
    node = {"node": 3, "title": "KV cache"}
    if not cache.layers:
        what = f"{cache.stateful} layers keep a state of fixed size" if cache.stateful else "an encoder keeps nothing"
        return node | {"answer": "none", "reasons": [f"No KV cache: {what}."]}
    each = {layer.values for layer in cache.layers}
    kinds = {
        "MHA": "every head has keys and values of its own",
        "MQA": "all heads share one pair",
        "GQA": "groups of heads share keys and values",
        "MLA": "one latent and one rotated key a token stand for K and V",
    }
    reasons = [
        f"{cache.kind}: {kinds[cache.kind]}; {'/'.join(f'{n:,}' for n in sorted(each))} numbers a token and layer, "
        f"{len(cache.layers)} layers, {load.tokens:,} tokens, batch {load.batch}, {load.kv_dtype}: "
        f"{size(case.cache_bytes)}."
    ]
    positions = getattr(case.foot.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions and load.tokens > positions:
        reasons.append(f"The model was made for {positions:,} tokens: more need another model or scaled positions.")
    if cache.windowed:
        reasons.append(f"{cache.windowed} layers see a window only and keep no more than it.")
    if cache.stateful:
        reasons.append(f"{cache.stateful} layers keep a state of fixed size, which is not counted.")
    if load.keep < 1 and not load.sparse:
        reasons.append(
            f"Keeping {load.keep:.0%} of the tokens under dense attention throws the rest away: the outputs change, "
            "and nothing is fetched back. Measure the quality at that retention, or say that the attention is sparse."
        )
    chosen = next((place for place in places if place.available), None)
    if places and chosen is None:
        reasons.append(f"Beside {served} the GPU has no room left for a cache: make the weights smaller first.")
    elif places:
        reasons.append(f"Places beside {served}:")
        reasons += [f"{place.name}: {place.why}" for place in places if place.available or place.name == kv.NAMES[3]]
    return node | {"answer": chosen.name if chosen else "unknown" if not places else "nowhere", "reasons": reasons}


def _unwritten(format_name: str) -> list[str]:
    return ["Karipap itself writes no fp4: the engine's own tool does."] if format_name == "fp4" else []
