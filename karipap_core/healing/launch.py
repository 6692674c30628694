"""The commands that start healing on several GPUs."""

import shlex


def launch_commands(argv: list[str], gpus: int = 2, precision: str = "bf16") -> dict[str, str]:
    """How the command `argv` (as `karipap` takes it) is started on several GPUs of one machine.

    "multi_gpu": the whole model on each; "fsdp": its parameters spread over them (torch's FSDP 2), the dense model that
    it learns from still whole on each. Rows of text are dealt to the GPUs: a step is on as many tokens as on one.
    """
    command = ["accelerate", "launch", "--num_machines", "1", "--num_processes", str(gpus), "--dynamo_backend", "no"]
    command += ["--mixed_precision", precision]
    spread = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
    rest = ["-m", "karipap_core", *argv]
    return {"multi_gpu": shlex.join([*command, "--multi_gpu", *rest]), "fsdp": shlex.join([*command, *spread, *rest])}
