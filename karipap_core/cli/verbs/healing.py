"""The short training of a compressed folder's cores."""

import argparse
from pathlib import Path

from karipap_core.cli.options import COMPRESSED, DEVICE, above_zero, positive, text_option
from karipap_core.cli.registry import option, typed, verb
from karipap_core.cli.tables import table
from karipap_core.cli.texts import dense_model, prepare
from karipap_core.errors import InputError
from karipap_core.healing.launch import launch_commands
from karipap_core.progress import Progress


@verb(
    "a short fine-tune of a compressed folder's cores; never hands back a worse model",
    "compressed/ --steps 200 --out healed/",
    table("heal"),
    COMPRESSED,
    text_option("learn from; an eighth of it is kept aside for validation", "train modules"),
    option("--steps", type=positive, metavar="N", help="steps of the optimizer (needed without --scales)"),
    option(
        "--scales",
        action="store_true",
        help="codes of numbers in few bits stay; their scales, and cores that are floats, learn block by block what "
        "the dense blocks put out; without --steps",
    ),
    option("--windows", type=positive, metavar="N", help="with --scales: windows of text to learn from (default: 64)"),
    option("--passes", type=positive, metavar="N", help="with --scales: times that a block sees them (default: 4)"),
    option("--out", type=Path, required=True, metavar="DIR", help="the folder to write"),
    option("--distill", metavar="MODEL", help="the dense model to learn from (default: the one of the folder's plan)"),
    option(
        "--objective",
        choices=("distill", "next-token"),
        default="distill",
        help="the dense model's probabilities, or the text's own tokens (default: distill)",
    ),
    option(
        "--rate", type=above_zero, metavar="R", help="largest step size (default: searched for; with --scales 0.003)"
    ),
    option("--tokens", type=positive, default=2048, metavar="N", help="tokens of one step (default: 2048)"),
    option("--window", type=positive, metavar="N", help="tokens that the model sees at once (default: its own window)"),
    option("--norms", action="store_true", help="let the norms learn too"),
    option(
        "--requantize",
        action="store_true",
        help="train cores that are stored in few bits as floats, and quantize them again at the end; without it their "
        "codes stay as they are, and of them only the scales are trained",
    ),
    option("--accumulate", type=positive, default=1, metavar="N", help="parts that a step is cut into (default: 1)"),
    option("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="of the passes (default: no)"),
    option("--gradient-checkpointing", action="store_true", help="less memory for a third more time"),
    option("--every", type=positive, metavar="K", help="steps between two validations, each with a checkpoint"),
    option(
        "--patience",
        type=positive,
        default=4,
        metavar="N",
        help="validations without gain before it stops (default: 4)",
    ),
    option("--seed", type=int, default=0, metavar="N", help="of the order of the text (default: 0)"),
    option("--compare-dense", action="store_true", help="also train the dense model in the same way, to compare with"),
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
def heal(args: argparse.Namespace, progress: Progress) -> dict:
    if args.show_launch and args.scales:
        raise InputError("Scales are healed in one process: leave --show-launch out.")
    if args.show_launch:
        argv = typed("heal", args, without=("show_launch", "mixed_precision", "measure"))
        precision = args.mixed_precision if args.mixed_precision != "no" else "bf16"
        return {"launch": launch_commands([*argv, "--mixed-precision", precision], args.show_launch, precision)}
    from karipap_core.healing.heal import first_process
    from karipap_core.healing.heal import heal as train
    from karipap_core.healing.points import heal_and_measure
    from karipap_core.healing.settings import NAMES, settings_of

    prepare(args, progress, "train", lambda: dense_model(args.folder, args.distill))
    settings = settings_of(args.scales, {name: getattr(args, name) for name in NAMES})
    dense = {"distill": args.distill, "compare_dense": args.compare_dense}
    more = dense | {"text": args.text, "device": args.device, "progress": progress}
    if args.measure is None:
        found = train(args.folder, args.out, settings, **more)
    else:
        found = heal_and_measure(args.folder, args.out, settings, args.measure or None, **more)
    if not first_process():
        raise SystemExit(0)  # of several processes one prints
    return found
