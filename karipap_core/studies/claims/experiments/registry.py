"""Which experiment stands behind which claim."""

from collections.abc import Callable

# (study, progress), and for claims about several models (`Claim.beside`) the others' folders, files or hub ids
Experiment = Callable[..., dict]
CHECKS: dict[str, Experiment] = {}  # name of a claim → its experiment


def experiment(claim: str) -> Callable[[Experiment], Experiment]:
    """Registers the function below as the experiment of the claim of this name in the catalogue.

    Raises ValueError where the claim has an experiment already.
    """

    def registered(run: Experiment) -> Experiment:
        if claim in CHECKS:
            raise ValueError(f"Claim {claim!r} has two experiments: {CHECKS[claim].__name__} and {run.__name__}.")
        CHECKS[claim] = run
        return run

    return registered
