"""GGUF files that are written: read again they are the folder, and what they hold is what ggml's types hold."""

import json

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from karipap_core.checkpoint.gguf.layouts import DO, UNDO, Heads
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.exports.export import export, plan_of
from karipap_core.exports.gguf import blocks
from karipap_core.exports.gguf.vocabulary import vocabulary
from karipap_core.exports.source import Source
from karipap_core.quantization.formats import Format
from tests.helpers import for_llama_cpp, gguf_files
from tests.helpers.plans import EVERY, in_turn

pytestmark = pytest.mark.usefixtures("quick_fits")


def written(name, tmp_path, kinds=EVERY, **changes):
    """(compressed folder, its export) of a model of `gguf_files.MADE`."""
    model = for_llama_cpp.model(name, tmp_path / "made", **changes)
    folder = in_turn(model, tmp_path / "compressed", *kinds)
    return folder, export(folder, "gguf", tmp_path / "out")


def base_of(source, tensor, owners, lines):
    """What model.gguf has to hold of a tensor: without the correction where an adapter brings that."""
    if tensor not in owners:
        return source.checkpoint.read_tensor(tensor).float()
    part = source.part(owners[tensor])
    W = part.grid.dense() if lines[part.name]["rank"] else source.exact(part.name).float()
    return (W.T if part.held.transposed else W).reshape(part.held.shape)


@pytest.mark.parametrize("name", gguf_files.MADE)
def test_what_is_written_is_read_again(tmp_path, name):
    folder, document = written(name, tmp_path)
    source, opened = Source(folder), open_checkpoint(tmp_path / "out" / "model.gguf")
    dense = {tensor: piece.shape for tensor, piece in source.pieces().items()}
    assert {tensor: info.shape for tensor, info in opened.tensors.items()} == dense
    owners = {source.held(each).tensor: each for each in source.names if not source.held(each).stack}
    stacks = {source.held(each).tensor for each in source.names} - owners.keys()
    lines = {line["weight"]: line for line in document["weights"]}
    for tensor in dense:
        value = opened.read_tensor(tensor).float()
        if tensor in stacks:
            wanted = torch.stack([source.exact(f"{tensor}.{number}").float() for number in range(len(value))])
            wanted = wanted.mT if wanted.shape != value.shape or source.original["stacks"][tensor] else wanted
            assert torch.allclose(value, wanted, rtol=1e-3, atol=1e-6), tensor
        else:
            wanted = base_of(source, tensor, owners, lines)
            told = lines[owners[tensor]]["error"] if tensor in owners else 0
            assert (value - wanted).norm() <= (told + 2e-3) * wanted.norm(), tensor  # blocks are opened to bfloat16
    assert lines.keys() == set(source.names) and len({line["stored"] for line in lines.values()}) > 1
    assert any(line["rank"] for line in lines.values()) or name == "gpt oss", "no weight has its adapter"
    assert all(line["error"] < 1e-2 for line in lines.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon in groups", "bloom", "qwen3.5"])
def test_an_adapter_holds_each_correction_in_the_order_of_its_weights_rows(tmp_path, name):
    """Against the tests' own converter, which is written from llama.cpp's."""
    folder, _ = written(name, tmp_path, ("qlr int4 5", "qlr int3 3 int4"))
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    kind = gguf_files.NAMES.get(config["model_type"], config["model_type"])
    reader = GGUFReader(tmp_path / "out" / "adapter.gguf")
    field = {key: reader.fields[key].contents() for key in reader.fields if not key.startswith("GGUF")}
    assert (field["general.type"], field["adapter.type"], field["adapter.lora.alpha"]) == ("adapter", "lora", 0.0)
    assert field["general.architecture"] == kind
    held = {tensor.name: torch.tensor(np.array(tensor.data)).double() for tensor in reader.tensors}
    whole = GGUFReader(tmp_path / "out" / "model.gguf")
    base = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in whole.tensors}
    source = Source(folder)
    ranks = set()
    stored = {}
    for each in source.names:
        part = source.part(each)
        W = source.exact(each).float()
        stored[part.held.tensor] = (W.T if part.held.transposed else W).contiguous()
    for tensor in source.pieces():
        if tensor not in stored:
            stored[tensor] = source.checkpoint.read_tensor(tensor).float()
    from safetensors.torch import save_file

    (tmp_path / "dense").mkdir()
    save_file(stored, tmp_path / "dense" / "model.safetensors")
    wanted = gguf_files._converted(tmp_path / "dense", config, kind)
    for stem in {key.rpartition(".")[0] for key in held}:
        right, left = held[f"{stem}.lora_a"], held[f"{stem}.lora_b"]
        ranks.add(left.shape[1])
        error = np.linalg.norm(base[stem] + (left @ right).numpy() - wanted[stem]) / np.linalg.norm(wanted[stem])
        assert error < 1e-3, stem
        assert np.linalg.norm(base[stem] - wanted[stem]) > 2e-3 * np.linalg.norm(wanted[stem])
    lines = json.loads((tmp_path / "out" / "karipap-export.json").read_text())["weights"]
    assert ranks == {3, 5} and len(held) == 2 * sum(line["rank"] > 0 for line in lines) > len(source.names)


