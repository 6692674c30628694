"""What each weight sees: second moments of its inputs and of the loss gradients at its outputs.

For a weight y = W x, over calibration tokens:  C = E[x xᵀ] (in, in),  G = E[g gᵀ] (out, out), float64, with
g = ∂L/∂y and L the negative log-likelihood of labels sampled from the model itself, summed over the tokens: G is a
factor of the true Fisher matrix (K-FAC, Martens & Grosse 2015), so that ½‖G^{1/2}(W−Ŵ)C^{1/2}‖² estimates the rise in
the mean loss a token. For an encoder, which has no likelihood, L = ½‖h − v‖² of unit Gaussian v around the last hidden
state h, scaled by E‖h‖²: the same estimate, of the relative output error.

Moments of a large model do not fit into memory: they are collected for a group of layers at a time, kept in the
workspace, and read again group by group. Consumers go through weights in the order of layers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.errors import InputError
from karipap_core.images import FEWEST
from karipap_core.models import running
from karipap_core.models.pictures import Shown, shown
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric
from karipap_core.text import Text
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_tensors, kept_tensors

ENOUGH = 4  # tokens for each direction of a moment, below which an expert borrows from others


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


class Moments:
    """C and G of every compressible weight, by groups of layers: in memory the last group, on disk those seen before.

    `metric(name, which)` gives the Metric of a weight. Memory: `memory_bytes` bounds a group (float64, 8 bytes an
    entry). Raises InputError for a weight that the model does not have, and for a checkpoint that cannot be run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: Text,
        settings: CalibrationSettings,
        folder: Path,
        device="cpu",
        memory_bytes: int = 4 << 30,
        progress: Progress = silent,
    ) -> None:
        self.checkpoint, self.text, self.settings = checkpoint, text, settings
        self.device, self.progress = device, progress
        key = {"fingerprint": checkpoint.fingerprint, "text": text.sha256, "settings": asdict(settings)}
        self.folder = Path(folder) / settings_key(key)
        if not self.folder.exists():  # before anything is measured that a model which cannot run would leave half done
            from karipap_core.models.load import check

            check(checkpoint)
        self.groups = _groups(checkpoint, memory_bytes)
        self._group_of = {weight.name: index for index, group in enumerate(self.groups) for weight in group}
        self._loaded: int | None = None
        self._tensors: dict[str, torch.Tensor] = {}
        self._keys: dict[str, list[str]] = {}
        self._few: dict[str, int] = {}  # experts' weights that borrow from others, and the tokens that they saw

    def metric(self, name: str, which: str) -> Metric:
        """The Metric of a weight: `weight`, `functional` (C), `loss` (C and G). Weights that share an input share C."""
        if which == "weight":
            return Metric("weight")
        if name not in self._group_of:
            raise InputError(f"Weight {name} has no activations: only compressible weights are looked at.")
        self._load(self._group_of[name])
        c_key, g_key = self._keys[name]
        return Metric(
            which,
            C=self._tensors[c_key],
            G=self._tensors[g_key] if which == "loss" else None,
            damping=self.settings.damping,
        )

    def borrowed(self, name: str) -> str | None:
        """One sentence where an expert saw too few tokens for moments of its own, None for any other weight."""
        self._load(self._group_of[name])
        if (count := self._few.get(name)) is None:
            return None
        return (
            f"The text brings {count:,} tokens to this expert, fewer than {ENOUGH} for each direction: its moments are "
            "blended with those of the layer's other experts."
        )

    def _load(self, index: int) -> None:
        if self._loaded == index:
            return
        self._tensors, self._loaded = {}, None
        file = self.folder / f"moments-{index:04d}.safetensors"
        if (found := kept_tensors(file)) is None:
            tensors, keys, few = _collect(self, index)
            found = tensors, {"keys": json.dumps(keys), "few": json.dumps(few)}
            keep_tensors(file, *found)
        self._tensors, self._keys = found[0], json.loads(found[1]["keys"])
        self._few |= json.loads(found[1].get("few", "{}"))
        self._loaded = index


def _groups(checkpoint: Checkpoint, memory_bytes: int) -> list[list[Weight]]:
    """Compressible weights in the order of their layers, cut into groups whose moments fit into `memory_bytes`."""
    groups: list[list[Weight]] = [[]]
    size = 0
    for weight in checkpoint.weights:
        if not weight.compressible:
            continue
        need = 8 * (weight.shape[0] ** 2 + weight.shape[1] ** 2)
        if groups[-1] and size + need > memory_bytes:
            groups.append([])
            size = 0
        groups[-1].append(weight)
        size += need
    return groups


class _Sums:
    """Running Σ v vᵀ of one stream of vectors."""

    def __init__(self, size: int) -> None:
        self.total = torch.zeros(size, size, dtype=torch.float64)
        self.count = 0

    def add(self, vectors: torch.Tensor) -> None:
        # float32 products of a few hundred rows summed in float64: the rounding stays below the sampling noise by
        # five orders, at half the time of float64 products.
        vectors = vectors.detach().float()
        self.total += (vectors.T @ vectors).double().cpu()
        self.count += len(vectors)


