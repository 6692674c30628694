"""One writer at a time, said in a sentence, with real processes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from karipap_core.errors import InputError
from karipap_core.workspace.locks import only_writer
from tests.helpers.paths import REPOSITORY

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from karipap_core.workspace.locks import only_writer
with only_writer(sys.argv[1], "compress"):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def holder(path, seconds=60.0) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(REPOSITORY), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_writer_is_told_who_is_the_first_and_nothing_is_left(tmp_path):
    out = tmp_path / "new" / "out"
    with only_writer(out, "heal"), pytest.raises(InputError) as said, only_writer(out, "compress"):
        pass
    now = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    who = rf"heal \(process {os.getpid()}, since {now}\)"
    told = rf"{re.escape(str(out))} is being written by {who}: wait for its end, or name another place\."
    assert re.fullmatch(told, str(said.value))
    assert list(out.parent.iterdir()) == []
    with only_writer(out, "compress"):
        assert [file.name for file in out.parent.iterdir()] == [".out.lock"]
    assert list(out.parent.iterdir()) == []


def test_two_ways_to_write_one_folder_are_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    link = tmp_path / "x" / ".." / "link"
    with only_writer(tmp_path / "real", "heal"), pytest.raises(InputError, match="heal"), only_writer(link, "compress"):
        pass


def test_a_killed_holder_holds_nothing(tmp_path):
    out = tmp_path / "out"
    process = holder(out)
    with pytest.raises(InputError, match=rf"compress \(process {process.pid}, since "), only_writer(out, "heal"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_writer(out, "heal"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_waits_says_so_and_comes_next(tmp_path):
    process = holder(tmp_path / "out", seconds=1.0)
    told = []
    began = time.monotonic()
    with only_writer(tmp_path / "out", "profile", waiting=lambda *line: told.append(line)):
        assert time.monotonic() - began > 0.3
    process.wait()
    assert [line[:3] for line in told] == [("waiting", 0, 1), ("waiting", 1, 1)]
    assert f"for compress (process {process.pid}" in told[0][4]


def test_of_many_at_once_one_is_in_at_a_time(tmp_path):
    """The lock's file goes with each holder: nobody may come in by the file of the one before."""
    inside, most, done = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(20):
            while True:
                try:
                    with only_writer(tmp_path / "out", "work"):
                        with guard:
                            inside += 1
                            most = max(most, inside)
                        time.sleep(0.0005)
                        with guard:
                            inside -= 1
                            done += 1
                    break
                except InputError:
                    time.sleep(0.0002)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 80)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"file/\.out\.lock cannot be written"),
        only_writer(tmp_path / "file/out", "x"),
    ):
        pass
