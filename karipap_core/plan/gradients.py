"""What truncating each weight does to the model's outputs, estimated from gradients: no forward pass for each weight.

For a weight W cut to Ŵ, Δ = W − Ŵ, with inputs x_t and gradients g_t at its outputs of the negative log-likelihood of
labels that are sampled from the model, summed over the tokens,

    damage ≈ ½ · (1 / tokens) · Σ_t (g_tᵀ Δ x_t)²,

the second-order term of the mean divergence KL(dense ‖ model) in nats a token with the true Fisher matrix, of which the
off-diagonal terms between tokens are left out (they vanish in the mean over labels where tokens are scored apart). It
needs x and g of each token, not their second moments alone: K-FAC, which is these moments, takes them for independent.
For Ŵ = L R the terms of all χ come from one product: g_tᵀ W x_t − Σ_{k ≤ χ} (g_tᵀ L_k)(R_k x_t).
"""

from collections.abc import Sequence

import numpy as np
import torch


class LowRankDamages:
    """Damages (see above, nats a token) of a weight W (out, in) cut to each of `chis` leading components of its cores
    L (out, r) and R (r, in), summed up token by token; `scored` tokens are what the mean is over.

    Cost: |tokens| · (out · in + r (out + in)) multiply-adds in float32, summed in float64.
    """

    def __init__(self, W: torch.Tensor, cores: Sequence[torch.Tensor], chis: Sequence[int], scored: int) -> None:
        self.W, (self.left, self.right) = W.float(), (core.float() for core in cores)
        self.chis, self.scored = list(chis), scored
        self._total = np.zeros(len(chis))

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """x (tokens, in) and g (tokens, out) of some tokens, row for row."""
        x, g = x.float(), g.float()
        dense = ((x @ self.W.T) * g).sum(-1, keepdim=True).double()
        kept = ((g @ self.left) * (x @ self.right.T)).double().cumsum(-1)
        rest = dense - kept[:, [chi - 1 for chi in self.chis]]
        self._total += rest.square().sum(0).cpu().numpy()

    @property
    def damages(self) -> np.ndarray:
        """At each χ."""
        return self._total / 2 / max(1, self.scored)
