"""Benchmark tasks through EleutherAI's lm-evaluation-harness (`pip install lm-eval==0.4.13`), which does all scoring.

A task is a name that the harness knows (its items come from the Hugging Face hub), one of the two that are made here
(tasks_python.py), or YAML of the harness in a folder of the user's whose items are local files. Nothing of such a
folder is executed: see `task_files.read_folder`. What was measured is kept, a JSON file a task and model, and not
measured again.
"""

import hashlib
import importlib.util
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from karipap_core import tasks_python
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.statistics.bootstrap import paired_bootstrap
from karipap_core.task_files import read_folder, sandboxed
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import read_json, settings_key, write_json

TASK_FORMAT, TASK_VERSION = "karipap-task", 1
INSTALL = "Benchmark tasks need EleutherAI's lm-eval: pip install lm-eval==0.4.13"
LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**32}  # of one batch's logits in float32
MAX_BATCH, MAX_LENGTH = 64, 2048
MAIN = ("acc", "exact_match", "acc_norm")  # which of a task's metrics is the one that is compared, the first there is
RESAMPLES = 1000  # for the standard error of a metric that is no mean, such as a perplexity; means need none
SEEDS = (0, 1234, 1234, 1234)  # of random, NumPy, torch and the few-shot sampler: the harness's own defaults


def installed() -> bool:
    """Whether the harness is here."""
    return importlib.util.find_spec("lm_eval") is not None


class Suite:
    """Tasks that are asked for, with their items: made once, then measured on as many models as you like.

    names: of tasks, or of groups such as mmlu. task_dir: a folder of the harness's YAML, whose tasks come before the
    harness's own of the same name. limit: items of each task, the first ones (None: all). shots: examples before each
    item (None: what the task says). batch_size: sequences at once, or "auto": as many as keep the logits small. keep:
    the folder of finished tasks (default: `tasks` in the workspace).

    Raises InputError where the harness is missing, a name is unknown, or a task's items cannot be had.
    """

    def __init__(
        self,
        names: Sequence[str],
        task_dir: str | Path | None = None,
        limit: int | None = None,
        shots: int | None = None,
        batch_size: int | str = "auto",
        keep: str | Path | None = None,
        progress: Progress = silent,
    ) -> None:
        if not installed():
            raise InputError(INSTALL + ".")
        if limit is not None and limit < 1:
            raise InputError(f"limit {limit}: at least one item of each task.")
        if shots is not None and shots < 0:
            raise InputError(f"shots {shots}: 0 or more examples before each item.")
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"batch_size {batch_size!r}: a whole number of at least 1, or auto.")
        self.names, self.limit, self.shots, self.batch_size = list(dict.fromkeys(names)), limit, shots, batch_size
        self.keep = Path(keep) if keep is not None else Workspace().root / "tasks"
        progress("tasks", 0, len(self.names), ", ".join(self.names), "reading the items")
        with _quiet():
            self.roots = _load(self.names, task_dir, self.keep)
            leaves = [leaf for root in self.roots.values() for leaf in _leaves(root)]
            for leaf in leaves:
                # As `lm_eval.simple_evaluate` does it: a task that says 0 stays at 0.
                said = leaf.get_config("num_fewshot")
                leaf.set_config(key="num_fewshot", value=said or 0 if shots is None or said == 0 else shots)
            self.hashes = {leaf.task_name: _task_hash(leaf, limit) for leaf in leaves}

    def measure(self, load: Callable[[], tuple], model: str, dtype: str, progress: Progress = silent) -> dict:
        """{name: result} of one model.

        load: gives (model, tokenizer), called when something has yet to be measured; model: what identifies it (a
        fingerprint), so that finished tasks are found again; dtype: of its weights, "float32" say.

        A result has the harness's figures by its own names ("acc", "acc_stderr", …; the filter `none` is left away) and
        "metric" (the main one's name), "higher_is_better", "items", "chance" (multiple choice: the mean over items of
        one over the number of choices), "correct" (0 or 1 for each item in the task's order, where the main metric is
        their mean), "shots", "limit", "version" and "task_hash". A group has "parts" besides: {task: result}.
        Raises InputError for a model that the harness cannot score: an encoder, or one without a tokenizer.
        """
        live: list = []

        def harness():
            if not live:
                live.append(_wrap(*load(), self.batch_size))
            return live[0]

        found: dict[str, dict] = {}
        for root in self.roots.values():
            for leaf in _leaves(root):
                if leaf.task_name not in found:
                    found[leaf.task_name] = self._leaf(leaf, harness, model, dtype, progress)
        return {
            name: _group(root, found) if _is_group(root) else found[name]["result"] for name, root in self.roots.items()
        }

    def missing(self, point: dict) -> bool:
        """Whether a measured point lacks one of these tasks, or has it of other items or another number of shots."""
        has, wanted = point.get("tasks") or {}, ("task_hash", "limit", "shots")
        asked = {name: self._asked(root) for name, root in self.roots.items()}
        return any(name not in has or [has[name].get(key) for key in wanted] != asked[name] for name in asked)

    def _asked(self, root) -> list:
        hashes = [self.hashes[leaf.task_name] for leaf in _leaves(root)]
        shots = {leaf.get_config("num_fewshot") for leaf in _leaves(root)}
        task_hash = _group_hash(hashes) if _is_group(root) else hashes[0]
        return [task_hash, self.limit, shots.pop() if len(shots) == 1 else None]

    def _leaf(self, task, harness: Callable, model: str, dtype: str, progress: Progress) -> dict:
        """{"raw": the harness's figures, "result"} of one task, from the kept file where there is one."""
        name = task.task_name
        asked = {
            "task": name, "task_hash": self.hashes[name], "model": model, "dtype": dtype, "limit": self.limit,
            "shots": task.get_config("num_fewshot"), "harness": metadata.version("lm-eval"),
        }  # fmt: skip
        file = self.keep / f"{_file_name(name)}-{settings_key(asked)}.json"
        if file.is_file():
            return read_json(file)
        lm = harness()
        raw, samples = _score(lm, task, self.limit, progress)
        result = _result(task, raw, samples) | {
            "shots": asked["shots"], "limit": self.limit, "version": task.VERSION, "task_hash": asked["task_hash"]
        }  # fmt: skip
        document = {"format": TASK_FORMAT, "version": TASK_VERSION, "asked": asked, "raw": raw, "result": result}
        write_json(file, document)
        return document


