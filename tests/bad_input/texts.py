"""Texts and prompts that are none."""
# ruff: noqa: E501 (what a case tries stands on one line)

import gzip
import os

import pyarrow
from pyarrow import parquet

from tests.bad_input import Case, model


def file(*names_and_contents):
    """A good model beside files: a name, its bytes, and so on."""

    def make(folder):
        model(folder)
        for name, data in zip(names_and_contents[::2], names_and_contents[1::2], strict=True):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)

    return make


def pipe(name: str):
    return lambda folder: (model(folder), os.mkfifo(folder / name))


def link(name: str, there: str):
    return lambda folder: (model(folder), (folder / name).symlink_to(there))


def table(**columns):
    return lambda folder: (model(folder), parquet.write_table(pyarrow.table(columns), folder / "a.parquet"))


nothing = model


CASES = [
    Case('gzip cut off', file('a.txt', gzip.compress(b'one', mtime=0)[:-9]), 'evaluate model --text a.txt',
         'Text file a.txt is a damaged gzip file: fetch it again.'),
    Case('gzip of lines, one broken', file('a.json.gz', gzip.compress(b'"one"\n"two', mtime=0)), 'evaluate model --text a.json.gz',
         'Text file a.json.gz is not valid JSON (line 2, column 1: Unterminated string starting at).'),
    Case('zstandard', file('a.txt', b'(\xb5/\xfd0123'), 'profile model --text a.txt',
         'Text file a.txt is packed with zstandard: unpack it first.'),
    Case('bzip2', file('a.txt', b'BZh91AY'), 'evaluate model --text a.txt',
         'Text file a.txt is packed with bzip2: unpack it first.'),
    Case('zip', file('a.txt', b'PK\x03\x04\x14'), 'evaluate model --text a.txt',
         'Text file a.txt is packed with zip: unpack it first.'),
    Case('Latin-1', file('a.txt', b'one\ntwo \xe9\n'), 'evaluate model --text a.txt',
         'Text file a.txt is not text in UTF-8 (line 2): save it as UTF-8.'),
    Case('UTF-16', file('a.txt', 'one'.encode('utf-16')), 'evaluate model --text a.txt',
         'Text file a.txt is in UTF-16: save it as UTF-8.'),
    Case('UTF-16 without a mark', file('a.txt', 'one'.encode('utf-16-le')), 'evaluate model --text a.txt',
         'Text file a.txt holds NUL characters, which no text does: is it a binary file, or UTF-16? Give it as'
         ' UTF-8.'),
    Case('UTF-32', file('a.txt', 'one'.encode('utf-32')), 'evaluate model --text a.txt',
         'Text file a.txt is in UTF-32: save it as UTF-8.'),
    Case('NUL', file('a.txt', bytes(3000)), 'evaluate model --text a.txt',
         'Text file a.txt holds NUL characters, which no text does: is it a binary file, or UTF-16? Give it as'
         ' UTF-8.'),
    Case('one NUL', file('a.txt', b'one\0two'), 'evaluate model --text a.txt',
         'Text file a.txt holds NUL characters, which no text does: is it a binary file, or UTF-16? Give it as'
         ' UTF-8.'),
    Case('control characters', file('a.txt', b'\x01\x02\x03 ' * 5 + b'abc'), 'evaluate model --text a.txt',
         'Text file a.txt is no text: 15 of its 23 characters are control characters or stand for bytes that '
         'could not be read.'),
    Case('what was read wrongly once', file('a.txt', 'was: \ufffd\ufffd'.encode()), 'evaluate model --text a.txt',
         'Text file a.txt is no text: 2 of its 7 characters are control characters or stand for bytes that '
         'could not be read.'),
    Case('an image', file('a.txt', b'\x89PNG\r\n\x1a\n\0\0'), 'evaluate model --text a.txt',
         'Text file a.txt is not text in UTF-8 (line 1): save it as UTF-8.'),
    Case('empty', file('a.txt', b''), 'evaluate model --text a.txt',
         'Text file a.txt is empty: nothing to measure on.'),
    Case('a byte order mark alone', file('a.txt', b'\xef\xbb\xbf'), 'evaluate model --text a.txt',
         'Text file a.txt is empty: nothing to measure on.'),
    Case('blank lines', file('a.txt', b'\n \n\n'), 'sweep model --out out --text a.txt',
         'Text file a.txt is empty: nothing to measure on.'),
    Case('empty documents', file('a.txt', b'<|endoftext|>\n<|endoftext|>'), 'evaluate model --text a.txt',
         'Text file a.txt is empty: nothing to measure on.'),
    Case('missing', nothing, 'evaluate model --text a.txt',
         'File a.txt does not exist.'),
    Case('a misspelt name of the hub', nothing, 'evaluate model --text wikitext2-raw',
         "Text file wikitext2-raw does not exist. Did you mean 'wikitext-2-raw-v1', from the hub?"),
    Case('a name that cannot be', nothing, 'evaluate model --text ' + 'x' * 300,
         'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… is too long to be the name of a file.'),
    Case('a pipe', pipe('a.txt'), 'evaluate model --text a.txt',
         'a.txt is a named pipe, not a regular file: put a file in its place.'),
    Case('a link that leads nowhere', link('a.txt', 'nowhere'), 'evaluate model --text a.txt',
         'a.txt is a link to nowhere, which does not exist.'),
    Case('a link to itself', link('a.txt', 'a.txt'), 'evaluate model --text a.txt',
         'a.txt is a link that leads back to itself.'),
    Case("a folder in a file's place", file('a.txt/x', b''), 'evaluate model --text a.txt',
         'Folder a.txt must hold one file of a test split, it holds none: name a file.'),
    Case('a folder of two test splits', file('d/test-1.txt', b'one', 'd/test-2.txt', b'two'), 'evaluate model --text d',
         'Folder d must hold one file of a test split, it holds test-1.txt, test-2.txt: name a file.'),
    Case('a file for a folder', file('a', b'one'), 'evaluate model --text a/b.txt',
         'File a/b.txt does not exist.'),
    Case('a device', nothing, 'evaluate model --text /dev/null',
         '/dev/null is a device, not a regular file: put a file in its place.'),
    Case('too large', file('a.txt', b'one two'), 'evaluate model --text a.txt',
         'Text file a.txt has 7 bytes, the most is 6: give a part of it.',
         {'karipap_core.text:MOST_BYTES': 6}),
    Case('JSON that is none', file('a.json', b'["one", ]x'), 'evaluate model --text a.json',
         'Text file a.json is not valid JSON (line 1, column 9: Expecting value).'),
    Case('JSON that ends early', file('a.json', b'["one",\n"two'), 'evaluate model --text a.json',
         'Text file a.json is not valid JSON (line 2, column 1: Unterminated string starting at).'),
    Case('JSON of nothing', file('a.json', b''), 'evaluate model --text a.json',
         'Text file a.json is empty.'),
    Case('a document in PDF of ASCII', file('a.txt', b'%PDF-1.4\n' + b'<< /Type /Catalog >>\n' * 99), 'evaluate model --text a.txt',
         'Text file a.txt is a document in PDF: save it as plain text.'),
    Case('a document in RTF', file('a.txt', b'{\\rtf1\\ansi ' + b'words ' * 99 + b'}'), 'evaluate model --text a.txt',
         'Text file a.txt is a document in RTF: save it as plain text.'),
    Case('an empty list', file('a.json', b'[]'), 'evaluate model --text a.json',
         'Text file a.json is empty: nothing to measure on.'),
    Case('a list of empty strings', file('a.json', b'["", ""]'), 'evaluate model --text a.json',
         'Text file a.json is empty: nothing to measure on.'),
    Case('an object', file('a.json', b'{"txt": "one"}'), 'evaluate model --text a.json',
         'Text file a.json must hold a list of strings or of objects with a field `text`.'),
    Case('a list of numbers', file('a.json', b'[1, 2]'), 'evaluate model --text a.json',
         'Text file a.json: item 1 of its list is no string and no object with a string in its field `text`.'),
    Case('a field of another name', file('a.json', b'["one", {"txt": "two"}]'), 'evaluate model --text a.json',
         'Text file a.json: item 2 of its list is no string and no object with a string in its field `text`.'),
    Case('a text that is a list', file('a.json', b'[{"text": ["one"]}]'), 'evaluate model --text a.json',
         'Text file a.json: item 1 of its list is no string and no object with a string in its field `text`.'),
    Case('a field twice', file('a.json', b'[{"text": "one", "text": "two"}]'), 'evaluate model --text a.json',
         "Text file a.json has the field 'text' twice: keep one of them."),
    Case('half a surrogate pair', file('a.json', b'["\\ud800"]'), 'evaluate model --text a.json',
         'Text file a.json holds half of a surrogate pair (\\ud800 to \\udfff alone).'),
    Case('NUL as an escape', file('a.json', b'["a\\u0000"]'), 'evaluate model --text a.json',
         'Text file a.json holds NUL characters, which no text does: is it a binary file, or UTF-16? Give it '
         'as UTF-8.'),
    Case('too deep', file('a.json', b'[' * 70 + b']' * 70), 'evaluate model --text a.json',
         'Text file a.json nests values more than 64 deep: that is no file of this kind.'),
    Case('a number of many digits', file('a.json', b'[' + b'1' * 500 + b']'), 'evaluate model --text a.json',
         'Text file a.json holds a number of 500 digits: at most 400.'),
    Case('a number that is none', file('a.json', b'[1e400]'), 'evaluate model --text a.json',
         'Text file a.json holds the number 1e400, which is beyond what a number can be.'),
    Case('JSON Lines named .json, one broken', file('a.json', b'{"text": "one"}\n{"text": two}\n'), 'evaluate model --text a.json',
         'Text file a.json is not valid JSON (line 2, column 10: Expecting value).'),
    Case('JSON named .jsonl', file('a.jsonl', b'[\n"one",\n"two"\n]'), 'evaluate model --text a.jsonl',
         'Text file a.jsonl is one JSON document: let its name end with .json.'),
    Case('an error in line 3', file('a.jsonl', b'"one"\n"two"\n{"text": }\n'), 'evaluate model --text a.jsonl',
         'Text file a.jsonl is not valid JSON (line 3, column 10: Expecting value).'),
    Case('a number in line 3', file('a.jsonl', b'"one"\n\n3\n'), 'evaluate model --text a.jsonl',
         'Text file a.jsonl: line 3 is no string and no object with a string in its field `text`.'),
    Case('null in a line', file('a.jsonl', b'null\n'), 'evaluate model --text a.jsonl',
         'Text file a.jsonl: line 1 is no string and no object with a string in its field `text`.'),
    Case('a field twice in line 2', file('a.jsonl', b'"one"\n{"text": "a", "text": "b"}\n'), 'evaluate model --text a.jsonl',
         "Text file a.jsonl has the field 'text' twice: keep one of them."),
    Case('a control character in a string', file('a.jsonl', b'"one"\n"a\tb"\n'), 'evaluate model --text a.jsonl',
         'Text file a.jsonl is not valid JSON (line 2, column 3: Invalid control character at).'),
    Case('Parquet named .txt', file('a.txt', b'PAR1 and so on'), 'evaluate model --text a.txt',
         'Text file a.txt is Parquet: let its name end with .parquet.'),
    Case('text named .parquet', file('a.parquet', b'one two'), 'evaluate model --text a.parquet',
         'Text file a.parquet is not valid Parquet: Parquet file size is 7 bytes, smaller than the minimum '
         'file footer (8 bytes)'),
    Case('Parquet without the column', table(txt=['one']), 'evaluate model --text a.parquet',
         'Text file a.parquet must have a column `text` of strings, it has txt (string).'),
    Case('Parquet of numbers', table(text=[1, 2]), 'evaluate model --text a.parquet',
         'Text file a.parquet must have a column `text` of strings, it has text (int64).'),
    Case('Parquet of lists', table(text=[['one']]), 'evaluate model --text a.parquet',
         'Text file a.parquet must have a column `text` of strings, it has text (list<element: string>).'),
    Case('Parquet of objects', table(text=[{'text': 'one'}]), 'evaluate model --text a.parquet',
         'Text file a.parquet must have a column `text` of strings, it has text (struct<text: string>).'),
    Case('Parquet of bytes', table(text=[b'one']), 'evaluate model --text a.parquet',
         'Text file a.parquet must have a column `text` of strings, it has text (binary).'),
    Case('Parquet with an empty row', table(text=['one', None]), 'evaluate model --text a.parquet',
         'Text file a.parquet has no text in row 2: take the row out.'),
    Case('Parquet of no rows', table(text=['']), 'evaluate model --text a.parquet',
         'Text file a.parquet is empty: nothing to measure on.'),
    Case('Parquet that unpacks to too much', table(text=['the same words ' * 10] * 500), 'evaluate model --text a.parquet',
         'Text file a.parquet unpacks to more than 20,000 bytes: give a part of it.',
         {'karipap_core.text:MOST_BYTES': 20000, 'karipap_core.text:PARQUET_ROWS': 16}),
    Case('a text for `run`', file('a.txt', b'\xff'), 'run model --plan plan.json --text a.txt',
         'File plan.json does not exist.'),
    Case('a text for `autopilot`', file('a.txt', b'\xff'), 'autopilot model --max-rise 0.1 --text a.txt',
         'Text file a.txt is not text in UTF-8 (line 1): save it as UTF-8.'),
    Case('a text for `sensitivity`', file('a.txt', b'\xff'), 'sensitivity model --text a.txt',
         'Text file a.txt is not text in UTF-8 (line 1): save it as UTF-8.'),
    Case('prompts that are missing', nothing, 'shadow model --prompts p.txt',
         'File p.txt does not exist.'),
    Case('prompts that are packed', file('p.txt', gzip.compress(b'one', mtime=0)), 'shadow model --prompts p.txt',
         'Prompts p.txt is packed with gzip: unpack it first.'),
    Case('prompts in Latin-1', file('p.txt', b'one\ntwo \xe9\n'), 'shadow model --prompts p.txt',
         'Prompts p.txt is not text in UTF-8 (line 2): save it as UTF-8.'),
    Case('prompts with NUL', file('p.txt', b'one\ntw\0o\n'), 'shadow model --prompts p.txt',
         'Prompts p.txt: number 2 holds a NUL character, which no text does.'),
    Case('no prompts', file('p.txt', b'\n \n'), 'shadow model --prompts p.txt',
         'Prompts p.txt hold no prompt.'),
    Case('prompts that are numbers', file('p.json', b'[1]'), 'shadow model --prompts p.json',
         'Prompts p.json must be one prompt a line, or a JSON list of strings that are not empty.'),
    Case('an empty prompt', file('p.json', b'["", "x"]'), 'shadow model --prompts p.json',
         'Prompts p.json must be one prompt a line, or a JSON list of strings that are not empty.'),
    Case('prompts that are no JSON', file('p.json', b'['), 'shadow model --prompts p.json',
         'Prompts p.json is not valid JSON (line 1, column 2: Expecting value).'),
    Case('prompts in a pipe', pipe('p.txt'), 'shadow model --prompts p.txt',
         'p.txt is a named pipe, not a regular file: put a file in its place.'),
    Case('prompts in a folder', file('p.txt/x', b''), 'shadow model --prompts p.txt',
         'p.txt is a folder, not a regular file: put a file in its place.'),
]  # fmt: skip
