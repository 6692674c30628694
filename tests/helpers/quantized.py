"""Quantized weights written number by number, straight from the published layouts, with what they stand for beside
them: (stored tensors, the dense weight in float64). Nothing here is shared with the readers."""

import json
import math
import random

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
Written = tuple[dict[str, torch.Tensor], torch.Tensor]


def numbers(seed: int, count: int, high: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(high) for _ in range(count)]


def scales(seed: int, *shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    draw = random.Random(seed)
    flat = [draw.uniform(0.01, 0.2) for _ in range(math.prod(shape))]
    return torch.tensor(flat).reshape(shape).to(dtype)


def packed32(codes: list[int], bits: int) -> list[int]:
    """Codes side by side in one long stream of bits, the lowest first, cut into signed words of 32 bits."""
    whole = sum(code << (bits * place) for place, code in enumerate(codes))
    words = [(whole >> (32 * place)) & 0xFFFFFFFF for place in range(-(-len(codes) * bits // 32))]
    return [signed(word) for word in words]


def signed(word: int) -> int:
    """A word of 32 bits as a signed number."""
    return word - (1 << 32) if word >> 31 else word


def fp8_blocks(name: str, rows: int, columns: int, block: tuple[int, int], seed: int = 0) -> Written:
    """DeepSeek's: one scale for each block of `block`, the last of a row or column cut off."""
    codes = torch.tensor(numbers(seed, rows * columns, 127)).to(torch.uint8).reshape(rows, columns)  # 127: NaN
    values = codes.view(torch.float8_e4m3fn)
    factors = scales(seed + 1, math.ceil(rows / block[0]), math.ceil(columns / block[1]), dtype=torch.float32)
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            factor = factors[row // block[0], column // block[1]].double()
            dense[row, column] = values[row, column].double() * factor
    return {f"{name}.weight": values, f"{name}.weight_scale_inv": factors}, dense


def fp8_scaled(name: str, rows: int, columns: int, shape: tuple[int, ...], seed: int = 0) -> Written:
    """FBGEMM's and others': `weight_scale` for each row, or for the whole weight."""
    codes = torch.tensor(numbers(seed, rows * columns, 127)).to(torch.uint8).reshape(rows, columns)
    values, factors = codes.view(torch.float8_e4m3fn), scales(seed + 1, *shape, dtype=torch.bfloat16)
    each = factors.flatten().double() if factors.numel() > 1 else factors.double().flatten().repeat(rows)
    dense = torch.stack([values[row].double() * each[row] for row in range(rows)])
    return {f"{name}.weight": values, f"{name}.weight_scale": factors}, dense


def mxfp4(name: str, experts: int, rows: int, columns: int, seed: int = 0) -> Written:
    """gpt-oss': the dense stack is (experts, columns, rows), as the model computes with it."""
    codes = numbers(seed, experts * rows * columns, 16)
    groups = columns // 32
    exponents = [120 + number for number in numbers(seed + 1, experts * rows * groups, 9)]
    dense = torch.zeros(experts, columns, rows, dtype=torch.float64)
    for expert in range(experts):
        for row in range(rows):
            for column in range(columns):
                place = (expert * rows + row) * columns + column
                value = E2M1[codes[place] & 7] * (-1 if codes[place] & 8 else 1)
                dense[expert, column, row] = value * 2.0 ** (exponents[place // 32] - 127)
    blocks = [codes[place] | codes[place + 1] << 4 for place in range(0, len(codes), 2)]
    return {
        f"{name}_blocks": torch.tensor(blocks, dtype=torch.uint8).reshape(experts, rows, groups, 16),
        f"{name}_scales": torch.tensor(exponents, dtype=torch.uint8).reshape(experts, rows, groups),
    }, dense


def gptq(
    name: str,
    rows: int,
    columns: int,
    bits: int,
    group: int,
    version: int = 1,
    shuffled: bool = False,
    seed: int = 0,
) -> Written:
    """GPTQModel's first format (`version` 1: zeros stored as z − 1, the ones taken from whole words, with 3 bits from
    each) and its second; with `shuffled` the inputs are in groups that are not beside each other (desc_act).
    `group` −1: one group."""
    groups = math.ceil(columns / group) if group > 0 else 1
    codes = numbers(seed, rows * columns, 1 << bits)
    zeros = numbers(seed + 1, groups * rows, 1 << bits)
    factors = scales(seed + 2, groups, rows)
    group_of = [column // group if group > 0 else 0 for column in range(columns)]
    if shuffled:
        random.Random(seed + 3).shuffle(group_of)
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            at = group_of[column]
            dense[row, column] = factors[at, row].double() * (codes[row * columns + column] - zeros[at * rows + row])
    columns_of_words = [packed32(codes[row * columns : (row + 1) * columns], bits) for row in range(rows)]
    zero_rows = [packed32(zeros[at * rows : (at + 1) * rows], bits) for at in range(groups)]
    if version == 1 and 32 % bits == 0:
        less = sum(1 << at for at in range(0, 32, bits))
        zero_rows = [[signed((word - less) & 0xFFFFFFFF) for word in row] for row in zero_rows]
    elif version == 1:
        less_each = [[(zero - 1) % (1 << bits) for zero in zeros[at * rows : (at + 1) * rows]] for at in range(groups)]
        zero_rows = [packed32(row, bits) for row in less_each]
    return {
        f"{name}.qweight": torch.tensor(columns_of_words, dtype=torch.int32).T.contiguous(),
        f"{name}.qzeros": torch.tensor(zero_rows, dtype=torch.int32),
        f"{name}.scales": factors,
        f"{name}.g_idx": torch.tensor(group_of, dtype=torch.int32),
    }, dense


def awq_gemm(name: str, rows: int, columns: int, group: int, seed: int = 0) -> Written:
    """AutoAWQ's "gemm": words along the outputs, of which eight lie in the order 0 2 4 6 1 3 5 7."""
    groups = math.ceil(columns / group)
    codes, zeros = numbers(seed, columns * rows, 16), numbers(seed + 1, groups * rows, 16)  # input by input
    factors = scales(seed + 2, groups, rows)
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            at = column // group
            dense[row, column] = factors[at, row].double() * (codes[column * rows + row] - zeros[at * rows + row])

    def words(line: list[int]) -> list[int]:
        return packed32([line[first + place] for first in range(0, rows, 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)], 4)

    return {
        f"{name}.qweight": torch.tensor([words(codes[at * rows :][:rows]) for at in range(columns)], dtype=torch.int32),
        f"{name}.qzeros": torch.tensor([words(zeros[at * rows :][:rows]) for at in range(groups)], dtype=torch.int32),
        f"{name}.scales": factors,
    }, dense


def awq_gemv(name: str, rows: int, columns: int, group: int, words: int, seed: int = 0) -> Written:
    """AutoAWQ's "gemv": words along the inputs, in order; zeros and scales are filled up to `words` words."""
    groups = math.ceil(columns / group)
    codes, zeros = numbers(seed, rows * columns, 16), numbers(seed + 1, rows * groups, 16)
    factors = scales(seed + 2, rows, groups)
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            at = column // group
            dense[row, column] = factors[row, at].double() * (codes[row * columns + column] - zeros[row * groups + at])
    filled = torch.zeros(rows, words * 8, dtype=torch.float16)
    filled[:, :groups] = factors
    more = [0] * (words * 8 - groups)
    zero_words = [packed32(zeros[row * groups :][:groups] + more, 4) for row in range(rows)]
    return {
        f"{name}.qweight": torch.tensor(packed32(codes, 4), dtype=torch.int32).reshape(rows, columns // 8),
        f"{name}.qzeros": torch.tensor(zero_words, dtype=torch.int32),
        f"{name}.scales": filled,
    }, dense


def bitsandbytes4(name: str, rows: int, columns: int, block: int, nested: bool = False, seed: int = 0) -> Written:
    """bitsandbytes' nf4, the higher half of a byte first; with `nested` its blocks' scales are bytes as well."""
    items, table = rows * columns, [math.sin(place) for place in range(16)]
    codes, count = numbers(seed, items, 16), math.ceil(items / block)
    state: dict = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [rows, columns]}
    stored = {f"{name}.weight.quant_map": torch.tensor(table)}
    largest = scales(seed + 1, count, dtype=torch.float32).double()
    stored[f"{name}.weight.absmax"] = largest.float()
    if nested:
        outer, inner = scales(seed + 2, math.ceil(count / 4), dtype=torch.float32), torch.linspace(0, 1, 256)
        small = numbers(seed + 3, count, 256)
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.25}
        largest = torch.tensor([inner[code].double() * outer[at // 4].double() + 0.25 for at, code in enumerate(small)])
        stored |= {f"{name}.weight.nested_absmax": outer, f"{name}.weight.nested_quant_map": inner}
        stored[f"{name}.weight.absmax"] = torch.tensor(small, dtype=torch.uint8)
    dense = [torch.tensor(table[code]).double() * largest[at // block] for at, code in enumerate(codes)]
    pairs = [codes[place] << 4 | codes[place + 1] for place in range(0, items, 2)]
    stored[f"{name}.weight"] = torch.tensor(pairs, dtype=torch.uint8)[:, None]
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return stored | {f"{name}.weight.quant_state.bitsandbytes__nf4": text}, torch.stack(dense).reshape(rows, columns)


def bitsandbytes8(name: str, rows: int, columns: int, seed: int = 0) -> Written:
    codes = torch.tensor([code - 127 for code in numbers(seed, rows * columns, 255)]).reshape(rows, columns)
    largest = scales(seed + 1, rows, dtype=torch.float32)
    dense = torch.stack([codes[row].double() * largest[row].double() / 127 for row in range(rows)])
    stored = {f"{name}.weight": codes.to(torch.int8), f"{name}.SCB": largest}
    return stored | {f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}, dense


def packed_ints(
    name: str, rows: int, columns: int, bits: int, group: int, zeros: bool = False, gaps: bool = False, seed: int = 0
) -> Written:
    """compressed-tensors' pack-quantized: codes without gaps, or, as in versions before 0.17, whole ones in each word;
    with zeros, which are packed along the outputs."""
    groups, half = math.ceil(columns / group), 1 << (bits - 1)
    codes, shift = numbers(seed, rows * columns, 1 << bits), numbers(seed + 1, groups * rows, 1 << bits)
    factors = scales(seed + 2, rows, groups, dtype=torch.bfloat16)
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            at = column // group
            zero = shift[at * rows + row] - half if zeros else 0
            dense[row, column] = factors[row, at].double() * (codes[row * columns + column] - half - zero)

    def words(line: list[int]) -> list[int]:
        each = 32 // bits
        parts = [line[first : first + each] for first in range(0, len(line), each)] if gaps else [line]
        return [word for part in parts for word in packed32(part, bits)]

    stored = {
        f"{name}.weight_packed": torch.tensor(
            [words(codes[row * columns :][:columns]) for row in range(rows)], dtype=torch.int32
        ),
        f"{name}.weight_scale": factors,
        f"{name}.weight_shape": torch.tensor([rows, columns]),
    }
    if zeros:
        down = torch.tensor([words(shift[at * rows :][:rows]) for at in range(groups)], dtype=torch.int32)
        stored[f"{name}.weight_zero_point"] = down.T.contiguous()
    return stored, dense


def nvfp4(name: str, rows: int, columns: int, seed: int = 0) -> Written:
    """compressed-tensors' nvfp4: the scales of 16 numbers are 8-bit floats, divided by one of the whole weight."""
    codes = numbers(seed, rows * columns, 16)
    small = torch.tensor(numbers(seed + 1, rows * columns // 16, 120)).to(torch.uint8).view(torch.float8_e4m3fn)
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            place = row * columns + column
            value = E2M1[codes[place] & 7] * (-1 if codes[place] & 8 else 1)
            dense[row, column] = value * (small[place // 16].float().double() / 8)
    pairs = [codes[place] | codes[place + 1] << 4 for place in range(0, len(codes), 2)]
    return {
        f"{name}.weight_packed": torch.tensor(pairs, dtype=torch.uint8).reshape(rows, columns // 2),
        f"{name}.weight_scale": small.reshape(rows, columns // 16),
        f"{name}.weight_global_scale": torch.tensor([8.0]),
    }, dense


def int8_rows(name: str, rows: int, columns: int, seed: int = 0) -> Written:
    """compressed-tensors' int-quantized, with a zero for each row."""
    codes = torch.tensor([code - 128 for code in numbers(seed, rows * columns, 256)]).reshape(rows, columns)
    zeros, factors = torch.tensor([code - 9 for code in numbers(seed + 1, rows, 20)]), scales(seed + 2, rows, 1)
    dense = torch.stack([factors[row, 0].double() * (codes[row] - zeros[row]).double() for row in range(rows)])
    return {
        f"{name}.weight": codes.to(torch.int8),
        f"{name}.weight_scale": factors,
        f"{name}.weight_zero_point": zeros.to(torch.int8)[:, None],
    }, dense


def mlx(name: str, rows: int, columns: int, bits: int, group: int, seed: int = 0) -> Written:
    """MLX' affine form: a scale and an offset for each group of a row."""
    codes, groups = numbers(seed, rows * columns, 1 << bits), columns // group
    factors, offsets = scales(seed + 1, rows, groups), -scales(seed + 2, rows, groups)
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            at = column // group
            dense[row, column] = factors[row, at].double() * codes[row * columns + column] + offsets[row, at].double()
    words = [packed32(codes[row * columns :][:columns], bits) for row in range(rows)]
    return {
        f"{name}.weight": torch.tensor(words, dtype=torch.int32).view(torch.uint32),
        f"{name}.scales": factors,
        f"{name}.biases": offsets,
    }, dense


def torchao8(name: str, rows: int, columns: int, seed: int = 0) -> Written:
    """torchao's int8, under the names that its safetensors have."""
    stored, dense = int8_rows(name, rows, columns, seed)
    parts = {".weight": "qdata", ".weight_scale": "scale", ".weight_zero_point": "zero_point"}
    return {f"{name}._weight_{part}": stored[name + ending] for ending, part in parts.items()}, dense


def quanto8(name: str, rows: int, columns: int, seed: int = 0) -> Written:
    """optimum-quanto's float8."""
    stored, dense = fp8_scaled(name, rows, columns, (rows, 1), seed)
    parts = {"_data": stored[f"{name}.weight"], "_scale": stored[f"{name}.weight_scale"]}
    return {f"{name}.weight.{part}": tensor for part, tensor in parts.items()} | {
        f"{name}.input_scale": torch.ones(())
    }, dense


def modelopt_nvfp4(name: str, rows: int, columns: int, seed: int = 0) -> Written:
    """Model Optimizer's NVFP4: what compressed-tensors divides by, it multiplies by, in other names."""
    stored, dense = nvfp4(name, rows, columns, seed)
    return {
        f"{name}.weight": stored[f"{name}.weight_packed"],
        f"{name}.weight_scale": stored[f"{name}.weight_scale"],
        f"{name}.weight_scale_2": torch.tensor(0.125),
        f"{name}.input_scale": torch.tensor(0.5),
    }, dense


def bitnet(name: str, rows: int, columns: int, seed: int = 0) -> Written:
    """Four rows a byte, a quarter of all rows apart; the weight is what the codes say over the scale."""
    codes, scale = [code - 1 for code in numbers(seed, rows * columns, 3)], torch.tensor([4.0])
    dense = torch.tensor(codes, dtype=torch.float64).reshape(rows, columns) / 4
    packed = torch.zeros(rows // 4, columns, dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            packed[row % (rows // 4), column] |= (codes[row * columns + column] + 1) << 2 * (row // (rows // 4))
    return {f"{name}.weight": packed, f"{name}.weight_scale": scale}, dense
