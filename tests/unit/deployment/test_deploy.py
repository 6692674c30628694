"""Deployment: figures that were worked out by hand, the rules of each node, and the verdict that they come to."""

import dataclasses
import json
import math
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli  # noqa: F401  (verbs fills cli.VERBS)
from karipap_core.deployment import evidence, hardware, kv
from karipap_core.deployment.decide import deploy, precision
from karipap_core.deployment.footprint import config_of, footprint, of_config
from karipap_core.deployment.request import Constraints, Load, Machine
from karipap_core.deployment.ways import dollars, format_bytes
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan, model_entry
from karipap_core.workspace import Workspace
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION
from tests.helpers import configs, made_up
from tests.helpers.architectures import make

NO_GPU, L4, A100 = Machine(None), Machine("L4"), Machine("A100")
SHORT = Load(16)
CXL = {"bandwidth_gb_s": 64, "latency_ns": 250}


def cache(config: dict) -> kv.Cache:
    return kv.cache_of(config_of(config))


@pytest.fixture(scope="module")
def foot():
    """Footprints by the configs' names, each counted once."""
    known = {}

    def of(name: str):
        return known.setdefault(name, of_config(getattr(configs, name), name))

    return of


# ---- sizes, by hand ---------------------------------------------------------------------------------------------


MLA_WIDTH = 16 * (2 * (128 + 64) + 128)  # queries and keys of every head, and its values


@pytest.mark.parametrize(
    ("name", "parameters", "active", "kind", "load", "a_position", "vocabulary"),
    [
        (
            "LLAMA_2_7B",
            6_738_415_616,
            6_738_415_616,
            "MHA",
            (2 * 32 * 32 * 128 * 2, 4096, 2_147_483_648),
            2 * 4096 + 3 * 4096 + 2 * 11008,
            32000,
        ),
        (
            "LLAMA_3_8B",
            8_030_261_248,
            8_030_261_248,
            "GQA",
            (2 * 32 * 8 * 128 * 2, 8192, 1_073_741_824),
            2 * 4096 + 4096 + 2 * 1024 + 2 * 14336,
            128256,
        ),
        (
            "QWEN_2_5_05B",
            494_032_768,
            494_032_768,
            "GQA",
            (2 * 24 * 2 * 64 * 2, 32768, 402_653_184),
            2 * 896 + 896 + 2 * 128 + 2 * 4864,
            151936,
        ),
        (
            "MIXTRAL_8X7B",
            46_702_792_704,
            12_879_925_248,
            "GQA",
            (2 * 32 * 8 * 128 * 2, 32768, 4_294_967_296),
            2 * 4096 + 4096 + 2 * 1024 + 2 * 2 * 14336,
            32000,
        ),
        (
            "DEEPSEEK_V2_LITE",
            15_706_484_224,
            2_661_150_208,
            "MLA",
            (27 * (512 + 64) * 2, 32768, 1_019_215_872),
            2 * 2048 + MLA_WIDTH + 2 * (6 + 2) * 1408,
            102400,
        ),
    ],
)
def test_known_models(foot, name, parameters, active, kind, load, a_position, vocabulary):
    """active: of a mixture, without the experts that a token does not go to; load: bytes of a token's keys and values,
    tokens, bytes of the cache; a_position: 16-bit numbers of one token of
    a prefill chunk of 2048: residual twice, queries, keys, values, and the MLP's inside twice."""
    a_token, tokens, kv_bytes = load
    document = deploy(foot(name), Load(tokens), NO_GPU)
    assert (document["parameters"], document["weights_bytes"]) == (parameters, 2 * parameters)
    assert document["active_parameters"] == active
    assert document["activation_bytes"] == 2 * 2048 * a_position + 4 * vocabulary
    assert document["attention"]["kind"] == kind
    assert document["kv_bytes"] == a_token * tokens == kv_bytes
    assert deploy(foot(name), Load(tokens, 3), NO_GPU)["kv_bytes"] == 3 * kv_bytes
    sums = [document[key] for key in ("weights_bytes", "kv_bytes", "activation_bytes")]
    assert document["total_bytes"] == sum(sums)
    assert (document["fits"], document["answer"]) == (None, "unknown")


