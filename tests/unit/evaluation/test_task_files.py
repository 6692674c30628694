"""Task files of strangers: bounded YAML, bounded templates, and items whose answers are looked at before a model is."""

import json
import os

import jinja2
import pytest

from karipap_core.errors import InputError
from karipap_core.evaluation.tasks import fields, files, harness, plain_yaml, templates
from karipap_core.evaluation.tasks.files import read_folder
from karipap_core.evaluation.tasks.plain_yaml import read_yaml
from karipap_core.evaluation.tasks.suite import Suite, installed
from karipap_core.evaluation.tasks.templates import BoundedEnvironment
from tests.unit.evaluation.test_tasks import CHOICE

needs_lm_eval = pytest.mark.skipif(not installed(), reason="lm-eval is not installed here")


def said(call, *args, **options) -> str:
    with pytest.raises(InputError) as raised:
        call(*args, **options)
    return str(raised.value)


# YAML.


@pytest.mark.parametrize(
    ("text", "limits", "sentence"),
    [
        ("a: [[[1]]]", {"MOST_DEPTH": 3}, "FILE, line 1: values nest more than 3 deep: that is no task."),
        ("a: [1, 2]\nb: 3", {"MOST_VALUES": 8}, "FILE, line 2: more than 8 values: that is no task."),
        ("a: 12345", {"MOST_DIGITS": 4}, "FILE, line 1: a number of 5 digits: at most 4."),
        ("a: -0x123", {"MOST_DIGITS": 4}, "FILE, line 1: a number of 5 digits: at most 4."),
        ("a: 12345", {"MOST_BYTES": 7}, "FILE has more than 7 bytes: that is too much for a file of this kind."),
    ],
)
def test_limits_are_known_before_anything_is_built(tmp_path, monkeypatch, text, limits, sentence):
    for name, value in limits.items():
        monkeypatch.setattr(plain_yaml, name, value)
    monkeypatch.setattr(plain_yaml.yaml, "load", None)
    file = tmp_path / "t.yaml"
    file.write_text(text)
    assert said(read_yaml, file) == sentence.replace("FILE", str(file))


def test_what_is_within_the_limits_is_read(tmp_path):
    file = tmp_path / "t.yaml"
    value = {"a": [1, -2.5, True, None, "x: y", {"b": {}}], "text": "1" * 500 + " words", "long": "x" * 5000}
    file.write_text(json.dumps(value))
    assert read_yaml(file) == value
    file.write_text("\ufeff---\ntask: t\n", "utf-8")
    assert read_yaml(file) == {"task": "t"}


def test_pipes_and_links_in_a_file_s_place(tmp_path):
    os.mkfifo(tmp_path / "t.yaml")
    assert said(read_folder, tmp_path).endswith("t.yaml is a named pipe, not a regular file: put a file in its place.")
    (tmp_path / "t.yaml").unlink()
    (tmp_path / "t.yaml").symlink_to("nowhere")
    assert said(read_folder, tmp_path).endswith("t.yaml is a link to nowhere, which does not exist.")


