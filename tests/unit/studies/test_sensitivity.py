"""Sensitivities against plain loops over the same model, and rank correlations against SciPy's and planted data."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from karipap_core.cli import frame as cli
from karipap_core.cli.tables import sensitivity
from karipap_core.errors import Cancelled, InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.perplexity import perplexity
from karipap_core.evaluation.scoring import Scoring
from karipap_core.figures import sensitivity as figures_sensitivity
from karipap_core.figures import style
from karipap_core.models.load import load_model
from karipap_core.networks import NETWORKS, spec_from_json
from karipap_core.plan.choice import Choice
from karipap_core.plan.kind import Kind
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.reading import read_json
from karipap_core.statistics import spearman
from karipap_core.studies.sensitivity import foretell, store
from karipap_core.studies.sensitivity import measure as core
from karipap_core.text import Text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make

CALIBRATION = CalibrationSettings(tokens=512, window=32, probe_windows=3, check_windows=3)
LEARNT = Text("numbers", tuple(f"the square of {n} is {n * n}, its cube {n**3}\n" for n in range(100)))
HELD_OUT = Text("sums", tuple(f"{n} and {n + 1} are {2 * n + 1}, twice {n} is {2 * n}\n" for n in range(60)))
CUT = {"text": HELD_OUT, "scoring": Scoring(32, 32, 320)}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Studies of small random models, each made once."""
    found = {}

    def of(name: str, **changes) -> Study:
        key = name + json.dumps(changes)
        if key not in found:
            folder = tmp_path_factory.mktemp(name)
            model = make(name, folder / "model", **changes)
            found[key] = Study(model, LEARNT, CALIBRATION, "cpu", Workspace(folder / "workspace"))
        return found[key]

    return of


# Rank correlations.


@pytest.mark.parametrize("ties", [False, True])
def test_rho_and_its_interval_are_scipys(ties):
    generator = np.random.default_rng(4)
    x = generator.normal(size=40)
    y = x + generator.normal(0, 1.5, 40)
    if ties:
        x, y = np.round(x), np.round(y)
    mine = spearman.spearman(x, y, resamples=6000)
    assert mine["rho"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)

    def statistic(a, b, axis):
        ranks = (stats.rankdata(part, axis=-1) for part in (a, b))
        a, b = (part - part.mean(-1, keepdims=True) for part in ranks)
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))

    theirs = stats.bootstrap(
        (x, y),
        statistic,
        paired=True,
        method="percentile",
        n_resamples=6000,
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(9),
    ).confidence_interval
    assert (mine["low"], mine["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_within_groups_it_is_pearsons_of_the_pooled_ranks():
    generator = np.random.default_rng(1)
    sizes = (6, 6, 9, 4)
    groups = np.split(np.arange(25), np.cumsum(sizes)[:-1])
    x, y = generator.normal(size=25), generator.normal(size=25)
    ranks = [np.concatenate([stats.rankdata(values[g]) - (len(g) + 1) / 2 for g in groups]) for values in (x, y)]
    assert spearman.spearman(x, y, groups)["rho"] == pytest.approx(stats.pearsonr(*ranks).statistic, abs=1e-12)


def test_what_roles_alone_explain_is_gone_within_roles():
    """Both numbers jump from role to role and have nothing to do with each other inside one."""
    generator = np.random.default_rng(5)
    rows = []
    for step, role in enumerate(("q", "k", "v", "o", "gate", "up", "down")):
        for x, y in generator.normal(size=(6, 2)):
            rows.append({"role": role, "entropy": 10 * step + x, "rise": step + y / 9})
    found = foretell.correlations(rows)["entropy"]
    assert foretell.answer(found) == "yes" and found["rho"] > 0.9
    assert foretell.answer(found["within"]) == "not told apart from none" and abs(found["within"]["rho"]) < 0.4
    assert found["within"]["roles"] == 7 and found["within"]["n"] == 42


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=5, max_size=30), st.floats(0.1, 5))
def test_only_ranks_count(pairs, power):
    x, y = np.array(pairs, float).T
    found = spearman.spearman(x, y, resamples=50)
    if found is None:
        assert len(set(x)) == 1 or len(set(y)) == 1
        return
    assert -1 - 1e-12 <= found["low"] <= found["high"] <= 1 + 1e-12
    bent = spearman.spearman(np.sign(x) * np.abs(x) ** power, np.exp(y / 20), resamples=50)
    assert bent == pytest.approx(found)
    turned = spearman.spearman(-x, y, resamples=50)
    assert turned["rho"] == pytest.approx(-found["rho"])