def test_the_worked_example_of_the_production_article():
    """32 layers, 128,000 tokens, batch 8, hidden 4096, FP16 → 537 GB; 10 % retained and INT8 → 27 GB."""
    llama = cache(configs.LLAMA_2_7B)
    whole = llama.bytes(128_000, 8, "fp16")
    assert whole == 2 * 32 * 128_000 * 8 * 4096 * 2 == 536_870_912_000
    kept = llama.bytes(128_000, 8, "int8", 0.1)
    scales = 32 * 2 * 4096 * 2  # 16 bits for each channel of K and V of each layer
    assert kept == 2 * 32 * 12_800 * 8 * 4096 + scales
    assert (round(whole / 1e9), round(kept / 1e9)) == (537, 27)


def test_four_bits_pay_for_their_scales():
    """8192 values a token and layer: 4096 bytes, and 128 groups with 2 bytes of scale and 2 of zero point each."""
    assert cache(configs.LLAMA_2_7B).bytes(10, 2, "int4") == 10 * 2 * 32 * (4096 + 128 * 4)


def test_windows_and_states_are_what_the_config_says():
    mistral = cache(configs.MISTRAL_7B)
    assert mistral.bytes(32768, 1) == mistral.bytes(4096, 1) == 2 * 32 * 8 * 128 * 4096 * 2
    assert mistral.bytes(1000, 1) == 2 * 32 * 8 * 128 * 1000 * 2
    gemma = cache(configs.GEMMA_2_2B)  # every other layer sees a window
    assert gemma.windowed == 13
    assert gemma.bytes(8192, 1) == 13 * (8192 + 4096) * 2 * 4 * 256 * 2
    assert gemma.bytes(8192, 1, keep=0.25) == 13 * (2048 + 4096) * 2 * 4 * 256 * 2  # windows stay whole
    assert cache(configs.QWEN_2_5_05B).windowed == 0  # the config names a window and does not use it
    hybrid = cache({"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 8})
    assert (len(hybrid.layers), hybrid.stateful) == (2, 6)
    shared = cache(
        {
            "model_type": "gemma3n_text",
            "architectures": ["Gemma3nForCausalLM"],
            "num_hidden_layers": 35,
            "num_kv_shared_layers": 15,
            "num_key_value_heads": 2,
            "head_dim": 256,
        }
    )
    assert [layer.values for layer in shared.layers] == [2 * 2 * 256] * 20  # the last 15 read the others' cache
    gemma = {"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "num_hidden_layers": 12}
    whole, reused = (cache(gemma | {"num_kv_shared_layers": n}) for n in (0, 6))
    assert len(whole.layers) == 12 and reused.layers == whole.layers[:6]
    falcon = {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "num_hidden_layers": 32}
    seven = cache(falcon | {"hidden_size": 4544, "num_attention_heads": 71, "multi_query": True})
    assert (seven.kind, {layer.values for layer in seven.layers}) == ("MQA", {2 * 64})
    forty = falcon | {"hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8}
    forty = cache(forty | {"new_decoder_architecture": True, "multi_query": True})
    assert (forty.kind, {layer.values for layer in forty.layers}) == ("GQA", {2 * 8 * 64})
    encoder = cache({"model_type": "bert", "architectures": ["BertModel"]})
    assert (encoder.kind, encoder.bytes(512, 4)) == ("none", 0)


def test_a_mixture_reads_only_the_experts_that_are_asked(foot):
    mixtral = foot("MIXTRAL_8X7B")
    experts = 32 * 8 * 3 * 4096 * 14336
    assert mixtral.active(mixtral.bytes, 1) == pytest.approx(mixtral.bytes - 2 * experts * 6 / 8)  # 2 of 8
    assert mixtral.active(mixtral.bytes, 2) == pytest.approx(mixtral.bytes - 2 * experts * (6 / 8) ** 2)
    assert foot("LLAMA_2_7B").active(100, 1) == 100


def test_activations_and_quantized_weights_by_hand(foot):
    llama = foot("LLAMA_2_7B")
    assert llama.activations(4096, 1) == 2 * 2048 * (2 * 4096 + 3 * 4096 + 2 * 11008) + 4 * 32000
    assert llama.activations(10, 2) == 2 * 20 * (2 * 4096 + 3 * 4096 + 2 * 11008) + 4 * 2 * 32000
    blocks, rows = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32 * (5 * 4096 + 2 * 11008)
    assert llama.block_parameters == blocks == 6_476_005_376
    rest = 2 * (6_738_415_616 - blocks)
    assert llama.quantized(lambda n_out, n_in: format_bytes("fp8", n_out, n_in)) == rest + blocks + 2 * rows
    assert llama.quantized(lambda n_out, n_in: format_bytes("fp4", n_out, n_in)) == rest + blocks // 2 + blocks // 16


@given(st.integers(1, 10**6), st.integers(1, 512), st.sampled_from(["fp16", "fp8", "int8", "int4"]))
def test_the_cache_grows_with_tokens_and_batch_and_shrinks_with_bits(tokens, batch, dtype):
    llama = kv.Cache((kv.Layer(2048), kv.Layer(2048, 4096)), "GQA")
    size = llama.bytes(tokens, batch, dtype)
    assert size <= llama.bytes(tokens + 1, batch, dtype) and size < llama.bytes(tokens, batch + 1, dtype)
    assert llama.bytes(tokens, batch, dtype, 0.5) <= size
    if tokens >= 4:  # the scales of a few tokens weigh more than what 8 bits save
        assert size <= llama.bytes(tokens, batch, "fp16")


# ---- the rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "fp8", "fp4", "format"),
    [
        ("Ampere", False, False, "int8"),
        ("Ampere", True, True, "int8"),
        ("Ada", False, False, "int8"),
        ("Ada", True, False, "fp8"),
        ("Ada", False, True, "int8"),
        ("Hopper", False, False, "fp8"),
        ("Hopper", False, True, "fp8"),
        ("Blackwell", False, False, "fp8"),
        ("Blackwell", False, True, "fp4"),
        ("older than Ampere", True, True, "int8"),
        (None, True, True, "int8"),
    ],
)
def test_quantization_by_generation(generation, fp8, fp4, format):
    found, why = precision(generation, fp8, fp4)
    assert found == format and why


@given(*[st.integers(0, 10**13)] * 5, st.booleans())
def test_dense_attention_never_fetches_a_selection(whole, kept, selected, read, free, signal):
    kept, selected = min(kept, whole), min(selected, whole)
    places = kv.placements(whole, kept, selected, read, free, 2e12, 32e9, CXL, signal)
    assert [place.name for place in places] == list(kv.NAMES)
    assert places[3].available == (signal and 0 < free < whole)
    assert places[0].available == (free > 0 and kept <= free)
    if places[1].available:
        assert places[1].hbm + places[1].pool == kept and places[2].seconds >= places[1].seconds


def test_times_are_bytes_over_bandwidths():
    inside, offload, pool, select = kv.placements(
        100 * 10**9, 100 * 10**9, 5 * 10**9, 10 * 10**9, 60 * 10**9, 1e12, 50e9, CXL, True
    )
    assert not inside.available and inside.seconds is None
    assert offload.seconds == pytest.approx(40 / 50)  # longer than (10 + 60) / 1000
    assert pool.seconds == pytest.approx(40 / 50 + 250e-9)  # CXL's 64 GB/s lie behind the slot's 50
    assert select.seconds == pytest.approx(5 / 50 + 250e-9) and select.pool == 100 * 10**9
    fits = kv.placements(40 * 10**9, 40 * 10**9, 40 * 10**9, 10 * 10**9, 60 * 10**9, 1e12, 50e9, CXL, False)
    assert [place.available for place in fits] == [True, False, False, False]
    assert fits[0].seconds == pytest.approx(50 / 1000)


def test_a_sparse_model_is_known_by_its_config_and_fetches_its_top_k():
    config = {"model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"], "num_hidden_layers": 2}
    sparse = of_config(config, "sparse")
    document = deploy(sparse, Load(10**6, 64), Machine("H200"))
    select = document["placements"][3]
    assert document["attention"]["sparse"] and select["available"]
    values = 512 + 64 + 128  # latent, rotated key, and the indexer's own key
    assert document["kv_bytes"] == 2 * values * 10**6 * 64 * 2
    assert select["ms_per_step"] == pytest.approx(1e3 * (2 * values * 2048 * 64 * 2 / 64e9), rel=1e-3)
    dense = deploy(of_config(configs.LLAMA_2_7B), Load(10**6, 64), Machine("H200"))
    assert not dense["placements"][3]["available"] and "Never for dense attention" in dense["placements"][3]["why"]


def test_keeping_tokens_of_dense_attention_is_called_what_it_is(foot):
    dense = deploy(foot("LLAMA_2_7B"), Load(128_000, 8, keep=0.1), Machine("H100"))
    assert any("throws the rest away" in reason for reason in dense["reasons"])
    assert "changes what dense attention answers" in dense["verdict"]
    sparse = deploy(foot("LLAMA_2_7B"), Load(128_000, 8, keep=0.1, sparse=True), Machine("H100"))
    assert not any("throws the rest away" in reason for reason in sparse["reasons"])
    assert "changes what" not in sparse["verdict"]
    assert sparse["placements"][3]["available"]


# ---- the verdict ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpu", "load", "fixed", "answer", "says"),
    [
        ("LLAMA_2_7B", "H100", (4096, 1), None, "dense", "Nothing has to be compressed"),
        ("MIXTRAL_8X7B", "A100", (8192, 4), None, "quantize", "int8 takes"),
        ("MIXTRAL_8X7B", "A100", (8192, 4), True, "quantize", "only where this is not enough"),
        ("MIXTRAL_8X7B", "A100", (8192, 4), False, "quantize", "A smaller dense model is the other simple answer"),
        ("MIXTRAL_8X7B", "L40S", (8192, 4), None, "quantize", "int4 takes"),
        ("MIXTRAL_8X7B", "RTX 4090", (8192, 4), True, "pipeline", "The full pipeline: a plan of at most 17 GB"),
        ("MIXTRAL_8X7B", "RTX 4090", (8192, 4), False, "smaller", "A smaller dense model"),
        ("MIXTRAL_8X7B", "RTX 4090", (8192, 4), None, "ask", "If the checkpoint is not fixed"),
        ("LLAMA_2_7B", "A100", (16384, 12), None, "cache", "KV cache in int8"),
        ("LLAMA_2_7B", "H100", (128_000, 8), None, "cache", "Not even one sequence fits"),
        ("LLAMA_2_7B", "H200", (128_000, 8), None, "cache", "At most 1 of 8 sequences fit"),
        ("LLAMA_3_405B", "L4", (8192, 4), True, "none", "too small for this model and this load"),
    ],
)
def test_the_simplest_answer_that_holds_comes_first(foot, name, gpu, load, fixed, answer, says):
    document = deploy(foot(name), Load(*load), Machine(gpu), constraints=Constraints(fixed))
    assert (document["answer"], document["fits"]) == (answer, answer == "dense"), document["verdict"]
    assert says in document["verdict"]
    assert document["reasons"] == [reason for node in document["nodes"] for reason in node["reasons"]]
    assert [row["way"] for row in document["ways"]][:2] == ["dense", "quantization only"]
    assert all(row["measured"] is None for row in document["ways"])  # a config alone: nothing was measured


def test_what_a_token_costs(foot):
    assert dollars(3.6, 1000) == pytest.approx(1.0)
    document = deploy(foot("LLAMA_2_7B"), Load(4096, 4), Machine("H100", price=2.0, throughput=500.0))
    assert document["dollars_per_mtoken"] == pytest.approx(2.0 / (500 * 3600) * 1e6)
    dense, quantized = document["ways"][:2]
    assert (dense["dollars"], dense["dollars_are"]) == (document["dollars_per_mtoken"], "typed throughput")
    step = (quantized["weights_bytes"] + document["kv_bytes"]) / 3.35e12
    assert quantized["dollars"] == pytest.approx(2.0 / (4 / step * 3600) * 1e6)
    assert quantized["dollars_are"].startswith("at least")


def test_the_smaller_model_is_counted_like_the_other(foot, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(configs.QWEN_2_5_05B))
    document = deploy(foot("LLAMA_2_7B"), Load(4096), L4, constraints=Constraints(smaller=tmp_path))
    row = document["ways"][3]
    assert row["weights_bytes"] == 2 * 494_032_768 and row["fits"]
    other = deploy(tmp_path, Load(4096), L4)
    assert row["total_bytes"] == other["total_bytes"]


def test_the_cache_is_placed_beside_the_weights_that_would_be_served(foot):
    beside = {name: deploy(foot(name), Load(8192, 4), A100) for name in ("MIXTRAL_8X7B", "LLAMA_3_8B")}
    words = {name: document["placed_beside"] for name, document in beside.items()}
    assert words == {"MIXTRAL_8X7B": "int8 weights", "LLAMA_3_8B": "dense weights in bfloat16"}
    for name, way in (("MIXTRAL_8X7B", 1), ("LLAMA_3_8B", 0)):
        weights, document = beside[name]["ways"][way]["weights_bytes"], beside[name]
        room = document["usable_bytes"] - weights - document["activation_bytes"]
        assert document["cache_room_bytes"] == room and document["placements"][0]["available"]


def test_a_smaller_model_that_does_not_fit_is_no_answer(foot):
    def beside(smaller: str) -> dict:
        constraints = Constraints(fixed=False, smaller=foot(smaller))
        return deploy(foot("MIXTRAL_8X7B"), Load(8192, 4), Machine("RTX 4090"), constraints=constraints)

    document = beside("LLAMA_2_7B")
    assert document["answer"] == "none" and "Neither quantization nor the smaller model fits" in document["verdict"]
    assert beside("QWEN_2_5_05B")["answer"] == "smaller"


def test_host_memory_that_is_too_small_leaves_the_pool(foot):
    document = deploy(foot("LLAMA_2_7B"), Load(128_000, 8), Machine("H100", host_memory=256))
    assert [place["available"] for place in document["placements"]] == [False, False, True, False]


# ---- a checkpoint: plans, spectra and runs ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy") / "tiny"
    make("llama", folder)
    return folder


def half(checkpoint) -> Plan:
    """Every compressible weight cut to half its break-even χ."""
    weights = {}
    for weight in checkpoint.weights:
        if weight.compressible:
            n_out, n_in = weight.shape
            chi = max(1, n_out * n_in // (2 * (n_out + n_in)))
            weights[weight.name] = {"network": "lowrank", "out": [n_out], "in": [n_in], "chi": [chi], "quantize": None}
    return Plan(model_entry(checkpoint), "weight", weights)


def test_a_plan_is_counted_by_its_ledger_with_and_without_the_checkpoint(tiny, tmp_path):
    checkpoint = open_checkpoint(tiny)
    plan = half(checkpoint)
    plan.save(tmp_path / "plan.json")
    document = deploy(tiny, SHORT, L4, tmp_path / "plan.json")
    assert document["weights_bytes"] == plan.ledger(checkpoint).bytes < checkpoint.bytes
    assert document["ways"][2]["weights_bytes"] == document["weights_bytes"]
    assert document["ways"][0]["weights_bytes"] == checkpoint.bytes
    alone = deploy(tiny / "config.json", SHORT, L4, plan)
    itemsize = checkpoint.bytes / checkpoint.parameters
    assert footprint(tiny / "config.json").itemsize == itemsize
    assert alone["weights_bytes"] == document["weights_bytes"]
    with pytest.raises(InputError, match="fingerprint"):
        deploy(tiny, SHORT, L4, Plan({**plan.model, "fingerprint": "0" * 64}, "weight", plan.weights))
    with pytest.raises(InputError, match="parameters"):
        deploy(of_config(configs.LLAMA_2_7B), SHORT, L4, plan)


def test_without_spectra_node_one_says_what_to_run(tiny):
    for model, said in ((tiny, str(tiny)), (tiny / "config.json", "MODEL")):
        node = deploy(model, SHORT, L4)["nodes"][0]
        assert (node["evidence"], node["answer"]) == (False, "no evidence")
        assert f"profile {said} --metrics weight,functional" in node["reasons"][0]


def test_layers_are_advised_by_the_error_of_their_outputs(tiny):
    checkpoint = open_checkpoint(tiny)
    profile = made_up.profile(2, metrics=("weight", "functional"), fingerprint=checkpoint.fingerprint)
    profile.save(Workspace().profile_dir(checkpoint.key, "made-up"))
    found = evidence.functional_profile(checkpoint)
    rows = {row.name: row for row in evidence.advise(found, tolerance=0.2)}
    assert set(rows) == {row["name"] for row in profile.weights if row["compressible"]}
    advice = set()
    for name, row in rows.items():
        n_out, n_in = profile.weight(name)["shape"]
        sigma = profile.sigma(name, "functional")
        errors = [float((sigma[chi:] ** 2).sum() / (sigma**2).sum()) for chi in range(len(sigma) + 1)]
        assert row.error == pytest.approx(errors[int(0.3 * n_out * n_in / (n_out + n_in))])
        assert errors[row.needed] <= 0.2 < errors[row.needed - 1]
        wanted = 0 if row.needed <= row.chi else 1 if row.needed < n_out * n_in / (n_out + n_in) else 2
        assert row.advice == evidence.ADVICE[wanted]
        advice.add(row.advice)
    assert "tensor network" in advice and len(advice) > 1  # `k` has three strong directions, `o` is noise
    plan = Plan(
        model_entry(checkpoint),
        "weight",
        {"model.layers.0.o_proj": {"network": "lowrank", "out": [24], "in": [24], "chi": [3], "quantize": None}},
    )
    planned = {row.name: row for row in evidence.advise(found, plan)}["model.layers.0.o_proj"]
    squares = np.square(profile.sigma("model.layers.0.o_proj", "functional"))
    assert (planned.planned, planned.planned_error) == ("lowrank", pytest.approx(squares[3:].sum() / squares.sum()))
    node = deploy(tiny, SHORT, L4, constraints=Constraints(tolerance=0.2))["nodes"][0]
    assert node["evidence"] and sum(node["counts"].values()) == len(rows)


def nothing(checkpoint) -> dict:
    """A plan that leaves every weight as it is."""
    return Plan(model_entry(checkpoint), "weight", {}).to_json()


def measured(checkpoint, kind, method, bytes_, rise, **more) -> dict:
    text = {"name": "a text", "sha256": "1" * 64}
    return {
        "format": RUN_FORMAT,
        "version": RUN_VERSION,
        "kind": kind,
        "method": method,
        "label": f"{method} {bytes_}",
        "model": model_entry(checkpoint),
        "bytes": bytes_,
        "kept": 0.5,
        "bytes_kept": 0.5,
        "rise": rise,
        "text": text,
        "dense": {"loss": 2.5},
        **more,
    }


def test_runs_of_the_workspace_are_marked_measured(tiny):
    checkpoint = open_checkpoint(tiny)
    plan, workspace = half(checkpoint), Workspace()
    for run in (
        measured(checkpoint, "baseline", "rtn", 1000, 0.02, settings={"bits": 8}),
        measured(checkpoint, "baseline", "gptq", 600, 0.5, settings={"bits": 4}),
        measured(checkpoint, "network", "lowrank", 900, 0.3, plan=plan.to_json()),
        measured(checkpoint, "network", "mpo", 800, 0.7, plan=Plan(plan.model, "weight", {}).to_json()),
    ):
        workspace.new_run(run)
    other = measured(checkpoint, "baseline", "rtn", 1, 0.0, settings={"bits": 8})
    workspace.new_run(other | {"model": {**other["model"], "fingerprint": "f" * 64}})
    ways = deploy(tiny, SHORT, A100)["ways"]
    values = [row["measured"] and (row["measured"]["measure"], row["measured"]["value"]) for row in ways]
    assert values == [("rise", 0.0), ("rise", 0.02), ("rise", 0.3), None]
    assert ways[0]["measured"]["label"] == "loss 2.5000"
    hopper = deploy(tiny, SHORT, Machine("H100"), plan)["ways"]
    assert hopper[1]["measured"] is None and "int8 was: rise 0.02" in hopper[1]["note"]
    assert hopper[2]["measured"]["value"] == 0.3
    assert "alone" not in hopper[2]["note"]


def test_runs_on_another_text_are_not_compared(tiny):
    checkpoint, workspace = open_checkpoint(tiny), Workspace()
    other = {"text": {"name": "another text", "sha256": "2" * 64}}
    workspace.new_run(measured(checkpoint, "baseline", "rtn", 900, 0.0001, settings={"bits": 8}) | other)
    for bytes_, rise in ((900, 0.3), (800, 0.4)):
        workspace.new_run(measured(checkpoint, "network", "mpo", bytes_, rise, plan=nothing(checkpoint)))
    assert [run["rise"] for run in evidence.runs_of(checkpoint)] == [0.3, 0.4]
    assert deploy(tiny, SHORT, A100)["ways"][1]["measured"] is None


def test_the_pipeline_is_compared_at_the_size_of_quantization_alone(tiny):
    checkpoint, workspace = open_checkpoint(tiny), Workspace()
    quantized = deploy(tiny, SHORT, A100)["ways"][1]["weights_bytes"]
    for bytes_, rise in ((quantized + 1, 0.0), (quantized, 0.1), (quantized // 2, 0.2)):
        workspace.new_run(measured(checkpoint, "network", "mpo", bytes_, rise, plan=nothing(checkpoint)))
    row = deploy(tiny, SHORT, A100)["ways"][2]
    assert (row["weights_bytes"], row["measured"]["value"]) == (quantized, 0.1) and "alone" not in row["note"]
    workspace.new_run(measured(checkpoint, "baseline", "gptq", quantized // 3, 0.05, settings={"bits": 2}))
    note = deploy(tiny, SHORT, A100)["ways"][2]["note"]
    assert f"gptq {quantized // 3} alone is no larger and loses no more" in note


def test_further_quantization_comes_before_a_pipeline_that_fits(tiny, monkeypatch):
    checkpoint, workspace = open_checkpoint(tiny), Workspace()
    foot = footprint(tiny)
    room = foot.quantized(lambda rows, columns: format_bytes("int4", rows, columns)) // 2
    memory = (room + foot.activations(1, 1) + kv.cache_of(foot.config).bytes(1, 1)) / 0.9 + 1
    card = dataclasses.replace(hardware.find("A100"), memory=math.ceil(memory))
    monkeypatch.setattr(hardware, "find", lambda name: card)
    workspace.new_run(measured(checkpoint, "network", "lowrank", room, 0.3, plan=nothing(checkpoint)))
    asked = (foot, Load(1), Machine("a small one"), None, Constraints(fixed=True))
    document = deploy(*asked)
    assert document["answer"] == "pipeline" and "the plan fits" in document["verdict"]
    workspace.new_run(measured(checkpoint, "baseline", "gptq", room - 1, 0.2, settings={"bits": 2}))
    document = deploy(*asked)
    assert document["answer"] == "quantize" and f"gptq {room - 1} is no larger" in document["verdict"]


def test_a_measured_quantization_that_is_smaller_and_better_wins(tiny):
    checkpoint = open_checkpoint(tiny)
    network = measured(checkpoint, "network", "lowrank", 900, 0.3, plan=nothing(checkpoint))
    better = measured(checkpoint, "baseline", "gptq", 600, 0.2, settings={"bits": 3})
    worse = measured(checkpoint, "baseline", "gptq", 500, 0.4, settings={"bits": 2})
    larger = measured(checkpoint, "baseline", "rtn", 1000, 0.0, settings={"bits": 8})
    pruned = measured(checkpoint, "baseline", "magnitude", 500, 0.0)
    assert evidence.cheaper([network, worse, better, larger, pruned], network) == better
    assert evidence.cheaper([network, worse, larger, pruned], network) is None


def test_what_a_package_quantized_is_a_rival_and_no_format_of_ours(tiny):
    checkpoint = open_checkpoint(tiny)
    network = measured(checkpoint, "network", "lowrank", 900, 0.3, plan=nothing(checkpoint))
    theirs = {"bits": 3, "package": "Quanta"}
    package = measured(checkpoint, "baseline", "Quanta 1.2 GPTQ", 600, 0.1, settings=theirs)
    corrected = measured(checkpoint, "baseline", "Quanta 1.2 GPTQ + EoRA", 700, 0.05, settings=theirs | {"rank": 8})
    ours = measured(checkpoint, "baseline", "gptq", 500, 0.2, settings={"bits": 3})
    runs = [network, package, corrected, ours]
    assert evidence.cheaper(runs, network) == package
    assert evidence.of_quantization(runs, "int3") == ours
    assert not evidence.quantization_alone(corrected)


def test_a_plan_without_any_network_is_quantization_alone(tiny):
    """What `plan --network auto --quantize auto` comes to where no network pays."""
    checkpoint = open_checkpoint(tiny)

    def entries(*formats):
        return {"weights": {str(n): {"network": "dense", "quantize": form} for n, form in enumerate(formats)}}

    eights = measured(checkpoint, "network", "auto", 900, 0.01, plan=entries("int8", "int8"))
    mixed = measured(checkpoint, "network", "auto", 600, 0.02, plan=entries("int4g128", "int2"))
    network = measured(checkpoint, "network", "lowrank", 700, 0.3, plan={"weights": {"0": {"network": "lowrank"}}})
    runs = [eights, mixed, network]
    assert [evidence.quantization_alone(run) for run in runs] == [True, True, False]
    assert evidence.pipelines(runs) == [network] and evidence.cheaper(runs, network) == mixed
    assert evidence.of_quantization(runs, "int8") == eights and evidence.of_quantization(runs, "int4") is None
    bare = measured(checkpoint, "baseline", "rtn", 500, 0.1, settings={})
    assert evidence.of_quantization([bare, network], "fp8") is None


# ---- hardware ---------------------------------------------------------------------------------------------------


def test_every_figure_of_the_hardware_has_a_source():
    document = hardware.document()
    for row in [*document["gpus"], document["pools"]["cxl"]]:
        assert row["source"]["name"] and row["source"]["url"].startswith("https://")
    for entry in document["published"]:  # whose article has no address on record, and says so
        assert entry["source"]["name"] and (entry["source"]["url"] or "not on record" in entry["note"])
    for name, gpu in hardware.gpus().items():
        assert gpu.generation in hardware.GENERATIONS, name
        assert 1e10 < gpu.memory < 1e12 and 1e11 < gpu.bandwidth < 1e13 and gpu.pcie in (32e9, 64e9)
        assert gpu.fp8 == (gpu.generation != "Ampere") and gpu.fp4 == (gpu.generation == "Blackwell")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("h100", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("A100", "A100 80GB SXM"),
        ("a100-40gb", "A100 40GB SXM"),
        ("GeForce RTX 4090", "RTX 4090"),
        ("l4", "L4"),
        ("L40S", "L40S"),
        ("PRO 6000", "RTX PRO 6000 Blackwell"),
    ],
)
def test_a_gpu_is_found_by_what_people_call_it(asked, name):
    assert hardware.find(asked).name == name


@pytest.mark.parametrize("asked", ["TPU v5", "", "RTX"])
def test_an_unknown_or_ambiguous_gpu_is_refused_with_the_names(asked):
    with pytest.raises(InputError, match="RTX 4090"):
        hardware.find(asked)


@pytest.mark.parametrize(
    ("device", "capability", "memory", "generation", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), 85_520_809_984, "Hopper", 3350e9),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 85_198_045_184, "Ampere", 2039e9),
        ("NVIDIA L40S", (8, 9), 47_810_936_832, "Ada", 864e9),
        ("NVIDIA GeForce RTX 4060", (8, 9), 8_585_216_000, "Ada", None),
        ("NVIDIA GB300", (10, 3), 300_000_000_000, "Blackwell", None),
        ("Tesla T4", (7, 5), 15_828_320_256, "older than Ampere", None),
    ],
)
def test_this_machines_gpu_is_detected(monkeypatch, device, capability, memory, generation, bandwidth):
    import torch

    found = types.SimpleNamespace(name=device, major=capability[0], minor=capability[1], total_memory=memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    gpu = hardware.detect()
    assert (gpu.generation, gpu.memory, gpu.bandwidth) == (generation, memory, bandwidth)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.detect() is None


# ---- bad input, and the verb ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": "no-such-model"}, "no model that transformers can build"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"torch_dtype": "float13"}, "of no model|dtype"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        of_config(configs.LLAMA_2_7B | change)


def test_values_that_cannot_be_are_refused(foot, tmp_path):
    llama = foot("LLAMA_2_7B")
    for load, says in (
        (Load(0), "tokens"),
        (Load(1, 0), "batch"),
        (Load(1, kv_dtype="fp2"), "fp2"),
        (Load(1, keep=0), "kept"),
        (Load(1, keep=1.5), "kept"),
    ):
        with pytest.raises(InputError, match=says):
            deploy(llama, load, NO_GPU)
    for values, says in (
        ({"price": -1.0}, "Price"),
        ({"price": float("nan")}, "Price"),
        ({"throughput": 0.0}, "Throughput"),
        ({"host_memory": -1.0}, "Host memory"),
    ):
        with pytest.raises(InputError, match=says):
            Machine(**values)
    with pytest.raises(InputError, match="abacus"):
        deploy(llama, SHORT, Machine("abacus"))
    with pytest.raises(InputError, match="none does not exist"):
        deploy(llama, SHORT, NO_GPU, tmp_path / "none")
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "model.txt").write_text("")
    for model in (tmp_path, tmp_path / "model.txt", tmp_path / "nothing", "no/such/model/here"):
        with pytest.raises(InputError):
            deploy(model, SHORT, NO_GPU)
    with pytest.raises(InputError, match="encoder and a decoder"):
        deploy(of_config({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}), SHORT, NO_GPU)


def test_the_verb_takes_a_config_alone(tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(configs.QWEN_2_5_05B))
    asked = ["deploy", str(file), "--tokens", "32768", "--batch", "1", "--gpu", "L4", "--kv-dtype", "int8"]
    assert cli.main([*asked, "--kv-keep", "0.5", "--price", "0.8", "--json", "--progress", "off"]) == 0
    document = json.loads(capsys.readouterr().out)
    wanted = {"weights_bytes", "kv_bytes", "activation_bytes", "total_bytes", "fits", "verdict", "reasons"}
    assert wanted <= document.keys()
    assert document["kv_bytes"] == 24 * (16384 * 256 + 2 * 256)
    assert cli.main([*asked, "--progress", "off"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("Deploy it dense") and "not measured" in table and "Published, not measured here" in table
    assert "To maintain:\n   dense: Nothing beyond the engine." in table
    assert cli.main(["deploy", str(file), "--tokens", "1", "--batch", "1", "--gpu", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
