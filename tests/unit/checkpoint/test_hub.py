"""Fetching from the hub, against a server on this machine that plays it: bytes are counted, and what is broken off is
no model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from karipap_core.checkpoint import hub
from karipap_core.checkpoint.lora.open import joined
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from tests.helpers import gguf_files
from tests.helpers.adapters import GOOD, adapter
from tests.helpers.hub_server import COMMIT, hub_with
from tests.helpers.paths import REPOSITORY

NOT_FETCHED = (
    *("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "model.fp16.safetensors", "onnx/config.json"),
    *("original/tokenizer.model", "checkpoint-5/tokenizer.json", "checkpoint-5/model.safetensors"),
    *("flax_model.msgpack", "openvino/openvino_model.xml", "pytorch_model.bin.index.json"),
    *("1_Pooling/a/b/c/d.json", "docs/page.txt"),
)


@pytest.fixture
def files(made) -> dict[str, bytes]:
    """A repository: a small model, and what must not be fetched."""
    found = {file.name: file.read_bytes() for file in made("llama").iterdir() if file.is_file()}
    found |= {f"1_Pooling/{name}": name.encode() for name in ("config.json", "deep/er/x.json", ".hidden.json")}
    found |= {"2_Dense/model.safetensors": b"more", "2_Dense/pytorch_model.bin": b"pickle"}
    found |= {"additional_chat_templates/tool.jinja": b"x", "qformer_tokenizer/tokenizer.json": b"tokens"}
    return found | dict.fromkeys(NOT_FETCHED, b"again")


def command(address: str, cache, *argv: str) -> subprocess.Popen:
    settings = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, "-m", "karipap_core", *argv, "--progress", "json", "--json"]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=os.environ | settings
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def reports(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_fetch_counts_its_bytes_and_takes_only_what_is_read(files, cache, made):
    left = {*NOT_FETCHED, "1_Pooling/.hidden.json", "2_Dense/pytorch_model.bin"}
    wanted = {name: data for name, data in files.items() if name not in left}
    assert {"config.json", "model.safetensors", "2_Dense/model.safetensors"} <= wanted.keys() < files.keys()
    with hub_with(files) as (address, asked):
        work = command(address, cache, "fetch", "someone/small")
        out, err = work.communicate(timeout=60)
    assert work.returncode == 0, err
    told = reports(err)
    total = sum(map(len, wanted.values()))
    assert {line["total"] for line in told} == {total} and told[-1]["done"] == total
    assert [line["done"] for line in told] == sorted(line["done"] for line in told) and len(told) > 2
    assert set(asked) == set(wanted) and asked[-1] == "config.json"
    assert json.loads(out)["bytes"] == total
    assert open_checkpoint("someone/small").fingerprint == open_checkpoint(made("llama")).fingerprint  # offline


def test_every_verb_that_names_a_hub_model_counts_bytes_too(files, cache):
    with hub_with(files) as (address, _):
        work = command(address, cache, "profile", "someone/small", "--metrics", "weight")
        _, err = work.communicate(timeout=120)
    assert work.returncode == 0, err
    assert {"fetch", "profile"} <= {line["stage"] for line in reports(err)}


def test_what_is_broken_off_is_no_model_and_the_next_fetch_goes_on(files, cache):
    files = {name: data for name, data in files.items() if name != "model.safetensors"}
    weights = (REPOSITORY / "assets" / "demo_model" / "model.safetensors").read_bytes()[: 1 << 20]
    files |= {"a.json": b"{}", "model.safetensors": weights}  # `a.json` comes before it, config.json last
    with hub_with(files, pause=0.1) as (address, asked):
        work = command(address, cache, "fetch", "someone/small")
        limit = time.monotonic() + 60
        while "model.safetensors" not in asked and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(0.3)
        began = time.monotonic()
        work.send_signal(signal.SIGTERM)
        work.communicate(timeout=60)
        assert work.returncode == 130 and time.monotonic() - began < 5
    assert hub.snapshot("someone/small") is None and hub.cached() == {}
    with hub_with(files) as (address, asked):
        work = command(address, cache, "fetch", "someone/small")
        _, err = work.communicate(timeout=60)
        assert work.returncode == 0, err
    assert "a.json" not in asked and {"model.safetensors", "config.json"} <= set(asked)
    folder = cache / "models--someone--small" / "snapshots" / COMMIT
    assert hub.cached() == {"someone/small": str(folder)} and (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only pickled weights (pytorch_model.bin), which can"),
        ({"config.json": b"{}"}, "has no .safetensors file on the hub, no weights"),
    ],
)
def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched(files, said, cache):
    with hub_with(files) as (address, asked):
        work = command(address, cache, "fetch", "someone/small")
        _, err = work.communicate(timeout=60)
    assert work.returncode == 2 and said in err and asked == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["fetch", "someone/else"], "The hub has no model someone/else, or it is a private one"),
        (["fetch", "not an id"], "not an id is no hub id: it looks like owner/name."),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(argv, said, cache):
    with hub_with({"config.json": b"{}"}) as (address, _):
        work = command(address, cache, *argv)
        _, err = work.communicate(timeout=60)
    assert work.returncode == 2 and said in err and len(err.strip().splitlines()) == 1


def test_nobody_at_the_other_end_is_one_sentence(cache):
    work = command("http://127.0.0.1:9", cache, "fetch", "someone/small")
    _, err = work.communicate(timeout=60)
    assert work.returncode == 2 and "the hub cannot be reached" in err and len(err.strip().splitlines()) == 1


def test_the_hub_id_of_a_path_in_the_cache_is_read_off_its_letters(cache):
    assert hub.repository_of(cache / "models--a--b--c" / "snapshots" / "0") == "a/b--c"
    assert hub.repository_of(cache) is None and hub.repository_of(cache.parent / "models--a--b") is None
    with pytest.raises(InputError, match="no hub id|does not exist"):
        open_checkpoint("a/b/c")


@pytest.fixture
def packed(tmp_path) -> dict[str, bytes]:
    """A repository of GGUF files: one model whole, one in three parts, and what lies beside them."""
    folder = gguf_files.make("llama", tmp_path / "made")
    gguf_files.write(folder, tmp_path / "files" / "small-f32.gguf")
    gguf_files.write(folder, tmp_path / "files" / "small-q8.gguf", "Q8_0", split=9)
    found = {file.name: file.read_bytes() for file in (tmp_path / "files").iterdir()}
    return found | {"README.md": b"x", "mmproj-small.gguf": b"GGUF", "config.json": b'{"model_type": "llama"}'}


def test_a_gguf_file_of_the_hub_is_fetched_alone(packed, cache):
    with hub_with(packed) as (address, asked):
        work = command(address, cache, "profile", "someone/small/small-f32.gguf", "--metrics", "weight")
        out, err = work.communicate(timeout=120)
        assert work.returncode == 0 and asked == ["small-f32.gguf"], err
        work = command(address, cache, "fetch", "someone/small/small-q8-00002-of-00003.gguf")
        work.communicate(timeout=120)
        assert sorted(asked[1:]) == [name for name in sorted(packed) if "q8" in name]
    assert json.loads(out)["stored"]["form"] == "F32 (GGUF), opened to fp32"
    ids = ["someone/small/small-f32.gguf", "someone/small/small-q8-00001-of-00003.gguf"]
    assert list(hub.cached()) == ids
    assert open_checkpoint(ids[1]).form.words == "Q8_0 (GGUF)"  # offline


def test_of_several_gguf_models_on_the_hub_one_has_to_be_named(packed, cache):
    with hub_with(packed) as (address, asked):
        _, err = command(address, cache, "fetch", "someone/small").communicate(timeout=60)
        assert "someone/small holds 2 GGUF models (small-f32.gguf, small-q8-00001-of-00003.gguf): name one" in err
        _, err = command(address, cache, "fetch", "someone/small/other.gguf").communicate(timeout=60)
        assert "someone/small has no file other.gguf on the hub" in err and not asked
    only = {name: data for name, data in packed.items() if "q8" not in name}
    with hub_with(only) as (address, asked):
        command(address, cache, "fetch", "someone/small").communicate(timeout=60)
    assert asked == ["small-f32.gguf"] and open_checkpoint("someone/small").parameters


def test_an_adapter_of_the_hub_is_its_update_and_merged_where_its_base_is_here(cache, tmp_path, made):
    folder = adapter(tmp_path / "lora", made("llama"), GOOD)
    with hub_with({file.name: file.read_bytes() for file in folder.iterdir()}) as (address, asked):
        work = command(address, cache, "fetch", "someone/small")
        assert work.communicate(timeout=60) and work.returncode == 0 and asked[-1] == "adapter_config.json"
    place = hub.snapshot("someone/small")
    assert open_checkpoint("someone/small").missing
    assert open_checkpoint(joined("someone/small")).key == open_checkpoint(joined(folder)).key
    assert open_checkpoint(f"{made('llama')}+someone/small").path == Path(joined(place))
