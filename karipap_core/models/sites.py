"""Where the weights of a checkpoint live in a model that transformers has loaded, for every architecture alike.

Between disk and memory transformers renames tensors, adds or drops the base model's prefix, and stacks experts. The
same rules that it loads with answer here, so that nobody else knows of it: a `Site` is one weight of the checkpoint
in the running model, to be read, replaced or watched.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.checkpoint.reach import keep, narrow
from karipap_core.checkpoint.roles import TABLES
from karipap_core.errors import InputError
from karipap_core.layers.cores import Cores, CoresModule
from karipap_core.layers.embedding import TensorNetworkEmbedding, is_table
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.models.empty import empty_model
from karipap_core.models.names import Names
from karipap_core.models.running import why_not
from karipap_core.networks import Spec

if TYPE_CHECKING:  # its models take six seconds to import
    from transformers import PreTrainedModel

_TRIED: dict[type, bool] = {}
NO_LAYER = "weights that the model does not hold as linear layers of their own"
SHARED = "weights that the model holds in two places"
HEAD = "weights of a head, which an encoder is run without: what comes before it is what is compared"


def find_reach(checkpoint: Checkpoint) -> None:
    """Narrows a checkpoint to the weights that a plan can reach, by an empty model on the meta device: those that the
    model computes with as linear layers of their own, and the tables of tokens that can be networks. Kept for the next
    time (checkpoint/reach.py). Without a config.json nothing can be said: all of them.

    Raises InputError where the model cannot be built.
    """
    if checkpoint.kind is None:
        narrow(checkpoint, {}, [weight.name for weight in checkpoint.weights if weight.role in TABLES], ())
        return
    model = empty_model(checkpoint)
    buffers = {name for name, _ in model.named_buffers()}
    names = Names(model, checkpoint.tensors)
    held = [
        tensor for tensor in checkpoint.tensors if tensor not in checkpoint.tied and names.live(tensor)[0] in buffers
    ]
    found, left = _sorted_out(model, checkpoint, tables=True)
    tables = [name for name in found if not checkpoint.weight(name).compressible]
    keep(checkpoint, left, tables, held, why_not(model))


def tied_tables(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """What the model ties to each stored embedding or head: name → names of the weights that are not stored."""
    if checkpoint.kind is None:
        return {}
    model = empty_model(checkpoint)
    names = Names(model, checkpoint.tensors)
    stored = {weight.name for weight in checkpoint.weights}
    return {
        weight.name: [path for path in partners(model, names.path(weight.name)) if path not in stored]
        for weight in checkpoint.weights
        if weight.role in TABLES
    }


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D | TensorNetworkLinear]:
    """Whether a module computes y = W x + b: `nn.Linear`, GPT-2's `Conv1D`, or one of Karipap's."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward or _acts_linearly(module)
    return isinstance(module, Conv1D | TensorNetworkLinear)


def _acts_linearly(module: nn.Linear) -> bool:
    """Whether a subclass with a forward of its own still computes y = W x + b: tried once for each class."""
    kind = type(module)
    if kind not in _TRIED:
        stand_in = kind.__new__(kind)
        stand_in.__dict__ |= module.__dict__
        held = {
            name: None if each is None else nn.Parameter(torch.randn(each.shape, device="cpu"))
            for name, each in module._parameters.items()
        }
        stand_in.__dict__["_parameters"] = held
        x = torch.randn(2, module.in_features, device="cpu")
        try:
            with torch.no_grad(), torch.device("cpu"):
                wanted = nn.functional.linear(x, stand_in.weight, stand_in.bias)
                _TRIED[kind] = torch.allclose(stand_in(x), wanted, rtol=1e-4, atol=1e-4)
        except (RuntimeError, TypeError, AttributeError, ValueError):
            _TRIED[kind] = False
    return _TRIED[kind]


def is_embedding(module: nn.Module) -> bool:
    """Whether a module only looks rows of W up (and scales them): an `nn.Embedding` or one of Karipap's."""
    return is_table(module) or isinstance(module, TensorNetworkEmbedding)


def partners(model: "PreTrainedModel", path: str) -> list[str]:
    """Paths of the modules that the model ties to the weight of the module at `path` (an embedding's head, a head's
    embedding), as transformers' own mapping says."""
    mine, found = f"{path}.weight", []
    for target, source in model.all_tied_weights_keys.items():
        found += [source] if target == mine else [target] if source == mine else []
    return [name.removesuffix(".weight") for name in found]


