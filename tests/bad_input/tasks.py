"""Task files of lm-eval that are none."""
# ruff: noqa: E501 (what a case tries stands on one line)

import importlib.util
import os

from tests.bad_input import Case, model

ITEM = '{"question": "1 and 1 is", "choices": ["2", "7"], "answer": 0}\n'
GOOD = ITEM.strip()
TASK = """task: t
dataset_path: json
dataset_kwargs: {data_files: {test: q.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
COMMAND = "evaluate model --tasks t --task-dir tasks"


def files(**contents):
    """A good model beside a folder of tasks: t="…" is t.yaml, q="…" the items, q.jsonl."""

    def make(folder):
        model(folder)
        (folder / "tasks").mkdir()
        for name, text in ({"q": ITEM} | contents).items():
            data = text if isinstance(text, bytes) else text.encode()
            (folder / "tasks" / ("q.jsonl" if name == "q" else f"{name}.yaml")).write_bytes(data)

    return make


def task(old: str, new: str):
    """A good task with something else in one place."""
    assert old in TASK
    return files(t=TASK.replace(old, new))


def field(name: str, value: str | None):
    """A good task with one field of another value; None takes it away."""
    lines = [line for line in TASK.splitlines() if not line.startswith(f"{name}:")]
    return files(t="\n".join([*lines, *([] if value is None else [f"{name}: {value}"]), ""]))


def items(*rows: str):
    """A good task over other items."""
    return files(t=TASK, q="".join(f"{row}\n" for row in rows))


def pipe(name: str):
    def make(folder):
        files(t=TASK)(folder)
        (folder / "tasks" / name).unlink()
        os.mkfifo(folder / "tasks" / name)

    return make


CASES = [
    Case('file alone', field('dataset_kwargs', '{data_files: q.jsonl}'), COMMAND,
         'tasks/t.yaml: a file alone in data_files is the split train, but test_split is test: write '
         'data_files: {test: the file}.'),
    Case('list alone', field('dataset_kwargs', '{data_files: [q.jsonl]}'), COMMAND,
         'tasks/t.yaml: a file alone in data_files is the split train, but test_split is test: write '
         'data_files: {test: the file}.'),
    Case('split not there', field('test_split', 'dev'), COMMAND,
         'tasks/t.yaml: test_split is dev, but data_files has test alone.'),
    Case('fewshot split not there', task('test_split: test', 'test_split: test\nfewshot_split: train'), COMMAND,
         'tasks/t.yaml: fewshot_split is train, but data_files has test alone.'),
    Case('choices of a field that items lack', items('{"question":"x","answer":0}'), COMMAND,
         'Task t cannot be made from its files: doc_to_choice or doc_to_target names no field of its items and is no list'),
    Case('answer 7', items(GOOD, '{"question":"x","choices":["a","b"],"answer":7}'), COMMAND,
         'Task t, item 2: the answer is 7, but its choices are numbered from 0 to 1.'),
    Case('answer -1', items('{"question":"x","choices":["a","b"],"answer":-1}'), COMMAND,
         'Task t, item 1: the answer is -1, but its choices are numbered from 0 to 1.'),
    Case('answer string', items('{"question":"x","choices":["a","b"],"answer":"c"}'), COMMAND,
         "Task t, item 1: the answer is 'c', which is none of its 2 choices."),
    Case("answer '1'", items('{"question":"x","choices":["a","b"],"answer":"1"}'), COMMAND,
         "Task t, item 1: the answer is '1', which is none of its 2 choices."),
    Case('answer float', items('{"question":"x","choices":["a","b"],"answer":1.5}'), COMMAND,
         'Task t, item 1: the answer is 1.5, which is none of its 2 choices.'),
    Case('answer null', items(GOOD, '{"question":"x","choices":["a","b"],"answer":null}'), COMMAND,
         'Task t, item 2 has no answer: doc_to_target gives null.'),
    Case('answer list', items('{"question":"x","choices":["a","b"],"answer":[0,5]}'), COMMAND,
         'Task t, item 1: the answer is 5, but its choices are numbered from 0 to 1.'),
    Case('answers empty', items('{"question":"x","choices":["a","b"],"answer":[]}'), COMMAND,
         'Task t, item 1 has no answer: doc_to_target gives an empty list.'),
    Case('no choices', items('{"question":"x","choices":[],"answer":0}'), COMMAND,
         'Task t cannot be made from its files: list index out of range (look at its first item and at '
         'doc_to_text, doc_to_choice and doc_to_target).'),
    Case('one choice', items('{"question":"x","choices":["a"],"answer":0}'), COMMAND,
         "Task t, item 1: doc_to_choice gives ['a'], not a list of two strings or more."),
    Case('choices numbers', items('{"question":"x","choices":[1,2],"answer":0}'), COMMAND,
         "Task t cannot be made from its files: 'int' object is not subscriptable (look at its first item and "
         'at doc_to_text, doc_to_choice and doc_to_target).'),
    Case('choice empty', items('{"question":"x","choices":["a",""],"answer":0}'), COMMAND,
         'Task t cannot be made from its files: string index out of range (look at its first item and at '
         'doc_to_text, doc_to_choice and doc_to_target).'),
    Case('choices null', items(GOOD, '{"question":"x","choices":null,"answer":0}'), COMMAND,
         'Task t, item 2: doc_to_choice gives None, not a list of two strings or more.'),
    Case('question missing', items('{"choices":["a","b"],"answer":0}'), COMMAND,
         "Task t cannot be made from its files: 'question' is undefined."),
    Case('group without task', files(g='group: t\n'), COMMAND,
         'tasks/g.yaml: the group t has no field task: list its tasks there.'),
    Case('group empty', files(g='group: t\ntask: []\n'), COMMAND,
         'tasks/g.yaml: field task must be the name of a task or a list of names, it is a list.'),
    Case('group null', files(g='group: t\ntask:\n'), COMMAND,
         'tasks/g.yaml: the group t has no field task: list its tasks there.'),
    Case('group number', files(g='group: t\ntask: 3\n'), COMMAND,
         'tasks/g.yaml: field task must be the name of a task or a list of names, it is 3.'),
    Case('group of itself', files(g='group: t\ntask: [t]\n'), COMMAND,
         'tasks/g.yaml: the group t is within itself.'),
    Case('group cycle', files(g='group: t\ntask: [u]\n', u='group: u\ntask: [t]\n'), COMMAND,
         'tasks/g.yaml: the group t is within itself.'),
    Case('group bad aggregate', files(g='group: t\ntask: [u]\naggregate_metric_list: [{metric: acc, aggregation: median}]\n', u=TASK.replace('task: t', 'task: u')), COMMAND,
         "Task t cannot be made from its files: Currently, 'mean' is the only pre-defined aggregation. Got "
         "'median'."),
    Case('group member dict', files(g='group: t\ntask: [{name: u}]\n'), COMMAND,
         'tasks/g.yaml: field task must be the name of a task or a list of names, it is a list.'),
    Case('name list', files(t='task: [a, b]\n'), COMMAND,
         "tasks/t.yaml: the name of a task or group must be a string, it is ['a', 'b']."),
    Case('name number', files(t='task: 3\n'), COMMAND,
         'tasks/t.yaml: the name of a task or group must be a string, it is 3.'),
    Case('deep', files(t='task: t\nmetadata: ' + '[' * 33 + ']' * 33), COMMAND,
         'tasks/t.yaml, line 2: values nest more than 32 deep: that is no task.'),
    Case('alias', files(t='task: t\nmetadata: {a: &x [1, 2], b: *x}\n'), COMMAND,
         'tasks/t.yaml, line 2: the alias *x stands for values elsewhere. Write them out.'),
    Case('merge key', files(t='base: &b {a: 1}\ntask: t\nmetadata: {<<: *b}\n'), COMMAND,
         'tasks/t.yaml, line 3: the alias *b stands for values elsewhere. Write them out.'),
    Case('function', files(t='task: t\nprocess_docs: !function utils.f\n'), COMMAND,
         'tasks/t.yaml, line 2: !function would run Python from that folder. Write it as a template.'),
    Case('python tag', files(t='task: t\nmetadata: !!python/name:os.system\n'), COMMAND,
         'tasks/t.yaml, line 2: the tag tag:yaml.org,2002:python/name:os.system is not plain YAML. Take it '
         'out.'),
    Case('str tag', files(t='task: !!str t\n'), COMMAND,
         'tasks/t.yaml, line 1: the tag tag:yaml.org,2002:str is not plain YAML. Take it out.'),
    Case('set tag', files(t='task: t\nmetadata: {a: !!set {b}}\n'), COMMAND,
         'tasks/t.yaml, line 2: the tag tag:yaml.org,2002:set is not plain YAML. Take it out.'),
    Case('nul', files(t='task: t\x00\n'), COMMAND,
         'tasks/t.yaml: not plain YAML (unacceptable character #x0000: special characters are not allowed).'),
    Case('duplicate', files(t='task: t\ntask: u\n'), COMMAND,
         "tasks/t.yaml, line 2: not plain YAML (the field 'task' twice: keep one of them)."),
    Case('duplicate inner', field('metric_list', '[{metric: acc, metric: acc_norm, aggregation: mean, higher_is_better: true}]'), COMMAND,
         "tasks/t.yaml, line 9: not plain YAML (the field 'metric' twice: keep one of them)."),
    Case('two documents', files(t='task: t\n---\ntask: u\n'), COMMAND,
         'tasks/t.yaml, line 2: a second document begins (---). Give each task a file of its own.'),
    Case('list', files(t='- task: t\n'), COMMAND,
         'tasks/t.yaml holds no YAML mapping: a task is one.'),
    Case('scalar', files(t='task'), COMMAND,
         'tasks/t.yaml holds no YAML mapping: a task is one.'),
    Case('empty', files(t=''), COMMAND,
         'tasks/t.yaml holds no YAML mapping: a task is one.'),
    Case('tab', files(t='task: t\n\tdoc: x\n'), COMMAND,
         "tasks/t.yaml, line 2: not plain YAML (found character '\\t' that cannot start any token)."),
    Case('unclosed', files(t='task: {a\n'), COMMAND,
         "tasks/t.yaml, line 2: not plain YAML (expected ',' or '}', but got '<stream end>')."),
    Case('date', files(t='task: t\nmetadata: {on: 2026-01-01}\n'), COMMAND,
         'tasks/t.yaml: the name True in field metadata is no string. Put it in quotes.'),
    Case('bad date', files(t='task: t\nmetadata: {x: 2026-13-41}\n'), COMMAND,
         'tasks/t.yaml: not plain YAML (month must be in 1..12).'),
    Case('number key', files(t='task: t\nmetadata: {1: a}\n'), COMMAND,
         'tasks/t.yaml: the name 1 in field metadata is no string. Put it in quotes.'),
    Case('inf', files(t='task: t\nmetadata: {a: .inf}\n'), COMMAND,
         'tasks/t.yaml: field a holds inf, which is no finite number.'),
    Case('long number', files(t='task: t\nmetadata: {a: ' + '1' * 500 + '}'), COMMAND,
         'tasks/t.yaml, line 2: a number of 500 digits: at most 400.'),
    Case('list key', files(t='task: t\nmetadata: {[1]: a}\n'), COMMAND,
         'tasks/t.yaml, line 2: not plain YAML (found unhashable key).'),
    Case('unknown field', task('doc_to_text:', 'doc_to_txt:'), COMMAND,
         "tasks/t.yaml: field 'doc_to_txt' is not one of task, task_alias, task_list, tag, dataset_path, "
         'dataset_name, dataset_kwargs, training_split, validation_split, test_split, fewshot_split, '
         'doc_to_text, doc_to_target, doc_to_choice, doc_to_image, doc_to_audio, description, '
         'target_delimiter, fewshot_delimiter, fewshot_config, num_fewshot, metric_list, output_type, '
         'generation_kwargs, repeats, filter_list, should_decontaminate, doc_to_decontamination_query, '
         "gen_prefix, metadata. Did you mean 'doc_to_text'?"),
    Case('dataset_path: 3', field('dataset_path', '3'), COMMAND,
         'tasks/t.yaml: field dataset_path must be a string, it is 3.'),
    Case('dataset_kwargs: [1]', field('dataset_kwargs', '[1]'), COMMAND,
         'tasks/t.yaml: field dataset_kwargs must be a mapping, it is a list.'),
    Case('test_split: [test]', field('test_split', '[test]'), COMMAND,
         'tasks/t.yaml: field test_split must be a string, it is a list.'),
    Case('output_type: choose', field('output_type', 'choose'), COMMAND,
         'tasks/t.yaml: field output_type must be one of loglikelihood, multiple_choice, '
         "loglikelihood_rolling, generate_until, it is 'choose'."),
    Case('doc_to_text: [a]', field('doc_to_text', '[a]'), COMMAND,
         'tasks/t.yaml: field doc_to_text must be a template or the name of a column, it is a list.'),
    Case('doc_to_choice: 3', field('doc_to_choice', '3'), COMMAND,
         'tasks/t.yaml: field doc_to_choice must be a template, a column or a list of choices, it is 3.'),
    Case('doc_to_target: {a: 1}', field('doc_to_target', '{a: 1}'), COMMAND,
         'tasks/t.yaml: field doc_to_target must be a template, the name of a column or a number, it is a '
         'mapping.'),
    Case('metric_list: acc', field('metric_list', 'acc'), COMMAND,
         "tasks/t.yaml: field metric_list must be a list of mappings, it is 'acc'."),
    Case('description: [1]', field('description', '[1]'), COMMAND,
         'tasks/t.yaml: field description must be a string, it is a list.'),
    Case('num_fewshot: many', field('num_fewshot', 'many'), COMMAND,
         "tasks/t.yaml: field num_fewshot must be a whole number from 0 to 1000, it is 'many'."),
    Case('num_fewshot: -1', field('num_fewshot', '-1'), COMMAND,
         'tasks/t.yaml: field num_fewshot must be a whole number from 0 to 1000, it is -1.'),
    Case('num_fewshot: 1000000', field('num_fewshot', '1000000'), COMMAND,
         'tasks/t.yaml: field num_fewshot must be a whole number from 0 to 1000, it is 1000000.'),
    Case('fewshot_config: x', field('fewshot_config', 'x'), COMMAND,
         "tasks/t.yaml: field fewshot_config must be a mapping, it is 'x'."),
    Case('fewshot_config: {sampler: best}', field('fewshot_config', '{sampler: best}'), COMMAND,
         "tasks/t.yaml: field fewshot_config.sampler must be default or first_n, it is 'best'."),
    Case('fewshot_config: {smpler: x}', field('fewshot_config', '{smpler: x}'), COMMAND,
         "tasks/t.yaml: field 'smpler' is not one of sampler, split, fewshot_indices, samples, doc_to_text, "
         'doc_to_choice, doc_to_target, gen_prefix, fewshot_delimiter, target_delimiter. Did you mean '
         "'sampler'?"),
    Case('repeats: 0', field('repeats', '0'), COMMAND,
         'tasks/t.yaml: field repeats must be a whole number from 1 to 1000, it is 0.'),
    Case('repeats: 1.5', field('repeats', '1.5'), COMMAND,
         'tasks/t.yaml: field repeats must be a whole number from 1 to 1000, it is 1.5.'),
    Case('filter_list: x', field('filter_list', 'x'), COMMAND,
         "tasks/t.yaml: field filter_list must be a list of mappings, it is 'x'."),
    Case('filter_list: [{name: a}]', field('filter_list', '[{name: a}]'), COMMAND,
         'tasks/t.yaml: an entry of filter_list needs the fields name and filter.'),
    Case('filter_list: [{name: a, filter: [{function: nosuch}]}]', field('filter_list', '[{name: a, filter: [{function: nosuch}]}]'), COMMAND,
         "tasks/t.yaml: filter 'nosuch' is not one of custom, regex, regex_pos, remove_whitespace, "
         'multi_choice_regex, take_first, take_first_k, majority_vote, lowercase, uppercase, map, format_span.'),
    Case('metadata: x', field('metadata', 'x'), COMMAND,
         "tasks/t.yaml: field metadata must be a mapping, it is 'x'."),
    Case('generation_kwargs: []', field('generation_kwargs', '[]'), COMMAND,
         'tasks/t.yaml: field generation_kwargs must be a mapping, it is a list.'),
    Case('target_delimiter: 3', field('target_delimiter', '3'), COMMAND,
         'tasks/t.yaml: field target_delimiter must be a string, it is 3.'),
    Case('tag: {a: b}', field('tag', '{a: b}'), COMMAND,
         'tasks/t.yaml: field tag must be a name or a list of names, it is a mapping.'),
    Case('process_docs: f', field('process_docs', 'f'), COMMAND,
         'tasks/t.yaml: field process_docs names a function of Python, which is not run. Take it out.'),
    Case('process_results: f', field('process_results', 'f'), COMMAND,
         'tasks/t.yaml: field process_results names a function of Python, which is not run. Take it out.'),
    Case('should_decontaminate: maybe', field('should_decontaminate', 'maybe'), COMMAND,
         "tasks/t.yaml: field should_decontaminate must be true or false, it is 'maybe'."),
    Case('use_prompt: promptsource:x', field('use_prompt', 'promptsource:x'), COMMAND,
         'tasks/t.yaml: field use_prompt reads templates from elsewhere. Write doc_to_text instead.'),
    Case('without dataset_path', field('dataset_path', None), COMMAND,
         'tasks/t.yaml: the task t has no field dataset_path.'),
    Case('without dataset_kwargs', field('dataset_kwargs', None), COMMAND,
         "tasks/t.yaml: the task t has no field data_files in dataset_kwargs: it names the items' file."),
    Case('without test_split', field('test_split', None), COMMAND,
         'tasks/t.yaml: the task t has no field test_split: it says which items are asked.'),
    Case('without doc_to_text', field('doc_to_text', None), COMMAND,
         'tasks/t.yaml: the task t has no field doc_to_text.'),
    Case('without doc_to_choice', field('doc_to_choice', None), COMMAND,
         'tasks/t.yaml: the task t has no field doc_to_choice.'),
    Case('without doc_to_target', field('doc_to_target', None), COMMAND,
         'tasks/t.yaml: the task t has no field doc_to_target.'),
    Case('kwargs num_proc', field('dataset_kwargs', '{num_proc: 4, data_files: {test: q.jsonl}}'), COMMAND,
         "tasks/t.yaml: field of dataset_kwargs 'num_proc' is not one of data_files, field, delimiter, sep, "
         'column_names, quotechar, encoding, sample_by, columns.'),
    Case('kwargs trust', field('dataset_kwargs', '{trust_remote_code: true, data_files: {test: q.jsonl}}'), COMMAND,
         "tasks/t.yaml: field trust_remote_code would run code that is not lm-eval's own. Take it out."),
    Case('metric unknown', field('metric_list', '[{metric: accc, aggregation: mean, higher_is_better: true}]'), COMMAND,
         "tasks/t.yaml: metric accc is none of lm-eval's own, and others' code is not fetched."),
    Case('metric none', field('metric_list', '[{aggregation: mean, higher_is_better: true}]'), COMMAND,
         'tasks/t.yaml: an entry of metric_list has no field metric.'),
    Case('aggregation unknown', field('metric_list', '[{metric: acc, aggregation: men, higher_is_better: true}]'), COMMAND,
         "tasks/t.yaml: aggregation 'men' is not one of bypass, nanmean, mean, median, perplexity, "
         'weighted_perplexity, bits_per_byte, f1, matthews_corrcoef, bleu, chrf, chrf++, ter, brier_score. Did'
         " you mean 'mean'?"),
    Case('data empty', files(t=TASK, q=''), COMMAND,
         'tasks/t.yaml: data file tasks/q.jsonl is empty: a task needs an item.'),
    Case('data blank', files(t=TASK, q='\n\n'), COMMAND,
         'Task t cannot be made from its files: Instruction "test" corresponds to no data!.'),
    Case('data broken', items(GOOD, '{"question": '), COMMAND,
         'Task t cannot be made from its files: JSON parse error: Invalid value. in row 1.'),
    Case('data binary', files(t=TASK, q=b'\x00\xff\x01\x02' * 10), COMMAND,
         'Task t cannot be made from its files: JSON parse error: The document is empty.'),
    Case('data list of numbers', items('1', '2'), COMMAND,
         'Task t cannot be made from its files: JSON parse error: Column() changed from object to number in '
         'row 0.'),
    Case('data mixed types', items(GOOD, '{"question": 5, "choices": ["a","b"], "answer": 0}'), COMMAND,
         'Task t, item 2: doc_to_text gives 5, and lm-eval takes digits alone for the number of a choice: put a '
         'word before them.'),
    Case('first question of digits', items('{"question": "1", "choices": ["a","b"], "answer": 0}', GOOD), COMMAND,
         'Task t, item 1: doc_to_text gives 1, and lm-eval takes digits alone for the number of a choice: put a '
         'word before them.'),
    Case('later question of digits', items(GOOD, '{"question": "1", "choices": ["a","b"], "answer": "a"}'), COMMAND,
         'Task t, item 2: doc_to_text gives 1, and lm-eval takes digits alone for the number of a choice: put a '
         'word before them.'),
    Case('data name number', field('dataset_kwargs', '{data_files: {test: 3}}'), COMMAND,
         'tasks/t.yaml: field data_files must be a file, a list of files, or these for each split.'),
    Case('data files empty', field('dataset_kwargs', '{data_files: {}}'), COMMAND,
         "tasks/t.yaml: the task t has no field data_files in dataset_kwargs: it names the items' file."),
    Case('csv broken', field('dataset_path', 'csv'), COMMAND,
         'Task t cannot be made from its files: Instruction "test" corresponds to no data!.'),
    Case('parquet damaged', field('dataset_path', 'parquet'), COMMAND,
         'Task t cannot be made from its files: Parquet magic bytes not found in footer. Either the file is '
         'corrupted or this is not a parquet file.'),
    Case('program', field('dataset_path', './x.py'), COMMAND,
         'tasks/t.yaml: dataset_path ./x.py is a program. Give its items as one of json, csv, parquet, text.'),
    Case('include missing', files(t='include: no.yaml\ntask: t\n'), COMMAND,
         'File tasks/no.yaml does not exist.'),
    Case('include itself', files(t='include: t.yaml\ntask: t\n'), COMMAND,
         'tasks/t.yaml includes itself.'),
    Case('include cycle', files(t='include: u.yaml\ntask: t\n', u='include: t.yaml\n'), COMMAND,
         'tasks/u.yaml includes itself.'),
    Case('include outside', files(t='include: ../x.yaml\ntask: t\n'), COMMAND,
         'tasks/t.yaml includes ../x.yaml, which is not in tasks: put it there.'),
    Case('include number', files(t='include: 3\ntask: t\n'), COMMAND,
         'tasks/t.yaml: field include must be a file or a list of files, it is 3.'),
    Case('include list of lists', files(t='include: [[a]]\ntask: t\n'), COMMAND,
         "tasks/t.yaml: field include must be a file or a list of files, it is ['a']."),
    Case('include folder', files(t='include: .\ntask: t\n'), COMMAND,
         'tasks is a folder, not a regular file: put a file in its place.'),
    Case('text template syntax', field('doc_to_text', "'{% for %}'"), COMMAND,
         "Task t cannot be made from its files: Expected an expression, got 'end of statement block'."),
    Case('text template undefined', field('doc_to_text', "'{{ nosuch }}'"), COMMAND,
         "Task t cannot be made from its files: 'nosuch' is undefined."),
    Case('text template attribute', field('doc_to_text', "'{{ question.__class__ }}'"), COMMAND,
         "Task t cannot be made from its files: access to attribute '__class__' of 'str' object is unsafe."),
    Case('text template attribute 2', field('doc_to_text', "'{{ question.x.y }}'"), COMMAND,
         "Task t cannot be made from its files: 'str object' has no attribute 'x'."),
    Case('text template zero', field('doc_to_text', "'{{ 1/0 }}'"), COMMAND,
         'Task t cannot be made from its files: division by zero.'),
    Case('text template range', field('doc_to_text', "'{% for i in range(10**9) %}x{% endfor %}'"), COMMAND,
         'Task t cannot be made from its files: the number 1000000000 in a template, the most is 1,000,000.'),
    Case('text template nested', field('doc_to_text', "'{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}'"), COMMAND,
         'Task t cannot be made from its files: a template that takes more than 20,000 steps.'),
    Case('text template times', field('doc_to_text', "'{{ ''a'' * 10**9 }}'"), COMMAND,
         'Task t cannot be made from its files: a template that makes 1,000,000,000 characters or items, the '
         'most is 1,000,000.'),
    Case('text template filter', field('doc_to_text', "'{{ question|nosuch }}'"), COMMAND,
         "Task t cannot be made from its files: No filter named 'nosuch'."),
    Case('text template include', field('doc_to_text', "'{% include ''x'' %}'"), COMMAND,
         'Task t cannot be made from its files: no loader for this environment specified (look at its first '
         'item and at doc_to_text, doc_to_choice and doc_to_target).'),
    Case('text template import', field('doc_to_text', "'{% import ''x'' as y %}'"), COMMAND,
         'Task t cannot be made from its files: no loader for this environment specified (look at its first '
         'item and at doc_to_text, doc_to_choice and doc_to_target).'),
    Case('text template extends', field('doc_to_text', "'{% extends ''x'' %}'"), COMMAND,
         'Task t cannot be made from its files: no loader for this environment specified (look at its first '
         'item and at doc_to_text, doc_to_choice and doc_to_target).'),
    Case('choices template', field('doc_to_choice', "'{{question}}'"), COMMAND,
         'Task t cannot be made from its files: invalid syntax (<unknown>, line 1).'),
    Case('target template', field('doc_to_target', "'{{ choices[9] }}'"), COMMAND,
         'Task t cannot be made from its files: list object has no element 9.'),
    Case('shots', task('test_split: test', 'test_split: test\nfewshot_split: test\nnum_fewshot: 5'), COMMAND,
         'Task t is to show 5 examples before each item, but its file has 0 to show.'),
    Case('no task', files(t='doc_to_text: x\n'), COMMAND,
         'Folder tasks holds no task of lm-eval: *.yaml with a field `task` or `group`.'),
    Case('Latin-1', files(t=b'task: t # \xe9\n'), COMMAND,
         'tasks/t.yaml is not text in UTF-8 (line 1): save it as UTF-8.'),
    Case('UTF-16', files(t='task: t\n'.encode('utf-16')), COMMAND,
         'tasks/t.yaml is in UTF-16: save it as UTF-8.'),
    Case('gzip', files(t=b'\x1f\x8b0000'), COMMAND,
         'tasks/t.yaml is packed with gzip: unpack it first.'),
    Case('items that are gzip', files(t=TASK, q=b'\x1f\x8b\x08\x00junk'), COMMAND,
         'Task t cannot be made from its files: Compressed file ended before the end-of-stream marker was '
         'reached.'),
    Case('a name twice', files(a=TASK, b=TASK), COMMAND,
         'Task t is both in tasks/a.yaml and in tasks/b.yaml: rename one.'),
    Case('a pipe', pipe('t.yaml'), COMMAND,
         'tasks/t.yaml is a named pipe, not a regular file: put a file in its place.'),
    Case('items in a pipe', pipe('q.jsonl'), COMMAND,
         'tasks/q.jsonl is a named pipe, not a regular file: put a file in its place.'),
    Case('no folder', model, 'evaluate model --tasks t --task-dir nowhere',
         'Task folder nowhere does not exist.'),
    Case('a file for a folder', lambda folder: (model(folder) / 'x').touch(), 'evaluate model --tasks t --task-dir model/x',
         'Task folder model/x does not exist.'),
    Case('a folder without tasks', model, 'evaluate model --tasks t --task-dir model',
         'Folder model holds no task of lm-eval: *.yaml with a field `task` or `group`.'),
    Case('too deep for the limit', files(t='task: t\nmetadata: [[1]]\n'), COMMAND,
         'tasks/t.yaml, line 2: values nest more than 2 deep: that is no task.',
         {'karipap_core.evaluation.tasks.plain_yaml:MOST_DEPTH': 2}),
    Case('too many values', files(t=TASK), COMMAND,
         'tasks/t.yaml, line 3: more than 9 values: that is no task.',
         {'karipap_core.evaluation.tasks.plain_yaml:MOST_VALUES': 9}),
    Case('too large', files(t=TASK), COMMAND,
         'tasks/t.yaml has more than 99 bytes: that is too much for a file of this kind.',
         {'karipap_core.evaluation.tasks.plain_yaml:MOST_BYTES': 99}),
    Case('too many files', files(t=TASK, u='a: b'), COMMAND,
         'Task folder tasks holds more than 1 YAML files: name a smaller one.',
         {'karipap_core.evaluation.tasks.files:MOST_FILES': 1}),
    Case('a template that takes too many steps', field('doc_to_text', '"{% for a in question %}{% endfor %}"'), COMMAND,
         'Task t cannot be made from its files: a template that takes more than 5 steps.',
         {'karipap_core.evaluation.tasks.templates:MOST_STEPS': 5}),
    Case('more shots than items', files(t=TASK), 'evaluate model --tasks t --task-dir tasks --shots 3',
         'Task t is to show 3 examples before each item, but its file has 0 to show.'),
]  # fmt: skip
if importlib.util.find_spec("lm_eval") is None:  # of the extra `tasks`
    CASES.clear()
