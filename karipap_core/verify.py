"""Verify: whether a compressed folder on disk is the model that its plan describes, and loads as that.

Each fault turns one check red, the one that names it; what cannot be decided any more after it is not checked (`ok`
None), and then the whole is not ok either.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import PICKLES, open_checkpoint
from karipap_core.errors import InputError
from karipap_core.plan import Plan
from karipap_core.progress import Progress, silent
from karipap_core.records import (
    Source,
    file_sums,
    pinned,
    record,
    report_of,
    settings_of,
    source_of,
    tensor_sums,
)
from karipap_core.workspace.files import settings_key

TOLERANCE = 1e-3  # relative, of the logits in float32
TOLERANCE_16 = 0.05  # where float32 does not fit into memory and the model runs in its own 16 bits
PROBE_ROWS, PROBE_TOKENS = 2, 32
CODE = PICKLES + (".py", ".pyc", ".so", ".joblib", ".npy", ".npz", ".h5")
SHOWN = 3
ORDER = ("safetensors only", "plan", "fingerprint", "tensors", "finite", "unchanged", "logits")


def verify(
    folder: str | Path,
    against: str | Path | Checkpoint | None = None,
    report: dict | None = None,
    core_files: Mapping[str, Path] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict:
    """Checks a compressed folder and writes the verdict into it as verify.json.

    - `safetensors only`: no file in the folder can execute code.
    - `plan`: the plan in config.json is valid, and is the one that the folder was written for.
    - `fingerprint`: the dense model is the one that the plan pins; where it is not here, that one is pinned at all.
    - `tensors`: each tensor that plan and dense model ask for is there and no other, in shape, type and bytes.
    - `finite`: no NaN, no infinity in any tensor.
    - `unchanged`: tensors and files have the SHA-256 that `compress` wrote down.
    - `logits`: of the folder, loaded by transformers, against the dense model with Ŵ (formed in float64 from the
      cores) in place of its weights; without the dense model, against the same folder with each Ŵ formed. Largest
      relative error ‖a − b‖ / ‖b‖ 1e-3, float32, on fixed token ids.

    against: the dense model (default: where the folder says it was). report: karipap.json, where it is not written yet.
    core_files: the cores as they were computed, by weight, to compare with in place of those in the folder. Returns
    {"ok", "checks": [{"name", "ok", "detail"}], "folder", "loader"}; `loader` is Python to paste. Raises InputError
    where `folder` is no compressed folder or `against` cannot be opened.
    """
    folder = Path(folder)
    settings = settings_of(folder)
    report = report_of(folder) if report is None else report
    source = source_of(folder, against)
    found: dict[str, tuple[bool | None, str]] = {}

    def note(name: str, ok: bool | None, detail: str) -> None:
        found[name] = (ok, detail)
        progress("verify", len(found), len(ORDER), name)

    note("safetensors only", *_safe(folder))
    plan, detail = _plan(settings, report)
    note("plan", plan is not None, detail)
    same, detail = _same_source(settings, source)
    note("fingerprint", same, detail)
    checkpoint = None
    try:
        checkpoint = open_checkpoint(folder, compressed=True)
    except InputError as error:
        note("tensors", False, str(error))
    if checkpoint is not None:
        wrong = _tensors(checkpoint, plan, settings, source if same else None, report) if plan else None
        if wrong is None:
            note("tensors", None, "not checked: the plan does not say what should be there")
        else:
            note("tensors", not wrong, _first(wrong) or _sizes(checkpoint))
        damaged = _not_finite(checkpoint, progress)
        note("finite", not damaged, _first(damaged, "NaN or infinity in") or "no NaN or infinity in any tensor")
        note("unchanged", *_unchanged(folder, checkpoint, report, {*damaged, *(wrong or ())}))
        sound = plan is not None and not wrong and not damaged
        if sound:
            # Healed norms are not the dense model's: then the folder is held against itself, made dense in memory.
            own_norms = ((report or {}).get("healing") or {}).get("settings", {}).get("norms")
            dense = source if same and not own_norms else None
            note("logits", *_logits(folder, plan, dense, core_files, checkpoint, device))
    for name in ORDER:
        if name not in found:
            note(name, None, "not checked: see what is red above")
    checks = [{"name": name, "ok": found[name][0], "detail": found[name][1]} for name in ORDER]
    verdict = {"ok": all(check["ok"] is True for check in checks), "checks": checks}
    if checkpoint is not None:
        # What is not in the file: the folder's own path, so that equal folders have equal records.
        record(folder, "verify", verdict, source.checkpoint.fingerprint if same and source.checkpoint else None, False)
    else:
        (folder / "verify.json").unlink(missing_ok=True)
    return verdict | {"folder": str(folder), "loader": loader(folder)}


def loader(folder: str | Path) -> str:
    """Ten lines of Python that load the folder and use it, where `karipap_core` can be imported."""
    from karipap_core.models.load import TOKENIZERS

    folder = Path(folder).absolute()
    config = _config_of(folder)
    causal = (config.get("architectures") or ["CausalLM"])[0].endswith(("CausalLM", "LMHeadModel"))
    auto = "AutoModelForCausalLM" if causal else "AutoModel"
    texts = any((folder / name).is_file() for name in TOKENIZERS)
    lines = [
        "import torch",
        "import karipap_core  # from here on transformers loads compressed folders",
        f"from transformers import {auto}" + (", AutoTokenizer" if texts else ""),
        "",
        f"folder = {str(folder)!r}",
        f'model = {auto}.from_pretrained(folder, dtype="auto").eval()',
    ]
    if texts:
        lines += [
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            'ids = tokenizer("def main():", return_tensors="pt").input_ids',
        ]
        back = "print(tokenizer.decode(out[0]))"
    else:
        lines += ["ids = torch.tensor([[1, 2, 3]])"]
        back = "print(out[0])"
    lines += ["out = model.generate(ids, max_new_tokens=20)" if causal else "out = model(ids)[0].detach()"]
    lines += [back if causal else "print(out.shape)"]
    return "\n".join(lines)


def table(document: dict) -> str:
    """A verdict for a terminal."""
    from karipap_core.show import grid

    marks = {True: "ok", False: "WRONG", None: "not checked"}
    rows = [[check["name"], marks[check["ok"]], check["detail"]] for check in document["checks"]]
    head = f"{document['folder']}: " + ("verified" if document["ok"] else "NOT verified")
    return f"{head}\n\n{grid(['check', '', ''], rows)}\n\nTo load it:\n\n{document['loader']}"


def summary(verdict: dict) -> str:
    """A verdict in a line."""
    wrong = [check["name"] for check in verdict["checks"] if check["ok"] is False]
    return f"{len(verdict['checks'])} checks passed" if verdict["ok"] else f"NOT verified: {', '.join(wrong)}"


# The checks, in order. Each gives (ok, detail) or what is wrong by tensor.


def unsafe_files(folder: Path) -> list[str]:
    """Files of a folder whose loading could execute code."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix.lower() in CODE)


