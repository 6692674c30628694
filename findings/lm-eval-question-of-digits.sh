#!/bin/sh
# A multiple-choice question that is a number alone ("1") is no question to lm-eval 0.4.13: it is taken for the number of
# a choice. Expected: the question is put to the model as it is. Seen: where it is the first item's, the whole task is
# scored the other way round, without a word: each choice becomes a prompt, and the answer's number what is to follow it;
# where it is a later item's, an AssertionError. (lm_eval/api/task.py, ConfigurableTask.doc_to_text.)
# Karipap refuses such an item and says what to do (karipap_core/evaluation/tasks/items.py).
#
#     sh findings/lm-eval-question-of-digits.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm-eval==0.4.13 datasets==5.2.0
cd "$folder"
cat > probe.py <<'PYTHON'
import json
import sys

from lm_eval.api.task import ConfigurableTask

ITEMS = {name: {"question": name, "choices": ["cat", "dog", "cow"], "answer": 0} for name in ("one", "1")}
SETTINGS = {
    "task": "numbers",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
}


def asked(*names):
    """(prompt, what is to follow it) of every request that the task makes of these items, or the error's class."""
    file = f"{len(names)}-{names[0]}.jsonl"
    with open(file, "w") as out:
        out.writelines(json.dumps(ITEMS[name]) + "\n" for name in names)
    try:
        task = ConfigurableTask(config=SETTINGS | {"dataset_kwargs": {"data_files": {"test": file}, "cache_dir": file[:-6]}})
        task.build_all_requests(limit=None, rank=0, world_size=1)
        return [tuple(one.args) for one in task.instances]
    except AssertionError as error:
        return type(error).__name__


words, first, later = asked("one"), asked("1", "one"), asked("one", "1")
print("words alone:       ", words)
print("digits come first: ", first)
print("digits come later: ", later)
same = words == [("one", " cat"), ("one", " dog"), ("one", " cow")]
same = same and first == [(animal, " 0") for animal in ("cat", "dog", "cow")] * 2 and later == "AssertionError"
sys.exit(0 if same else "This has changed: look at findings/ and at Karipap's check of items.")
PYTHON
HF_HUB_OFFLINE=1 HF_HOME="$folder/hub" "$folder/venv/bin/python" probe.py 2> errors || { cat errors; exit 1; }
