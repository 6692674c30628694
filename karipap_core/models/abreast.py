"""Forward passes of a model that is read block by block, many side by side: each block is read once for all of them."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

from karipap_core.models.lockstep import Meet, heavy_in_conductor, walk
from karipap_core.models.streamed import Streamed

if TYPE_CHECKING:  # its models take six seconds to import
    from transformers import PreTrainedModel

LARGE = 2 << 30  # bytes of a model in float32, above which it is not loaded whole where that can be helped


class Abreast:
    """Runs functions of a streamed model, each of which calls its forward: all of them go from block to block together,
    in their order, and after the last each goes on to its end before the next. Without gradients.

    What may be another's to say is in methods of their own: how a block is passed, and what is done around it.
    """

    def __init__(self, streamed: Streamed) -> None:
        self.streamed = streamed
        self._places: dict[tuple[str, int], int] = {}  # (block, which visit of it), in the order of the forward pass
        self._mine = threading.local()  # of the thread that asks: its number, its visits, what it meets with

    def run(self, functions: Sequence[Callable[["PreTrainedModel"], Any]]) -> list[Any]:
        """What each function gives. Raises what one of them, or reading a block, does."""
        model, found = self.streamed.model, [None] * len(functions)
        shells = [model.get_submodule(path) for path in self.streamed.blocks]

        @torch.no_grad()
        def one(number: int, function: Callable[["PreTrainedModel"], Any], meet: Meet) -> None:
            self._mine.number, self._mine.visits, self._mine.meet = number, Counter(), meet
            with self.within(number):
                found[number] = function(model)

        try:
            for path, shell in zip(self.streamed.blocks, shells, strict=True):
                shell.forward = partial(self._called, path)
            with heavy_in_conductor(model, lambda: getattr(self._mine, "meet", None)):
                walk([partial(one, number, function) for number, function in enumerate(functions)], int, self._at)
        finally:
            for shell in shells:
                shell.__dict__.pop("forward", None)
        return found

    def _called(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the forward of the block at `path`."""
        mine = self._mine
        place = self._places.setdefault((path, mine.visits[path]), len(self._places))
        mine.visits[path] += 1
        with self.aside(mine.number):
            return mine.meet(place, partial(self._passed, path, mine.number, args, kwargs))

    @torch.no_grad()
    def _passed(self, path: str, number: int, args: Any, kwargs: Any) -> Any:
        return self.passes(path, number, args, kwargs)

    @contextmanager
    def _at(self, place: int) -> Iterator[None]:
        path, _ = list(self._places)[place]
        with self.block(path, place, max(len(self._places), len(self.streamed.blocks))):
            yield

    # Another's to say.

    def passes(self, path: str, number: int, args: Any, kwargs: Any) -> Any:
        """What a block returns to a function."""
        return self.streamed.block(path)[0](*args, **kwargs)

    def within(self, number: int) -> AbstractContextManager[Any]:
        """Around a function, while it is the one that runs."""
        return nullcontext()

    def aside(self, number: int) -> AbstractContextManager[Any]:
        """Around a wait of it, while others run."""
        return nullcontext()

    def block(self, path: str, place: int, places: int) -> AbstractContextManager[Any]:
        """Around the block number `place` of `places`, while all pass it."""
        return nullcontext()


class Waiting(Abreast):
    """Keeps what each function gives the block that all wait at: so it can be run on that before they pass."""

    def __init__(self, streamed: Streamed) -> None:
        super().__init__(streamed)
        self._arguments: dict[int, tuple[tuple, dict]] = {}  # by the number of a function

    def _called(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._arguments[self._mine.number] = args, kwargs
        return super()._called(path, *args, **kwargs)

    def given(self, number: int) -> tuple[tuple, dict]:
        """(arguments, keywords) of the block, in copies: it may write into them."""
        return tree_map(_copied, self._arguments[number])


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
