"""What the stages of a verb took, kept in the workspace, so that the next job of its kind knows what is to come."""

import argparse
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from karipap_core import schemas
from karipap_core.cli import registry
from karipap_core.errors import InputError, StorageError
from karipap_core.progress.meter import Expected, Meter
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json

PLACES = ("out", "folder", "plan", "against", "force")  # options that say where, or what else, and not how much
FORMAT, VERSION = "karipap-paces", 1


def meter_of(args: argparse.Namespace) -> Meter:
    """A meter that expects what the last job of this verb took: with these options, else on this model, else at all."""
    for number, file in enumerate(_files(args)):
        with suppress(InputError):
            stages = schemas.read(file, "paces")["stages"]
            return Meter([Expected(**stage) for stage in stages], sure=number < 2)
    return Meter()


def keep(args: argparse.Namespace, meter: Meter) -> None:
    """Keeps what the stages took. Stages that did not come this time stay as they were."""
    record = meter.record()
    if not record:
        return
    for file in _files(args):
        known: list[dict] = []
        with suppress(InputError):
            known = schemas.read(file, "paces")["stages"]
        stages = [asdict(stage) | {"shape": [*stage.shape]} for stage in record]
        mine = {stage["stage"] for stage in stages}
        stages = _in_order([stage for stage in known if stage["stage"] not in mine], stages, known)
        with suppress(InputError, StorageError, OSError):  # no job fails for want of it
            keep_json(file, {"format": FORMAT, "version": VERSION, "verb": args.verb, "stages": stages})


def _in_order(others: list[dict], mine: list[dict], known: list[dict]) -> list[dict]:
    """Stages that did not come this time, each before the one that followed it."""
    order = [stage["stage"] for stage in known]
    for other in others:
        later = order[order.index(other["stage"]) + 1 :]
        place = next((number for number, stage in enumerate(mine) if stage["stage"] in later), len(mine))
        mine.insert(place, other)
    return mine


def _files(args: argparse.Namespace) -> list[Path]:
    """Where paces of jobs like this one are kept, the likest first."""
    options = {option.name: getattr(args, option.name, None) for option in registry.VERBS[args.verb].options}
    model = options.get("model", options.get("folder"))
    how = {name: str(value) for name, value in options.items() if name not in PLACES and value is not None}
    keys: tuple[dict, ...] = ({"how": how}, {"model": str(model)}, {})
    return [Workspace().cache_file("paces", f"{args.verb}-{settings_key(key)}") for key in keys]
