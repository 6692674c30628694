"""`make fuzz`: gives our readers (targets.py) damaged input for ten minutes, and prints what each did with it.

    python -m reliability.fuzz [--seconds 600] [--seed 1] [TARGET ...]

Each target runs in a process of its own for an equal share of the time, guided by the coverage of `karipap_core` where
atheris is installed, else at random. An input counts as a fault where the reader raises anything but InputError,
contradicts itself, or takes over `SLOW` seconds; it is kept in build/fuzz/<target>/, one of each kind. Ends with 1
where there was a fault.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from karipap_core.terminal import grid
from reliability.targets import TARGETS, Target

KEPT = Path("build") / "fuzz"
SLOW = 5.0  # seconds for one input
LARGEST = 4096  # bytes that drive one input


class Tally:
    """Counts inputs, and keeps one input of each kind of fault."""

    def __init__(self, target: Target, report: Path) -> None:
        self.target, self.report = target, report
        self.began = time.monotonic()
        self.inputs = self.taken = 0
        self.faults: dict[str, int] = {}

    def try_one(self, data: bytes) -> None:
        began = time.monotonic()
        self.inputs += 1
        try:
            self.taken += self.target.tried(data)
        except Exception as fault:
            self._fault(_named(fault), data)
        if (took := time.monotonic() - began) > SLOW:
            self._fault(f"over {SLOW:g} s", data, f"{took:.1f} s")
        if self.inputs % 50 == 1:
            self.write()

    def _fault(self, kind: str, data: bytes, detail: str = "") -> None:
        if kind not in self.faults:
            folder = KEPT / self.target.name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^A-Za-z0-9.]+", "-", kind)[:80].strip("-")
            (folder / f"{name}.input").write_bytes(data)
            (folder / f"{name}.txt").write_text(detail or traceback.format_exc(), "utf-8")
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.write()

    def write(self) -> None:
        """libFuzzer ends the process without a word to Python: what was counted is on disk all the time."""
        seconds = time.monotonic() - self.began
        counted = {"inputs": self.inputs, "taken": self.taken, "faults": self.faults, "seconds": seconds}
        self.report.write_text(json.dumps(counted))


def _named(fault: Exception) -> str:
    """A fault by its class and the last line of ours that it passed."""
    ours = [frame for frame in traceback.extract_tb(fault.__traceback__) if "karipap_core" in frame.filename]
    where = f"{Path(ours[-1].filename).stem}.{ours[-1].name}" if ours else "target"
    return f"{type(fault).__name__} in {where}"


def _warm(target: Target) -> None:
    """Reads every valid input once: what they need is imported, and they must all be taken."""
    for seed in target.seeds():
        if not target.tried(seed):
            raise SystemExit(f"{target.name}: a valid input is refused.")


def fuzz(target: Target, seconds: int, seed: int, report: Path) -> None:
    """One target in this process, for about `seconds`."""
    try:
        import atheris
    except ImportError:
        _at_random(target, seconds, seed, report)
        return
    with atheris.instrument_imports(include=["karipap_core"]):
        _warm(target)
    tally = Tally(target, report)

    def one(data: bytes) -> None:
        source = atheris.FuzzedDataProvider(data)
        tally.try_one(
            target.made(
                lambda below: source.ConsumeIntInRange(0, below - 1),
                lambda: source.ConsumeBytes(source.ConsumeIntInRange(0, 256)),
            )
        )

    with tempfile.TemporaryDirectory() as corpus:
        generator = random.Random(seed)
        for number in range(50):
            (Path(corpus) / str(number)).write_bytes(generator.randbytes(generator.randrange(16, 400)))
        options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LARGEST}", "-rss_limit_mb=6000"]
        atheris.Setup([sys.argv[0], *options, "-timeout=60", "-verbosity=0", corpus], one)
        atheris.Fuzz()


def _at_random(target: Target, seconds: int, seed: int, report: Path) -> None:
    _warm(target)
    tally, generator = Tally(target, report), random.Random(seed)
    while time.monotonic() - tally.began < seconds:
        tally.try_one(target.made(generator.randrange, lambda: generator.randbytes(generator.randrange(256))))
    tally.write()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Fuzz Karipap's own readers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="in all (default: 600)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := [name for name in args.targets if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    if args.report:
        fuzz(TARGETS[args.targets[0]], args.seconds, args.seed, args.report)
        return 0
    names = args.targets or list(TARGETS)
    rows, bad = [], False
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            print(f"{name} ({number + 1} of {len(names)})", file=sys.stderr, flush=True)
            report = Path(folder) / "report.json"
            share = max(1, args.seconds // len(names))
            options = ["--seconds", str(share), "--seed", str(args.seed), "--report", str(report)]
            ended = subprocess.run([sys.executable, "-m", "reliability.fuzz", name, *options], capture_output=True)
            found = json.loads(report.read_text()) if report.is_file() else {"inputs": 0, "taken": 0, "faults": {}}
            report.unlink(missing_ok=True)
            if ended.returncode or not found["inputs"]:
                found["faults"][f"the process ended with {ended.returncode}"] = 1
                print(ended.stderr.decode("utf-8", "replace")[-3000:], file=sys.stderr)
            faults = ", ".join(f"{kind} ({count})" for kind, count in found["faults"].items()) or "none"
            rows.append([name, f"{found['inputs']:,}", f"{found['taken']:,}", faults])
            bad |= bool(found["faults"])
    print(grid(["target", "inputs", "taken as valid", "faults"], rows))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
