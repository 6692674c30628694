"""Broken checkpoints: files, JSON, types of fields, config against tensors, tensors, headers, indexes, tokenizers."""

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from karipap_core.models.empty import LIMITS
from tests.bad_input import Case, changed, model

UP = "model.layers.0.mlp.up_proj.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\n"
FORMAT = {"format": "pt"}
ONE_LAYER = LIMITS | {"num_hidden_layers": 1}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
Make = Callable[[Path], object]


def config(architecture: str = "llama", **fields) -> Make:
    """A good model whose config.json says something else."""
    return lambda folder: changed(model(folder, architecture) / "config.json", **fields)


def content(name: str, data: bytes) -> Make:
    """A good model with a file of other content."""
    return lambda folder: (model(folder) / name).write_bytes(data)


def marked(name: str) -> Make:
    def make(folder: Path) -> None:
        file = model(folder) / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())

    return make


def edited(name: str, edit: Callable[[dict], object]) -> Make:
    def make(folder: Path) -> None:
        file = model(folder) / name
        document = json.loads(file.read_text())
        edit(document)
        file.write_text(json.dumps(document))

    return make


def without(name: str) -> Make:
    return lambda folder: (model(folder) / name).unlink()


def renamed(name: str, other: str) -> Make:
    return lambda folder: (model(folder) / name).rename(folder / "model" / other)


