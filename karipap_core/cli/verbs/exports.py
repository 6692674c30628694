"""Compressed folders for other engines."""

import argparse
import sys
from pathlib import Path

from karipap_core.cli.options import COMPRESSED, positive, text_option
from karipap_core.cli.registry import option, verb
from karipap_core.cli.tables import table
from karipap_core.exports import TARGETS, TOKENS
from karipap_core.progress import Progress


@verb(
    "a compressed folder as what another engine loads without Karipap",
    "compressed/ --to transformers --out exported/",
    table("export"),
    COMPRESSED,
    option("--to", required=True, metavar="ENGINE", help=", ".join(TARGETS)),
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to write"),
    option("--one-rank", action="store_true", help="pad all low-rank corrections with zeros to the largest rank"),
    option("--plain", action="store_true", help="every weight dense, to compare with in the same engine"),
    option("--check", action="store_true", help="run the export in its engine, beside Karipap's own folder"),
    option(
        "--python", type=Path, metavar="FILE", help="of --check: the Python that has the engine (default: this one)"
    ),
    option(
        "--tokens",
        type=positive,
        default=TOKENS,
        metavar="N",
        help=f"of --check: tokens of the text (default: {TOKENS:,})",
    ),
    text_option("measure on with --check", "held-out modules"),
    option("--force", action="store_true", help="replace what --out holds"),
    option("--dry-run", action="store_true", help="say weight by weight what the export would change, and stop"),
)
def export(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.exports import export as exports
    from karipap_core.exports.exporter import Wanted
    from karipap_core.text import read_text, standard_library

    wanted = Wanted(args.one_rank)
    if args.dry_run:
        return exports.plan_of(args.folder, args.to, args.out, wanted, args.plain)
    text = None
    if args.check:
        text = standard_library("heldout") if args.text is None else read_text(args.text)
    return exports.export(
        args.folder,
        args.to,
        args.out,
        wanted,
        args.plain,
        args.force,
        text,
        args.python,
        args.tokens,
        progress,
        lambda line: print(line, file=sys.stderr),
    )
