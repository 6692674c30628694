"""What the sums of kept files cost: seconds a GB to write tensors with their sum, to open them again, and to find out
that a finished folder is as it was written. Of the processor's time: the disk, and who else uses it, does not count."""

import hashlib
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.records import tensor_sums
from karipap_core.workspace.kept import keep_tensors, kept_tensors

MEGABYTES = 512


def seconds(work) -> float:
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1024 / MEGABYTES


def main() -> None:
    tensors = {f"{number}.weight": torch.zeros(MEGABYTES // 8, 1 << 18) for number in range(8)}
    with tempfile.TemporaryDirectory() as folder:
        plain, kept = Path(folder) / "plain.safetensors", Path(folder) / "kept.safetensors"
        rows = {
            "SHA-256 alone": seconds(lambda: [hashlib.sha256(memoryview(t.numpy())) for t in tensors.values()]),
            "written without a sum": seconds(lambda: save_file(tensors, plain)),
            "written with its sum": seconds(lambda: keep_tensors(kept, tensors)),
            "read without a sum": seconds(lambda: load_file(plain)),
            "read, its sum checked": seconds(lambda: kept_tensors(kept)),
            "a finished folder's tensors summed": seconds(lambda: tensor_sums(open_checkpoint(plain))),
        }
    for what, each in rows.items():
        print(f"{what:36}{each:6.2f} s a GB")


if __name__ == "__main__":
    main()
