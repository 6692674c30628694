"""Measure what the shipped runs lack: the two bundled benchmark tasks, and the intervals of runs older than those.

    python assets/demo_model/complete.py [--limit ITEMS]

Each run of `karipap/runs` is measured anew in memory from its own plan or baseline, and its run.json rewritten whole
under the same id; finished ones are passed over, so that the same command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from karipap_core.errors import InputError  # noqa: E402
from karipap_core.evaluation.tasks.python import NAMES  # noqa: E402
from karipap_core.evaluation.tasks.suite import Suite  # noqa: E402
from karipap_core.plan.study import Study  # noqa: E402
from karipap_core.progress import json_lines  # noqa: E402
from karipap_core.text import standard_library  # noqa: E402
from karipap_core.tradeoffs.point import Point  # noqa: E402
from karipap_core.tradeoffs.points import Points  # noqa: E402
from karipap_core.tradeoffs.sweep import DEFAULT_SCORING  # noqa: E402
from karipap_core.workspace.runs import read_runs  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="items of each task (default: all)")
    progress, limit = json_lines(), parser.parse_args().limit
    study, suite = Study(HERE, progress=progress), Suite(NAMES, limit=limit, progress=progress)
    runs, failed = read_runs(HERE / "karipap" / "runs"), 0
    points = Points(study, standard_library("heldout"), HERE / "karipap", DEFAULT_SCORING, suite, progress)
    for number, run in enumerate(runs):
        progress("complete", number, len(runs), run["label"])
        try:
            points.complete(Point.from_json(run))
        except InputError as error:
            failed += 1
            print(error, file=sys.stderr)
    progress("complete", len(runs), len(runs))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
