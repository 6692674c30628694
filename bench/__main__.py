"""`make bench`: runs every bench/*.py (or those named) in a process of its own and shows what it prints.

A benchmark is a script that prints its table and ends with 0. Each says at its top what it measures and on what.
`goals` is the one with the packages that people would otherwise use; it runs in their environment (PEERS_PYTHON).
`peers` and `exports`, which have environments of their own and take long, run when they are named (`make peers`,
`make engines`).
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from karipap_core.workspace.runs import environment

HERE = Path(__file__).parent
APART = {"exports", "peers"}


def main(wanted: list[str]) -> int:
    found = {path.stem: path for path in sorted(HERE.glob("[a-z]*.py"))}
    if unknown := [name for name in wanted if name not in found]:
        print(f"error: no benchmark {unknown[0]!r}; there are: {', '.join(found) or 'none'}", file=sys.stderr)
        return 2
    # One thread unless asked otherwise: on a busy machine a second one costs more than it brings.
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | os.environ
    os.environ.update(settings)
    about = environment()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(
        f"{about['system']}, {about['cpus']} cpus, {about['threads']} thread(s), Python {about['python']}, {versions}"
    )
    failed = []
    for name in wanted or [name for name in found if name not in APART]:
        began = time.monotonic()
        print(f"\n== {name}", flush=True)
        python = os.environ.get("PEERS_PYTHON", sys.executable) if name == "goals" else sys.executable
        if subprocess.run([python, "-m", f"bench.{name}"], cwd=HERE.parent).returncode:
            failed.append(name)
        print(f"({time.monotonic() - began:.1f} s)", flush=True)
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
