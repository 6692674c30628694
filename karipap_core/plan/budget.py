"""A budget: the fraction of parameters or bytes that a plan may keep."""

from collections.abc import Iterable
from dataclasses import dataclass

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.checkpoint.roles import TOWERS
from karipap_core.errors import InputError, unknown

SCOPES = ("model", "blocks")


@dataclass(frozen=True)
class Budget:
    """kept: fraction of parameters, of the whole model (scope `model`), of the compressible weights (`blocks`) or of
    those of one tower (its name), while all others stay dense; kept_bytes: fraction of bytes instead, of the whole
    model or of a tower."""

    kept: float | None = None
    kept_bytes: float | None = None
    scope: str = "model"

    def limit(self, checkpoint: Checkpoint, tables: Iterable[Weight] = ()) -> tuple[float, str]:
        """(what the compressible weights and `tables` may cost, its unit). InputError where the rest alone exceeds the
        budget."""
        value = self.kept if self.kept is not None else self.kept_bytes
        if value is None or (self.kept is not None and self.kept_bytes is not None):
            raise InputError("Give one budget: a fraction of parameters (--budget) or of bytes (--budget-bytes).")
        if not 0 < value <= 1:
            raise InputError(f"Budget {value} is not a fraction: it must be above 0 and at most 1.")
        scopes = (*SCOPES, *towers(checkpoint))
        if self.scope not in scopes:
            raise unknown("Scope", self.scope, scopes)
        tables = list(tables)
        if self.scope not in SCOPES:
            return self._limit_of_tower(checkpoint, tables, value)
        blocks = checkpoint.block_parameters + sum(weight.parameters for weight in tables)
        whole, unit = checkpoint.parameters, "parameters"
        if self.kept is None:
            blocks = sum(w.bytes for w in checkpoint.weights if w.compressible) + sum(w.bytes for w in tables)
            whole, unit = checkpoint.bytes, "bytes"
        elif self.scope == "blocks":
            return value * blocks, unit
        limit = value * whole - (whole - blocks)
        if limit <= 0:
            raise InputError(
                f"A budget of {value:g} leaves nothing for the {blocks:,} {unit} that can be compressed: the rest "
                f"(embeddings, head, norms) alone is {(whole - blocks) / whole:.3f} of the model. Raise the budget, or "
                "count the blocks alone with --scope blocks."
            )
        return limit, unit

    def _limit_of_tower(self, checkpoint: Checkpoint, tables: list[Weight], value: float) -> tuple[float, str]:
        unit = "parameters" if self.kept is not None else "bytes"
        every = [*(weight for weight in checkpoint.weights if weight.compressible), *tables]
        sizes = {weight.name: weight.parameters if self.kept is not None else weight.bytes for weight in every}
        inside = sum(sizes[weight.name] for weight in every if weight.tower == self.scope)
        return value * inside + sum(sizes.values()) - inside, unit


def towers(checkpoint: Checkpoint) -> list[str]:
    """The towers of a model that has several, as they run; [] of one that has not."""
    found = {weight.tower for weight in checkpoint.weights if weight.compressible and weight.tower}
    return sorted(found, key=TOWERS.index)