def _safe(folder: Path) -> tuple[bool, str]:
    bad = unsafe_files(folder)
    said = f"{', '.join(bad[:SHOWN])} could execute code when it is loaded"
    return not bad, said if bad else "tensors are in safetensors alone"


def _plan(settings: dict, report: dict) -> tuple[Plan | None, str]:
    """The plan where it is valid and the folder's own, else None and why."""
    document = settings["plan"]
    try:
        plan = Plan.from_json(document, "config.json")
        networks = sum(plan.spec(name) is not None for name in plan.weights)
    except InputError as error:
        return None, str(error)
    identity = report.get("identity")
    if identity is None:
        return plan, f"valid, {networks} weights changed; karipap.json, which would say that it is the one, is missing"
    # The folder was written for this plan and for the checkpoint that was given, mostly the one that the plan pins.
    fingerprint = report.get("fingerprint") or pinned(settings)
    if settings_key({"plan": document, "fingerprint": fingerprint}) != identity:
        return None, "the plan in config.json is not the one that the folder was written for"
    return plan, f"valid, and the one that the folder was written for; {networks} weights changed"


def _same_source(settings: dict, source: Source) -> tuple[bool, str]:
    wanted = pinned(settings)
    if len(wanted) != 64:
        return False, "the plan pins no fingerprint of a dense model"
    if source.checkpoint is None:
        return True, f"{wanted[:12]}… is pinned; {source.why} to check it too"
    if source.checkpoint.fingerprint != wanted:
        found = source.checkpoint.fingerprint
        return False, f"{source.name} is {found[:12]}…, the plan was made for {wanted[:12]}…"
    return True, f"{wanted[:12]}… is pinned, and is that of {source.checkpoint.name}"


