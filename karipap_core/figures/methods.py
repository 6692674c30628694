"""How each way of compressing looks, in every figure: networks are filled, rivals are hollow.

Rivals differ by symbol and dash, so that the eye does not depend on colour.
"""

from typing import NamedTuple

from karipap_core.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE

NETWORK_COLORS = {
    "lowrank": BLUE,
    "mpo": ORANGE,
    "qlr": "#b8336a",
    "peps": "#3a8f9c",
    "disentangled": "#8a6d1f",
    "tree": "#5a8f29",
    "auto": "#5b5fc7",
}
OTHER_NETWORK = "#a0522d"  # several networks in one plan, and a network that has no colour of its own here
SYMBOLS = ("circle", "diamond", "triangle-up", "pentagon", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")
OTHER_RIVALS = (
    *("circle-open", "star-open", "pentagon-open", "triangle-up-open", "hexagram-open", "star-square-open"),
    *("triangle-left-open", "triangle-right-open", "star-diamond-open", "diamond-tall-open"),
)


class Rival(NamedTuple):
    """A method that is no tensor network: its name in a legend, its marker, its line, its colour."""

    name: str
    symbol: str
    dash: str
    color: str


RIVALS = {
    "svd": Rival("plain SVD", "x-thin-open", "dot", GREY),
    "svd-llm": Rival("SVD-LLM, uniform", "cross-thin-open", "dot", GREY),
    "rtn": Rival("integers, rounded", "square-open", "dash", PURPLE),
    "gptq": Rival("integers, GPTQ", "diamond-open", "dash", PURPLE),
    "magnitude": Rival("magnitude pruning", "triangle-down-open", "dashdot", GREEN),
    "torchao": Rival("torchao", "hexagon-open", "dash", PURPLE),
}


def network_color(method: str) -> str:
    """The colour of a network, or of several joined by "+"."""
    return NETWORK_COLORS.get(method, OTHER_NETWORK)


def rival(method: str, number: int = 0) -> Rival:
    """How a baseline looks; one that is not in `RIVALS` has its own name, a hollow grey marker that goes by its number
    among them, and its dash likewise."""
    symbol, dash = OTHER_RIVALS[number % len(OTHER_RIVALS)], DASHES[1 + number % (len(DASHES) - 1)]
    return RIVALS.get(method, Rival(method, symbol, dash, GREY))
