"""What a model puts out on windows of tokens and on images, and how far that is from what its dense self puts out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from karipap_core.errors import InputError
from karipap_core.models import running
from karipap_core.models.empty import explained
from karipap_core.models.pictures import Shown

BATCH_TOKENS = 2048
LOGITS = 1 << 23  # numbers that a batch of several windows puts out at most, of which there are several copies
Batch = torch.Tensor | Shown
Change = Mapping[str, Callable[[], torch.Tensor]]  # weights, and what makes the matrix (out, in) in the place of each


@dataclass(frozen=True)
class Measured:
    """divergence: mean over tokens of KL(dense ‖ model) in nats (causal), or of the squared output error relative to
    the mean squared output (encoder); loss: mean negative log-likelihood in nats a token (causal), else 0."""

    divergence: float
    loss: float

    def __post_init__(self) -> None:
        if not (abs(self.divergence) < float("inf") and abs(self.loss) < float("inf")):
            raise InputError("The model's outputs are not finite: a replaced weight overflows.")


def in_batches(windows: torch.Tensor, images: Sequence[Shown], width: int) -> list[Batch]:
    """Windows (count, window) and images as they go through a model that puts out `width` numbers for a token."""
    rows = max(1, min(BATCH_TOKENS, LOGITS // width) // windows.shape[1])
    return [*windows.split(rows), *images]


def tokens_in(batch: Batch) -> int:
    """Tokens that a batch is measured on."""
    return len(batch.targets) if isinstance(batch, Shown) else batch.numel()


def put_out(model, batch: Batch, device: str | torch.device) -> torch.Tensor:
    """log p (rows, n, vocabulary) of windows, (scored, vocabulary) of an image's text; an encoder's states."""
    with explained(f"{type(model).__name__} cannot be run on the calibration text"):
        if isinstance(batch, Shown):
            found = running.logits(model, batch.ids.to(device), batch.more)
            return found[0, batch.before.to(device)].float().log_softmax(-1)
        output = running.output(model, batch.to(device)).float()
    return output.log_softmax(-1) if running.predicts(model) else output


def divergence(reference: torch.Tensor, output: torch.Tensor, predicts: bool) -> float:
    """Σ over tokens of KL(reference ‖ output) of log p, or (`predicts` False) of the squared difference of states."""
    if predicts:
        # Row by row in float32, summed in float64: a KL of 1e-6 nats is still told from 0.
        terms = torch.nn.functional.kl_div(output, reference, reduction="none", log_target=True).sum(-1)
        return float(terms.double().sum().clamp_min(0))
    return float((output - reference).square().sum(-1).double().sum())


def lost(batch: Batch, output: torch.Tensor) -> tuple[float, int]:
    """(Σ −log p of the tokens that come, in nats; how many tokens) of a batch and its log p."""
    labels = batch.targets if isinstance(batch, Shown) else batch[:, 1:].flatten()
    rows = output if isinstance(batch, Shown) else output[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.nll_loss(rows, labels.to(rows.device), reduction="sum")), len(labels)
