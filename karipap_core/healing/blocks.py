"""Healing block by block: the scales and factors of a block learn to give, behind what is compressed and healed before
it, what the dense block gives behind the dense model.

Windows of the text go through the model side by side and meet at every block (models/abreast.py): dense, and behind the
healed blocks. Some are kept for validation and go through it a third time, behind the blocks as they came in. At a
block its numbers are trained by Adam on the mean over tokens of ‖ŷ − y‖² / ‖y‖², y what the dense block puts out and ŷ
what the compressed one does. The state with the least error on the validation windows, of the numbers as they would be
stored, is kept, the incoming one among them. In memory are one block, dense and compressed, and of every window what
stands before it.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.healing.loop import schedule
from karipap_core.healing.scales import Moving
from karipap_core.healing.settings import ScaleSettings
from karipap_core.models.abreast import Waiting
from karipap_core.models.sites import sites
from karipap_core.models.streamed import Streamed, give_back
from karipap_core.models.structure import taken_apart
from karipap_core.plan.outputs import divergence, in_batches, lost, put_out, tokens_in
from karipap_core.progress import Progress, silent

DENSE, HEALED, BEFORE = range(3)  # how a batch goes through the model
Matrices = Mapping[str, torch.Tensor]
Weights = Callable[..., Moving | None]


@dataclass
class Block:
    """What came of one block: its error on the validation windows (see `off`) before and after, the step size
    (None: the block kept its numbers), how many numbers could move, and the new ones of each weight by their names on
    disk."""

    path: str
    before: float
    after: float
    rate: float | None
    steps: int
    trained: int
    seconds: float
    stored: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


@dataclass
class Judged:
    """The whole model on the validation windows: loss in nats a token of the dense model, of the folder as it came in
    and healed; KL(dense ‖ model) of the latter two; how many tokens were predicted."""

    dense: float
    before: float
    healed: float
    kl_before: float
    kl_healed: float
    tokens: int


class BlockHealing(Waiting):
    """See the module. dense: the checkpoint that the folder was made from; moving: gives `Moving` of a weight by its
    name, with new numbers in the place of some where there are any, or None where its plan leaves it as it is; untied:
    paths of heads that are no longer the embedding's table; known and keep: a block's outcome that an earlier run kept,
    and how one is kept."""

    def __init__(
        self,
        dense: Checkpoint,
        streamed: Streamed,
        windows: tuple[torch.Tensor, torch.Tensor],
        moving: Weights,
        settings: ScaleSettings,
        untied: Sequence[str] = (),
        known: Callable[[str], Block | None] = lambda path: None,
        keep: Callable[[Block], None] = lambda block: None,
        progress: Progress = silent,
    ) -> None:
        super().__init__(streamed)
        self.settings, self.moving, self.known, self.keep, self.tell = settings, moving, known, keep, progress
        width = streamed.model.config.get_text_config().vocab_size
        learnt, kept = (in_batches(each, (), width) for each in windows)
        self.batches = [*learnt, *kept]
        self.learnt, self.kept = range(len(learnt)), range(len(learnt), len(self.batches))
        ways = {**dict.fromkeys(self.learnt, (DENSE, HEALED)), **dict.fromkeys(self.kept, (DENSE, HEALED, BEFORE))}
        self.pairs = [(index, way) for index, ways in ways.items() for way in ways]
        self.numbers = {pair: number for number, pair in enumerate(self.pairs)}
        self.blocks: dict[str, Block] = {}
        self.matrices: list[Matrices] = [{}, {}, {}]  # of the block that is passed, by the way of passing
        apart = [weight for weight in dense.weights if streamed.home_of(weight, streamed.blocks) is None]
        found = sites(streamed.model, dense, tables=True, among=apart)
        for head in untied:
            module = streamed.model.get_submodule(head)
            table = module.get_parameter("weight").detach().clone()
            module.register_parameter("weight", nn.Parameter(table, requires_grad=False))
        self.outside = {name: (site, site.get()) for name, site in found.items()}
        self.fixed = {name: made.matrix().detach() for name in found if (made := moving(name)) is not None}
        self.references: dict[int, torch.Tensor] = {}  # what the dense model puts out for a batch
        self.nats, self.apart, self.counted = [0.0] * 3, [0.0] * 3, 0

    @torch.no_grad()
    def heal(self) -> tuple[list[Block], Judged]:
        """The blocks in the order in which they are run, and the whole."""
        self.run([partial(self._one, index, way) for index, way in self.pairs])
        give_back()
        tokens, count = sum(tokens_in(self.batches[index]) for index in self.kept), max(1, self.counted)
        dense, healed, before = (nats / count for nats in self.nats)
        kl = [apart / tokens for apart in self.apart]
        return list(self.blocks.values()), Judged(dense, before, healed, kl[BEFORE], kl[HEALED], self.counted)

    def _one(self, index: int, way: int, model: Any) -> None:
        batch = self.batches[index]
        output = put_out(model, batch, self.streamed.device)
        if index in self.learnt:
            return
        nats, count = lost(batch, output)
        self.nats[way] += nats if math.isfinite(nats) else math.inf
        if way == DENSE:
            self.references[index], self.counted = output, self.counted + count
            return
        self.apart[way] += divergence(self.references[index], output, predicts=True)
        if way == BEFORE:  # the last one
            del self.references[index]

    # At a block; see `Abreast`.

    @contextmanager
    def within(self, number: int) -> Iterator[None]:
        """With what is compressed outside the blocks."""
        with ExitStack() as own:
            for name, matrix in self.fixed.items() if self.pairs[number][1] != DENSE else ():
                own.enter_context(self.outside[name][0].replaced(matrix))
            yield

    @contextmanager
    def aside(self, number: int) -> Iterator[None]:
        """With the dense model's weights outside the blocks again."""
        with ExitStack() as own:
            for name in self.fixed if self.pairs[number][1] != DENSE else ():
                site, dense = self.outside[name]
                own.enter_context(site.replaced(dense))
            yield

    @contextmanager
    def block(self, path: str, place: int, places: int) -> Iterator[None]:
        self.tell("heal", place, places, path)
        _, within = self.streamed.block(path)
        weights = {name: made for name in within if (made := self.moving(name)) is not None}
        incoming = {name: made.matrix().detach() for name, made in weights.items()}
        if path not in self.blocks:
            if (found := self.known(path)) is None:
                self.keep(found := self._healed(path, weights, incoming))
            self.blocks[path] = found
            said = f"error {found.before:.4g}, healed {found.after:.4g}"
            self.tell("heal", place + 1, places, path, said)
        new = self.blocks[path].stored
        healed = {name: made.matrix() for name in new if (made := self.moving(name, new[name])) is not None}
        self.matrices = [{}, incoming | healed, incoming]
        yield
        self.matrices = [{}, {}, {}]

    def passes(self, path: str, number: int, args: Any, kwargs: Any) -> Any:
        return self._through(path, self.matrices[self.pairs[number][1]], args, kwargs)

    def _through(self, path: str, matrices: Matrices, args: Any, kwargs: Any) -> Any:
        """What the block returns with these matrices in the place of its own."""
        module, within = self.streamed.block(path)
        own = {
            f"{within[name].path.removeprefix(f'{path}.')}.weight": W.T
            if isinstance(within[name].module, Conv1D)
            else W
            for name, W in matrices.items()
        }
        return functional_call(module, own, args, kwargs)

    def _output(self, path: str, index: int, way: int, matrices: Matrices) -> list[torch.Tensor]:
        """The numbers that the block puts out."""
        args, kwargs = self.given(self.numbers[index, way])
        tensors, _ = taken_apart(self._through(path, matrices, args, kwargs))
        return [tensor for tensor in tensors if tensor.is_floating_point()]

    # Training a block.

    def _healed(self, path: str, weights: Mapping[str, Moving], incoming: Matrices) -> Block:
        began = time.monotonic()
        targets = [self._output(path, index, DENSE, {}) for index in range(len(self.batches))]
        before = self._error(path, incoming, targets)
        found = Block(path, before, before, None, 0, 0, 0.0)
        moves = [each for made in weights.values() for each in made.moves.values()]
        found.trained = sum(each.numel() for each in moves)
        if moves and before > 0 and math.isfinite(before):
            self._train(found, weights, moves, targets)
        found.seconds = round(time.monotonic() - began, 3)
        return found

    def _train(
        self,
        found: Block,
        weights: Mapping[str, Moving],
        moves: Sequence[torch.Tensor],
        targets: Sequence[list[torch.Tensor]],
    ) -> None:
        """Trains from the incoming numbers; what is better on the validation windows goes into `found`."""
        rate = self.settings.rate
        optimizer = torch.optim.Adam(moves, lr=rate)
        steps = self.settings.passes * len(self.learnt)
        generator = torch.Generator().manual_seed(self.settings.seed)
        for step in range(steps):
            if step % len(self.learnt) == 0:
                order = torch.randperm(len(self.learnt), generator=generator).tolist()
            optimizer.param_groups[0]["lr"] = rate * schedule(step, steps)
            index = order[step % len(self.learnt)]
            with torch.enable_grad():
                matrices = {name: made.matrix() for name, made in weights.items()}
                loss = off(self._output(found.path, index, HEALED, matrices), targets[index]) / found.before
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            found.steps += 1
            if (step + 1) % len(self.learnt):
                continue
            rounded = {name: made.matrix(rounded=True) for name, made in weights.items()}
            error = self._error(found.path, rounded, targets)
            self.tell("block", step + 1, steps, found.path, f"error {error:.4g}")
            if error < found.after:
                found.after, found.rate = error, rate
                found.stored = {name: made.stored() for name, made in weights.items() if made.moves}
            if not math.isfinite(error):
                return

    def _error(self, path: str, matrices: Matrices, targets: Sequence[list[torch.Tensor]]) -> float:
        """Mean error on the validation windows."""
        errors = [off(self._output(path, index, HEALED, matrices), targets[index]).item() for index in self.kept]
        return sum(errors) / len(errors)


def off(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over tokens of ‖ŷ − y‖² / ‖y‖², summed over the tensors that a block puts out (…, width)."""
    total = torch.zeros((), device=targets[0].device)
    for y_hat, y in zip(outputs, targets, strict=True):
        size = y.square().sum(-1).clamp(min=torch.finfo(y.dtype).tiny)
        total = total + ((y_hat - y).square().sum(-1) / size).mean()
    return total
