"""Brickwork circuits of orthogonal gates on the digits of an index: where they stand, angles, products."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import factorize

LARGEST_LEG = 16  # a gate on two of them has 32,640 angles already
MOST_SITES = 6
NARROW = 16  # columns under which a batched product of PyTorch's is slower than copying
MULTIPLY_ADDS_OF_EXP = 8  # times n³: the matrix products in the exponential of an n×n matrix

Circuit = list[list[torch.Tensor]]  # gates of each layer, the weight's side first


@dataclass(frozen=True)
class Place:
    """Where a gate acts: `size` = a·b dimensions, `before` the product of the digits to its left."""

    before: int
    size: int

    @property
    def angles(self) -> int:
        return angle_count(self.size)


# Gates.


def angle_count(size: int) -> int:
    """Numbers that a rotation of `size` dimensions has."""
    return size * (size - 1) // 2


def fewest_digits(n: int) -> int:
    """The fewest digits of n that are all `LARGEST_LEG` or less, or as small as its largest prime leaves them."""
    for sites in range(1, MOST_SITES):
        largest = factorize(n, sites)[0]
        if largest <= LARGEST_LEG or largest == factorize(n, sites + 1)[0]:
            return sites
    return MOST_SITES


def brickwork(digits: Sequence[int], layers: int) -> list[list[Place]]:
    """Places of the gates of each layer: neighbouring digits of 2 … `LARGEST_LEG`, digits of 1 passed over.

    Left out are a gate that follows another on the same digits with nothing between, for it is part of that one, and
    a gate on all there is (two digits): it would be the SVD's own factor, with about as many numbers as the weight.
    """
    legs = [digit for digit in digits if digit > 1]
    fits = [max(pair) <= LARGEST_LEG and len(legs) > 2 for pair in zip(legs, legs[1:], strict=False)]
    present: list[set[int]] = []
    for layer in range(layers):
        pairs = {k for k in range(layer % 2, len(fits), 2) if fits[k]}
        if layer >= 2:
            pairs = {k for k in pairs if present[-1] & {k - 1, k + 1}}
        present.append(pairs)
    return [[Place(math.prod(legs[:k]), legs[k] * legs[k + 1]) for k in sorted(pairs)] for pairs in present]


def gates_of(places: Sequence[Place], angles: torch.Tensor) -> list[torch.Tensor]:
    """Rotations (n, n) = exp(K) of one layer, K's upper triangles one after the other in `angles`.

    In the dtype of `angles`; half precision is exponentiated in float32.
    """
    exact = angles.float() if angles.dtype in (torch.float16, torch.bfloat16) else angles
    gates, at = [], 0
    for place in places:
        row, column = torch.triu_indices(place.size, place.size, 1, device=angles.device)
        K = exact.new_zeros(place.size, place.size).index_put((row, column), exact[at : at + place.angles])
        gates.append(torch.linalg.matrix_exp(K - K.T).to(angles.dtype))
        at += place.angles
    return gates


def angles_of(gates: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inverse of `gates_of`: upper triangles of the principal logarithms, one after the other."""
    return torch.cat([rotation_log(gate)[tuple(torch.triu_indices(len(gate), len(gate), 1))] for gate in gates])


def rotation_log(Q: torch.Tensor) -> torch.Tensor:
    """The skew K with exp(K) = Q and eigenvalues within ±iπ, of a rotation Q (n, n), float64.

    S = (Q + Qᵀ)/2 has the cosines of Q's angles θ and K = (Q − Qᵀ)/2 · θ/sin θ, a function of S. Near half turns that
    is 0/0: there −Q = exp(K′) is taken instead and half a turn J (J² = −1, J commutes with K′) is added. S is split
    where its spectrum has its widest gap under 0.
    """
    cosines, basis = torch.linalg.eigh((Q + Q.T) / 2)
    edges = torch.cat([cosines.new_tensor([-1.0]), cosines, cosines.new_tensor([1.0])])
    gaps = torch.where(edges[:-1] < 0, edges.diff(), -1)
    half = int(gaps.argmax())
    near, far = basis[:, half:], basis[:, :half]
    K = near @ _small_log(near.T @ Q @ near) @ near.T
    if half:
        K = K + far @ _half_turned(_small_log(-far.T @ Q @ far)) @ far.T
    return (K - K.T) / 2


def _small_log(Q: torch.Tensor) -> torch.Tensor:
    """log of a rotation without half turns: (Q − Qᵀ)/2 · θ/sin θ."""
    cosines, basis = torch.linalg.eigh((Q + Q.T) / 2)
    theta = torch.arccos(cosines.clamp(-1, 1))
    ratio = torch.where(theta > 1e-4, theta / theta.sin().clamp(min=1e-12), 1 + theta.square() / 6)
    return basis * ratio @ basis.T @ (Q - Q.T) / 2


def _half_turned(K: torch.Tensor) -> torch.Tensor:
    """K − πJ with J = K/|K|: half a turn back in the plane of each of K's angles; any planes in K's kernel."""
    values, vectors = torch.linalg.eigh(1j * K)
    if len(values) % 2:
        raise InputError("A gate is no rotation: its determinant is −1.")
    kernel = values.abs() < 1e-8
    J = (-1j * (vectors[:, ~kernel] * values[~kernel].sign()) @ vectors[:, ~kernel].mH).real
    if count := int(kernel.sum()):
        planes = torch.linalg.eigh((vectors[:, kernel] @ vectors[:, kernel].mH).real).eigenvectors[:, -count:]
        one, other = planes[:, 0::2], planes[:, 1::2]
        J = J + one @ other.T - other @ one.T
    return K - math.pi * J


def turn(
    tensor: torch.Tensor, batch: int, circuit: Circuit, places: Sequence[Sequence[Place]], inverse: bool = False
) -> torch.Tensor:
    """Q (or Qᵀ) applied to one index of `tensor`, which `batch` entries stand before; the shape stays."""
    shape = tensor.shape
    steps = list(zip(circuit, places, strict=True))
    for layer, where in steps if inverse else reversed(steps):
        for gate, place in zip(layer, where, strict=True):
            tensor = turned(gate.mT if inverse else gate, around(tensor, batch, place))
    return tensor.reshape(shape)


def turned(gate: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The gate on the middle index of (before, n, after), as one large product rather than many narrow ones."""
    if tensor.shape[2] < NARROW:
        return (tensor.mT @ gate.mT).mT
    return gate @ tensor


def around(tensor: torch.Tensor, batch: int, place: Place) -> torch.Tensor:
    """(…) → (all before the gate's digits, the digits, all after)."""
    before = batch * place.before
    return tensor.reshape(before, place.size, tensor.numel() // max(before * place.size, 1))


# The fit.


def nearest_rotation(E: torch.Tensor) -> torch.Tensor:
    """The rotation g that maximizes tr(gᵀE): X Yᵀ of E = X Σ Yᵀ, its weakest direction turned where det is −1."""
    X, _, Yt = torch.linalg.svd(E)
    if torch.linalg.det(X) * torch.linalg.det(Yt) < 0:
        X = torch.cat([X[:, :-1], -X[:, -1:]], 1)
    return X @ Yt


def random_rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    """Of Haar measure, float64."""
    Q, R = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return nearest_rotation(Q * R.diagonal().sign())
