"""A linear layer whose weight is a tensor network: a drop-in for `nn.Linear`, in this project or in anybody's code.

layer = TensorNetworkLinear.from_linear(linear, spec, metric)        # compress a trained layer
layer = TensorNetworkLinear.from_spec(spec, bias=True, seed=0)       # train a network-native one
print(layer.report())
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from karipap_core.errors import InputError
from karipap_core.layers.cores import Cores, CoresModule, Multiplied, as_stored
from karipap_core.networks import Metric, Spec
from karipap_core.networks.registry import network_named

FEW = 32  # vectors up to which a packed matrix is multiplied as it is stored (float32 on the CPU)


def effective_weight(linear: nn.Module) -> torch.Tensor:
    """W (out, in) of an `nn.Linear` or of GPT-2's `Conv1D`, which stores it transposed. Raises InputError otherwise."""
    if isinstance(linear, nn.Linear):
        return linear.weight
    if type(linear).__name__ == "Conv1D" and hasattr(linear, "nf"):
        return linear.get_parameter("weight").T
    raise InputError(f"A {type(linear).__name__} is not a linear layer: give an nn.Linear or a Conv1D.")


class TensorNetworkLinear(CoresModule):
    """y = Ŵ x + b for x (…, n_in), Ŵ held as the cores of `spec` (`cores.0`, `cores.1`, … as on disk; `bias`).

    A core is a parameter or, where `spec.formats` says so, integers in a few bits or fp8, which are dequantized to the
    dtype of x in every pass, a whole matrix of integers for a few vectors a part at a time; casting the layer leaves
    them as they are.

    runtime "auto" contracts x with the cores, or forms Ŵ for this one pass where the batch makes that the quicker way
    (`Spec.forms`). "cores" never forms Ŵ. "dense" forms it once and keeps it beside the cores: as fast as the dense
    layer, `n_out · n_in` numbers more memory (see `report`), rebuilt whenever a core has changed; while gradients are
    recorded for the cores it is formed anew in each pass, so that training is right. The cores are the state; a Ŵ is
    never saved.
    """

    def __init__(
        self,
        spec: Spec,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        runtime: str = "auto",
        borrowed: Mapping[int, Cores] | None = None,
    ) -> None:
        """Uninitialized cores (`from_linear`, `from_spec` or a state dict fill them).

        `borrowed` gives, by number, cores that another module holds (see `Cores`); without it a member of a group
        holds those that it shares itself.
        """
        super().__init__(spec, device, dtype, runtime, borrowed)
        self.in_features, self.out_features = spec.n_in, spec.n_out
        self.bias = nn.Parameter(torch.zeros(spec.n_out, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Module, spec: Spec, metric: Metric | None = None) -> "TensorNetworkLinear":
        """The layer `linear` with its weight decomposed in `metric` (default: weight); dtype, device and bias kept.

        Cores in a format are rounded to its nearest numbers.
        """
        weight, bias = effective_weight(linear), linear.bias
        layer = cls(spec, bias is not None, weight.device, weight.dtype)
        layer.set_cores(spec.decompose(weight.detach(), metric))
        if layer.bias is not None and isinstance(bias, torch.Tensor):
            layer.bias.data.copy_(bias.detach())
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._runtime == "dense":
            return nn.functional.linear(x, self._formed_weight(), self.bias)
        batch = x.shape[:-1].numel()
        recorded = torch.is_grad_enabled() and x.requires_grad
        few = batch <= FEW and x.dtype == torch.float32 and x.device.type == "cpu" and not recorded
        cores = self.cores(x.dtype, x.device, Multiplied if few else None)
        # Not while compiling: a graph serves many batches, which it would be made anew for.
        if self._runtime == "auto" and not torch.compiler.is_compiling() and self.spec.forms(batch):
            return nn.functional.linear(x, self.spec.dense(cores), self.bias)
        y = self.spec.apply(x, cores)
        return y if self.bias is None else y + self.bias

    def report(self, batch: int = 1) -> dict[str, Any]:
        """Numbers to judge the layer by, the bias left out on both sides.

        `parameters` of the cores and of the dense weight; `kept` = their quotient; `bytes` of the cores now as they
        would be saved (packed codes, scales and all; borrowed cores are their lender's) and of the dense weight in the
        layer's dtype; `memory_bytes` held between passes (cores, and Ŵ where the runtime keeps it); and the
        multiply-adds for `batch` input vectors: dense, and of the cores contracted, or of the Ŵ that is kept.
        """
        dense = self.spec.n_out * self.spec.n_in
        keeps = self._runtime == "dense"
        return self._sizes() | {
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
    kind = network_named(network)
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
        spec = kind.for_shape(*W.shape, chi, **options)
        stored = as_stored(spec, spec.decompose(W, measured_in))
        difference = W - spec.dense([core.double() if core.is_floating_point() else core for core in stored])
        rows.append(
            {
                "chi": chi,
                "parameters": spec.parameters,
                "weight_error": (difference.square().sum() / W.square().sum()).item(),
                "functional_error": ((x @ difference.T).square().sum() / outputs).item(),
            }
        )
    return rows