def _tensors(
    checkpoint: Checkpoint, plan: Plan, settings: dict, source: Source | None, report: dict
) -> dict[str, str]:  # fmt: skip
    """Tensor (or file) → what is wrong with it."""
    import torch

    from karipap_core.folder import WORDS
    from karipap_core.layers.cores import stored_tensors

    words = {torch.uint8: "U8", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3", torch.int32: "I32"}
    original, wrong, cores = settings.get("original") or {}, {}, set()
    for name in plan.weights:
        spec = plan.spec(name)
        if spec is None:
            continue
        own = WORDS.get((original.get("dtypes") or {}).get(name, original.get("dtype")))
        wanted = {f"{name}.{core}": of for core, of in stored_tensors(spec).items()}
        cores |= wanted.keys()
        for tensor, (shape, dtype) in wanted.items():
            info, word = checkpoint.tensors.get(tensor), own if dtype is None else words[dtype]
            if info is None:
                wrong[tensor] = f"{tensor} is missing"
            elif info.shape != tuple(shape) or info.dtype != word:
                wrong[tensor] = f"{tensor} is {info.dtype} {list(info.shape)}, the plan says {word} {list(shape)}"
        size = sum(checkpoint.tensors[tensor].size for tensor in wanted if tensor in checkpoint.tensors)
        figure = spec.bytes({"F32": 4}.get(own, 2))
        if not wanted.keys() & wrong.keys() and size != figure:
            wrong[name] = f"{name} has {size:,} bytes on disk, the plan says {figure:,}"
    others = checkpoint.tensors.keys() - cores
    dense = source.checkpoint if source else None
    if dense is None:
        listed = (report.get("sums") or {}).get("tensors") or dict.fromkeys(others)
        wrong |= {name: f"{name} is missing" for name in listed.keys() - checkpoint.tensors.keys() - wrong.keys()}
        wrong |= {name: f"{name} belongs to no plan" for name in others - listed.keys()}
        total = (report.get("result") or {}).get("bytes")
    else:
        wrong |= _copied_wrong(checkpoint, plan, dense, others)
        total = plan.ledger(dense).bytes
    if not wrong and total is not None and total != checkpoint.bytes:
        wrong["total"] = f"{checkpoint.bytes:,} bytes on disk, the plan says {total:,}"
    return wrong


def _copied_wrong(checkpoint: Checkpoint, plan: Plan, dense: Checkpoint, others: set[str]) -> dict[str, str]:
    """What is wrong with the tensors that come from the dense model as they are."""
    changed = {name for name in plan.weights if plan.spec(name) is not None}
    stacks = {weight.tensor for weight in dense.weights if weight.name in changed and weight.index is not None}
    wanted: dict[str, tuple] = {}
    for tensor, info in dense.tensors.items():
        if tensor not in stacks and tensor not in dense.tied:
            wanted[tensor] = (info.dtype, info.shape)
    for weight in dense.weights:
        if weight.tensor in stacks and weight.name not in changed:
            wanted[f"{weight.name}.weight"] = (dense.tensors[weight.tensor].dtype, weight.shape)
        elif weight.name in changed:
            wanted.pop(weight.tensor, None)
    if plan.unties(dense):
        from karipap_core.models.sites import tied_tables

        for table, heads in tied_tables(dense).items():
            info = dense.tensors[dense.weight(table).tensor]
            wanted |= {f"{head}.weight": (info.dtype, info.shape) for head in heads if table in changed}
    wrong = {tensor: f"{tensor} is missing" for tensor in wanted.keys() - others}
    wrong |= {tensor: f"{tensor} belongs to no plan" for tensor in others - wanted.keys()}
    for tensor in wanted.keys() & others:
        info = checkpoint.tensors[tensor]
        if (info.dtype, tuple(info.shape)) != (wanted[tensor][0], tuple(wanted[tensor][1])):
            wrong[tensor] = f"{tensor} is {info.dtype} {list(info.shape)}, unlike the dense model's"
    return wrong


def _sizes(checkpoint: Checkpoint) -> str:
    return f"{len(checkpoint.tensors)} tensors, {checkpoint.bytes:,} bytes on disk, as the plan says"


def _not_finite(checkpoint: Checkpoint, progress: Progress) -> dict[str, str]:
    import torch

    found = {}
    for number, name in enumerate(sorted(checkpoint.tensors)):
        tensor = checkpoint.read_tensor(name)
        if tensor.is_floating_point():
            tensor = tensor.half() if tensor.itemsize == 1 else tensor  # fp8 has no isfinite
            if not torch.isfinite(tensor).all():
                found[name] = name
        progress("scan", number + 1, len(checkpoint.tensors), name)
    return found


def _unchanged(folder: Path, checkpoint: Checkpoint, report: dict, blamed: set[str]) -> tuple[bool, str]:
    sums = report.get("sums")
    if not sums:
        return False, "karipap.json holds no SHA-256 of the tensors: write the folder again"
    now = {"tensors": tensor_sums(checkpoint), "files": file_sums(folder)}
    changed = []
    for kind in ("tensors", "files"):
        for name, expected in sums[kind].items():
            # A tensor that is missing or damaged was named by an earlier check.
            if name not in blamed and now[kind].get(name) != expected and (kind == "files" or name in now[kind]):
                changed.append(name)
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        return False, f"{', '.join(changed[:SHOWN])}{more}: not what was written (SHA-256 differs)"
    tensors, files = len(sums["tensors"]), len(sums["files"])
    return True, f"{tensors} tensors and {files} files have the SHA-256 that they were written with"


# The logits.


def _logits(
    folder: Path, plan: Plan, source: Source | None, core_files: Mapping[str, Path] | None, checkpoint: Checkpoint,
    device: str,
) -> tuple[bool, str]:  # fmt: skip
    dense = source.checkpoint if source else None
    if dense is not None and plan.unties(dense):
        dense = None  # its one table would have to be two
    try:
        difference, allowed = _difference(folder, plan, dense, core_files, checkpoint, device)
    except (InputError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        return False, f"cannot be loaded and run: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    beside = "the dense model with the cores' matrices in place" if dense is not None else "its own weights, formed"
    # In powers of ten: the last digits depend on the machine, and equal folders are to have equal records.
    bound = next((f"1e-{n}" for n in range(9, 0, -1) if difference < 10.0**-n), f"{difference:.1g}")
    said = f"relative error against {beside} below {bound}" if difference < 0.1 else f"relative error {difference:.1g}"
    return difference <= allowed, f"{said}; allowed {allowed:g}"


def _difference(folder, plan, dense, core_files, checkpoint, device) -> tuple[float, float]:
    """(‖a − b‖ / ‖b‖ of the logits, how much is allowed)."""
    import torch

    from karipap_core.layers.cores import CoresModule
    from karipap_core.models.load import load_model
    from karipap_core.models.sites import sites

    dtype, allowed = _affordable(checkpoint, plan)
    live, _ = load_model(folder, dtype=dtype, device=device)
    ids = _probe(live).to(device)
    ours = _output(live, ids)
    if dense is None:
        for module in live.modules():
            if isinstance(module, CoresModule):
                module.runtime = "dense"
        theirs = _output(live, ids)
    else:
        del live
        model, _ = load_model(dense, dtype=dtype, device=device)
        found = sites(model, dense, tables=True)
        with torch.no_grad():
            for name, matrix in _matrices(plan, checkpoint, core_files):
                if name not in found:
                    raise InputError(f"weight {name} is no linear layer of a {type(model).__name__}")
                found[name].get().copy_(matrix)
        theirs = _output(model, ids)
    if not torch.isfinite(ours).all():
        return float("inf"), allowed
    return ((ours - theirs).norm() / theirs.norm()).item(), allowed


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
    n = min(PROBE_TOKENS, getattr(config, "max_position_embeddings", None) or PROBE_TOKENS)
    vocabulary = config.vocab_size
    return (torch.arange(PROBE_ROWS * n) * 7919 % vocabulary).reshape(PROBE_ROWS, n)


def _output(model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=ids)[0].double().cpu()


def _matrices(plan: Plan, checkpoint: Checkpoint, core_files: Mapping[str, Path] | None) -> Iterator:
    """(name, Ŵ (out, in) float64) of each weight that the plan changes, one at a time."""
    from safetensors import safe_open

    def from_files(owner: str, core: str):
        with safe_open(core_files[owner], framework="pt") as file:
            return file.get_tensor(core)

    def from_folder(owner: str, core: str):
        return checkpoint.read_tensor(f"{owner}.{core}")

    for name in plan.weights:
        spec = plan.spec(name)
        if spec is not None:
            yield name, spec.dense(_cores(spec, name, from_files if core_files is not None else from_folder))


def _cores(spec, name: str, read: Callable) -> list:
    """The cores of one weight, float64, or integers."""
    from karipap_core.layers.cores import INDEX, dequantized
    from karipap_core.quantization.formats import stored_shapes

    cores = []
    for k, (form, own) in enumerate(zip(spec.formats, spec.owned, strict=True)):
        owner, core = name if own else spec.members[0], f"cores.{k}"
        if form is None or form == INDEX:
            tensor = read(owner, core)
            cores.append(tensor.double() if form is None else tensor)
        else:
            matrix = spec.core_matrix(k)
            parts = {part: read(owner, f"{core}.{part}") for part in stored_shapes(form, *matrix)}
            cores.append(dequantized(form, matrix, parts).double().reshape(spec.core_shapes[k]))
    return cores


def _config_of(folder: Path) -> dict:
    from karipap_core.workspace.files import read_json

    return read_json(folder / "config.json")


def _first(wrong: dict[str, str], before: str = "") -> str:
    """The first few faults in a sentence, "" where there are none."""
    said = [wrong[name] for name in sorted(wrong)]
    more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return f"{before} {', '.join(said[:SHOWN])}{more}".strip() if said else ""
