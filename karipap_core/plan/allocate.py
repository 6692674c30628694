"""A budget → one option for each weight.

Every weight comes with a table of options (a χ, what it costs, what it damages; dense is one of them). All rules end
in the same relaxed problem: choose for each weight argmin(damage + λ·cost) and bisect λ until the budget is met
(docs/methods.md, "Allocation"). They differ in what they call damage.
"""

from dataclasses import dataclass

import numpy as np

from karipap_core.errors import InputError


@dataclass(frozen=True)
class Options:
    """What one weight, or one group of weights, can become. Arrays of one length, sorted by rising cost.

    chi: bond dimension, 0 for dense; cost: parameters or bytes; damage: what the option adds to the sum that a rule
    makes small (nats a token for the calibrated rules), 0 for dense, never rising with cost; kind: which network each
    option is of (an index that whoever made the table knows), None where there is but one.
    """

    name: str
    chi: np.ndarray
    cost: np.ndarray
    damage: np.ndarray
    kind: np.ndarray | None = None


def options(name: str, chi, cost, damage, dense_cost: float) -> Options:
    """An option table from the curve of one network: options that cost no less than dense fall away, dense is added."""
    chi, cost, damage = np.asarray(chi), np.asarray(cost, float), np.asarray(damage, float)
    cheaper = cost < dense_cost
    return Options(
        name,
        np.append(chi[cheaper], 0).astype(np.int64),
        np.append(cost[cheaper], float(dense_cost)),
        np.append(np.minimum.accumulate(np.maximum(damage[cheaper], 0)), 0.0),
    )


def merged(name: str, tables: list[Options], kinds: list[int] | None = None) -> Options:
    """One table of several for the same weight: options that cost more and damage no less than another fall away.

    `kinds` numbers the tables whose own options have no kind.
    """
    kind = np.concatenate(
        [
            np.full(len(table.chi), kinds[index] if kinds else index) if table.kind is None else table.kind
            for index, table in enumerate(tables)
        ]
    )
    chi, cost, damage = (np.concatenate([getattr(table, key) for table in tables]) for key in ("chi", "cost", "damage"))
    order = np.lexsort((damage, cost))
    best = np.concatenate([[np.inf], np.minimum.accumulate(damage[order])[:-1]])
    keep = order[damage[order] < best]
    return Options(name, chi[keep], cost[keep], damage[keep], kind[keep])


def together(name: str, tables: list[Options]) -> tuple[Options, list[dict[str, int]]]:
    """Several weights as one: the choices that are best at some price of cost, and which option each weight has in it.

    The lower convex hull of the sum: from every weight's smallest option, the step that saves most damage per cost,
    again and again. (`chi` of the result only counts.)
    """
    steps, at = [], {}
    for table in tables:
        index, at[table.name] = 0, 0
        while index + 1 < len(table.cost):
            slope = (table.damage[index] - table.damage[index + 1 :]) / (table.cost[index + 1 :] - table.cost[index])
            best = int(len(slope) - 1 - slope[::-1].argmax())
            if slope[best] <= 0:
                break
            steps.append((-slope[best], table.name, index, index + 1 + best))
            index += 1 + best
    by_name = {table.name: table for table in tables}
    picks = [dict(at)]
    for _, member, _, to in sorted(steps):
        at[member] = to
        picks.append(dict(at))
    cost = [sum(by_name[member].cost[index] for member, index in pick.items()) for pick in picks]
    damage = [sum(by_name[member].damage[index] for member, index in pick.items()) for pick in picks]
    return Options(name, np.arange(len(picks)), np.array(cost, float), np.array(damage, float)), picks


def smallest(tables: list[Options]) -> float:
    """The least cost any choice can have."""
    return float(sum(table.cost[0] for table in tables))


def allocate(tables: list[Options], budget: float, fixed: dict[str, int] | None = None) -> dict[str, int]:
    """The option of each weight (its index in the table) with the least total damage at a total cost ≤ budget.

    Lagrangian: argmin over options of damage + λ·cost, λ bisected to the budget; what is left over then goes, step by
    step, to the weight that gains most per unit of cost. `fixed` pins weights to an option. Exact for the relaxed
    problem; the gap to the true optimum is at most one step of one weight.

    Raises InputError when even the smallest options exceed the budget.
    """
    fixed = fixed or {}
    free = [table for table in tables if table.name not in fixed]
    spent = sum(float(table.cost[fixed[table.name]]) for table in tables if table.name in fixed)
    room = budget - spent
    least = smallest(free)
    if room < least - 1e-9 * max(1.0, budget):
        raise InputError(
            f"The budget leaves {budget:,.0f} for these weights, the least they can have is {spent + least:,.0f}: "
            "raise the budget or unlock weights."
        )
    if not free:
        return dict(fixed)
    flat = _Flat(free)
    if flat.total(chosen := flat.choose(0.0)) > room:
        low, high = 0.0, flat.steepest()
        # The damage spans many decades, so λ is halved on a logarithmic scale.
        low = high * 1e-24
        for _ in range(80):
            middle = np.sqrt(low * high)
            if flat.total(flat.choose(middle)) > room:
                low = middle
            else:
                high = middle
        chosen = flat.choose(high)
        if flat.total(chosen) > room:
            chosen = flat.starts.copy()
    chosen = _fill(free, chosen - flat.starts, room)
    return dict(fixed) | {table.name: int(index) for table, index in zip(free, chosen, strict=True)}


