"""`python -m tests.bad_input`: how many cases of each kind hold, and what keeps the others from it."""

import os
import sys
import tempfile
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(name, "1")

from tests import bad_input  # noqa: E402  (torch reads the environment when it is imported)


def main() -> int:
    bad_input.warm()
    total = held = 0
    slowest = 0.0
    for kind, cases in bad_input.kinds().items():
        faults = []
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                outcome = bad_input.run(case, Path(folder))
            slowest = max(slowest, outcome.seconds)
            if fault := outcome.wrong(case):
                faults.append(f"  {case.name}: {fault}")
        figures = f"{kind:12} {len(cases):4} cases, {len(cases) - len(faults):4} held, {len(faults):3} not"
        print(figures, *faults, sep="\n")
        total, held = total + len(cases), held + len(cases) - len(faults)
    print(f"{'all':12} {total:4} cases, {held:4} held, {total - held:3} not; the slowest took {slowest:.1f} s")
    return int(held < total)


sys.exit(main())
