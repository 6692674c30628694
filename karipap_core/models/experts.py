"""Stacked experts of a live mixture-of-experts model as one linear map each, so that every weight is a module.

transformers keeps a layer's experts as parameters of shape (experts, out, in) and multiplies them in one call. To
watch, replace or compress one expert's weight, its stack is split: the same numbers, in the same memory where they are
stored in the order that they act in, as `nn.Linear`s that are run one after the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class SplitStacks(nn.Module):
    """A module of transformers that holds stacks, some of them split into a linear map for each expert.

    A stack `s` that was split becomes, for every expert e, the module `s.e`, or, where the model's files store experts
    one by one, the modules `e.<part>` for its parts (rows of the stack, top to bottom). Any other stays the parameter
    that it was. A kind of module is a subclass that says how the parts are put together.
    """

    transposed = False  # whether stacks hold (in, out) slices
    group: type[nn.Module] = nn.Module  # of the modules of one stack
    shell: Any

    def __init__(self, stacked: nn.Module):
        super().__init__()
        self.paths: dict[str, list[list[str]]] = {}  # stack → expert → modules whose outputs stand side by side
        self.rows: dict[str, torch.Tensor] = {}  # stack → where each output stands among those as stored
        for name, parameter in list(stacked.named_parameters(recurse=False)):
            delattr(stacked, name)
            self.register_parameter(name, parameter)
        for name, child in stacked.named_children():
            self.add_module(name, child)
        # What is left of the original knows the model's own gating; it holds no weight, so it is no child.
        object.__setattr__(self, "shell", stacked)

    def holds(self, stack: str) -> bool:
        """Whether a stack of that name is here, split or not."""
        return stack in self.paths or getattr(getattr(self, stack, None), "ndim", 0) == 3

    def split(self, stack: str, parts: Sequence[str] = (), rows: torch.Tensor | None = None) -> None:
        """Splits a stack, once. rows: for each row of a matrix the number of the one that the files store it as."""
        if stack in self.paths:
            return
        weights = getattr(self, stack).data
        weights = weights.transpose(1, 2) if self.transposed else weights
        delattr(self, stack)
        self.paths[stack] = []
        if rows is not None:
            self.rows[stack] = rows
            weights = weights[:, rows.argsort()]  # a copy in the order of the files
        for expert, weight in enumerate(weights):
            paths = [f"{expert}.{part}" for part in parts] if parts else [f"{stack}.{expert}"]
            for path, piece in zip(paths, weight.chunk(len(paths)), strict=True):
                self._place(path, linear_of(piece))
            self.paths[stack].append(paths)

    def _place(self, path: str, module: nn.Module) -> None:
        group, name = path.split(".")
        if group not in self._modules:
            self.add_module(group, self.group())
        self.get_submodule(group).add_module(name, module)

    def linear(self, stack: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        """x (tokens, in) → (tokens, out) by one expert's matrix, without bias."""
        if stack not in self.paths:
            weight = getattr(self, stack)[expert]
            return x @ (weight if self.transposed else weight.T)
        outputs = [self.get_submodule(path)(x) for path in self.paths[stack][expert]]
        y = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        return y[..., self.rows[stack].to(y.device)] if stack in self.rows else y


class UnstackedExperts(SplitStacks):
    """y_t = Σ_e p_te · down_e(act(gate_up_e(x_t))) over the experts e that the router gave token t, as in
    `transformers.integrations.moe`."""

    post_expert_norm: nn.Module  # where the model has one

    def __init__(self, stacked: nn.Module):
        experts = stacked.get_parameter("down_proj").shape[0]
        super().__init__(stacked)
        self.transposed, self.experts = bool(stacked.is_transposed), experts

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor):
        """hidden_states (tokens, hidden), top_k_index and top_k_weights (tokens, k) → (tokens, hidden)."""
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= self.experts:  # some routers say so that a token has none
                continue
            tokens, rank = torch.where(top_k_index == expert)
            output = self._expert(expert, hidden_states[tokens]) * top_k_weights[tokens, rank, None]
            result.index_add_(0, tokens, output.to(result.dtype))
        return result

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        if self.shell.has_gate:
            x = self.shell._apply_gate(self._biased("gate_up_proj", expert, x))
        else:
            x = self.shell.act_fn(self._biased("up_proj", expert, x))
        x = self._biased("down_proj", expert, x)
        return self.post_expert_norm(x) if self.shell.has_post_expert_norm else x

    def _biased(self, stack: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(stack, expert, x)
        return y + getattr(self, f"{stack}_bias")[expert] if self.shell.has_bias else y


class ZeroExperts(UnstackedExperts):
    """LongCat's: behind the experts come some that give a token back as it is."""

    def __init__(self, stacked: nn.Module):
        SplitStacks.__init__(self, stacked)
        self.experts = int(self.shell.num_routed_experts)

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor):
        kept = (top_k_weights * (top_k_index >= self.experts)).sum(dim=-1, keepdim=True)
        experts = super().forward(hidden_states, top_k_index, top_k_weights)
        return experts + (hidden_states * kept).to(experts.dtype)

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.linear("gate_up_proj", expert, x).chunk(2, dim=-1)
        return self.linear("down_proj", expert, self.shell.act_fn(gate) * up)


class SortedExperts(SplitStacks):
    """JetMoE's: rows sorted by expert, so many for each, by one matrix an expert."""

    def forward(self, inputs: torch.Tensor, expert_size: list[int]) -> torch.Tensor:
        pieces = inputs.split(expert_size, dim=0)
        return torch.cat([self.linear("weight", expert, piece) for expert, piece in enumerate(pieces)])


