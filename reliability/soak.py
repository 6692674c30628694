"""`make soak`: verbs killed at random moments, on full disks, without memory, beside one another; nothing may be lost.

A round gives a verb a folder of its own (workspace and outputs), starts it, kills it once or twice at random moments of
its length (SIGKILL, one in five SIGTERM), in every third round damages a file that is there by then, and starts the
same command again. That must end well and leave the very files of an undisturbed run, byte for byte but for times and
paths; nothing that was finished when the kill came may be gone. Then come the other troubles: a disk that runs full
(a small tmpfs, or without the right to mount one a limit for files), little memory (ulimit -v), a workspace to read
alone, a clock set back by a month, two writers at once. Each may end a verb with one sentence, and the command has to
complete afterwards as if nothing had been.

The processes are forks of one that has imported torch and transformers, so that a round takes seconds.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from karipap_core.cli import frame  # noqa: E402  (torch reads the environment when it is imported)

VERBS = ("profile", "plan", "compress", "heal", "sweep", "run", "autopilot")
TROUBLES = ("full disk", "file-size limit", "ulimit -v", "read-only", "clock set back", "two writers")
VOLATILE = {
    "seconds",
    "created",
    "date",
    "seal",
    "speed",
    "memory",
    "environment",
    "used",
}  # fields that tell of one run alone
WORK = (".tmp", ".lock", ".partial.json")
KEEP = Path(os.environ["SOAK_KEEP"]) if "SOAK_KEEP" in os.environ else None  # where rounds that differ stay
LONGEST = 300.0  # seconds that a start may take
TEXT = "<|endoftext|>".join(f"the square of {n} is {n * n}, its cube {n**3}\n" for n in range(160))


@dataclass
class World:
    """What all rounds share: the model, texts, a plan, a compressed folder, and a workspace with its measurements."""

    root: Path

    def argv(self, verb: str, home: Path) -> list[str]:
        """The command of a verb whose outputs go into `home`."""
        model, text, out = str(self.root / "model"), str(self.root / "text.txt"), str(home / "out")
        measure = ["--text", text, "--max-tokens", "512", "--window", "64"]
        rest = {
            "profile": [model, "--metrics", "weight,functional,loss", "--text", text, "--out", out],
            "plan": [model, "--budget", "0.7", "--rule", "calibrated", "--text", text, "--out", f"{out}.json"],
            "compress": [model, "--plan", str(self.root / "plan.json"), "--out", out],
            "heal": [str(self.root / "compressed"), "--text", text, "--steps", "6", "--every", "2", "--out", out]
            + ["--tokens", "128", "--window", "64"],
            "sweep": [model, "--budgets", "0.8,0.7", "--rules", "uniform,calibrated", "--out", out, *measure],
            "run": [model, "--plan", str(self.root / "plan.json"), "--out", out, *measure],
            "autopilot": [model, "--max-rise", "0.05", "--max-evaluations", "2", "--out", out, *measure],
        }[verb]
        return [verb, *rest, "--workspace", str(home / "workspace"), "--device", "cpu"]

    def fresh(self, name: str, warm: bool) -> Path:
        """A round's folder, with the measurements that a plan needs where it is to be warm."""
        home = self.root / "rounds" / name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        if warm:
            shutil.copytree(self.root / "warm", home / "workspace")
        return home


@dataclass
class Child:
    """A start of the command line in a process of its own."""

    pid: int
    home: Path
    began: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = LONGEST) -> int | None:
        """The exit status (negative: the signal), None where it still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.002)

    def end(self) -> tuple[int, str]:
        """(exit status, what was said on stderr); a start that hangs is killed and raises."""
        status = self.wait()
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
            raise TimeoutError(f"{self.home}: no end after {LONGEST:.0f} s")
        return status, said_by(self.home, "stderr").read_text(errors="replace")


def said_by(home: Path, stream: str) -> Path:
    """Where a start writes what it says: beside the round's folder, which may be full or closed."""
    return home.with_name(f"{home.name}.{stream}")


