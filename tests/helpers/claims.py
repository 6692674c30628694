"""What tests of claims compute by themselves: a model's KL and rise from the definitions, truncations by NumPy."""

import numpy as np
import torch

from karipap_core.studies.claims.experiments.bench import study_of


def live(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def windows_of(folder, text):
    study = study_of(folder, text)
    return study.windows


@torch.no_grad()
def log_probabilities(model, rows) -> np.ndarray:
    return model(input_ids=rows).logits.double().log_softmax(-1).numpy()


def harm(model, rows, dense) -> tuple[float, float]:
    """(KL, rise in loss) in nats a token, float64, from the definitions."""
    now = log_probabilities(model, rows)
    kl = (np.exp(dense) * (dense - now)).sum(-1).mean()
    at = rows[:, 1:].numpy()[..., None]
    losses = [-np.take_along_axis(found[:, :-1], at, -1).mean() for found in (dense, now)]
    return kl, losses[1] - losses[0]


def module(model, name):
    return model.get_submodule(name)


def truncated(W: np.ndarray, rank: int) -> np.ndarray:
    U, s, V = np.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ V[:rank]