def _collect(moments: Moments, index: int) -> tuple[dict[str, torch.Tensor], dict[str, list[str]], dict[str, int]]:
    """One pass of forward and backward over the calibration windows for the weights of one group."""
    from karipap_core.models.load import load_model
    from karipap_core.models.sites import observe, sites

    checkpoint, settings, group = moments.checkpoint, moments.settings, moments.groups[index]
    loaded, tokenizer = load_model(checkpoint, device=moments.device)
    model: Any = loaded  # a transformers model, which has more than an nn.Module
    vocabulary = model.config.get_text_config().vocab_size
    windows = calibration_windows(tokenizer, moments.text, settings, vocabulary).moments
    inputs = {weight.name: _Sums(weight.shape[1]) for weight in group}
    gradients = {weight.name: _Sums(weight.shape[0]) for weight in group}
    shared: dict[str, str] = {}  # weight -> the weight whose input it shares (q, k and v; gate and up)
    last: tuple[torch.Tensor, str] | None = None  # what was seen last, and at which weight

    def on_input(name: str, x: torch.Tensor) -> None:
        nonlocal last
        if shared.get(name, name) != name:
            return
        if name not in shared:
            # The very same tensor handed to two weights of one block: their C is one.
            if last is not None and last[0].shape == x.shape and last[0].data_ptr() == x.data_ptr():
                shared[name] = last[1]
                return
            shared[name] = name
            last = x, name
        inputs[name].add(x)

    def on_gradient(name: str, g: torch.Tensor) -> None:
        gradients[name].add(g)

    generator = torch.Generator(device="cpu").manual_seed(settings.seed)
    batch = max(1, 2048 // settings.window)
    images = calibration_images(model, checkpoint, moments.text).moments
    found = sites(model, checkpoint)
    watched = {weight.name: found[weight.name] for weight in group if weight.name in found}
    work = len(windows) + len(images)
    before, total = index * work, len(moments.groups) * work
    with gradients_flow(model), observe(watched, on_input, on_gradient):
        for start in range(0, len(windows), batch):
            moments.progress("activations", before + start, total, group[0].name if group else "")
            rows = windows[start : start + batch].to(moments.device)
            sampled_loss(model, rows, generator).backward()
            model.zero_grad(set_to_none=True)
            last = None
        for number, image in enumerate(images):
            moments.progress("activations", before + len(windows) + number, total, "images")
            sampled_loss_of_image(model, image, generator).backward()
            model.zero_grad(set_to_none=True)
            last = None
    moments.progress("activations", before + work, total)
    scored = windows.numel() + sum(len(image.targets) for image in images)
    return _pack(group, inputs, gradients, shared, scored, bool(images))


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
        probabilities = logits.detach().softmax(-1).flatten(0, 1).cpu()
        labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
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
    labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")


def _pack(
    group: list[Weight],
    inputs: dict[str, _Sums],
    gradients: dict[str, _Sums],
    shared: dict[str, str],
    tokens: int,
    images: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]], dict[str, int]]:
    """Second moments as means over the vectors that a weight saw. G is scaled by how many these are for each scored
    token: an expert sees some of them alone, what sees images many patches for few words. An expert that saw few
    tokens borrows from its layer's other experts."""
    tensors: dict[str, torch.Tensor] = {}
    keys: dict[str, list[str]] = {}
    few: dict[str, int] = {}
    pooled: dict[tuple, list] = {}
    for weight in group:
        if weight.expert is not None:
            pooled.setdefault((weight.layer, weight.role), []).append(weight.name)

    def mean(sums: dict[str, _Sums], weight: Weight) -> torch.Tensor:
        own = sums[weight.name]
        names = pooled.get((weight.layer, weight.role), [weight.name])
        total = sum(sums[name].total for name in names)
        count = sum(sums[name].count for name in names)
        if len(names) == 1 or own.count >= ENOUGH * own.total.shape[0]:
            return own.total / max(1, own.count)
        # Few tokens make a poor estimate of many directions: blend with the layer's other experts.
        few[weight.name] = own.count
        prior = ENOUGH * own.total.shape[0] - own.count
        return (own.total + prior * total / max(1, count)) / (own.count + prior)

    for weight in group:
        source = shared.get(weight.name, weight.name)
        c_key, g_key = f"C|{source}", f"G|{weight.name}"
        if c_key not in tensors:
            tensors[c_key] = mean(inputs, next(w for w in group if w.name == source))
        whole = weight.expert is None and not images
        share = 1.0 if whole else max(1, gradients[weight.name].count) / tokens
        tensors[g_key] = mean(gradients, weight) * share
        keys[weight.name] = [c_key, g_key]
    return tensors, keys, few
