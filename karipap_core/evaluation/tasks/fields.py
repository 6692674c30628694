"""The fields of a task or group of lm-eval: which there are, what they may hold, and which would run code.

The harness looks at few of them before it uses them, deep inside; here each is looked at where it stands.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from karipap_core.errors import InputError, unknown

FILES = ("json", "csv", "parquet", "text")  # what a task's items may be read from; other names are the hub's
FORBIDDEN = ("trust_remote_code", "class", "custom_dataset", "unsafe_code", "hf_evaluate")
OUTPUTS = ("loglikelihood", "multiple_choice", "loglikelihood_rolling", "generate_until")
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
MOST_SHOTS, MOST_REPEATS = 1000, 1000
# Of `datasets.load_dataset` for local files: what is not here starts processes, writes elsewhere or reads code.
DATASET = ("data_files", "field", "delimiter", "sep", "column_names", "quotechar", "encoding", "sample_by", "columns")


def _string(value: Any) -> bool:
    return isinstance(value, str)


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


STRING: tuple[Callable[[Any], bool], str] = (_string, "a string")
NAMES = (_names, "a name or a list of names")
MAPPING = (lambda value: isinstance(value, dict), "a mapping")
TEXT = (lambda value: isinstance(value, str | int), "a template or the name of a column")
TARGET = (lambda value: isinstance(value, str | int | list), "a template, the name of a column or a number")
FLAG = (lambda value: isinstance(value, bool), "true or false")
MAPPINGS = (
    lambda value: isinstance(value, list) and value and all(isinstance(one, dict) for one in value),
    "a list of mappings",
)
TASK = {
    "task": STRING,
    "task_alias": STRING,
    "task_list": (lambda value: isinstance(value, list), "a list"),
    "tag": NAMES,
    "dataset_path": STRING,
    "dataset_name": STRING,
    "dataset_kwargs": MAPPING,
    **dict.fromkeys(SPLITS, STRING),
    "doc_to_text": TEXT,
    "doc_to_target": TARGET,
    "doc_to_choice": (lambda value: isinstance(value, str | list | dict), "a template, a column or a list of choices"),
    "doc_to_image": NAMES,
    "doc_to_audio": NAMES,
    "description": STRING,
    "target_delimiter": STRING,
    "fewshot_delimiter": STRING,
    "fewshot_config": MAPPING,
    "num_fewshot": (_whole(0, MOST_SHOTS), f"a whole number from 0 to {MOST_SHOTS}"),
    "metric_list": MAPPINGS,
    "output_type": (lambda value: value in OUTPUTS, f"one of {', '.join(OUTPUTS)}"),
    "generation_kwargs": MAPPING,
    "repeats": (_whole(1, MOST_REPEATS), f"a whole number from 1 to {MOST_REPEATS}"),
    "filter_list": MAPPINGS,
    "should_decontaminate": FLAG,
    "doc_to_decontamination_query": STRING,
    "gen_prefix": STRING,
    "metadata": MAPPING,
}
MEMBERS = (
    lambda value: isinstance(value, str) or (isinstance(value, list) and value and all(map(_is_member, value))),
    "the name of a task or a list of names",
)
GROUP = TASK | {
    "group": STRING,
    "group_alias": (lambda value: isinstance(value, str | list), "a string"),
    "task": MEMBERS,
    "aggregate_metric_list": (lambda value: isinstance(value, list | dict), "a list of mappings"),
}
FEWSHOT = {
    "sampler": (lambda value: value in ("default", "first_n"), "default or first_n"),
    "split": STRING,
    "fewshot_indices": (
        lambda value: isinstance(value, list) and all(_whole(0, 2**31)(one) for one in value),
        "a list of whole numbers",
    ),
    "samples": MAPPINGS,
    **{key: TASK[key] for key in ("doc_to_text", "doc_to_choice", "doc_to_target", "gen_prefix")},
    **{key: STRING for key in ("fewshot_delimiter", "target_delimiter")},
}
METRIC = {"metric": STRING, "aggregation": STRING, "higher_is_better": FLAG}
FILTERS = {"name": STRING, "filter": MAPPINGS}
FUNCTIONS = ("process_docs", "process_results")


def _is_member(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and ("task" in value or "group" in value))


def check_task(settings: dict, path: Path) -> None:
    """Raises InputError, naming file and field, where a task's or group's settings cannot be those of one, or would run
    code that is not the harness's own."""
    _check_code(settings, path)
    is_group = "group" in settings
    _check_fields(settings, GROUP if is_group else TASK, path, "")
    if is_group:
        if "task" not in settings:
            raise InputError(f"{path}: the group {settings['group']} has no field task: list its tasks there.")
        return
    _check_parts(settings, path)
    if settings.get("dataset_path", FILES[0]) in FILES:
        _check_whole(settings, path)


