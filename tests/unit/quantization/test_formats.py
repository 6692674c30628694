"""The registry of formats, and that one file is all a new format takes."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from karipap_core.errors import InputError
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.networks import spec_from_json
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.stored import quantize_cores, values
from karipap_core.quantization import formats
from karipap_core.quantization.float8 import Float8Format
from karipap_core.quantization.formats import Format, register
from karipap_core.quantization.integers import Integers
from karipap_core.quantization.packing import pack, unpack


@pytest.fixture
def registry(monkeypatch):
    """The registry, given back as it was."""
    monkeypatch.setattr(formats, "FORMATS", list(formats.FORMATS))
    yield formats.FORMATS
    formats._parsed.cache_clear()


def test_a_name_says_the_format_and_its_options():
    assert Format.parse("int4") == Integers("int4", 4, 64) and Format.parse("int8") == Integers("int8", 8, None)
    assert Format.parse("int4g128") == Integers("int4g128", 4, 128)
    assert Format.parse("fp8") == Float8Format("fp8")
    assert Integers.calibrates and not Float8Format.calibrates


@pytest.mark.parametrize(
    ("name", "near"),
    [("int5", r" Did you mean 'int\d'\?"), ("fp16", ""), ("INT4", " Did you mean 'int4'"), ("int4g0", ""), ("", "")],
)
def test_an_unknown_format_is_answered_with_those_there_are(name, near):
    with pytest.raises(InputError, match=rf"Format '{name}' is not one of [\w, ]*\.{near}.*int4g128"):
        Format.parse(name)
    for nothing in (None, 4, ["int4"]):
        with pytest.raises(InputError, match="Format"):
            Format.parse(nothing)


def test_names_are_registered_once_and_match_their_pattern(registry):
    with pytest.raises(ValueError, match="'int8' is registered already, by karipap_core.quantization.integers"):
        register(Integers)

    class Misspelt(Float8Format):
        names: ClassVar[tuple[str, ...]] = ("fp4",)

    with pytest.raises(ValueError, match="'fp4' is listed by Misspelt"):
        register(Misspelt)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_any_width_are_packed_without_gaps(bits):
    codes = torch.randint(0, 2**bits, (7, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert len(packed) == -(-7 * 13 * bits // 8) and torch.equal(unpack(packed, bits, (7, 13)), codes)


def test_a_new_format_is_one_class(registry):
    """Six bits: known by name to specs, stored cores and layers, and nothing else is told of it."""

    @register
    @dataclass(frozen=True)
    class Six(Integers):
        pattern: ClassVar[str] = r"int(6)(?:g(\d*[1-9]\d*))?"
        names: ClassVar[tuple[str, ...]] = ("int6",)

        @classmethod
        def named(cls, found):
            return cls(found[0], 6, int(found[2] or 64))

    assert registry[-1] is Six
    W = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    spec = spec_from_json({"network": "lowrank", "out": [48], "in": [64], "chi": [40], "quantize": "int6"})
    cores = spec.decompose(W)
    stored = quantize_cores(spec, cores, W)
    assert sum(core.bytes for core in stored) == spec.bytes(2) < LowRank.for_shape(48, 64, 40, quantize="int8").bytes(2)
    error = (spec.dense(values(spec, stored)) - spec.dense(cores)).norm() / W.norm()
    assert error < 0.05
    layer = TensorNetworkLinear(spec)
    layer.set_cores(values(spec, stored))
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x), x @ spec.dense(values(spec, stored)).T, rtol=1e-4, atol=1e-4)
    assert layer.report()["bytes"] == spec.bytes(4)
