"""The checks of a compressed folder, each a function that says what it found."""

from pathlib import Path

from karipap_core.checkpoint.beside import CODE
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.tensorfile import ITEM_BYTES, word_of
from karipap_core.compressed.records import Source, file_sums, pinned, settings_of, tensor_sums, written_for
from karipap_core.compressed.saved_again import WORDS, Again, as_saved, saved_again
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan
from karipap_core.progress import Progress

SHOWN = 3


# The checks, in order. Each gives (ok, detail) or what is wrong by tensor.


def unsafe_files(folder: Path) -> list[str]:
    """Files of a folder whose loading could execute code."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix.lower() in CODE)


def safetensors_only(folder: Path) -> tuple[bool, str]:
    bad = unsafe_files(folder)
    said = f"{', '.join(bad[:SHOWN])} could execute code when it is loaded"
    return not bad, said if bad else "tensors are in safetensors alone"


def valid_plan(settings: dict, report: dict) -> tuple[Plan | None, str]:
    """The plan where it is valid and the folder's own, else None and why."""
    document = settings["plan"]
    try:
        plan = Plan.from_json(document, "config.json")
        networks = sum(plan.spec(name) is not None for name in plan.weights)
    except InputError as error:
        return None, str(error)
    identity = report.get("identity")
    if identity is None:
        unknown = "karipap.json, which says what plan the folder was written for, is missing"
        return plan, f"valid, {networks} weights changed; {unknown}"
    # The folder was written for this plan and for the checkpoint that was given, mostly the one that the plan pins.
    fingerprint = report.get("fingerprint") or pinned(settings)
    if written_for(document, fingerprint, report.get("source_identity")) != identity:
        return None, "the plan in config.json is not the one that the folder was written for"
    return plan, f"valid, and the one that the folder was written for; {networks} weights changed"


def same_source(settings: dict, report: dict, source: Source) -> tuple[bool, str]:
    wanted = pinned(settings)
    if len(wanted) != 64:
        return False, "the plan pins no fingerprint of a dense model"
    if source.checkpoint is None:
        return True, f"{wanted[:12]}… is pinned; {source.why} to check it too"
    if source.checkpoint.fingerprint != wanted:
        found = source.checkpoint.fingerprint
        return False, f"{source.name} is {found[:12]}…, the plan was made for {wanted[:12]}…"
    if report.get("source_identity", source.checkpoint.identity) != source.checkpoint.identity:
        return False, f"config.json or the tokenizer of {source.name} has changed since the folder was made from it"
    return True, f"{wanted[:12]}… is pinned, the fingerprint of {source.checkpoint.name}"


def wrong_tensors(
    checkpoint: Checkpoint, plan: Plan, settings: dict, source: Source | None, report: dict, again: Again | None = None
) -> dict[str, str]:
    """Tensor (or file) → what is wrong with it. `again`: of a folder that was saved again the cores are what can be
    told, in its own names and dtype."""
    from karipap_core.layers.cores import stored_tensors

    original = settings.get("original") or {}
    wrong: dict[str, str] = {}
    cores: set[str] = set()
    for name in plan.weights:
        spec = plan.spec(name)
        if spec is None:
            continue
        own = WORDS.get(str((original.get("dtypes") or {}).get(name, original.get("dtype"))))
        here = again.names.get(name, name) if again else name
        wanted = {f"{here}.{core}": of for core, of in stored_tensors(spec).items()}
        cores |= wanted.keys()
        for tensor, (shape, dtype) in wanted.items():
            info, word = checkpoint.tensors.get(tensor), own if dtype is None else word_of(dtype)
            if info is None:
                wrong[tensor] = f"{tensor} is missing"
            elif info.shape != tuple(shape) or info.dtype != word:
                wrong[tensor] = f"{tensor} is {info.dtype} {list(info.shape)}, the plan says {word} {list(shape)}"
        size = sum(checkpoint.tensors[tensor].size for tensor in wanted if tensor in checkpoint.tensors)
        figure = spec.bytes(ITEM_BYTES.get(own or "", 2))
        if not wanted.keys() & wrong.keys() and size != figure:
            wrong[name] = f"{name} has {size:,} bytes on disk, the plan says {figure:,}"
    if again:
        return wrong
    others = checkpoint.tensors.keys() - cores
    dense = source.checkpoint if source else None
    if dense is None:
        listed = (report.get("sums") or {}).get("tensors") or dict.fromkeys(others)
        wrong |= {name: f"{name} is missing" for name in listed.keys() - checkpoint.tensors.keys() - wrong.keys()}
        wrong |= {name: f"{name} is in the folder, but not in the plan" for name in others - listed.keys()}
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
    wrong |= {
        tensor: f"{tensor} is in the folder, but neither in the plan nor in the dense model"
        for tensor in others - wanted.keys()
    }
    for tensor in wanted.keys() & others:
        info = checkpoint.tensors[tensor]
        if (info.dtype, tuple(info.shape)) != (wanted[tensor][0], tuple(wanted[tensor][1])):
            wrong[tensor] = f"{tensor} is {info.dtype} {list(info.shape)}, unlike the dense model's"
    return wrong


