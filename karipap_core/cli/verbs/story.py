"""The story step by step (profile, plan, compress, evaluate), and what can be done with a compressed folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.cli.options import (
    AGAINST,
    CALIBRATION,
    COMPRESSED,
    CONVENTIONS,
    DEVICE,
    DRY_RUN,
    EMBEDDING,
    FORCE,
    HELD_OUT,
    IMAGES,
    MEASURE,
    MODEL,
    NAME,
    NETWORK,
    PLAN,
    PREFIX,
    QUANTIZE,
    RAY,
    ROUNDING,
    SCOPE,
    SCORING,
    STRUCTURE,
    TASKS,
    fraction,
    names,
    suite_of,
    text_option,
)
from karipap_core.cli.registry import option, verb
from karipap_core.cli.tables import or_estimate, table
from karipap_core.cli.texts import dense_model, given, prepare
from karipap_core.progress import Progress
from karipap_core.text import SPLITS

if TYPE_CHECKING:
    from karipap_core.checkpoint.model import Checkpoint


def _shapes(args: argparse.Namespace) -> "tuple[Checkpoint, str]":
    """What an estimate goes by: the shapes of a model, and the device."""
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.spectra.spectrum import pick_device

    return open_checkpoint(args.model), pick_device(args.device)


@verb(
    "entropy and spectrum of every weight",
    "assets/demo_model --metrics weight,loss --out profile/",
    or_estimate(table("profile")),
    MODEL,
    CALIBRATION,
    IMAGES,
    option(
        "--metrics",
        type=names,
        default=["weight", "functional", "loss"],
        metavar="A,B",
        help="weight (needs no text), functional, loss (default: all three)",
    ),
    option("--network", help="mpo, tree or peps: also the spectrum of every bond of that network"),
    DEVICE,
    RAY,
    option("--out", type=Path, metavar="DIR", help="keep a copy of the profile in this folder"),
    DRY_RUN,
)
def profile(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core import story

    if args.dry_run:
        from karipap_core.plan.estimate import of_profile

        return of_profile(*_shapes(args), args.metrics, args.network)
    if set(args.metrics) & {"functional", "loss"}:
        prepare(args, progress, "calibration")
    text = given(args, "calibration")
    found = story.profile(args.model, text, args.metrics, args.network, args.device, args.out, progress)
    return found.to_json()


@verb(
    "whether a text suits a model: bits per byte on a few windows, beside a compressor's",
    "assets/demo_model --text notes.txt",
    table("text"),
    MODEL,
    text_option("look at", "held-out modules"),
    option(
        "--side", choices=SPLITS, default="heldout", help="what for: which of the library's sides (default: heldout)"
    ),
    DEVICE,
)
def text(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.evaluation.suits import known, suits, text_of
    from karipap_core.evaluation.wrong_text import unsuited

    checkpoint = open_checkpoint(args.model)
    found = text_of(args.text, checkpoint, args.side, args.device, progress=progress)
    looked = suits(checkpoint, found, args.text, args.side, device=args.device, progress=progress)
    return looked | {"warning": unsuited(looked, known(checkpoint))}


@verb(
    "choose every bond dimension for a budget",
    "assets/demo_model --budget 0.7 --network mpo --out plan.json",
    or_estimate(table("plan")),
    MODEL,
    option("--budget", type=fraction, metavar="KEPT", help="fraction of the parameters to keep, such as 0.7"),
    option("--budget-bytes", type=fraction, metavar="KEPT", help="fraction of the whole model's bytes to keep instead"),
    SCOPE,
    NETWORK,
    option(
        "--rule",
        default="best",
        help="uniform, entropy, functional, loss, calibrated, refined, or best of them (default: best)",
    ),
    option("--metric", default="loss", help="weight, functional or loss (default: loss)"),
    MEASURE,
    ROUNDING,
    PREFIX,
    QUANTIZE,
    EMBEDDING,
    STRUCTURE,
    CALIBRATION,
    IMAGES,
    DEVICE,
    RAY,
    NAME,
    option("--out", type=Path, metavar="FILE", help="write the plan to this file"),
    DRY_RUN,
)
def plan(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core import story
    from karipap_core.plan.budget import Budget

    if args.dry_run:
        from karipap_core.plan.estimate import of_plan

        return of_plan(*_shapes(args), args.rule, args.metric, args.network, args.measure, args.quantize)
    prepare(args, progress, "calibration")
    found = story.make_plan(
        args.model,
        Budget(args.budget, args.budget_bytes, args.scope),
        network=args.network,
        rule=args.rule,
        metric=args.metric,
        text=given(args, "calibration"),
        quantize=args.quantize,
        embedding=args.embedding,
        structure=args.structure,
        device=args.device,
        progress=progress,
        measure=args.measure,
        rounding=args.rounding,
        prefix=args.prefix,
    )
    found.name = args.name
    if args.out:
        found.save(args.out)
    return found.named()


@verb(
    "write the compressed model as a Hugging Face folder",
    "assets/demo_model --plan plan.json --out compressed/",
    or_estimate(table("compressed")),
    MODEL,
    PLAN,
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to write"),
    FORCE,
    DEVICE,
    RAY,
    DRY_RUN,
)
def compress(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core import story

    if args.dry_run:
        from karipap_core.plan.document import Plan
        from karipap_core.plan.estimate import of_compress

        return of_compress(*_shapes(args), Plan.load(args.plan))
    return story.compress(args.model, args.plan, args.out, args.force, args.device, progress).to_json()


@verb(
    "measure a model folder, beside the dense model it came from",
    "compressed/ --against assets/demo_model",
    table("evaluation"),
    option("folder", metavar="DIR", type=Path, help="a compressed folder (a dense one will do too)"),
    option("--against", metavar="MODEL", help="the dense model (default: the one that the folder was made from)"),
    HELD_OUT,
    IMAGES,
    *SCORING,
    CONVENTIONS,
    *TASKS,
    DEVICE,
    RAY,
)
def evaluate(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core import story

    prepare(args, progress, "heldout", lambda: dense_model(args.folder, args.against))
    found = story.evaluate(
        args.folder,
        against=args.against,
        text=given(args, "heldout"),
        conventions=args.conventions,
        tasks=suite_of(args, progress),
        device=args.device,
        progress=progress,
        max_tokens=args.max_tokens,
        window=args.window,
        stride=args.stride,
    )
    return found.to_json()


@verb(
    "an ordinary dense folder from a compressed one, for engines that know nothing of Karipap",
    "compressed/ --out dense/",
    table("compressed", "densified"),
    COMPRESSED,
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to write"),
)
def densify(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core import story

    note = (
        "An ordinary dense folder gives back quality but not memory: it is as large, and needs as much memory and "
        "time, as the original. What stays small is the compressed folder."
    )
    return story.densify(args.folder, args.out, progress).to_json() | {"note": note}


@verb(
    "whether a compressed folder is what its plan says and loads as that (exit status 1: no), and ten lines to load it",
    "compressed/ --against assets/demo_model",
    table("verify"),
    COMPRESSED,
    AGAINST,
    DEVICE,
)
def verify(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core import story

    return story.verify(args.folder, args.against, args.device, progress).to_json()
