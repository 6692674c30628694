"""A task's result as it is kept: figures, the main metric, right and wrong items, groups, hashes of what was asked."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np

MAIN = ("acc", "exact_match", "acc_norm")  # which of a task's metrics is the one that is compared, the first there is


# What is kept of a result.


def result_of(task, raw: dict, samples: list[dict]) -> dict:
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


def group_result(group, found: dict[str, dict]) -> dict:
    """The figures of a group, which the harness makes of its tasks', and those tasks."""
    names = [leaf.task_name for leaf in leaves_of(group)]
    parts = {name: found[name]["result"] for name in names}
    raw = group.aggregate({name: found[name]["raw"] for name in names})
    figures = {key: value for key, value in raw.items() if "," in key and isinstance(value, int | float)}
    values = [key for key in figures if "_stderr," not in key]
    main = next((key for name in MAIN for key in values if key.split(",")[0] == name), values[0] if values else None)
    items = [part["items"] for part in parts.values()]
    result: dict = {key.removesuffix(",none"): value for key, value in figures.items()}
    result |= {"metric": main and main.removesuffix(",none"), "items": sum(items), "parts": parts}
    result["higher_is_better"] = all(part["higher_is_better"] for part in parts.values())
    if all("chance" in part for part in parts.values()):
        result["chance"] = float(np.average([part["chance"] for part in parts.values()], weights=items))
    if main and all("correct" in part for part in parts.values()):
        result |= _correct([one for part in parts.values() for one in part["correct"]], figures[main])
    shots = {part["shots"] for part in parts.values()}
    first = next(iter(parts.values()))
    return result | {
        "shots": shots.pop() if len(shots) == 1 else None,
        "limit": first["limit"],
        "version": group.version,
        "task_hash": group_hash(part["task_hash"] for part in parts.values()),
    }


def is_group(root) -> bool:
    return hasattr(root, "get_all_tasks")


def leaves_of(root) -> list:
    return root.get_all_tasks() if is_group(root) else [root]


def task_hash(task, limit: int | None) -> str:
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


def group_hash(hashes: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _canonical(value) -> bytes:
    return json.dumps(value, sort_keys=True, default=lambda v: getattr(v, "__qualname__", type(v).__name__)).encode()