def sizes_in_words(checkpoint: Checkpoint, again: Again | None = None) -> str:
    found = f"{len(checkpoint.tensors)} tensors, {checkpoint.bytes:,} bytes on disk"
    return f"{found}, as the plan says" if again is None else f"{found}; the cores as the plan says{again.said}"


def not_finite(checkpoint: Checkpoint, progress: Progress) -> dict[str, str]:
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


def unchanged(
    folder: Path, checkpoint: Checkpoint, report: dict, blamed: set[str], again: Again | None = None
) -> tuple[bool, str]:
    sums = report.get("sums")
    other = f"not the folder that was written: another program saved it again{again.said}" if again else ""
    if not report:
        missing = "karipap.json, which holds the SHA-256 of what was written, is missing: write the folder again"
        return False, other or missing
    if not sums:
        return False, other or "karipap.json holds no SHA-256 of the tensors: write the folder again"
    now = {"tensors": tensor_sums(checkpoint), "files": file_sums(folder)}
    changed = []
    for kind in ("tensors", "files"):
        for name, expected in sums[kind].items():
            # A tensor that is missing or damaged was named by an earlier check.
            if name not in blamed and now[kind].get(name) != expected and (kind == "files" or name in now[kind]):
                changed.append(name)
    if changed and other:
        return False, other
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        return False, f"{', '.join(changed[:SHOWN])}{more}: not what was written (SHA-256 differs)"
    tensors, files = len(sums["tensors"]), len(sums["files"])
    return True, f"{tensors} tensors and {files} files have the SHA-256 that they were written with"


def as_written(folder: Path, report: dict) -> bool:
    """Whether a folder holds the very model that its report tells of: plan, tensors and files have the sums that were
    written down. Of a folder from before there were sums, plan, shapes and sizes are what is asked for.

    Costs a reading of all tensors, about a second for each GB.
    """
    try:
        settings = settings_of(folder)
        plan, _ = valid_plan(settings, report)
        checkpoint = open_checkpoint(folder, compressed=True)
        again = saved_again(checkpoint, settings)  # and healed since
        now = as_saved(checkpoint, settings)
        if plan is None or wrong_tensors(checkpoint, plan, now, None, report, again):
            return False
        if "sums" not in report:
            return again is None
        return _marked(checkpoint) and unchanged(folder, checkpoint, report, set())[0]
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return False


def _marked(checkpoint: Checkpoint) -> bool:
    """Whether each file has the mark that transformers asks for: it stands in the header, outside all tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        for file in {info.file for info in checkpoint.tensors.values()}:
            with safe_open(file, framework="numpy") as handle:
                if handle.metadata() != {"format": "pt"}:
                    return False
    except SafetensorError:  # a type of numbers that there is not
        return False
    return True


def first_faults(wrong: dict[str, str], before: str = "") -> str:
    """The first few faults in a sentence, "" where there are none."""
    said = [wrong[name] for name in sorted(wrong)]
    more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return f"{before} {', '.join(said[:SHOWN])}{more}".strip() if said else ""
