"""What is asked of lm-eval: its tasks found and loaded, a live model wrapped for it, one task scored."""

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from karipap_core.checkpoint.kinds import positions_of
from karipap_core.errors import Cancelled, InputError
from karipap_core.evaluation.tasks import python as tasks_python
from karipap_core.evaluation.tasks.files import TaskFile, read_folder
from karipap_core.evaluation.tasks.items import reason
from karipap_core.evaluation.tasks.templates import sandboxed
from karipap_core.progress import Progress
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json

LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**32}  # of one batch's logits in float32
MAX_BATCH, MAX_LENGTH = 64, 2048
MOST_TASKS = 10_000  # of one group
RESAMPLES = 1000  # for the standard error of a metric that is no mean, such as a perplexity; means need none
SEEDS = (0, 1234, 1234, 1234)  # of random, NumPy, torch and the few-shot sampler: the harness's own defaults


# The harness.


def load_tasks(names: list[str], task_dir: str | Path | None, keep: Path) -> dict:
    """{name: the harness's task or group}; a tag stands for its tasks."""
    from lm_eval.tasks import TaskManager

    given = read_folder(task_dir) if task_dir is not None else {}
    if set(names) & set(tasks_python.NAMES) - set(given):
        given = read_folder(tasks_python.write_tasks(keep)) | given
    manager = TaskManager(include_defaults=False)
    if not set(names).union(*(one.members for one in given.values())) <= given.keys():
        manager.task_index.update(_known_to_the_harness())
    manager.task_index.update({name: one.entry() for name, one in given.items()})
    _check_groups(given)
    found = {}
    for name in names:
        for one in (name, *(given[name].members if name in given else ())):
            if one in given:
                given[one].check_files()
            elif one not in manager.task_index and name in given:
                raise InputError(f"{given[name].path}: {one} is neither in {task_dir} nor in lm-eval.")
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


def _check_groups(given: dict[str, TaskFile]) -> None:
    """Raises InputError where a group is within itself, or stands for more than `MOST_TASKS` tasks: the harness builds
    one for each time that it is named."""
    sizes: dict[str, int] = {}

    def size(name: str, within: tuple[str, ...]) -> int:
        if name in within:
            raise InputError(f"{given[name].path}: the group {name} is within itself.")
        if name not in sizes:
            members = given[name].members if name in given else ()
            sizes[name] = sum(size(one, (*within, name)) for one in members) if members else 1
            if sizes[name] > MOST_TASKS:
                raise InputError(f"{given[name].path}: the group {name} stands for more than {MOST_TASKS:,} tasks.")
        return sizes[name]

    for name in given:
        size(name, ())


def _known_to_the_harness() -> dict:
    """The harness's own tasks, groups and tags by name. It takes minutes on a slow disk to look through its 14,000
    files, so that what is where is written down once for a version of it."""
    from lm_eval import tasks
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    root = Path(tasks.__file__).parent
    file = Workspace().cache_file("lm-eval", settings_key({"version": metadata.version("lm-eval"), "at": str(root)}))
    if (rows := kept_json(file)) is None:
        rows = {
            name: [entry.kind.name, entry.yaml_path and str(entry.yaml_path.relative_to(root)), sorted(entry.tags)]
            for name, entry in TaskIndex.build([root]).items()
        }
        keep_json(file, rows)
    return {
        name: Entry(name, Kind[kind], path and root / path, tags=set(tags)) for name, (kind, path, tags) in rows.items()
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
        if local:
            raise InputError(f"Task {name} cannot be made from its files: {reason(error)}") from error
        why = reason(error).rstrip(".")
        raise InputError(
            f"Task {name} needs its items from the Hugging Face hub, and they cannot be had from here ({why}): run "
            "it once where there is network, or name local files with --task-dir."
        ) from error


def wrapped(model, tokenizer, batch_size: int | str):
    """The harness's own Hugging Face model around a live one, where it is."""
    from lm_eval.models.huggingface import HFLM

    if tokenizer is None:
        raise InputError("The model has no tokenizer, so the text of a benchmark task cannot be given to it.")
    if not hasattr(model, "generate") or not model.can_generate():
        kind = type(model).__name__
        raise InputError(f"A {kind} does not predict the next token: no benchmark task can be scored on it.")
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
        raise InputError("The tokenizer has no token for the end or the begin of a text, which lm-eval needs.")
    with quiet():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows(model, batch_size))


def rows(model, batch_size: int | str = "auto") -> int:
    """Sequences at once: as many as keep the logits of the longest within `LOGITS_BYTES`. The harness's own "auto"
    tries sizes until memory runs out, which on a CPU ends the process."""
    if batch_size != "auto":
        return int(batch_size)
    config = model.config.get_text_config()
    length = min(positions_of(config) or MAX_LENGTH, MAX_LENGTH)
    room = LOGITS_BYTES["cuda" if next(model.parameters()).is_cuda else "cpu"]
    return max(1, min(MAX_BATCH, room // (4 * config.vocab_size * length)))


def score(lm, task, limit: int | None, progress: Progress) -> tuple[dict, list[dict]]:
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
        with quiet(), sandboxed():
            asked = {"tasks": {name: task}, "groups": {}}
            found = evaluate(lm=lm, task_dict=asked, limit=limit, bootstrap_iters=RESAMPLES, log_samples=True)
    except (InputError, Cancelled):
        raise
    except Exception as error:  # the harness uses what a task says in a hundred places
        raise InputError(f"Task {name} cannot be run on this model: {reason(error)}") from error
    progress("tasks", items, items, name)
    raw = {key: value for key, value in found["results"][name].items() if isinstance(value, int | float)}
    return raw, found["samples"][name]


class _Counter:
    """Told by the harness of every request that is done (its `CacheHook`), tells the progress."""

    def __init__(self, task, items: int, progress: Progress) -> None:
        self.task, self.items, self.progress = task, items, progress
        self.requests = self.reported = 0

    def add_partial(self, kind: str, request, answer) -> None:
        self.requests += 1
        done = self.requests * self.items // sum(instance.repeats for instance in self.task.instances)
        if done - self.reported >= max(1, self.items // 20) and done < self.items:
            self.reported = done
            self.progress("tasks", done, self.items, self.task.task_name)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log: standard error belongs to our own progress, and what is wrong is raised."""
    import datasets  # noqa: F401  (sets its logger's level when it is imported)
    from tqdm import tqdm

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, made = [logger.level for logger in loggers], tqdm.__init__
    pool = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # a pool of processes for one bootstrap: the same numbers without it
    tqdm.__init__ = lambda bar, *given, **options: made(bar, *given, **(options | {"disable": True}))
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        tqdm.__init__ = made
        os.environ.pop("DISABLE_MULTIPROC") if pool is None else os.environ.update(DISABLE_MULTIPROC=pool)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
