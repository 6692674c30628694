"""What a pass is said to take, against what torch counts and what lies on disk."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import StorageError
from karipap_core.models import scratch
from karipap_core.plan.study import Study
from karipap_core.profiles import blockpass, estimate
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.profiles.estimate import Wanted, of_pass
from karipap_core.profiles.watching import NoFinder
from karipap_core.text import Text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make

SETTINGS = CalibrationSettings(tokens=512, window=32, probe_windows=4, check_windows=4)
TEXT = Text("numbers", tuple(f"the square of {n} is {n * n}, its cube {n**3}\n" * 2 for n in range(150)))
WIDTH, LAYERS, VOCABULARY = 48, 2, 263


@pytest.fixture
def study(tmp_path):
    return Study(make("llama", tmp_path / "model"), TEXT, SETTINGS, workspace=Workspace(tmp_path / "workspace"))


def products(work) -> float:
    """Operations of matrix products in this thread: of weights and moments, not of attention, which are batched."""
    with FlopCounterMode(display=False) as counter:
        work()
    found = counter.get_flop_counts()["Global"]
    return sum(count for name, count in found.items() if name in (torch.ops.aten.mm, torch.ops.aten.addmm))


@pytest.mark.parametrize("apart", [False, True])
def test_operations_are_those_that_torch_counts(study, tmp_path, monkeypatch, apart):
    monkeypatch.setattr(blockpass, "IN_MEMORY", 0 if apart else 1 << 30)
    monkeypatch.setattr(blockpass, "runs_apart", lambda *given: True)
    checkpoint = study.checkpoint
    said = []
    counted = products(
        lambda: blockpass.look_over(
            checkpoint, TEXT, SETTINGS, tmp_path / "pass", NoFinder(), progress=lambda *step: said.append(step)
        )
    )
    assert said[-1][1] == said[-1][2], "the stage has an end"
    moments, probing = (study.windows.moments.numel(), study.windows.probe.numel())
    found = of_pass(checkpoint, Wanted(moments, probing, SETTINGS.window, apart=apart))
    said = {part.name: part.operations["float32"] for part in found.parts}
    attention = 4 * SETTINGS.window * WIDTH * LAYERS * (4 if apart else 3)
    head = 4 * WIDTH * VOCABULARY
    # The head of a model whose blocks are run apart is run in the batches' own threads, which are not counted here.
    rest = (moments + probing) * (attention + (head if apart else 0))
    assert said["forwards and backwards"] - rest + said["moments"] == pytest.approx(counted, rel=1e-9)


def test_attention_is_two_products_of_a_window(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make("llama", tmp_path / "model"), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 32, dtype=torch.long))
    batched = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    linear, head = estimate.forward(open_checkpoint(tmp_path / "model"), 32)
    said = 96 * (linear - sum(2 * w.parameters for w in open_checkpoint(tmp_path / "model").weights if w.compressible))
    assert said == pytest.approx(batched, rel=0.01) and head == 2 * WIDTH * VOCABULARY  # besides: angles of rotations


def test_an_expert_gets_its_part_of_the_tokens(tmp_path):
    checkpoint = open_checkpoint(make("mixtral", tmp_path / "model"))
    shares = {estimate.share_of(checkpoint, w) for w in checkpoint.weights if w.expert is not None}
    assert list(shares) == [pytest.approx(2 / 3)]


def size_of(folder) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def test_disk_is_what_is_written(study, monkeypatch):
    monkeypatch.setattr(blockpass, "IN_MEMORY", 0)
    monkeypatch.setattr(blockpass, "runs_apart", lambda *given: True)
    peaks, write = [], scratch.Scratch.write

    def watched(self):
        write(self)
        peaks.append(size_of(self.folder))

    monkeypatch.setattr(scratch.Scratch, "write", watched)
    study.curves("lowrank", "loss")
    looked = blockpass.wanted(study.checkpoint, SETTINGS, TEXT, metrics=("weight", "functional", "loss"), cores="loss")
    moments, probing = study.windows.moments.numel(), study.windows.probe.numel()
    assert (looked.moments, looked.probing, looked.apart) == (moments, probing, True)
    found = of_pass(study.checkpoint, replace(looked, keep_moments=True))
    assert max(peaks) == pytest.approx(found.scratch, rel=0.15)
    folders = {"moments": "moments", "cores": "cores", "spectra": "profiles"}
    for name, folder in folders.items():
        files = list((study.folder / folder).rglob("*.safetensors"))
        headers = sum(int.from_bytes(file.read_bytes()[:8], "little") + 8 for file in files)
        assert size_of(study.folder / folder) - headers == pytest.approx(found.kept[name], rel=0.01), name


def test_a_pass_that_the_disk_has_no_room_for_does_not_begin(study, monkeypatch):
    monkeypatch.setattr(blockpass, "IN_MEMORY", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match="while it is under way.*1 kB are free there.*--workspace"):
        study.profile()
    assert not list(study.folder.rglob("*.safetensors"))


def test_what_a_long_pass_takes_is_told_before_it_begins(study, monkeypatch):
    said = []
    study.progress = lambda stage, done, total, item="", message="": said.append((stage, done, message))
    monkeypatch.setattr(estimate, "SLOWEST", 0.0)
    monkeypatch.setattr(estimate, "LONG", 0.0)
    study.profile()
    told = [row for row in said if "One pass over the blocks: about" in row[2]]
    assert len(told) == 1 and said.index(told[0]) == next(n for n, row in enumerate(said) if row[0] == "activations")
