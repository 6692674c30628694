"""Where a loaded model goes: whole, or block by block over the GPUs that there are.

No GPU is needed: accelerate divides by what it is told of room, and what it is handed in the end is looked at.
"""

import accelerate
import pytest
import torch

from karipap_core.errors import InputError
from karipap_core.models import devices
from karipap_core.models.load import load_model
from tests.helpers.architectures import make

MANY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}


@pytest.fixture
def model(tmp_path):
    return load_model(make("llama", tmp_path / "model", **MANY))[0]


@pytest.fixture
def dispatched(monkeypatch):
    """What would be sent to GPUs."""
    found = []
    monkeypatch.setattr(accelerate, "dispatch_model", lambda model, places: found.append(places))
    return found


def gpus(monkeypatch, free: int, count: int = 2) -> None:
    """As if there were so many GPUs with so much free memory each."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, free))
    monkeypatch.setattr(
        accelerate.utils, "get_max_memory", lambda: {**dict.fromkeys(range(count), free), "cpu": 1 << 40}
    )


def test_bytes_of_a_model_count_shared_tensors_once(model):
    numbers = sum(each.numel() for each in model.parameters())
    assert devices.bytes_of(model) == 4 * numbers + sum(each.numel() * each.element_size() for each in model.buffers())
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    assert devices.bytes_of(model) < 4 * numbers


def test_a_model_that_one_gpu_has_no_room_for_goes_over_all_a_block_on_one(model, dispatched, monkeypatch):
    gpus(monkeypatch, int(0.8 * devices.bytes_of(model)))
    devices.put(model, "cuda")
    [places] = dispatched
    assert set(places.values()) == {0, 1}, "none in main memory, where nothing can be replaced in place"
    of_block = [places[f"model.layers.{number}"] for number in range(6)]
    assert of_block == sorted(of_block) and set(of_block) == {0, 1}, "blocks whole, in the model's order"


def test_a_model_that_fits_goes_to_one(model, dispatched, monkeypatch):
    went = []
    monkeypatch.setattr(type(model), "to", lambda self, device: went.append(device))
    gpus(monkeypatch, 2 * devices.bytes_of(model))
    devices.put(model, "cuda")
    gpus(monkeypatch, 1000)
    devices.put(model, "cuda:1")
    gpus(monkeypatch, 1000, count=1)
    devices.put(model, "cuda")
    assert went == ["cuda", "cuda:1", "cuda"] and not dispatched, "who names a GPU gets that one"


def test_where_all_gpus_are_too_small_one_sentence_says_so(model, dispatched, monkeypatch):
    gpus(monkeypatch, devices.bytes_of(model) // 4)
    with pytest.raises(InputError, match="all GPUs here together have room for .* GB: give --device cpu"):
        devices.put(model, "cuda")
    assert not dispatched
