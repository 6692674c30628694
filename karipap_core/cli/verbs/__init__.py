"""The verbs of the command line: importing this package registers them all.

A verb is one function that calls one function of the core, which it imports when it runs, so that `--help` is instant.
The JSON document that it returns is what `--json` prints and what a page reads. A new verb is one more function in one
of these files.
"""

from karipap_core.cli.registry import Verb
from karipap_core.cli.verbs import deployment, exports, healing, hub, reports, story, studies, tradeoff

__all__ = ["deployment", "exports", "healing", "hub", "in_order", "reports", "story", "studies", "tradeoff"]

FIRST = (
    "fetch",
    "profile",
    "plan",
    "compress",
    "evaluate",
    "run",
    "sweep",
    "densify",
    "export",
    "ising",
    "show",
    "claims",
    "deploy",
    "verify",
    "heal",
    "shadow",
    "checklist",
    "compare",
    "report",
    "sensitivity",
    "autopilot",
    "text",
)


def in_order(verbs: dict[str, Verb]) -> list[Verb]:
    """The verbs as the help lists them: those of `FIRST`, then the others as they were registered."""
    return sorted(verbs.values(), key=lambda verb: FIRST.index(verb.name) if verb.name in FIRST else len(FIRST))
