"""`karipap VERB` (or `python -m karipap_core VERB`): the frame around the verbs.

Exit status: 0 done; 1 an unexpected failure (one line that names a log with the traceback), a machine that cannot keep
a file (the disk is full: one sentence that names it), or a verdict of not ok (`verify`, `checklist`, and every verb
that writes a compressed folder which `verify` does not pass: the document is printed all the same, but that of `run`,
which does not measure such a folder); 2 bad input, which a place that may not be written is too; 130 cancelled.
Only the result goes to stdout: a table, or with --json exactly one JSON document. All else, that of libraries
included, goes to stderr. Nothing here imports torch: `--help` is instant.
"""

import argparse
import ctypes
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from karipap_core.cli import paces, registry, verbs
from karipap_core.cli.options import AGAINST, BASE, MERGE, MODEL
from karipap_core.cli.registry import option
from karipap_core.cluster import joined
from karipap_core.errors import Cancelled, InputError, NotVerified, StorageError
from karipap_core.jobs.job import hold_work
from karipap_core.progress import Progress, json_lines, silent
from karipap_core.progress.meter import Meter
from karipap_core.terminal import about, value
from karipap_core.version import __version__
from karipap_core.workspace.logs import keep_log

PROGRAM = "karipap"
EXTRAS = {"plotly": "app", "lm_eval": "tasks", "torchao": "peers"}  # what may be missing, and what brings it
NO_MEMORY_SAYS = "Memory ran out ({}): use a smaller model, window or batch, or a machine with more."
NO_MEMORY = (  # how libraries say it; the last two where even they, or a thread, found no place
    "out of memory",
    "allocate memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)
DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
COMMON = (
    option("--json", action="store_true", help="print the result as one JSON document instead of a table"),
    option(
        "--progress",
        choices=("auto", "json", "off"),
        default="auto",
        help="on stderr: a line for people, one JSON object a line, or nothing (default: auto)",
    ),
    option("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice; 1 on a busy machine)"),
    option(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="where profiles and measurements are kept (default: $KARIPAP_WORKSPACE, else ./workspace)",
    ),
    option("--debug", action="store_true", help="show the traceback of a failure"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Compress language models with tensor networks: profile → plan → compress → evaluate → sweep.",
        epilog="MODEL is a folder, a .safetensors or .gguf file, a hub id, or MODEL+LORA, where LORA is the folder of "
        "a LoRA to merge into it. `VERB --help` shows an example of each verb. "
        "Exit status: 0 done, 1 failed or (verify, checklist, a folder that was written) not ok, 2 bad input, 130 "
        "cancelled.",
    )
    parser.add_argument("--version", action="version", version=f"karipap {__version__}")
    subparsers = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    for entry in verbs.in_order(registry.VERBS):
        sub = subparsers.add_parser(
            entry.name,
            help=entry.help,
            description=f"{entry.help[0].upper()}{entry.help[1:]}.",
            epilog=f"example:\n  {PROGRAM} {entry.name} {entry.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        common = sub.add_argument_group("common options")
        merging = (MERGE, BASE) if MODEL in entry.options else ()
        for target, options in ((sub, entry.options + merging), (common, COMMON)):
            for each in options:
                target.add_argument(*each.flags, **each.settings)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit status (argparse itself exits, with 0 for --help and 2 for bad options)."""
    hold_work()
    args = build_parser().parse_args(argv)
    entry = registry.VERBS[args.verb]
    stops = _Stops()
    try:
        _prepare(args)
        meter = paces.meter_of(args)
        with stops, _reporter(args, meter) as reporter, _nothing_else_on_stdout() as stdout:
            progress = _Heeding(reporter, stops)
            _fetch(entry, args, progress)
            with joined(getattr(args, "ray", None), progress):
                document = entry.run(args, progress)
            paces.keep(args, meter)
            text = json.dumps(document, allow_nan=False, indent=1) if args.json else entry.render(document)
        _print(text, stdout)
    except (Exception, KeyboardInterrupt) as error:
        return _fail(args, *_reason(error, stops.asked, sys.argv[1:] if argv is None else argv))
    return _status(args, document)


def _reason(error: BaseException, asked: bool, argv: list[str]) -> tuple[str, int]:
    """What is said of an error, and the exit status; `asked`: whether the verb was asked to stop, when C code that sees
    the interrupt may raise an error of its own in its place."""
    if asked or isinstance(error, (KeyboardInterrupt, Cancelled)):
        return "cancelled; what is finished is kept, and the same command goes on from there", CANCELLED
    if isinstance(error, InputError):
        return str(error), BAD_INPUT
    if isinstance(error, (StorageError, NotVerified)):
        return str(error), FAILED
    try:
        return _in_a_line(error, argv), FAILED
    except MemoryError:  # there was not enough to write the log either
        return NO_MEMORY_SAYS.format("MemoryError"), FAILED


def _status(args: argparse.Namespace, document: dict) -> int:
    """0, or 1 for a verdict of not ok, so that a pipeline stops there; that on a folder just written is said."""
    written = document.get("verify")
    if isinstance(written, dict) and written.get("ok") is False:
        from karipap_core.compressed.verify import not_verified

        return _fail(args, not_verified(args.out, written), FAILED)
    return FAILED if document.get("ok") is False else DONE


def _prepare(args: argparse.Namespace) -> None:
    """Settings that libraries read from the environment; before any of them is imported."""
    for name, setting in (("TRANSFORMERS_VERBOSITY", "error"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, setting)
    for name in ("torchao", "torch.utils._pytree"):  # where torchao is installed, transformers imports it, and it talks
        logging.getLogger(name).setLevel(logging.ERROR)
    if args.progress != "auto" or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers heeds it too
    if args.workspace:
        if args.workspace.exists() and not args.workspace.is_dir():
            raise InputError(f"Workspace {args.workspace} is a file: name a folder.")
        os.environ["KARIPAP_WORKSPACE"] = str(args.workspace.absolute())
    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"--threads {args.threads}: at least 1.")
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(args.threads)
        if "torch" in sys.modules:  # it read them when it was imported
            sys.modules["torch"].set_num_threads(args.threads)


def _fetch(entry: registry.Verb, args: argparse.Namespace, progress: Progress) -> None:
    """Fetches the hub models that a verb's arguments name, with progress, before it opens them; an adapter to be merged
    and its base become one word."""
    from karipap_core.checkpoint import hub

    for each in (MODEL, AGAINST):
        name = getattr(args, each.name) if each in entry.options else None
        if name and hub.HUB_ID.fullmatch(name) and not os.path.lexists(name):
            hub.fetch(name, progress)
    if MODEL in entry.options and (args.merge or args.base):
        from karipap_core.checkpoint.lora.open import joined

        args.model = joined(args.model, args.base)


class _Stops:
    """Ctrl-C and SIGTERM stop the verb: at the next Python instruction, with what is finished on disk.

    `asked`: whether one of them came, as the interrupt itself may be lost: torch 2.13 turns it into a ValueError where
    it comes while `torch.asarray` looks at a sequence, as safetensors has it do for every tensor
    (findings/torch-swallows-ctrl-c.sh); who takes that for a damaged file goes on. The next step then stops the verb.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict = {}

    def _stop(self, *_) -> None:
        self.asked = True
        raise KeyboardInterrupt

    def __enter__(self) -> None:
        with suppress(ValueError):  # not in the main thread: whoever called us there handles signals
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._stop)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell ignores it for `karipap … &`
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._stop)

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Heeding:
    """A verb's progress, which stops it where it was asked to."""

    def __init__(self, progress: Progress, stops: _Stops) -> None:
        self.progress, self.stops, self.meter = progress, stops, getattr(progress, "meter", None)

    def __call__(self, *told, **more) -> None:
        if self.stops.asked:
            raise KeyboardInterrupt
        self.progress(*told, **more)


@contextmanager
def _nothing_else_on_stdout() -> Iterator:
    """Yields the real stdout; until the end everybody else's, also that of C code, is stderr."""
    sys.stdout.flush()
    real = sys.stdout
    try:
        descriptor = real.fileno()
        saved = os.dup(descriptor)
    except (OSError, AttributeError):  # a test's or a notebook's stdout
        with redirect_stdout(sys.stderr):
            yield real
        return
    try:
        os.dup2(sys.stderr.fileno(), descriptor)
        with redirect_stdout(sys.stderr):
            yield real
    finally:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # what C code printed must not come out later
        os.dup2(saved, descriptor)
        os.close(saved)


def _print(text: str, stdout) -> None:
    try:
        print(text, file=stdout, flush=True)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def _fail(args: argparse.Namespace, message: str, status: int) -> int:
    if args.debug and status != CANCELLED:
        traceback.print_exc()
    line = value(message)  # what could steer a terminal, or begin another line, may come from a file
    print(f"error: {line}" if status != CANCELLED else line, file=sys.stderr, flush=True)
    return status


def _in_a_line(error: BaseException, argv: list[str]) -> str:
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    told = isinstance(error, MemoryError) or any(words in message.lower() for words in NO_MEMORY)
    # Python's parser, out of memory in the middle of a library's file, may call that a mistake in the file.
    if told or (isinstance(error, SyntaxError) and _at_memory_limit()):
        return NO_MEMORY_SAYS.format(message)
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").split(".")[0])):
        return f"This needs {error.name}, which is not installed: pip install 'karipap[{extra}]'."
    log = keep_log(error, [PROGRAM, *argv])
    return f"{message} (unforeseen: please report it{f' with the log {log}' if log else ''})"


def _at_memory_limit() -> bool:
    """Whether this process has taken all the address space that it may, where there is a limit (`ulimit -v`)."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        peak = Path("/proc/self/status").read_text().split("VmPeak:")[1].split()[0]
    except (ImportError, OSError, IndexError):  # not every system has either
        return False
    return limit != resource.RLIM_INFINITY and 1024 * int(peak) > 0.9 * limit


@contextmanager
def _reporter(args: argparse.Namespace, meter: Meter) -> Iterator[Progress]:
    if args.progress == "json":
        yield json_lines(meter)
    elif args.progress == "off":
        yield silent
    else:
        line = _Line(sys.stderr, meter)
        try:
            yield line
        finally:
            line.clear()


def in_short(meter: Meter) -> str:
    """How far the whole work is, before what is said of its present stage: "42 %, about 3 min left: "."""
    if meter.overall is None or meter.left is None:
        return ""
    return f"{meter.overall:.0%}, about {about(meter.left)} left: "


class _Line:
    """Progress for people: on a terminal one line that writes over itself, else a line a stage and every 10 s."""

    def __init__(self, stream, meter: Meter) -> None:
        self.stream, self.terminal, self.meter = stream, stream.isatty(), meter
        self.stage: str | None = None
        self.shown = 0.0

    def __call__(self, stage: str, done: int, total: int, item: str = "", message: str = "") -> None:
        self.meter(stage, done, total)
        now = time.monotonic()
        if stage == self.stage and now - self.shown < (0.1 if self.terminal else 10.0) and done < total:
            return
        if stage == self.stage and done == total and not self.terminal:
            return
        self.stage, self.shown = stage, now
        text = " ".join(part for part in (f"{stage} {done}/{total}", item, message) if part)
        if self.terminal:
            text = f"{in_short(self.meter)}{text}"
            width = max(20, os.get_terminal_size(self.stream.fileno()).columns - 1)
            print(f"\r\033[K{text[:width]}", end="", file=self.stream, flush=True)
        else:
            print(text, file=self.stream, flush=True)

    def clear(self) -> None:
        if self.terminal and self.stage is not None:
            print("\r\033[K", end="", file=self.stream, flush=True)
