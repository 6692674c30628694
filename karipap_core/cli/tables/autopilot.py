"""The autopilot's search as a table in a terminal."""

import textwrap

from karipap_core.terminal import grid, page

WIDTH = 100


def table(document: dict) -> str:
    """The verdict, the figures, every plan tried, and the log in sentences."""
    line = document["line"]
    if "max_rise" in line:
        aim = f"at most {line['max_rise']:.4g} {line['of']}"
        aim += f" (perplexity {line['max_perplexity']:+z.2%})" if "max_perplexity" in line else ""
    else:
        aim = f"{line['bytes_kept']:.1%} of the bytes of the {line['scope']}"
    facts = {
        "model": document["model"]["name"],
        "asked for": aim,
        "criterion": document["criterion"],
        "met": None if document.get("met") is None else "yes" if document["met"] else "no",
        "bytes kept": document.get("bytes_kept"),
        "rise": document.get("rise"),
        "searched on": document["texts"]["search"]["name"],
        "verdict on": document["texts"]["verdict"]["name"],
        "calibrated on": document["texts"]["calibration"]["name"],
        "evaluations": document["evaluations"],
        "plan": document.get("plan_file"),
    }
    head = ["plan", "on", "bytes kept", "predicted", document["quality"].replace("_", " "), "low", "high", ""]
    rows = [
        [
            row["label"],
            row["text"],
            row["bytes_kept"],
            row["predicted"],
            row["rise"],
            row["low"],
            row["high"],
            {True: "accepted", False: "not taken"}.get(row["accepted"]),
        ]
        for row in document["tried"]
    ]
    rows += [
        [row["label"], "verdict", row["bytes_kept"], None, row["rise"], row["rise_low"], row["rise_high"], "rival"]
        for row in document["rivals"]
    ]
    said = [_wrapped(sentence, "") for sentence in document.get("verdict", ())]
    steps = [_wrapped(step["says"], f"{step['step']:>3}. ") for step in document["log"]]
    return "\n\n".join(filter(None, ["\n".join(said), page(facts, grid(head, rows)), "\n".join(steps)]))


def _wrapped(sentence: str, head: str) -> str:
    clean = "".join(letter if letter.isprintable() else "?" for letter in sentence)
    return textwrap.fill(clean, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