def test_intervals_cover_none_as_often_as_they_say():
    """Of unrelated numbers in six layers and seven roles, about one interval in twenty leaves out 0."""
    generator = np.random.default_rng(0)
    groups = [np.arange(6) + 6 * k for k in range(7)]
    out = {"all": 0, "within": 0}
    for _ in range(150):
        x, y = generator.normal(size=(2, 42))
        for name, found in (
            ("all", spearman.spearman(x, y, resamples=300)),
            ("within", spearman.spearman(x, y, groups, resamples=300)),
        ):
            out[name] += not found["low"] <= 0 <= found["high"]
    assert out["all"] <= 18 and out["within"] <= 18  # 150 · 0.05 = 7.5, and four standard deviations


def test_answers_in_words():
    def found(low, high):
        return {"rho": (low + high) / 2, "low": low, "high": high}

    assert foretell.answer(found(0.1, 0.8)) == "yes"
    assert foretell.answer(found(0.1, 0.8), -1) == "the other way round"
    assert foretell.answer(found(-0.8, -0.1), -1) == "yes"
    assert foretell.answer(found(-0.2, 0.25)) == "no"
    assert foretell.answer(found(-0.2, 0.5)) == "not told apart from none"
    assert foretell.answer(None) == "too few to say"
    assert spearman.spearman([1, 2, 3, 4], [1, 2, 3, 4]) is None  # too few
    assert spearman.spearman([1] * 9, range(9)) is None  # all alike


# Sizes.


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([name for name in NETWORKS if name != "tree"]),
    st.integers(8, 96),
    st.integers(8, 96),
    st.floats(0.05, 1.0),
    st.sampled_from([None, "int8", "int4"]),
)
def test_the_spec_is_the_largest_that_keeps_no_more_than_asked(network, n_out, n_in, kept, quantize):
    kind = core._checked(Choice(network, quantize), kept, None, "loss", "weight")
    spec = core.spec_at(kind, (n_out, n_in), kept, None)
    room = kept * n_out * n_in
    if spec is None:
        return
    assert spec.bytes(2) / 2 <= room * (1 + 1e-9)
    larger = spec.with_chi(max(spec.chi) + 1)
    assert larger == spec or larger.bytes(2) / 2 > room or max(spec.chi) == spec.max_chi


def test_nothing_smaller_is_left_out_without_cause():
    assert core.spec_at(Kind("lowrank"), (40, 40), 0.04, None) is None  # one singular value keeps 0.05
    assert core.spec_at(Kind("lowrank"), (40, 40), 0.05, None).chi == (1,)
    assert core.spec_at(Kind("lowrank"), (40, 40), None, 500).chi == (40,)