class EveryExpert(SplitStacks):
    """Llama 4's: every expert is given all tokens, scaled by what the router gave it of them."""

    transposed = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inputs = hidden_states.view(self.shell.num_experts, -1, self.shell.hidden_size)
        return torch.cat([self._expert(expert, x) for expert, x in enumerate(inputs)])

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.linear("gate_up_proj", expert, x).chunk(2, dim=-1)
        return self.linear("down_proj", expert, up * self.shell.act_fn(gate))


class SharedExperts(SplitStacks):
    """Inkling's: every token passes all of them, scaled by a factor for each."""

    def forward(self, hidden_states: torch.Tensor, gammas: torch.Tensor) -> torch.Tensor:
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        factors = gammas.reshape(-1, self.shell.n_shared_experts)
        total = sum(self._expert(expert, x, factors[:, expert, None]) for expert in range(factors.shape[1]))
        return torch.as_tensor(total).to(hidden_states.dtype).view(hidden_states.shape)

    def _expert(self, expert: int, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        activated = self.shell.act_fn(self.linear("gate_proj", expert, x)) * self.linear("up_proj", expert, x)
        return self.linear("down_proj", expert, activated * factor).float()


class _Numbered(nn.Module):
    """Stands where a stack was that somebody takes an expert's matrix from: gives the expert's number instead."""

    def view(self, *shape: int) -> "_Numbered":
        return self

    def __getitem__(self, expert: torch.Tensor) -> int:
        return int(expert)


class FlatStacks(SplitStacks):
    """Stacks of two dimensions, whose slices stand below one another."""

    names: tuple[str, ...]

    @property
    def slices(self) -> int:
        """How many there are in each."""
        raise NotImplementedError

    def holds(self, stack: str) -> bool:
        return stack in self.names

    def split(self, stack: str, parts: Sequence[str] = (), rows: torch.Tensor | None = None) -> None:
        if stack in self.paths:
            return
        flat = getattr(self, stack)
        slices = flat.data.view(self.slices, -1, flat.shape[1])
        delattr(self, stack)
        self.register_parameter(stack, nn.Parameter(slices, requires_grad=flat.requires_grad))
        super().split(stack, parts, rows)


class GroupedLinear(FlatStacks):
    """DeepSeek-V4's: a linear map for each group of heads."""

    names = ("weight",)

    @property
    def slices(self) -> int:
        return self.shell.n_groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, groups, in) → (…, groups, out)"""
        return torch.stack([self.linear("weight", group, each) for group, each in enumerate(x.unbind(-2))], dim=-2)


class FlatExperts(FlatStacks):
    """DBRX's: stacks from which another module takes the matrices of the expert that it runs."""

    group = _Numbered
    names = ("w1", "v1", "w2")

    @property
    def slices(self) -> int:
        return self.shell.moe_num_experts

    def split(self, stack: str, parts: Sequence[str] = (), rows: torch.Tensor | None = None) -> None:
        self.transposed = stack == "w2"
        super().split(stack, parts, rows)

    def forward(self, x: torch.Tensor, expert_w1: Any, expert_v1: Any, expert_w2: Any) -> torch.Tensor:
        gate = self.shell.activation_fn(self._of("w1", expert_w1, x))
        return self._of("w2", expert_w2, gate * self._of("v1", expert_v1, x))

    def _of(self, stack: str, given: Any, x: torch.Tensor) -> torch.Tensor:
        if isinstance(given, int):
            return self.linear(stack, given, x)
        return x @ (given if stack == "w2" else given.T)


# Modules with stacks that do not go by transformers' common rule, by the names of their classes.
OTHERS: dict[str, type[SplitStacks]] = {
    "DbrxExpertGLU": FlatExperts,
    "DeepseekV4GroupedLinear": GroupedLinear,
    "JetMoeParallelExperts": SortedExperts,
    "Llama4TextExperts": EveryExpert,
    "InklingSharedExperts": SharedExperts,
    "LongcatFlashExperts": ZeroExperts,
}


def linear_of(weight: torch.Tensor) -> nn.Linear:
    """An `nn.Linear` without bias around an existing matrix (out, in), not copied."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return linear


def stacked_experts(model: nn.Module) -> list[str]:
    """The paths of modules that hold experts as transformers' common rule has them, split or not."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, UnstackedExperts) or issubclass(splitter_of(module) or nn.Module, UnstackedExperts)
    ]


def splitter_of(module: nn.Module) -> type[SplitStacks] | None:
    """What a module with stacks becomes when one of them is split, None where it is no such module."""
    if hasattr(module, "is_transposed") and getattr(getattr(module, "down_proj", None), "ndim", 0) == 3:
        return UnstackedExperts
    return OTHERS.get(type(module).__name__)


def with_stacks(model: nn.Module, path: str) -> SplitStacks | None:
    """The module at a path as one whose stacks can be split, put there in its place; None where it holds none."""
    module = model.get_submodule(path)
    if isinstance(module, SplitStacks):
        return module
    splitter = splitter_of(module)
    if splitter is None:
        return None
    model.set_submodule(path, found := splitter(module))
    # transformers would draw random numbers for stacks by their names, through the module above them.
    model.get_submodule(path.rpartition(".")[0])._is_hf_initialized = True  # type: ignore[assignment]
    return found