def test_files_and_includes_are_counted(tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"{number}.yaml").write_text(f"include: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "4.yaml").write_text("doc_to_text: x\n")
    (tmp_path / "t.yaml").write_text("include: 0.yaml\ntask: t\n")
    monkeypatch.setattr(files, "MOST_INCLUDED", 20)
    assert said(read_folder, tmp_path) == (f"{tmp_path}/0.yaml is put together from more than 20 files: include fewer.")
    monkeypatch.setattr(files, "MOST_FILES", 5)
    assert said(read_folder, tmp_path) == f"Task folder {tmp_path} holds more than 5 YAML files: name a smaller one."


@needs_lm_eval
def test_a_group_stands_for_a_bounded_number_of_tasks(tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / f"{number}.yaml").write_text(f"group: g{number}\ntask: [g{number + 1}, h{number + 1}]\n")
        (tmp_path / f"h{number}.yaml").write_text(f"group: h{number}\ntask: [g{number + 1}, h{number + 1}]\n")
    for name in ("g6", "h6"):
        (tmp_path / f"{name}.yaml").write_text(CHOICE.replace("NAME", name))
    monkeypatch.setattr(harness, "MOST_TASKS", 16)
    assert "stands for more than 16 tasks." in said(Suite, ["g0"], tmp_path, keep=tmp_path / "kept")


@needs_lm_eval
def test_every_field_of_the_harness_is_known():
    import dataclasses

    from lm_eval.config.group import GroupConfig
    from lm_eval.config.task import FewshotConfig, TaskConfig

    refused = {*fields.FUNCTIONS, *fields.FORBIDDEN, "use_prompt"}
    for config, known in ((TaskConfig, fields.TASK), (GroupConfig, fields.GROUP), (FewshotConfig, fields.FEWSHOT)):
        assert {field.name for field in dataclasses.fields(config)} <= known.keys() | refused


# Templates.


def rendered(template: str, /, **doc) -> str:
    return BoundedEnvironment(undefined=jinja2.StrictUndefined).from_string(template).render(**doc)


@pytest.mark.parametrize(
    "template",
    [
        "{{question}}\n{% for c in choices %}{{ loop.index }}. {{ c }}\n{% endfor %}Answer:",
        "{{ choices|join(', ') }} {{ question|upper|replace('1', 'one') }} {{ '%s-%d'|format('a', 3) }}",
        "{{ '{:>5}|{}'.format('x', 1) }} {{ '**%s**' % question }} {{ question.split(' ')[0].strip() }}",
        "{{ 'a' ~ question ~ 3 ~ (1 + 2) }} {{ ['A', 'B'][answer] }} {{ 2 ** 10 * 'ab'|length }}",
        "{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
        "{% set ns = namespace(s='') %}{% for i in range(5) %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.s }}",
        "{{ choices|map('upper')|list|tojson }} {{ choices|batch(2)|list }} {{ ', '.join(choices) }} {{ [3, 1]|sort }}",
        "{% for a in range(30) %}{% for b in range(30) %}{{ a * b }} {% endfor %}{% endfor %}{{ 'x'|center(20) }}",
    ],
)
def test_bounded_templates_render_as_plain_ones(template):
    doc = {"question": "1 and 1 is", "choices": ["two", "seven"], "answer": 1}
    assert rendered(template, **doc) == jinja2.Environment().from_string(template).render(**doc)


# Each would be harmless by itself here: the limits are far below what a machine has.
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(9) %}{% for b in range(9) %}{% endfor %}{% endfor %}",
        "{% for a in word %}{% for b in word %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(6) }}",
        "{% for i in range(51) %}{% endfor %}",
        "{% for i in range(9) %}{{ range(49)|list|length }}{{ range(49)|list|length }}{% endfor %}",
        "{{ 'a' * 101 }}",
        "{{ 101 * [0] }}",
        "{{ 2 ** 400 }}",
        "{{ 'a'|center(101) }}",
        "{{ 'a'.ljust(101) }}",
        "{{ '%10000d' % 1 }}",
        "{{ '%.10000f' % 1 }}",
        "{{ '%*d' % (9, 1) }}",
        "{{ '%10000d'|format(1) }}",
        "{{ '{:10000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=101) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(9) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(9) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set x = [1] %}{% for i in range(9) %}{% set _ = x.extend(x) %}{% endfor %}",
        "{{ ('a' * 50).replace('a', 'bbb') }}",
        "{{ ('a' * 50)|replace('a', 'bbb') }}",
        "{{ [word, word, word]|join(word * 3) }}",
        "{{ (word * 3).join([word, word, word]) }}",
        "{{ word * 3 ~ word * 3 ~ word * 3 ~ word * 3 }}",
    ],
)
def test_what_would_not_end_is_stopped(monkeypatch, template):
    monkeypatch.setattr(templates, "MOST_STEPS", 50)
    monkeypatch.setattr(templates, "MOST_LENGTH", 100)
    with pytest.raises(jinja2.exceptions.SecurityError, match="template"):
        rendered(template, word="nine word")


@pytest.mark.parametrize("template", ["{{ word.__class__ }}", "{{ word|attr('__class__') }}", "{{ lipsum() }}"])
def test_pythons_internals_are_out_of_reach(template):
    with pytest.raises((jinja2.exceptions.SecurityError, jinja2.exceptions.UndefinedError)):
        rendered(template, word="x")


# Items.


def task(folder, rows: list[dict], **changes):
    """A folder with one task over these rows."""
    folder.mkdir(exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = CHOICE.replace("NAME", "t")
    for field, value in changes.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"{field}:")]
        text = "\n".join([*lines, f"{field}: {json.dumps(value)}"])
    (folder / "t.yaml").write_text(text)
    return folder


ROW = {"question": "1 and 1 is", "choices": ["2", "7"], "answer": 0}


@needs_lm_eval
@pytest.mark.parametrize("answer", [0, 1, "2", [0, 1], True])
def test_an_answer_among_the_choices_is_taken(tmp_path, answer):
    assert Suite(["t"], task(tmp_path / "t", [ROW | {"answer": answer}] * 2), keep=tmp_path).hashes


@needs_lm_eval
def test_items_behind_the_limit_are_not_looked_at(tmp_path):
    folder = task(tmp_path / "t", [ROW, ROW, ROW | {"answer": 9}])
    assert Suite(["t"], folder, limit=2, keep=tmp_path)
    sentence = "Task t, item 3: the answer is 9, but its choices are numbered from 0 to 1."
    assert said(Suite, ["t"], folder, keep=tmp_path) == sentence


@needs_lm_eval
def test_there_must_be_as_many_examples_as_are_shown(tmp_path):
    folder = task(tmp_path / "t", [ROW | {"question": f"{number}?"} for number in range(4)])
    assert Suite(["t"], folder, shots=3, keep=tmp_path)
    assert said(Suite, ["t"], folder, shots=4, keep=tmp_path) == (
        "Task t is to show 4 examples before each item, but its file has 3 to show."
    )


@needs_lm_eval
def test_a_group_of_one_name_is_a_group_of_one(tmp_path):
    folder = task(tmp_path / "t", [ROW] * 3)
    (folder / "g.yaml").write_text("group: g\ntask: t\naggregate_metric_list: {metric: acc}\n")
    assert len(Suite(["g"], folder, keep=tmp_path).hashes) == 1