# What may stand in a file's place.


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder_in(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def in_place(name: str, other: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> None:
        (model(folder) / name).unlink(missing_ok=True)
        other(folder / "model" / name)

    return make


# Tensors and headers.


def tensors(edit: Callable[[dict], object], architecture: str = "llama") -> Make:
    """A good model whose tensors were edited."""

    def make(folder: Path) -> None:
        file = model(folder, architecture) / "model.safetensors"
        found = load_file(file)
        edit(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, file, FORMAT)

    return make


def changed_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    return tensors(lambda found: found.update({name: change(found[name])}))


def number(name: str, value: float) -> Make:
    """A good model with one number that is none."""
    return tensors(lambda found: found[name].view(-1)[-1:].fill_(value))


def header(edit: Callable[[dict], object]) -> Make:
    """A good model whose header was edited."""

    def make(folder: Path) -> None:
        _, document, data = parts(model(folder))
        edit(document)
        written(folder / "model", json.dumps(document).encode(), data)

    return make


def parts(place: Path) -> tuple[bytes, dict, bytes]:
    """(header as bytes, header, data) of a model's file."""
    data = (place / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], json.loads(data[8:end]), data[end:]


def written(place: Path, text: bytes, data: bytes) -> None:
    (place / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def twice(folder: Path) -> None:
    text, document, data = parts(model(folder))
    entry = json.dumps({UP: document[UP]}).encode()
    written(folder / "model", entry[:-1] + b"," + text.strip()[1:], data)


def nested(depth: int) -> list:
    return functools.reduce(lambda inner, _: [inner], range(depth), [])


def cut(by: int) -> Make:
    def make(folder: Path) -> None:
        file = model(folder) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-by])

    return make


# Folders.


def below(folder: Path) -> None:
    model(folder, name="below")
    (folder / "model").mkdir()
    (folder / "below").rename(folder / "model" / "below")


def two_models(folder: Path) -> None:
    file = model(folder) / "model.safetensors"
    shutil.copy(file, file.with_name("one.safetensors"))
    file.rename(file.with_name("other.safetensors"))


def sharded(folder: Path) -> dict:
    """A good model in two files; its index, not yet written."""
    file = model(folder) / "model.safetensors"
    found = load_file(file)
    names = sorted(found)
    parts = {SHARDS[0]: names[: len(names) // 2], SHARDS[1]: names[len(names) // 2 :]}
    for shard, held in parts.items():
        save_file({name: found[name] for name in held}, file.with_name(shard), FORMAT)
    file.unlink()
    return {"metadata": {}, "weight_map": {name: shard for shard, held in parts.items() for name in held}}


def index(edit: Callable[[dict], object]) -> Make:
    def make(folder: Path) -> None:
        document = sharded(folder)
        edit(document)
        (folder / "model/model.safetensors.index.json").write_text(json.dumps(document))

    return make


def index_text(text: str) -> Make:
    def make(folder: Path) -> None:
        sharded(folder)
        (folder / "model/model.safetensors.index.json").write_text(text)

    return make


def shard(other: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> None:
        index(lambda document: None)(folder)
        (folder / "model" / SHARDS[1]).unlink()
        other(folder / "model" / SHARDS[1])

    return make


def shard_gone(folder: Path) -> None:
    sharded(folder)
    (folder / "model" / SHARDS[1]).unlink()


@functools.cache
def plan() -> str:
    """A plan for the good model, which needs no text."""
    import tempfile

    from karipap_core.plan.budget import Budget
    from karipap_core.plan.study import Study
    from karipap_core.story import make_plan
    from karipap_core.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        study = Study(model(Path(folder)), workspace=Workspace(Path(folder) / "workspace"))
        return json.dumps(make_plan(study, Budget(kept=0.7), rule="uniform", metric="weight").to_json())


def planned(edit: Callable[[dict], object]) -> Make:
    """A broken model beside a plan for the good one."""

    def make(folder: Path) -> None:
        tensors(edit)(folder)
        (folder / "plan.json").write_text(plan())

    return make


CASES = [
    Case("no such model", lambda folder: None, "profile model --metrics weight",
         "model is neither a path here nor in the hub's cache, and the hub cannot be reached (or "
         "HF_HUB_OFFLINE is set): name a local folder or go online."),
    Case("empty folder", lambda folder: (folder / "model").mkdir(), "profile model --metrics weight",
         "model holds no .safetensors file: name a folder or file with a model in it."),
    Case("a text file for a model", lambda folder: (folder / "model").write_text("hello"), "profile model --metrics weight",
         "model is neither a .safetensors nor a .gguf file: name one, or the folder it is in."),
    Case("a link that leads nowhere for a model", lambda folder: (folder / "model").symlink_to("nowhere"), "profile model --metrics weight",
         "model is a link to nowhere, which does not exist."),
    Case("a link round in a circle for a model", lambda folder: (folder / "model").symlink_to("model"), "profile model --metrics weight",
         "model is a link that leads back to itself."),
    Case("a pipe for a model", lambda folder: os.mkfifo(folder / "model"), "profile model --metrics weight",
         "model is neither a .safetensors nor a .gguf file: name one, or the folder it is in."),
    Case("a pickle for a model", lambda folder: (folder / "model.bin").write_bytes(b"x"), "profile model.bin",
         "model.bin is a pickle, which can execute code and is never read: save it as .safetensors."),
    Case("only pickles in the folder", renamed("model.safetensors", "pytorch_model.bin"), "profile model --metrics weight",
         "model holds only pickled weights (pytorch_model.bin), which can execute code and are never read: "
         "save the model with safetensors first (save_pretrained of transformers does)."),
    Case("a safetensors file called .gguf", renamed("model.safetensors", "model.gguf"), "profile model --metrics weight",
         "model/model.gguf is not a GGUF file, whatever its name: fetch it again."),
    Case("weights in a folder below", below, "profile model --metrics weight",
         "model holds no .safetensors file: name the folder in it that has a model (below)."),
    Case("two models in one folder", two_models, "profile model --metrics weight",
         "Tensor model.embed_tokens.weight is in both one.safetensors and other.safetensors of model."),
    Case("a name with a NUL", lambda folder: None, "profile 'a\\0b'",
         "a\\0b does not exist: name a folder, a .safetensors file or a hub id such as owner/name."),
    Case("a pipe in place of config.json", in_place("config.json", pipe), "evaluate model",
         "model/config.json is a named pipe, not a regular file: put a file in its place."),
    Case("a folder in place of config.json", in_place("config.json", folder_in), "evaluate model",
         "model/config.json is a folder, not a regular file: put a file in its place."),
    Case("a dangling link in place of config.json", in_place("config.json", dangling), "evaluate model",
         "model/config.json is a link to nowhere, which does not exist."),
    Case("a link in a circle in place of config.json", in_place("config.json", loop), "evaluate model",
         "model/config.json is a link that leads back to itself."),
    Case("a pipe in place of model.safetensors", in_place("model.safetensors", pipe), "profile model --metrics weight",
         "model/model.safetensors is a named pipe, not a regular file: put a file in its place."),
    Case("a folder in place of model.safetensors", in_place("model.safetensors", folder_in), "profile model --metrics weight",
         "model/model.safetensors is a folder, not a regular file: put a file in its place."),
    Case("a dangling link in place of model.safetensors", in_place("model.safetensors", dangling), "profile model --metrics weight",
         "model/model.safetensors is a link to nowhere, which does not exist."),
    Case("a link in a circle in place of model.safetensors", in_place("model.safetensors", loop), "profile model --metrics weight",
         "model/model.safetensors is a link that leads back to itself."),
    Case("a pipe in place of tokenizer.json", in_place("tokenizer.json", pipe), "evaluate model",
         "model/tokenizer.json is a named pipe, not a regular file: put a file in its place."),
    Case("a folder in place of tokenizer.json", in_place("tokenizer.json", folder_in), "evaluate model",
         "model/tokenizer.json is a folder, not a regular file: put a file in its place."),
    Case("a dangling link in place of tokenizer.json", in_place("tokenizer.json", dangling), "evaluate model",
         "model/tokenizer.json is a link to nowhere, which does not exist."),
    Case("a link in a circle in place of tokenizer.json", in_place("tokenizer.json", loop), "evaluate model",
         "model/tokenizer.json is a link that leads back to itself."),
    Case("a pipe in place of tokenizer_config.json", in_place("tokenizer_config.json", pipe), "evaluate model",
         "model/tokenizer_config.json is a named pipe, not a regular file: put a file in its place."),
    Case("a folder in place of tokenizer_config.json", in_place("tokenizer_config.json", folder_in), "evaluate model",
         "model/tokenizer_config.json is a folder, not a regular file: put a file in its place."),
    Case("a dangling link in place of tokenizer_config.json", in_place("tokenizer_config.json", dangling), "evaluate model",
         "model/tokenizer_config.json is a link to nowhere, which does not exist."),
    Case("a link in a circle in place of tokenizer_config.json", in_place("tokenizer_config.json", loop), "evaluate model",
         "model/tokenizer_config.json is a link that leads back to itself."),
    Case("a pipe in place of generation_config.json", in_place("generation_config.json", pipe), "evaluate model",
         "model/generation_config.json is a named pipe, not a regular file: put a file in its place."),
    Case("a folder in place of generation_config.json", in_place("generation_config.json", folder_in), "evaluate model",
         "model/generation_config.json is a folder, not a regular file: put a file in its place."),
    Case("a dangling link in place of generation_config.json", in_place("generation_config.json", dangling), "evaluate model",
         "model/generation_config.json is a link to nowhere, which does not exist."),
    Case("a link in a circle in place of generation_config.json", in_place("generation_config.json", loop), "evaluate model",
         "model/generation_config.json is a link that leads back to itself."),
    Case("a pipe in place of special_tokens_map.json", in_place("special_tokens_map.json", pipe), "evaluate model",
         "model/special_tokens_map.json is a named pipe, not a regular file: put a file in its place."),
    Case("a pipe in place of added_tokens.json", in_place("added_tokens.json", pipe), "evaluate model",
         "model/added_tokens.json is a named pipe, not a regular file: put a file in its place."),
    Case("a pipe in place of vocab.json", in_place("vocab.json", pipe), "evaluate model",
         "model/vocab.json is a named pipe, not a regular file: put a file in its place."),
    Case("a pipe in place of chat_template.jinja", in_place("chat_template.jinja", pipe), "evaluate model",
         "model/chat_template.jinja is a named pipe, not a regular file: put a file in its place."),
    Case("config.json empty", content("config.json", b""), "evaluate model",
         "File model/config.json is empty."),
    Case("config.json a list", content("config.json", b"[1]"), "evaluate model",
         "File model/config.json holds a list, not an object."),
    Case("config.json packed", content("config.json", b"\x1f\x8b\x08\x00"), "evaluate model",
         "File model/config.json is packed with gzip: unpack it first."),
    Case("config.json in UTF-16", content("config.json", '{}'.encode('utf-16')), "evaluate model",
         "File model/config.json is in UTF-16: save it as UTF-8."),
    Case("config.json binary", content("config.json", bytes(range(128, 256))), "evaluate model",
         "File model/config.json is not text in UTF-8 (line 1): save it as UTF-8."),
    Case("config.json with a long number", content("config.json", b'{"a": ' + b"9" * 500 + b"}"), "evaluate model",
         "File model/config.json holds a number of 500 digits: at most 400."),
    Case("config.json with half a surrogate pair", content("config.json", b'{"a": "\\\\ud800"}'), "evaluate model",
         "The config of model does not say model_type: is it a model's config.json?"),
    Case("config.json too deep", content("config.json", b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}"), "evaluate model",
         "File model/config.json nests values more than 64 deep: that is no file of this kind."),
    Case("tokenizer_config.json empty", content("tokenizer_config.json", b""), "evaluate model",
         "File model/tokenizer_config.json is empty."),
    Case("tokenizer_config.json a list", content("tokenizer_config.json", b"[1]"), "evaluate model",
         "File model/tokenizer_config.json holds a list, not an object."),
    Case("tokenizer_config.json too deep", content("tokenizer_config.json", b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}"), "evaluate model",
         "File model/tokenizer_config.json nests values more than 64 deep: that is no file of this kind."),
    Case("generation_config.json empty", content("generation_config.json", b""), "evaluate model",
         "File model/generation_config.json is empty."),
    Case("generation_config.json a list", content("generation_config.json", b"[1]"), "evaluate model",
         "File model/generation_config.json holds a list, not an object."),
    Case("generation_config.json too deep", content("generation_config.json", b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}"), "evaluate model",
         "File model/generation_config.json nests values more than 64 deep: that is no file of this kind."),
    Case("tokenizer.json empty", content("tokenizer.json", b""), "evaluate model",
         "File model/tokenizer.json is empty."),
    Case("tokenizer.json a list", content("tokenizer.json", b"[1]"), "evaluate model",
         "File model/tokenizer.json holds a list, not an object."),
    Case("tokenizer.json too deep", content("tokenizer.json", b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}"), "evaluate model",
         "File model/tokenizer.json nests values more than 64 deep: that is no file of this kind."),
    Case("config.json with a byte order mark", marked("config.json"), "evaluate model",
         "model/config.json begins with a byte order mark, which transformers does not read: save it as UTF-8 wi"
         "thout one."),
    Case("config.json with a field twice", content("config.json", b'{"model_type": "llama", "model_type": "gpt2"}'), "profile model --metrics weight",
         "File model/config.json has the field 'model_type' twice: keep one of them."),
    Case("special_tokens_map.json that is a string", content("special_tokens_map.json", b'"a"'), "evaluate model",
         "File model/special_tokens_map.json holds a string, not an object."),
    Case("config.json is missing", without("config.json"), "evaluate model",
         "model has no config.json, so no model can be made of it: add the file."),
    Case("config.json is missing, deploy", without("config.json"), "deploy model --tokens 100 --batch 1 --gpu A100",
         "model has no config.json: nothing says how large its KV cache is."),
    Case("model_type is 1", config(model_type=1), "evaluate model",
         "File model/config.json, field model_type is a number, not a name: correct it."),
    Case("model_type is missing", config(model_type=...), "evaluate model",
         "The config of model does not say model_type: is it a model's config.json?"),
    Case("model_type is \"unheard_of\"", config(model_type="unheard_of"), "evaluate model",
         "The config of model is of no model that transformers can build: The checkpoint you are trying to "
         "load has model type `unheard_of` but Transformers does not recognize this architecture. This could "
         "be because of an issue with the checkpoint, or because your version of Transformers is out of date."),
    Case("architectures is \"LlamaForCausalLM\"", config(architectures="LlamaForCausalLM"), "evaluate model",
         "File model/config.json, field architectures is a string, not a list of names: correct it."),
    Case("architectures is [1]", config(architectures=[1]), "evaluate model",
         "File model/config.json, field architectures is not a list of names: correct it."),
    Case("architectures is []", config(architectures=[]), "evaluate model",
         "File model/config.json, field architectures is not a list of names: correct it."),
    Case("quantization_config is []", config(quantization_config=[]), "evaluate model",
         "File model/config.json, field quantization_config is a list, not a table: correct it."),
    Case("quantization_config is {\"quant_method\": 1}", config(quantization_config={"quant_method": 1}), "evaluate model",
         "File model/config.json, field quantization_config.quant_method is a number, not a name: correct it."),
    Case("text_config is 1", config(text_config=1), "evaluate model",
         "File model/config.json, field text_config is a number, not a table: correct it."),
    Case("tie_word_embeddings is \"yes\"", config(tie_word_embeddings="yes"), "evaluate model",
         "File model/config.json, field tie_word_embeddings is a string, not true or false: correct it."),
    Case("vocab_size is 0", config(vocab_size=0), "evaluate model",
         "The config of model: vocab_size is 0, not a whole number from 1 to 16,777,216."),
    Case("vocab_size is \"263\"", config(vocab_size="263"), "evaluate model",
         'The config of model: vocab_size is "263", not a whole number from 1 to 16,777,216.'),
    Case("vocab_size is 2.5", config(vocab_size=2.5), "evaluate model",
         "The config of model: vocab_size is 2.5, not a whole number from 1 to 16,777,216."),
    Case("vocab_size is True", config(vocab_size=True), "evaluate model",
         "The config of model: vocab_size is true, not a whole number from 1 to 16,777,216."),
    Case("vocab_size is None", config(vocab_size=None), "evaluate model",
         "The config of model is of no model that transformers can build: Field 'vocab_size' expected int, got"
         " NoneType (value: None)"),
    Case("hidden_size is -48", config(hidden_size=-48), "evaluate model",
         "The config of model: hidden_size is -48, not a whole number from 1 to 16,777,216."),
    Case("hidden_size is [48]", config(hidden_size=[48]), "evaluate model",
         "The config of model is of no model that transformers can build: Field 'hidden_size' expected int, "
         "got list (value: [48])"),
    Case("hidden_size is 50", config(hidden_size=50), "evaluate model",
         "The config of model is of no model that transformers can build: The hidden size (50) is not a "
         "multiple of the number of attention heads (4)."),
    Case("num_hidden_layers is 0", config(num_hidden_layers=0), "evaluate model",
         "The config of model: num_hidden_layers is 0, not a whole number from 1 to 1,024."),
    Case("num_hidden_layers is \"2\"", config(num_hidden_layers="2"), "evaluate model",
         'The config of model: num_hidden_layers is "2", not a whole number from 1 to 1,024.'),
    Case("num_attention_heads is 0", config(num_attention_heads=0), "evaluate model",
         "The config of model: num_attention_heads is 0, not a whole number from 1 to 16,777,216."),
    Case("num_attention_heads is 5", config(num_attention_heads=5), "evaluate model",
         "The config of model: num_attention_heads is 5, no multiple of num_key_value_heads, 2."),
    Case("num_key_value_heads is 0", config(num_key_value_heads=0), "evaluate model",
         "The config of model: num_key_value_heads is 0, not a whole number from 1 to 16,777,216."),
    Case("head_dim is \"12\"", config(head_dim="12"), "evaluate model",
         'The config of model: head_dim is "12", not a whole number from 0 to 16,777,216.'),
    Case("head_dim is 13", config(head_dim=13), "evaluate model",
         "The config of model is of no model that transformers can build: RoPE requires an even rotary "
         "dimension, but got `head_dim`=13 with `partial_rotary_factor`=1.0 for `full_attention`."),
    Case("max_position_embeddings is 0", config(max_position_embeddings=0), "evaluate model",
         "The config of model: max_position_embeddings is 0, not a whole number from 1 to 1,099,511,627,776."),
    Case("rms_norm_eps is \"small\"", config(rms_norm_eps="small"), "evaluate model",
         "The config of model is of no model that transformers can build: Field 'rms_norm_eps' expected float,"
         " got str (value: 'small')"),
    Case("hidden_act is \"unheard_of\"", config(hidden_act="unheard_of"), "evaluate model",
         "The config of model is of no model that transformers can build (its hidden_act is \"unheard_of\"): KeyEr"
         "ror 'unheard_of'"),
    Case("attention_bias is \"no\"", config(attention_bias="no"), "evaluate model",
         "The config of model is of no model that transformers can build: Field 'attention_bias' expected "
         "bool, got str (value: 'no')"),
    Case("dtype is \"float13\"", config(dtype="float13"), "evaluate model",
         'The config of model: dtype "float13" is not one of float32, bfloat16, float16, float64.'),
    Case("dtype is 7", config(dtype=7), "evaluate model",
         "The config of model: dtype 7 is not one of float32, bfloat16, float16, float64."),
    Case("eos_token_id is \"a\"", config(eos_token_id="a"), "evaluate model",
         "The config of model is of no model that transformers can build: Field 'eos_token_id' with value 'a' "
         "doesn't match any type in (int, list[int], NoneType)"),
    Case("pad_token_id is 300", config(pad_token_id=300), "evaluate model",
         "The config of model is of no model that transformers can build (its pad_token_id is 300): Padding_idx "
         "must be within num_embeddings"),
    Case("rope_parameters is {\"rope_type\": \"default\", \"rope_theta\": \"many\"}", config(rope_parameters={"rope_type": "default", "rope_theta": "many"}), "evaluate model",
         'The config of model: rope_theta is "many", not a number above 0.'),
    Case("rope_parameters is {\"rope_type\": \"default\", \"rope_theta\": 0}", config(rope_parameters={"rope_type": "default", "rope_theta": 0}), "evaluate model",
         "The config of model: rope_theta is 0, not a number above 0."),
    Case("rope_parameters is {\"rope_type\": \"unheard_of\"}", config(rope_parameters={"rope_type": "unheard_of"}), "evaluate model",
         "The config of model is of no model that transformers can build (its rope_parameters is {\"rope_type\": \""
         "unheard_of\"}): KeyError 'unheard_of'"),
    Case("rope_parameters is [1]", config(rope_parameters=[1]), "evaluate model",
         "The config of model is of no model that transformers can build: Field 'rope_parameters' with value "
         "[1] doesn't match any type in (RopeParameters, dict, NoneType)"),
    Case("layer_types is [\"unheard_of\", \"full_attention\"]", config(layer_types=["unheard_of", "full_attention"]), "evaluate model",
         "The config of model is of no model that transformers can build: The `layer_types` entries must be in"
         " ('full_attention', 'sliding_attention', 'chunked_attention', 'window_attention', "
         "'indexed_attention', 'compressed_sparse_attention', 'heavily_compressed_attention', "
         "'minimax_m3_sparse', 'conv', 'moe', '…"),
    Case("vocab_size is 0, deploy", config(vocab_size=0), "deploy model --tokens 100 --batch 1 --gpu A100",
         "The config of model: vocab_size is 0, not a whole number from 1 to 16,777,216."),
    Case("num_hidden_layers is \"2\", deploy", config(num_hidden_layers="2"), "deploy model --tokens 100 --batch 1 --gpu A100",
         'The config of model: num_hidden_layers is "2", not a whole number from 1 to 1,024.'),
    Case("architectures is 7, deploy", config(architectures=7), "deploy model --tokens 100 --batch 1 --gpu A100",
         "File model/config.json, field architectures is a number, not a list of names: correct it."),
    Case("a vocabulary smaller than the table", config(vocab_size=262), "evaluate model",
         "model: model.embed_tokens.weight is 263 × 48 in the file and 262 × 48 by config.json (vocab_size "
         "262): file and config are not of one model."),
    Case("a vocabulary larger than the table", config(vocab_size=300), "profile model",
         "model: model.embed_tokens.weight is 263 × 48 in the file and 300 × 48 by config.json (vocab_size "
         "300): file and config are not of one model."),
    Case("a larger hidden size", config(hidden_size=96), "evaluate model",
         "model: model.embed_tokens.weight is 263 × 48 in the file and 263 × 96 by config.json (hidden_size "
         "96): file and config are not of one model."),
    Case("a larger hidden size, deploy", config(hidden_size=96), "deploy model --tokens 100 --batch 1 --gpu A100",
         "model: model.embed_tokens.weight is 263 × 48 in the file and 263 × 96 by config.json (hidden_size "
         "96): file and config are not of one model."),
    Case("another intermediate size", config(intermediate_size=85), "profile model",
         "model: model.layers.0.mlp.down_proj.weight is 48 × 86 in the file and 48 × 85 by config.json "
         "(intermediate_size 85): file and config are not of one model."),
    Case("a layer too many by the config", config(num_hidden_layers=3), "evaluate model",
         "model has layers 0 to 1 in the file and more by config.json (num_hidden_layers 3): file and config "
         "are not of one model."),
    Case("a layer too few by the config", config(num_hidden_layers=1), "evaluate model",
         "model holds model.layers.1.input_layernorm.weight, which a LlamaForCausalLM by its config.json has "
         "no place for: file and config are not of one model."),
    Case("a layer too few by the config, profile", config(num_hidden_layers=1), "profile model",
         "model holds model.layers.1.input_layernorm.weight, which a LlamaForCausalLM by its config.json has "
         "no place for: file and config are not of one model."),
    Case("other key heads", config(num_key_value_heads=4), "evaluate model",
         "model: model.layers.0.self_attn.k_proj.weight is 24 × 48 in the file and 48 × 48 by config.json "
         "(hidden_size 48): file and config are not of one model."),
    Case("biases that are not stored", config(attention_bias=True), "evaluate model",
         "model lacks parameter model.layers.0.self_attn.k_proj.bias of a LlamaForCausalLM: fetch it again."),
    Case("a window of positions that is not stored", config("gpt2", n_positions=300), "evaluate model",
         "model: transformer.wpe.weight is 256 × 48 in the file and 300 × 48 by config.json (n_positions 300):"
         " file and config are not of one model."),
    Case("a larger GPT-2", config("gpt2", n_embd=96), "evaluate model",
         "model: transformer.h.0.attn.c_attn.bias is 144 in the file and 288 by config.json: file and config "
         "are not of one model."),
    Case("more layers of GPT-2", config("gpt2", n_layer=5), "evaluate model",
         "model has layers 0 to 1 in the file and more by config.json (n_layer 5): file and config are not of "
         "one model."),
    Case("one expert more", config("mixtral", num_local_experts=4), "evaluate model",
         "model: model.layers.0.mlp.experts.down_proj is 3 × 48 × 40 in the file and 4 × 48 × 40 by "
         "config.json (num_attention_heads 4, num_local_experts 4): file and config are not of one model."),
    Case("more experts a token than there are", config("mixtral", num_experts_per_tok=5), "evaluate model",
         "The config of model: num_experts_per_tok is 5, of num_local_experts 3."),
    Case("another architecture", config(model_type="qwen2"), "evaluate model",
         "model lacks parameter model.layers.0.self_attn.k_proj.bias of a Qwen2ForCausalLM: fetch it again."),
    Case("more layers than are believed", config(num_hidden_layers=3), "evaluate model",
         "The config of model: num_hidden_layers is 3, not a whole number from 1 to 1.", limits={"karipap_core.models.empty:LIMITS": ONE_LAYER}),
    Case("a dense model that says it is quantized (gptq)", config(quantization_config={"quant_method": "gptq", "bits": 4}), "evaluate model",
         "The config of model says that it is quantized (gptq), and no tensor of it is: take "
         "quantization_config out of config.json, or fetch the model again."),
    Case("a quantized model of a method that nobody knows", config(quantization_config={"quant_method": "zip", "bits": 4}), "evaluate model",
         "model is quantized (zip), which is not opened here: give the model in 16 or 32 bits."),
    Case("a quantized model without a method", config(quantization_config={"bits": 4}), "evaluate model",
         "model is quantized (by a method that is not named), which is not opened here: give the model in 16 or "
         "32 bits."),
    Case("a Karipap folder without a plan", config(quantization_config={"quant_method": "karipap"}), "evaluate model",
         "quantization_config of this model holds no Karipap plan: write the folder anew."),
    Case("a model of images", config(model_type="vit", architectures=["ViTModel"]), "evaluate model",
         "model lacks parameter embeddings.cls_token of a ViTModel and holds model.embed_tokens.weight, which that has "
         "no place for: its tensors have other names, or its config.json is another model's."),
    Case("an encoder and a decoder", config(model_type="bart", architectures=["BartModel"]), "evaluate model",
         "model lacks parameter decoder.embed_positions.weight of a BartModel and holds model.embed_tokens.weight, "
         "which that has no place for: its tensors have other names, or its config.json is another model's."),
    Case("code that is not run", config(model_type="unheard_of", auto_map={"AutoConfig": "configuration.Config"}), "evaluate model",
         "The config of model is of no model that transformers can build: The repository model contains custom"
         " code which must be executed to correctly load the model. You can inspect the repository content at "
         "model ."),
    Case("no tensors", tensors(lambda t: t.clear()), "profile model --metrics weight",
         "model holds no tensors: fetch it again."),
    Case("a norm is missing", tensors(lambda t: t.pop("model.norm.weight")), "evaluate model",
         "model lacks parameter model.norm.weight of a LlamaForCausalLM: fetch it again."),
    Case("a norm is missing, profile", tensors(lambda t: t.pop("model.norm.weight")), "profile model",
         "model lacks parameter model.norm.weight of a LlamaForCausalLM: fetch it again."),
    Case("a norm is missing, deploy", tensors(lambda t: t.pop("model.norm.weight")), "deploy model --tokens 100 --batch 1 --gpu A100",
         "model lacks parameter model.norm.weight of a LlamaForCausalLM: fetch it again."),
    Case("a bias is missing", tensors(lambda t: t.pop("transformer.h.0.mlp.c_fc.bias"), "gpt2"), "evaluate model",
         "model lacks parameter transformer.h.0.mlp.c_fc.bias of a GPT2LMHeadModel: fetch it again."),
    Case("the table is missing", tensors(lambda t: t.pop("model.embed_tokens.weight")), "evaluate model",
         "model lacks parameter model.embed_tokens.weight of a LlamaForCausalLM: fetch it again."),
    Case("the head is missing", tensors(lambda t: t.pop("lm_head.weight"), "llama_untied"), "evaluate model",
         "model lacks parameter lm_head.weight of a LlamaForCausalLM: fetch it again."),
    Case("a router is missing", tensors(lambda t: t.pop("model.layers.0.block_sparse_moe.gate.weight"), "mixtral"), "evaluate model",
         "model lacks parameter model.layers.0.mlp.gate.weight of a MixtralForCausalLM: fetch it again."),
    Case("a bias too many", tensors(lambda t: t.update({f"{UP[:-7]}.bias": torch.ones(86)})), "evaluate model",
         "model holds model.layers.0.mlp.up_proj.bias, which a LlamaForCausalLM by its config.json has no "
         "place for: file and config are not of one model."),
    Case("a matrix too many", tensors(lambda t: t.update({"model.layers.0.mlp.extra.weight": torch.ones(8, 8)})), "evaluate model",
         "model holds model.layers.0.mlp.extra.weight, which a LlamaForCausalLM by its config.json has no "
         "place for: file and config are not of one model."),
    Case("all names with a prefix", tensors(lambda t: [t.update({f"x.{name}": t.pop(name)}) for name in list(t)]), "evaluate model",
         "model lacks parameter model.embed_tokens.weight of a LlamaForCausalLM and holds x.model.embed_tokens.weight, "
         "which that has no place for: its tensors have other names, or its config.json is another model's."),
    Case("nan in a norm", number("model.norm.weight", float("nan")), "evaluate model",
         "Weight model.norm.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("inf in a norm", number("model.norm.weight", float("inf")), "profile model",
         "Weight model.norm.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("nan in the table", number("model.embed_tokens.weight", float("nan")), "evaluate model",
         "Weight model.embed_tokens.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("inf in the table", number("model.embed_tokens.weight", float("inf")), "profile model",
         "Weight model.embed_tokens.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("nan in a matrix", number("model.layers.0.mlp.up_proj.weight", float("nan")), "evaluate model",
         "Weight model.layers.0.mlp.up_proj.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("inf in a matrix", number("model.layers.0.mlp.up_proj.weight", float("inf")), "evaluate model",
         "Weight model.layers.0.mlp.up_proj.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("a transposed matrix", changed_tensor(UP, lambda W: W.T), "evaluate model",
         "model: model.layers.0.mlp.up_proj.weight is 48 × 86 in the file and 86 × 48 by config.json "
         "(hidden_size 48, intermediate_size 86): file and config are not of one model."),
    Case("a number for a matrix", changed_tensor(UP, lambda W: W[0, 0]), "evaluate model",
         "model: model.layers.0.mlp.up_proj.weight is one number in the file and 86 × 48 by config.json: file "
         "and config are not of one model."),
    Case("a vector for a matrix", changed_tensor(UP, lambda W: W.flatten()), "evaluate model",
         "model: model.layers.0.mlp.up_proj.weight is 4128 in the file and 86 × 48 by config.json "
         "(intermediate_size 86): file and config are not of one model."),
    Case("a matrix without rows", changed_tensor(UP, lambda W: W[:0]), "evaluate model",
         "model: model.layers.0.mlp.up_proj.weight is 0 × 48 in the file and 86 × 48 by config.json "
         "(intermediate_size 86): file and config are not of one model."),
    Case("a table with a row less", changed_tensor("model.embed_tokens.weight", lambda W: W[:-1]), "evaluate model",
         "model: model.embed_tokens.weight is 262 × 48 in the file and 263 × 48 by config.json (vocab_size "
         "263): file and config are not of one model."),
    Case("a norm as a matrix", changed_tensor("model.norm.weight", lambda w: w[None]), "evaluate model",
         "model: model.norm.weight is 1 × 48 in the file and 48 by config.json (hidden_size 48): file and "
         "config are not of one model."),
    Case("whole numbers without a scale", changed_tensor(UP, lambda W: W.to(torch.int8)), "evaluate model",
         "model: model.layers.0.mlp.up_proj.weight is stored as I8, and no quantization_config says what these"
         " stand for: give the model in 16 or 32 bits."),
    Case("truth values for a matrix", changed_tensor(UP, lambda W: W > 0), "profile model",
         "model: model.layers.0.mlp.up_proj.weight is stored as BOOL, and no quantization_config says what "
         "these stand for: give the model in 16 or 32 bits."),
    Case("a name that is empty", tensors(lambda t: t.update({"": torch.ones(2)})), "profile model --metrics weight",
         "model/model.safetensors: the name of tensor '' has 0 characters: rename it."),
    Case("a name with an escape", tensors(lambda t: t.update({"model.layers.0.\x1b[31m.weight": torch.ones(2, 2)})), "profile model --metrics weight",
         "model/model.safetensors: the name of tensor 'model.layers.0.\\x1b[31m.weight' has unprintable "
         "characters: rename it."),
    Case("a name of 600 letters", tensors(lambda t: t.update({"a" * 600: torch.ones(2)})), "profile model --metrics weight",
         "model/model.safetensors: the name of tensor 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' has 600 "
         "characters: rename it."),
    Case("a file cut short", cut(40), "profile model --metrics weight",
         "model/model.safetensors has 207,840 bytes where its header accounts for 207,880: fetch it again."),
    Case("a file of 7 bytes", content("model.safetensors", b"1234567"), "profile model --metrics weight",
         "model/model.safetensors is cut short or is not a safetensors file: fetch it again."),
    Case("a pointer of git-lfs", content("model.safetensors", POINTER), "profile model --metrics weight",
         "model/model.safetensors is a pointer of git-lfs, not the file itself: run `git lfs pull` where it came from."),
    Case("a pointer of git-lfs in place of tokenizer.json", content("tokenizer.json", POINTER), "evaluate model",
         "File model/tokenizer.json is a pointer of git-lfs, not the file itself: run `git lfs pull` where it came from."),
    Case("a web page in place of the tensors", content("model.safetensors", b"<!DOCTYPE html><html>" + b"x" * 99), "profile model --metrics weight",
         "model/model.safetensors is a web page, not the file itself: fetch it again."),
    Case("a web page in place of config.json", content("config.json", b"<html><body>Sign in</body></html>"), "deploy model --tokens 100 --batch 1 --gpu A100",
         "File model/config.json is a web page, not the file itself: fetch it again."),
    Case("a file of no bytes", content("model.safetensors", b""), "profile model --metrics weight",
         "model/model.safetensors is empty."),
    Case("a file of zeros", content("model.safetensors", bytes(3000)), "profile model --metrics weight",
         "model/model.safetensors begins with nothing but zeros: fetch it again."),
    Case("a header larger than is read", content("model.safetensors", (40).to_bytes(8, "little") + b" " * 40), "profile model --metrics weight",
         "model/model.safetensors claims a header of 40 bytes; more than 32 is not read.", limits={"karipap_core.checkpoint.tensorfile:HEADER_CAP": 32}),
    Case("a header that is a list", content("model.safetensors", (2).to_bytes(8, "little") + b"[]"), "profile model --metrics weight",
         "model/model.safetensors has a safetensors header that is not a table of tensors: fetch it again."),
    Case("a header that is no text", content("model.safetensors", (2).to_bytes(8, "little") + b"\xff\xfe"), "profile model --metrics weight",
         "model/model.safetensors has no readable safetensors header: fetch it again."),
    Case("a header too deep", header(lambda h: h.update(a=nested(65))), "profile model --metrics weight",
         "The header of model/model.safetensors nests values more than 64 deep: that is no file of this kind."),
    Case("a header with a name twice", twice, "profile model --metrics weight",
         "The header of model/model.safetensors has the field 'model.layers.0.mlp.up_proj.weight' twice: keep "
         "one of them."),
    Case("metadata that is a list", header(lambda h: h.update(__metadata__=[1])), "profile model --metrics weight",
         "model/model.safetensors: __metadata__ of its header is not a table of strings: save the model again."),
    Case("metadata of numbers", header(lambda h: h.update(__metadata__={"a": 1})), "profile model --metrics weight",
         "model/model.safetensors: __metadata__ of its header is not a table of strings: save the model again."),
    Case("an entry without a dtype", header(lambda h: h[UP].pop("dtype")), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has no dtype, shape and "
         "data_offsets: fetch it again."),
    Case("a dtype that is a number", header(lambda h: h[UP].update(dtype=1)), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has a malformed dtype, shape or "
         "data_offsets: fetch it again."),
    Case("a dtype that nobody knows", header(lambda h: h[UP].update(dtype="Q4")), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has the dtype Q4, which no safetensors file "
         "has: fetch it again."),
    Case("a negative shape", header(lambda h: h[UP].update(shape=[-86, -48])), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has a malformed dtype, shape or "
         "data_offsets: fetch it again."),
    Case("a shape of fractions", header(lambda h: h[UP].update(shape=[86.5, 48])), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has a malformed dtype, shape or "
         "data_offsets: fetch it again."),
    Case("another shape than bytes", header(lambda h: h[UP].update(shape=[86, 49])), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has 16512 bytes, not what F32 [86,"
         " 49] takes."),
    Case("offsets the wrong way", header(lambda h: h[UP]["data_offsets"].reverse()), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has a malformed dtype, shape or "
         "data_offsets: fetch it again."),
    Case("three offsets", header(lambda h: h[UP]["data_offsets"].append(1)), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has no dtype, shape and "
         "data_offsets: fetch it again."),
    Case("an entry that is null", header(lambda h: h.update({UP: None})), "profile model --metrics weight",
         "model/model.safetensors: tensor model.layers.0.mlp.up_proj.weight has no dtype, shape and "
         "data_offsets: fetch it again."),
    Case("an index without a map", index(lambda i: i.pop("weight_map")), "profile model --metrics weight",
         "model/model.safetensors.index.json has no weight_map: fetch it again."),
    Case("an index with an empty map", index(lambda i: i.update(weight_map={})), "profile model --metrics weight",
         "model/model.safetensors.index.json has no weight_map: fetch it again."),
    Case("an index whose map is a list", index(lambda i: i.update(weight_map=[1])), "profile model --metrics weight",
         "model/model.safetensors.index.json has no weight_map: fetch it again."),
    Case("a shard that is not there", index(lambda i: i["weight_map"].update({UP: "absent.safetensors"})), "profile model --metrics weight",
         "model lacks absent.safetensors, which its index names: fetch the model again."),
    Case("a shard outside the folder", index(lambda i: i["weight_map"].update({UP: "../model.safetensors"})), "profile model --metrics weight",
         "model/model.safetensors.index.json names \"../model.safetensors\" for tensor model.layers.0.mlp.up_proj.weight, which is no "
         ".safetensors file beside it."),
    Case("a shard by its full path", index(lambda i: i["weight_map"].update({UP: "/model.safetensors"})), "profile model --metrics weight",
         "model/model.safetensors.index.json names \"/model.safetensors\" for tensor model.layers.0.mlp.up_proj.weight, which is no "
         ".safetensors file beside it."),
    Case("a shard that is a number", index(lambda i: i["weight_map"].update({UP: 1})), "profile model --metrics weight",
         "model/model.safetensors.index.json names 1 for tensor model.layers.0.mlp.up_proj.weight, which is no "
         ".safetensors file beside it."),
    Case("a shard that is a pickle", index(lambda i: i["weight_map"].update({UP: "pytorch_model.bin"})), "profile model --metrics weight",
         "model/model.safetensors.index.json names \"pytorch_model.bin\" for tensor model.layers.0.mlp.up_proj.weight, which is no "
         ".safetensors file beside it."),
    Case("a tensor that no shard holds", index(lambda i: i["weight_map"].update(ghost="model-00001-of-00002.safetensors")), "profile model --metrics weight",
         "model/model-00001-of-00002.safetensors lacks tensor ghost, which the index says is there: fetch the "
         "model again."),
    Case("an index that is no JSON", index_text("{"), "profile model --metrics weight",
         "File model/model.safetensors.index.json is not valid JSON (line 1, column 2: Expecting property name"
         " enclosed in double quotes)."),
    Case("a shard is a pipe", shard(pipe), "profile model --metrics weight",
         "model/model-00002-of-00002.safetensors is a named pipe, not a regular file: put a file in its place."),
    Case("a shard is a link in a circle", shard(loop), "profile model --metrics weight",
         "model/model-00002-of-00002.safetensors is a link that leads back to itself."),
    Case("shards without index, one gone", shard_gone, "profile model --metrics weight",
         "model lacks model-00002-of-00002.safetensors: fetch it again."),
    Case("a tokenizer without a model", edited("tokenizer.json", lambda d: d.pop("model")), "evaluate model",
         "File model/tokenizer.json, field model is null: it is no tokenizer."),
    Case("a tokenizer with a model of no kind", edited("tokenizer.json", lambda d: d["model"].update(type="unheard_of")), "evaluate model",
         "The tokenizer in model cannot be read by transformers: data did not match any variant of untagged "
         "enum ModelUntagged at line 1 column 4190"),
    Case("a tokenizer whose vocabulary is a list", edited("tokenizer.json", lambda d: d["model"].update(vocab=[1])), "evaluate model",
         "The tokenizer in model cannot be read by transformers: invalid type: sequence, expected a map at "
         "line 1 column 924"),
    Case("a tokenizer without added tokens", edited("tokenizer.json", lambda d: d.pop("added_tokens")), "evaluate model",
         "File model/tokenizer.json, field added_tokens is null: it is no tokenizer."),
    Case("a tokenizer with merges of nothing", edited("tokenizer.json", lambda d: d["model"].update(merges=["x y"])), "evaluate model",
         "The tokenizer in model cannot be read by transformers: Token `xy` out of vocabulary at line 1 column"
         " 4188"),
    Case("a tokenizer with an unknown step", edited("tokenizer.json", lambda d: d.update(pre_tokenizer={"type": "unheard_of"})), "evaluate model",
         "The tokenizer in model cannot be read by transformers: data did not match any variant of untagged "
         "enum PreTokenizerUntagged at line 1 column 511"),
    Case("tokens beyond the table", edited("tokenizer.json", lambda d: d["model"].update(vocab={k: v + 1000 for k, v in d["model"]["vocab"].items()})), "evaluate model",
         "The tokenizer gives id 1220 but the model has 263 embeddings."),
    Case("a tokenizer class that is a number", edited("tokenizer_config.json", lambda d: d.update(tokenizer_class=1)), "evaluate model",
         "The tokenizer in model cannot be read by transformers: 'int' object has no attribute 'removesuffix'"),
    Case("a first token that is a number", edited("tokenizer_config.json", lambda d: d.update(bos_token=1)), "evaluate model",
         "The tokenizer in model cannot be read by transformers: Special token bos_token has to be either str "
         "or AddedToken but got: int"),
    Case("added tokens that are a number", edited("tokenizer_config.json", lambda d: d.update(added_tokens_decoder=1)), "evaluate model",
         "The tokenizer in model cannot be read by transformers: 'int' object has no attribute 'items'"),
    Case("a norm is missing, run", planned(lambda t: t.pop("model.norm.weight")), "run model --plan plan.json --force --out out",
         "model lacks parameter model.norm.weight of a LlamaForCausalLM: fetch it again."),
    Case("NaN in a norm, run", planned(lambda t: t["model.norm.weight"].fill_(float("nan"))), "run model --plan plan.json --force --out out",
         "Weight model.norm.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("a norm is missing, compress", planned(lambda t: t.pop("model.norm.weight")), "compress model --plan plan.json --force --out out",
         "model lacks parameter model.norm.weight of a LlamaForCausalLM: fetch it again."),
    Case("NaN in a norm, compress", planned(lambda t: t["model.norm.weight"].fill_(float("nan"))), "compress model --plan plan.json --force --out out",
         "Weight model.norm.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("an expert without a matrix", tensors(lambda t: t.pop(EXPERT), "mixtral"), "evaluate model",
         "model lacks model.layers.0.block_sparse_moe.experts.1.w1.weight, which other experts have: fetch it agai"
         "n."),
    Case("an expert the other way round", tensors(lambda t: t.update({EXPERT: t[EXPERT].T.contiguous()}), "mixtral"), "evaluate model",
         "model: model.layers.0.block_sparse_moe.experts.1.w1.weight is 48 × 40, and that of other experts 40 × 48"
         ": fetch it again."),
    Case("no expert for a token", config("mixtral", num_experts_per_tok=0), "deploy model --tokens 100 --batch 1 --gpu A100",
         "The config of model: num_experts_per_tok is 0, of num_local_experts 3."),
    Case("heads that cannot be shared", config(num_key_value_heads=3), "deploy model --tokens 100 --batch 1 --gpu A100",
         "The config of model: num_attention_heads is 4, no multiple of num_key_value_heads, 3."),
    Case("a window of less than nothing", config("mistral", sliding_window=-5), "deploy model --tokens 100 --batch 1 --gpu A100",
         "The config of model: sliding_window is -5, not a whole number from 1 to 1,099,511,627,776."),
    Case("a window in words", config("mistral", sliding_window="4k"), "evaluate model",
         "The config of model: sliding_window is \"4k\", not a whole number from 1 to 1,099,511,627,776."),
    Case("a length in words, profile", config(max_position_embeddings="128k"), "profile model",
         "The config of model: max_position_embeddings is \"128k\", not a whole number from 1 to 1,099,511,627,776."),
    Case("a config within one that has none", config(text_config={"hidden_size": 8}), "deploy model --tokens 100 --batch 1 --gpu A100",
         "The config of model has a text_config, which a llama has no place for: take it out."),
    Case("a config within one that has none, evaluate", config(text_config={"hidden_size": 8}), "evaluate model",
         "The config of model has a text_config, which a llama has no place for: take it out."),
    Case("labels that are a list", config(id2label=["a"]), "evaluate model",
         "The config of model is of no model that transformers can build (its id2label is [\"a\"]): 'list' object ha"
         "s no attribute 'items'"),
    Case("one file of several", lambda folder: model(folder, max_shard="100KB"), "profile model/model-00001-of-00003.safetensors",
         "model/model-00001-of-00003.safetensors is one of the 3 files of a model: name the folder they are in."),
]  # fmt: skip
