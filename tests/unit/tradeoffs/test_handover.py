"""What another program quantized: read, refused where it does not fit, and a point like any other."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import Scoring
from karipap_core.figures.runs import tradeoff
from karipap_core.schemas import check
from karipap_core.tradeoffs.baselines import integers
from karipap_core.tradeoffs.equal import curves, method_of
from karipap_core.tradeoffs.handover import handed_over
from karipap_core.tradeoffs.points import Points
from tests.helpers.studies import squares, study_of


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return study_of("llama", tmp_path_factory.mktemp("llama"), intermediate_size=96)


def nearest(W, bits, group):
    """Ŵ of integers by the textbook: minimum and maximum of each group, asymmetric; an independent reference."""
    parts = W.double().reshape(len(W), -1, group)
    low, high = parts.amin(2, keepdim=True), parts.amax(2, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    codes = ((parts - low) / scale).round()
    return (codes * scale + low).reshape(W.shape).float()


def hand(study, folder, bits=4, group=16, matrices=None, stored=1.0, **changes):
    """A folder as a package would hand it over, with what is to differ."""
    folder.mkdir()
    if matrices is None:
        matrices = {w.name: nearest(study.checkpoint.read(w.name), bits, group) for w in study.weights}
    save_file(matrices, folder / "weights.safetensors")
    rows = []
    for name, matrix in matrices.items():
        size = math.ceil(matrix.numel() * (bits + 20 / group) / 8)
        rows.append({"name": name, "bytes": size, "stored_bytes": round(stored * size)})
    document = {
        "format": "karipap-handover",
        "version": 1,
        "package": "Quanta",
        "package_version": "1.2",
        "method": "nearest",
        "model": study.checkpoint.identity,
        "bits": bits,
        "group": group,
        "rank": None,
        "seconds": 2.5,
        "notes": [],
        "weights": rows,
    }
    (folder / "handover.json").write_text(json.dumps(document | changes), "utf-8")
    return folder


def points_of(study, folder):
    return Points(study, squares(60), folder, Scoring(32, 32))


def test_a_handed_over_folder_is_a_point_measured_like_ours(study, tmp_path):
    points = points_of(study, tmp_path)
    point = points.of_baseline(handed_over(hand(study, tmp_path / "made"), study.checkpoint))
    document = point.to_json()
    check(document, "run", "The point")
    assert (point.kind, point.method, point.label) == ("baseline", "Quanta 1.2 nearest", "Quanta 1.2 nearest int4 g16")
    assert point.seconds["plan"] == 2.5 and "notes" not in point.figures
    blocks = study.checkpoint.block_parameters
    sizes = sum(math.ceil(w.parameters * (4 + 20 / 16) / 8) for w in study.weights)
    rest = blocks - sum(w.parameters for w in study.weights)
    assert point.figures["bytes_kept_blocks"] == pytest.approx((sizes + 2 * rest) / (2 * blocks))
    ours = points.of_baseline(integers(study, "rtn", 4, 16))
    assert point.figures["units"]["ids"] == ours.figures["units"]["ids"]
    expected = points.bench.measure((w.name, nearest(study.checkpoint.read(w.name), 4, 16)) for w in study.weights)
    assert point.figures["rise"] == pytest.approx(expected["rise"], abs=1e-7) and point.figures["kl"] > 1e-6
    again = points_of(study, tmp_path).of_baseline(handed_over(tmp_path / "made", study.checkpoint))
    assert again == point, "found again, not measured twice"


def test_other_weights_of_the_same_name_are_another_point(study, tmp_path):
    points = points_of(study, tmp_path)
    one = points.of_baseline(handed_over(hand(study, tmp_path / "one"), study.checkpoint))
    coarse = {w.name: nearest(study.checkpoint.read(w.name), 2, 16) for w in study.weights}
    two = points.of_baseline(handed_over(hand(study, tmp_path / "two", matrices=coarse), study.checkpoint))
    assert one.label == two.label and one.id != two.id and two.figures["kl"] > 2 * one.figures["kl"]


def test_what_a_package_keeps_in_more_room_and_what_it_leaves_out_is_said(study, tmp_path):
    one = next(w for w in study.weights)
    some = {one.name: nearest(study.checkpoint.read(one.name), 3, 16)}
    folder = hand(study, tmp_path / "made", bits=3, matrices=some, stored=2.0, notes=["It keeps 3 bits in 8."])
    baseline = handed_over(folder, study.checkpoint)
    share = math.ceil(one.parameters * (3 + 20 / 16) / 8) * 2 / (2 * one.parameters)
    assert baseline.notes == (
        "It keeps 3 bits in 8.",
        f"As the package stores them, these weights take {share:.3f} of their 16-bit bytes.",
        f"{len(study.weights) - 1} of {len(study.weights)} weights were not handed over and count 16 bits a number.",
    )
    point = points_of(study, tmp_path).of_baseline(baseline)
    assert point.figures["notes"] == list(baseline.notes) and point.figures["bytes_kept_blocks"] > 0.9


def broken(study, name):
    """(what differs in the folder, what the sentence must say)."""
    weights = {w.name: torch.zeros(w.shape) for w in study.weights}
    first = next(iter(weights))
    n_out, n_in = weights[first].shape
    cases = {
        "turned": ({"matrices": weights | {first: torch.zeros(n_in + 8, n_out)}}, f"{n_in + 8} × {n_out}, and {n_out}"),
        "unknown": ({"matrices": weights | {"model.ghost": torch.zeros(2, 2)}}, "model.ghost is none of the weights"),
        "integers": ({"matrices": weights | {first: torch.zeros(n_out, n_in, dtype=torch.int8)}}, "stored as I8"),
        "NaN": ({"matrices": weights | {first: torch.full((n_out, n_in), math.nan)}}, f"{first} holds NaN"),
        "another model": ({"model": "0" * 16}, "was made from another model"),
        "no bits": ({"bits": 0}, "bits"),
        "a field more": ({"code": "print()"}, "code"),
        "no rows": ({"weights": []}, "weights"),
        "unsaid": ({"weights": [{"name": first, "bytes": 1, "stored_bytes": 1}]}, "is missing in handover.json"),
        "another format": ({"format": "karipap-run"}, "is no karipap-handover"),
    }
    return cases[name]


@pytest.mark.parametrize(
    "name",
    [
        *("turned", "unknown", "integers", "NaN", "another model", "no bits", "a field more", "no rows", "unsaid"),
        "another format",
    ],
)
def test_what_does_not_fit_is_one_sentence(study, tmp_path, name):
    changes, said = broken(study, name)
    with pytest.raises(InputError) as error:
        list(handed_over(hand(study, tmp_path / "made", **changes), study.checkpoint).make())
    sentence = str(error.value)
    assert said in sentence and sentence.endswith((".", "?")) and "\n" not in sentence


def test_a_damaged_file_is_one_sentence(study, tmp_path):
    folder = hand(study, tmp_path / "made")
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match="accounts for"):
        handed_over(folder, study.checkpoint)


def made_up(package, version, method, bits, group, size, rise):
    name = f"{package} {version} {method}"
    settings = {"bits": bits, "group": group, "package": package, "package_version": version}
    label = f"{name} int{bits} g{group}"
    facts = {"id": f"{name}-{bits}", "kind": "baseline", "method": name, "label": label, "settings": settings}
    return facts | {"bytes_kept": size, "bytes_kept_blocks": size, "rise": rise}


def test_each_package_and_method_is_a_curve_under_its_own_name():
    made = [
        made_up("Quanta", "1.2", "GPTQ", 4, 64, 0.27, 0.002),
        made_up("Quanta", "1.2", "GPTQ", 3, 64, 0.206, 0.01),
        made_up("Quanta", "1.2", "nearest", 4, 64, 0.27, 0.004),
        made_up("Bitty <b>", "0.1", "GPTQ", 2, 32, 0.16, 0.05),
    ]
    assert method_of(made[0]) == "Quanta 1.2 GPTQ int4"
    found = {curve.method: curve for curve in curves(made)}
    assert set(found) == {"Quanta 1.2 GPTQ", "Quanta 1.2 nearest", "Bitty <b> 0.1 GPTQ"}
    assert [point["label"] for point in found["Quanta 1.2 GPTQ"].points] == [
        "Quanta 1.2 GPTQ int3 g64",
        "Quanta 1.2 GPTQ int4 g64",
    ]
    assert found["Quanta 1.2 GPTQ"].at(0.238)["rise"] == pytest.approx(math.sqrt(0.002 * 0.01))
    lines = {line.name: line for line in tradeoff(made).data if line.customdata is not None}
    assert set(lines) == {
        "Quanta 1.2 GPTQ, measured here",
        "Quanta 1.2 nearest, measured here",
        "Bitty &lt;b&gt; 0.1 GPTQ, measured here",
    }
    assert len({line.marker.symbol for line in lines.values()}) == 3
    assert "Quanta 1.2 GPTQ int3 g64" in "".join(lines["Quanta 1.2 GPTQ, measured here"].hovertext)
