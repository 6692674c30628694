"""What a live model multiplies activations by without a linear layer of its own, as linear layers in its place.

A parameter that a model takes as an operand (`x @ self.proj`, an einsum), or a convolution whose windows do not
overlap, becomes a module around an `nn.Linear` of the same numbers, in the same memory where they are stored in that
order: so it is watched, replaced and compressed like any other weight. Parameters are known by their names
(checkpoint/layouts.py); a product that is not known here is formed by torch, from the matrix.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from karipap_core.checkpoint.layouts import Layout
from karipap_core.models.experts import linear_of


class Matrix(nn.Linear):
    """A linear map that computes in the dtype of what it is given, as models do that cast a parameter first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Matrix":
        """Around an existing matrix (out, in), not copied."""
        found = linear_of(weight)
        found.__class__ = cls
        return found  # type: ignore[return-value]


class Operand(nn.Module):
    """Stands where a parameter was, in the products that its model forms with it.

    torch hands every function that is called with it to `__torch_function__`. transposed: whether the parameter holds
    the matrix (in, out).
    """

    products: dict[Callable, str] = {}  # a function of torch → the method that forms it

    def __init__(self, parameter: nn.Parameter, layout: Layout):
        super().__init__()
        self.sides, self.transposed = tuple(parameter.shape), layout.transposed
        self.stored_as = parameter.dtype

    def tensor(self) -> torch.Tensor:
        """The parameter as it was, from the matrices as they are."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """That of its numbers; of cores in few bits, which are integers with scales in 16 bits, that of the model."""
        floats = (each.dtype for each in self.parameters() if each.is_floating_point())
        return next(floats, self.stored_as)

    def float(self) -> "Operand":  # of the parameter: products are formed in x's dtype
        return self

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        operands = [each for each in args if isinstance(each, Operand)]
        if len(operands) == 1 and (name := operands[0].products.get(function)):
            found = getattr(operands[0], name)(*args, **kwargs or {})
            if found is not NotImplemented:
                return found
        dense = tree_map_only(Operand, lambda each: each.tensor(), (args, kwargs or {}))
        return function(*dense[0], **dense[1])


class WholeOperand(Operand):
    """A parameter that is one matrix; of a side that has several dimensions one is made."""

    def __init__(self, parameter: nn.Parameter, layout: Layout):
        super().__init__(parameter, layout)
        stored = parameter.data.flatten(1)
        self.matrix = Matrix.of(stored.T if self.transposed else stored)

    def tensor(self) -> torch.Tensor:
        W = self.matrix.weight
        return (W.T if self.transposed else W).reshape(self.sides)

    def linear(self, x: torch.Tensor, weight: "WholeOperand", bias: torch.Tensor | None = None) -> torch.Tensor:
        if self.transposed:
            return NotImplemented
        y = self.matrix(x)
        return y if bias is None else y + bias

    def times(self, x: torch.Tensor, weight: "WholeOperand") -> torch.Tensor:
        return self.matrix(x) if self.transposed and len(self.sides) == 2 and weight is self else NotImplemented

    def einsum(self, equation: str, *operands: Any) -> torch.Tensor:
        """x of any order of letters, of which those of one side of the matrix are summed over."""
        given, _, wanted = equation.replace(" ", "").partition("->")
        letters = given.split(",")
        if len(operands) != 2 or operands[1] is not self or not wanted or "." in equation:
            return NotImplemented
        x, of_x, mine = operands[0], letters[0], letters[1]
        summed, left = (mine[:1], mine[1:]) if self.transposed else (mine[1:], mine[:1])
        rest = [letter for letter in of_x if letter not in summed]
        if not set(summed) <= set(of_x) or sorted(wanted) != sorted([*rest, *left]):
            return NotImplemented
        rows = x.permute([of_x.index(letter) for letter in [*rest, *summed]]).flatten(len(rest))
        sizes = self.sides[1:] if self.transposed else self.sides[:1]
        y = self.matrix(rows).unflatten(-1, sizes)
        return y.permute([[*rest, *left].index(letter) for letter in wanted])

    products = {
        nn.functional.linear: "linear",
        torch.matmul: "times",
        torch.Tensor.matmul: "times",
        torch.Tensor.__matmul__: "times",
        torch.einsum: "einsum",
    }


class HeadsOperand(Operand):
    """A parameter that is a matrix for each head, or of queries, keys and values: the modules "0", "1" …"""

    def __init__(self, parameter: nn.Parameter, layout: Layout):
        super().__init__(parameter, layout)
        self.heads = layout.count or 1
        for head, stored in enumerate(parameter.data.view(self.heads, -1, self.sides[-1])):
            self.add_module(str(head), Matrix.of(stored.T if self.transposed else stored))

    def __getitem__(self, key: Any) -> Any:
        """A dimension put behind the heads is one of activations, which `before` has anyway."""
        return self if key == (slice(None), None) else self.tensor()[key]

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(self, x)  # type: ignore[arg-type]  # by `__torch_function__`

    def tensor(self) -> torch.Tensor:
        found = torch.stack([each.weight for each in self._each()])  # type: ignore[misc]
        return (found.transpose(1, 2) if self.transposed else found).reshape(self.sides)

    def _each(self) -> list[nn.Module]:
        return [self.get_submodule(str(head)) for head in range(self.heads)]

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """x (heads, …, in) → (heads, …, out)"""
        return torch.stack([module(part) for module, part in zip(self._each(), x, strict=True)])

    def before(self, stack: "HeadsOperand", x: torch.Tensor) -> torch.Tensor:
        """The matrices before x (heads, …, in, places)."""
        if stack is not self or self.transposed or x.ndim < 3 or x.shape[0] != self.heads:
            return NotImplemented
        return self._heads(x.transpose(-1, -2)).transpose(-1, -2)

    def behind(self, bias: torch.Tensor, x: torch.Tensor, stack: "HeadsOperand") -> torch.Tensor:
        """x (heads, tokens, in) before the matrices, and a bias."""
        return bias + self._heads(x) if self.transposed else NotImplemented

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, width: int, *rest: Any, **more: Any
    ) -> Any:
        """torch's attention: what it would project is projected, and it is given matrices that change nothing."""
        heads, _, *others = rest
        q, k, v = (module(x) for module, x in zip(self._each(), (query, key, value), strict=True))
        same = torch.eye(width, dtype=q.dtype, device=q.device)
        apart = {"use_separate_proj_weight": True, "q_proj_weight": same, "k_proj_weight": same, "v_proj_weight": same}
        return nn.functional.multi_head_attention_forward(q, k, v, width, heads, None, *others, **more | apart)

    products = {
        torch.matmul: "before",
        torch.baddbmm: "behind",
        nn.functional.multi_head_attention_forward: "attention",
    }


