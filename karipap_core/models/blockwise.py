"""Losses of many batches forwards and backwards through a model, one block after the other over all batches.

In memory are one block (`Streamed`), what is seen of its weights, and of every batch what stands at one boundary
between blocks. The forward pass keeps what each block puts out on disk in 16 bits; the backward pass goes from the last
block to the first, runs each again from what it was given, and hands the gradient on. Both are the model's own: each
batch goes through its forward in a thread of its own (`lockstep.walk`), and a block that is called stands for a node of
autograd. A pass that was killed goes on at that block: blocks that are done answer from disk, and every tensor between
blocks is used as it is kept, so that nothing depends on whether it was.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from karipap_core.models.lockstep import Meet, heavy_in_conductor, walk
from karipap_core.models.scratch import Scratch
from karipap_core.models.sites import Site, is_embedding, observe
from karipap_core.models.streamed import Streamed
from karipap_core.models.structure import Odd, put_together, taken_apart
from karipap_core.progress import Progress, silent

if TYPE_CHECKING:  # its models take six seconds to import
    from transformers import PreTrainedModel

Loss = Callable[["PreTrainedModel"], torch.Tensor]
FORWARD, BACKWARD = 0, 1
ROOM = 1.4  # of the model's bytes


class Watcher(Protocol):
    """Who is told what weights see: x (tokens, in), and g (tokens, out) of the same tokens, of batch number `batch`;
    and that a block (None: what lies outside the blocks) is through, so that nothing more comes of its weights."""

    def on_input(self, batch: int, name: str, x: torch.Tensor) -> None: ...
    def on_gradient(self, batch: int, name: str, g: torch.Tensor) -> None: ...
    def through(self, block: str | None, sites: dict[str, Site]) -> None: ...


@dataclass
class _Batch:
    """One loss on its way through the model."""

    number: int
    meet: Meet
    visits: Counter[str] = field(default_factory=Counter)


class Blockwise:
    """Runs losses of a streamed model for a watcher; `folder` is where it keeps what stands between blocks, and what
    tells a later one where to go on (removed at the end)."""

    def __init__(self, streamed: Streamed, watcher: Watcher, folder: Path, progress: Progress = silent):
        self.streamed, self.watcher, self.progress = streamed, watcher, progress
        self.scratch = Scratch(folder, streamed.dtype, streamed.device)
        self.places: list[tuple[str, int]] = []  # (block, which visit of it), in the order of the forward pass
        self._numbers: dict[tuple[str, int], int] = {}
        self._batch = 0  # that runs now
        self._open: set[str] = set()  # blocks of which something has been seen, and more is to come
        self._through: set[str] = set()
        self._shapes: dict[int, dict[str, Any]] = {}  # of what each place puts out, by batch
        self._current: dict[int, _Batch] = {}
        self._known = {kind: self.scratch.noted_numbers(kind) for kind in ("out", "done")}  # by an earlier run
        self._done = set(self._known["done"])
        self._calls: dict[int, list[_Call]] = defaultdict(list)  # of each place, by batch, until it is done
        self._stride: int | None = None
        self.room = ROOM * streamed.checkpoint.bytes  # bytes on disk that what stands between blocks may take
        self._keep_all = bool(streamed.outside)  # what is seen outside the blocks is seen again by a run that goes on
        self._sources: dict[int, set[int]] = {}  # of each place: those whose output it is given; −1: something else

    def run(self, losses: Sequence[Loss], done: Callable[[int], None] = lambda number: None) -> None:
        """Each loss forwards and backwards; `done(number)` says that one is. Raises what a loss or the watcher does."""
        model = self.streamed.model
        shells = {path: model.get_submodule(path) for path in self.streamed.blocks}
        # Gradients begin where tokens are looked up, so that they flow through every block.
        tables = [module for path, module in model.named_modules() if is_embedding(module) and path not in shells]
        flowing = [table.register_forward_hook(_with_gradient) for table in tables]
        functions = [partial(self._one, number, loss, done) for number, loss in enumerate(losses)]
        try:
            for path, shell in shells.items():
                shell.forward = partial(self._called, path)
            with observe(self.streamed.outside, self._input, self._gradient):
                if shells:
                    with heavy_in_conductor(model, lambda: self._current[self._batch].meet):
                        walk(functions, self._order, self._at)
                else:
                    for function in functions:
                        function(_nowhere)
        finally:
            for hook in flowing:
                hook.remove()
            for shell in shells.values():
                del shell.forward
        for path in self.streamed.blocks:
            if path not in self._through:
                self.watcher.through(path, self.streamed.block(path)[1])
        self.watcher.through(None, self.streamed.outside)
        if self.places:
            count = 3 * max(len(self.places), len(self.streamed.blocks))
            self.progress("activations", count, count)
        shutil.rmtree(self.scratch.folder, ignore_errors=True)

    def _one(self, number: int, loss: Loss, done: Callable[[int], None], meet: Meet) -> None:
        """What the thread of a batch does."""
        self._batch = number
        self._current[number] = batch = _Batch(number, meet)
        with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
            value = loss(self.streamed.model)
            if value.requires_grad:
                value.backward()
        del self._current[batch.number]
        done(number)

    @staticmethod
    def _order(place: tuple[int, int]) -> tuple[int, int]:
        """All batches forwards through the blocks, then all of them backwards."""
        phase, number = place
        return phase, number if phase == FORWARD else -number

    def _input(self, name: str, x: torch.Tensor) -> None:
        self.watcher.on_input(self._batch, name, x)

    def _gradient(self, name: str, g: torch.Tensor) -> None:
        self.watcher.on_gradient(self._batch, name, g)

    # At a place.

    @contextmanager
    def _at(self, place: tuple[int, int]) -> Iterator[None]:
        """While the batches that wait at a place pass it."""
        phase, number = place
        path, visit = self.places[number]
        count = len(self.places)
        if phase == FORWARD:
            count = max(count, len(self.streamed.blocks))
            self.progress("activations", number, 3 * count, path)
            yield
            self.scratch.write()
            if number not in self._known["done"]:
                self.scratch.note("out", number, self._shapes.get(number, {}))
                self._thin_out(number - 1)
            return
        self.progress("activations", count + 2 * (count - 1 - number), 3 * count, path)
        if number in self._known["done"]:
            yield
            self._through.add(path)
            return
        for source in self._sources[number]:
            self._fill(source)
        _, sites = self.streamed.block(path)
        with observe(sites, self._input, self._gradient):
            yield
        self.scratch.write()
        for call in self._calls.pop(number, ()):
            call.leaves = []
        if visit:
            self._open.add(path)
            return
        self._open.discard(path)
        self._through.add(path)
        self.watcher.through(path, sites)
        if not self._open:
            self._finish(number)

    def _finish(self, number: int) -> None:
        """Notes that all from a place on is done, and removes what is needed no more."""
        for done in range(number, len(self.places)):
            if done not in self._done:
                self.scratch.note("done", done, self._shapes.get(done, {}))
                self._done.add(done)
            if self._keep_all:
                continue
            if done < len(self.places) - 1:  # from what the last block puts out the loss is made again
                self.scratch.drop(f"out-{done}")
            self.scratch.drop(f"in-{done}")
            if done > number and min(self._sources.get(done, {-1})) >= number:
                self.scratch.drop(f"grad-{done}")

    def _thin_out(self, number: int) -> None:
        """Removes what a place puts out once the next one has used it, where not all can stay: of every `_stride`
        places one is kept, the others are run again from there when their turn comes (`_fill`)."""
        if number < 0 or self._keep_all:
            return
        if self._stride is None:
            blocks, boundary = len(self.streamed.blocks), max(1, self.scratch.bytes("out-0"))
            strides = range(1, 1 + round(blocks**0.5))
            fitting = (k for k in strides if (-(-blocks // k) + k + 1) * boundary <= self.room)
            self._stride = next(fitting, strides[-1])
        if (number + 1) % self._stride and number not in self._known["done"]:
            self.scratch.drop(f"out-{number}")

    def _fill(self, number: int) -> None:
        """Sees to it that what a place puts out is there."""
        if number < 0 or self.scratch.has(f"out-{number}"):
            return
        for source in self._sources[number]:
            self._fill(source)
        for call in self._calls[number]:
            call.run_again()
        self.scratch.write()

    # A block that is called.

    def _called(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the forward of the block at `path`."""
        batch = self._current[self._batch]
        visit = batch.visits[path]
        batch.visits[path] += 1
        if (path, visit) not in self._numbers:
            self._numbers[path, visit] = len(self.places)
            self.places.append((path, visit))
        number = self._numbers[path, visit]
        leaves, spec = tree_flatten((args, kwargs))
        flowing = [
            index
            for index, leaf in enumerate(leaves)
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad and leaf.is_floating_point()
        ]
        call = _Call(self, batch, number, path, leaves, spec, flowing)
        self._calls[number].append(call)
        given = [leaves[index] for index in flowing]
        call.know(given)
        outputs = _Through.apply(call, *given)
        return call.assembled(outputs)


