"""The texts that a verb was given: `--text samples` and `--text hub:…` become files, and where the model was not
trained for such text a warning comes before the work."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.progress import Progress
from karipap_core.terminal import value
from karipap_core.text import Text, read_text, standard_library

Find = Callable[[], str | Path]


def prepare(
    args: argparse.Namespace,
    progress: Progress,
    side: str,
    model: Find | None = None,
    name: str = "text",
) -> None:
    """Puts the file of `--text` (or of the option `name`) in its place, and warns on stderr where it does not suit.

    side : one of `suits.SIDES`: what the text is for. model : gives the dense model (default: the argument MODEL).
    With `--progress off`, which asks for silence, nothing is looked at. What is wrong with model or text is left to the
    verb to say.
    """
    from karipap_core.evaluation.suits import SAMPLES, text_of

    spec = getattr(args, name)
    find = model or (lambda: args.model)
    if spec is not None and (str(spec).startswith("hub:") or str(spec).partition(":")[0] == SAMPLES):
        text = text_of(spec, find(), side, args.device, progress=progress)
        setattr(args, name, Path(text.path or spec))
    if args.progress == "off":
        return
    try:
        said = _looked_at(args, progress, side, find(), spec)
    except InputError:
        return
    if said:
        warn(args, progress, said)


def _looked_at(
    args: argparse.Namespace, progress: Progress, side: str, model: str | Path, spec: Path | None
) -> str | None:
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.evaluation.suits import known, suits, text_of
    from karipap_core.evaluation.wrong_text import unsuited

    checkpoint = open_checkpoint(model)
    if not checkpoint.predicts:
        return None
    text = text_of(spec, checkpoint, side, args.device, progress=progress)
    found = suits(checkpoint, text, spec, side, True, args.device, progress=progress)
    return unsuited(found, known(checkpoint))


def given(args: argparse.Namespace, side: str) -> Path | Text | None:
    """What `--text` names, with the images of `--images` where there are any: then the standard library's modules of
    that side take the place of no text. Raises InputError for what cannot be read."""
    if args.images is None:
        return args.text
    text = standard_library(side) if args.text is None else read_text(args.text)
    return text.with_images(args.images)


def prepare_both(args: argparse.Namespace, progress: Progress) -> None:
    """`prepare` for verbs that measure on --text and calibrate on --calibrate. The model's own samples are drawn anew
    for each of the two."""
    if args.calibrate is None and args.text is not None and str(args.text) == "samples":
        args.calibrate = Path("samples")
    prepare(args, progress, "heldout")
    if args.calibrate is not None or args.text is None:
        prepare(args, progress, "calibration", name="calibrate")


def dense_model(folder: Path, against: str | Path | None) -> str | Path:
    """The dense model that a folder was made from; the folder itself where that is one."""
    from karipap_core.evaluation.folder import dense_model_of

    return dense_model_of(folder, against, []) or folder


def warn_of_overlap(args: argparse.Namespace, progress: Progress, calibration: dict | None) -> None:
    """Warns where what is measured on is what a plan was calibrated on (its field `calibration`)."""
    from karipap_core.evaluation.suits import text_of
    from karipap_core.evaluation.wrong_text import same_text

    if args.progress == "off" or not calibration or args.text is None:
        return
    try:
        text = text_of(args.text, "", "heldout")
    except InputError:
        return
    measured = {"name": text.name, "sha256": text.sha256, "path": text.path}
    if said := same_text(measured, calibration):
        warn(args, progress, said)


def warn(args: argparse.Namespace, progress: Progress, said: str) -> None:
    """One line on stderr that stays; in a job's log a line of progress, whose form others read."""
    if args.progress == "json":
        progress("text", 1, 1, "", said)
        return
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}warning: {value(said)}", file=sys.stderr, flush=True)