class Patches(nn.Module):
    """A convolution whose windows do not overlap, as a linear map of what is in one: a place's channels, or a patch."""

    bias: nn.Parameter | None

    def __init__(self, convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d):
        super().__init__()
        self.kernel_size = self.stride = tuple(convolution.kernel_size)
        self.in_channels, self.out_channels = convolution.in_channels, convolution.out_channels
        self.matrix = Matrix.of(convolution.weight.data.flatten(1))
        self.register_parameter("bias", convolution._parameters["bias"])

    @property
    def weight(self) -> torch.Tensor:
        """As the convolution has it."""
        return self.matrix.weight.reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, channels, *sizes) → (…, channels, *how many windows fit)"""
        sides, first = self.kernel_size, x.ndim - len(self.kernel_size)
        for dimension, side in enumerate(sides, first):
            x = x.narrow(dimension, 0, x.shape[dimension] // side * side)
        for number, side in enumerate(sides):  # each dimension becomes windows, and places in one behind all others
            x = x.unflatten(first + number, (-1, side)).movedim(first + number + 1, -1)
        y = self.matrix(x.movedim(first - 1, -len(sides) - 1).flatten(-len(sides) - 1))
        return (y if self.bias is None else y + self.bias).movedim(-1, first - 1)


def is_patches(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Whether a module is a convolution whose windows do not overlap, nor leave anything out but what is no window."""
    plain = type(module).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or not plain:
        return False
    apart = tuple(module.kernel_size) == tuple(module.stride) and set(module.dilation) == {1}
    return apart and module.groups == 1 and module.padding in ("valid", (0,) * len(module.kernel_size))


def stand_in(model: nn.Module, path: str, layout: Layout) -> None:
    """Puts a module in the place of the parameter at `path`."""
    owner, _, name = path.rpartition(".")
    holder = model.get_submodule(owner)
    parameter = holder.get_parameter(name)
    delattr(holder, name)
    holder.add_module(name, (WholeOperand if layout.count is None else HeadsOperand)(parameter, layout))
    # transformers would draw random numbers for parameters by their names, through the module that holds them.
    holder._is_hf_initialized = True  # type: ignore[assignment]
