"""How the suite is cut into pieces for the workers of `pytest -n 2`, and in which order they are handed out."""

from xdist.scheduler import LoadScopeScheduling

# A piece is a file, so that what a file makes once is made once. These files make nothing that their tests share: each
# test of theirs is a piece.
SINGLE = ("tests/whole/test_whole_line.py",)
# These import a library that costs ten seconds: one worker does.
TOGETHER = {
    "tests/unit/networks/test_disentangled.py": "quimb",
    "tests/unit/networks/test_peps.py": "quimb",
    "tests/unit/studies/test_ising.py": "quimb",
}
# The longest first, so that the workers end together; the rest in the order of their names.
LONGEST = (
    "tests/browser/",
    "tests/whole/test_whole_line.py",
    "tests/bad_input/",
    "tests/whole/",
    "tests/unit/plan/test_planner.py",
    "tests/unit/tradeoffs/test_autopilot.py",
    "tests/unit/healing/test_heal.py",
    "tests/unit/layers/test_stored_layers.py",
    "tests/unit/studies/test_ising.py",
    "tests/unit/reliability/",
    "tests/unit/checkpoint/test_hub.py",
    "tests/unit/compressed/test_compress.py",
    "tests/unit/networks/",
    "tests/unit/models/test_load.py",
    "tests/unit/plan/test_seen.py",
)


def place(nodeid: str) -> int:
    """Where a test stands in the order: small numbers run first."""
    return next((number for number, start in enumerate(LONGEST) if nodeid.startswith(start)), len(LONGEST))


def piece(nodeid: str) -> str:
    """The piece that a test belongs to. All browser tests are one: two browsers at once would be too slow for the
    seconds that a person, and so a test, is willing to wait."""
    file = nodeid.split("::")[0]
    if file.startswith("tests/browser/"):
        return "tests/browser"
    return nodeid if file in SINGLE else TOGETHER.get(file, file)


class Pieces(LoadScopeScheduling):
    """Hands out whole pieces, in the order in which the tests were collected."""

    def __init__(self, config, log=None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return piece(nodeid)
