"""GPUs and memory pools as their makers state them (hardware.json, a source for each), and the GPU of this machine."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from karipap_core.errors import InputError

GENERATIONS = ("Ampere", "Ada", "Hopper", "Blackwell")
RESERVE = 0.1  # of a GPU's memory that is left to the runtime: vLLM's gpu_memory_utilization is 0.9 by default


@dataclass(frozen=True)
class Gpu:
    """memory in bytes; bandwidth (own memory) and pcie (one direction) in bytes a second, peak; `source` in words."""

    name: str
    generation: str
    memory: int
    bandwidth: float | None
    pcie: float | None
    fp8: bool
    fp4: bool
    source: str
    url: str | None = None

    @property
    def usable(self) -> int:
        """Bytes that weights, KV cache and activations together may fill: all but the RESERVE."""
        return int(self.memory * (1 - RESERVE))


@lru_cache(maxsize=1)
def document() -> dict:
    """hardware.json."""
    return json.loads(Path(__file__).with_name("hardware.json").read_text("utf-8"))


@lru_cache(maxsize=1)
def gpus() -> dict[str, Gpu]:
    """Name → GPU, in the order of the generations."""
    found = {}
    for row in document()["gpus"]:
        found[row["name"]] = Gpu(
            row["name"],
            row["generation"],
            round(row["memory_gb"] * 1e9),
            row["bandwidth_gb_s"] * 1e9,
            row["pcie_gb_s"] * 1e9,
            row["fp8"],
            row["fp4"],
            row["source"]["name"],
            row["source"]["url"],
        )
    return found


def said_of(entry: dict) -> str:
    """Where a published figure is from, and what is to be said of it. entry: of the document's "published"."""
    address = f" ({entry['source']['url']})" if entry["source"]["url"] else ""
    return f"Source: {entry['source']['name']}{address}. {entry['note']}"


def find(name: str) -> Gpu:
    """The GPU of a name: case, blanks and "NVIDIA" do not matter, and a part of a name will do where one GPU has it.

    Raises InputError that lists the names where none or several have it.
    """
    wanted = _plain(name)
    also = {row["name"]: [row["name"], *row.get("also", ())] for row in document()["gpus"]}
    exact = [gpu for gpu in gpus().values() if wanted in map(_plain, also[gpu.name])]
    partly = [gpu for gpu in gpus().values() if wanted and wanted in _plain(gpu.name)]
    found = exact or partly
    if len(found) == 1:
        return found[0]
    which = found or gpus().values()
    problem = "could be several" if found else "is not in hardware.json"
    raise InputError(f"GPU {name!r} {problem}: choose one of {', '.join(gpu.name for gpu in which)}.")


def detect() -> Gpu | None:
    """This machine's first CUDA device, None where there is none. Memory is what CUDA reports; bandwidths are those of
    hardware.json where the device's name is known there, else None."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    known = _of_device(properties.name, properties.total_memory)
    generation = known.generation if known else generation_of(properties.major, properties.minor)
    return Gpu(
        properties.name,
        generation,
        properties.total_memory,
        known.bandwidth if known else None,
        known.pcie if known else None,
        properties.major * 10 + properties.minor >= 89,
        properties.major >= 10,
        f"detected (compute capability {capability})" + (f"; bandwidths of {known.name}" if known else ""),
    )


def generation_of(major: int, minor: int) -> str:
    """The generation of a CUDA compute capability: 8.0 to 8.7 Ampere, 8.9 Ada, 9 Hopper, 10 and above Blackwell."""
    if major >= 10:
        return "Blackwell"
    if major == 9:
        return "Hopper"
    if major == 8:
        return "Ada" if minor >= 9 else "Ampere"
    return "older than Ampere"


def _of_device(name: str, memory: int) -> Gpu | None:
    """The known GPU that CUDA calls `name` (such as "NVIDIA A100-SXM4-80GB" or "NVIDIA H100 PCIe"), of that memory."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    on_card = any(word in ("pcie", "nvl") for word in words)
    near = []
    for gpu in gpus().values():
        mine = [word for word in re.findall(r"[a-z0-9]+", gpu.name.lower()) if word not in ("sxm", "pcie")]
        mine = [word for word in mine if not word.endswith("gb")]
        if all(word in words or f"{word}g" in words for word in mine) and abs(memory / gpu.memory - 1) < 0.2:
            near.append((len(mine), ("PCIe" in gpu.name) == on_card, gpu))
    return max(near, key=lambda entry: entry[:2])[2] if near else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("nvidia", "").replace("geforce", ""))
