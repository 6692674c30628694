"""The quickest order to contract a network of tensors in, two at a time.

A tensor's legs are whole numbers; a leg joins two tensors, or one tensor and the output. The order is found by dynamic
programming over sets of tensors where there are few, and otherwise by letting one tensor take in its cheapest neighbour
again and again. Pfeifer, Haegeman and Verstraete, PRE 90, 033315 (2014).

What is minimized is time, in multiply-adds of a large matrix product: a step costs its own, and something for
each number that it reads or writes (`touch`): intermediates can be larger than all that they are made of.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn import functional

EXACT = 10  # tensors up to which every order is looked at: 3^n / 2 pairs of sets
# What reading or writing a number costs in multiply-adds, of a tensor that stays in the processor's cache and of a
# larger one. On 1024 × 4096 with 3 and 4 balanced sites, kept .1 and .4, batches of 1 to 128, the orders found with
# these took 1.0 to 1.1 of the time of the best of seven pairs of numbers, those of fewest multiply-adds up to 2.4.
CACHED, TOUCH, FAR_TOUCH = 2**18, 8, 64

Legs = tuple[int, ...]

Function = TypeVar("Function", bound=Callable[..., Any])


class Turn(NamedTuple):
    """A tensor put in another order: seen in `shape` (−1 for the batch), then its axes in the order `axes`."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]


class Side(NamedTuple):
    """How a tensor becomes a matrix (its other legs, those that are summed): turned first where it has to be, which
    makes a copy, and seen as that matrix or, without `last`, as its transpose."""

    turn: Turn | None
    last: bool


class Step(NamedTuple):
    """A product of the matrices of two tensors, by number; `inner` is what is summed over. The result has the other
    legs of the left one, then those of the right one, and is numbered on from the tensors."""

    left: int
    right: int
    inner: int
    sides: tuple[Side, Side]


class Order(NamedTuple):
    """A contraction: its steps, how the last result becomes the output, what it costs in time (in multiply-adds of a
    large product of matrices) and how many multiply-adds of that are real."""

    steps: tuple[Step, ...]
    turn: Turn | None
    cost: int
    multiply_adds: int


def constant_in_graphs(function: Function) -> Function:
    """A decorator: torch.compile calls the function once while it traces and keeps the result in the graph.

    The mark of `torch.compiler.assume_constant_result`, which would import torch._dynamo, 1.2 seconds of every start of
    a program that compiles nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch's own name for the mark
    return function


def touch(numbers: int) -> int:
    """What it costs to read or write a tensor of so many numbers once, in multiply-adds."""
    return numbers * (TOUCH if numbers < CACHED else FAR_TOUCH)


def planned_batch(batch: int | torch.SymInt) -> int:
    """The batch that an order of contractions is chosen for. A graph that is compiled or exported serves many: its
    order is chosen once, for one between decoding and prefill."""
    return 64 if torch.compiler.is_compiling() or isinstance(batch, torch.SymInt) else bucket(batch)


def bucket(batch: int) -> int:
    """The power of two that orders of contraction are chosen for: from `batch` to under twice as many."""
    return 1 << max(batch - 1, 0).bit_length()


def contract(tensors: Sequence[torch.Tensor], legs: Sequence[Legs], output: Legs) -> torch.Tensor:
    """The contraction of `tensors`, whose axes are named by `legs`, with axes in the order of `output`."""
    sizes: dict[int, int] = {}
    for tensor, names in zip(tensors, legs, strict=True):
        sizes |= dict(zip(names, tensor.shape, strict=True))
    found = follow(order(tuple(map(tuple, legs)), tuple(sorted(sizes.items())), tuple(output)), tensors)
    return found.reshape([sizes[leg] for leg in output])


def follow(found: Order, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Carries out what `order` gave; differentiable. Tensors may be in any shape that keeps their numbers in place. The
    result holds the numbers of the output in its order, in any shape."""
    held: list[Any] = list(tensors)
    for left, right, inner, sides in found.steps:
        one, other = _matrix(held[left], inner, sides[0]), _matrix(held[right], inner, sides[1])
        held[left] = held[right] = None  # what is used up does not stay in memory
        held.append(functional.linear(one, other))
    return _turned(held[-1], found.turn)


