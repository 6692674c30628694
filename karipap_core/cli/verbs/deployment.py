"""Serving a compressed model: whether it fits, how it differs from the dense one, whether it is ready."""

import argparse
from pathlib import Path

from karipap_core.cli.options import AGAINST, COMPRESSED, DEVICE, FORCE, above_zero, fraction, positive
from karipap_core.cli.registry import option, verb
from karipap_core.cli.tables import table
from karipap_core.progress import Progress


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
    option(
        "--sparse-attention", action="store_true", help="the model itself chooses which tokens to read in each step"
    ),
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
def deploy(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.deployment.decide import deploy as decide
    from karipap_core.deployment.request import Constraints, Load, Machine

    load = Load(args.tokens, args.batch, args.kv_dtype, args.kv_keep, args.sparse_attention)
    validated = {"fp8_benchmarked": args.fp8_benchmarked, "fp4_validated": args.fp4_validated}
    machine = Machine(args.gpu, args.price, args.throughput, args.host_memory, **validated)
    constraints = Constraints(args.fixed_checkpoint, args.smaller, args.tolerance)
    return decide(args.model, load, machine, args.plan, constraints, args.force, progress=progress)


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
def shadow(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.deployment.shadow import read_prompts
    from karipap_core.deployment.shadow import shadow as compare

    prompts = [*(read_prompts(args.prompts) if args.prompts else ()), *(args.prompt or ())]
    return compare(args.folder, prompts, args.against, args.tokens, args.device, progress)


@verb(
    "whether a compressed folder is fit to be served (exit status 1: no): items from files on disk, with what to run",
    "compressed/ --against assets/demo_model",
    table("checklist"),
    COMPRESSED,
    AGAINST,
    option("--test-fallback", action="store_true", help="first go through the switch to the dense model and back"),
    DEVICE,
)
def checklist(args: argparse.Namespace, progress: Progress) -> dict:
    from karipap_core.deployment.checklist import checklist as look

    if args.test_fallback:
        from karipap_core.deployment.fallback import rehearse

        rehearse(args.folder, args.against, args.device, progress)
    return look(args.folder, args.against, progress)
