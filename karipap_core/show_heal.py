"""Healing for people: its result as a table, and the commands that start it on several GPUs. Imports no torch."""

import argparse
import shlex

from karipap_core.cli import VERBS


def table(document: dict) -> str:
    """What healing did, in lines; of `--show-launch` the commands."""
    if "launch" in document:
        return "\n".join(f"# {name}\n{command}" for name, command in document["launch"].items())
    before, after, dense = (document[key] for key in ("loss_before", "loss_after", "dense_loss"))
    back = ""
    if dense is not None and before > dense:
        back = f" ({(before - after) / (before - dense):.0%} of the rise in loss taken back)"
    lines = [f"loss before  {before:.4f}", f"loss after   {after:.4f}{back}"]
    if dense is not None:
        lines.append(f"dense loss   {dense:.4f}")
    if document["dense_trained"]:
        lines.append(f"dense loss   {document['dense_trained']['loss']:.4f} after the same training")
    lines += [
        f"{document['steps']} steps ({document['objective']}) in {document['seconds']:.0f} s, step size "
        f"{document['learning_rate']:g}; {document['trained']:,} numbers trained on {document['text']['name']}",
        f"losses on {document['validation']['name']}, {document['validation']['tokens']:,} tokens, nats a token",
    ]
    if document.get("verify"):
        red = [check["name"] for check in document["verify"]["checks"] if not check["ok"]]
        lines.append(f"verified, {'red: ' + ', '.join(red) if red else 'all green'}")
    for point in document.get("points", ()):
        lines.append(f"on {point['text']}: rise {point['rise']:+.4f}, {point['label']}")
    return "\n".join([*lines, *document["notes"], document["folder"]])


def launch_commands(argv: list[str], gpus: int = 2, precision: str = "bf16") -> dict[str, str]:
    """How the command `argv` (as `python -m karipap_core` takes it) is started on several GPUs of one machine.

    "multi_gpu": the whole model on each; "fsdp": its parameters spread over them (torch's FSDP 2), the dense model that
    it learns from still whole on each. Rows of text are dealt to the GPUs: a step is on as many tokens as on one.
    """
    command = ["accelerate", "launch", "--num_machines", "1", "--num_processes", str(gpus), "--dynamo_backend", "no"]
    command += ["--mixed_precision", precision]
    spread = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
    rest = ["-m", "karipap_core", *argv]
    return {"multi_gpu": shlex.join([*command, "--multi_gpu", *rest]), "fsdp": shlex.join([*command, *spread, *rest])}


def typed(verb: str, args: argparse.Namespace, without: tuple[str, ...] = ()) -> list[str]:
    """The command line of parsed arguments: the verb and every option of its own that is not at its default."""
    words = [verb]
    for option in VERBS[verb].options:
        name = option.settings.get("dest") or option.flags[0].lstrip("-").replace("-", "_")
        value = getattr(args, name)
        if name in without or value is None or value == option.settings.get("default", False):
            continue
        words += [] if option.flags[0][0] != "-" else [option.flags[0]]
        words += [] if value is True else [str(value)]
    return words
