"""Stacked experts of a live mixture-of-experts model as one linear map each, so that every weight is a module.

transformers keeps a layer's experts as parameters of shape (experts, out, in) and multiplies them in one call. To
watch, replace or compress one expert's weight, its layer is unstacked: the same numbers, in the same memory, as
`nn.Linear`s that are run one after the other.
"""

from typing import Protocol

import torch
from torch import nn

STACKS = ("gate_up_proj", "up_proj", "down_proj")


class Shell(Protocol):
    """What transformers' module of a layer's experts says of itself."""

    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool

    def act_fn(self, x: torch.Tensor) -> torch.Tensor: ...

    def _apply_gate(self, x: torch.Tensor) -> torch.Tensor: ...


class UnstackedExperts(nn.Module):
    """The experts of one layer, one linear map for each of their matrices.

    y_t = Σ_e p_te · down_e(act(gate_up_e(x_t))) over the experts e that the router gave token t, as in
    `transformers.integrations.moe`. A stacked parameter "gate_up_proj" becomes, for every expert e, either the
    modules `e.<part>` for its `parts` (rows of the stack, top to bottom) or, without parts, the module
    `gate_up_proj.e`: the names on disk. Weights are views of the stack.
    """

    shell: Shell
    post_expert_norm: nn.Module  # where the model has one

    def __init__(self, stacked: nn.Module, parts: dict[str, list[str]]):
        super().__init__()
        self.paths: dict[str, list[list[str]]] = {}  # stack → expert → modules whose outputs stand side by side
        for stack in [name for name in STACKS if hasattr(stacked, name)]:
            weights = getattr(stacked, stack).data
            weights = weights.transpose(1, 2) if stacked.is_transposed else weights
            names = parts.get(stack)
            self.paths[stack] = []
            for expert, weight in enumerate(weights):
                paths = [f"{expert}.{part}" for part in names] if names else [f"{stack}.{expert}"]
                for path, piece in zip(paths, weight.chunk(len(paths)), strict=True):
                    self._place(path, linear_of(piece))
                self.paths[stack].append(paths)
            delattr(stacked, stack)
        for name, bias in list(stacked.named_parameters(recurse=False)):
            delattr(stacked, name)
            self.register_parameter(name, bias)
        for name, child in stacked.named_children():
            self.add_module(name, child)
        # What is left of the original knows the model's own gating; it holds no weight, so it is no child.
        object.__setattr__(self, "shell", stacked)

    def _place(self, path: str, module: nn.Module) -> None:
        group, name = path.split(".")
        if group not in self._modules:
            self.add_module(group, nn.Module())
        self.get_submodule(group).add_module(name, module)

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor):
        """hidden_states (tokens, hidden), top_k_index and top_k_weights (tokens, k) → (tokens, hidden)."""
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            tokens, rank = torch.where(top_k_index == expert)
            output = self._expert(expert, hidden_states[tokens]) * top_k_weights[tokens, rank, None]
            result.index_add_(0, tokens, output.to(result.dtype))
        return result

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        if self.shell.has_gate:
            x = self.shell._apply_gate(self._linear("gate_up_proj", expert, x))
        else:
            x = self.shell.act_fn(self._linear("up_proj", expert, x))
        x = self._linear("down_proj", expert, x)
        return self.post_expert_norm(x) if self.shell.has_post_expert_norm else x

    def _linear(self, stack: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        outputs = [self.get_submodule(path)(x) for path in self.paths[stack][expert]]
        y = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        return y + getattr(self, f"{stack}_bias")[expert] if self.shell.has_bias else y


def linear_of(weight: torch.Tensor) -> nn.Linear:
    """An `nn.Linear` without bias around an existing matrix (out, in), not copied."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return linear


def stacked_experts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that hold stacked experts, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if hasattr(module, "is_transposed") and getattr(getattr(module, "down_proj", None), "ndim", 0) == 3
    }


def unstack(model: nn.Module, parts: dict[str, dict[str, list[str]]]) -> None:
    """Unstacks every layer of experts in place; `parts`[path of the layer's experts] as in `UnstackedExperts`."""
    for path, module in stacked_experts(model).items():
        model.set_submodule(path, UnstackedExperts(module, parts.get(path, {})))
