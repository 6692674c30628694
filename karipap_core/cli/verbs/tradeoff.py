"""Points of the trade-off between size and quality: one plan measured, many plans, or a search among them."""

import argparse
from pathlib import Path

from karipap_core.cli.options import (
    CALIBRATE,
    CONVENTIONS,
    DEVICE,
    EMBEDDING,
    FORCE,
    HELD_OUT,
    IMAGES,
    MEASURE,
    MODEL,
    NAME,
    PLAN,
    PREFIX,
    QUANTIZE,
    RAY,
    ROUNDING,
    SCOPE,
    SCORING,
    STRUCTURE,
    TASKS,
    WHOLE_SCOPE,
    above_zero,
    blocks_at_ends,
    budgets,
    fraction,
    names,
    percent_of_perplexity,
    positive,
    scoring_of,
    suite_of,
)
from karipap_core.cli.registry import option, verb
from karipap_core.cli.tables import table
from karipap_core.cli.texts import given, prepare, prepare_both, warn_of_overlap
from karipap_core.errors import InputError
from karipap_core.progress import Progress


@verb(
    "compress and evaluate in one go: a point of the trade-off, kept in the workspace",
    "assets/demo_model --plan plan.json",
    table("run"),
    MODEL,
    PLAN,
    HELD_OUT,
    IMAGES,
    *SCORING,
    CONVENTIONS,
    *TASKS,
    NAME,
    option("--out", type=Path, metavar="DIR", help="the folder to write (default: in the workspace's runs)"),
    FORCE,
    DEVICE,
    RAY,
)
def run(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.plan.document import Plan
    from karipap_core.tradeoffs.point import called
    from karipap_core.tradeoffs.run import Extras
    from karipap_core.tradeoffs.run import run as measure
    from karipap_core.tradeoffs.sweep import DEFAULT_SCORING
    from karipap_core.workspace.names import Names

    prepare(args, progress, "heldout")
    chosen = Plan.load(args.plan)
    warn_of_overlap(args, progress, chosen.calibration)
    extras, scoring = Extras(suite_of(args, progress), args.conventions), scoring_of(args, DEFAULT_SCORING)
    found = measure(
        args.model, chosen, given(args, "heldout"), scoring, extras, args.out, args.force, args.device, progress
    )
    if name := args.name or chosen.name:
        Names().give(found["id"], name)
    return called([found])[0]


@verb(
    "many plans, compressed and measured beside the baselines: the trade-off and its Pareto front",
    "assets/demo_model --networks lowrank,mpo --budgets 0.9,0.7,0.5 --out sweep/",
    table("run", "sweep"),
    MODEL,
    option(
        "--networks",
        type=names,
        default=["lowrank"],
        metavar="A,B",
        help="as --network of `plan`, or all (default: lowrank)",
    ),
    option(
        "--budgets",
        type=budgets,
        default="auto",
        metavar="A,B|auto",
        help="fractions of the parameters to keep, or auto: around where this model's curve bends (default: auto)",
    ),
    option("--rules", type=names, default=["best"], metavar="A,B", help="as --rule of `plan` (default: best)"),
    SCOPE,
    QUANTIZE,
    EMBEDDING,
    STRUCTURE,
    MEASURE,
    ROUNDING,
    PREFIX,
    HELD_OUT,
    CALIBRATE,
    *SCORING,
    *TASKS,
    DEVICE,
    RAY,
    option("--out", type=Path, required=True, metavar="DIR", help="the folder for the runs"),
)
def sweep(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.plan.choice import Choice
    from karipap_core.tradeoffs.sweep import DEFAULT_SCORING, Grid, study_and_text
    from karipap_core.tradeoffs.sweep import sweep as measure

    suite = suite_of(args, progress)
    prepare_both(args, progress)
    study, text = study_and_text(
        args.model, args.text, args.calibrate, args.device, progress, args.measure, args.rounding
    )
    choices = [Choice(network, args.quantize, args.embedding, args.structure) for network in args.networks]
    grid = Grid(args.budgets, args.rules, scope=args.scope, prefix=args.prefix)
    return measure(study, text, choices, grid, scoring_of(args, DEFAULT_SCORING), suite, args.out, progress=progress)


@verb(
    "the plan for a quality line or a size, found step by step with every plan measured",
    "assets/demo_model --max-rise 0.03 --networks lowrank --out pilot/",
    table("autopilot"),
    MODEL,
    option(
        "--max-rise",
        type=above_zero,
        metavar="NATS",
        help="the line: the loss may rise by this much, in nats a token (encoders: relative squared error of the "
        "outputs); the upper end of the 95 %% interval has to be under it",
    ),
    option(
        "--max-perplexity",
        type=percent_of_perplexity,
        metavar="PERCENT",
        help="the same line as a rise of perplexity, such as 3%%: a rise of ln 1.03 = 0.0296 nats",
    ),
    option(
        "--budget-bytes",
        type=fraction,
        metavar="KEPT",
        help="instead of a line: the best plan at this fraction of the bytes, 16 bits for every number that is not "
        "quantized",
    ),
    option("--networks", type=names, default=["lowrank"], metavar="A,B", help="as for `sweep` (default: lowrank)"),
    WHOLE_SCOPE,
    QUANTIZE,
    EMBEDDING,
    option(
        "--keep-ends",
        type=blocks_at_ends,
        default="auto",
        metavar="N|auto",
        help="blocks at each end that stay dense (default: auto, 0 or 1 by measurement)",
    ),
    option(
        "--max-evaluations",
        type=positive,
        default=12,
        metavar="N",
        help="plans that the search may measure; the verdict measures its plan and the rivals besides (default: 12)",
    ),
    MEASURE,
    ROUNDING,
    option(
        "--text",
        type=Path,
        metavar="FILE",
        help="held-out text, half of its documents to search on and half for the verdict (default: the standard "
        "library's held-out modules)",
    ),
    CALIBRATE,
    *SCORING,
    DEVICE,
    RAY,
    option("--out", type=Path, metavar="DIR", help="the folder for points, plan and log (default: in the workspace)"),
)
def autopilot(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.plan.choice import Choice
    from karipap_core.tradeoffs.autopilot import autopilot as find
    from karipap_core.tradeoffs.autopilot.aim import Aim
    from karipap_core.tradeoffs.autopilot.search import Limits
    from karipap_core.tradeoffs.sweep import DEFAULT_SCORING, study_and_text

    if args.max_rise is not None and args.max_perplexity is not None:
        raise InputError("--max-rise and --max-perplexity are one line in two units: give one of them.")
    max_rise = args.max_rise if args.max_rise is not None else args.max_perplexity
    aim, limits = Aim(max_rise, args.budget_bytes, args.scope), Limits(args.keep_ends, args.max_evaluations)
    prepare_both(args, progress)
    study, text = study_and_text(
        args.model, args.text, args.calibrate, args.device, progress, args.measure, args.rounding
    )
    choices = [Choice(network, args.quantize, args.embedding) for network in args.networks]
    return find(study, text, aim, choices, limits, scoring_of(args, DEFAULT_SCORING), args.out, progress)
