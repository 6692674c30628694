"""Work over a cluster gives what it gives here, byte for byte, with a worker killed on the way."""

import json
import sys
from pathlib import Path

import psutil
import pytest

from karipap_core import cluster
from karipap_core.compressed.compress import compress
from karipap_core.errors import InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.budget import Budget
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make
from tests.helpers.studies import CALIBRATION, SETTINGS, squares

WORKERS = ("ray::", "raylet", "gcs_server")


BOTH = (("lowrank", "loss", "calibrated"), ("mpo", "functional", "uniform"))


def found_in(root: Path, model: Path, monkeypatch, progress=cluster.silent, ways=BOTH) -> dict[str, bytes]:
    """What the story leaves in a workspace and two folders below `root`, and what is measured."""
    monkeypatch.setenv("KARIPAP_WORKSPACE", str(root / "workspace"))
    study = Study(model, CALIBRATION, SETTINGS, "cpu", Workspace(), progress)
    plans = [Planner(study, network, metric).make(Budget(0.7), rule) for network, metric, rule in ways]
    for number, plan in enumerate(plans):
        compress(study, plan, root / f"out{number}")
    profile = study.profile().to_json() | {"seconds": 0.0}
    bench = InPlace(*study.model, study.checkpoint, squares(200), Scoring(window=32, max_tokens=1000))
    source = study.decompositions("loss")
    specs = {name: spec for name in plans[0].weights if (spec := plans[0].spec(name))}
    measured = bench.measure([(name, source.matrix(name, spec)) for name, spec in specs.items()])
    study.release()
    told = {"profile": profile, "measured": measured} | {plan.metric: plan.to_json() for plan in plans}
    files = [*root.glob("out*/*"), *root.glob("workspace/models/*/c*/**/*.safetensors")]
    files += root.glob("workspace/models/*/profiles/*/spectra.safetensors")
    return {name: json.dumps(part).encode() for name, part in told.items()} | {
        str(file.relative_to(root)): file.read_bytes() for file in files if file.is_file()
    }


def running() -> list[psutil.Process]:
    """The processes of Ray below this one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if any(word in " ".join(child.cmdline()[:1]) for word in WORKERS):
                found.append(child)
        except psutil.Error:  # it has just ended
            continue
    return found


def test_a_cluster_with_a_worker_killed_gives_what_this_process_gives(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed: nothing is spread over workers")
    model = make("llama", tmp_path / "model", num_hidden_layers=1)
    here = found_in(tmp_path / "here", model, monkeypatch)
    killed, said = [], []

    def kill(stage, done, total, item="", message=""):
        said.append((stage, message))
        if stage == "curves of mpo" and done >= 2 and not killed:
            busy = [each for each in running() if "_called" in each.cmdline()[0]]  # none between two tasks
            for one in busy[:1]:
                one.kill()
                killed.append(one.pid)

    monkeypatch.setenv("KARIPAP_WORKSPACE", str(tmp_path / "there" / "workspace"))
    with cluster.joined("local", kill):
        assert cluster.crew().shared
        assert found_in(tmp_path / "there", model, monkeypatch, kill) == here
        assert killed

        cluster.crew().shared = False  # weights and cores go through the object store
        apart = found_in(tmp_path / "apart", model, monkeypatch, ways=BOTH[:1])
        assert apart == {name: here[name] for name in apart}

        with pytest.raises(InputError, match="The cluster of --ray has no GPU"):
            list(cluster.crew().each(len, [("a",)], device="cuda"))
        with pytest.raises(InputError, match="w of model is damaged"):  # as it would be raised here
            list(cluster.crew().each(damaged, [("w",)]))
        ours = cluster._versions() | {"torch": "1.0"}
        monkeypatch.setattr(cluster, "_versions", lambda: ours)
        with pytest.raises(InputError, match=r"Worker .* runs torch .*, here 1\.0: install the same versions there"):
            cluster._check_versions(cluster.crew())
    assert "data by the shared folder" in said[0][1]
    assert cluster.crew() is None
    psutil.wait_procs(left := running(), timeout=10)
    assert not [each for each in left if each.is_running()]


def damaged(name: str) -> None:
    raise InputError(f"{name} of model is damaged")


def test_without_ray_or_an_answer_one_sentence_says_so(monkeypatch):
    with pytest.raises(InputError, match="give host:port"):
        cluster._check_answers("ray://head:10001")
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1: nothing answers there"):
        cluster._check_answers("127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'karipap\[ray\]'"), cluster.joined("auto"):
        pass