class _Flat:
    """All tables in one row, so that a choice for every weight is one pass of NumPy."""

    def __init__(self, tables: list[Options]) -> None:
        lengths = np.array([len(table.chi) for table in tables])
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.cost = np.concatenate([table.cost for table in tables])
        self.damage = np.concatenate([table.damage for table in tables])
        self.weight = np.repeat(np.arange(len(tables)), lengths)

    def choose(self, price: float) -> np.ndarray:
        objective = self.damage + price * self.cost
        best = np.minimum.reduceat(objective, self.starts)
        hits = np.flatnonzero(objective == best[self.weight])
        # Of options that are as good the cheapest: the first of each weight.
        _, first = np.unique(self.weight[hits], return_index=True)
        return hits[first]

    def total(self, chosen: np.ndarray) -> float:
        return float(self.cost[chosen].sum())

    def steepest(self) -> float:
        """A price above which every weight takes its smallest option."""
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = (self.damage[self.starts][self.weight] - self.damage) / (
                self.cost - self.cost[self.starts][self.weight]
            )
        slopes = slopes[np.isfinite(slopes)]
        return float(max(slopes.max(initial=0.0) * 2, 1e-300))


def _fill(tables: list[Options], chosen: np.ndarray, room: float) -> np.ndarray:
    """Spend what the last λ left over: again and again the affordable step with the most damage saved per cost."""
    chosen = chosen.copy()
    left = room - sum(float(table.cost[index]) for table, index in zip(tables, chosen, strict=True))

    def best_step(position: int) -> tuple[float, int]:
        table, now = tables[position], chosen[position]
        reach = int(np.searchsorted(table.cost, table.cost[now] + left, side="right"))
        if reach <= now + 1:
            return 0.0, now
        gain = (table.damage[now] - table.damage[now + 1 : reach]) / (table.cost[now + 1 : reach] - table.cost[now])
        step = int(gain.argmax())
        return float(gain[step]), now + 1 + step

    gains = [best_step(position) for position in range(len(tables))]
    for _ in range(4 * len(tables)):
        position = max(range(len(tables)), key=lambda p: gains[p][0])
        gain, index = gains[position]
        if gain <= 0:
            break
        if tables[position].cost[index] - tables[position].cost[chosen[position]] <= left:
            left -= float(tables[position].cost[index] - tables[position].cost[chosen[position]])
            chosen[position] = index
        gains[position] = best_step(position)
    return chosen


def uniform(tables: list[Options], budget: float, fixed: dict[str, int] | None = None) -> dict[str, int]:
    """Every weight keeps the same fraction of its own cost (SVD-LLM's rule): the largest option under the fraction."""
    return _scaled(tables, budget, fixed, [float(table.cost[-1]) for table in tables])


def by_entropy(
    tables: list[Options], budget: float, entropies: dict[str, float], fixed: dict[str, int] | None = None
) -> dict[str, int]:
    """χ in proportion to the effective rank exp(S), one factor for all weights, found by bisection on the budget."""
    shares = []
    for table in tables:
        per_chi = float(table.cost[0] / max(1, table.chi[0]))
        shares.append(float(np.exp(entropies[table.name])) * per_chi)
    return _scaled(tables, budget, fixed, shares)


def _scaled(tables, budget, fixed, shares) -> dict[str, int]:
    """Each weight takes the largest option of cost ≤ factor·share; the factor is bisected to the budget."""
    fixed = fixed or {}

    def choose(factor: float) -> dict[str, int]:
        taken = {}
        for table, share in zip(tables, shares, strict=True):
            index = int(np.searchsorted(table.cost, factor * share * (1 + 1e-12), side="right")) - 1
            taken[table.name] = fixed.get(table.name, max(0, index))
        return taken

    def total(taken: dict[str, int]) -> float:
        return float(sum(table.cost[taken[table.name]] for table in tables))

    if total(choose(0.0)) > budget:
        raise InputError(
            f"The budget leaves {budget:,.0f} for these weights, the least they can have is {total(choose(0.0)):,.0f}:"
            " raise the budget or unlock weights."
        )
    low, high = 0.0, max(float(table.cost[-1]) / share for table, share in zip(tables, shares, strict=True))
    if total(choose(high)) <= budget:
        return choose(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if total(choose(middle)) <= budget else (low, middle)
    return choose(low)
