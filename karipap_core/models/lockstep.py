"""Functions run side by side, each paused wherever it says that it has come to a place.

So a model runs block by block on more tokens than memory holds activations of: every batch of windows goes through the
model's own forward in a thread of its own, all of them meet at the entrance of a block, the block's weights are read,
one batch after the other passes, and the weights go. Nothing has to be known of what a model does between its blocks.
One thread runs at any time, so that results do not depend on which is faster; and the work at a place is done in the
thread of whoever runs them, since what many threads have freed is not given back for others to use.
"""

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, cast

import torch
from torch import nn

ARENA_MAX, MMAP_THRESHOLD = -8, -3  # of malloc.h
HEAVY = 1 << 20  # numbers of a matrix that is not multiplied with in many threads
LARGE = 4 << 20  # bytes of a piece of memory that is the system's again as soon as it is freed
NOW = object()  # a place that nobody waits at: the work is done at once, in the thread of whoever runs the functions
Work = Callable[[], Any]
Meet = Callable[[Hashable, Work], Any]


class _Ended(BaseException):
    """Raised in a thread that waits, to end it; no `except Exception` of a model is to catch it."""


class _Runner:
    """One function in a thread, which runs only within `go_on`."""

    def __init__(self, function: Callable[[Meet], None]):
        self.place: Hashable | None = None  # where it waits
        self.work: Work | None = None  # what is to be done there
        self.result: Any = None
        self.over = False
        self.error: BaseException | None = None
        self._go, self._paused, self._ended = threading.Semaphore(0), threading.Semaphore(0), False
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)

    def go_on(self) -> None:
        """Runs the function up to the next place, or to its end. Raises what it raises."""
        if self._thread.ident is None:
            self._thread.start()
        while True:
            self._go.release()
            self._paused.acquire()
            if self.error is not None:
                raise self.error
            if self.place is not NOW or self.work is None:
                return
            self.result, self.work = self.work(), None

    def end(self) -> None:
        """Ends a function that waits."""
        if self._thread.ident is not None and not self.over:
            self._ended = True
            self._go.release()
            self._thread.join()

    def _run(self, function: Callable[[Meet], None]) -> None:
        self._go.acquire()
        try:
            if not self._ended:
                function(self._meet)
        except _Ended:
            pass
        except BaseException as error:  # noqa: BLE001 (handed on to who runs it)
            self.error = error
        finally:
            self.over, self.place = True, None
            self._paused.release()

    def _meet(self, place: Hashable, work: Work) -> Any:
        self.place, self.work = place, work
        self._paused.release()
        self._go.acquire()
        if self._ended:
            raise _Ended
        result, self.result = self.result, None
        return result


def _few_heaps() -> None:
    """glibc gives every thread a heap of its own, which keeps what is freed in it, pieces of up to 32 MB among them.
    Threads of which one runs at a time can do with two heaps, and with small pieces in them."""
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(ARENA_MAX, 2)
        library.mallopt(MMAP_THRESHOLD, LARGE)


def walk(
    functions: Sequence[Callable[[Meet], None]],
    order: Callable[[Any], Any],
    at: Callable[[Any], AbstractContextManager[Any]],
) -> None:
    """Runs every `function(meet)` to its end. Wherever one calls `meet(place, work)` it waits; of the places where any
    wait, the first by `order` is next: within `at(place)` the work of all that wait there is done, and each goes on
    with what it gave, up to its next place. At `NOW` none waits. Raises what a function, its work or `at` raises, with
    all others ended."""
    _few_heaps()
    runners = [_Runner(function) for function in functions]
    try:
        for runner in runners:
            runner.go_on()
        while waiting := [runner for runner in runners if not runner.over]:
            place = min((runner.place for runner in waiting), key=order)
            with at(place):
                for runner in waiting:
                    if runner.place == place and runner.work is not None:
                        runner.result, runner.work = runner.work(), None
                        runner.go_on()
    finally:
        for runner in runners:
            runner.end()


def in_conductor(meet: Meet, module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """module(x), and its gradient to x, in the thread of whoever runs the functions: BLAS libraries keep buffers for
    every thread that multiplies large matrices, for as long as it lives. The module's own parameters take none."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(torch.Tensor, _Linear.apply(x, module, meet))
    return cast(torch.Tensor, meet(NOW, partial(_product, module, x)))


@torch.no_grad()
def _product(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(x, module.weight, module.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: nn.Linear, meet: Meet) -> torch.Tensor:
        ctx.module, ctx.meet = module, meet
        return cast(torch.Tensor, meet(NOW, partial(_product, module, x)))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        [g] = gradients
        return ctx.meet(NOW, partial(torch.matmul, g, ctx.module.weight.detach())), None, None


@contextmanager
def heavy_in_conductor(model: nn.Module, meet_of: Callable[[], Meet | None]) -> Iterator[None]:
    """While it lasts, the large linear layers of a model that are no part of its blocks are multiplied with by
    `in_conductor`; meet_of() is that of the thread that asks, None of one that is none of the functions'."""

    def forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        meet = meet_of()
        return nn.functional.linear(x, module.weight, module.bias) if meet is None else in_conductor(meet, module, x)

    found = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and not module.weight.is_meta and module.weight.numel() >= HEAVY
    ]
    for module in found:
        module.forward = partial(forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in found:
            del module.forward
