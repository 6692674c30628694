"""A dense model held in memory, to measure by forward passes alone what replacing weights does to it.

The output of every block is recorded once; when one weight has changed since, the blocks that run before its own answer
from the record, which halves the work of a sensitivity measurement (docs/methods.md, "Allocation"). Where that does not
give what a full pass gives, every pass is a full one.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from karipap_core.errors import InputError
from karipap_core.models import running
from karipap_core.models.pictures import Shown

BATCH_TOKENS = 2048
ALIKE = 1e-5  # relative difference of outputs that rounding makes


@dataclass(frozen=True)
class Measured:
    """divergence: mean over tokens of KL(dense ‖ model) in nats (causal), or of the squared output error relative to
    the mean squared output (encoder); loss: mean negative log-likelihood in nats a token (causal), else 0."""

    divergence: float
    loss: float


class Probe:
    """Measures a model on fixed windows against its own dense self.

    model: a dense transformers model (eval, float32), changed through `replace` and restored by `restore`;
    windows: token ids (count, window); images: what a model that sees is measured on besides. The dense outputs are
    kept: count · window · vocabulary · 4 bytes, so windows are dropped until they fit into `memory_bytes`.
    """

    def __init__(
        self, model, checkpoint, windows: torch.Tensor, memory_bytes: int = 2 << 30, images: Sequence[Shown] = ()
    ) -> None:
        from karipap_core.models.sites import sites

        self.model, self.predicts = model, running.predicts(model)
        self.device = next(model.parameters()).device
        config = model.config.get_text_config()
        width = config.vocab_size if self.predicts else config.hidden_size
        fitting = max(1, memory_bytes // (4 * width * windows.shape[1]))
        self.windows = windows[:fitting]
        rows = self.windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
        self.batches: list[torch.Tensor | Shown] = [*rows, *images]
        self.sites = sites(model, checkpoint, tables=True)
        self._block_of = _blocks(self.sites, checkpoint)
        self._reference: list[torch.Tensor] = []
        self._outputs: list[dict[str, object]] = [{} for _ in self.batches]  # of blocks by path, as they run
        self._again = False  # whether a block ran twice in a pass
        self._scale = 1.0
        self._stack: dict[str, contextlib.ExitStack] = {}
        self.dense = self.record()
        if not self._replays_hold():
            self._block_of, self._outputs = {}, [{} for _ in self.batches]

    @property
    def tokens(self) -> int:
        return self.windows.numel() + sum(len(batch.targets) for batch in self.batches if isinstance(batch, Shown))

    @property
    def replays(self) -> bool:
        """Whether blocks answer from the record."""
        return bool(self._block_of)

    def replace(self, name: str, matrix: torch.Tensor) -> None:
        """Put `matrix` (out, in) in the place of a weight until `restore`."""
        self.restore(name)
        stack = contextlib.ExitStack()
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

    @torch.no_grad()
    def watched(self, on_input: Callable[[str, torch.Tensor], None]) -> None:
        """Run the model as it is, one window after the other, and tell what each weight is given (`sites.observe`)."""
        from karipap_core.models.sites import observe

        with observe(self.sites, on_input):
            for batch in self.batches:
                for part in [batch] if isinstance(batch, Shown) else batch.split(1):
                    self._forward(part)

    def gradients(self, on_gradient: Callable[[str, torch.Tensor], None]) -> None:
        """Run the dense model forwards and backwards over everything and tell what comes back to each weight."""
        from karipap_core.models.sites import observe
        from karipap_core.profiles.activations import gradients_flow, sampled_loss, sampled_loss_of_image

        generator = torch.Generator().manual_seed(0)
        with gradients_flow(self.model), observe(self.sites, None, on_gradient):
            for batch in self.batches:
                if isinstance(batch, Shown):
                    sampled_loss_of_image(self.model, batch, generator).backward()
                else:
                    sampled_loss(self.model, batch.to(self.device), generator).backward()
                self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def differs(self) -> bool:
        """Whether the model as it is puts out something else than the dense one."""
        pairs = zip(self._reference, self.batches, strict=True)
        return not all(_alike(self._forward(batch), dense) for dense, batch in pairs)

    @torch.no_grad()
    def _run(self, recording: bool = False, changed: Sequence[str] = ()) -> Measured:
        divergence = loss = 0.0
        first = not self._reference
        predicted = 0
        for index, batch in enumerate(self.batches):
            with self._patched(self._outputs[index], recording, changed):
                output = self._forward(batch)
            if first:
                self._reference.append(output)
                if not self.predicts:
                    self._scale = float(torch.cat([r.flatten(0, -2) for r in self._reference]).square().sum(-1).mean())
            else:
                divergence += self._divergence(self._reference[index], output)
            if self.predicts:
                labels = batch.targets if isinstance(batch, Shown) else batch[:, 1:].flatten()
                rows = output if isinstance(batch, Shown) else output[:, :-1].flatten(0, 1)
                loss += float(torch.nn.functional.nll_loss(rows, labels.to(self.device), reduction="sum"))
                predicted += len(labels)
        result = Measured(divergence / self.tokens, loss / max(1, predicted))
        if not (abs(result.divergence) < float("inf") and abs(result.loss) < float("inf")):
            raise InputError("The model's outputs are not finite: a replaced weight overflows.")
        return result

    def _forward(self, batch: torch.Tensor | Shown) -> torch.Tensor:
        """log p (rows, n, vocabulary) of windows, (scored, vocabulary) of an image's text; an encoder's states."""
        if isinstance(batch, Shown):
            found = running.logits(self.model, batch.ids.to(self.device), batch.more)
            return found[0, batch.before.to(self.device)].float().log_softmax(-1)
        output = running.output(self.model, batch.to(self.device)).float()
        return output.log_softmax(-1) if self.predicts else output

    def _divergence(self, reference: torch.Tensor, output: torch.Tensor) -> float:
        if self.predicts:
            # Row by row in float32, summed in float64: a KL of 1e-6 nats is still told from 0.
            terms = torch.nn.functional.kl_div(output, reference, reduction="none", log_target=True).sum(-1)
            return float(terms.double().sum().clamp_min(0))
        return float((output - reference).square().sum(-1).double().sum() / self._scale)

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
            elif changed and all(name in self._block_of for name in changed):
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
                return self._forward(batch)

        middle, last = members[order[len(order) // 2]], members[order[-1]]
        try:
            self.replace(middle, 0.5 * self.sites[middle].get())
            changed = _alike(answered(middle), self._forward(batch))
            self.restore(middle)
            return changed and _alike(answered(last), self._reference[index])
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