def table_problem(model: "PreTrainedModel", path: str) -> str | None:
    """Why the embedding or head at `path` cannot become a network, in one sentence, or None where it can."""
    module, tied = model.get_submodule(path), partners(model, path)
    if not is_embedding(module) and not is_linear(module):
        return f"a {type(module).__name__} does more than look rows up: leave it dense."
    for other in tied:
        partner = model.get_submodule(other)
        if type(partner) is not nn.Linear and not (is_linear(module) and is_embedding(partner)):
            return f"the model uses the same table as {other}, a {type(partner).__name__}: leave it dense."
    holders = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight is module.weight]
    if len(holders) > 1 + len(tied):
        return f"the model holds the same table as {', '.join(holders)}: leave it dense."
    return None


def place(model: "PreTrainedModel", path: str, spec: Spec, borrowed: dict[int, Cores]) -> CoresModule:
    """Puts an uninitialized network in place of the module at `path` and, where the model ties the two, of the head of
    an embedding too (or the embedding of a head): that one borrows all cores, so that they are held once.

    Raises InputError where the module is none that can be replaced, or has another shape.
    """
    module = model.get_submodule(path)
    shape = _shape(module)
    if shape != (spec.n_out, spec.n_in):
        raise InputError(f"the network is {spec.n_out} x {spec.n_in}, the layer {shape}.")
    tied = partners(model, path)
    if (isinstance(module, nn.Embedding) or tied) and (problem := table_problem(model, path)):
        raise InputError(problem)
    network = _network(module, spec, borrowed)
    model.set_submodule(path, network)
    for other in tied:
        lent = dict.fromkeys(range(len(network.cores)), network.cores)
        model.set_submodule(other, _network(model.get_submodule(other), spec, lent))
    _untie(model, {f"{name}.weight" for name in (path, *tied)})
    return network


def _network(module: nn.Module, spec: Spec, borrowed: dict[int, Cores]) -> CoresModule:
    if isinstance(module, nn.Embedding):
        return TensorNetworkEmbedding.like(module, spec, borrowed)
    if not is_linear(module):
        raise InputError(f"A {type(module).__name__} is not a linear layer: leave it dense.")
    weight, bias = module.weight, getattr(module, "bias", None) is not None
    return TensorNetworkLinear(spec, bias, weight.device, weight.dtype, borrowed=borrowed)


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear layer or (rows, columns) of an embedding, None of anything else."""
    if not isinstance(module, nn.Embedding) and not is_linear(module):
        return None
    first, second = module.weight.shape
    return (second, first) if isinstance(module, Conv1D) else (first, second)


def _untie(model: "PreTrainedModel", gone: set[str]) -> None:
    """Makes transformers forget that it ties parameters which are no longer there, for this model alone."""
    for prefix, part in model.named_modules():
        mapping = getattr(part, "_tied_weights_keys", None)
        if isinstance(mapping, dict):
            base = f"{prefix}." if prefix else ""
            mine = [name.removeprefix(base) for name in gone if name.startswith(base)]
            part._tied_weights_keys = {
                target: source
                for target, source in mapping.items()
                if not any(re.match(pattern, name) for pattern in (target, source) for name in mine)
            }
    for target, source in list(model.all_tied_weights_keys.items()):
        if {target, source} & gone:
            del model.all_tied_weights_keys[target]


Holder = nn.Linear | Conv1D | nn.Embedding | CoresModule  # the modules that hold a weight W, each as `weight`


@dataclass
class Site:
    """One weight of a checkpoint in a live model."""

    name: str
    path: str
    module: Holder

    def get(self) -> torch.Tensor:
        """W (out, in) as it acts now, in the model's dtype and on its device; a view where the module holds W."""
        weight = self.module.weight.detach()
        return weight.T if isinstance(self.module, Conv1D) else weight

    @contextmanager
    def replaced(self, W: torch.Tensor) -> Iterator[None]:
        """Within the context the module computes with W (out, in), cast to its dtype and device; then as before.

        Raises InputError for a W of another shape, and for a module that is a tensor network already.
        """
        if not isinstance(self.module, nn.Linear | Conv1D | nn.Embedding):
            raise InputError(f"Weight {self.name} is a {type(self.module).__name__} and cannot be replaced.")
        if tuple(W.shape) != tuple(self.get().shape):
            raise InputError(f"Weight {self.name} is {tuple(self.get().shape)}, not {tuple(W.shape)}.")
        parameter, kept = self.module.weight, self.module.weight.data
        stored = W.T if isinstance(self.module, Conv1D) else W
        parameter.data = stored.to(kept).contiguous()
        try:
            yield
        finally:
            parameter.data = kept


