"""One pass over the blocks of a model: of each block, from the last to the first, what its weights see of a text.

That is C and G (activations.py) of its weights, from the windows for moments; and x and g themselves, token by token,
from the windows for probing, on which the damage of truncations is estimated (plan/gradients.py). A `Finder` is told,
and what it does not keep is gone when the block is.
"""

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.errors import InputError
from karipap_core.models import running
from karipap_core.models.blockwise import Blockwise, Loss
from karipap_core.models.load import load_tokenizer
from karipap_core.models.streamed import Streamed, block_paths, give_back
from karipap_core.profiles import apart as apart_kept
from karipap_core.profiles.activations import (
    CalibrationSettings,
    calibration_images,
    calibration_windows,
    sampled_loss,
    sampled_loss_of_image,
)
from karipap_core.profiles.estimate import LOGITS, ROWS, Wanted
from karipap_core.profiles.watching import Finder, Watching
from karipap_core.progress import Progress, silent
from karipap_core.text import Text

TRIED = 24  # tokens that a model is tried on
ALIKE = 0.1  # relative difference of inputs and gradients: 16 bits between blocks make 0.001, with ReLUs 0.02
IN_MEMORY = 1 << 30  # bytes of a model in float32 with its moments, up to which it is run whole
GROUP = 4 << 30  # bytes of moments that are found together, of a model whose blocks cannot be run apart


def look_over(
    checkpoint: Checkpoint,
    text: Text,
    settings: CalibrationSettings,
    folder: Path,
    finder: Finder,
    device: str = "cpu",
    probing: bool = True,
    progress: Progress = silent,
) -> None:
    """Tells `finder` what each weight sees of the text.

    A small model (`IN_MEMORY`) is run whole; any other a block at a time, from the last to the first, where that gives
    what a whole run gives; else whole as often as groups of its moments fit into `GROUP`, and `progress` is told so.
    probing : whether the windows for probing are run too.  folder : for what stands between blocks; one that a killed
    pass left is gone on with. Raises InputError for a model that cannot be run on the text.
    """
    weights = [weight for weight in checkpoint.weights if weight.compressible]
    groups: list[list[Weight] | None] = [None]
    moments = {weight.name: 8 * sum(side**2 for side in weight.shape) for weight in weights}
    apart = is_large(checkpoint)
    if apart and not runs_apart(checkpoint, device):
        progress(
            "activations", 0, 1, "", "Its blocks cannot be run apart: the whole model is run for each group of them."
        )
        apart, groups = False, list(_groups(weights, moments))
    for number, group in enumerate(groups):
        run = _Run(checkpoint, text, settings, device, apart, group)
        said = progress if len(groups) == 1 else _part(progress, number, len(groups))
        run.go(folder, finder, probing, said)
        del run
        give_back()


def is_large(checkpoint: Checkpoint) -> bool:
    """Whether a model is run a block at a time, where that is possible: see `IN_MEMORY`."""
    moments = sum(8 * side**2 for weight in checkpoint.weights if weight.compressible for side in weight.shape)
    return 4 * checkpoint.parameters + moments > IN_MEMORY


def wanted(checkpoint: Checkpoint, settings: CalibrationSettings, text: Text | None = None, **more: Any) -> Wanted:
    """What a pass with these settings looks at (of a short text no more than it has), and `more` fields of `Wanted`.

    A token has a byte or more.
    """
    room = None if text is None else sum(len(document.encode()) for document in text.documents)
    moments, probing = settings.tokens, settings.probe_windows * settings.window
    if room is not None:
        moments, probing = min(moments, room), min(probing, room // 3)
    return Wanted(moments, probing, settings.window, apart=is_large(checkpoint), **more)


def runs_apart(checkpoint: Checkpoint, device: str) -> bool:
    """Whether running block by block gives what running the whole model gives: tried on a few tokens, where the model
    fits into a quarter of the machine's memory (else the first is taken for granted), and kept."""
    if (known := apart_kept.known(checkpoint)) is not None:
        return known
    with suppress(AttributeError, ValueError, OSError):  # not every system says
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if 16 * checkpoint.parameters > memory:
            return True
    try:
        ours = _tried(checkpoint, device, apart=True)
    except Exception:  # of whatever class, also a block that is said to lack what it shares: models differ
        ours = None
    try:
        whole = _tried(checkpoint, device, apart=False)
    except InputError:  # nor does it run whole
        raise
    except Exception:
        whole = None
    apart = ours is not None and whole is not None and _alike(ours, whole)
    apart_kept.keep(checkpoint, apart)
    give_back()
    return apart


def _alike(ours: Sequence[torch.Tensor], whole: Sequence[torch.Tensor]) -> bool:
    pairs = zip(ours, whole, strict=True)
    return len(ours) == len(whole) and all((one - other).norm() <= ALIKE * other.norm() for one, other in pairs)


def _tried(checkpoint: Checkpoint, device: str, apart: bool) -> list[torch.Tensor]:
    """What the weights of the first and of the last block are given, and the gradients that come back, on a few tokens:
    what is lost on the way shows there. Not of experts, whose tokens change with a rounding."""
    streamed = Streamed(checkpoint, device=device, apart=apart)
    blocks = block_paths(streamed.model, checkpoint)
    watching = _Kept(
        weight.name
        for weight in checkpoint.weights
        if weight.compressible and weight.expert is None and streamed.home_of(weight, blocks) in (blocks[0], blocks[-1])
    )
    streamed.outside = {name: site for name, site in streamed.outside.items() if name in watching.names}
    vocabulary = cast(Any, streamed.model).config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, TRIED), generator=torch.Generator().manual_seed(0)).to(device)

    def loss(model: Any) -> torch.Tensor:
        output = running.output(model, ids).float()
        return (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.device)).sum()

    with tempfile.TemporaryDirectory() as folder:
        Blockwise(streamed, watching, Path(folder)).run([loss])
    return [tensor for key in sorted(watching.found) for tensor in watching.found[key]]


