"""How well a model that sees writes of images, beside the dense one."""

from collections.abc import Sequence
from typing import Any

import torch

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.errors import InputError
from karipap_core.evaluation.fidelity import divergence
from karipap_core.evaluation.perplexity import losses_of
from karipap_core.images import Images
from karipap_core.models import running
from karipap_core.models.pictures import Shown, shown
from karipap_core.progress import Progress, silent


def measure_images(
    model, dense, folders: Sequence[Checkpoint], images: Images, progress: Progress = silent
) -> dict[str, Any]:
    """Loss of the text behind each image (its caption, where it has one), in the context of image and text before.

    folders : where a processor of images may lie, the first that has one is used. Returns the images' `facts`, "tokens"
    (scored), "loss" (nats a token) and, where `dense` is a model, "dense_loss", "rise", "kl" (mean KL(dense ‖ model),
    nats a token) and "top1_agreement". Raises InputError where the model takes no images.
    """
    samples = _samples(model, folders, images)
    ours, theirs, kl, same = [], [], [], []
    for number, sample in enumerate(samples):
        progress("images", number, len(samples), images.files[number].name)
        mine = _logits(model, sample)
        ours.append(losses_of(mine, sample.targets))
        if dense is not None:
            reference = _logits(dense, sample)
            theirs.append(losses_of(reference, sample.targets))
            apart, agreed = divergence(reference, mine)
            kl.append(apart)
            same.append(agreed)
    progress("images", len(samples), len(samples))
    losses = torch.cat(ours).double()
    found = images.facts() | {"tokens": len(losses), "loss": losses.mean().item()}
    if dense is None:
        return found
    before = torch.cat(theirs).double()
    return found | {
        "dense_loss": before.mean().item(),
        "rise": (losses - before).mean().item(),
        "kl": torch.cat(kl).mean().item(),
        "top1_agreement": torch.cat(same).double().mean().item(),
    }


def _samples(model, folders: Sequence[Checkpoint], images: Images) -> list[Shown]:
    for checkpoint in folders[:-1]:
        try:
            return shown(model, checkpoint, images)
        except InputError:
            continue  # the dense model's folder may have what this one lacks, and else says why not
    return shown(model, folders[-1], images)


@torch.no_grad()
def _logits(model, sample: Shown) -> torch.Tensor:
    found = running.logits(model, sample.ids.to(model.device), sample.more)
    return found[0, sample.before.to(found.device)].float()


def in_words(found: dict[str, Any]) -> str:
    """One sentence on what was measured."""
    head = f"On {found['count']} images of {found['name']} besides ({found['tokens']:,} tokens of text behind them): "
    if "rise" not in found:
        return head + f"loss {found['loss']:.4g} nats a token."
    return head + (
        f"loss {found['loss']:.4g} nats a token, of the dense model {found['dense_loss']:.4g}; KL {found['kl']:.3g}, "
        f"the same token first in {found['top1_agreement']:.1%}."
    )
