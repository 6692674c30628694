"""Moments on disk: found by one pass, whoever asks first."""

from contextlib import ExitStack

import torch

from karipap_core.plan.study import Study
from karipap_core.profiles import blockpass, moments
from karipap_core.workspace import Workspace
from karipap_core.workspace.locks import only_writer
from tests.helpers.architectures import make
from tests.helpers.studies import CALIBRATION, SETTINGS


def test_who_comes_second_waits_for_the_first_and_takes_what_it_found(tmp_path, monkeypatch):
    model, passes, told = make("llama", tmp_path / "model"), [], []
    monkeypatch.setattr(moments, "look_over", lambda *a, **k: passes.append(a) or blockpass.look_over(*a, **k))
    first, second = (Study(model, CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace")) for _ in range(2))
    name = first.weights[0].name
    kept = second.moments.folder  # its index is read here: nothing is kept yet
    C = first.moments.metric(name, "functional").C
    with ExitStack() as held:
        held.enter_context(only_writer(kept.with_name(f"{kept.name}-pass"), "a pass"))

        def progress(stage, *_):
            told.append(stage)
            held.close()

        second.moments.progress = progress
        assert torch.equal(second.moments.metric(name, "functional").C, C)
    assert len(passes) == 1 and told[0] == "waiting"
    assert list(kept.parent.iterdir()) == [kept], "a pass leaves nothing beside what it keeps"
