"""A handful of the rounds of `make soak`, in a process of its own, which forks."""

import subprocess
import sys

from tests.helpers.paths import REPOSITORY

ROUNDS = """
import sys
from pathlib import Path
from reliability.soak import soak
faults = soak(6, 1, 5, Path(sys.argv[1]), ("profile", "compress"), ("full disk", "two writers"))
print(*faults, sep="\\n")
sys.exit(bool(faults))
"""


def test_killed_and_troubled_verbs_lose_nothing(tmp_path):
    tried = subprocess.run(
        [sys.executable, "-c", ROUNDS, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=280
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr[-2000:]
    last = tried.stdout.strip().splitlines()[-1]
    assert last.endswith("nothing lost, nothing wrong") and "not completed" in tried.stdout
