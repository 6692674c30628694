"""A dense model held in memory, to measure by forward passes alone what replacing weights does to it.

The output of every block is recorded once; when only weights from layer ℓ on have changed since, the blocks before ℓ
answer from the record, which halves the work of a sensitivity measurement (docs/methods.md, "Allocation").
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from karipap_core.errors import InputError
from karipap_core.models import running

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Measured:
    """divergence: mean over tokens of KL(dense ‖ model) in nats (causal), or of the squared output error relative to
    the mean squared output (encoder); loss: mean negative log-likelihood in nats a token (causal), else 0."""

    divergence: float
    loss: float


class Probe:
    """Measures a model on fixed windows against its own dense self.

    model: a dense transformers model (eval, float32), changed through `replace` and restored by `restore`;
    windows: token ids (count, window). The dense outputs are kept: count · window · vocabulary · 4 bytes, so windows
    are dropped until they fit into `memory_bytes`.
    """

    def __init__(self, model, checkpoint, windows: torch.Tensor, memory_bytes: int = 2 << 30) -> None:
        from karipap_core.models.sites import sites

        self.model, self.predicts = model, running.predicts(model)
        self.device = next(model.parameters()).device
        config = model.config.get_text_config()
        width = config.vocab_size if self.predicts else config.hidden_size
        fitting = max(1, memory_bytes // (4 * width * windows.shape[1]))
        self.windows = windows[:fitting]
        self.batches = self.windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
        self.sites = sites(model, checkpoint, tables=True)
        self.blocks = _blocks(model, self.sites, checkpoint)
        self._reference: list[torch.Tensor] = []
        self._outputs: list[dict[int, object]] = [{} for _ in self.batches]
        self._scale = 1.0
        self._stack: dict[str, contextlib.ExitStack] = {}
        self.dense = self.record()

    @property
    def tokens(self) -> int:
        return self.windows.numel()

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

    def measure(self, layer: int | None = None) -> Measured:
        """Measure the model; with `layer`, blocks before it answer from the record."""
        return self._run(layer=layer)

    @torch.no_grad()
    def _run(self, recording: bool = False, layer: int | None = None) -> Measured:
        divergence = loss = 0.0
        first = not self._reference
        for index, rows in enumerate(self.batches):
            with self._patched(self._outputs[index], recording, layer):
                output = self._forward(rows.to(self.device))
            if first:
                self._reference.append(output)
                if not self.predicts:
                    self._scale = float(torch.cat([r.flatten(0, -2) for r in self._reference]).square().sum(-1).mean())
            else:
                divergence += self._divergence(self._reference[index], output)
            if self.predicts:
                labels = rows[:, 1:].to(self.device).flatten()
                loss += float(torch.nn.functional.nll_loss(output[:, :-1].flatten(0, 1), labels, reduction="sum"))
        predicted = self.windows.shape[0] * (self.windows.shape[1] - 1)
        result = Measured(divergence / self.tokens, loss / predicted)
        if not (abs(result.divergence) < float("inf") and abs(result.loss) < float("inf")):
            raise InputError("The model's outputs are not finite: a replaced weight overflows.")
        return result

    def _forward(self, rows: torch.Tensor) -> torch.Tensor:
        output = running.output(self.model, rows).float()
        return output.log_softmax(-1) if self.predicts else output

    def _divergence(self, reference: torch.Tensor, output: torch.Tensor) -> float:
        if self.predicts:
            # Row by row in float32, summed in float64: a KL of 1e-6 nats is still told from 0.
            terms = torch.nn.functional.kl_div(output, reference, reduction="none", log_target=True).sum(-1)
            return float(terms.double().sum().clamp_min(0))
        return float((output - reference).square().sum(-1).double().sum() / self._scale)

    @contextlib.contextmanager
    def _patched(self, outputs: dict[int, object], recording: bool, layer: int | None) -> Iterator[None]:
        """While it lasts, blocks write their outputs to `outputs`, or those before `layer` answer from there."""
        with contextlib.ExitStack() as undo:
            for number, block in self.blocks.items():
                if recording:
                    undo.callback(block.register_forward_hook(_recorder(outputs, number)).remove)
                elif layer is not None and number < layer and number in outputs:
                    block.forward = _replay(outputs[number])
                    undo.callback(delattr, block, "forward")
            yield


def _recorder(outputs: dict[int, object], number: int):
    def hook(module, inputs, output):
        outputs[number] = output

    return hook


def _replay(output):
    return lambda *args, **kwargs: output


def _blocks(model, sites, checkpoint) -> dict[int, torch.nn.Module]:
    """The module of every layer: the shortest path of a site that ends in the layer's number; none where one module
    serves several layers, or where the numbers do not say in which order they run."""
    blocks: dict[int, torch.nn.Module] = {}
    for site in sites.values():
        layer = checkpoint.weight(site.name).layer
        parts = site.path.split(".")
        if layer is None or str(layer) not in parts:
            continue
        path = ".".join(parts[: parts.index(str(layer)) + 1])
        block = model.get_submodule(path)
        if blocks.setdefault(layer, block) is not block:
            return {}  # two stacks of layers (an encoder and a decoder): the record would mix them up
    return blocks