def sites(
    model: "PreTrainedModel",
    checkpoint: Checkpoint,
    tables: bool = False,
    among: Sequence[Weight] | None = None,
    within: str = "",
) -> dict[str, Site]:
    """The compressible weights of `checkpoint` in `model` (loaded from it, dense or compressed), by name.

    Stacked experts are unstacked in place (no copy; the same function). A weight that the model does not compute
    with as one linear layer is left out. With `tables`, also the embedding as (vocabulary, width) and the head; a head
    tied to the embedding is one weight with it, under the embedding's name. With `among`, those of these weights alone,
    which are `within` the module of that path: nothing else of the model is touched.
    """
    return _sorted_out(model, checkpoint, tables, among, within)[0]


def _sorted_out(
    model: "PreTrainedModel",
    checkpoint: Checkpoint,
    tables: bool,
    among: Sequence[Weight] | None = None,
    within: str = "",
) -> tuple[dict[str, Site], dict[str, str]]:
    """(what `sites` gives, the compressible weights that it leaves out: name → why)."""
    weights = checkpoint.weights if among is None else among
    weights = [weight for weight in weights if weight.compressible or (tables and weight.role in TABLES)]
    names = Names(model, checkpoint.tensors)
    names.unstack(
        sorted({weight.tensor for weight in weights if weight.index is not None}),
        merged=any(weight.index is None and weight.expert is not None for weight in weights),
        within=within,
    )
    of_tokens = {id(module) for module in _token_tables(model)}
    headless = checkpoint.kind == "encoder" and type(model).__name__ not in (
        checkpoint.config.get("architectures") or ()
    )
    found: dict[str, Site] = {}
    left: dict[str, str] = {}
    for weight in weights:
        try:
            path = names.path(weight.name)
        except InputError:
            left[weight.name] = HEAD if headless else NO_LAYER
            continue
        module = model.get_submodule(path)
        if weight.compressible:
            fits = is_linear(module)
        else:
            fits = id(module) in of_tokens and table_problem(model, path) is None
        if fits and isinstance(module, Holder):
            found[weight.name] = Site(weight.name, path, module)
        else:
            left[weight.name] = SHARED if partners(model, path) else _other(module)
    return found, {name: why for name, why in left.items() if checkpoint.weight(name).compressible}


def _other(module: nn.Module) -> str:
    """What the weights of a module are that is no linear map."""
    kind = type(module).__name__
    if isinstance(module, nn.Embedding):
        return f"weights of a {kind}, in which rows are looked up"
    if getattr(module, "groups", 1) != 1:
        return f"weights of a {kind} in groups of channels, each with a map of its own"
    return f"weights of a {kind}, which computes more than y = W x + b"


def _token_tables(model: "PreTrainedModel") -> Iterator[nn.Module]:
    """The modules that a model, or a part of it, looks its tokens up in and scores them with: no tables of places."""
    from transformers import PreTrainedModel

    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            for get in (part.get_input_embeddings, part.get_output_embeddings):
                with suppress(NotImplementedError, AttributeError):
                    if (module := get()) is not None:
                        yield module


@contextmanager
def replaced(found: dict[str, Site], matrices: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within the context every weight named in `matrices` (name → W (out, in)) acts as given; then as before."""
    with ExitStack() as stack:
        for name, W in matrices.items():
            stack.enter_context(found[name].replaced(W))
        yield


def _tokens(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a module is given, token by token: (tokens, in), the ids (tokens,) for an embedding."""
    return x.detach().flatten() if is_embedding(module) else x.detach().reshape(-1, x.shape[-1])


class _Reached(Exception):
    """A pass has come to where it ends."""


@contextmanager
def until(site: Site, inputs: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Within the context, the first pass that comes to a site ends there, before it is computed: `inputs(x)` with
    x (tokens, in), detached, in the model's dtype; what stands behind the pass in the context is not run."""

    def reached(module, arguments):
        inputs(_tokens(module, arguments[0]))
        raise _Reached

    handle = site.module.register_forward_pre_hook(reached)
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()


@contextmanager
def observe(
    found: dict[str, Site],
    inputs: Callable[[str, torch.Tensor], None] | None = None,
    gradients: Callable[[str, torch.Tensor], None] | None = None,
) -> Iterator[None]:
    """Within the context, every pass of every site is reported.

    `inputs(name, x)` with x (tokens, in) in the forward pass, `gradients(name, g)` with g (tokens, out) = ∂/∂(W x) in
    the backward pass, row for row the same tokens; for an expert, those routed to it; for an embedding x are the ids
    (tokens,). Gradients come only where the output requires one (a parameter before it, or its own, does). Detached,
    in the model's dtype; keep copies.
    """

    def seen(name, module, arguments, output):
        if inputs is not None:
            inputs(name, _tokens(module, arguments[0]))
        if gradients is not None and output.requires_grad:
            output.register_hook(lambda g: gradients(name, g.detach().reshape(-1, g.shape[-1])))

    handles = [site.module.register_forward_hook(partial(seen, name)) for name, site in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
