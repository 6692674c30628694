"""The README.md of an export: a model card as the hub reads it, with what was measured and how to run it."""

from pathlib import Path
from typing import Any

from karipap_core.compressed.card import CARD, base_model, carried, head
from karipap_core.exports.exporter import Exporter
from karipap_core.exports.source import Source
from karipap_core.terminal import size


def write_card(folder: Path, source: Source, exporter: Exporter, document: dict[str, Any]) -> None:
    """README.md of an export. document : what `export` returns."""
    base = base_model(source.plan, source.checkpoint.name)
    parts = [
        head(base, exporter.library, ["karipap", exporter.name], carried(source.folder / CARD)),
        f"# {base}, compressed with Karipap, for {exporter.title}",
        f"{size(document['bytes'])} of weights, where Karipap's own folder takes {size(document['source_bytes'])} and "
        f"the dense model {size(document['dense_bytes'])}.",
        "## What it holds\n\n" + "\n".join(f"- {line}" for line in document["summary"]),
        "## Measured\n\n" + measured_in_words(document.get("measured"), exporter.title),
        f"## Run it\n\n```\n{document['commands']}\n```",
        "\n".join(f"- {note}" for note in document["notes"]),
        "Compressed with Karipap. `karipap-plan.json` beside this file says what each weight became.",
    ]
    (folder / CARD).write_text("\n\n".join(part for part in parts if part) + "\n", "utf-8")


def measured_in_words(measured: dict[str, Any] | None, title: str) -> str:
    """What the engine lost against Karipap's own folder, in a sentence."""
    if measured is None:
        return f"Not measured in {title}: `--check` does that where it is installed."
    error = measured["difference_error"]
    between = "" if error is None else f" ± {1.96 * error:.5f}"
    return (
        f"{measured['engine']}: {measured['loss']:.4f} nats a token on {measured['tokens']:,} tokens of "
        f"{measured['text']}, Karipap's own folder {measured['karipap_loss']:.4f} on the same; the difference is "
        f"{measured['difference']:+z.5f}{between}, and no token's log-probability is off by more than "
        f"{measured['largest']:.4f}."
    )
