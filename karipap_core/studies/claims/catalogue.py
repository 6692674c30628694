"""All claims by name."""

from karipap_core.errors import InputError
from karipap_core.studies.claims.claim import Claim
from karipap_core.studies.claims.papers.networks import NETWORKS
from karipap_core.studies.claims.papers.spectra import SPECTRA

CLAIMS: dict[str, Claim] = {claim.name: claim for claim in (*SPECTRA, *NETWORKS)}


def named(name: str) -> Claim:
    """The claim of that name. Raises InputError where there is none."""
    if name not in CLAIMS:
        raise InputError(f"Claim {name!r} is not one of {', '.join(CLAIMS)}.")
    return CLAIMS[name]
