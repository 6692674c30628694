"""The two tasks made of held-out Python: sound items, and nothing that gives the answer away."""

import ast
import json
import math
import re
from collections import Counter

import pytest

from karipap_core.errors import InputError
from karipap_core.evaluation.tasks.python import BRACKETS, LENGTH, LEVELS, closings, continuations, write_tasks
from karipap_core.text import Text, standard_library

PIECES = re.compile(r"\w+|\s+|[^\w\s]")


@pytest.fixture(scope="module")
def text() -> Text:
    """Some of the held-out modules: enough of every kind of item, and quick."""
    whole = standard_library("heldout")
    return Text("some modules", tuple(sorted(whole.documents, key=len)[-16:-2]))


@pytest.fixture(scope="module")
def items(text) -> dict[str, list[dict]]:
    return {"continuation": continuations(text), "closing": closings(text)}


def share_right(items: list[dict], score) -> float:
    """How often the choice of the highest score is the right one; equals share."""
    right = 0.0
    for item in items:
        scores = [score(choice) for choice in item["choices"]]
        right += (scores[item["answer"]] == max(scores)) / scores.count(max(scores))
    return right / len(items)


def test_whoever_does_not_read_the_context_is_at_chance(text, items):
    """Longest, shortest, most and least frequent pieces (a unigram model of this very text), first, last."""
    counts = Counter(piece for document in text.documents for piece in PIECES.findall(document))
    total = sum(counts.values())

    def unigram(choice: str) -> float:
        return sum(math.log((counts[piece] + 0.5) / total) for piece in PIECES.findall(choice))

    for found in items.values():
        assert share_right(found, len) == pytest.approx(0.25)  # all continuations are equally long
        assert share_right(found, lambda choice: -len(choice)) == pytest.approx(0.25)
        error = math.sqrt(0.25 * 0.75 / len(found))
        for score in (unigram, lambda choice: -unigram(choice), lambda choice: unigram(choice) / len(choice)):
            assert abs(share_right(found, score) - 0.25) < 3.5 * error
        places = Counter(item["answer"] for item in found)
        assert all(abs(places[i] / len(found) - 0.25) < 3.5 * error for i in range(4))
    # The four ends are right equally often each, so no taste for one of them helps.
    assert share_right(items["closing"], unigram) == pytest.approx(0.25)


def test_continuations_are_of_the_text_and_only_the_right_one_follows(text, items):
    assert len(items["continuation"]) >= 100
    for item in items["continuation"]:
        right = item["choices"][item["answer"]]
        assert any(item["context"] + right in document for document in text.documents)
        assert len(set(item["choices"])) == 4 and {len(choice) for choice in item["choices"]} == {LENGTH}
        assert all(any(choice in document for document in text.documents) for choice in item["choices"])
        wrong = [choice for choice in item["choices"] if choice != right]
        assert not any(item["context"] + choice in document for choice in wrong for document in text.documents)
        indented = {len(choice) - len(choice.lstrip(" ")) for choice in item["choices"]}
        assert len(indented) == 1


def parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def test_only_the_right_end_closes_the_brackets(items):
    brackets = [item for item in items["closing"] if item["choices"][0].lstrip("])") in ("\n", ":\n")]
    assert len(brackets) >= 32 and len(brackets) % 4 == 0
    for item in brackets:
        ends = [choice.rstrip(":\n") for choice in item["choices"]]
        assert sorted(ends) == sorted(BRACKETS)
        open_ones = []
        for end in ends:  # the nearest opening brackets that are still open must be the ones that are closed
            wanted = end.translate(str.maketrans(")]", "(["))[::-1]
            open_ones.append(unclosed(item["context"]).endswith(wanted))
        assert open_ones[item["answer"]]
    rights = Counter(item["choices"][item["answer"]].rstrip(":\n") for item in brackets)
    assert len(set(rights.values())) == 1 and rights.keys() == set(BRACKETS)


def unclosed(source: str) -> str:
    """The brackets that are open at the end; quoted ones left out, as far as that goes without a parser."""
    long = r"\"\"\"[\s\S]*?\"\"\"|'''[\s\S]*?'''"
    source = re.sub(long + r"|\"(\\.|[^\"\\\n])*\"|'(\\.|[^'\\\n])*'|#.*", "", source)
    open_ones = []
    for letter in source:
        if letter in "([{":
            open_ones.append(letter)
        elif letter in ")]}" and open_ones:
            open_ones.pop()
    return "".join(open_ones)


def test_indentation_has_one_right_level_of_four(items):
    blocks = [item for item in items["closing"] if item["choices"][0].lstrip("])") not in ("\n", ":\n")]
    assert len(blocks) >= 12
    levels = Counter()
    for item in blocks:
        found = [len(choice) - len(choice.lstrip(" ")) for choice in item["choices"]]
        assert sorted(found) == list(LEVELS) and len({choice.strip() for choice in item["choices"]}) == 1
        level = found[item["answer"]]
        levels[level] += 1
        # The block that it continues is in the context: a line at the same level.
        assert any(len(line) - len(line.lstrip(" ")) == level for line in item["context"].split("\n") if line.strip())
    assert len(set(levels.values())) == 1


def test_the_parser_takes_one_of_the_four():
    block = "def f(a):\n    if a:\n        for b in a:\n            if b:\n                print(b)\n"
    source = "".join(f"{block}            else:\n                return {i}\n\n\n" for i in range(3))
    from karipap_core.evaluation.tasks.python import _indentations

    # `else` fits the inner `if`, the `for` and the outer `if`: nobody can tell, so it is no item.
    assert list(_indentations(source)) == []
    source = source.replace("else:", "elif b is a:").replace("for b", "while b").replace("if a:", "with a:")
    found = list(_indentations(source))
    assert len(found) == 3
    for right, context, choices in found:
        assert LEVELS[right] == 12 and parses(context[context.rindex("def") :] + choices[right] + " " * 16 + "pass\n")
        assert not any(parses(context[context.rindex("def") :] + choices[i] + " " * 20 + "pass\n") for i in (0, 1, 3))


def test_the_same_text_gives_the_same_files_once(text, tmp_path):
    folder = write_tasks(tmp_path, text)
    assert text.sha256[:16] in folder.name
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    assert {file.name for file in before} == {
        f"python_{name}{end}" for name in ("continuation", "closing") for end in (".yaml", ".jsonl")
    }
    assert write_tasks(tmp_path, text) == folder
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    again = write_tasks(tmp_path / "other", text)
    rows = (again / "python_continuation.jsonl").read_text()
    assert rows == (folder / "python_continuation.jsonl").read_text()
    assert json.loads(rows.splitlines()[0]) == continuations(text)[0]


def test_a_text_without_python_is_refused(tmp_path):
    with pytest.raises(InputError, match="needs more Python"):
        write_tasks(tmp_path, Text("a tale", ("Once upon a time.\n" * 200,)))