def _check_fields(settings: dict, known: dict, path: Path, within: str) -> None:
    for key, value in settings.items():
        if key in FUNCTIONS:
            raise InputError(f"{path}: field {key} names a function of Python, which is not run. Take it out.")
        if key == "use_prompt":
            raise InputError(f"{path}: field use_prompt reads templates from elsewhere. Write doc_to_text instead.")
        if key not in known:
            raise InputError(f"{path}: {unknown('field', key, known)}")
        fits, words = known[key]
        if value is not None and not fits(value):
            raise InputError(f"{path}: field {within}{key} must be {words}, it is {_shown(value)}.")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)[:60]


def _check_parts(settings: dict, path: Path) -> None:
    """What stands within fields: metrics, filters, examples, the files of the data."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY, filter_registry

    for one in settings.get("metric_list") or ():
        if "metric" not in one:
            raise InputError(f"{path}: an entry of metric_list has no field metric.")
        _check_fields({key: one[key] for key in METRIC if key in one}, METRIC, path, "metric_list.")
        aggregation = one.get("aggregation")
        if aggregation is not None and aggregation not in AGGREGATION_REGISTRY:
            raise InputError(f"{path}: {unknown('aggregation', aggregation, AGGREGATION_REGISTRY)}")
    for one in settings.get("filter_list") or ():
        _check_fields(one, FILTERS, path, "filter_list.")
        if one.keys() < FILTERS.keys():
            raise InputError(f"{path}: an entry of filter_list needs the fields name and filter.")
        for step in one["filter"]:
            names = [name for name, _ in filter_registry.items()]
            if step.get("function") not in names:
                raise InputError(f"{path}: {unknown('filter', step.get('function'), names)}")
    _check_fields(settings.get("fewshot_config") or {}, FEWSHOT, path, "fewshot_config.")


def _check_whole(settings: dict, path: Path) -> None:
    """What a task over local files needs."""
    name = settings["task"]
    needed = ["dataset_path", "doc_to_text", "doc_to_target"]
    needed += ["doc_to_choice"] if settings.get("output_type") == "multiple_choice" else []
    for key in needed:
        if settings.get(key) is None:
            raise InputError(f"{path}: the task {name} has no field {key}.")
    if settings.get("test_split") is None and settings.get("validation_split") is None:
        raise InputError(f"{path}: the task {name} has no field test_split: it says which items are asked.")
    given = settings.get("dataset_kwargs") or {}
    for key in given:
        if key not in DATASET:
            raise InputError(f"{path}: {unknown('field of dataset_kwargs', key, DATASET)}")
    files = given.get("data_files")
    if not files:
        raise InputError(
            f"{path}: the task {name} has no field data_files in dataset_kwargs: it names the items' file."
        )
    if not (_names(files) or (isinstance(files, dict) and all(map(_names, files.values())))):
        raise InputError(f"{path}: field data_files must be a file, a list of files, or these for each split.")
    splits = set(files) if isinstance(files, dict) else {"train"}
    few = {"fewshot_config.split": (settings.get("fewshot_config") or {}).get("split")}
    for key, split in ({key: settings.get(key) for key in SPLITS} | few).items():
        if split is not None and split.partition("[")[0] not in splits:
            if not isinstance(files, dict):
                raise InputError(
                    f"{path}: a file alone in data_files is the split train, but {key} is {split}: write data_files: "
                    f"{{{split}: the file}}."
                )
            raise InputError(f"{path}: {key} is {split}, but data_files has {', '.join(splits)} alone.")


def _check_code(value: Any, path: Path) -> None:
    """Refuses what would run code that is not the harness's own."""
    from lm_eval.api import metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import METRIC_REGISTRY

    if isinstance(value, list):
        for one in value:
            _check_code(one, path)
        return
    if not isinstance(value, dict):
        return
    for key in FORBIDDEN:
        if value.get(key):
            raise InputError(f"{path}: field {key} would run code that is not lm-eval's own. Take it out.")
    metric = value.get("metric")
    if isinstance(metric, str) and metric not in METRIC_REGISTRY:
        raise InputError(f"{path}: metric {metric} is none of lm-eval's own, and others' code is not fetched.")
    dataset = value.get("dataset_path")
    if isinstance(dataset, str) and Path(dataset).suffix == ".py":
        raise InputError(f"{path}: dataset_path {dataset} is a program. Give its items as one of {', '.join(FILES)}.")
    for one in value.values():
        _check_code(one, path)
