"""What each weight sees: second moments of its inputs and of the loss gradients at its outputs.

For a weight y = W x, over calibration tokens:  C = E[x xᵀ] (in, in),  G = E[g gᵀ] (out, out), float64, with
g = ∂L/∂y and L the negative log-likelihood of labels sampled from the model itself, summed over the tokens: G is a
factor of the true Fisher matrix (K-FAC, Martens & Grosse 2015), so that ½‖G^{1/2}(W−Ŵ)C^{1/2}‖² estimates the rise in
the mean loss a token. For an encoder, which has no likelihood, L = ½‖h − v‖² of unit Gaussian v around the last hidden
state h, scaled by E‖h‖²: the same estimate, of the relative output error.

Here are the texts' windows and the losses; blockpass.py goes over the blocks, moments.py keeps what it finds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.errors import InputError
from karipap_core.images import FEWEST
from karipap_core.models import running
from karipap_core.models.pictures import Shown, shown
from karipap_core.text import Text


@dataclass(frozen=True)
class CalibrationSettings:
    """How much text is looked at. Windows are spread evenly over the text; the three uses share no window.

    tokens: for the moments; window: tokens seen together; probe_windows: to measure what truncating a weight does;
    check_windows: to choose between whole plans; damping: of C and G, relative to their mean diagonal.
    """

    tokens: int = 32768
    window: int = 256
    probe_windows: int = 24
    check_windows: int = 24
    damping: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Windows:
    """Token windows (count, window) for the three uses, and how many tokens the text holds."""

    moments: torch.Tensor
    probe: torch.Tensor
    check: torch.Tensor
    available: int


def calibration_windows(tokenizer, text: Text, settings: CalibrationSettings, vocabulary: int) -> Windows:
    """Cut a text into windows and deal them out: of every few windows in a row one is for probing, one for checking.

    Raises InputError when the text is shorter than three windows.
    """
    from karipap_core.evaluation.tokens import encode
    from karipap_core.evaluation.wrong_text import check_known

    ids = encode(tokenizer, text, vocabulary)
    check_known(tokenizer, ids, text.name)
    if len(ids) and int(ids.max()) >= vocabulary:
        raise InputError(f"The tokenizer gives id {int(ids.max())}, the model knows {vocabulary}: wrong tokenizer.")
    count = len(ids) // settings.window
    if count < 3:
        raise InputError(
            f"{text.name} has {len(ids)} tokens; calibration needs at least {3 * settings.window}: use a longer text."
        )
    every = ids[: count * settings.window].reshape(count, settings.window)
    third = max(1, count // 3)
    probe_count, check_count = min(settings.probe_windows, third), min(settings.check_windows, third)
    moment_count = min(max(1, settings.tokens // settings.window), count - probe_count - check_count)
    used = probe_count + check_count + moment_count
    picked = torch.linspace(0, count - 1, used).round().long()
    order = torch.arange(used)
    probe = torch.linspace(0, used - 1, probe_count).round().long()
    rest = order[~torch.isin(order, probe)]
    check = rest[torch.linspace(0, len(rest) - 1, check_count).round().long()]
    moments = rest[~torch.isin(rest, check)]
    return Windows(every[picked[moments]], every[picked[probe]], every[picked[check]], len(ids))


@dataclass(frozen=True)
class SeenImages:
    """The images of a calibration for the three uses, which share none."""

    moments: list[Shown]
    probe: list[Shown]
    check: list[Shown]


def calibration_images(model, checkpoint: Checkpoint, text: Text) -> SeenImages:
    """The images that come with a text, as the model takes them. Raises InputError for fewer than `FEWEST`, for a model
    that predicts no tokens, and where there is no processor for them."""
    if text.images is None:
        return SeenImages([], [], [])
    if len(text.images.files) < FEWEST:
        raise InputError(
            f"Folder {text.images.path} gives {len(text.images.files)} images to calibrate on: at least {FEWEST} are "
            "needed, one for each use."
        )
    found = shown(model, checkpoint, text.images)
    return SeenImages(found[::3], found[1::3], found[2::3])


@contextmanager
def gradients_flow(model) -> Iterator[None]:
    """Within the context gradients flow through every block, and no parameter but the table of tokens keeps one."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)


def sampled_loss(model, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The scalar whose gradients give the true Fisher: −Σ ln p(label) with labels drawn from p (causal), or the
    Gaussian counterpart Σ hᵀv / E‖h‖·√(2) of the last hidden state (encoder)."""
    from karipap_core.models.load import check_outputs

    if running.predicts(model):
        logits = running.logits(model, rows).float()
        check_outputs(logits, type(model).__name__)
        labels = drawn(logits.detach().flatten(0, 1), generator)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
    hidden = running.states(model, rows).float()
    check_outputs(hidden, type(model).__name__)
    noise = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    # ½ vᵀ G v must be the relative squared error ‖Δh‖²/E‖h‖², so g carries √2.
    return (hidden * noise).sum() * (2.0 / hidden.detach().square().sum(-1).mean()).sqrt()


def sampled_loss_of_image(model, image: Shown, generator: torch.Generator) -> torch.Tensor:
    """The same of the text behind an image. Gradients begin at the pixels, so that they flow through all that sees."""
    from karipap_core.models.load import check_outputs

    more = {
        name: value.clone().requires_grad_() if value.is_floating_point() else value
        for name, value in image.more.items()
    }
    logits = running.logits(model, image.ids.to(model.device), more)[0, image.before.to(model.device)].float()
    check_outputs(logits, type(model).__name__)
    labels = drawn(logits.detach(), generator)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A label (rows,) from the distribution that each row of logits (rows, vocabulary) stands for: where its cumulative
    sum passes a number drawn between 0 and 1, which takes one number a row."""
    sums = logits.softmax(-1).cumsum(-1)
    level = torch.rand(len(logits), 1, generator=generator).to(logits.device) * sums[:, -1:]
    return torch.searchsorted(sums, level).clamp_(max=logits.shape[-1] - 1)[:, 0]
