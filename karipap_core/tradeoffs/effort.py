"""What a sweep will take: how many models it measures, and how long one took before. Nothing here imports torch."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from statistics import median

from karipap_core.networks.listed import NAMES

# What rivals there are: (bits, group) of integers, where None is one scale for a whole row; and shares pruned.
QUANTIZED = ((8, None), (4, 128), (4, 64), (3, 128), (3, 64), (2, 64), (2, 32))
AUTO_RISES = (0.01, 0.03, 0.1, 0.3, 1.0, 2.5)  # predicted rises in loss around which budgets are put by `auto`
SPARSITIES = (0.25, 0.5, 0.75)


def models(networks: Sequence[str], rules: int, budgets: int) -> tuple[int, int]:
    """(plans, rivals) that a sweep measures at most: budgets that a model cannot meet are left out, and points that
    are there already are found again. networks : as `sweep` takes them; `all` is each of them, and the mix."""
    named = {each for network in networks for each in ((*NAMES, "auto") if network == "all" else (network,))}
    integers = sum(1 if bits >= 8 else 2 for bits, _ in QUANTIZED)  # rounded, and below 8 bits by GPTQ as well
    rivals = 2 * budgets + integers + len(SPARSITIES) + bool(find_spec("torchao"))
    return len(named) * rules * budgets, rivals


def seconds_each(runs: Iterable[dict]) -> float | None:
    """The median of what these runs took, planned and measured; None where none says so."""
    spent = [sum(value for value in (run.get("seconds") or {}).values() if value) for run in runs]
    return median(found) if (found := [each for each in spent if each > 0]) else None
