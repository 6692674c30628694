"""Two multiple-choice tasks made of held-out Python source, so that accuracy can be measured where nothing was
downloaded.

`python_continuation`: which of four pieces of a module really comes next. `python_closing`: which of four ends closes
the open brackets of a statement, or puts `else`, `elif`, `except` or `finally` at the indentation of its block. Chance
is 1/4 for both: the right answer has no other length, place or frequency than the wrong ones (see the functions).
"""

import ast
import io
import json
import random
import re
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.text import Text, standard_library
from karipap_core.workspace.files import whole_file

NAMES = ("python_continuation", "python_closing")
VERSION = 1
SEED = 0
ITEMS = 400  # of python_continuation; python_closing has as many as the text gives, at most so many
LENGTH = 60  # characters of every continuation
CONTEXT, FARTHEST = 200, 500  # characters: what is shown before at least, and at most where a block must be seen whole
BRACKETS = (")", "))", "]", "])")  # ends of a statement
LEVELS = (4, 8, 12, 16)  # blanks before a keyword
KEYWORDS = re.compile(r"( *)(else:|elif .*:|except.*:|finally:)$")

YAML = """# Written by Karipap {version} from {text} (SHA-256 {sha256}).
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: {version}
"""


def write_tasks(folder: str | Path, text: Text | None = None) -> Path:
    """The folder under `folder` that holds both tasks as the harness reads them: JSON lines and YAML.

    text: default the standard library's held-out modules. Its SHA-256 is in the folder's name: the same text, the same
    items, made once. Raises InputError for a text with too little Python in it.
    """
    text = text or standard_library("heldout")
    home = Path(folder).absolute() / f"python-{VERSION}-{text.sha256[:16]}"
    for name, make in (("python_continuation", continuations), ("python_closing", closings)):
        data, task = home / f"{name}.jsonl", home / f"{name}.yaml"
        if not task.is_file():
            items = make(text)
            if len(items) < 8:
                raise InputError(f"{text.name} gives {len(items)} items for {name}: it needs more Python source.")
            with whole_file(data) as temporary:
                temporary.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
            said = {"name": name, "text": text.name, "sha256": text.sha256, "version": VERSION}
            with whole_file(task) as temporary:
                temporary.write_text(YAML.format(file=json.dumps(str(data)), **said), "utf-8")
    return home


