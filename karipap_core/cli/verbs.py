"""The verbs of the command line. Each is one function that calls one function of the core, imported when it runs.

A new verb is one more function here: its JSON document is what `--json` prints and what a page reads.
"""

import argparse
from pathlib import Path

from karipap_core.cli.registry import option, typed, verb
from karipap_core.cli.tables import anything, table
from karipap_core.errors import InputError
from karipap_core.healing.launch import launch_commands


def fraction(text: str) -> float:
    """0.7 or 70%."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.7") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction: above 0 and at most 1, such as 0.7")
    return value


def names(text: str) -> list[str]:
    """a,b,c"""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("name at least one, with commas between")
    return found


def budgets(text: str) -> list[float] | str:
    """0.9,0.7,0.5 or auto"""
    return text if text == "auto" else [fraction(part) for part in names(text)]


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


MODEL = option("model", metavar="MODEL", help="a folder, a .safetensors file or a hub id")
PLAN = option("--plan", type=Path, required=True, metavar="FILE", help="the plan, from `plan` or from the dashboard")
FORCE = option("--force", action="store_true", help="use the plan although it was made for another checkpoint")
DEVICE = option("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
NETWORK = option(
    "--network",
    default="lowrank",
    help="lowrank, mpo, tree, peps, disentangled, qlr; several joined by + (lowrank+qlr), or auto for all: whichever "
    "pays for each weight (default: lowrank)",
)
QUANTIZE = option(
    "--quantize",
    metavar="FORMAT",
    help="store the cores, and weights that stay whole, in int8, int4, int3, int2 or fp8; auto: in what pays for each "
    "(a quantized number counts as its bits / 16 in --budget)",
)
EMBEDDING = option(
    "--embedding",
    choices=("dense", "lowrank", "tt"),
    default="dense",
    help="what the tables of tokens may become; a tied head contracts with the same cores (default: dense)",
)
SCOPE = option(
    "--scope",
    choices=("model", "blocks"),
    default="model",
    help="what --budget is a fraction of: the whole model, or the weights that can be compressed (default: model)",
)
STRUCTURE = option(
    "--structure",
    choices=("head", "rows", "columns"),
    help="around every network: an SVD of as many numbers (head), or its rows or columns in an order found for them",
)


def text_option(use: str, default: str):
    return option(
        "--text",
        type=Path,
        metavar="FILE",
        help=f"text to {use} (.txt, .raw, .json, .jsonl or .parquet; wikitext: WikiText-2's test split from the hub; "
        f"default: the standard library's {default})",
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


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


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
    option("--shots", type=whole, metavar="K", help="examples before each item (default: what the task says)"),
)


def _suite(args: argparse.Namespace, progress):
    """The benchmark tasks that were asked for, None where none were; the model to measure must predict tokens."""
    if args.tasks is None:
        given = [
            f"--{name.replace('_', '-')}" for name in ("task_dir", "limit", "shots") if getattr(args, name) is not None
        ]
        if given:
            raise InputError(f"{given[0]} is about benchmark tasks: name them with --tasks.")
        return None
    from karipap_core.evaluation.tasks.suite import Suite, causal

    causal(getattr(args, "folder", None) or args.model)
    return Suite(args.tasks, args.task_dir, args.limit, args.shots, progress=progress)


def _given(args: argparse.Namespace) -> dict:
    """The scoring options that were given; the core has its own defaults for the others."""
    values = {name: getattr(args, name) for name in ("max_tokens", "window", "stride")}
    return {name: value for name, value in values.items() if value is not None}


CALIBRATION = text_option("calibrate on", "calibration modules")
HELD_OUT = text_option("measure on", "held-out modules")
CALIBRATE = option(
    "--calibrate",
    type=Path,
    metavar="FILE",
    help="text to calibrate on (default: a quarter of --text, which is then not measured on; without --text the "
    "standard library's calibration modules)",
)


@verb(
    "entropy and spectrum of every weight",
    "assets/demo_model --metrics weight,loss --out profile/",
    table("profile"),
    MODEL,
    CALIBRATION,
    option(
        "--metrics",
        type=names,
        default=["weight", "functional", "loss"],
        metavar="A,B",
        help="weight (needs no text), functional, loss (default: all three)",
    ),
    option("--network", help="mpo, tree or peps: also the spectrum of every bond of that network"),
    DEVICE,
    option("--out", type=Path, metavar="DIR", help="keep a copy of the profile in this folder"),
)
def profile(args, progress) -> dict:
    from karipap_core import story as pipeline

    found = pipeline.profile(args.model, args.text, args.metrics, args.network, args.device, args.out, progress)
    return found.to_json()


@verb(
    "choose every bond dimension for a budget",
    "assets/demo_model --budget 0.7 --network mpo --out plan.json",
    table("plan"),
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
    QUANTIZE,
    EMBEDDING,
    STRUCTURE,
    CALIBRATION,
    DEVICE,
    option("--out", type=Path, metavar="FILE", help="write the plan to this file"),
)
def plan(args, progress) -> dict:
    from karipap_core import story as pipeline

    found = pipeline.make_plan(
        args.model,
        args.budget,
        args.budget_bytes,
        scope=args.scope,
        network=args.network,
        rule=args.rule,
        metric=args.metric,
        text=args.text,
        quantize=args.quantize,
        embedding=args.embedding,
        structure=args.structure,
        device=args.device,
        progress=progress,
    )
    if args.out:
        found.save(args.out)
    return found.to_json()


@verb(
    "write the compressed model as a Hugging Face folder",
    "assets/demo_model --plan plan.json --out compressed/",
    table("compressed"),
    MODEL,
    PLAN,
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to write"),
    FORCE,
    DEVICE,
)
def compress(args, progress) -> dict:
    from karipap_core import story as pipeline

    return pipeline.compress(args.model, args.plan, args.out, force=args.force, device=args.device, progress=progress)


@verb(
    "measure a model folder, beside the dense model it came from",
    "compressed/ --against assets/demo_model",
    table("evaluation"),
    option("folder", metavar="DIR", type=Path, help="a compressed folder (a dense one will do too)"),
    option("--against", metavar="MODEL", help="the dense model (default: the one that the folder was made from)"),
    HELD_OUT,
    *SCORING,
    CONVENTIONS,
    *TASKS,
    DEVICE,
)
def evaluate(args, progress) -> dict:
    from karipap_core.compressed.records import keep_evaluation
    from karipap_core.evaluation.folder import evaluate_folder
    from karipap_core.evaluation.tasks.suite import add_tasks
    from karipap_core.text import read_text

    suite = _suite(args, progress)
    found = evaluate_folder(
        args.folder,
        against=args.against,
        text=read_text(args.text) if args.text else None,
        device=args.device,
        progress=progress,
        conventions=args.conventions,
        **_given(args),
    )
    if suite is not None:
        found = add_tasks(found, suite, args.folder, args.device, progress)
    keep_evaluation(args.folder, found)
    return found


@verb(
    "compress and evaluate in one go: a point of the trade-off, kept in the workspace",
    "assets/demo_model --plan plan.json",
    table("run"),
    MODEL,
    PLAN,
    HELD_OUT,
    *SCORING,
    CONVENTIONS,
    *TASKS,
    option("--out", type=Path, metavar="DIR", help="the folder to write (default: in the workspace's runs)"),
    FORCE,
    DEVICE,
)
def run(args, progress) -> dict:
    from karipap_core.tradeoffs.run import run as measure

    return measure(
        args.model,
        args.plan,
        args.text,
        out=args.out,
        force=args.force,
        device=args.device,
        progress=progress,
        tasks=_suite(args, progress),
        conventions=args.conventions,
        **_given(args),
    )


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
    HELD_OUT,
    CALIBRATE,
    *SCORING,
    *TASKS,
    DEVICE,
    option("--out", type=Path, required=True, metavar="DIR", help="the folder for the runs"),
)
def sweep(args, progress) -> dict:
    from karipap_core.tradeoffs.sweep import sweep as measure

    return measure(
        args.model,
        networks=args.networks,
        budgets=args.budgets,
        rules=args.rules,
        out=args.out,
        text=args.text,
        calibration=args.calibrate,
        scope=args.scope,
        quantize=args.quantize,
        embedding=args.embedding,
        structure=args.structure,
        device=args.device,
        progress=progress,
        tasks=_suite(args, progress),
        **_given(args),
    )


@verb(
    "an ordinary dense folder from a compressed one, for engines that know nothing of Karipap",
    "compressed/ --out dense/",
    table("compressed", "densified"),
    option("folder", metavar="DIR", type=Path, help="a compressed folder"),
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to write"),
)
def densify(args, progress) -> dict:
    from karipap_core.compressed.densify import densify as write

    note = "An ordinary dense folder gives back quality but not memory: it is as large, and needs as much memory and "
    note += "time, as the original. What stays small is the compressed folder."
    return write(args.folder, args.out, progress=progress) | {"note": note}


@verb(
    "the 2-D Ising model by tensor renormalization, beside Onsager's exact answer: a check of the engine",
    "--method hotrg --temperature 2.269 --chi 16",
    table("ising"),
    option("--method", default="trg", help="trg or hotrg (default: trg)"),
    option("--temperature", type=float, metavar="T", help="in units of J/k_B (default: the critical one, 2.2692)"),
    option("--chi", type=positive, default=16, metavar="N", help="largest bond dimension (default: 16)"),
    DEVICE,
)
def ising(args, progress) -> dict:
    from karipap_core.studies.ising import CRITICAL, solve

    temperature = CRITICAL if args.temperature is None else args.temperature
    return solve(temperature, args.chi, args.method, device=args.device, progress=progress)


@verb(
    "a profile, plan, run or compressed folder as a table",
    "plan.json",
    anything,
    option("path", metavar="PROFILE|PLAN|RUN", type=Path, help="a profile's folder, a plan, a run.json, a sweep …"),
)
def show(args, progress) -> dict:
    from karipap_core.workspace.documents import find

    return find(args.path)


@verb(
    "what papers claim beside what this model shows: the nearest honest experiment to each claim",
    "assets/demo_model --claim whitening",
    table("claims"),
    MODEL,
    option("--claim", metavar="NAME", help="the claim to check (default: list them)"),
    text_option("calibrate and measure on", "calibration modules"),
    DEVICE,
)
def claims(args, progress) -> dict:
    from karipap_core.studies.claims.check import check, listing

    return check(args.model, args.claim, args.text, args.device, progress) if args.claim else listing()


def above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


@verb(
    "whether a model fits a GPU with its KV cache, and which of four ways to serve it is right",
    "config.json --tokens 8192 --batch 4 --gpu A100 --kv-dtype fp8",
    table("deploy"),
    option("model", metavar="MODEL|config.json", help="a model, or its config.json alone"),
    option("--plan", type=Path, metavar="FILE", help="a plan: its bytes are counted, and it is the full pipeline"),
    option("--tokens", type=positive, required=True, metavar="N", help="tokens of each sequence"),
    option("--batch", type=positive, required=True, metavar="B", help="sequences served at once"),
    option("--gpu", default="auto", metavar="NAME", help="such as A100, L40S, H100 (default: this machine's)"),
    option("--kv-dtype", choices=("fp16", "fp8", "int8", "int4"), default="fp16", help="of the cache (default: fp16)"),
    option("--kv-keep", type=fraction, default=1.0, metavar="KEPT", help="fraction of the tokens that stay cached"),
    option("--sparse-attention", action="store_true", help="something says which tokens matter in each step"),
    option("--price", type=above_zero, metavar="$", help="of the GPU for an hour"),
    option("--throughput", type=above_zero, metavar="T", help="tokens a second, measured: $ a million tokens follow"),
    option(
        "--fixed-checkpoint",
        action=argparse.BooleanOptionalAction,
        help="licence, data residency, a fine-tune with no smaller twin, or hardware on site allow no other model",
    ),
    option("--fp8-benchmarked", action="store_true", help="fp8 was benchmarked on this Ada card"),
    option("--fp4-validated", action="store_true", help="fp4 was validated on this model"),
    option("--host-memory", type=above_zero, metavar="GB", help="memory of the host for a cache that does not fit"),
    option("--smaller", metavar="MODEL|config.json", help="the smaller dense model to compare with"),
    option("--tolerance", type=fraction, default=0.05, metavar="E", help="functional error that is small (0.05)"),
    FORCE,
)
def deploy(args, progress) -> dict:
    from karipap_core.deployment.decide import deploy as decide

    wanted = ("plan", "tokens", "batch", "gpu", "kv_dtype", "kv_keep", "sparse_attention", "price", "throughput")
    wanted += ("fp8_benchmarked", "fp4_validated", "host_memory", "smaller", "tolerance", "force")
    values = {name: getattr(args, name) for name in wanted}
    return decide(args.model, fixed=args.fixed_checkpoint, progress=progress, **values)


COMPRESSED = option("folder", metavar="DIR", type=Path, help="a compressed folder")
AGAINST = option("--against", metavar="MODEL", help="the dense model (default: the one that the folder was made from)")


@verb(
    "whether a compressed folder is what its plan says and loads as that (exit status 1: no), and ten lines to load it",
    "compressed/ --against assets/demo_model",
    table("verify"),
    COMPRESSED,
    AGAINST,
    DEVICE,
)
def verify(args, progress) -> dict:
    from karipap_core.compressed.verify import verify as check
    from karipap_core.spectra.spectrum import pick_device

    return check(args.folder, args.against, device=pick_device(args.device), progress=progress)


@verb(
    "a short fine-tune of a compressed folder's cores; never hands back a worse model",
    "compressed/ --steps 200 --out healed/",
    table("heal"),
    option("folder", metavar="DIR", type=Path, help="a compressed folder"),
    text_option("learn from; an eighth of it is kept aside for validation", "train modules"),
    option("--steps", type=positive, required=True, metavar="N", help="steps of the optimizer"),
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to write"),
    option("--distill", metavar="MODEL", help="the dense model to learn from (default: the one of the folder's plan)"),
    option(
        "--objective",
        choices=("distill", "next-token"),
        default="distill",
        help="the dense model's probabilities, or the text's own tokens (default: distill)",
    ),
    option("--rate", type=above_zero, metavar="R", help="largest step size (default: searched for, 3e-5 to 1e-3)"),
    option("--tokens", type=positive, default=2048, metavar="N", help="tokens of one step (default: 2048)"),
    option("--window", type=positive, metavar="N", help="tokens that the model sees at once (default: its own window)"),
    option("--norms", action="store_true", help="let the norms learn too"),
    option(
        "--requantize",
        action="store_true",
        help="open cores in few bits, let them learn as floats, and quantize them again at the end; without it they "
        "stay as they are and only float cores learn",
    ),
    option("--accumulate", type=positive, default=1, metavar="N", help="parts that a step is cut into (default: 1)"),
    option("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="of the passes (default: no)"),
    option("--gradient-checkpointing", action="store_true", help="less memory for a third more time"),
    option("--every", type=positive, metavar="K", help="steps between two looks, each with a checkpoint"),
    option("--patience", type=positive, default=4, metavar="N", help="looks without gain before it stops (default: 4)"),
    option("--seed", type=int, default=0, metavar="N", help="of the order of the text (default: 0)"),
    option("--compare-dense", action="store_true", help="give the dense model the same training, beside"),
    option(
        "--measure",
        nargs="?",
        const="",
        metavar="FILE",
        help="measure before and after as points of the trade-off (default text: the standard library's held-out "
        "modules)",
    ),
    option(
        "--show-launch",
        nargs="?",
        const=2,
        type=positive,
        metavar="GPUS",
        help="print the commands that start this on several GPUs, and do nothing",
    ),
    DEVICE,
)
def heal(args, progress) -> dict:
    if args.show_launch:
        argv = typed("heal", args, without=("show_launch", "mixed_precision", "measure"))
        precision = args.mixed_precision if args.mixed_precision != "no" else "bf16"
        return {"launch": launch_commands([*argv, "--mixed-precision", precision], args.show_launch, precision)}
    from karipap_core.healing.heal import first_process
    from karipap_core.healing.heal import heal as train
    from karipap_core.healing.points import heal_and_measure

    names = ("text", "distill", "objective", "rate", "tokens", "window", "norms", "requantize", "accumulate", "seed")
    names += ("mixed_precision", "gradient_checkpointing", "every", "patience", "compare_dense", "device")
    values = {name: getattr(args, name) for name in names} | {"progress": progress}
    if args.measure is None:
        found = train(args.folder, args.out, args.steps, **values)
    else:
        found = heal_and_measure(args.folder, args.out, args.steps, measured_on=args.measure or None, **values)
    if not first_process():
        raise SystemExit(0)  # of several processes one prints
    return found


@verb(
    "prompts through the dense and the compressed model side by side: texts, KL, where they first differ",
    "compressed/ --against assets/demo_model --prompts prompts.txt",
    table("shadow"),
    COMPRESSED,
    AGAINST,
    option("--prompts", type=Path, metavar="FILE", help="one prompt a line, or a JSON list of strings"),
    option("--prompt", action="append", metavar="TEXT", help="a prompt typed here; may be given again"),
    option("--tokens", type=positive, default=64, metavar="N", help="tokens to write after each prompt (default: 64)"),
    DEVICE,
)
def shadow(args, progress) -> dict:
    from karipap_core.deployment.shadow import read_prompts
    from karipap_core.deployment.shadow import shadow as compare

    prompts = [*(read_prompts(args.prompts) if args.prompts else ()), *(args.prompt or ())]
    return compare(args.folder, prompts, args.against, args.tokens, args.device, progress)


@verb(
    "whether a compressed folder is fit to be served (exit status 1: no): each item from evidence, with what to run",
    "compressed/ --against assets/demo_model",
    table("checklist"),
    COMPRESSED,
    AGAINST,
    option("--test-fallback", action="store_true", help="first go through the switch to the dense model and back"),
    DEVICE,
)
def checklist(args, progress) -> dict:
    from karipap_core.deployment.checklist import checklist as look

    if args.test_fallback:
        from karipap_core.deployment.fallback import rehearse

        rehearse(args.folder, args.against, args.device, progress)
    return look(args.folder, args.against, progress)


@verb(
    "two plans, runs, compressed folders or models side by side: weights, figures with intervals, prompts",
    "one.json two.json",
    table("compare"),
    option("a", metavar="A", help="a plan, run.json, compressed folder or model, or the name of one in the workspace"),
    option("b", metavar="B", help="what to compare it with"),
)
def compare(args, progress) -> dict:
    from karipap_core.tradeoffs.compare import compare as side_by_side

    return side_by_side(args.a, args.b)


@verb(
    "a report to send: measured runs as one HTML file that needs no network, with CSV, JSON and plans beside it",
    "sweep/ --out report.html",
    table("report"),
    option("runs", metavar="RUN", nargs="+", help="run.json files, folders of runs, sweeps, or names of runs"),
    option("--out", type=Path, default=Path("report.html"), metavar="FILE", help="the file (default: report.html)"),
)
def report(args, progress) -> dict:
    from karipap_core.reports.report import report as write

    return write(args.runs, args.out, progress)


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
    HELD_OUT,
    CALIBRATE,
    *SCORING,
    DEVICE,
    option("--out", type=Path, metavar="FILE", help="also write the result to this file"),
)
def sensitivity(args, progress) -> dict:
    from karipap_core.studies.sensitivity.measure import sensitivity as measure
    from karipap_core.workspace.files import write_json

    names = ("network", "kept", "chi", "metric", "by", "quantize", "text", "device")
    values = {name: getattr(args, name) for name in names} | _given(args)
    found = measure(args.model, calibration=args.calibrate, progress=progress, **values)
    if args.out:
        write_json(args.out, found)
    return found


def percent_of_perplexity(text: str) -> float:
    """3% or 0.03: the rise in nats that multiplies perplexity by 1.03."""
    from math import log1p

    return log1p(above_zero(text.removesuffix("%")) / (100 if text.endswith("%") else 1))


def ends(text: str) -> int | str:
    """auto, or a number of blocks, 0 among them"""
    return text if text == "auto" else int(text) if text == "0" else positive(text)


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
    SCOPE,
    QUANTIZE,
    EMBEDDING,
    option(
        "--keep-ends",
        type=ends,
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
    option("--out", type=Path, metavar="DIR", help="the folder for points, plan and log (default: in the workspace)"),
)
def autopilot(args, progress) -> dict:
    from karipap_core.errors import InputError
    from karipap_core.tradeoffs.autopilot.search import autopilot as find

    if args.max_rise is not None and args.max_perplexity is not None:
        raise InputError("--max-rise and --max-perplexity are one line in two units: give one of them.")
    return find(
        args.model,
        max_rise=args.max_rise if args.max_rise is not None else args.max_perplexity,
        budget=args.budget_bytes,
        networks=args.networks,
        out=args.out,
        text=args.text,
        calibration=args.calibrate,
        quantize=args.quantize,
        embedding=args.embedding,
        scope=args.scope,
        keep_ends=args.keep_ends,
        max_evaluations=args.max_evaluations,
        device=args.device,
        progress=progress,
        **_given(args),
    )
