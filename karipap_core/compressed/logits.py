"""Whether a compressed folder, loaded by transformers, computes what its cores say: by its logits, and by the matrices
of the layers that no token reaches."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.checkpoint.kinds import positions_of
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.compressed.records import Source
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan

if TYPE_CHECKING:  # torch takes a second to import
    import torch

Reader = Callable[[str, str], "torch.Tensor"]
TOLERANCE = 1e-3  # relative, of the logits in float32
TOLERANCE_16 = 0.05  # where float32 does not fit into memory and the model runs in its own 16 bits
PROBE_ROWS, PROBE_TOKENS = 2, 32


def logits_agree(
    folder: Path,
    plan: Plan,
    source: Source | None,
    core_files: Mapping[str, Path] | None,
    checkpoint: Checkpoint,
    device: str,
    names: Mapping[str, str],
) -> tuple[bool, str]:
    """`names`: the plan's names → those in the folder, where it was saved again."""
    dense = source.checkpoint if source else None
    if dense is not None and plan.unties(dense):
        dense = None  # its one table would have to be two
    try:
        found = _agreement(folder, plan, dense, _reader(checkpoint, core_files, names), checkpoint, device)
    except (InputError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        return False, f"cannot be loaded and run: {_first_line(error)}"
    beside = "the dense model with the cores' matrices in place" if dense is not None else "its own weights, formed"
    said = [f"not run, as the dense model is not ({found.why})"] if found.why else []
    # In powers of ten: the last digits depend on the machine, and equal folders are to have equal records.
    said += [] if found.why else [f"relative error against {beside} {_bound(found.difference)}"]
    if found.still:
        kept = f"{found.still} layers that these tokens do not reach hold their cores' matrices"
        said.append(f"{kept}, relative error {_bound(found.matrices)}")
    if found.joined:
        said.append(f"{found.joined} that these tokens do not reach are joined to others in the model and not compared")
    return max(found.difference, found.matrices) <= found.allowed, f"{'; '.join(said)}; allowed {found.allowed:g}"


@dataclass(frozen=True)
class _Agreement:
    """‖a − b‖ / ‖b‖ of the logits, how much is `allowed`; of the `still` layers that no token reaches, the largest such
    error of their matrices; how many more are `joined` to others; and `why` the model is not run at all."""

    difference: float
    allowed: float
    still: int
    matrices: float
    joined: int
    why: str = ""


def _bound(error: float) -> str:
    return next((f"below 1e-{n}" for n in range(9, 0, -1) if error < 10.0**-n), f"of {error:.1g}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _agreement(folder, plan, dense, read: Reader, checkpoint, device) -> _Agreement:
    import torch

    from karipap_core.layers.cores import CoresModule
    from karipap_core.models.load import load_model
    from karipap_core.models.sites import sites

    dtype, allowed = _affordable(checkpoint, plan)
    live, _ = load_model(folder, dtype=dtype, device=device, run=False)
    ids = _probe(live).to(device)
    ran: set[CoresModule] = set()
    for module in live.modules():
        if isinstance(module, CoresModule):
            module.runtime = "cores"  # what is compared are the cores' own contractions
            module.register_forward_hook(lambda module, inputs, output: ran.add(module))
    ours, failure = _tried(live, ids)
    if failure is not None and dense is None and not isinstance(failure, InputError):
        raise failure
    still, matrices, joined = _still(live, ran, plan, read)
    if dense is None:
        if failure is not None:
            return _Agreement(0.0, allowed, still, matrices, joined, _first_line(failure))
        for module in ran:
            module.runtime = "dense"
        theirs = _output(live, ids)
    else:
        del live, ran
        model, _ = load_model(dense, dtype=dtype, device=device, run=False)
        found = sites(model, dense, tables=True)
        with torch.no_grad():
            for name, matrix in _matrices(plan, read):
                if name not in found:
                    raise InputError(f"weight {name} is no linear layer of a {type(model).__name__}")
                found[name].get().copy_(matrix)
        theirs, same = _tried(model, ids)
        if failure is not None and same is not None:
            return _Agreement(0.0, allowed, still, matrices, joined, _first_line(same))
        if (fault := failure or same) is not None:
            raise fault
    assert ours is not None and theirs is not None
    if not torch.isfinite(ours).all():
        return _Agreement(float("inf"), allowed, still, matrices, joined)
    # The same also where both are zero, as those of a model of zeros.
    difference = 0.0 if torch.equal(ours, theirs) else ((ours - theirs).norm() / theirs.norm()).item()
    return _Agreement(difference, allowed, still, matrices, joined)


def _tried(model, ids) -> "tuple[torch.Tensor | None, Exception | None]":
    """What the model puts out, or what stopped it."""
    try:
        return _output(model, ids), None
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # what a model that reads no text raises is its own affair
        return None, error


def _still(live, ran: set, plan: Plan, read: Reader) -> tuple[int, float, int]:
    """(how many networks of a live model no token has reached, the largest ‖W − Ŵ‖ / ‖Ŵ‖ of theirs, how many more the
    model holds in a matrix of another shape, joined to others)."""
    from karipap_core.models.sites import Names

    names, count, worst, joined = Names(live), 0, 0.0, 0
    idle = {path for path, module in live.named_modules() if hasattr(module, "cores") and module not in ran}
    changed = [name for name in plan.weights if plan.spec(name) is not None] if idle else []
    paths = {name: _path(names, name) for name in changed}
    wanted = {name for name, path in paths.items() if path in idle}
    for name, matrix in _matrices(plan, read, wanted) if wanted else ():
        formed = live.get_submodule(paths[name]).weight.double().cpu()
        if formed.shape != matrix.shape:
            joined += 1
            continue
        count, worst = count + 1, max(worst, ((formed - matrix.cpu()).norm() / matrix.norm().clamp_min(1e-30)).item())
    return count, worst, joined


def _path(names, name: str) -> str:
    """Where a compressed weight is in a live model: slices of a stack that was split have their own names there."""
    try:
        return names.path(name)
    except InputError:
        return name


def _affordable(checkpoint: Checkpoint, plan: Plan):
    """float32 where the dense model fits in memory so, else what its weights are stored in."""
    import psutil
    import torch

    need = 4.6 * float(plan.model.get("parameters") or checkpoint.parameters)
    stored = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float32")
    if need < psutil.virtual_memory().available or stored not in ("bfloat16", "float16"):
        return torch.float32, TOLERANCE
    return getattr(torch, stored), TOLERANCE_16


def _probe(model):
    """Fixed token ids (2, n): the same on every machine."""
    import torch

    config = model.config.get_text_config()
    n = min(PROBE_TOKENS, positions_of(config) or PROBE_TOKENS)
    vocabulary = getattr(config, "vocab_size", None) or PROBE_ROWS  # what reads no text has none
    return (torch.arange(PROBE_ROWS * n) * 7919 % vocabulary).reshape(PROBE_ROWS, n)


def _output(model, ids):
    import torch

    from karipap_core.models import running

    with torch.no_grad():
        return running.output(model, ids).double().cpu()


def _reader(checkpoint: Checkpoint, core_files: Mapping[str, Path] | None, names: Mapping[str, str]) -> Reader:
    """Reads a tensor of a weight's cores: from the folder, or as they were computed."""
    from safetensors import safe_open

    def read(owner: str, tensor: str) -> "torch.Tensor":
        if core_files is None:
            return checkpoint.read_tensor(f"{names.get(owner, owner)}.{tensor}")
        with safe_open(core_files[owner], framework="pt") as file:
            return file.get_tensor(tensor)

    return read


def _matrices(plan: Plan, read: Reader, wanted: Container[str] | None = None) -> Iterator[tuple[str, "torch.Tensor"]]:
    """(name, Ŵ (out, in) float64) of each weight that the plan changes (and that is `wanted`), one at a time."""
    from karipap_core.layers.cores import read_cores

    for name in plan.weights:
        spec = plan.spec(name)
        if spec is not None and (wanted is None or name in wanted):
            yield name, spec.dense(read_cores(spec, name, read))