class _Call:
    """One block on one batch: how it is run again, and what it puts out."""

    def __init__(self, whole: Blockwise, batch: _Batch, number: int, path: str, leaves, spec, flowing: list[int]):
        self.whole, self.batch, self.number, self.path = whole, batch, number, path
        self.leaves, self.spec, self.flowing = leaves, spec, flowing
        self.handles: list[tuple[str, str]] = []
        self.as_kept: dict[int, torch.Tensor] = {}  # inputs that were put there, until they have been used
        self.structure: Any = None

    @property
    def answered(self) -> bool:
        """Whether an earlier run had this place's outputs."""
        return self.done or str(self.batch.number) in self.whole._known["out"].get(self.number, {})

    @property
    def done(self) -> bool:
        """Whether an earlier run was through with this place."""
        return self.number in self.whole._known["done"]

    def know(self, given: Sequence[torch.Tensor]) -> None:
        """Where each of these inputs can be found again: among what another block puts out, or put there now."""
        scratch, sources = self.whole.scratch, self.whole._sources.setdefault(self.number, set())
        for position, (index, tensor) in enumerate(zip(self.flowing, given, strict=True)):
            known = getattr(tensor, "_kept", None)
            if known is not None and known[2] == tensor._version:
                handle, source = (known[0], known[1]), int(known[0].partition("-")[2])
            else:
                handle, source = (f"in-{self.number}", f"{self.batch.number}.{position}"), -1
                if not self.answered:  # else it is there, and this was made of what nobody looks at
                    self.as_kept[position] = scratch.put(*handle, tensor.detach())
            self.handles.append(handle)
            sources.add(source)
            self.leaves[index] = None

    def run(self, given: Sequence[torch.Tensor]) -> Any:
        """What the block returns."""
        module, _ = self.whole.streamed.block(self.path)
        leaves = list(self.leaves)
        for index, tensor in zip(self.flowing, given, strict=True):
            leaves[index] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        return module(*args, **kwargs)

    def forward(self, given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The tensors that the block puts out, as they are kept; from disk where an earlier run left them there."""
        found = self.batch.meet((FORWARD, self.number), partial(self._forward, given))
        self.whole._batch = self.batch.number
        return found

    @torch.no_grad()
    def _forward(self, given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        whole, number = self.whole, self.number
        whole._batch = self.batch.number
        before = whole._known["done"].get(number) or whole._known["out"].get(number) or {}
        mine = before.get(str(self.batch.number))
        if mine is not None:
            self.structure = mine["structure"]
            whole._shapes.setdefault(number, {})[str(self.batch.number)] = mine
            return tuple(self._answer(leaf, shape) for leaf, shape in enumerate(mine["shapes"]))
        # Where no gradient will come back the block is not run again.
        seeing = nullcontext() if self.flowing else observe(whole.streamed.block(self.path)[1], whole._input)
        with seeing:
            used = [self.as_kept.pop(position, tensor) for position, tensor in enumerate(given)]
            tensors, self.structure = taken_apart(self.run(used))
        kept = [
            whole.scratch.put(f"out-{number}", f"{self.batch.number}.{leaf}", tensor)
            if tensor.is_floating_point()
            else tensor
            for leaf, tensor in enumerate(tensors)
        ]
        if all(tensor.is_floating_point() for tensor in kept) and not isinstance(self.structure, Odd):
            shapes = [list(tensor.shape) for tensor in kept]
            mine = {"structure": self.structure, "shapes": shapes}
            whole._shapes.setdefault(number, {})[str(self.batch.number)] = mine
        return tuple(kept)

    @torch.no_grad()
    def run_again(self) -> None:
        """Puts what the block puts out on disk once more."""
        whole = self.whole
        tensors, _ = taken_apart(self.run([whole.scratch.get(*handle) for handle in self.handles]))
        for leaf, tensor in enumerate(tensors):
            if tensor.is_floating_point():
                whole.scratch.put(f"out-{self.number}", f"{self.batch.number}.{leaf}", tensor)

    def _answer(self, leaf: int, shape: list[int]) -> torch.Tensor:
        whole, file = self.whole, f"out-{self.number}"
        if whole.scratch.has(file):
            return whole.scratch.get(file, f"{self.batch.number}.{leaf}")
        return torch.zeros(shape, dtype=whole.streamed.dtype, device=whole.streamed.device)  # nobody looks at it

    def assembled(self, outputs: Sequence[torch.Tensor]) -> Any:
        """What the block returns, of its tensors."""
        for leaf, tensor in enumerate(outputs):
            if tensor.is_floating_point():
                handle = f"out-{self.number}", f"{self.batch.number}.{leaf}"
                tensor._kept = (*handle, tensor._version)  # type: ignore[attr-defined]
        return put_together(iter(outputs), self.structure)

    def backward(self, gradients: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
        """The gradients of its inputs, as they are kept."""
        found = self.batch.meet((BACKWARD, self.number), partial(self._backward, gradients))
        self.whole._batch = self.batch.number
        return found

    def _backward(self, gradients: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
        whole, file = self.whole, f"grad-{self.number}"
        whole._batch = self.batch.number
        keys = [f"{self.batch.number}.{position}" for position in range(len(self.handles))]
        if self.done:
            return tuple(whole.scratch.get(file, key) if whole.scratch.has(file) else None for key in keys)
        given = [whole.scratch.get(*handle).requires_grad_() for handle in self.handles]
        with torch.enable_grad():
            tensors, _ = taken_apart(self.run(given))
        pairs = [(t, g) for t, g in zip(tensors, gradients, strict=True) if g is not None and t.requires_grad]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs], inputs=given)
        zeros = (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in given)
        return tuple(whole.scratch.put(file, key, gradient) for key, gradient in zip(keys, zeros, strict=True))


def _nowhere(place: Any, work: Any) -> None:
    """A model without blocks comes to no place."""


def _with_gradient(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
    if not output.is_floating_point() or output.requires_grad:
        return None
    return output.requires_grad_().clone()  # some models write into it


class _Through(torch.autograd.Function):
    """A block as one node of autograd, which runs again what it has to differentiate."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        outputs = call.forward(given)
        ctx.mark_non_differentiable(*(tensor for tensor in outputs if not tensor.is_floating_point()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        return None, *ctx.call.backward(gradients)