def start(argv: list[str], home: Path, before: Callable[[], None] = lambda: None) -> Child:
    """Forks, and runs the command there; `before` is called first in the new process."""
    pid = os.fork()
    if pid:
        return Child(pid, home)
    status = 70
    try:
        for number, said in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(said_by(home, said), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        before()
        try:
            status = frame.main(argv)
        except SystemExit as stop:
            status = int(stop.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


# What is on disk.


def finished(home: Path) -> set[str]:
    """The files of a round that stand under their last names."""
    return {
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and not unfinished(path.relative_to(home))
    }


def unfinished(path: Path) -> bool:
    """Whether a file is work in progress, or of the cache, which goes by times: a name on its path says so."""
    hidden = any(part[0] == "." for part in path.parts)
    return hidden or not {"partial", "cache"}.isdisjoint(path.parts) or path.name.endswith(WORK)


def tree(home: Path) -> dict[str, bytes]:
    """Every finished file → its bytes; of JSON without what tells of one run alone, and with no path of the round."""
    found = {}
    for name in finished(home):
        data = (home / name).read_bytes()
        if name.endswith(".json"):
            with suppress(ValueError):  # it was damaged, and nobody has read it since
                document = json.loads(data.replace(str(home).encode(), b"HOME"))
                data = json.dumps(_steady(document), sort_keys=True).encode()
        found[name] = data
    return found


def _steady(value):
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if key not in VOLATILE}
    return [_steady(each) for each in value] if isinstance(value, list) else value


def differences(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    missing = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    more = [f"{name} is one too many" for name in sorted(found.keys() - wanted.keys())]
    return (
        missing + more + [f"{name} differs" for name in sorted(wanted) if found.get(name, wanted[name]) != wanted[name]]
    )


def left_behind(home: Path) -> list[str]:
    """Locks, parts and half-written folders that are there although the command is done."""
    names = (".lock", ".partial", ".parts", ".healing", "partial", ".partial.json")
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.name.endswith(names))


def damage(home: Path, rng: random.Random) -> str | None:
    """Flips a bit of a random file that is kept, or cuts it; returns which. Reports are left alone: a folder whose
    report is damaged is nobody's, and is refused."""
    kept = [path for path in sorted(home.rglob("*")) if path.suffix in (".safetensors", ".json") and path.is_file()]
    kept = [path for path in kept if path.name != "karipap.json" and path.stat().st_size]
    if not kept:
        return None
    path = rng.choice(kept)
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(data)
    return str(path.relative_to(home))


# The rounds.


@dataclass
class Soak:
    """All rounds of a seed. `figures`: what was counted, for each verb or trouble; `faults`: what did not hold."""

    world: World
    seed: int
    verbs: tuple[str, ...] = VERBS
    figures: dict[str, Counter] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    wanted: dict[tuple[str, bool], dict[str, bytes]] = field(default_factory=dict)
    length: dict[tuple[str, bool], float] = field(default_factory=dict)

    def prepare(self) -> None:
        """The model, a plan, a compressed folder, and a workspace with all that a plan of this model measures."""
        from tests.helpers.architectures import make

        root = self.world.root
        make("llama", root / "model")
        (root / "text.txt").write_text(TEXT)
        home = self.world.fresh("first", warm=False)
        self._must(self.world.argv("plan", home), home)
        shutil.copy(home / "out.json", root / "plan.json")
        for path in home.rglob("*.json"):
            if str(home) in path.read_text():
                raise SystemExit(f"error: {path} names the folder of its round")
        shutil.copytree(home / "workspace", root / "warm")
        argv = self.world.argv("compress", home)
        self._must(argv, home)
        shutil.move(home / "out", root / "compressed")

    def _must(self, argv: list[str], home: Path) -> None:
        status, said = start(argv, home).end()
        if status:
            raise SystemExit(f"error: {' '.join(argv)} ended with {status}: {said}")

    def undisturbed(self, verb: str, warm: bool) -> None:
        """What the verb leaves, and how long it takes. Done twice: what differs then could not be compared."""
        if (verb, warm) in self.wanted:
            return
        trees = []
        for _ in range(2):
            home = self.world.fresh(f"undisturbed-{verb}-{warm}", warm)
            began = time.monotonic()
            self._must(self.world.argv(verb, home), home)
            self.length[verb, warm] = time.monotonic() - began
            trees.append(tree(home))
        if wrong := differences(*trees):
            raise SystemExit(f"error: two undisturbed runs of {verb} differ: {', '.join(wrong)}")
        self.wanted[verb, warm] = trees[0]

    def count(self, row: str, what: str, by: int = 1) -> None:
        self.figures.setdefault(row, Counter())[what] += by

    def complete(self, row: str, verb: str, warm: bool, home: Path, had: set[str], damaged: str | None = None) -> None:
        """The command once more, undisturbed; what is not as it must be is noted.

        A damaged file that nobody read may stay as it is, and a calibration that had to be measured anew has another
        history of versions.
        """
        before = (home / damaged).read_bytes() if damaged else b""
        status, said = start(self.world.argv(verb, home), home).end()
        last = said.strip().splitlines()[-1:] or ["nothing"]
        if status:
            self.count(row, "not completed")
            self.faults.append(f"{home.name}: ended with {status}: {last[0]}")
            return
        self.count(row, "completed")
        found = tree(home)
        if lost := sorted(had - found.keys()):
            self.count(row, "lost")
            self.faults.append(f"{home.name}: lost {', '.join(lost)}")
        unread = damaged and (home / damaged).exists() and (home / damaged).read_bytes() == before
        wrong = differences(found, self.wanted[verb, warm])
        if damaged and ("/calibration/" in damaged or unread):
            wrong = [each for each in wrong if not each.startswith(f"{damaged} ")]
        if wrong:
            self.count(row, "differing")
            self.faults.append(f"{home.name} ({damaged or 'nothing'} damaged): {', '.join(wrong[:5])}")
            shutil.copytree(home, KEEP / home.name, dirs_exist_ok=True) if KEEP else None
        if left := left_behind(home):
            self.count(row, "left behind")
            self.faults.append(f"{home.name}: left behind {', '.join(left[:5])}")

    def kills(self, number: int) -> None:
        """One round: a verb is killed once or twice, perhaps damaged, and completed."""
        rng = random.Random(f"{self.seed} {number}")
        verb = self.verbs[number % len(self.verbs)]
        warm = verb not in ("profile", "plan") and rng.random() < 0.75
        self.undisturbed(verb, warm)
        home = self.world.fresh(f"{number:04d}-{verb}", warm)
        had: set[str] = set()
        self.count(verb, "rounds")
        for _ in range(rng.choice((1, 1, 2))):
            child = start(self.world.argv(verb, home), home)
            if child.wait(rng.uniform(0.0, 1.05) * self.length[verb, warm]) is not None:
                break  # it was done before the kill came
            by = signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL
            os.kill(child.pid, by)
            self.count(verb, "hit" if child.wait() in (-signal.SIGKILL, 130, -signal.SIGTERM) else "late")
            had |= finished(home)
        name = damage(home, rng) if rng.random() < 1 / 3 else None
        self.count(verb, "damaged", name is not None)
        self.complete(verb, verb, warm, home, had - {name}, name)
        shutil.rmtree(home, ignore_errors=True)

    # The other troubles.

    def trouble(self, kind: str, number: int) -> None:
        rng = random.Random(f"{self.seed} {kind} {number}")
        verb = self.verbs[rng.randrange(len(self.verbs))]
        warm = verb not in ("profile", "plan")
        self.undisturbed(verb, warm)
        home = self.world.fresh(f"{kind.replace(' ', '-')}-{number}-{verb}", warm)
        self.count(kind, "rounds")
        method = {
            "full disk": self._full_disk,
            "file-size limit": self._limit(resource.RLIMIT_FSIZE, lambda: rng.choice((64, 4096, 30_000, 100_000))),
            "ulimit -v": self._limit(resource.RLIMIT_AS, lambda: _used() + rng.randrange(1 << 20, 64 << 20)),
            "read-only": self._read_only,
            "clock set back": self._clock,
            "two writers": self._two,
        }[kind]
        method(kind, verb, warm, home, rng)
        shutil.rmtree(home, ignore_errors=True)

    def refused(self, row: str, home: Path, status: int, said: str, allowed: tuple[int, ...]) -> None:
        """A start that trouble may have ended: with one of these statuses, one sentence and no traceback."""
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        if status == 0:
            self.count(row, "unharmed")
        elif status in allowed and len(errors) == 1 and "Traceback" not in said:
            self.count(row, "refused")
        else:
            self.count(row, "badly refused")
            self.faults.append(f"{home.name}: ended with {status}: {said.strip()[-300:]}")

    def _limit(self, which: int, most: Callable[[], int]):
        def tried(kind: str, verb: str, warm: bool, home: Path, rng: random.Random) -> None:
            def before() -> None:
                size = most()
                resource.setrlimit(which, (size, size))

            status, said = start(self.world.argv(verb, home), home, before).end()
            self.refused(kind, home, status, said, (1,))
            self.complete(kind, verb, warm, home, finished(home))

        return tried

    def _full_disk(self, kind: str, verb: str, warm: bool, home: Path, rng: random.Random) -> None:
        """The round's folder has room for a part of what the verb writes."""
        needed = sum(map(len, self.wanted[verb, warm].values()))
        had = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        size = had + 65536 + int(rng.uniform(0.0, 1.0) * max(needed - had, 0))
        with mounted(home, f"size={size}") as there:
            if not there:
                return self._limit(resource.RLIMIT_FSIZE, lambda: 30_000)(kind, verb, warm, home, rng)
            status, said = start(self.world.argv(verb, home), home).end()
            self.refused(kind, home, status, said, (1,))
            remount(home, "size=1g")
            self.complete(kind, verb, warm, home, finished(home))
        return None

    def _read_only(self, kind: str, verb: str, warm: bool, home: Path, rng: random.Random) -> None:
        """Work is refused in a sentence, what only reads is done."""
        with mounted(home, "size=1g") as there:
            remount(home, "ro") if there else _chmod(home, 0o555)
            status, said = start(self.world.argv(verb, home), home).end()
            self.refused(kind, home, status, said, (2,))
            status, said = start(["show", str(self.world.root / "compressed")], home).end()
            self.refused(kind, home, status, said, ())
            remount(home, "rw") if there else _chmod(home, 0o755)
            self.complete(kind, verb, warm, home, finished(home))

    def _clock(self, kind: str, verb: str, warm: bool, home: Path, rng: random.Random) -> None:
        """Killed once, then completed while the clock is a month back: all that is there seems to be of the future."""
        child = start(self.world.argv(verb, home), home)
        if child.wait(rng.uniform(0.2, 0.9) * self.length[verb, warm]) is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        had, month, now = finished(home), 30 * 86400.0, time.time

        def before() -> None:
            time.time = lambda: now() - month

        status, said = start(self.world.argv(verb, home), home, before).end()
        self.refused(kind, home, status, said, ())
        self.complete(kind, verb, warm, home, had)

    def _two(self, kind: str, verb: str, warm: bool, home: Path, rng: random.Random) -> None:
        """The same command twice at once: one completes, the other waits, finds it done, or is told who writes."""
        argv, beside = self.world.argv(verb, home), home.with_name(f"{home.name}-beside")
        one, other = start(argv, home), start(argv, beside, lambda: time.sleep(rng.uniform(0.0, 0.5)))
        ends = [child.end() for child in (one, other)]
        if all(status for status, _ in ends):
            self.faults.append(f"{home.name}: both were refused: {ends}")
            self.count(kind, "not completed")
        for status, said in ends:
            self.refused(kind, home, status, said, (2,))
        self.complete(kind, verb, warm, home, finished(home))


@contextmanager
def mounted(home: Path, options: str) -> Iterator[bool]:
    """A tmpfs in the place of a folder, with what that holds; False where this user may not mount."""
    aside = home.with_name("aside")
    home.rename(aside)
    home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "soak", str(home)]
    if subprocess.run(command, capture_output=True).returncode:
        home.rmdir()
        aside.rename(home)
        yield False
        return
    try:
        shutil.copytree(aside, home, dirs_exist_ok=True)
        shutil.rmtree(aside)
        yield True
    finally:
        subprocess.run(["umount", str(home)], check=True)