# Measuring.


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_rise_is_that_of_the_model_with_the_truncated_weight_written_into_it(studies, name):
    """NumPy's SVD of each weight, put into an ordinary model, which is then measured as any other is."""
    study = studies(name)
    found = core.sensitivity(study, metric="weight", kept=0.4, **CUT)
    assert [row["name"] for row in found["weights"]] == [weight.name for weight in study.weights]
    model, tokenizer = load_model(study.checkpoint)
    dense = perplexity(model, tokenizer, **CUT)["loss"]
    for row in found["weights"][:: max(1, len(study.weights) // 4)]:
        weight = study.checkpoint.weight(row["name"])
        W = study.checkpoint.read(row["name"]).double().numpy()
        U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
        chi = int(0.4 * W.size / sum(W.shape))
        cut = (U[:, :chi] * sigma[:chi]) @ Vt[:chi]
        parameter = dict(model.named_parameters()).get(weight.tensor)
        if parameter is None or weight.expert is not None:
            continue  # an expert: held in a stack of another layout
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(cut.T if weight.transposed else cut))
        expected = perplexity(model, tokenizer, **CUT)["loss"] - dense
        with torch.no_grad():
            parameter.copy_(before)
        assert row["chi"] == chi and row["kept"] == pytest.approx(chi * sum(W.shape) / W.size)
        assert row["rise"] == pytest.approx(expected, abs=3e-6)
        assert row["rise_low"] <= row["rise"] <= row["rise_high"] and row["kl"] >= 0
        p = sigma**2 / (sigma**2).sum()
        assert row["entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-6)
        assert row["effective_rank"] == pytest.approx(np.exp(row["entropy"]))
        assert row["weight_error"] == pytest.approx((sigma[chi:] ** 2).sum() / (sigma**2).sum(), rel=1e-5)
        assert row["parameters"] == W.size and 0 < row["functional_error"] < 1 and row["predicted"] >= 0


def test_errors_and_prediction_are_those_of_the_metrics(studies):
    study = studies("llama")
    found = core.sensitivity(study, kept=0.5, **CUT)
    calibration = study.calibration("loss")
    for row in found["weights"][:4]:
        W = study.checkpoint.read(row["name"]).double()
        spec = core.spec_at(Kind("lowrank"), tuple(W.shape), 0.5, None)
        D = W - study.decompositions("loss").matrix(row["name"], spec).double()
        C, G = (study.moments.metric(row["name"], "loss").damped(side) for side in "CG")
        assert row["loss_error"] == pytest.approx(torch.trace(G @ D @ C @ D.T).item(), rel=1e-6)
        C = study.moments.metric(row["name"], "functional").damped("C")
        relative = torch.trace(D @ C @ D.T) / torch.trace(W @ C @ W.T)
        assert row["functional_error"] == pytest.approx(relative.item(), rel=1e-6)
        assert row["predicted"] == pytest.approx(calibration.damage(row["name"], row["loss_error"]).item())
    assert set(found["spearman"]) >= {"entropy", "excess", "predicted", "functional_error", "loss_error"}
    x, y = ([row[key] for row in found["weights"]] for key in ("predicted", "rise"))
    assert found["spearman"]["predicted"]["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["verdict"].startswith("Does entropy predict sensitivity here? ")
    assert found["spearman"]["entropy"]["rho"] == pytest.approx(-found["spearman"]["excess"]["rho"], abs=0.5)


def test_a_layer_is_all_its_weights_at_once(studies):
    study = studies("llama")
    found = core.sensitivity(study, chi=6, by="layer", **CUT)
    assert [row["name"] for row in found["layers"]] == ["layer 0", "layer 1"] and found["by"] == "layer"
    bench = InPlace(*study.model, study.checkpoint, HELD_OUT, Scoring(32, 32, 320))
    mine = [weight for weight in study.weights if weight.layer == 1]
    source = study.decompositions("loss")
    matrices = [(w.name, source.matrix(w.name, Kind("lowrank").spec(w.shape, 6))) for w in mine]
    assert found["layers"][1]["rise"] == pytest.approx(bench.measure(matrices)["rise"], abs=1e-9)
    assert found["layers"][1]["members"] == [w.name for w in mine]
    assert found["spearman"] == {} and "Too few to say" in found["verdict"]
    assert core.sensitivity(study, chi=6, **CUT)["layers"] == found["layers"]  # both units are kept in one file


def test_two_ways_of_rounding_are_two_measurements(studies, monkeypatch):
    study = studies("llama", num_hidden_layers=1)
    asked = {"choice": Choice("lowrank", "int3"), "chi": 6, "by": "layer"} | CUT
    two = core.sensitivity(study, **asked)
    monkeypatch.setattr(study, "rounding", "one-sided")
    one = core.sensitivity(study, **asked)
    assert one["settings"] != two["settings"] and one["layers"][0]["rise"] != two["layers"][0]["rise"]


def test_an_encoder_has_an_output_error_instead(studies):
    found = core.sensitivity(studies("bert"), kept=0.5, text=HELD_OUT, scoring=Scoring(32, max_tokens=200))
    assert found["quality"] == "relative_error" and all(row["relative_error"] > 0 for row in found["weights"])
    assert all(row["rise"] is None and row["rise_low"] is None for row in found["weights"])
    assert found["spearman"]["predicted"]["rho"] > 0.5  # what calibration measures is this very error
    assert "output error" in found["verdict"] and sensitivity.table(found)


@pytest.mark.parametrize("network", [name for name in NETWORKS if name not in ("tree", "lowrank")])
def test_every_network_on_one_layer_without_a_tokenizer(studies, network):
    study = studies("llama", num_hidden_layers=1, hidden_size=24, intermediate_size=40)
    (study.checkpoint.path / "tokenizer.json").unlink(missing_ok=True)
    (study.checkpoint.path / "tokenizer_config.json").unlink(missing_ok=True)
    found = core.sensitivity(study, choice=network, kept=0.7, **CUT)
    assert len(found["weights"]) == 7 and {row["network"] for row in found["weights"]} == {network}
    assert all(0.2 < row["kept"] <= 0.7 and np.isfinite(row["rise"]) for row in found["weights"])
    assert all(one["within"] is None for one in found["spearman"].values())


def test_the_members_of_a_tree_are_one_part(studies):
    study = studies("llama")
    found = core.sensitivity(study, choice="tree", kept=0.6, **CUT)
    names = [name for row in found["weights"] for name in row["members"]]
    assert sorted(names) == sorted(weight.name for weight in study.weights)
    shared = next(row for row in found["weights"] if len(row["members"]) == 2)
    assert shared["name"].endswith("and 1 more") and shared["layer"] is None and shared["kept"] <= 0.6
    by_chi = core.sensitivity(study, choice="tree", chi=5, **CUT)
    assert all(row["chi"] <= 5 for row in by_chi["weights"])
    with pytest.raises(InputError, match="--by weight"):
        core.sensitivity(study, choice="tree", by="layer", **CUT)


def test_a_killed_measurement_goes_on(studies, monkeypatch):
    study = studies("llama")
    cut = CUT | {"scoring": Scoring(32, 32, 128)}
    measured, plain = [], InPlace.measure

    def counting(self, matrices, *more):
        measured.append(1)
        if len(measured) == 4:
            raise Cancelled
        return plain(self, matrices, *more)

    monkeypatch.setattr(InPlace, "measure", counting)
    with pytest.raises(Cancelled):
        core.sensitivity(study, kept=0.3, **cut)
    kept = next(d for d in store.read_all(study.folder) if d["settings"]["kept"] == 0.3)
    assert len(kept["weights"]) == 3 and kept["total"] == {"weight": len(study.weights)}
    found = core.sensitivity(study, kept=0.3, **cut)
    assert len(measured) == 1 + len(study.weights) and found["weights"][:3] == kept["weights"]
    assert core.sensitivity(study, kept=0.3, **cut) == found and len(measured) == 1 + len(study.weights)


def test_what_does_not_fit_together_is_refused(studies):
    study = studies("llama")
    for wrong, said in (
        ({"choice": "auto"}, "name one network"),
        ({"choice": "wavelet"}, "'wavelet'"),
        ({"kept": 0.5, "chi": 4}, "not both"),
        ({"kept": 0.0}, "above 0"),
        ({"chi": 0}, "at least 1"),
        ({"metric": "taste"}, "--metric taste"),
        ({"by": "expert"}, "--by expert"),
        ({"kept": 0.001}, "keeps so little"),
        ({"choice": Choice(quantize="int99")}, "int99"),
        ({"choice": Choice(structure="rows")}, "no structure"),
        ({"choice": Choice(embedding="tt")}, "no structure"),
        ({"text": LEARNT}, "measured on"),
    ):
        with pytest.raises(InputError, match=said):
            core.sensitivity(study, **(CUT | wrong))


def test_the_verb_prints_what_it_writes(made, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(HELD_OUT.documents * 4 + LEARNT.documents * 4))
    argv = ["sensitivity", str(made("llama")), "--kept", "0.5", "--metric", "weight", "--text", str(text)]
    argv += ["--max-tokens", "128", "--window", "32", "--out", str(tmp_path / "out.json")]
    assert cli.main([*argv, "--json", "--progress", "off"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == read_json(tmp_path / "out.json") and found["format"] == store.FORMAT
    assert {"name", "rise", "predicted", "entropy", "excess"} <= found["weights"][0].keys()
    assert {"rho", "low", "high"} <= found["spearman"]["entropy"].keys()
    assert cli.main([*argv, "--progress", "off"]) == 0
    assert "Does entropy predict sensitivity here?" in capsys.readouterr().out


# Figures.


def test_figures_hold_every_part_and_survive_rises_below_zero(studies):
    study = studies("llama")
    found = core.sensitivity(study, kept=0.5, **CUT)
    rows = [dict(row) for row in found["weights"]]
    rows[0]["rise"] = -0.01
    listed = [{"name": w.name, "layer": w.layer, "role": w.role, "shape": w.shape} for w in study.weights]
    drawn = figures_sensitivity.sensitivity_map(listed, rows, "rise", rows[2]["name"])
    assert np.isfinite(drawn.data[0].z).all() and drawn.data[0].z.min() == pytest.approx(-4)
    assert sorted(custom[0] for custom in drawn.data[1].customdata) == sorted(row["name"] for row in rows)
    assert drawn.data[0].text[0][0] == "-0.01"
    assert [style.short(value) for value in (0, 0.38, -0.00011, 4.47e-5)] == [
        "0",
        "0.38",
        "-1.1e-4",
        "4.5e-5",
    ]
    points = figures_sensitivity.scatter(rows, "entropy", "rise", found["spearman"]["entropy"], rows[2]["name"])
    names = [name for trace in points.data for name in trace.customdata or ()]
    assert sorted(names) == sorted(row["name"] for row in rows) and "ρ = " in points.layout.title.text
    forest = figures_sensitivity.forest(found["spearman"])
    assert list(forest.data[0].x) == pytest.approx([one["rho"] for one in found["spearman"].values()])
    for few in ([], rows[:1]):
        assert figures_sensitivity.sensitivity_map(listed, few) and figures_sensitivity.layers(few)
        assert figures_sensitivity.scatter(few, "excess") and figures_sensitivity.forest({})


def test_shipped_measurement_of_the_demo_model(demo_model):
    """What ships with the demo model is of this very model, whole, and says what its rows say."""
    documents = store.read_all(demo_model / "karipap")
    document = next(d for d in documents if d["settings"]["network"] == "lowrank")
    assert document["model"]["fingerprint"] == read_json(demo_model / "karipap" / "measured.json")["fingerprint"]
    assert len(document["weights"]) == document["total"]["weight"] == 42 and len(document["layers"]) == 6
    found = foretell.correlations(document["weights"])
    x, y = ([row[key] for row in document["weights"]] for key in ("entropy", "rise"))
    assert found["entropy"]["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["predicted"]["low"] > 0.5  # cut weights one by one on other text: the order must be the same
    assert all(
        spec_from_json(
            {"network": row["network"], "out": [row["shape"][0]], "in": [row["shape"][1]], "chi": [row["chi"]]}
        ).parameters
        <= 0.5 * row["parameters"]
        for row in document["weights"]
    )
