"""What a claim is: a headline, published figures with their source, and what is run here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One figure of a paper: `key` (the measured one has the same), what it is of, as printed there, and where.

    Where nothing was published the value is ""; `what` says what is measured here.
    """

    key: str
    what: str
    value: str
    source: str


@dataclass(frozen=True)
class Claim:
    """headline: in the paper's words or nearly; allows: what its public text allows to reproduce; check: what is run
    here, and how that differs from the paper's own experiment; origin: where the paper can be found, as in
    "arXiv:2401.14109"; link: its address where it is not on arXiv; beside: whether the claim is about several models,
    so that others can be given beside the one in view."""

    name: str
    title: str
    paper: str
    origin: str
    headline: str
    allows: str
    check: str
    published: tuple[Published, ...]
    link: str = ""
    beside: bool = False

    @property
    def address(self) -> str:
        """Where the paper can be opened."""
        return self.link or f"https://arxiv.org/abs/{self.origin.removeprefix('arXiv:')}"