def test_a_file_that_was_written_has_the_spectra_of_the_folder(tmp_path):
    """Singular values of what Karipap opens, in bfloat16, against those of every stored weight. Weyl: σ_k moves by no
    more than the spectral norm of the difference, which is at most the rounding's and the type's Frobenius norm."""
    folder, document = written("llama", tmp_path, ("int4", "int3", "lowrank 6"))
    source, opened = Source(folder), open_checkpoint(tmp_path / "out" / "model.gguf")
    errors = {line["weight"]: line["error"] for line in document["weights"]}
    for name in source.names:
        W = source.exact(name)
        sigma, found = torch.linalg.svdvals(W), torch.linalg.svdvals(opened.read(name).double())
        stored = 2**-9 if "int" in source.part(name).says else 0  # integers are opened to bfloat16
        assert (sigma - found).abs().max() <= (errors[name] + stored) * W.norm()
        assert errors[name] > 0 or source.part(name).grid.bits == 3


def test_a_plain_export_has_every_weight_in_16_bits(tmp_path):
    model = for_llama_cpp.model("llama", tmp_path / "made")
    folder = in_turn(model, tmp_path / "compressed", *EVERY)
    document = export(folder, "gguf", tmp_path / "out", plain=True)
    assert {line["stored"] for line in document["weights"]} <= {"dense, F16", "dense, BF16"}
    assert not any(line["why"] for line in document["weights"]) and not (tmp_path / "out" / "adapter.gguf").exists()
    assert all(line["error"] < 2**-9 for line in document["weights"])


@pytest.mark.parametrize("form", ["int2", "int3", "int4", "int4g32", "int8", "int3g128", "int2g96"])
def test_blocks_hold_a_grid_as_gguf_unpacks_them(form):
    torch.manual_seed(1)
    grid = Format.parse(form).nearest(torch.randn(6, 160) * torch.logspace(-3, 0, 6)[:, None])
    found = blocks.in_blocks(grid)
    assert torch.equal(found.dense(), grid.dense())
    kind = blocks.best_of(found)
    assert kind == {"2": "Q4_0", "3": "Q4_0", "4": "Q4_1", "8": "Q8_0"}[form[3]]
    for each in blocks.BYTES:
        if not blocks.fits(found, each):
            continue
        packed = blocks.packed(found, each)
        assert packed.shape == (6, 5 * blocks.BYTES[each]) and packed.dtype == np.uint8
        unpacked = torch.from_numpy(dequantize(packed, GGMLQuantizationType[each]))
        assert torch.equal(unpacked, blocks.values(found, each)) or each == "Q4_1"  # which adds in another order
        assert torch.allclose(unpacked, blocks.values(found, each), rtol=1e-6, atol=1e-7)
        error = (unpacked - grid.dense()).norm() / grid.dense().norm()
        if each in ("Q4_0", "Q5_0") or (each == "Q8_0" and form[3] != "8"):
            assert error == 0
        else:
            assert error < (1e-3 if each == "Q4_1" else 5e-3)


def test_bytes_are_exact_in_each_block_that_a_signed_byte_holds():
    codes = torch.zeros(1, 64, dtype=torch.uint8)
    codes[0, :32], codes[0, 32:] = torch.arange(32) * 4 + 3, torch.arange(32) * 4 + 128
    from karipap_core.quantization.packing import Quantized

    grid = Quantized(codes, torch.tensor([[0.01]]).half(), torch.tensor([[100]], dtype=torch.uint8), 8, 64)
    found = blocks.in_blocks(grid)
    unpacked = torch.from_numpy(dequantize(blocks.packed(found, "Q8_0"), GGMLQuantizationType.Q8_0))
    assert torch.equal(unpacked[:, :32], grid.dense()[:, :32])
    assert 0 < (unpacked - grid.dense()).abs().max() < 0.01 * 152 / 127 / 2 + 1e-5


def test_sizes_of_blocks_are_ggmls():
    assert all(GGML_QUANT_SIZES[GGMLQuantizationType[kind]] == (32, size) for kind, size in blocks.BYTES.items())


def test_groups_that_cut_a_block_are_no_blocks():
    grid = Format.parse("int4g16").nearest(torch.randn(4, 64))
    assert blocks.in_blocks(grid) is None
    assert blocks.in_blocks(Format.parse("int4").nearest(torch.randn(4, 48))) is None


