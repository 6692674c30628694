"""Integers as compressed-tensors stores them, read back by bits written out by hand and by that library itself."""

import numpy as np
import pytest
import torch

from karipap_core.exports.grids import Scheme, group_of, quantization_config, regrouped, signed, signed_bits
from karipap_core.quantization.packing import Quantized


def a_grid(rows: int, columns: int, bits: int, group: int, seed: int = 0) -> Quantized:
    generator = torch.Generator().manual_seed(seed)
    groups = -(-columns // group)
    codes = torch.randint(2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(2**bits, (rows, groups), generator=generator, dtype=torch.uint8)
    return Quantized(codes, (0.01 + torch.rand(rows, groups, generator=generator)).half(), zeros, bits, group)


def unpacked(words: torch.Tensor, bits: int, count: int) -> np.ndarray:
    """(rows, count) unsigned numbers: those of a row stand behind one another, the lowest bit of each first."""
    octets = words.contiguous().numpy().view(np.uint8).reshape(len(words), -1)
    stream = np.unpackbits(octets, axis=1, bitorder="little")[:, : count * bits].reshape(len(words), count, bits)
    return (stream * (1 << np.arange(bits))).sum(-1)


def by_hand(tensors: dict[str, torch.Tensor], scheme: Scheme, shape: tuple[int, int]) -> np.ndarray:
    """Ŵ of what is stored."""
    rows, columns = shape
    middle, scales = 1 << (scheme.bits - 1), tensors["weight_scale"].double().numpy()
    if scheme.format == "int-quantized":
        codes, zeros = tensors["weight"].numpy().astype(int), tensors["weight_zero_point"].numpy().astype(int)
    else:
        codes, zeros = unpacked(tensors["weight_packed"], scheme.bits, columns) - middle, np.zeros_like(scales)
        if not scheme.symmetric:
            zeros = unpacked(tensors["weight_zero_point"].T, scheme.bits, rows).T - middle
    width = columns // scales.shape[1]
    return (codes - zeros.repeat(width, 1)) * scales.repeat(width, 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 48])
def test_each_scheme_holds_the_numbers(bits, group):
    grid = a_grid(7, 48, bits, group)
    own = None if group == 48 else group
    wider = signed_bits(grid)
    schemes = [Scheme(bits, own, False), Scheme(8, own, False, "float32"), Scheme(max(bits, 4), 16, False)]
    schemes += [Scheme(wider, own, True)] if wider <= 8 else []
    for scheme in schemes:
        tensors = scheme.tensors(grid)
        np.testing.assert_array_equal(by_hand(tensors, scheme, (7, 48)), grid.dense().double().numpy())
        layout = scheme.layout((7, 48))
        assert {name: (each.dtype, tuple(each.shape)) for name, each in tensors.items()} == layout
        assert scheme.bytes((7, 48)) == sum(each.nbytes for each in tensors.values())


def test_signed_bits_is_the_least_width_not_below_the_codes():
    def of(codes, zero, bits=4):
        grid = Quantized(torch.tensor([codes], dtype=torch.uint8), torch.ones(1, 1), torch.tensor([[zero]]), bits, 4)
        return signed_bits(grid)

    assert of([0, 15, 3, 8], 8) == 4  # −8 … 7
    assert of([0, 15, 3, 8], 7) == 5  # 8 has no place beside −7
    assert of([1, 15, 3, 8], 9) == 4
    assert of([0, 15, 3, 8], 15) == 5
    assert of([4, 4, 4, 4], 4) == 4
    assert of([0, 255, 3, 8], 0, 8) == 9


@pytest.mark.parametrize(("columns", "group", "expected"), [(96, 64, 32), (128, 64, 64), (48, 64, None), (86, 64, 2)])
def test_a_short_last_group_is_cut_finer(columns, group, expected):
    grid = a_grid(3, columns, 4, group)
    assert group_of(grid) == expected
    finer = regrouped(grid, expected)
    assert torch.equal(finer.dense(), grid.dense()) and torch.equal(signed(finer), signed(grid))
    assert finer.scales.shape == (3, columns // (expected or columns))


def test_the_library_reads_what_was_written():
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    grid = a_grid(8, 64, 3, 32)
    for scheme in (Scheme(3, 32, False, "float32"), Scheme(4, 32, True, "float32"), Scheme(8, 32, False, "float32")):
        config = QuantizationConfig.model_validate(quantization_config({"model.layer": scheme}))
        (group,) = config.config_groups.values()
        assert group.targets == ["model.layer"]
        found = BaseCompressor.get_value_from_registry(group.format).decompress(scheme.tensors(grid), group)
        assert torch.equal(found["weight"], grid.dense())


def test_schemes_are_groups_of_the_config():
    four, eight = Scheme(4, 32, True), Scheme(8, None, False)
    config = quantization_config({"a": four, "b": eight, "c": four})
    assert [group["targets"] for group in config["config_groups"].values()] == [["a", "c"], ["b"]]
    assert config["format"] == "mixed-precision"
    assert quantization_config({"a": four})["format"] == "pack-quantized"
