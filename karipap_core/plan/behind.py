"""Weights that are cut behind those that are cut already, in the order in which the model runs them.

Some windows go through the model side by side and meet at every block (abreast.py), where the block's weights are cut
before any window passes it: in memory are one block, what stands before it, and moments of what its weights are given.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from karipap_core.models.abreast import Waiting
from karipap_core.models.sites import Site, observe, until
from karipap_core.models.streamed import Streamed, give_back
from karipap_core.plan.outputs import in_batches, put_out
from karipap_core.plan.residual import residuals
from karipap_core.progress import Progress

WINDOWS = 128  # of the calibration text, that go through the model


@dataclass(frozen=True)
class Behind:
    """Moments of the input of a weight behind cut ones, float64: cross = E[x x̂ᵀ], own = E[x̂ x̂ᵀ], (in, in), and
    lost = E[(s − ŝ) x̂ᵀ], (out, in), s what the block adds W x to; None where it is not seen to."""

    cross: torch.Tensor
    own: torch.Tensor
    lost: torch.Tensor | None = None


class Prefixed(Waiting):
    """Cuts the weights `names`, those outside the blocks first, then block by block; each batch of windows goes in the
    passes that `passes_of_batch` says."""

    passes_of_batch: tuple[bool, ...] = (True,)  # whether each pass of a batch goes behind cut weights

    def __init__(self, study, names: Iterable[str], progress: Progress) -> None:
        super().__init__(Streamed(study.checkpoint, device=study.device))
        self.study, self.names, self.tell = study, list(names), progress
        checkpoint, model = study.checkpoint, self.streamed.model
        config: Any = model.config.get_text_config()
        width = config.vocab_size if checkpoint.predicts else config.hidden_size
        self.batches = in_batches(study.windows.moments[:WINDOWS], (), width)
        self.matrices: dict[str, torch.Tensor] = {}  # Ŵ of the block that is passed
        self.begun = False

    def cut_apart(self, name: str) -> None:
        """Cuts a weight outside the blocks."""
        raise NotImplementedError

    def cut_block(self, module: Any, within: Mapping[str, Site]) -> None:
        """Puts Ŵ of a block's weights into `matrices`."""
        raise NotImplementedError

    def go(self) -> None:
        blocks = self.streamed.blocks
        homes = {each.name: self.streamed.home_of(each, blocks) for each in self.study.checkpoint.weights}
        apart = [name for name in self.names if homes[name] is None]
        for name in apart:
            self.cut_apart(name)
        if len(apart) < len(self.names):
            self.run(
                [partial(self._through, index) for index in range(len(self.batches)) for _ in self.passes_of_batch]
            )
            give_back()

    def _through(self, index: int, model: Any) -> None:
        put_out(model, self.batches[index], self.streamed.device)

    # At a block; see `Abreast`.

    @contextmanager
    def block(self, path: str, place: int, places: int) -> Iterator[None]:
        self.tell("fit", place, places, path)
        module, within = self.streamed.block(path)
        self.matrices = {}
        self.cut_block(module, within)
        self.begun = self.begun or bool(self.matrices)
        yield

    def passes(self, path: str, number: int, args: Any, kwargs: Any) -> Any:
        module, within = self.streamed.block(path)
        with self._as_cut(within) if self._is_cut(number) else ExitStack():
            return module(*args, **kwargs)

    def _is_cut(self, number: int) -> bool:
        return self.passes_of_batch[number % len(self.passes_of_batch)]

    @contextmanager
    def _as_cut(self, within: Mapping[str, Site]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, matrix in self.matrices.items():
                stack.enter_context(within[name].replaced(matrix))
            yield

    def _run(self, module: Any, number: int) -> None:
        """Passes the block once."""
        args, kwargs = self.given(number)
        with torch.no_grad():
            module(*args, **kwargs)


class InTurn(Prefixed):
    """Cuts one weight after the other (those with one input together), each behind all before it; see `ready`,
    `reaches` and `cut`. What a weight is given there is x̂, where the dense model gives it x."""

    passes_of_batch = (False, True)

    def ready(self, name: str) -> torch.Tensor | None:
        """Ŵ (out, in) of a weight that was cut by an earlier run."""
        return None

    def reaches(self, name: str) -> bool:
        """Whether the moments behind cut weights are wanted for a weight: not for an expert, which is given other
        tokens behind others."""
        return self.study.checkpoint.weight(name).expert is None

    def cut(self, name: str, behind: Behind | None) -> torch.Tensor:
        """Cuts a weight and returns Ŵ (out, in). behind: None where nothing before it is cut, or it is not reached."""
        raise NotImplementedError

    def cut_apart(self, name: str) -> None:
        if self.ready(name) is None:
            self.cut(name, None)

    def cut_block(self, module: Any, within: Mapping[str, Site]) -> None:
        for names in self._in_turn(module, within):
            self._cut_together(module, within, names)

    def _in_turn(self, module: Any, within: Mapping[str, Site]) -> list[list[str]]:
        """The block's weights that are to be cut, those with one input together, in the order in which they are used;
        what the first windows do not reach comes last."""
        order: list[list[str]] = []
        inputs: list[torch.Tensor] = []  # kept, so that no other takes their place in memory
        self.times = Counter[str]()

        def seen(name: str, x: torch.Tensor) -> None:
            self.times[name] += 1
            if inputs and (inputs[-1].data_ptr(), inputs[-1].shape) == (x.data_ptr(), x.shape):
                order[-1].append(name)
            else:
                inputs.append(x)
                order.append([name])

        whole = {name: site for name, site in within.items() if self.study.checkpoint.weight(name).expert is None}
        with residuals(module, whole) as self.residuals, observe(dict(within), seen):
            self._run(module, 0)
        used = {name for names in order for name in names}
        order.append([name for name in within if name not in used])
        taken: set[str] = set()
        found = []
        for names in order:
            mine = [name for name in dict.fromkeys(names) if name in self.names and name not in taken]
            taken.update(mine)
            found += [mine] if mine else []
        return found

    def _cut_together(self, module: Any, within: Mapping[str, Site], names: list[str]) -> None:
        """Cuts weights with one input."""
        found = {name: self.ready(name) for name in names}
        free = [name for name in names if found[name] is None and self.reaches(name) and self.times[name] == 1]
        behind = self._moments(module, within, free[0]) if free and (self.begun or self.matrices) else None
        for name in names:
            if (matrix := found[name]) is None:
                mine = behind if name in free else None
                if mine is not None and name != free[0]:  # s is that of the first one
                    mine = replace(mine, lost=None)
                matrix = self.cut(name, mine)
            self.matrices[name] = matrix

    def _moments(self, module: Any, within: Mapping[str, Site], name: str) -> Behind | None:
        """Of the input of a weight; None where it is not given the same tokens in both passes."""
        sums: dict[str, torch.Tensor] = {}
        tokens = 0
        for number in range(0, 2 * len(self.batches), 2):
            dense = self._given(module, within[name], name, number)
            with self._as_cut(within):
                cut = self._given(module, within[name], name, number + 1)
            if dense is None or cut is None or dense[0].shape != cut[0].shape:
                return None
            (x, s), (x_hat, s_hat) = dense, cut
            pairs = {"cross": x, "own": x_hat} | ({} if s is None or s_hat is None else {"lost": s - s_hat})
            for key, left in pairs.items():
                sums[key] = left.T @ x_hat if key not in sums else sums[key].addmm_(left.T, x_hat)
            tokens += len(x)
        return Behind(**{key: each.double().cpu() / tokens for key, each in sums.items()}) if sums else None

    def _given(
        self, module: Any, site: Site, name: str, number: int
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """x (tokens, in) that a weight is given in a pass, and s (tokens, out) of its residual connection; None of a
        pass that does not come to it."""
        xs: list[torch.Tensor] = []
        parts: list[torch.Tensor] = []
        with ExitStack() as stack:
            if (residual := self.residuals.get(name)) is not None:
                parts = stack.enter_context(residual.watched())
            stack.enter_context(until(site, xs.append))
            self._run(module, number)
        if not xs:
            return None
        rows = [part.reshape(-1, part.shape[-1]).float() for part in parts]
        return xs[0].float(), sum(rows[1:], rows[0]) if rows else None
