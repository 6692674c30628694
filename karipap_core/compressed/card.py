"""The README.md of a compressed folder: the card that the hub shows, where a person looks for how to load it."""

from pathlib import Path
from typing import Any

from karipap_core.checkpoint.hub import HUB_ID
from karipap_core.checkpoint.kinds import PREDICTS, kind_of, loader_of
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.compressed.archive import two_lines

CARD = "README.md"
MOST = 1_000_000  # bytes of a card that are read
CARRIED = ("license", "license_name", "license_link", "language")  # fields of the model's own card


def write_card(folder: Path, source: Checkpoint, plan: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes the card of a compressed folder. plan : as JSON; facts : "kept", "bytes_kept" of the whole model."""
    base = base_model(plan, source.name)
    name = f"{base.rpartition('/')[2]}-karipap"  # not the folder's own: the same plan gives the same bytes anywhere
    kind = kind_of(source.config, True)
    lines = [two_lines(name, loader_of(source.config, kind))]
    if kind in PREDICTS:
        lines += [
            "# or, with the same import before it:",
            f'transformers.pipeline("text-generation", {name!r})("def main():")',
        ]
    serve = f"python -m karipap_core.using transformers.cli.transformers serve {name}"
    parts = [
        head(base, "transformers", ["karipap"], carried(source.home / CARD)),
        f"# {base}, compressed with Karipap",
        f"It keeps {facts['kept']:.1%} of the dense model's parameters and {facts['bytes_kept']:.1%} of its bytes. "
        "`config.json` holds the plan: what each weight became, and the fingerprint of the model that it was made of.",
        "## Load it\n\n`pip install karipap`; nothing in this folder is executed, so no `trust_remote_code`.\n\n"
        "```python\n" + "\n".join(lines) + "\n```",
        f"As a server with OpenAI's interface (`pip install transformers[serving]`):\n\n```sh\n{serve}\n```"
        if kind in PREDICTS
        else "",
        "For engines that do not know Karipap (vLLM, llama.cpp, ONNX Runtime): `karipap export`.",
        "Compressed with Karipap.",
    ]
    (folder / CARD).write_text("\n\n".join(part for part in parts if part) + "\n", "utf-8")


def head(base: str, library: str, tags: list[str], fields: dict[str, Any]) -> str:
    """The fields of a card as the hub reads them, between their two lines; `base` only where it is a hub id."""
    from huggingface_hub import ModelCardData

    on_hub = HUB_ID.fullmatch(base)
    data = ModelCardData(
        library_name=library,
        base_model=base if on_hub else None,
        base_model_relation="quantized" if on_hub else None,
        tags=tags,
        quantized_by="karipap",
        ignore_metadata_errors=True,
        **fields,
    )
    return f"---\n{data.to_yaml()}\n---"


def base_model(plan: dict[str, Any], otherwise: str) -> str:
    """What a plan calls the dense model: a hub id, or the last part of where it lay."""
    entry = plan.get("model")
    name = str((entry.get("name") if isinstance(entry, dict) else None) or otherwise)
    return name if HUB_ID.fullmatch(name) else Path(name).name


def carried(file: Path) -> dict[str, Any]:
    """The fields of `CARRIED` of a model card, those that it has; none of a card that cannot be read."""
    import yaml
    from huggingface_hub import ModelCard

    if not file.is_file() or file.stat().st_size > MOST:
        return {}
    try:
        found = ModelCard(file.read_text("utf-8", errors="replace"), ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return {}
    return {name: found[name] for name in CARRIED if found.get(name)}
