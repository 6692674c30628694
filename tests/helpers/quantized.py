"""Quantized weights written number by number, straight from the published layouts, with what they stand for beside
them: (stored tensors, the dense weight in float64). Nothing here is shared with the readers."""

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
    return [word - (1 << 32) if word >> 31 else word for word in words]


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
    """AutoGPTQ's (`version` 1: zeros stored as z − 1) and GPTQModel's second format; with `shuffled` the inputs are in
    groups that are not beside each other (desc_act). `group` −1: one group."""
    groups = math.ceil(columns / group) if group > 0 else 1
    codes = numbers(seed, rows * columns, 1 << bits)
    zeros = [1 + zero for zero in numbers(seed + 1, groups * rows, (1 << bits) - 1)]
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
    offset = 1 if version == 1 else 0
    zero_rows = [[zero - offset for zero in zeros[at * rows : (at + 1) * rows]] for at in range(groups)]
    return {
        f"{name}.qweight": torch.tensor(columns_of_words, dtype=torch.int32).T.contiguous(),
        f"{name}.qzeros": torch.tensor([packed32(row, bits) for row in zero_rows], dtype=torch.int32),
        f"{name}.scales": factors,
        f"{name}.g_idx": torch.tensor(group_of, dtype=torch.int32),
    }, dense
