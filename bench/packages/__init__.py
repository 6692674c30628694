"""The packages that people would otherwise use, each with a file here that has it quantize a model.

This runs in their environment (requirements-peers.txt), where Karipap is not: nothing here imports it. `bench/peers.py`
asks and measures. A file has

    DISTRIBUTION   what the package is called in the registry
    SETTINGS       the settings that are measured: dictionaries with "method", "bits", "group" and what else it takes
    MORE           (where it has any) settings that show what the parts of its method do, measured with --all
    quantize       (Asked, setting) → Rows: for each weight what the package reads back from what it stores, and the
                   bytes of that; notes of what a user ought to know

and imports the package inside `quantize` alone, so that the settings can be listed where it is not installed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGES = {
    "llm-compressor": "llm_compressor",
    "GPTQModel": "gptq_model",
    "auto-round": "autoround",
    "HQQ": "half_quadratic",
    "torchao": "torch_ao",
    "optimum-quanto": "quanto",
}


def package(name: str) -> ModuleType:
    return import_module(f"bench.packages.{PACKAGES[name]}")


class Row(NamedTuple):
    """One weight: Ŵ (out, in); `bytes` with codes at their number of bits; `stored_bytes` as the package keeps it;
    `parameters` where there are others than those of Ŵ (a low-rank correction)."""

    name: str
    matrix: "torch.Tensor"
    bytes: int
    stored_bytes: int
    parameters: int | None = None


@dataclass
class Rows:
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, matrix: "torch.Tensor", bits: int, codes: int, others: int, **more: int) -> None:
        """codes: bytes that the package stores the codes of this weight in; others: those of scales, zero points …"""
        at_width = math.ceil(bits * matrix.numel() / 8)
        plain = matrix.detach().float().cpu().contiguous()
        self.rows.append(Row(name, plain, at_width + others, codes + others, **more))


@dataclass(frozen=True)
class Asked:
    """folder: a dense Hugging Face model. windows: (count, window) ids to calibrate on. weights: path of a module in
    the model → the name of its weight in the checkpoint."""

    folder: str
    windows: "torch.Tensor"
    weights: dict[str, str]

    def model(self) -> "nn.Module":
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto").eval()

    def linears(self, model: "nn.Module") -> "Iterator[tuple[str, nn.Linear]]":
        """(name, a linear layer of its own with that weight, turned as (out, in)) of each weight that the model has."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        modules = dict(model.named_modules())
        for path, name in self.weights.items():
            module = modules.get(path)
            if isinstance(module, nn.Linear | Conv1D):
                weight = module.weight.detach()
                weight = weight.T.contiguous() if isinstance(module, Conv1D) else weight
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
                linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
                yield name, linear


def size(tensor: "torch.Tensor") -> int:
    return tensor.numel() * tensor.element_size()
