"""Where the repository is, and the developers' shared folder beside it (which a user's clone does not have)."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
