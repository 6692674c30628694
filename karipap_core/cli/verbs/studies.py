"""Theory and claims put to the test: tensor renormalization, what papers claim, each weight compressed alone."""

import argparse
from pathlib import Path

from karipap_core.cli.options import (
    CALIBRATE,
    DEVICE,
    HELD_OUT,
    MEASURE,
    MODEL,
    RAY,
    ROUNDING,
    SCORING,
    fraction,
    positive,
    scoring_of,
    text_option,
)
from karipap_core.cli.registry import option, verb
from karipap_core.cli.tables import table
from karipap_core.cli.texts import prepare, prepare_both
from karipap_core.progress import Progress


@verb(
    "the 2-D Ising model by tensor renormalization, beside Onsager's exact answer: a check of the engine",
    "--method hotrg --temperature 2.269 --chi 16",
    table("ising"),
    option("--method", default="trg", help="trg or hotrg (default: trg)"),
    option("--temperature", type=float, metavar="T", help="in units of J/k_B (default: the critical one, 2.2692)"),
    option("--chi", type=positive, default=16, metavar="N", help="largest bond dimension (default: 16)"),
    DEVICE,
)
def ising(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.studies.ising import CRITICAL, solve

    temperature = CRITICAL if args.temperature is None else args.temperature
    return solve(temperature, args.chi, args.method, device=args.device, progress=progress)


@verb(
    "what papers claim beside what this model shows: the nearest honest experiment to each claim",
    "assets/demo_model --claim whitening",
    table("claims"),
    MODEL,
    option("--claim", metavar="NAME", help="the claim to check (default: list them)"),
    text_option("calibrate and measure on", "calibration modules"),
    option(
        "--beside",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="other models, for a claim about several (density): folders, files or hub ids",
    ),
    DEVICE,
)
def claims(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.studies.claims.check import check, listing

    if args.claim:
        prepare(args, progress, "calibration")
    if not args.claim:
        return listing()
    return check(args.model, args.claim, args.text, args.device, progress, args.beside)


@verb(
    "each weight or layer compressed alone: what it loses, and whether entropy foretells it here",
    "assets/demo_model --network lowrank --kept 0.5",
    table("sensitivity"),
    MODEL,
    option("--network", default="lowrank", help="as of `plan`, but not auto (default: lowrank)"),
    option("--kept", type=fraction, metavar="KEPT", help="fraction of each weight's numbers to keep (default: 0.5)"),
    option("--chi", type=positive, metavar="N", help="every bond at this χ instead"),
    option("--metric", default="loss", help="weight, functional or loss: what the cores are fitted to (default: loss)"),
    option(
        "--by",
        choices=("weight", "layer"),
        default="weight",
        help="one weight at a time, or all of a layer at once (default: weight)",
    ),
    option("--quantize", metavar="FORMAT", help="store the cores in int8, int4, int3, int2 or fp8"),
    MEASURE,
    ROUNDING,
    HELD_OUT,
    CALIBRATE,
    *SCORING,
    DEVICE,
    RAY,
    option("--out", type=Path, metavar="FILE", help="also write the result to this file"),
)
def sensitivity(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.plan.choice import Choice
    from karipap_core.studies.sensitivity.measure import DEFAULT_SCORING
    from karipap_core.studies.sensitivity.measure import sensitivity as measure
    from karipap_core.tradeoffs.sweep import study_and_text
    from karipap_core.workspace.files import write_json

    prepare_both(args, progress)
    study, text = study_and_text(
        args.model, args.text, args.calibrate, args.device, progress, args.measure, args.rounding
    )
    choice, scoring = Choice(args.network, args.quantize), scoring_of(args, DEFAULT_SCORING)
    found = measure(study, text, choice, args.kept, args.chi, args.metric, args.by, scoring, progress)
    if args.out:
        write_json(args.out, found)
    return found