def _matrix(tensor: torch.Tensor, inner: int, side: Side) -> torch.Tensor:
    turn, last = side
    if turn is not None:
        tensor = _turned(tensor, turn)
    return tensor.reshape(-1, inner) if last else tensor.reshape(inner, -1).T


def _turned(tensor: torch.Tensor, turn: Turn | None) -> torch.Tensor:
    return tensor if turn is None else tensor.reshape(turn.shape).permute(turn.axes)


@lru_cache(maxsize=4096)
def order(legs: tuple[Legs, ...], sizes: tuple[tuple[int, int], ...], output: Legs, apart: int | None = None) -> Order:
    """The order of a contraction of two tensors or more.

    legs : of each tensor.  sizes : (leg, size) of all of them.  output : the legs that remain, in order.
    apart : a tensor without which the others are never all contracted (x, so that Ŵ is not formed). Of it and whatever
    it is contracted with its own legs come first: so the batch, its first one, stays in front, is never turned about,
    and may be of another size when the order is followed.
    """
    size, batch = dict(sizes), () if apart is None else legs[apart][:1]
    # Legs of size 1 are no legs; but a batch of one is a batch.
    *inside, output = (tuple(leg for leg in names if size[leg] > 1 or leg in batch) for names in (*legs, output))
    legs = tuple(inside)
    shape = size | dict.fromkeys(batch, -1)
    everything = (1 << len(legs)) - 1
    banned = everything ^ (1 << apart) if apart is not None and len(legs) > 2 else 0
    pairs, cost = (_best if len(legs) <= EXACT else _greedy)(legs, size, output, banned, apart or 0)
    held = {1 << k: (k, names) for k, names in enumerate(legs)}  # set of tensors → its number, its legs in order
    steps: list[Step] = []
    spent = 0
    for pair in pairs:
        one, other = sorted(pair, key=lambda tensors: not (tensors >> (apart or 0) & 1))
        (left, first), (right, second) = held[one], held[other]
        shared = tuple(leg for leg in first if leg in second)
        inner = math.prod(size[leg] for leg in shared)
        steps.append(Step(left, right, inner, (_side(first, shared, shape), _side(second, shared, shape))))
        spent += math.prod(size[leg] for leg in {*first, *second})
        rest = tuple(leg for leg in (*first, *second) if leg not in shared)
        held[one | other] = len(legs) + len(steps) - 1, rest
    return Order(tuple(steps), _turn(held[everything][1], output, shape), cost, spent)


def _side(legs: Legs, shared: Legs, shape: dict[int, int]) -> Side:
    rest = tuple(leg for leg in legs if leg not in shared)
    if legs == shared + rest:
        return Side(None, last=not rest)
    return Side(_turn(legs, rest + shared, shape), last=True)


def _turn(legs: Legs, wanted: Legs, shape: dict[int, int]) -> Turn | None:
    if legs == wanted:
        return None
    return Turn(tuple(shape[leg] for leg in legs), tuple(map(legs.index, wanted)))


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
                touched = sum(touch(volume(open_legs[part])) for part in (left, right, joined))
                now = cost[left] + cost[right] + volume(open_legs[left] | open_legs[right]) + touched
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
    """As `_best`, one tensor (`first`) taking in whatever costs least."""
    done, left, pairs, total = 1 << first, set(range(len(legs))) - {first}, [], 0
    while left:
        choices = []
        for k in left:
            joined = set(_outer(done, legs, output)) | set(legs[k])
            parts = _outer(done, legs, output), legs[k], _outer(done | 1 << k, legs, output)
            touched = sum(touch(math.prod(size[leg] for leg in part)) for part in parts)
            choices.append((math.prod(size[leg] for leg in joined) + touched, k))
        now, k = min(choices)
        pairs.append((done, 1 << k))
        done, total = done | 1 << k, total + now
        left.remove(k)
    return pairs, total
