"""`python -m reliability.architectures [names or kinds …]`: the conformance run over architectures."""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

SECONDS = 120.0  # that one architecture may take


def main() -> int:
    """Prints the table and ends with 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m reliability.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types or kinds (causal, encoder, …); default: all")
    parser.add_argument("--folder", type=Path, help="where checkpoints and rows are kept: those of others stay")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--quick", action="store_true", help="only what is covered, and the folder at full rank")
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        os.environ["KARIPAP_WORKSPACE"] = str(folder / "workspace")
        os.environ["HF_HUB_OFFLINE"] = "1"
        return _run(given.names, folder, given.jobs, not given.quick, given.write)


def _run(names: Sequence[str], folder: Path, jobs: int, whole: bool, write: bool) -> int:
    import torch
    from transformers.utils import logging

    from reliability.architectures import table
    from reliability.architectures.chain import Row
    from reliability.architectures.listing import architectures

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    wanted = [each for each in architectures() if not names or each.name in names or each.kind in names]
    began, kept = time.monotonic(), folder / "rows.json"
    rows = {each["name"]: Row(**each) for each in json.loads(kept.read_text("utf-8"))} if kept.exists() else {}
    for number, row in enumerate(_rows(wanted, folder, jobs, whole), 1):
        rows[row.name] = row
        print(f"{number}/{len(wanted)} {row.name}: {row.verdict} {table.why(row)[:160]}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([rows[name].to_json() for name in sorted(rows)], indent=1), "utf-8")
    found = [rows[name] for name in sorted(rows)]
    print(table.plain([row for row in found if row.name in {each.name for each in wanted}]))
    print(*table.summary(found), f"{time.monotonic() - began:.0f} s.", sep="\n")
    if write:
        print(f"written: {table.write(found)}")
    return int(any(row.verdict == "wrong" for row in found))


def _rows(wanted: Sequence, folder: Path, jobs: int, whole: bool) -> Iterator:
    """A row for each architecture, in a process of its own that has everything imported, as they end."""
    from reliability.architectures.chain import Row

    context, waiting = multiprocessing.get_context("fork"), list(wanted)[::-1]
    running: dict[Connection, tuple[ForkProcess, Row, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            each = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_one, args=(each, folder / each.name, whole, sender))
            process.start()
            sender.close()
            empty = Row(each.name, each.class_name, each.kind)
            running[receiver] = process, empty, time.monotonic() + SECONDS
        for receiver in wait(list(running), timeout=1):
            process, row, _ = running.pop(receiver)
            try:
                row = Row(**receiver.recv())
            except EOFError:
                process.join()
                row.steps["process"] = row.faults["process"] = f"ended with status {process.exitcode}"
            process.join()
            yield row
        for receiver, (process, row, latest) in list(running.items()):
            if time.monotonic() > latest:
                process.kill()
                del running[receiver]
                row.steps["time"] = row.faults["time"] = f"more than {SECONDS:.0f} s"
                yield row


def _one(architecture, folder: Path, whole: bool, sender: Connection) -> None:
    from reliability.architectures.chain import run

    sender.send(run(architecture, folder, whole).to_json())


if __name__ == "__main__":
    raise SystemExit(main())
