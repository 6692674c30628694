"""Contractions step by step, by shapes alone."""

import math

from karipap_core.networks.contraction import touch


def walked(steps, shapes):
    """Numbers in the last result, multiply-adds and cost of carrying out `steps` on tensors of `shapes`."""
    numbers, adds, cost = [math.prod(shape) for shape in shapes], 0, 0
    for left, right, inner, _ in steps:
        one, other = numbers[left], numbers[right]
        numbers.append(one // inner * (other // inner))
        now = one * other // inner
        adds, cost = adds + now, cost + now + sum(map(touch, (one, other, numbers[-1])))
    return numbers[-1], adds, cost
