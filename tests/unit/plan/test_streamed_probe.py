"""A model that is measured block by block, against the same model measured in memory."""

import pytest
import torch

from karipap_core.models import lockstep
from karipap_core.models.streamed import Streamed
from karipap_core.plan import on_text, streamed_probe
from karipap_core.plan.budget import Budget
from karipap_core.plan.planner import Planner
from karipap_core.plan.probe import Probe
from karipap_core.plan.streamed_probe import StreamedProbe
from karipap_core.plan.study import Study
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make
from tests.helpers.studies import CALIBRATION, SETTINGS

KINDS = ("llama", "llama_untied", "gpt2", "bert", "opt", "mixtral", "falcon", "gemma2")


@pytest.fixture(autouse=True)
def heavy(monkeypatch):
    """Layers of small models, too, are multiplied with in one thread."""
    monkeypatch.setattr(lockstep, "HEAVY", 0)


def changes_of(study, count: int = 3) -> list[dict]:
    """Some weights alone, two of different blocks together, nothing, and the table of tokens."""
    weights = study.weights
    picked = [weights[round(place * (len(weights) - 1) / count)] for place in range(count + 1)]

    def scaled(name, by):
        return {name: lambda: by * study.checkpoint.read(name).float()}

    changes = [scaled(weight.name, 0.5) for weight in picked]
    changes += [scaled(picked[0].name, 0.7) | scaled(picked[-1].name, 0.7), {}]
    return changes + [scaled(table.name, 0.8) for table in study.tables[:1]]


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_figures_of_the_model_in_memory(kind, tmp_path):
    study = Study(make(kind, tmp_path / "model"), CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    changes, windows = changes_of(study), study.windows.probe
    held = Probe(study.model[0], study.checkpoint, windows)
    streamed = StreamedProbe(study.checkpoint, windows)
    wanted, found = held.measured(changes), streamed.measured(changes)
    assert streamed.dense.loss == pytest.approx(held.dense.loss, rel=1e-5) and streamed.tokens == held.tokens
    for mine, other in zip(found, wanted, strict=True):
        assert mine.divergence == pytest.approx(other.divergence, rel=1e-3, abs=1e-8)
        assert mine.loss == pytest.approx(other.loss, rel=1e-5)
    assert found[len(changes) - 1 - len(study.tables[:1])].divergence == 0, "nothing was changed"
    assert streamed.differs(changes[0]) and not streamed.differs({})


def test_changes_are_measured_in_as_many_passes_as_they_need(tmp_path, monkeypatch):
    study = Study(make("llama", tmp_path / "model"), CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    changes, streamed = changes_of(study), StreamedProbe(study.checkpoint, study.windows.probe)
    at_once = streamed.measured(changes)
    passes = []
    monkeypatch.setattr(streamed_probe, "Streamed", lambda *a, **k: passes.append(a) or Streamed(*a, **k))
    monkeypatch.setattr(streamed_probe, "MATRICES", 4 * max(weight.parameters for weight in study.weights))
    assert streamed.measured(changes) == at_once and 1 < len(passes) <= len(changes)
    passes.clear()
    monkeypatch.setattr(streamed_probe, "BETWEEN", 1)
    assert streamed.measured(changes) == at_once and len(passes) == len(changes)


def test_a_matrix_that_overflows_is_said(tmp_path):
    study = Study(make("llama", tmp_path / "model"), CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    name = study.weights[-1].name
    change = {name: lambda: torch.full(study.checkpoint.weight(name).shape, float("inf"))}
    with pytest.raises(ValueError, match="not finite"):
        StreamedProbe(study.checkpoint, study.windows.probe).measured([change])
    assert StreamedProbe(study.checkpoint, study.windows.probe).differs(change)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_plan_of_a_model_that_is_not_held_is_that_of_one_that_is(kind, tmp_path, monkeypatch):
    model = make(kind, tmp_path / "model")
    plans = []
    monkeypatch.setattr(on_text, "REFINED", 0)
    for held in (on_text.HELD, 0):
        monkeypatch.setattr(on_text, "HELD", held)
        study = Study(model, CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / f"workspace-{held}"))
        assert study.apart == (held == 0)
        plans.append(Planner(study, "lowrank", "loss").make(Budget(0.7), "best"))
        if study.apart:
            assert not study._probes and "model" not in study.__dict__, "the model was never in memory"
            assert any("refined was not tried" in note for note in plans[-1].notes)
    one, other = plans
    mine, theirs = ({row["rule"]: row for row in plan.tried} for plan in plans)
    assert set(mine) - set(theirs) <= {"calibrated", "refined", *(f"refined, round {n}" for n in range(9))}
    for rule in set(theirs) & set(mine) - {"calibrated"}:
        assert theirs[rule]["rise"] == pytest.approx(mine[rule]["rise"], rel=1e-2, abs=1e-4)
    assert other.ledger(study.checkpoint).bytes == pytest.approx(one.ledger(study.checkpoint).bytes, rel=0.02)


def test_one_of_moderate_size_is_refined_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(on_text, "HELD", 0)
    study = Study(make("llama", tmp_path / "model"), CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    plan = Planner(study, "lowrank", "loss").make(Budget(0.7), "best")
    assert study.apart and "refined" in {row["rule"] for row in plan.tried} and not plan.notes