class _Kept:
    """A watcher (blockwise.py) that keeps what some weights see."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)
        self.found: dict[tuple[str, str], list[torch.Tensor]] = defaultdict(list)

    def on_input(self, batch: int, name: str, x: torch.Tensor) -> None:
        if name in self.names:
            self.found["x", name] = [x.detach().clone()]  # the last time: blocks run again

    def on_gradient(self, batch: int, name: str, g: torch.Tensor) -> None:
        if name in self.names:
            self.found["g", name].append(g.detach().clone())

    def through(self, block: str | None, sites: Mapping[str, Any]) -> None: ...


def _groups(weights: Sequence[Weight], sizes: Mapping[str, int]) -> Iterator[list[Weight]]:
    """Weights in the order of their layers, cut into groups whose moments fit into `GROUP`."""
    group: list[Weight] = []
    for weight in weights:
        if group and sum(sizes[each.name] for each in group) + sizes[weight.name] > GROUP:
            yield group
            group = []
        group.append(weight)
    yield group


def _part(progress: Progress, number: int, count: int) -> Progress:
    """Progress of one of several equal parts."""

    def said(stage: str, done: float, total: float, item: str = "", message: str = "") -> None:
        progress(stage, number * total + done, count * total, item, message)

    return cast(Progress, said)


class _Run:
    """The text's windows through a model, block by block (`apart`), or whole for the weights of one group."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: Text,
        settings: CalibrationSettings,
        device: str,
        apart: bool,
        group: Sequence[Weight] | None,
    ) -> None:
        tokenizer = load_tokenizer(checkpoint.home)
        self.streamed = Streamed(checkpoint, device=device, apart=apart)
        if group is not None:
            names = {weight.name for weight in group}
            self.streamed.outside = {name: site for name, site in self.streamed.outside.items() if name in names}
        self.settings, self.apart, self.device = settings, apart, device
        model: Any = self.streamed.model
        running.check_reads(model)
        self.vocabulary = model.config.get_text_config().vocab_size
        self.windows = calibration_windows(tokenizer, text, settings, self.vocabulary)
        self.images = calibration_images(model, checkpoint, text)

    def go(self, folder: Path, finder: Finder, probing: bool, progress: Progress) -> None:
        """Tells the finder all."""
        windows, images, seed = self.windows, self.images, 4 * self.settings.seed
        moments = self._losses(windows.moments, images.moments, seed)
        probes = self._losses(windows.probe, images.probe, seed + 2) if probing else []
        watching = Watching(finder, self.settings, bool(images.moments))
        watching.weights_of = self.streamed.weights_of
        watching.scored = _scored(windows.moments, images.moments), _scored(windows.probe, images.probe)
        if self.apart:
            watching.probing = range(len(moments), len(moments) + len(probes))
            Blockwise(self.streamed, watching, folder, progress).run(moments + probes)
            return
        # Run whole, all weights' moments are there before the first token is probed: none has to be kept.
        watching.ends = not probes
        done = _batches(progress, 0, len(moments) + len(probes))
        Blockwise(self.streamed, watching, folder).run(moments, done)
        if probes:
            watching.probing, watching.ends = range(len(probes)), True
            done = _batches(progress, len(moments), len(moments) + len(probes))
            Blockwise(self.streamed, watching, folder).run(probes, done)

    def _losses(self, ids: torch.Tensor, shown: Sequence[Any], seed: int) -> list[Loss]:
        rows = max(1, min(ROWS, LOGITS // self.vocabulary) // self.settings.window)
        made: list[Loss] = [
            partial(_loss, ids=batch.to(self.device), seed=(seed, number))
            for number, batch in enumerate(ids.split(rows))
        ]
        return made + [partial(_loss_of_image, image=each, seed=(seed + 1, n)) for n, each in enumerate(shown)]


def _batches(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda number: progress("activations", before + number + 1, total)


def _scored(ids: torch.Tensor, shown: Sequence[Any]) -> int:
    return ids.numel() + sum(len(image.targets) for image in shown)


def generator_of(seed: int, number: int) -> torch.Generator:
    """Of the labels of batch `number`: its own, so that no batch depends on what others drew.

    Both are mixed into 32 bits: torch looks at no more of a seed (findings/torch-seeds-of-64-bits.sh).
    """
    mixed = np.random.SeedSequence([seed, number]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def _loss(model: Any, ids: torch.Tensor, seed: tuple[int, int]) -> torch.Tensor:
    return sampled_loss(model, ids, generator_of(*seed))


def _loss_of_image(model: Any, image: Any, seed: tuple[int, int]) -> torch.Tensor:
    return sampled_loss_of_image(model, image, generator_of(*seed))
