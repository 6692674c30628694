"""The frame of the command line, with small verbs in place of the real ones, and the story told once in earnest."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from karipap_core import jobs
from karipap_core.cli import frame as cli
from karipap_core.cli import registry
from karipap_core.errors import Cancelled, InputError
from karipap_core.workspace import documents

REPOSITORY = Path(cli.__file__).parents[2]
VERBS = ("profile", "plan", "compress", "evaluate", "run", "sweep", "densify", "ising", "show", "deploy")

# A program with one more verb, `noisy`, that writes everywhere and then waits if asked to.
NOISY = """
import ctypes, os, sys, time
from karipap_core.cli import frame
from karipap_core.cli.registry import option, verb
@verb("writes everywhere", "", lambda document: "table", option("--wait", action="store_true"))
def noisy(args, progress):
    print("python")
    os.write(1, b"descriptor\\n")
    ctypes.CDLL(None).puts(b"c library")
    os.system("echo child")
    progress("noise", 1, 2, "item", "message")
    while args.wait:
        time.sleep(0.02)
    return {"done": 1}
sys.exit(frame.main())
"""


def noisy(*argv, **settings) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
    return subprocess.Popen([sys.executable, "-c", NOISY, "noisy", *argv], **pipes | settings)


@pytest.fixture
def verb(monkeypatch):
    """Registers a verb `trial` for one test."""
    monkeypatch.setattr(registry, "VERBS", dict(registry.VERBS))

    def register(run, *options):
        run.__name__ = "trial"
        registry.verb("tries", "example", lambda document: f"table of {document}", *options)(run)

    return register


def test_help_is_instant_and_lists_every_verb():
    """What is imported is counted, not seconds: those say how busy the machine is."""
    code = "import sys; from karipap_core.cli import frame\n"
    code += "try:\n    frame.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert all(f"    {name} " in done.stdout for name in VERBS)
    assert {name for name in done.stderr.split() if not name.startswith("_")} <= {"karipap_core", "filelock"}


@pytest.mark.parametrize("name", VERBS)
def test_help_of_each_verb_has_an_example_that_parses(name, capsys):
    parser = cli.build_parser()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    example = text[text.index(f"{cli.PROGRAM} {name}", text.index("example:")) :].split()
    args = parser.parse_args(example[1:])
    assert args.verb == name


def test_only_the_document_is_on_stdout_whoever_writes():
    process = noisy("--json", "--progress", "json")
    out, err = process.communicate()
    assert process.returncode == 0
    assert json.loads(out) == {"done": 1}
    for word in ("python", "descriptor", "c library", "child"):
        assert word in err.splitlines()
    line = json.loads(next(line for line in err.splitlines() if line.startswith("{")))
    assert line | {"seconds": 0} == {
        "stage": "noise",
        "done": 1,
        "total": 2,
        "item": "item",
        "seconds": 0,
        "message": "message",
        "overall": None,
        "left": None,
    }


def test_without_json_a_table_is_on_stdout_and_a_closed_pipe_is_no_failure():
    process = noisy("--progress", "off")
    assert process.communicate()[0] == "table\n"
    read, write = os.pipe()
    os.close(read)
    process = noisy("--progress", "off", stdout=write)
    os.close(write)
    err = process.communicate()[1]
    assert (process.returncode, "error" in err.lower()) == (0, False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_cancel(number):
    process = noisy("--json", "--wait", "--progress", "json")
    while not process.stderr.readline().startswith("{"):
        pass
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err.strip().endswith("the same command goes on from there")
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_a_library_turns_into_an_error_of_its_own_is_a_stop(verb, capsys, number, workspace_folder):
    class Row:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            signal.raise_signal(number)

    def goes_on(args, progress):
        with suppress(ValueError):
            torch.asarray(Row())
        progress("next", 0, 1)
        pytest.fail("it went on")

    for run in (lambda args, progress: torch.asarray(Row()), goes_on):
        verb(run)
        before = signal.getsignal(number)
        assert cli.main(["trial"]) == 130
        assert capsys.readouterr().err.startswith("cancelled;")
        assert not list(workspace_folder.rglob("*.log"))
        assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (InputError("Weight x holds NaN."), 2, "error: Weight x holds NaN.\n"),
        (Cancelled(), 130, "cancelled;"),
        (RuntimeError("first\nsecond"), 1, "error: RuntimeError: first (unforeseen: please report it with the log /"),
        (InputError("two\nlines and \x1b[31m"), 2, "error: two?lines and ?[31m\n"),
        (ValueError("not the user's fault"), 1, "error: ValueError"),
        (MemoryError(), 1, "error: Memory ran out"),
        (
            ModuleNotFoundError(name="plotly"),
            1,
            "error: This needs plotly, which is not installed: pip install 'karipap[app]'",
        ),
    ],
)
def test_exit_statuses(verb, capsys, failure, status, said):
    def fails(args, progress):
        raise failure

    verb(fails)
    assert cli.main(["trial", "--json"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1
    cli.main(["trial", "--debug"])
    assert ("Traceback" in capsys.readouterr().err) is (status != 130)


def test_a_verdict_of_not_ok_is_printed_and_stops_a_pipeline(verb, capsys):
    for ok, status in ((False, 1), (True, 0)):
        verb(lambda args, progress, ok=ok: {"ok": ok})
        assert cli.main(["trial", "--json"]) == status
        assert json.loads(capsys.readouterr().out) == {"ok": ok}


def test_nan_in_a_result_is_a_failure_and_not_a_document(verb, capsys):
    verb(lambda args, progress: {"loss": float("nan")})
    assert cli.main(["trial", "--json"]) == 1
    assert capsys.readouterr().out == ""


def test_common_options_reach_the_environment(verb, capsys, monkeypatch, tmp_path):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KARIPAP_WORKSPACE"):
        monkeypatch.setenv(name, "before")
    import torch

    threads = torch.get_num_threads()
    names = ("OMP_NUM_THREADS", "KARIPAP_WORKSPACE")
    verb(lambda args, progress: {name: os.environ[name] for name in names} | {"torch": torch.get_num_threads()})
    try:
        assert cli.main(["trial", "--json", "--threads", "2", "--workspace", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert json.loads(capsys.readouterr().out) == dict(zip(names, ("2", str(tmp_path)), strict=True)) | {"torch": 2}
    (tmp_path / "file").touch()
    for argv in (["--threads", "0"], ["--workspace", str(tmp_path / "file")]):
        assert cli.main(["trial", *argv]) == 2


def test_progress_for_people_is_a_line_now_and_then(verb, capsys, monkeypatch):
    def works(args, progress):
        for stage in ("read", "write"):
            for done in range(1001):
                progress(stage, done, 1000, f"item {done}")
        return {}

    verb(works)
    cli.main(["trial"])
    assert capsys.readouterr().err.splitlines() == ["read 0/1000 item 0", "write 0/1000 item 0"]
    cli.main(["trial", "--progress", "off"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["plan", "model", "--budget", "1.2"],
        ["plan", "model", "--budget", "0"],
        ["plan", "model", "--budget", "nan"],
        ["plan", "model", "--budget", "much"],
        ["sweep", "model", "--networks", "lowrank", "--budgets", "0.9,x", "--out", "runs"],
        ["evaluate", "folder", "--max-tokens", "0"],
        ["compress", "model"],
    ],
)
def test_bad_options_are_bad_input(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err


@pytest.mark.parametrize(
    "argv",
    [
        ["profile", "no/such/model"],
        ["plan", "no/such/model", "--budget", "0.5"],
        ["compress", "no/such/model", "--plan", "plan.json", "--out", "out"],
        ["evaluate", "no/such/folder"],
        ["densify", "no/such/folder", "--out", "out"],
        ["show", "no/such/file"],
    ],
)
def test_what_is_not_there_is_bad_input_in_one_line(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*argv, "--json", "--progress", "off"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_the_story_from_profile_to_dense_folder(tmp_path, capsys, monkeypatch):
    """Each verb once on a small model, the first as a job of its own; the numbers agree with one another."""
    from tests.helpers.architectures import make

    make("llama", tmp_path / "model")
    (tmp_path / "text.txt").write_text("def f(x):\n    return x + 1\n\n" * 200)
    monkeypatch.chdir(tmp_path)

    job = jobs.start(["profile", "model", "--text", "text.txt", "--network", "mpo", "--out", "profile"], "Profile")

    def run(*argv: str) -> dict:
        status = cli.main([*argv, "--json", "--progress", "off"])
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out)

    plan = run("plan", "model", "--budget", "0.8", "--rule", "loss", "--text", "text.txt", "--out", "plan.json")
    assert plan == json.loads(Path("plan.json").read_text())
    assert 0.75 < plan["predicted"]["kept"] <= 0.8

    takes = [
        run("profile", "model", "--dry-run"),
        run("plan", "model", "--budget", "0.8", "--dry-run", "--measure", "all"),
        run("compress", "model", "--plan", "plan.json", "--out", "compressed", "--dry-run"),
    ]
    for document, what in zip(takes, ("profile", "plan", "compress"), strict=True):
        assert document["format"] == "karipap-estimate" and document["what"] == what
        assert document["seconds"] == pytest.approx(
            sum(
                row["operations"][kind] / document["speeds"][kind]
                for row in document["parts"]
                for kind in row["operations"]
            )
        )
    assert "every weight cut alone" in [row["part"] for row in takes[1]["parts"]]
    assert takes[2]["kept"]["the compressed model"] == plan["predicted"]["bytes"] and not Path("compressed").exists()
    assert cli.main(["profile", "model", "--dry-run"]) == 0
    assert "memory at most" in capsys.readouterr().out

    written = run("compress", "model", "--plan", "plan.json", "--out", "compressed")
    assert written["kept"] == pytest.approx(plan["predicted"]["kept"])
    assert {row["name"] for row in written["weights"]} == {
        n for n, e in plan["weights"].items() if e["network"] != "dense"
    }

    measured = run("evaluate", "compressed", "--against", "model", "--text", "text.txt", "--max-tokens", "500")
    assert measured["loss"] - measured["dense"]["loss"] == pytest.approx(measured["rise"])
    assert measured["kl"] > 0

    run("densify", "compressed", "--out", "dense")
    dense = run("evaluate", "dense", "--against", "compressed", "--text", "text.txt", "--max-tokens", "500")
    assert dense["loss"] == pytest.approx(measured["loss"], rel=1e-4)
    assert dense["kl"] == pytest.approx(0, abs=1e-6)

    while (status := job.status())["state"] not in jobs.ENDED:
        time.sleep(0.1)
    assert status["state"] == "done", status["log_tail"]
    profiled = job.result()
    assert profiled["fingerprint"] == plan["model"]["fingerprint"]
    assert set(profiled["weights"][1]["spectra"]) == {"weight", "functional", "loss"}
    assert documents.find("profile") == profiled
    assert cli.main(["show", "compressed"]) == 0
    assert f"{written['kept']:.1%} kept" in capsys.readouterr().out
