"""Benchmark tasks through EleutherAI's lm-evaluation-harness (`pip install lm-eval==0.4.13`), which does all scoring.

A task is a name that the harness knows (its items come from the Hugging Face hub), one of the two that are made here
(python.py), or YAML of the harness in a folder of the user's whose items are local files. Nothing of such a
folder is executed: see `files.read_folder`. What was measured is kept, a JSON file a task and model, and not
measured again.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.evaluation.tasks.fields import FILES
from karipap_core.evaluation.tasks.harness import load_tasks, quiet, score, wrapped
from karipap_core.evaluation.tasks.items import check_items
from karipap_core.evaluation.tasks.scores_of import group_hash, group_result, is_group, leaves_of, result_of, task_hash
from karipap_core.progress import Progress, silent
from karipap_core.statistics.bootstrap import paired_bootstrap
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json

TASK_FORMAT, TASK_VERSION = "karipap-task", 1
INSTALL = "Benchmark tasks need EleutherAI's lm-eval: pip install lm-eval==0.4.13"


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
        with quiet():
            self.roots = load_tasks(self.names, task_dir, self.keep)
            leaves = [leaf for root in self.roots.values() for leaf in leaves_of(root)]
            for leaf in leaves:
                # As `lm_eval.simple_evaluate` does it: a task that says 0 stays at 0.
                said = leaf.get_config("num_fewshot")
                leaf.set_config(key="num_fewshot", value=said or 0 if shots is None or said == 0 else shots)
                if leaf.get_config("dataset_path") in FILES:
                    check_items(leaf, limit)
            self.hashes = {leaf.task_name: task_hash(leaf, limit) for leaf in leaves}
        progress("tasks", len(self.names), len(self.names))

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
                model, tokenizer = load()
                live.append(wrapped(model, tokenizer, self.batch_size))
            return live[0]

        found: dict[str, dict] = {}
        leaves = {leaf.task_name: leaf for root in self.roots.values() for leaf in leaves_of(root)}
        for number, (name, leaf) in enumerate(leaves.items()):
            progress("task", number, len(leaves), name)
            found[name] = self._leaf(leaf, harness, model, dtype, progress)
        progress("task", len(leaves), len(leaves))
        return {
            name: group_result(root, found) if is_group(root) else found[name]["result"]
            for name, root in self.roots.items()
        }

    def missing(self, point: dict) -> bool:
        """Whether a measured point lacks one of these tasks, or has it of other items or another number of shots."""
        has, wanted = point.get("tasks") or {}, ("task_hash", "limit", "shots")
        asked = {name: self._asked(root) for name, root in self.roots.items()}
        return any(name not in has or [has[name].get(key) for key in wanted] != asked[name] for name in asked)

    def _asked(self, root) -> list:
        hashes = [self.hashes[leaf.task_name] for leaf in leaves_of(root)]
        shots = {leaf.get_config("num_fewshot") for leaf in leaves_of(root)}
        task_hash = group_hash(hashes) if is_group(root) else hashes[0]
        return [task_hash, self.limit, shots.pop() if len(shots) == 1 else None]

    def _leaf(self, task, harness: Callable, model: str, dtype: str, progress: Progress) -> dict:
        """{"raw": the harness's figures, "result"} of one task, from the kept file where there is one."""
        name = task.task_name
        asked = {
            "task": name,
            "task_hash": self.hashes[name],
            "model": model,
            "dtype": dtype,
            "limit": self.limit,
            "shots": task.get_config("num_fewshot"),
            "harness": metadata.version("lm-eval"),
        }
        file = self.keep / f"{_file_name(name)}-{settings_key(asked)}.json"
        if (known := kept_json(file)) is not None:
            return known
        lm = harness()
        raw, samples = score(lm, task, self.limit, progress)
        result = result_of(task, raw, samples) | {
            "shots": asked["shots"],
            "limit": self.limit,
            "version": task.VERSION,
            "task_hash": asked["task_hash"],
        }
        document = {"format": TASK_FORMAT, "version": TASK_VERSION, "asked": asked, "raw": raw, "result": result}
        keep_json(file, document)
        return document


def evaluate_tasks(model, tokenizer, suite: Suite, fingerprint: str | None = None, progress: Progress = silent) -> dict:
    """`Suite.measure` of one live model. fingerprint: what identifies it (default: the SHA-256 of its weights)."""
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
            return live, tokenizer or (spare and load_tokenizer(spare.home))

        return suite.measure(load, checkpoint.identity, dtype, progress)

    if dense is None:
        return one(folder), None
    progress("benchmarks", 0, 2, str(dense))
    theirs = one(dense)
    progress("benchmarks", 1, 2, str(folder))
    ours = one(folder, causal(dense))
    progress("benchmarks", 2, 2)
    return with_difference(ours, theirs), theirs


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


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
