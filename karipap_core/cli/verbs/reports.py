"""What is on disk already, for reading: one document as a table, two side by side, many as a report."""

import argparse
from pathlib import Path

from karipap_core.cli.registry import option, verb
from karipap_core.cli.tables import anything, table
from karipap_core.progress import Progress


@verb(
    "a profile, plan, run or compressed folder as a table",
    "plan.json",
    anything,
    option("path", metavar="PROFILE|PLAN|RUN", type=Path, help="a profile's folder, a plan, a run.json, a sweep …"),
)
def show(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.tradeoffs.point import called
    from karipap_core.workspace.documents import find

    found = find(args.path)
    return called([found])[0] if found.get("format") == "karipap-run" else found


@verb(
    "two plans, runs, compressed folders or models side by side: weights, figures with intervals, prompts",
    "one.json two.json",
    table("compare"),
    option("a", metavar="A", help="a plan, run.json, compressed folder or model, or the name of one in the workspace"),
    option("b", metavar="B", help="what to compare it with"),
)
def compare(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.tradeoffs.compare import compare as side_by_side

    return side_by_side(args.a, args.b)


@verb(
    "a report to send: measured runs as one HTML file that needs no network, with CSV, JSON and plans beside it",
    "sweep/ --out report.html",
    table("report"),
    option("runs", metavar="RUN", nargs="+", help="run.json files, folders of runs, sweeps, or names of runs"),
    option("--out", type=Path, default=Path("report.html"), metavar="FILE", help="the file (default: report.html)"),
)
def report(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.reports.report import report as write

    return write(args.runs, args.out, progress)
