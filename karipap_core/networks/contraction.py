"""The cheapest order to contract a network of tensors in, two at a time.

A tensor's legs are whole numbers; legs of one number are joined and summed unless the output keeps them. The order is
found by dynamic programming over sets of tensors where there are few, and otherwise by letting one tensor take in its
cheapest neighbour again and again. Pfeifer, Haegeman and Verstraete, PRE 90, 033315 (2014).
"""

import math
import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch

EXACT = 10  # tensors up to which every order is looked at: 3^n / 2 pairs of sets

Legs = tuple[int, ...]
Step = tuple[int, int, str]

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_in_graphs(function: Function) -> Function:
    """A decorator: torch.compile calls the function once while it traces and keeps the result in the graph.

    The mark of `torch.compiler.assume_constant_result`, which would import torch._dynamo, 1.2 seconds of every start of
    a program that compiles nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch's own name for the mark
    return function


def contract(tensors: Sequence[torch.Tensor], legs: Sequence[Legs], output: Legs) -> torch.Tensor:
    """The contraction of `tensors`, whose axes are named by `legs`, with axes in the order of `output`."""
    sizes: dict[int, int] = {}
    for tensor, names in zip(tensors, legs, strict=True):
        sizes |= dict(zip(names, tensor.shape, strict=True))
    return follow(order(tuple(map(tuple, legs)), tuple(sorted(sizes.items())), tuple(output))[1], tensors)


def follow(steps: Sequence[Step], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Carries out the steps that `order` gave; differentiable."""
    left_over = dict(enumerate(tensors))  # what is used up does not stay in memory
    number = len(tensors)
    for left, right, equation in steps:
        left_over[number] = torch.einsum(equation, left_over.pop(left), left_over.pop(right))
        number += 1
    return left_over[number - 1]


@lru_cache(maxsize=4096)
def order(
    legs: tuple[Legs, ...], sizes: tuple[tuple[int, int], ...], output: Legs, apart: int | None = None
) -> tuple[int, tuple[Step, ...]]:
    """Multiply-adds and steps of a contraction of two tensors or more.

    legs : of each tensor.  sizes : (leg, size) of all of them.  output : the legs that remain, in order.
    apart : a tensor without which the others are never all contracted (x, so that Ŵ is not formed).
    A step (a, b, equation) contracts tensors a and b with `torch.einsum`; its result is numbered on from the tensors.
    """
    size = dict(sizes)
    everything = (1 << len(legs)) - 1
    banned = everything ^ (1 << apart) if apart is not None and len(legs) > 2 else 0
    pairs, cost = (_best if len(legs) <= EXACT else _greedy)(legs, size, output, banned, apart or 0)
    number = {1 << k: k for k in range(len(legs))}
    steps: list[Step] = []
    for a, b in pairs:
        parts = [_outer(a, legs, output), _outer(b, legs, output), _outer(a | b, legs, output)]
        if a | b == everything:
            parts[2] = output
        letters = dict(zip(dict.fromkeys((*parts[0], *parts[1])), string.ascii_letters, strict=False))
        first, second, result = ("".join(letters[leg] for leg in part) for part in parts)
        number[a | b] = len(legs) + len(steps)
        steps.append((number[a], number[b], f"{first},{second}->{result}"))
    return cost, tuple(steps)


def _outer(tensors: int, legs: tuple[Legs, ...], output: Legs) -> Legs:
    """The legs that a set of tensors keeps once contracted: a single tensor's own order, else ascending."""
    inside = [names for k, names in enumerate(legs) if tensors >> k & 1]
    if len(inside) == 1:
        return inside[0]
    outside = set(output).union(*(names for k, names in enumerate(legs) if not tensors >> k & 1))
    return tuple(sorted(set().union(*inside) & outside))


def _best(
    legs: tuple[Legs, ...], size: dict[int, int], output: Legs, banned: int, first: int
) -> tuple[list[tuple[int, int]], int]:
    """The pairs of sets to join, first to last, and what they cost, over all orders."""
    count = len(legs)
    place = {leg: k for k, leg in enumerate(size)}
    masks = [sum(1 << place[leg] for leg in names) for names in legs]
    kept = sum(1 << place[leg] for leg in output)
    volumes: dict[int, int] = {}

    def volume(mask: int) -> int:
        if mask not in volumes:
            volumes[mask] = math.prod(n for leg, n in size.items() if mask >> place[leg] & 1)
        return volumes[mask]

    everything = (1 << count) - 1
    union = [0] * (everything + 1)
    for joined in range(1, everything + 1):
        low = joined & -joined
        union[joined] = union[joined ^ low] | masks[low.bit_length() - 1]
    open_legs = [union[joined] & (union[everything ^ joined] | kept) for joined in range(everything + 1)]
    cost: dict[int, int] = {}
    halves: dict[int, tuple[int, int]] = {}
    for k in range(count):
        cost[1 << k], open_legs[1 << k] = 0, masks[k]
    for joined in sorted(range(1, everything + 1), key=int.bit_count):
        if joined in cost or joined == banned:
            continue
        best: float = math.inf
        low, left = joined & -joined, (joined - 1) & joined
        while left:
            right = joined ^ left
            if left & low and left in cost and right in cost and cost[left] + cost[right] < best:
                now = cost[left] + cost[right] + volume(open_legs[left] | open_legs[right])
                if now < best:
                    best = cost[joined] = now
                    halves[joined] = left, right
            left = (left - 1) & joined

    def pairs(joined: int) -> list[tuple[int, int]]:
        if joined not in halves:
            return []
        left, right = halves[joined]
        return [*pairs(left), *pairs(right), (left, right)]

    return pairs(everything), cost[everything]


def _greedy(
    legs: tuple[Legs, ...], size: dict[int, int], output: Legs, banned: int, first: int
) -> tuple[list[tuple[int, int]], int]:
    """As `_best`, one tensor (`first`) taking in whatever costs least, the smallest result where that is even."""
    done, left, pairs, total = 1 << first, set(range(len(legs))) - {first}, [], 0
    while left:
        choices = []
        for k in left:
            joined = set(_outer(done, legs, output)) | set(legs[k])
            result = _outer(done | 1 << k, legs, output)
            choices.append((math.prod(size[leg] for leg in joined), math.prod(size[leg] for leg in result), k))
        now, _, k = min(choices)
        pairs.append((done, 1 << k))
        done, total = done | 1 << k, total + now
        left.remove(k)
    return pairs, total