def remount(home: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(home)], check=True)


def _used() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _chmod(home: Path, mode: int) -> None:
    for path in (home, *home.rglob("*")):
        if path.is_dir():
            path.chmod(mode)


def table(figures: dict[str, Counter]) -> Iterator[str]:
    """A line for each verb and trouble, and one for all."""
    columns = ("rounds", "hit", "late", "damaged", "refused", "unharmed", "completed")
    columns += ("not completed", "badly refused", "lost", "differing", "left behind")
    yield f"{'':16}" + "".join(f"{column:>15}" for column in columns)
    total: Counter = Counter()
    for row, counted in figures.items():
        total += counted
        yield f"{row:16}" + "".join(f"{counted[column]:15}" for column in columns)
    yield f"{'all':16}" + "".join(f"{total[column]:15}" for column in columns)


def soak(
    rounds: int,
    troubles: int,
    seed: int,
    root: Path,
    verbs: tuple[str, ...] = VERBS,
    kinds: tuple[str, ...] = TROUBLES,
    show: Callable[[str], None] = print,
) -> list[str]:
    """Runs so many rounds of kills and so many of each other kind of trouble; returns what did not hold."""
    import transformers.models.llama.modeling_llama  # noqa: F401  (once, for all forks)

    import karipap_core.compressed.compress
    import karipap_core.healing.heal
    import karipap_core.plan.probe
    import karipap_core.tradeoffs.autopilot
    import karipap_core.tradeoffs.run  # noqa: F401

    work = Soak(World(root), seed, verbs)
    began = time.monotonic()
    work.prepare()
    for number in range(rounds):
        work.kills(number)
        if number % 20 == 19:
            show(f"{number + 1} rounds of kills, {time.monotonic() - began:.0f} s, {len(work.faults)} faults")
    for kind in kinds:
        for number in range(troubles):
            work.trouble(kind, number)
    for line in table(work.figures):
        show(line)
    show(f"seed {seed}, {time.monotonic() - began:.0f} s; nothing lost, nothing wrong" if not work.faults else "")
    return work.faults


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills, full disks and other troubles at random moments.")
    parser.add_argument("--rounds", type=int, default=210, help="rounds of kills, dealt to the verbs (default: 210)")
    parser.add_argument("--troubles", type=int, default=7, help="rounds of each other trouble (default: 7)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        faults = soak(args.rounds, args.troubles, args.seed, Path(folder).resolve())
    for fault in faults:
        print(f"fault: {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
