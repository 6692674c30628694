"""The rows of a run as a table, for a terminal and for the documents."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import transformers

from reliability.architectures.chain import AGREEMENT, COVERED, Row

HEAD = ("architecture", "kind", "covered", "full rank", "verify", "evaluate", "left out, or why not")
DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"


def summary(rows: Sequence[Row]) -> list[str]:
    """What the whole run comes to, in sentences."""
    verdicts = Counter(row.verdict for row in rows)
    ran = [row for row in rows if row.verdict != "not built"]
    causal = [row for row in ran if row.kind == "causal" and row.covered is not None]
    wide = sum((row.covered or 0) >= COVERED for row in causal)
    agreed = [row for row in ran if row.agreement is not None]
    near = sum((row.agreement or 0) <= AGREEMENT for row in agreed)
    return [
        f"{len(rows)} architectures listed, {len(ran)} built and run: {verdicts['works']} work, "
        f"{verdicts['refused']} are refused somewhere with a sentence, "
        f"{verdicts['wrong']} are wrong or end in a traceback.",
        f"Of these {sum('plan' in row.steps for row in ran)} went through the whole chain; of the others "
        "(`--quick`) what is covered was counted, and the folder at full rank written, verified and compared.",
        f"Of {len(causal)} causal ones {wide} are covered to {COVERED:.0%} or more of the parameters outside tables.",
        f"At full rank {near} of {len(agreed)} agree with the dense model to {AGREEMENT:g}.",
    ]


def cells(row: Row) -> list[str]:
    """One row of the table."""
    covered = "" if row.covered is None else f"{row.covered:.1%}"
    agreement = "" if row.agreement is None else f"{row.agreement:.0e}"
    return [row.name, row.kind, covered, agreement, _said(row, "verify"), _said(row, "evaluate"), why(row)]


def _said(row: Row, step: str) -> str:
    said = row.steps.get(step)
    return "" if said is None else "yes" if said == "ok" else "wrong" if step in row.faults else "refused"


def why(row: Row) -> str:
    """The first thing that a step said, and what is left out where that is much."""
    said = [
        f"{'WRONG ' if step in row.faults else ''}{step}: {what}" for step, what in row.steps.items() if what != "ok"
    ]
    if row.covered is not None and row.covered < COVERED:
        said.append("left out: " + "; ".join(f"{count:,} {what}" for what, count in [*row.left_out.items()][:3]))
    return " | ".join(said)


def plain(rows: Sequence[Row]) -> str:
    """The table with columns of equal width."""
    table = [HEAD, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in table
    )


def write(rows: Sequence[Row]) -> Path:
    """Writes docs/architectures.md."""
    lines = [
        "# Architectures",
        "",
        f"What `make architectures ARGS=--write` found with transformers {transformers.__version__}: a tiny random "
        "checkpoint of every architecture that it can build, made from its own config classes, through `profile`, "
        "`plan --metric weight --rule uniform`, `compress`, plain `from_pretrained`, `verify` and `evaluate`.",
        "",
        "*Covered* is the share of the parameters outside tables of tokens that a plan can reach. *Full rank* is the "
        "relative difference of the outputs, in float32, where all of those become networks without loss.",
        "",
        *(f"- {line}" for line in summary(rows)),
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    for row in rows:
        lines.append("| " + " | ".join(cell.replace("|", "·").replace("\n", " ") for cell in cells(row)) + " |")
    DOCUMENT.write_text("\n".join(lines) + "\n", "utf-8")
    return DOCUMENT
