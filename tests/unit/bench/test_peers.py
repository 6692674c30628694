"""`make peers` without the packages: what is asked of them, what they hand over, and the table."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import packages, peers
from bench.packages import __main__ as there
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.evaluation.scoring import Scoring
from karipap_core.models.load import load_model
from karipap_core.tradeoffs.handover import handed_over
from karipap_core.tradeoffs.points import Points
from tests.helpers.studies import squares, study_of


def crude(asked, method, bits, group):
    """A package that rounds whole rows to so many bits, and keeps each code in 8; it has no 3 bits."""
    if bits == 3:
        raise NotImplementedError("3 bits are not supported\n(on any machine)")
    made = packages.Rows(notes=["It keeps every code in 8 bits."])
    for name, linear in asked.linears(asked.model()):
        scale = linear.weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 0.5)
        codes = (linear.weight / scale - 0.5).round().to(torch.int8)
        made.add(name, (codes + 0.5) * scale, bits, packages.size(codes), packages.size(scale))
    return made


CRUDE = SimpleNamespace(
    DISTRIBUTION="safetensors",
    SETTINGS=[{"method": "crude", "bits": bits, "group": None} for bits in (4, 3)],
    quantize=crude,
)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def points(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    study = study_of(request.param, folder)
    return Points(study, squares(60), folder / "workspace", Scoring(32, 32))


@pytest.fixture
def crude_alone(monkeypatch):
    monkeypatch.setattr(packages, "PACKAGES", {"Crude": "crude"})
    monkeypatch.setattr(there, "PACKAGES", {"Crude": "crude"})
    for module in (there, peers):
        monkeypatch.setattr(module, "package", lambda name: CRUDE)


def test_a_package_is_asked_for_the_models_weights_and_hands_them_over(points, crude_alone, tmp_path):
    study = points.study
    jobs = [(setting, tmp_path / str(setting["bits"])) for setting in CRUDE.SETTINGS]
    request = json.loads(json.dumps(peers.request(points, tmp_path, jobs)))
    there.quantize("Crude", request)

    assert sorted(request["weights"].values()) == sorted(weight.name for weight in study.weights)
    model, _ = load_model(request["folder"])
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    modules = dict(model.named_modules())
    bits16 = {name: study.checkpoint.read(name).bfloat16().float() for name in request["weights"].values()}
    for path, name in request["weights"].items():
        held = modules[path].weight.T if study.checkpoint.weight(name).transposed else modules[path].weight
        assert torch.equal(held, bits16[name]), "the model that packages get is the checkpoint's, in 16 bits"

    baseline = handed_over(tmp_path / "4", study.checkpoint)
    for made in baseline.make():
        W, weight = bits16[made.name], study.checkpoint.weight(made.name)
        assert made.bytes == math.ceil(weight.parameters / 2) + 2 * weight.shape[0]
        assert (made.matrix - W).abs().max() <= 0.6 * W.abs().max() / 7.5
    assert baseline.notes[0] == "It keeps every code in 8 bits." and "of their 16-bit bytes" in baseline.notes[1]
    assert not (tmp_path / "3" / "handover.json").exists()
    assert peers.failure(tmp_path / "3") == "NotImplementedError: 3 bits are not supported"


def test_the_windows_are_those_that_our_moments_are_taken_from(points, crude_alone, tmp_path):
    from safetensors.torch import load_file

    request = peers.request(points, tmp_path, [])
    windows = load_file(request["windows"])["input_ids"]
    settings = points.study.settings
    assert windows.shape == (settings.tokens // settings.window, settings.window)
    moments = points.study.moments.metric(points.study.weights[0].name, "functional")
    assert moments.C is not None
    site = points.bench.sites[points.study.weights[0].name]
    xs = []
    with torch.no_grad():
        handle = site.module.register_forward_pre_hook(lambda _, args: xs.append(args[0].double()))
        points.bench.model(windows)
        handle.remove()
    x = torch.cat([each.flatten(0, -2) for each in xs])
    assert torch.allclose(moments.C.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-5 * float(moments.C.diag().mean()))


def test_the_table_has_points_and_says_what_failed(points, crude_alone, monkeypatch):
    asked = []

    def run(command, **settings):
        asked.append(command)
        if command[-1] == "versions":
            return SimpleNamespace(returncode=0, stdout=json.dumps({"Crude": there.versions()["Crude"]}))
        there.quantize(command[-2], json.loads(Path(command[-1]).read_text("utf-8")))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(peers, "OURS", ())
    monkeypatch.setattr(peers.subprocess, "run", run)
    rows = list(peers.compared(points, ["Crude", "Absent"], sys.executable))
    version = there.versions()["Crude"]
    assert [row if isinstance(row, tuple) else row.label for row in rows] == [
        f"Crude {version} crude int4",
        (f"Crude {version} crude int3", "NotImplementedError: 3 bits are not supported"),
        ("Absent", "not installed in the packages' environment: `make peers` makes it"),
    ]
    printed = peers.table(rows)
    line = next(line for line in printed.splitlines() if line.startswith(f"Crude {version} crude int4 "))
    assert f"{rows[0].figures['bytes_kept_blocks']:.3f}" in line and " to " in line
    assert f"Crude {version} crude int3: NotImplementedError: 3 bits are not supported" in printed
    assert "Absent: not installed" in printed and "It keeps every code in 8 bits." in printed
    count = len(asked)
    again = list(peers.compared(points, ["Crude"], sys.executable, bits=[4], more=True))
    assert again == rows[:1] and len(asked) == count + 1, "what is there is not made again"


def test_without_an_environment_every_package_is_said_not_to_be_there(points, monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "OURS", ())
    rows = list(peers.compared(points, list(packages.PACKAGES), str(tmp_path / "nowhere" / "python")))
    assert [row[0] for row in rows] == list(packages.PACKAGES)
    assert all("not installed" in row[1] for row in rows)


def test_a_process_that_dies_is_told_of_with_its_log(points, crude_alone, monkeypatch, tmp_path):
    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9))
    jobs = peers.quantized(points, "Crude", "of the dead", sys.executable, CRUDE.SETTINGS)
    assert all("ended with -9; see " in peers.failure(folder) for _, folder in jobs)


def test_each_package_lists_settings_without_being_installed():
    for name in packages.PACKAGES:
        module = packages.package(name)
        found = {setting["bits"] for setting in module.SETTINGS}
        assert {4, 2} <= found and module.DISTRIBUTION and callable(module.quantize)
        every = module.SETTINGS + getattr(module, "MORE", [])
        labels = [(s["method"], s["bits"], s["group"]) for s in every]
        assert len(set(labels)) == len(labels), f"{name}: two settings would be one label"


def test_opened_checkpoints_are_asked_for_by_identity(points, tmp_path):
    checkpoint = open_checkpoint(points.study.checkpoint.path)
    assert peers.request(points, tmp_path, [])["model"] == checkpoint.identity