def continuations(text: Text, items: int = ITEMS, seed: int = SEED) -> list[dict]:
    """[{"context", "choices", "answer"}]: the `LENGTH` characters that follow, among three others of the same module.

    All four begin at a line's start with the same indentation and have the same number of characters, and none is in
    the context; the wrong ones are drawn as the right one is, so neither length nor the frequency of words tells which
    it is. Large modules give more items, but none more than twice the mean.
    """
    chance = random.Random(seed)
    starts = [_line_starts(document) for document in text.documents]  # of each document, by indentation
    places = [(i, blanks, start) for i, of in enumerate(starts) for blanks in of for start in of[blanks]]
    most = dict.fromkeys(range(len(starts)), -(-2 * items // len(starts)))
    found: list[dict] = []
    for i, blanks, start in chance.sample(places, len(places)):
        if len(found) == items:
            break
        if not most[i]:
            continue
        document = text.documents[i]
        begin = _line_before(document, start - CONTEXT)
        if document.count(document[begin:start]) > 1:
            continue  # what follows is not certain
        choices = [document[start : start + LENGTH]]
        for other in chance.sample(starts[i][blanks], len(starts[i][blanks])):
            piece = document[other : other + LENGTH]
            apart = not begin - LENGTH < other < start + LENGTH
            if apart and all(piece[:24] != choice[:24] for choice in choices):
                choices.append(piece)
            if len(choices) == 4:
                found.append(_item(document[begin:start], choices, chance))
                most[i] -= 1
                break
    return found


def _line_starts(document: str) -> dict[int, list[int]]:
    """Where lines begin that say something and have `LENGTH` characters to come and `CONTEXT` behind, by blanks."""
    found: dict[int, list[int]] = {}
    for start, line in zip(_offsets(document), document.split("\n"), strict=True):
        if line.strip() and CONTEXT <= start <= len(document) - LENGTH:
            found.setdefault(_blanks(line), []).append(start)
    return found


def closings(text: Text, items: int = ITEMS, seed: int = SEED) -> list[dict]:
    """[{"context", "choices", "answer"}]: ends of statements and keywords of blocks, of which one of four is right.

    Brackets: a statement up to its last closing brackets, then each of `BRACKETS` with what ends the line. Indentation:
    a block, then its keyword behind each number of blanks in `LEVELS`, of which Python's parser takes only one. Each of
    the four is right equally often, so whoever does not look at the context is right one time in four.
    """
    chance = random.Random(seed)
    found = []
    for make in (_brackets, _indentations):
        groups: list[list] = [[], [], [], []]
        for document in text.documents:
            for right, context, choices in make(document):
                groups[right].append((context, choices))
        each = min(items // 6, *map(len, groups))
        for right, group in enumerate(groups):
            for context, choices in chance.sample(group, each):
                others = [choice for i, choice in enumerate(choices) if i != right]
                found.append(_item(context, [choices[right], *others], chance))
    chance.shuffle(found)
    return found


def _item(context: str, choices: list[str], chance: random.Random) -> dict:
    """The first choice is the right one; here they are shuffled."""
    order = chance.sample(range(len(choices)), len(choices))
    return {"context": context, "choices": [choices[i] for i in order], "answer": order.index(0)}


def _brackets(document: str) -> Iterator[tuple[int, str, list[str]]]:
    """(number of the right one, context, choices) of statements that end in closing brackets, and nothing but `:`."""
    offsets = _offsets(document)
    statement: list[tokenize.TokenInfo] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(document).readline):
            if token.type == tokenize.NEWLINE:
                yield from _closed(document, statement, offsets)
                statement = []
            elif token.type not in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT):
                statement.append(token)
    except (tokenize.TokenError, SyntaxError):
        return  # Python of another version, or no Python


def _closed(document: str, statement: list, offsets: list[int]) -> Iterator[tuple[int, str, list[str]]]:
    tokens = statement[:-1] if statement and statement[-1].string == ":" else statement
    run = 0
    while run < len(tokens) and tokens[-run - 1].string in (")", "]", "}"):
        run += 1
    if not 0 < run < len(tokens):
        return
    start, end = (offsets[row - 1] + column for row, column in (tokens[-run].start, tokens[-1].end))
    brackets, rest = document[start:end], document[end : document.find("\n", end)]
    begin = _line_before(document, min(offsets[tokens[0].start[0] - 1], start - CONTEXT))
    if brackets in BRACKETS and rest in ("", ":") and start - begin <= FARTHEST:
        yield BRACKETS.index(brackets), document[begin:start], [f"{other}{rest}\n" for other in BRACKETS]


def _indentations(document: str) -> Iterator[tuple[int, str, list[str]]]:
    """(number of the right one, context, choices) of keywords that continue a block."""
    lines, offsets = document.split("\n"), _offsets(document)
    top = 0
    for i, line in enumerate(lines):
        if line[:1].isidentifier() or line[:1] == "@":
            top = i
        match = KEYWORDS.fullmatch(line)
        if not match or len(match[1]) not in LEVELS:
            continue
        blanks, keyword = len(match[1]), match[2]
        block = next(j for j in range(i - 1, -1, -1) if j == 0 or _blanks(lines[j]) == blanks)
        begin = _line_before(document, min(offsets[block], offsets[i] - CONTEXT))
        before = "\n".join(lines[top:i]) + "\n"
        if offsets[i] - begin > FARTHEST:
            continue
        tries = _open_tries(lines[top:i])
        fits = []
        for level in LEVELS:
            ends = [(level, keyword), *((outer, "finally:") for outer in tries if outer < level)]
            fits.append(_parses(before + "".join(f"{' ' * n}{word}\n{' ' * n} pass\n" for n, word in ends)))
        if fits.count(True) == 1 and fits[LEVELS.index(blanks)]:
            choices = [f"{' ' * level}{keyword}\n" for level in LEVELS]
            yield LEVELS.index(blanks), document[begin : offsets[i]], choices


def _open_tries(lines: list[str]) -> list[int]:
    """Blanks before each `try:` that the last line is within, innermost first: without an end they do not parse."""
    found, inside = [], len(lines[-1]) if lines else 0
    for line in reversed(lines):
        if 0 <= _blanks(line) < inside:
            inside = _blanks(line)
            found += [inside] if line.strip() == "try:" else []
    return found


def _parses(source: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


def _offsets(document: str) -> list[int]:
    """Where each line begins."""
    return [0, *(match.end() for match in re.finditer("\n", document))]


def _blanks(line: str) -> int:
    """The blanks before what a line says; -1 of one that says nothing."""
    return len(line) - len(line.lstrip(" ")) if line.strip() else -1


def _line_before(document: str, place: int) -> int:
    """The start of the line that holds `place`, 0 before the text."""
    return document.rfind("\n", 0, max(0, place)) + 1
