"""A dense model held in memory, to measure by forward passes alone what replacing weights does to it.

The output of every block is recorded once; when one weight has changed since, the blocks that run before its own answer
from the record, which halves the work of a sensitivity measurement (docs/methods.md, "Allocation"). Where that does not
give what a full pass gives, every pass is a full one.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from karipap_core.models import running
from karipap_core.models.empty import explained
from karipap_core.models.pictures import Shown
from karipap_core.plan.outputs import Batch, Change, Measured, divergence, in_batches, lost, put_out, tokens_in

MOST = 2 << 30  # bytes of dense outputs that are kept where they cannot be made again
RECORD = 256 << 20  # bytes of outputs of blocks that are recorded; of more, only the last block's
ALIKE = 1e-5  # relative difference of outputs that rounding makes


class Probe:
    """Measures a model on fixed windows against its own dense self.

    model: a dense transformers model (eval, float32), changed through `replace` and restored by `restore`;
    windows: token ids (count, window); images: what a model that sees is measured on besides. The dense outputs take
    count · window · vocabulary · 4 bytes: where that is more than `memory_bytes` they are made again from what the last
    block put out, and where they cannot, windows are dropped until they fit into `MOST`.
    """

    together = 1  # weights that are best measured at once

    def __init__(
        self, model, checkpoint, windows: torch.Tensor, memory_bytes: int = 256 << 20, images: Sequence[Shown] = ()
    ) -> None:
        from karipap_core.models.sites import sites

        self.model, self.predicts = model, running.predicts(model)
        self.device = next(model.parameters()).device
        config = model.config.get_text_config()
        width = config.vocab_size if self.predicts else config.hidden_size
        self.sites = sites(model, checkpoint, tables=True)
        self._block_of = _blocks(self.sites, checkpoint)
        self._reference: list[torch.Tensor | None] = []
        self._last: list[object] = []  # what the last block of the dense model puts out, to make references of
        self._originals: dict[str, torch.Tensor] = {}  # weights outside the blocks, which references are made with
        self._again = False  # whether a block ran twice in a pass
        self._scale = 1.0
        self._stack: dict[str, contextlib.ExitStack] = {}
        self._slim = False
        if 4 * width * windows.numel() > memory_bytes:
            self._slim = self.predicts and self._made_again(windows[:1])
            windows = windows if self._slim else windows[: max(1, MOST // (4 * width * windows.shape[1]))]
        self.windows = windows
        self.batches: list[Batch] = in_batches(windows, images, width)
        self._outputs: list[dict[str, object]] = [{} for _ in self.batches]  # of blocks by path, as they run
        blocks = len(set(self._block_of.values()))
        self._recorded = 4 * getattr(config, "hidden_size", width) * windows.numel() * blocks <= RECORD
        self.dense = self.record()
        if not (self._recorded and self._replays_hold()):
            self._outputs = [{} for _ in self.batches]
            self._recorded = False

    @property
    def tokens(self) -> int:
        return sum(map(tokens_in, self.batches))

    @property
    def replays(self) -> bool:
        """Whether blocks answer from the record."""
        return self._recorded

    def replace(self, name: str, matrix: torch.Tensor) -> None:
        """Put `matrix` (out, in) in the place of a weight until `restore`."""
        self.restore(name)
        stack = contextlib.ExitStack()
        if name not in self._block_of:
            self._originals[name] = self.sites[name].module.weight.data
            stack.callback(self._originals.pop, name)
        stack.enter_context(self.sites[name].replaced(matrix))
        self._stack[name] = stack

    def restore(self, name: str | None = None) -> None:
        """Make one weight dense again, or all of them."""
        for key in [name] if name else list(self._stack):
            if key in self._stack:
                self._stack.pop(key).close()

    def record(self) -> Measured:
        """Measure the model as it is now and keep the output of every block."""
        return self._run(recording=True)

    def measure(self, changed: Sequence[str] = ()) -> Measured:
        """Measure the model; where `changed` names all weights that are others than they were at the last `record`,
        blocks that run before theirs answer from there."""
        return self._run(changed=changed)

    def measured(self, changes: Sequence[Change]) -> list[Measured]:
        """Measure the dense model with the matrices of each of `changes` in the place of its own; dense behind."""
        found = []
        for change in changes:
            self._put(change)
            found.append(self.measure(list(change)))
        self.restore()
        return found

    def _put(self, change: Change) -> None:
        """The dense model with these matrices in the place of its own, until `restore`."""
        self.restore()
        for name, matrix in change.items():
            self.replace(name, matrix())

    @torch.no_grad()
    def watched(self, on_input: Callable[[str, torch.Tensor], None]) -> None:
        """Run the model as it is, one window after the other, and tell what each weight is given (`sites.observe`)."""
        from karipap_core.models.sites import observe

        with observe(self.sites, on_input):
            for batch in self.batches:
                for part in [batch] if isinstance(batch, Shown) else batch.split(1):
                    put_out(self.model, part, self.device)

    def gradients(self, on_gradient: Callable[[str, torch.Tensor], None]) -> None:
        """Run the dense model forwards and backwards over everything and tell what comes back to each weight."""
        from karipap_core.models.sites import observe
        from karipap_core.profiles.activations import gradients_flow, sampled_loss, sampled_loss_of_image

        generator = torch.Generator().manual_seed(0)
        told = explained(f"{type(self.model).__name__} gives no gradients on the calibration text")
        with told, gradients_flow(self.model), observe(self.sites, None, on_gradient):
            for batch in self.batches:
                if isinstance(batch, Shown):
                    sampled_loss_of_image(self.model, batch, generator).backward()
                else:
                    sampled_loss(self.model, batch.to(self.device), generator).backward()
                self.model.zero_grad(set_to_none=True)

    def slopes(self, tell: Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor], None]) -> None:
        """Run the model as it is forwards and twice backwards, one window after the other, and tell of each weight the
        x (tokens, in) that it is given and two gradients (tokens, out) at what it puts out: of the divergence from the
        dense model, summed over the window, and of the log-likelihood of labels that the model itself draws."""
        from karipap_core.models.sites import observe
        from karipap_core.profiles.activations import gradients_flow

        generator = torch.Generator().manual_seed(0)
        inputs: dict[str, list[torch.Tensor]] = defaultdict(list)
        gradients: dict[str, list[torch.Tensor]] = defaultdict(list)
        with (
            gradients_flow(self.model),
            observe(self.sites, lambda name, x: inputs[name].append(x), lambda name, g: gradients[name].append(g)),
        ):
            for index, batch in enumerate(self.batches):
                with torch.no_grad():
                    wanted = self._dense(index)
                inputs.clear()  # of what the dense model was run on
                parts = (
                    [(batch, wanted)] if isinstance(batch, Shown) else zip(batch.split(1), wanted.split(1), strict=True)
                )
                for part, reference in parts:
                    with torch.enable_grad():
                        output = put_out(self.model, part, self.device)
                        self._summed(reference, output).backward(retain_graph=True)
                        first = {name: each.copy() for name, each in gradients.items()}
                        gradients.clear()
                        self._drawn(output, generator).backward()
                    self.model.zero_grad(set_to_none=True)
                    for name, found in gradients.items():
                        # A weight that is used twice has its gradients come back in the other order.
                        for x, one, two in zip(inputs[name], reversed(first[name]), reversed(found), strict=True):
                            tell(name, x, one, two)
                    inputs.clear()
                    gradients.clear()

    def _summed(self, reference: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The divergence of outputs from the dense ones, summed over the tokens."""
        if self.predicts:
            return torch.nn.functional.kl_div(output, reference, reduction="sum", log_target=True)
        return (output - reference).square().sum() / self._scale

    def _drawn(self, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """What gives the true Fisher by its gradients (`activations.sampled_loss`)."""
        from karipap_core.profiles.activations import drawn

        if self.predicts:
            rows = output.flatten(0, -2)
            return torch.nn.functional.nll_loss(rows, drawn(rows.detach(), generator), reduction="sum")
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        return (output * noise).sum() * (2.0 / self._scale) ** 0.5

    @torch.no_grad()
    def differs(self, change: Change) -> bool:
        """Whether the model puts out something else than the dense one with these matrices in the place of its own."""
        self._put(change)
        try:
            return not all(
                _alike(put_out(self.model, batch, self.device), self._dense(index))
                for index, batch in enumerate(self.batches)
            )
        finally:
            self.restore()

    @torch.no_grad()
    def _run(self, recording: bool = False, changed: Sequence[str] = ()) -> Measured:
        apart = loss = 0.0
        first = not self._reference
        predicted = 0
        for index, batch in enumerate(self.batches):
            found: dict[str, object] = self._outputs[index] if self._recorded else {}
            with self._patched(found, recording and (first or self._recorded), changed):
                output = put_out(self.model, batch, self.device)
            if first:
                slim = self._slim and not isinstance(batch, Shown)
                self._reference.append(None if slim else output)
                self._last.append(list(found.values())[-1] if slim else None)
                if not self.predicts:
                    every = [r.flatten(0, -2) for r in self._reference if r is not None]
                    self._scale = float(torch.cat(every).square().sum(-1).mean())
            else:
                apart += divergence(self._dense(index), output, self.predicts) / self._scale
            if self.predicts:
                nats, count = lost(batch, output)
                loss, predicted = loss + nats, predicted + count
        return Measured(apart / self.tokens, loss / max(1, predicted))

    def _dense(self, index: int) -> torch.Tensor:
        """What the dense model puts out for a batch: kept, or made of what its last block put out, which all blocks
        then answer with, so that only what is behind them runs."""
        if (kept := self._reference[index]) is not None:
            return kept
        with self._answering(self._last[index]):
            return put_out(self.model, self.batches[index], self.device)

    @contextlib.contextmanager
    def _answering(self, output: object) -> Iterator[None]:
        """While it lasts, every block answers with this."""
        with contextlib.ExitStack() as undo:
            for path in set(self._block_of.values()):
                block = self.model.get_submodule(path)
                block.forward = _replay(output)
                undo.callback(delattr, block, "forward")
            for name, original in self._originals.items():
                weight = self.sites[name].module.weight
                undo.callback(setattr, weight, "data", weight.data)
                weight.data = original
            yield

    @torch.no_grad()
    def _made_again(self, window: torch.Tensor) -> bool:
        """Whether the model's outputs follow from those of its last block: tried on a window."""
        found: dict[str, object] = {}
        with self._patched(found, True, ()):
            wanted = put_out(self.model, window, self.device)
        if self._again or len(found) < len(set(self._block_of.values())):
            return False
        try:
            with self._answering(list(found.values())[-1]):
                return _alike(put_out(self.model, window, self.device), wanted)
        except Exception:  # of whatever class: models differ in what they miss of blocks that did not run
            return False

    @contextlib.contextmanager
    def _patched(self, outputs: dict[str, object], recording: bool, changed: Sequence[str]) -> Iterator[None]:
        """While it lasts, blocks write their outputs to `outputs`, or those that run before the weights `changed`
        answer from there."""
        with contextlib.ExitStack() as undo:
            if recording:
                outputs.clear()
                for path in set(self._block_of.values()):
                    hook = partial(self._note, outputs, path)
                    undo.callback(self.model.get_submodule(path).register_forward_hook(hook).remove)
            elif self._recorded and changed and all(name in self._block_of for name in changed):
                order = list(outputs)  # a block that this batch does not run comes after all
                places = [order.index(path) for name in changed if (path := self._block_of[name]) in order]
                for path in order[: min(places, default=None)]:
                    block = self.model.get_submodule(path)
                    block.forward = _replay(outputs[path])
                    undo.callback(delattr, block, "forward")
            yield

    def _note(self, outputs: dict[str, object], path: str, module, inputs, output) -> None:
        self._again = self._again or path in outputs
        outputs[path] = output

    @torch.no_grad()
    def _replays_hold(self) -> bool:
        """Whether a pass in which blocks answer from the record gives what a full one does: tried on the first windows
        and the first image.

        Blocks that run twice in a pass, or hand on more than what they return (keys and values for later blocks to
        share), do not.
        """
        kinds = [type(batch) for batch in self.batches]
        return not self._again and all(self._replay_holds(kinds.index(kind)) for kind in dict.fromkeys(kinds))

    def _replay_holds(self, index: int) -> bool:
        """The same for one batch: with another weight in the middle of the blocks and then, dense again, with all but
        the last block answering."""
        batch, outputs = self.batches[index], self._outputs[index]
        members = {path: name for name, path in self._block_of.items() if path in outputs}
        order = list(outputs)
        if len(order) < 2:
            return False

        def answered(name: str) -> torch.Tensor:
            with self._patched(outputs, False, [name]):
                return put_out(self.model, batch, self.device)

        middle, last = members[order[len(order) // 2]], members[order[-1]]
        try:
            self.replace(middle, 0.5 * self.sites[middle].get())
            changed = _alike(answered(middle), put_out(self.model, batch, self.device))
            self.restore(middle)
            return changed and _alike(answered(last), self._dense(index))
        except Exception:  # of whatever class: models differ in what they miss of a block that did not run
            return False
        finally:
            self.restore()


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).norm() <= ALIKE * other.norm())


def _replay(output):
    return lambda *args, **kwargs: output


def _blocks(sites, checkpoint) -> dict[str, str]:
    """The path of the block that each weight is in: that of its site up to the layer's number."""
    blocks: dict[str, str] = {}
    for site in sites.values():
        layer = checkpoint.weight(site.name).layer
        parts = site.path.split(".")
        if layer is not None and str(layer) in parts:
            blocks[site.name] = ".".join(parts[: parts.index(str(layer)) + 1])
    return blocks
