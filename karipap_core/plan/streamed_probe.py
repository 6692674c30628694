"""A dense model that is read block by block, to measure by one forward pass what replacing weights does to it.

Every batch goes through the model's own forward once for the dense model and once for each change, all of them side by
side: they meet at each block (`lockstep.walk`), the block is read, each passes it with its own weights, and the block
goes. In memory are one block, the matrices that take the place of its weights, and of every batch and change what
stands between two blocks. Up to the first block that a change touches it is the dense model, whose outputs stand for
its own.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.models import running
from karipap_core.models.abreast import Abreast
from karipap_core.models.pictures import Shown
from karipap_core.models.sites import sites
from karipap_core.models.streamed import Streamed, give_back
from karipap_core.models.structure import put_together, taken_apart
from karipap_core.plan.outputs import Batch, Change, Measured, divergence, in_batches, lost, put_out, tokens_in
from karipap_core.progress import Progress, silent

MATRICES = 3 << 30  # bytes of matrices that take the place of the weights of one block, in one pass
BETWEEN = 1 << 30  # bytes of what stands between two blocks, in one pass


class StreamedProbe:
    """Measures changes of a checkpoint's model on fixed windows against its dense self; see `Probe`, whose figures it
    gives. windows: token ids (count, window); images: what a model that sees is measured on besides."""

    together = 64  # weights that are best measured at once: each pass reads the whole model

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: torch.Tensor,
        device: str = "cpu",
        images: Sequence[Shown] = (),
        progress: Progress = silent,
    ) -> None:
        self.checkpoint, self.device, self.progress = checkpoint, device, progress
        self.predicts = checkpoint.predicts
        self.windows, self.images = windows, images
        self._dense: Measured | None = None

    @property
    def tokens(self) -> int:
        """That it measures on."""
        return tokens_in(self.windows) + sum(tokens_in(image) for image in self.images)

    @property
    def dense(self) -> Measured:
        """The dense model, which is run where it has not been yet."""
        if self._dense is None:
            self.measured([])
        assert self._dense is not None
        return self._dense

    def measured(self, changes: Sequence[Change]) -> list[Measured]:
        """Measure the model with the matrices of each of `changes` in the place of its own."""
        found: list[Measured] = []
        parts = list(self._parts(changes)) or [[]]
        for number, part in enumerate(parts):
            self._dense, *rest = [Measured(*each) for each in self._run(part, number, len(parts))]
            found += rest
        return found

    def differs(self, change: Change) -> bool:
        """Whether the model puts out something else than the dense one with these matrices in the place of its own."""
        _, (divergence, _) = self._run([change])
        return divergence != 0  # also where it is no number

    def _run(self, changes: Sequence[Change], part: int = 0, parts: int = 1) -> list[tuple[float, float]]:
        """What `Measured` says of the dense model and of each change, whatever numbers these are."""
        found = _Pass(self, changes, partial(self._tell, part, parts)).go()
        give_back()
        return found

    def _tell(self, part: int, parts: int, done: int, total: int, block: str) -> None:
        self.progress("running block by block", part * total + done, parts * total, block)

    def _parts(self, changes: Sequence[Change]) -> Iterator[list[Change]]:
        """Changes that one pass has room for."""
        width = max((weight.shape[1] for weight in self.checkpoint.weights if weight.compressible), default=1)
        most = max(1, BETWEEN // (4 * self.tokens * width))
        part: list[Change] = []
        for change in changes:
            if part and (len(part) == most or self._heaviest([*part, change]) > MATRICES):
                yield part
                part = []
            part.append(change)
        if part:
            yield part

    def _heaviest(self, changes: Sequence[Change]) -> int:
        """Bytes of the matrices of the block that has most of them."""
        found: Counter[int | None] = Counter()
        for name in (name for change in changes for name in change):
            weight = self.checkpoint.weight(name)
            found[weight.layer] += 4 * weight.parameters
        return max(found.values(), default=0)


class _Pass(Abreast):
    """One pass of a probe's batches for the dense model (change 0) and each of some changes (1, 2, …)."""

    def __init__(self, probe: StreamedProbe, changes: Sequence[Change], tell: Callable[[int, int, str], None]) -> None:
        super().__init__(Streamed(probe.checkpoint, device=probe.device))
        self.probe, self.tell = probe, tell
        self.changes: list[Change] = [{}, *changes]
        model: Any = self.streamed.model
        config = model.config.get_text_config()
        self.predicts = running.predicts(model)
        width = config.vocab_size if self.predicts else config.hidden_size
        self.batches: list[Batch] = in_batches(probe.windows, probe.images, width)
        # The dense model is first at every block and at the end, so that all others find there what it put out.
        self.pairs = list(product(range(len(self.batches)), range(len(self.changes))))
        homes = self._homes()
        self.touched = [{homes[name] for name in change} for change in self.changes]  # blocks of each change
        weights = [probe.checkpoint.weight(name) for name, home in sorted(homes.items()) if home is None]
        self.outside = sites(model, probe.checkpoint, tables=True, among=weights) if weights else {}
        self._dense_outside = {name: site.get() for name, site in self.outside.items()}
        self.begun = {change for change, blocks in enumerate(self.touched) if None in blocks}  # that differ from dense
        self._matrices: dict[tuple[int, str], torch.Tensor] = {}
        self._answers: dict[int, Any] = {}  # what the block puts out for each batch of the dense model
        self._references: dict[int, torch.Tensor] = {}  # what the dense model puts out for each batch
        self._open: Counter[int] = Counter()  # of these batches: changes that are on their way
        self._apart = [0.0] * len(self.changes)
        self._nats = [0.0] * len(self.changes)
        self._predicted = [0] * len(self.changes)
        self._squared = 0.0

    def _homes(self) -> dict[str, str | None]:
        checkpoint, streamed = self.probe.checkpoint, self.streamed
        names = {name for change in self.changes for name in change}
        return {name: streamed.home_of(checkpoint.weight(name), streamed.blocks) for name in names}

    def go(self) -> list[tuple[float, float]]:
        """(divergence, loss) of the dense model and of each change; see `Measured`."""
        self.run([partial(self._one, index, change) for index, change in self.pairs])
        tokens = self.probe.tokens
        scale = 1.0 if self.predicts else self._squared / max(1, tokens)
        return [
            (apart / scale / tokens, nats / max(1, count))
            for apart, nats, count in zip(self._apart, self._nats, self._predicted, strict=True)
        ]

    def _one(self, index: int, change: int, model: Any) -> None:
        self._score(index, change, put_out(model, self.batches[index], self.streamed.device))

    def _score(self, index: int, change: int, output: torch.Tensor) -> None:
        batch = self.batches[index]
        if change == 0:
            self._references[index], self._open[index] = output, len(self.changes)
            self._squared += 0.0 if self.predicts else float(output.square().sum(dtype=torch.float64))
        else:
            self._apart[change] += divergence(self._references[index], output, self.predicts)
        if self.predicts:
            nats, count = lost(batch, output)
            self._nats[change] += nats
            self._predicted[change] += count
        self._open[index] -= 1
        if not self._open[index]:
            del self._references[index]

    # At a block; see `Abreast`.

    def passes(self, path: str, number: int, args: Any, kwargs: Any) -> Any:
        index, change = self.pairs[number]
        if change and change not in self.begun and path not in self.touched[change]:
            return _copied(self._answers[index])
        module, within = self.streamed.block(path)
        with ExitStack() as stack:
            for name in self.changes[change]:
                if name in within:
                    stack.enter_context(within[name].replaced(self._matrix(change, name)))
            found = module(*args, **kwargs)
        later = (other for other, blocks in enumerate(self.touched) if other not in self.begun and path not in blocks)
        if change == 0 and any(later):  # 0 is this one
            self._answers[index] = _copied(found)  # a model may write into what its blocks return
        return found

    @contextmanager
    def within(self, number: int) -> Iterator[None]:
        """With the change's weights outside the blocks."""
        change = self.pairs[number][1]
        with ExitStack() as own:
            for name in self.changes[change]:
                if name in self.outside:
                    own.enter_context(self.outside[name].replaced(self._matrix(change, name)))
            yield

    @contextmanager
    def aside(self, number: int) -> Iterator[None]:
        """With the dense model's weights outside the blocks again."""
        mine = [self.outside[name] for name in self.changes[self.pairs[number][1]] if name in self.outside]
        with ExitStack() as own:
            for site in mine:
                own.enter_context(site.replaced(self._dense_outside[site.name]))
            yield

    @contextmanager
    def block(self, path: str, place: int, places: int) -> Iterator[None]:
        self.tell(place, places, path)
        yield
        self.begun |= {change for change, blocks in enumerate(self.touched) if path in blocks}
        self._answers.clear()
        for key in [key for key in self._matrices if key[1] not in self.outside]:
            del self._matrices[key]

    def _matrix(self, change: int, name: str) -> torch.Tensor:
        if (change, name) not in self._matrices:
            self._matrices[change, name] = self.changes[change][name]()
        return self._matrices[change, name]


def _copied(found: Any) -> Any:
    tensors, structure = taken_apart(found)
    return put_together(iter([tensor.clone() for tensor in tensors]), structure)