@pytest.mark.parametrize("layout", UNDO)
def test_a_layout_is_undone(layout):
    heads = Heads(6, 2, groups=2, values=4, size=3, before=10)
    shape = {
        "transposed": (4, 6),
        "qkv by heads": (54, 5),
        "a row": (1, 5),
        "tiled heads": (4, 5),
        "tiled exponential": (4,),
    }.get(layout, (60, 5))
    if layout.startswith("tiled values"):
        shape = (12 + 10 * layout.endswith("behind"), 5)
    shape = {"tiled channels behind": (22, 1, 4), "a channel": (5, 1, 4), "tiled columns": (5, 12)}.get(layout, shape)
    shape = (3, 4, 6) if layout == "each transposed" else shape
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    there = DO[layout](value, heads)
    assert torch.allclose(UNDO[layout](there, heads), value, atol=1e-6)
    assert there.shape != value.shape or not torch.equal(there, value)


PLAIN = "llama untied with biases"
REFUSED = {
    "a bias": ("qwen3", {}, "llama.cpp's qwen3 has no place for the bias blk.0.attn_output.bias"),
    "values of another length": ("qwen3.5", {}, "values as long as keys, and this model's are 12 and 8"),
    "no biases": ("starcoder2", {"use_bias": False}, "llama.cpp's starcoder2 needs biases"),
    "an activation": (PLAIN, {"hidden_act": "gelu"}, "no word for hidden_act = gelu"),
    "a rule of rotation": (
        PLAIN,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "scaled by the rule dynamic",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_that_llama_cpp_has_no_word_for_is_told_before_anything_is_written(tmp_path, case):
    name, changes, said = REFUSED[case]
    model = for_llama_cpp.with_a_merge(gguf_files.make(name, tmp_path / "made", vocab_size=260, **changes))
    folder = in_turn(model, tmp_path / "compressed", *EVERY)
    with pytest.raises(InputError, match=said):
        export(folder, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_type_is_refused(tmp_path):
    from tests.helpers.architectures import make

    folder = in_turn(make("gpt_neox", tmp_path / "made"), tmp_path / "compressed", *EVERY)
    with pytest.raises(InputError, match="of the type gpt_neox is not written as GGUF; these are: bloom, falcon"):
        plan_of(folder, "gguf", tmp_path / "out")


def tokenizer_of(folder, **changes):
    """The demo's tokenizer, with parts of its tokenizer.json changed."""
    from tests.helpers.paths import REPOSITORY

    demo = REPOSITORY / "assets" / "demo_model"
    document = json.loads((demo / "tokenizer.json").read_text())
    document["model"] |= changes.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(document | changes))
    settings = json.loads((demo / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def test_rules_of_words_have_llama_cpps_names(tmp_path):
    cases = {
        "gpt-2": {},
        "smollm": {
            "pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, BYTES | {"use_regex": True})
        },
        "qwen2": {"pre_tokenizer": sequence(SPLIT | {"pattern": {"Regex": QWEN}}, BYTES)},
        "smaug-bpe": {"pre_tokenizer": sequence(SPLIT | {"pattern": {"Regex": LLAMA_3}}, BYTES)},
        "llama-bpe": {
            "pre_tokenizer": sequence(SPLIT | {"pattern": {"Regex": LLAMA_3}}, BYTES),
            "model": {"ignore_merges": True},
        },
    }
    for name, changes in cases.items():
        entries, notes = vocabulary(tokenizer_of(tmp_path, **changes), 4096)
        assert entries["tokenizer.ggml.pre"] == name and not notes
        assert (entries["tokenizer.ggml.model"], len(entries["tokenizer.ggml.tokens"])) == ("gpt2", 4096)
    entries, notes = vocabulary(tokenizer_of(tmp_path, normalizer={"type": "NFC"}), 5000)
    assert (
        "NFC" in notes[0]
        and entries["tokenizer.ggml.token_type"][-1] == 5
        and entries["tokenizer.ggml.token_type"][0] == 3
    )


def test_a_rule_of_words_without_a_name_is_refused(tmp_path):
    other = sequence(SPLIT | {"pattern": {"Regex": r"\p{L}+|\s+"}}, BYTES)
    with pytest.raises(InputError, match="no name for"):
        vocabulary(tokenizer_of(tmp_path, pre_tokenizer=other), 4096)
    with pytest.raises(InputError, match="no name for"):
        vocabulary(tokenizer_of(tmp_path, pre_tokenizer={"type": "Whitespace"}), 4096)
    with pytest.raises(InputError, match="changes text .Lowercase."):
        vocabulary(tokenizer_of(tmp_path, normalizer={"type": "Lowercase"}), 4096)
