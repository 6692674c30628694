"""Models of the Hugging Face hub."""

import argparse

from karipap_core.cli.registry import option, verb
from karipap_core.cli.tables import table
from karipap_core.progress import Progress


@verb(
    "a model of the Hugging Face hub into its cache on this machine, to be opened by its id from then on",
    "HuggingFaceTB/SmolLM2-135M",
    table("fetch"),
    option(
        "hub_id", metavar="OWNER/NAME", help="the model's id on the hub; only safetensors, JSON and tokenizer files"
    ),
)
def fetch(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.checkpoint import hub
    from karipap_core.errors import InputError

    if not hub.HUB_ID.fullmatch(args.hub_id):
        raise InputError(f"{args.hub_id} is no hub id: it looks like owner/name.")
    folder = hub.fetch(args.hub_id, progress)
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        "model": args.hub_id,
        "folder": str(folder),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
    }
