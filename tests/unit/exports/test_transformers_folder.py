"""Which of its two ways a folder for transformers stores integers in, and what stays dense and why."""

import json

import pytest

from karipap_core.exports.export import export, plan_of
from karipap_core.exports.grids import Scheme
from karipap_core.exports.transformers_folder import one_scheme
from tests.helpers.architectures import make
from tests.helpers.plans import in_turn

pytestmark = pytest.mark.usefixtures("quick_fits")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make("llama_untied", tmp_path_factory.mktemp("transformers") / "model")


def config_of(folder, out) -> dict:
    export(folder, "transformers", out)
    return json.loads((out / "config.json").read_text())["quantization_config"]


def test_several_schemes_without_zero_points(model, tmp_path):
    config = config_of(in_turn(model, tmp_path / "a", "int4g16", "int8", "int3"), tmp_path / "out")
    weights = [group["weights"] for group in config["config_groups"].values()]
    assert all(each["symmetric"] or each["num_bits"] == 8 for each in weights) and len(weights) > 2
    assert "dequantize" not in config


def test_one_scheme_as_it_is(model, tmp_path):
    config = config_of(in_turn(model, tmp_path / "a", "int4g16"), tmp_path / "out")
    weights = [group["weights"] for group in config["config_groups"].values()]
    assert {(each["num_bits"], each["symmetric"]) for each in weights} == {(4, False)} and config["dequantize"] is True


def test_beside_an_adapter_one_scheme_for_all(model, tmp_path):
    folder = in_turn(model, tmp_path / "a", "qlr int4g16 3", "int3g16", "int2g16")
    config = config_of(folder, tmp_path / "out")
    (group,) = config["config_groups"].values()
    assert group["weights"]["num_bits"] == 4 and config["dequantize"] is True
    packed = [line for line in plan_of(folder, "transformers", "out")["weights"] if "integers" in line["stored"]]
    assert len(packed) > 9 and all(line["exact"] or line["rank"] for line in packed)


def test_the_scheme_that_holds_all():
    shapes = {"a": (4, 96), "b": (4, 64)}
    schemes = {"a": Scheme(2, None, False), "b": Scheme(4, 32, False)}
    assert one_scheme(schemes, shapes) == Scheme(4, 32, False, "float32")
    assert one_scheme({"a": schemes["a"]}, shapes) == Scheme(2, None, False, "float32")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mixtral", "experts that are stored one by one keep the whole model dense"),
        ("gpt2", "the model does not hold it as an ordinary linear layer"),
    ],
)
def test_what_transformers_cannot_load_packed_is_dense(tmp_path, name, why):
    folder = in_turn(make(name, tmp_path / "model"), tmp_path / "a", "int8")
    lines = plan_of(folder, "transformers", tmp_path / "out")["weights"]
    assert {(line["stored"], line["why"]) for line in lines} == {("dense, float32", why)}


def test_columns_that_no_group_divides(model, tmp_path):
    lines = plan_of(in_turn(model, tmp_path / "a", "int4g32"), "transformers", "out")["weights"]
    dense = {line["weight"]: line["why"] for line in lines if line["stored"].startswith("dense")}
    assert dense["model.layers.0.mlp.down_proj"] == "its 86 columns do not divide into groups of 32"
    assert "model.layers.0.self_attn.q_proj" not in dense  # 48 columns: groups of 16 hold the same
