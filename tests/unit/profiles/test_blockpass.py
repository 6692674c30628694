"""The pass over a model's blocks: what it finds is what a whole run finds, also when it was killed on the way."""

import numpy as np
import pytest
import torch

from karipap_core.models import blockwise, lockstep, running
from karipap_core.models.lockstep import walk
from karipap_core.models.scratch import halved, whole
from karipap_core.plan.study import Study
from karipap_core.profiles import blockpass
from karipap_core.profiles.activations import CalibrationSettings, drawn
from karipap_core.profiles.blockpass import look_over, runs_apart
from karipap_core.text import Text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make

SETTINGS = CalibrationSettings(tokens=512, window=32, probe_windows=4, check_windows=4)
TEXT = Text("numbers", tuple(f"the square of {n} is {n * n}, its cube {n**3}\n" * 2 for n in range(150)))


@pytest.fixture(autouse=True)
def heavy(monkeypatch):
    """Layers of small models, too, are multiplied with in one thread."""
    monkeypatch.setattr(lockstep, "HEAVY", 0)


class Found:
    """Keeps all that it is told; `last`: the number of blocks after which it kills the pass."""

    def __init__(self, last=None):
        self.metrics, self.seen_tokens, self.ended, self.last = {}, {}, [], last

    def moments(self, seen):
        if len(self.ended) == self.last:
            raise KeyboardInterrupt
        self.metrics |= {weight.name: seen.metric(weight.name, "loss") for weight in seen.weights}

    def tokens(self, name, x, g):
        self.seen_tokens.setdefault(name, []).append((x.clone(), g.clone()))

    def through(self, seen):
        self.ended.append(seen.block)


def passed(study, folder, found):
    look_over(study.checkpoint, study.text, study.settings, folder, found)
    return found


def smooth(model, ids, generator):
    """A loss without labels."""
    output = running.output(model, ids)
    return (output * torch.randn(output.shape, generator=generator)).mean()


@pytest.fixture(params=["llama", "gpt2", "mixtral", "bert"])
def study(request, tmp_path):
    found = Study(make(request.param, tmp_path / "model"), TEXT, SETTINGS, workspace=Workspace(tmp_path / "workspace"))
    assert found.weights
    return found


