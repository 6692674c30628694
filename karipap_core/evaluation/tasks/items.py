"""The items of a task over local files: each is rendered once, and its answer held against its choices, before a model
is asked. The harness only warns of an answer that is none, and counts the item as wrong."""

from typing import Any

from karipap_core.errors import InputError
from karipap_core.evaluation.tasks.templates import sandboxed


def check_items(task, limit: int | None) -> None:
    """Raises InputError, naming the task and the item (from 1), where an item has no text, no choices or an answer that
    is not among them, where a template of it cannot be rendered, and where there are fewer examples to show than
    `num_fewshot` asks for. task : the harness's. limit : items that are asked (None: all)."""
    docs = task.eval_docs
    if not len(docs):
        raise InputError(f"Task {task.task_name} has no items: its file holds no rows.")
    with sandboxed():
        for number in range(min(limit or len(docs), len(docs))):
            where = f"Task {task.task_name}, item {number + 1}"
            try:
                _check_item(task, docs[number], where)
            except InputError:
                raise
            except Exception as error:  # a template can raise whatever it likes
                raise InputError(f"{where} cannot be made: {reason(error)}") from error
    _check_shots(task, len(docs))


def _check_item(task, doc: dict, where: str) -> None:
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    if task.OUTPUT_TYPE != "multiple_choice":
        if task.OUTPUT_TYPE != "loglikelihood_rolling" and not isinstance(text, str):
            raise InputError(f"{where}: doc_to_text gives {text!r:.60}, not a string.")
        if target is None:
            raise InputError(f"{where} has no answer: doc_to_target gives null.")
        if task.OUTPUT_TYPE != "generate_until" and not isinstance(target, str):
            raise InputError(f"{where}: doc_to_target gives {target!r:.60}, not a string.")
        return
    choices = task.doc_to_choice(doc)
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise InputError(f"{where}: doc_to_choice gives {choices!r:.60}, not a list of two strings or more.")
    # Where the text is a number, it is that of the right one of several contexts, and the target is what follows them.
    # lm-eval 0.4.13 takes a text of digits alone for such a number too, that of the first item for the whole task.
    if isinstance(text, int) and (not task.multiple_input or isinstance(target, int) or target in choices):
        raise InputError(
            f"{where}: doc_to_text gives {text}, and lm-eval takes digits alone for the number of a choice: put a word "
            "before them."
        )
    answer = text if task.multiple_input else target
    if not task.multiple_input and not isinstance(text, str):
        raise InputError(f"{where}: doc_to_text gives {text!r:.60}, not a string.")
    for one in answer if isinstance(answer, list) else [answer]:
        _check_answer(one, choices, where)
    if isinstance(answer, list) and not answer:
        raise InputError(f"{where} has no answer: doc_to_target gives an empty list.")


def _check_answer(answer: Any, choices: list[str], where: str) -> None:
    if answer is None:
        raise InputError(f"{where} has no answer: doc_to_target gives null.")
    if isinstance(answer, int) and 0 <= answer < len(choices):
        return
    if isinstance(answer, int):
        raise InputError(f"{where}: the answer is {answer}, but its choices are numbered from 0 to {len(choices) - 1}.")
    if not isinstance(answer, str) or answer not in choices:
        raise InputError(f"{where}: the answer is {answer!r:.60}, which is none of its {len(choices)} choices.")


def _check_shots(task, items: int) -> None:
    shots = task.get_config("num_fewshot") or 0
    if not shots:
        return
    examples = task.fewshot_docs()
    there = 0 if examples is None else len(examples)
    same = (task.fewshot_cfg.split or task.config.fewshot_split) in (None, task.config.test_split)
    spare = there - 1 if same and there == items else there  # the item that is asked is not shown
    if shots > spare:
        raise InputError(
            f"Task {task.task_name} is to show {shots} examples before each item, but its file has {spare} to show."
        )


def reason(error: BaseException) -> str:
    """What an error of the harness says, in its first line; the error behind it where that says more."""
    texts = [str(one).strip() for one in (error.__cause__, error) if one is not None]
    said = next((text for text in texts if text), type(error).__name__)
    first = said.splitlines()[0][:300].rstrip(".")
    if "malformed node or string" in first:  # the harness takes what is no column for a list written out
        return "doc_to_choice or doc_to_target names no field of its items and is no list"
    if isinstance(error, TypeError | LookupError | AttributeError):  # words of Python's, which name no field
        return f"{first} (look at its first item and at doc_to_text, doc_to_choice and doc_to_target)."
    return f"{first}."
