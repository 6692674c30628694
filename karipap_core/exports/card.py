"""The README.md of an export: a model card as the hub reads it, with what was measured and how to run it."""

from pathlib import Path
from typing import Any

from karipap_core.checkpoint.hub import HUB_ID
from karipap_core.exports.exporter import Exporter
from karipap_core.exports.source import Source
from karipap_core.terminal import size

CARRIED = ("license", "license_name", "license_link", "language")  # fields of the model's own card
FILE = "README.md"


def write_card(folder: Path, source: Source, exporter: Exporter, document: dict[str, Any]) -> None:
    """README.md of an export. document : what `export` returns."""
    from huggingface_hub import ModelCardData

    base = base_model(source)
    data = ModelCardData(
        library_name=exporter.library,
        base_model=base if HUB_ID.fullmatch(base) else None,
        base_model_relation="quantized" if HUB_ID.fullmatch(base) else None,
        tags=["karipap", exporter.name],
        quantized_by="karipap",
        ignore_metadata_errors=True,
        **carried(source.folder / FILE),
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {base}, compressed with Karipap, for {exporter.title}",
        f"{size(document['bytes'])} of weights, where Karipap's own folder takes {size(document['source_bytes'])} and "
        f"the dense model {size(document['dense_bytes'])}.",
        "## What it holds\n\n" + "\n".join(f"- {line}" for line in document["summary"]),
        "## Measured\n\n" + measured_in_words(document.get("measured"), exporter.title),
        f"## Run it\n\n```\n{document['commands']}\n```",
        "\n".join(f"- {note}" for note in document["notes"]),
        "Compressed with Karipap. `karipap-plan.json` beside this file says what each weight became.",
    ]
    (folder / FILE).write_text("\n\n".join(part for part in parts if part) + "\n", "utf-8")


def base_model(source: Source) -> str:
    """What the plan calls the dense model: a hub id, or the last part of where it lay."""
    name = str(source.plan.get("model", {}).get("name") or source.checkpoint.name)
    return name if HUB_ID.fullmatch(name) else Path(name).name


def carried(file: Path) -> dict[str, Any]:
    """The fields of `CARRIED` of a model card, those that it has; none of a card that cannot be read."""
    import yaml
    from huggingface_hub import ModelCard

    if not file.is_file() or file.stat().st_size > 1_000_000:
        return {}
    try:
        found = ModelCard(file.read_text("utf-8", errors="replace"), ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return {}
    return {name: found[name] for name in CARRIED if found.get(name)}


def measured_in_words(measured: dict[str, Any] | None, title: str) -> str:
    """What the engine lost against Karipap's own folder, in a sentence."""
    if measured is None:
        return f"Not measured in {title}: `--check` does that where it is installed."
    error = measured["difference_error"]
    between = "" if error is None else f" ± {1.96 * error:.5f}"
    return (
        f"{measured['engine']}: {measured['loss']:.4f} nats a token on {measured['tokens']:,} tokens of "
        f"{measured['text']}, Karipap's own folder {measured['karipap_loss']:.4f} on the same; the difference is "
        f"{measured['difference']:+.5f}{between}, and no token's log-probability is off by more than "
        f"{measured['largest']:.4f}."
    )