def test_blocks_apart_see_what_the_whole_model_sees_and_a_killed_pass_goes_on(study, tmp_path, monkeypatch):
    monkeypatch.setattr(blockpass, "sampled_loss", smooth)  # a label is another one for a rounding
    whole_run = passed(study, tmp_path / "a", Found())
    assert whole_run.ended == [None]
    monkeypatch.setattr(blockpass, "IN_MEMORY", 0)
    assert runs_apart(study.checkpoint, "cpu")
    apart = passed(study, tmp_path / "b", Found())
    assert len(apart.ended) > 1 and not (tmp_path / "b").exists()
    assert apart.metrics.keys() == whole_run.metrics.keys() == {weight.name for weight in study.weights}
    for name, metric in apart.metrics.items():
        for one, other in ((metric.C, whole_run.metrics[name].C), (metric.G, whole_run.metrics[name].G)):
            assert (one - other).norm() <= 2e-2 * other.norm(), name  # 16 bits between blocks
        for (x, g), (x_whole, g_whole) in zip(apart.seen_tokens[name], whole_run.seen_tokens[name], strict=True):
            if study.checkpoint.weight(name).expert is None:  # a token may go another way for a rounding
                assert x.shape == x_whole.shape and (x - x_whole).norm() <= 5e-3 * x_whole.norm()
                assert g.shape == g_whole.shape and (g - g_whole).norm() <= 2e-2 * g_whole.norm()
    with pytest.raises(KeyboardInterrupt):
        passed(study, tmp_path / "c", first := Found(last=1))
    rest = passed(study, tmp_path / "c", Found())
    assert first.ended + rest.ended == apart.ended
    metrics, tokens = first.metrics | rest.metrics, first.seen_tokens | rest.seen_tokens
    for name, metric in apart.metrics.items():
        assert torch.equal(metrics[name].C, metric.C) and torch.equal(metrics[name].G, metric.G), name
        for one, other in zip(tokens[name], apart.seen_tokens[name], strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_little_room_on_disk_changes_nothing_but_what_is_run_again(tmp_path, monkeypatch):
    """Six blocks: of what stands between them a part is kept, and a killed pass goes on from there."""
    model = make("llama", tmp_path / "model", num_hidden_layers=6)
    study = Study(model, TEXT, SETTINGS, workspace=Workspace(tmp_path / "workspace"))
    assert study.weights
    monkeypatch.setattr(blockpass, "IN_MEMORY", 0)
    most = {}

    class Watched(Found):
        def moments(self, seen):
            files = list(tmp_path.rglob("*/out-*.safetensors"))
            most[room] = max(most.get(room, 0), len(files))
            super().moments(seen)

    found = {}
    for room in (1e9, 0.0):
        monkeypatch.setattr(blockwise, "ROOM", room)
        found[room] = passed(study, tmp_path / "a", Watched())
    assert most[0.0] < most[1e9]
    for last in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            passed(study, tmp_path / f"b{last}", first := Found(last=last))
        rest = passed(study, tmp_path / f"b{last}", Found())
        found[last] = Found()
        found[last].metrics = first.metrics | rest.metrics
    for name, metric in found[1e9].metrics.items():
        for other in (found[0.0], found[2], found[4]):
            assert torch.equal(metric.C, other.metrics[name].C) and torch.equal(metric.G, other.metrics[name].G)


def test_a_model_whose_blocks_cannot_be_run_apart_is_run_whole_for_each_group(study, tmp_path, monkeypatch):
    whole_run = passed(study, tmp_path / "a", Found())
    monkeypatch.setattr(blockpass, "IN_MEMORY", 0)
    monkeypatch.setattr(blockpass, "runs_apart", lambda *given: False)
    monkeypatch.setattr(blockpass, "GROUP", 100_000)
    grouped = passed(study, tmp_path / "b", Found())
    assert len(grouped.ended) > 1 and grouped.metrics.keys() == whole_run.metrics.keys()
    for weight in study.weights:
        if weight.expert is None:  # what an expert borrows depends on its group
            assert torch.equal(grouped.metrics[weight.name].C, whole_run.metrics[weight.name].C)
            assert torch.equal(grouped.metrics[weight.name].G, whole_run.metrics[weight.name].G)


def test_functions_wait_for_each_other_at_places():
    said = []

    def function(number, places, meet):
        for place in places:
            said.append((number, meet(place, lambda place=place: place * 10)))

    class At:
        def __init__(self, place):
            said.append(place)

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    functions = [lambda meet: function(0, [1, 2, 3], meet), lambda meet: function(1, [2, 3], meet)]
    walk(functions, lambda place: place, At)
    assert said == [1, (0, 10), 2, (0, 20), (1, 20), 3, (0, 30), (1, 30)]
    with pytest.raises(ZeroDivisionError):
        walk([lambda meet: meet(1, lambda: 1 / 0), lambda meet: meet(2, lambda: 0)], lambda place: place, At)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sixteen_bits_keep_eleven_of_every_number_near_the_largest(scale):
    x = scale * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    back = whole(*halved(x), torch.float32, "cpu")
    near = x.abs() > 1e-4 * x.abs().max()
    assert ((back - x).abs()[near] <= 2**-11 * x.abs()[near]).all()
    assert torch.equal(whole(*halved(back), torch.float32, "cpu"), back)


def test_labels_are_drawn_as_often_as_the_model_says():
    logits = torch.tensor([0.0, 1.0, 2.0, -1e9]).expand(100_000, 4)
    counts = torch.bincount(drawn(logits, torch.Generator().manual_seed(0)), minlength=4).numpy()
    assert counts / 100_000 == pytest.approx(np.exp([0, 1, 2, -1e9]) / np.exp([0, 1, 2]).sum(), abs=5e-3)


def test_every_seed_and_every_batch_draws_labels_of_its_own():
    draws = [
        torch.rand(4, generator=blockpass.generator_of(seed, batch)).tolist() for seed in range(9) for batch in range(9)
    ]
    assert len({tuple(each) for each in draws}) == 81
    again = torch.rand(4, generator=blockpass.generator_of(1, 2)).tolist()
    assert draws[9 + 2] == again
