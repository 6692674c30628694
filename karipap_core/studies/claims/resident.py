"""What a model's folder takes in memory while it runs, measured in a process of its own.

    python -m karipap_core.studies.claims.resident FOLDER DTYPE DEVICE

Prints {"resident_bytes", "weights_bytes", "peak_bytes"}. The model is loaded and run twice in one process, and
`resident_bytes` is what resident memory (on CUDA: memory allocated) grows by with the second copy: what the first one
brought along, libraries and kernels and buffers, is there already. The others are `measure_memory`'s.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

from karipap_core.errors import InputError

# glibc then gives every larger block back when it is freed, so that the second copy fills no holes of the first.
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(folder: Path, dtype: str, device: str) -> dict[str, int]:
    """The figures of a folder, from a new process. dtype : a name of torch's ("bfloat16"), which it is loaded in.

    Raises InputError where the process fails, with its last line.
    """
    home = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder), dtype, device],
        env=os.environ | GIVING_BACK | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise InputError(f"{folder.name} could not be loaded and run in a process of its own: {said}")
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def measured(folder: str, dtype: str, device: str) -> dict[str, int]:
    """The same in this process, which should be a fresh one."""
    import psutil
    import torch

    from karipap_core.evaluation.speed import measure_memory
    from karipap_core.models.load import load_model

    def taken() -> int:
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated()
        return psutil.Process().memory_info().rss

    first, _ = load_model(folder, getattr(torch, dtype), device)
    measure_memory(first)
    before = taken()
    second, _ = load_model(folder, getattr(torch, dtype), device)
    found = measure_memory(second)
    grown = max(0, taken() - before)
    return {"resident_bytes": grown} | {key: found[key] for key in ("weights_bytes", "peak_bytes")}


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:4])))
