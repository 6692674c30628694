"""A linear layer whose weight is a tensor network: a drop-in for `nn.Linear`, in this project or in anybody's code.

layer = TensorNetworkLinear.from_linear(linear, spec, metric)        # compress a trained layer
layer = TensorNetworkLinear.from_spec(spec, bias=True, seed=0)       # train a network-native one
print(layer.report())
"""

from typing import Any

import torch
from torch import nn

from karipap_core.errors import InputError
from karipap_core.networks import NETWORKS, Metric, Spec

RUNTIMES = ("cores", "dense")


def effective_weight(linear: nn.Module) -> torch.Tensor:
    """W (out, in) of an `nn.Linear` or of GPT-2's `Conv1D`, which stores it transposed. Raises InputError otherwise."""
    if isinstance(linear, nn.Linear):
        return linear.weight
    if type(linear).__name__ == "Conv1D" and hasattr(linear, "nf"):
        return linear.weight.T
    raise InputError(f"A {type(linear).__name__} is not a linear layer: give an nn.Linear or a Conv1D.")


class TensorNetworkLinear(nn.Module):
    """y = Ŵ x + b for x (…, n_in), Ŵ held as the cores of `spec` (parameters `cores.0`, `cores.1`, …; `bias`).

    runtime "cores" contracts x with the cores and never forms Ŵ. runtime "dense" forms Ŵ once and keeps it beside the
    cores: as fast as the dense layer, `n_out · n_in` numbers more memory (see `report`), rebuilt whenever a core has
    changed; while gradients are recorded for the cores it is formed anew in each pass, so that training is right.
    The cores are the state; the kept Ŵ is never saved.
    """

    def __init__(
        self,
        spec: Spec,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        runtime: str = "cores",
    ) -> None:
        """Uninitialized cores (`from_linear`, `from_spec` or a state dict fill them)."""
        super().__init__()
        self.spec = spec
        self.in_features, self.out_features = spec.n_in, spec.n_out
        make = {"device": device, "dtype": dtype}
        self.cores = nn.ParameterList(nn.Parameter(torch.empty(shape, **make)) for shape in spec.core_shapes)
        self.bias = nn.Parameter(torch.zeros(spec.n_out, **make)) if bias else None
        self.register_buffer("formed", None, persistent=False)
        self._formed_from: tuple = ()
        self.runtime = runtime

    @property
    def runtime(self) -> str:
        return self._runtime

    @runtime.setter
    def runtime(self, value: str) -> None:
        if value not in RUNTIMES:
            raise InputError(f"Runtime {value!r} is not one of {', '.join(RUNTIMES)}.")
        self._runtime = value
        self.formed = None

    @classmethod
    def from_linear(cls, linear: nn.Module, spec: Spec, metric: Metric | None = None) -> "TensorNetworkLinear":
        """The layer `linear` with its weight decomposed in `metric` (default: weight); dtype, device and bias kept."""
        weight = effective_weight(linear)
        layer = cls(spec, linear.bias is not None, weight.device, weight.dtype)
        layer.set_cores(spec.decompose(weight.detach(), metric))
        if linear.bias is not None:
            layer.bias.data.copy_(linear.bias.detach())
        return layer

    @classmethod
    def from_spec(
        cls,
        spec: Spec,
        bias: bool = False,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "TensorNetworkLinear":
        """A random layer to train: unit variance in, unit variance out (before the bias, which is zero)."""
        layer = cls(spec, bias, device, dtype)
        layer.set_cores(spec.random_cores(seed))
        return layer

    @torch.no_grad()
    def set_cores(self, cores: list[torch.Tensor]) -> None:
        """Copies new values into the cores, in their dtype and on their device."""
        for core, values in zip(self.cores, cores, strict=True):
            core.copy_(values)

    @property
    def weight(self) -> torch.Tensor:
        """Ŵ (out, in), formed anew from the cores."""
        return self.spec.dense(list(self.cores))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._runtime == "cores":
            y = self.spec.apply(x, list(self.cores))
            return y if self.bias is None else y + self.bias
        return nn.functional.linear(x, self._formed_weight(), self.bias)

    @torch.compiler.disable  # which core has changed is no matter for a graph
    def _formed_weight(self) -> torch.Tensor:
        if torch.is_grad_enabled() and any(core.requires_grad for core in self.cores):
            return self.weight
        # A core may be written to (optimizer, load_state_dict) or replaced by another tensor (from_pretrained).
        made_from = tuple((id(core), core._version) for core in self.cores)
        if self.formed is None or self._formed_from != made_from:
            self.formed, self._formed_from = self.weight.detach(), made_from
        return self.formed

    def report(self, batch: int = 1) -> dict[str, Any]:
        """Numbers to judge the layer by, the bias left out on both sides.

        `parameters` and `bytes` of the cores now and of the dense weight in the same dtype, `kept` = their quotient,
        `memory_bytes` held while running (cores, and Ŵ where the runtime keeps it), and the multiply-adds for
        `batch` input vectors: of the runtime chosen, and dense.
        """
        cores = list(self.cores)
        dense = self.spec.n_out * self.spec.n_in
        stored = sum(core.numel() * core.element_size() for core in cores)
        dense_bytes = dense * cores[0].element_size()
        keeps = self._runtime == "dense"
        return {
            "spec": self.spec.describe(),
            "runtime": self._runtime,
            "parameters": self.spec.parameters,
            "dense_parameters": dense,
            "kept": self.spec.parameters / dense,
            "bytes": stored,
            "dense_bytes": dense_bytes,
            "memory_bytes": stored + dense_bytes * keeps,
            "multiply_adds": dense * batch if keeps else self.spec.multiply_adds(batch),
            "dense_multiply_adds": dense * batch,
        }

    def extra_repr(self) -> str:
        return f"{self.spec.describe()}, bias={self.bias is not None}, runtime={self._runtime}"


@torch.no_grad()
def check_layer(
    linear: nn.Module, x: torch.Tensor, chis: list[int], network: str = "lowrank", metric: str = "functional", **options
) -> list[dict[str, Any]]:
    """What each χ would do to one layer on real activations x (…, n_in): one call before deciding anything.

    Decomposes in `metric` ("functional": C = xᵀx / n of these activations, or "weight") and measures, for each χ,
    `weight_error` ‖W − Ŵ‖² / ‖W‖² and `functional_error` ‖(W − Ŵ) x‖² / ‖W x‖², the latter on x itself, undamped.
    `options` go to the network's `for_shape` (`sites`, `out`, `in_` of an mpo). Raises InputError for an unknown
    network or metric, or activations of another width.
    """
    if network not in NETWORKS:
        raise InputError(f"Network {network!r} is not one of {', '.join(NETWORKS)}.")
    if metric not in ("weight", "functional"):
        raise InputError(f"Metric {metric!r} is not one of weight, functional: activations alone give no more.")
    W = effective_weight(linear).detach().double()
    if x.shape[-1] != W.shape[1]:
        raise InputError(f"Activations have width {x.shape[-1]}, the layer takes {W.shape[1]}.")
    x = x.detach().reshape(-1, W.shape[1]).double()
    measured_in = Metric("weight") if metric == "weight" else Metric("functional", C=x.T @ x / len(x))
    outputs = (x @ W.T).square().sum()
    rows = []
    for chi in chis:
        spec = NETWORKS[network].for_shape(*W.shape, chi, **options)
        difference = W - spec.dense([core.double() for core in spec.decompose(W, measured_in)])
        rows.append(
            {
                "chi": chi,
                "parameters": spec.parameters,
                "weight_error": (difference.square().sum() / W.square().sum()).item(),
                "functional_error": ((x @ difference.T).square().sum() / outputs).item(),
            }
        )
    return rows