def evaluate_tasks(
    model, tokenizer, names, task_dir=None, limit=None, shots=None, batch_size="auto", keep=None, fingerprint=None,
    progress: Progress = silent,
) -> dict:  # fmt: skip
    """`Suite.measure` of one live model. fingerprint: what identifies it (default: the SHA-256 of its weights)."""
    suite = Suite(names, task_dir, limit, shots, batch_size, keep, progress)
    identity = fingerprint or weights_hash(model)
    return suite.measure(lambda: (model, tokenizer), identity, dtype_of(model), progress)


def measure_folders(
    suite: Suite, folder: str | Path, dense=None, dtype: str = "float32", device: str = "auto", progress=silent
) -> tuple[dict, dict | None]:
    """(tasks of the model in `folder`, with "difference" to the dense one; the same of `dense` or None).

    Models are loaded one after the other, and only where a task has yet to be measured. `folder` and `dense` as
    `evaluate_folder` has them. Raises InputError for an encoder.
    """
    from karipap_core.models.load import load_model, load_tokenizer

    def one(model, spare=None):
        checkpoint = causal(model)

        def load():
            live, tokenizer = load_model(checkpoint, dtype=getattr(torch, dtype), device=device)
            return live, tokenizer or (spare and load_tokenizer(home(spare)))

        return suite.measure(load, identity(checkpoint), dtype, progress)

    if dense is None:
        return one(folder), None
    theirs = one(dense)
    return with_difference(one(folder, causal(dense)), theirs), theirs


