"""Entropies of the edges of a `tree`: how much layers share, before and after a fit."""

from collections.abc import Sequence

import numpy as np
import torch

from karipap_core.networks.tree.fit import mean_factor
from karipap_core.networks.tree.network import Tree, chain
from karipap_core.networks.tree.solve import View, left, right
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.null import null_entropy
from karipap_core.spectra.spectrum import entropy


def edge_spectra(specs: Sequence[Tree], cores: Sequence[Sequence[torch.Tensor]]) -> dict[str, list[np.ndarray]]:
    """Singular values across every edge of a fitted group, descending: {"in": [σ], "out": [σ], "layer": [σ],
    "own": [σ of each member]}.

    The cuts are those of T[layer, out, in] = the members' Ŵ: the branch of the inputs, of the outputs, of the layer
    index (each against the rest), and one member's own branch, which is Ŵ_l itself: what `lowrank` sees. The shared
    cores are made isometries first (canonical gauge), so nothing of the size of Ŵ is decomposed: with χ_g on a shared
    edge its spectrum has χ_g values.
    """
    first = specs[0]
    factors = [spec.factors([core.double() for core in mine]) for spec, mine in zip(specs, cores, strict=True)]
    parts = [chain(mine) for mine in factors]
    # The shared ends, in canonical gauge: an isometry that no spectrum sees is dropped.
    if first.share != "out":
        R = torch.linalg.qr(factors[0][-1].T).R
        parts = [chain(mine[:-1]) @ R.T for mine in factors]
        factors = [[*mine[:-1], R.T] for mine in factors]
    if first.share != "in":
        R = torch.linalg.qr(factors[0][0]).R
        parts = [R @ chain(mine[1:]) for mine in factors]
    return {
        "in": [sigma_of(parts)],
        "out": [sigma_of([part.T for part in parts])],
        "layer": [layer_sigma(parts)],
        "own": [sigma_of([part]) for part in parts],
    }


def layer_sigma(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """Singular values of the (layer | out, in) cut, from each layer's matrix."""
    flat = torch.stack([part.flatten() for part in parts])
    return torch.linalg.eigvalsh(flat @ flat.T).flip(0).clamp(min=0).sqrt().cpu().numpy()


def sigma_of(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """Singular values, descending, of the parts one on top of the other, by the smaller Gram matrix."""
    if parts[0].shape[1] <= sum(len(part) for part in parts):
        gram = sum(part.T @ part for part in parts)
    else:
        stack = torch.cat(list(parts))
        gram = stack @ stack.T
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt().cpu().numpy()


@torch.no_grad()
def group_profile(
    members: Sequence[str], Ws: Sequence[torch.Tensor], metrics: Sequence[Metric]
) -> list[dict[str, object]]:
    """Entropy (nats) of every edge of a group's untruncated tensor, whitened: rows
    {"edge": "in" | "out" | "layer" | "own", "entropy", "null", "shape": the cut's two sides, "members": names}.

    "own" is one row a member, its matrix alone: what per-layer `lowrank` cuts. `null` is the entropy of a Gaussian of
    the cut's two sides. What a cut leaves together is whitened by each member's own moments, a side that the cut joins
    over the members by their mean. A shared branch pays where its entropy is well under its null: the layers' bases
    coincide.
    """
    n_out, n_in = Ws[0].shape
    one, other = ([View.of(W, metric, side) for W, metric in zip(Ws, metrics, strict=True)] for side in ("in", "out"))
    F, G = mean_factor([view.shared for view in one]), mean_factor([view.shared for view in other])
    spectra = {
        "in": [sigma_of([right(view.whitened().W, F) for view in one])],
        "out": [sigma_of([right(view.whitened().W, G) for view in other])],
        "layer": [layer_sigma([left(None if G is None else G.T, right(view.W, F)) for view in one])],
        "own": [sigma_of([metric.whiten(W)]) for W, metric in zip(Ws, metrics, strict=True)],
    }
    layers = len(members)
    shapes = {"in": (layers * n_out, n_in), "out": (n_out, layers * n_in), "layer": (layers, n_out * n_in)}
    rows = []
    for edge, sigmas in spectra.items():
        for at, sigma in enumerate(sigmas):
            shape = shapes.get(edge, (n_out, n_in))
            names = [members[at]] if edge == "own" else list(members)
            rows.append(
                {
                    "edge": edge,
                    "entropy": entropy(sigma),
                    "null": null_entropy(*shape),
                    "shape": shape,
                    "members": names,
                }
            )
    return rows


@torch.no_grad()
def lowrank_line(Ws: Sequence[torch.Tensor], metrics: Sequence[Metric]) -> tuple[np.ndarray, np.ndarray]:
    """(parameters, error) of `lowrank` on each layer of a group, every rank bought at one price over the group: what a
    tree of the group has to beat. Exact: the group's σ² in one sorted list; error[0] is that of nothing kept."""
    squares = np.sort(np.concatenate([sigma_of([m.whiten(W)]) ** 2 for W, m in zip(Ws, metrics, strict=True)]))
    error = np.concatenate([np.cumsum(squares)[::-1], [0.0]])
    return np.arange(len(error)) * sum(Ws[0].shape), error
