"""What the system refuses to write is said in one sentence that names the file, and nothing half-written stays."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from karipap_core.cli import frame as cli
from karipap_core.errors import InputError, StorageError
from karipap_core.reading import read_json
from karipap_core.workspace.files import cannot_write, whole_file, write_json, writing
from karipap_core.workspace.kept import keep_tensors
from tests.helpers.paths import REPOSITORY

AGAIN = "give the command again."
SENTENCES = {
    errno.ENOSPC: (StorageError, f"x cannot be written, since the disk is full: make room and {AGAIN}"),
    errno.EDQUOT: (StorageError, f"x cannot be written, since the disk is full: make room and {AGAIN}"),
    errno.EFBIG: (
        StorageError,
        "x cannot be written, since it would be larger than this process may write (ulimit -f): raise that and "
        + AGAIN,
    ),
    errno.EIO: (StorageError, "x cannot be written: Input/output error."),
    errno.EACCES: (InputError, "x cannot be written, since this user may not write there: name another place."),
    errno.EROFS: (InputError, "x cannot be written, since the disk is mounted for reading alone: name another place."),
    errno.ENOTDIR: (InputError, "x cannot be written (Not a directory): name another place."),
}


@pytest.mark.parametrize("number", SENTENCES)
def test_each_refusal_is_a_sentence(number):
    kind, sentence = SENTENCES[number]
    found = cannot_write("x", OSError(number, os.strerror(number)))
    assert type(found) is kind and str(found) == sentence


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with (
        pytest.raises(StorageError, match=f"{path} cannot be written, since the disk is full"),
        whole_file(path) as new,
    ):
        new.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == ["x.json"] and read_json(path) == {"old": 1}


def test_an_error_about_another_file_is_not_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "out" / "x"):
        (tmp_path / "elsewhere" / "x").read_bytes()


def test_a_limit_for_files_is_said_of_tensors_too(tmp_path):
    """safetensors hides the system's error in an error of its own."""
    code = (
        "import resource, sys, numpy as np; from pathlib import Path\n"
        "from karipap_core.workspace.kept import keep_tensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: keep_tensors(Path(sys.argv[1]), {'a': np.ones(100_000)})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    file = tmp_path / "new" / "x.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "StorageError " + SENTENCES[errno.EFBIG][1].replace("x ", f"{file} ", 1) + "\n", done.stderr
    assert list(tmp_path.rglob("*.*")) == []
    keep_tensors(file, {"a": np.ones(3)})


def test_a_file_in_a_folders_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (write_json, keep_tensors):
        with pytest.raises(InputError, match=r"file/deep/x cannot be written \(Not a directory\)"):
            write(tmp_path / "file" / "deep" / "x", {})


def test_a_workspace_to_read_alone_ends_with_a_sentence_and_what_reads_still_reads(tmp_path, capsys):
    from reliability.soak import mounted, remount
    from tests.helpers.architectures import make

    model, workspace = make("llama", tmp_path / "model"), tmp_path / "workspace"
    workspace.mkdir()
    argv = ["profile", str(model), "--metrics", "weight", "--workspace", str(workspace), "--device", "cpu"]
    with mounted(workspace, "size=16m") as there:
        if not there:
            pytest.skip("this user may not mount a disk")
        remount(workspace, "ro")
        assert cli.main(argv) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: {workspace}/models/")
        assert said.endswith(" cannot be written, since the disk is mounted for reading alone: name another place.")
        assert list(workspace.iterdir()) == []
        remount(workspace, "rw")
        assert cli.main(argv) == 0
        remount(workspace, "ro")
        assert cli.main(argv) == 0, "a finished profile is read"


def test_little_memory_is_one_sentence(tmp_path):
    from tests.helpers.architectures import make

    model = make("llama", tmp_path / "model")
    code = (
        "import resource, sys; from karipap_core.cli import frame\n"
        "limit = int(sys.argv.pop(1)); resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "sys.exit(frame.main())"
    )
    argv = ["profile", str(model), "--workspace", str(tmp_path / "workspace"), "--device", "cpu"]
    for megabytes in (200, 400, 700):
        line = [sys.executable, "-c", code, str(megabytes << 20), *argv]
        done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
        errors = [words for words in done.stderr.splitlines() if words.startswith("error: ")]
        assert done.returncode == 1 and len(errors) == 1 and "Memory ran out" in errors[0], (megabytes, done.stderr)


@pytest.mark.parametrize(("peak", "said"), [(98 << 10, "Memory ran out"), (10 << 10, "unforeseen")])
def test_a_parser_that_ran_out_of_memory_is_told_from_a_damaged_library(monkeypatch, peak, said):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100 << 20, 100 << 20))
    monkeypatch.setattr(cli.Path, "read_text", lambda self, *_: f"VmPeak:\t{peak} kB\n")
    monkeypatch.setattr(cli, "keep_log", lambda *_: None)
    assert said in cli._in_a_line(SyntaxError("expected ':'", ("library.py", 3331, 1, "")), ["profile"])