def add_tasks(found: dict, suite: Suite, folder: str | Path, device: str = "auto", progress: Progress = silent) -> dict:
    """What `evaluate_folder` found of `folder`, with "tasks" and, beside a dense model, "dense"."tasks"."""
    ours, theirs = measure_folders(suite, folder, found.get("against"), found["dtype"], device, progress)
    found = found | {"tasks": ours}
    return found if theirs is None else found | {"dense": found["dense"] | {"tasks": theirs}}


def causal(model):
    """The open checkpoint of a model that predicts the next token. Raises InputError for another."""
    from karipap_core.checkpoint.open import open_checkpoint

    checkpoint = model if hasattr(model, "weights") else open_checkpoint(model, compressed=True)
    if checkpoint.kind != "causal":
        raise InputError(f"{checkpoint.name} does not predict the next token: no benchmark task can be scored on it.")
    return checkpoint


def home(checkpoint) -> Path:
    """The folder that a checkpoint and its tokenizer are in."""
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def identity(checkpoint) -> str:
    """What tells a model from others: its tensors, its config and its tokenizer."""
    from karipap_core.models.load import TOKENIZERS

    names = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt", *TOKENIZERS)
    files = [home(checkpoint) / name for name in names]
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
    return settings_key({"tensors": checkpoint.fingerprint, "files": sums})


def weights_hash(model) -> str:
    """SHA-256 of a live model's parameters and buffers by name (hex)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def dtype_of(model) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def with_difference(ours: dict, dense: dict) -> dict:
    """`ours` with "difference" {"mean", "low", "high", "items"} to `dense` in each task whose items both answered: the
    paired bootstrap of ours − dense over the items, of the main metric (uncertainty.paired_bootstrap)."""
    return {name: _compared(result, dense.get(name)) for name, result in ours.items()}


def _compared(ours: dict, dense: dict | None) -> dict:
    if dense is None or ours["task_hash"] != dense["task_hash"]:
        return ours
    ours = dict(ours)
    if "correct" in ours and "correct" in dense and ours["metric"] == dense["metric"]:
        found = paired_bootstrap(np.subtract(ours["correct"], dense["correct"]))
        if found is not None:
            ours["difference"] = {"mean": found.mean, "low": found.low, "high": found.high, "items": found.units}
    if "parts" in ours:
        ours["parts"] = with_difference(ours["parts"], dense["parts"])
    return ours


# The harness.


def _load(names: list[str], task_dir: str | Path | None, keep: Path) -> dict:
    """{name: the harness's task or group}; a tag stands for its tasks."""
    from lm_eval.tasks import TaskManager

    given = read_folder(task_dir) if task_dir is not None else {}
    if set(names) & set(tasks_python.NAMES) - set(given):
        given = read_folder(tasks_python.write_tasks(keep)) | given
    manager = TaskManager(include_defaults=False)
    if not set(names).union(*(one.members for one in given.values())) <= given.keys():
        manager.task_index.update(_known_to_the_harness())
    manager.task_index.update({name: one.entry() for name, one in given.items()})
    found = {}
    for name in names:
        for one in (name, *(given[name].members if name in given else ())):
            if one in given:
                given[one].check_files()
        if name not in manager.task_index:
            where = f"neither in {task_dir} nor in lm-eval" if task_dir is not None else "not in lm-eval"
            raise InputError(f"Task {name} is {where}: `lm_eval ls tasks` lists what there is.")
        with _explained(name, name in given and given[name].local):
            built = manager.load([name])
        if name in built["groups"]:
            found[name] = built["groups"][name]
        else:
            found |= built["tasks"]
    return found


def _known_to_the_harness() -> dict:
    """The harness's own tasks, groups and tags by name. It takes minutes on a slow disk to look through its 14,000
    files, so that what is where is written down once for a version of it."""
    from lm_eval import tasks
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    root = Path(tasks.__file__).parent
    file = Workspace().cache_file("lm-eval", settings_key({"version": metadata.version("lm-eval"), "at": str(root)}))
    if not file.is_file():
        rows = {
            name: [entry.kind.name, entry.yaml_path and str(entry.yaml_path.relative_to(root)), sorted(entry.tags)]
            for name, entry in TaskIndex.build([root]).items()
        }
        write_json(file, rows)
    return {
        name: Entry(name, Kind[kind], path and root / path, tags=set(tags))
        for name, (kind, path, tags) in read_json(file).items()
    }


@contextmanager
def _explained(name: str, local: bool) -> Iterator[None]:
    """What the harness raises for a task that it cannot make, in one sentence."""
    try:
        with sandboxed():
            yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if local:
            raise InputError(f"Task {name} cannot be made from its files: {reason}") from error
        raise InputError(
            f"Task {name} needs its items from the Hugging Face hub, and they cannot be had from here ({reason}): run "
            "it once where there is network, or name local files with --task-dir."
        ) from error


def _wrap(model, tokenizer, batch_size: int | str):
    """The harness's own Hugging Face model around a live one, where it is."""
    from lm_eval.models.huggingface import HFLM

    if tokenizer is None:
        raise InputError("The model has no tokenizer, so the text of a benchmark task cannot be given to it.")
    if not hasattr(model, "generate") or not model.can_generate():
        kind = type(model).__name__
        raise InputError(f"A {kind} does not predict the next token: no benchmark task can be scored on it.")
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
        raise InputError("The tokenizer has no token for the end or the begin of a text, which lm-eval needs.")
    with _quiet():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows(model, batch_size))


