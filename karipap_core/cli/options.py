"""What verbs share: the types of their arguments, options that several take, and what these options stand for."""

import argparse
from dataclasses import replace
from math import log1p
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.cli.registry import Option, option
from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.kind import PREFIXES, ROUNDINGS
from karipap_core.progress import Progress

if TYPE_CHECKING:  # imports torch, and `--help` has to be instant
    from karipap_core.evaluation.tasks.suite import Suite


def name(text: str) -> str:
    """A name for a plan or a run, as files may be called."""
    from karipap_core.workspace.names import clean

    try:
        return clean(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def fraction(text: str) -> float:
    """0.7 or 70%: above 0 and at most 1."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.7") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction: above 0 and at most 1, such as 0.7")
    return value


def names(text: str) -> list[str]:
    """a,b,c: at least one name."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("name at least one, with commas between")
    return found


def budgets(text: str) -> list[float] | str:
    """0.9,0.7,0.5 or auto."""
    return text if text == "auto" else [fraction(part) for part in names(text)]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def percent_of_perplexity(text: str) -> float:
    """3% or 0.03: the rise of the loss, in nats, that multiplies perplexity by 1.03."""
    return log1p(above_zero(text.removesuffix("%")) / (100 if text.endswith("%") else 1))


def blocks_at_ends(text: str) -> int | str:
    """auto, or a number of blocks, 0 among them."""
    return text if text == "auto" else int(text) if text == "0" else positive(text)


DRY_RUN = option(
    "--dry-run",
    action="store_true",
    help="say what it would take from nothing (time, memory, disk, reads), from the shapes alone, and stop",
)
MODEL = option("model", metavar="MODEL", help="a folder, a .safetensors or .gguf file, or a hub id")
# Of every verb that takes MODEL; they make one word of it (see `lora.open.joined`).
MERGE = option("--merge", action="store_true", help="MODEL is a LoRA's folder: take its base with the LoRA merged in")
BASE = option("--base", metavar="MODEL", help="that base (default: the one that the LoRA names); implies --merge")
COMPRESSED = option("folder", metavar="DIR", type=Path, help="a compressed folder")
AGAINST = option("--against", metavar="MODEL", help="the dense model (default: the one that the folder was made from)")
PLAN = option("--plan", type=Path, required=True, metavar="FILE", help="the plan, from `plan` or from the dashboard")
FORCE = option("--force", action="store_true", help="use the plan although it was made for another checkpoint")
NAME = option("--name", type=name, metavar="NAME", help="what to call it, such as smollm2-0.7-lowrank")
DEVICE = option("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
RAY = option(
    "--ray",
    metavar="ADDRESS",
    help="spread the work over a Ray cluster: host:port of its head, auto for the one that this machine belongs to, or "
    "local for workers on this machine",
)

NETWORK = option(
    "--network",
    default="lowrank",
    help="lowrank, mpo, tree, peps, disentangled, qlr; several joined by + (lowrank+qlr), or auto for all: each "
    "weight takes the one with the least predicted damage (default: lowrank)",
)
QUANTIZE = option(
    "--quantize",
    metavar="FORMAT",
    help="store the cores, and the weights without cores, in int8, int4, int3, int2 or fp8; auto: in whichever pays "
    "off for each (a quantized number counts as its bits / 16 in --budget)",
)
EMBEDDING = option(
    "--embedding",
    choices=("dense", "lowrank", "tt"),
    default="dense",
    help="what the tables of tokens may become; an output head that is tied to one uses its cores (default: dense)",
)
SCOPE = option(
    "--scope",
    default="model",
    help="what --budget is a fraction of: the whole model, the weights that can be compressed (blocks), or those of "
    "one tower of a model that has several, such as language or vision: all others stay dense (default: model)",
)
WHOLE_SCOPE = option(
    "--scope",
    choices=("model", "blocks"),
    default="model",
    help="what sizes are fractions of: the whole model, or the weights that can be compressed (default: model)",
)
STRUCTURE = option(
    "--structure",
    choices=("head", "rows", "columns"),
    help="around every network: an SVD of as many numbers as it has (head), or its rows or columns in an order that is "
    "searched for",
)


def text_option(use: str, default: str) -> Option:
    """`--text`: what the text is used for, and which modules of the standard library take its place where none is."""
    return option(
        "--text",
        type=Path,
        metavar="FILE",
        help=f"text to {use}: .txt, .raw, .json, .jsonl, each .gz too, or .parquet (FILE::FIELD: a field other than "
        "text); samples: what the model writes itself; hub:ID,CONFIG,SPLIT,FIELD: a data set of the hub; wikitext: "
        f"WikiText-2's test split (default: the standard library's {default})",
    )


CALIBRATION = text_option("calibrate on", "calibration modules")
HELD_OUT = text_option("measure on", "held-out modules")
IMAGES = option(
    "--images",
    type=Path,
    metavar="FOLDER",
    help="images (.png, .jpg, .webp, .bmp, .gif; captions in the .txt of the same name) that a model which sees takes "
    "besides, through its own processor (default: none)",
)
MEASURE = option(
    "--measure",
    choices=("gradients", "all"),
    default="gradients",
    help="what cutting a weight does, for rules that measure: estimated for all from gradients, and a handful measured "
    "to set the scale, or all measured by forward passes, hours where the other takes minutes (default: gradients)",
)
ROUNDING = option(
    "--rounding",
    choices=ROUNDINGS,
    default=ROUNDINGS[0],
    help="under the loss metric, errors of numbers in few bits are made good by the columns still to come and by the "
    "rows below, or by columns alone, as GPTQ does (default: two-sided)",
)
PREFIX = option(
    "--prefix",
    choices=PREFIXES,
    default=PREFIXES[0],
    help="fit each weight to what the dense model gives it, or (aligned) to what it is given behind the compressed "
    "weights before it, so that it makes good what these lose; compressing then runs the model block by block. auto: "
    "aligned where numbers are stored in less than 8 bits (default: auto)",
)
CALIBRATE = option(
    "--calibrate",
    type=Path,
    metavar="FILE",
    help="text to calibrate on (default: a quarter of --text, which is then not measured on; without --text the "
    "standard library's calibration modules)",
)
SCORING = (
    option("--max-tokens", type=positive, metavar="N", help="tokens to score at most"),
    option("--window", type=positive, metavar="N", help="tokens that the model sees at once (default: its own window)"),
    option("--stride", type=positive, metavar="N", help="tokens that are scored in each window (default: half of it)"),
)
CONVENTIONS = option(
    "--conventions",
    type=names,
    nargs="?",
    const=["non-overlapping", "sliding", "rolling"],
    default=[],
    metavar="A,B",
    help="also the perplexity of the whole text as papers and harnesses give it: non-overlapping (windows of 2048 "
    "tokens, the rows joined), sliding, rolling (lm-eval's wikitext); alone: all three",
)
TASKS = (
    option(
        "--tasks",
        type=names,
        metavar="A,B",
        help="also benchmark tasks, by lm-eval: its names (hellaswag, mmlu … with items from the hub), those of "
        "--task-dir, or python_continuation and python_closing, which need no network",
    ),
    option("--task-dir", type=Path, metavar="DIR", help="a folder of lm-eval's YAML with items in local files"),
    option("--limit", type=positive, metavar="N", help="items of each task, the first ones (default: all)"),
    option("--shots", type=natural, metavar="K", help="examples before each item (default: what the task says)"),
)


def scoring_of(args: argparse.Namespace, default: Scoring) -> Scoring:
    """The options of `SCORING` that were given, a verb's default for the others."""
    given = {name: value for name in default.to_json() if (value := getattr(args, name)) is not None}
    return replace(default, **given)


def suite_of(args: argparse.Namespace, progress: Progress) -> "Suite | None":
    """The benchmark tasks that were asked for, None where none were.

    Raises InputError for options about tasks without --tasks, and for a model that does not predict tokens.
    """
    if args.tasks is None:
        given = [name for name in ("task_dir", "limit", "shots") if getattr(args, name) is not None]
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} is about benchmark tasks: name them with --tasks.")
        return None
    from karipap_core.evaluation.tasks.suite import Suite, causal

    causal(getattr(args, "folder", None) or args.model)
    return Suite(args.tasks, args.task_dir, args.limit, args.shots, progress=progress)