def rows(model, batch_size: int | str = "auto") -> int:
    """Sequences at once: as many as keep the logits of the longest within `LOGITS_BYTES`. The harness's own "auto"
    tries sizes until memory runs out, which on a CPU ends the process."""
    if batch_size != "auto":
        return int(batch_size)
    config = model.config.get_text_config()
    length = min(getattr(config, "max_position_embeddings", None) or MAX_LENGTH, MAX_LENGTH)
    room = LOGITS_BYTES["cuda" if next(model.parameters()).is_cuda else "cpu"]
    return max(1, min(MAX_BATCH, room // (4 * config.vocab_size * length)))


def _score(lm, task, limit: int | None, progress: Progress) -> tuple[dict, list[dict]]:
    """(figures of one task as the harness names them, its samples)."""
    from lm_eval import evaluate

    name = task.task_name
    items = min(limit or len(task.eval_docs), len(task.eval_docs))
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[2])
    task.set_fewshot_seed(seed=SEEDS[3])
    progress("tasks", 0, items, name)
    lm.set_cache_hook(_Counter(task, items, progress))
    try:
        with _quiet(), sandboxed():
            asked = {"tasks": {name: task}, "groups": {}}
            found = evaluate(lm=lm, task_dict=asked, limit=limit, bootstrap_iters=RESAMPLES, log_samples=True)
    except (AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"Task {name} cannot be run on this model: {reason}") from error
    progress("tasks", items, items, name)
    raw = {key: value for key, value in found["results"][name].items() if isinstance(value, int | float)}
    return raw, found["samples"][name]


class _Counter:
    """Told by the harness of every request that is done (its `CacheHook`), tells the progress."""

    def __init__(self, task, items: int, progress: Progress) -> None:
        self.task, self.items, self.progress = task, items, progress
        self.requests = self.told = 0

    def add_partial(self, kind: str, request, answer) -> None:
        self.requests += 1
        done = self.requests * self.items // sum(instance.repeats for instance in self.task.instances)
        if done - self.told >= max(1, self.items // 20) and done < self.items:
            self.told = done
            self.progress("tasks", done, self.items, self.task.task_name)


# What is kept of a result.


def _result(task, raw: dict, samples: list[dict]) -> dict:
    better = task.higher_is_better()
    figures = {key.removesuffix(",none"): value for key, value in raw.items() if "," in key}
    values = [key for key in raw if "," in key and "_stderr," not in key]
    main = next((key for name in MAIN for key in values if key.split(",")[0] == name), values[0])
    name, filtered = main.split(",", 1)
    rows = sorted((row for row in samples if row["filter"] == filtered), key=lambda row: row["doc_id"])
    result = figures | {
        "metric": main.removesuffix(",none"),
        "higher_is_better": bool(better.get(name, True)),
        "items": len(rows),
    }
    if task.OUTPUT_TYPE == "multiple_choice":
        result["chance"] = float(np.mean([1 / _choices(row) for row in rows]))
    return result | _correct([row.get(name) for row in rows], raw[main])


def _choices(row: dict) -> int:
    # With mutual information every choice is asked for a second time, without its context.
    return len(row["resps"]) // (2 if "acc_mutual_info" in row["metrics"] else 1)


def _correct(values: list, mean: float) -> dict:
    """{"correct"} where each item is right or wrong and their share is the figure itself."""
    if not values or any(value not in (0, 1) for value in values) or abs(np.mean(values) - mean) > 1e-9:
        return {}
    return {"correct": [int(value) for value in values]}


def _group(group, found: dict[str, dict]) -> dict:
    """The figures of a group, which the harness makes of its tasks', and those tasks."""
    names = [leaf.task_name for leaf in _leaves(group)]
    parts = {name: found[name]["result"] for name in names}
    raw = group.aggregate({name: found[name]["raw"] for name in names})
    figures = {key: value for key, value in raw.items() if "," in key and isinstance(value, int | float)}
    values = [key for key in figures if "_stderr," not in key]
    main = next((key for name in MAIN for key in values if key.split(",")[0] == name), values[0] if values else None)
    items = [part["items"] for part in parts.values()]
    result = {key.removesuffix(",none"): value for key, value in figures.items()}
    result |= {"metric": main and main.removesuffix(",none"), "items": sum(items), "parts": parts}
    result["higher_is_better"] = all(part["higher_is_better"] for part in parts.values())
    if all("chance" in part for part in parts.values()):
        result["chance"] = float(np.average([part["chance"] for part in parts.values()], weights=items))
    if main and all("correct" in part for part in parts.values()):
        result |= _correct([one for part in parts.values() for one in part["correct"]], figures[main])
    shots = {part["shots"] for part in parts.values()}
    first = next(iter(parts.values()))
    return result | {
        "shots": shots.pop() if len(shots) == 1 else None, "limit": first["limit"], "version": group.version,
        "task_hash": _group_hash(part["task_hash"] for part in parts.values()),
    }  # fmt: skip


def _is_group(root) -> bool:
    return hasattr(root, "get_all_tasks")


def _leaves(root) -> list:
    return root.get_all_tasks() if _is_group(root) else [root]


def _task_hash(task, limit: int | None) -> str:
    """SHA-256 of what a task asks: its settings without paths, its items, and its examples where it shows some."""
    config = task.dump_config()
    for key in ("metadata", "dataset_kwargs", "num_fewshot"):  # where files lie; shots are asked for apart
        config.pop(key, None)
    digest = hashlib.sha256(_canonical(config))
    docs = task.eval_docs
    for i in range(min(limit or len(docs), len(docs))):
        digest.update(_canonical(docs[i]))
    if task.get_config("num_fewshot"):
        for doc in task.fewshot_docs():
            digest.update(_canonical(doc))
    return digest.hexdigest()


def _group_hash(hashes: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _canonical(value) -> bytes:
    return json.dumps(value, sort_keys=True, default=lambda v: getattr(v, "__qualname__", type(v).__name__)).encode()


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and only errors in the log: standard error belongs to our own progress."""
    from tqdm import tqdm

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, made = [logger.level for logger in loggers], tqdm.__init__
    pool = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # a pool of processes for one bootstrap: the same numbers without it
    tqdm.__init__ = lambda bar, *given, **options: made(bar, *given, **(options | {"disable": True}))
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        tqdm.__init__ = made
        os.environ.pop("DISABLE_MULTIPROC") if pool is None else os.environ.update(DISABLE_MULTIPROC=pool)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
