"""Calibrated rounding under both moments: errors are made good by the columns still to come and by the rows below.

‖A D B‖² of D = W − Ŵ, with AᵀA = G and B Bᵀ = C, is a lattice problem whose Cholesky factor is that of G ⊗ C, a product
of two triangular ones. So nearest-plane rounding of all entries, in any order in which what is above and to the left of
an entry comes before it, needs those two factors alone (YAQA, arXiv:2505.22988). With G = 1 it is GPTQ. Rows are gone
through by falling G_ii, columns by falling C_jj as far as groups stay together: what weighs most is made good by most.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.quantization.packing import Quantized
from karipap_core.quantization.rounding import EPS32, Columns, checked, damped, in_groups, inverse_factor, search

HEIGHTS = (32, 64, 128)  # rows that a tile may have
STEPS = 3  # of conjugate gradients; the next one would gain a tenth of what these do
WIDEST = 128  # columns of a tile at most: it is a group, or an equal part of one

Tile = tuple[int, int]  # its number among those of its column, and among those of its row


@dataclass(frozen=True)
class Rows:
    """G (n, n), for rounding, damped: V is `rounding.inverse_factor` of G with its rows and columns in this order."""

    G: torch.Tensor
    V: torch.Tensor
    order: torch.Tensor

    @classmethod
    def of(cls, G: torch.Tensor, damping: float) -> "Rows | None":
        """By falling G_ii, rows that are level in their own order. None where they know nothing of one another: G is
        diagonal."""
        G = damped(G, damping)
        order = G.diagonal().argsort(descending=True, stable=True)
        V = inverse_factor(G[order][:, order], 0)
        return cls(G, V, order) if V.triu(1).any() else None


def quantize_two_sided(W: torch.Tensor, bits: int, group: int | None, columns: Columns, rows: Rows) -> Quantized:
    """W (out, in) in integers of `bits` bits so that ‖A (W − Ŵ) B‖² is small.

    Both sides are taken in their orders (`Columns.by_weight`, `Rows`), in which U (in, in) and V (out, out) are the
    `rounding.inverse_factor` of C and of G: B = U⁻¹, A = V⁻ᵀ. With R = A D B and
    E = Vᵀ R, entry (i, j) is rounded from w_ij − Σ_{k<j} E_ik U_kj − U_jj Σ_{l<i} V_li R_lj, and what that leaves over
    is V_ii U_jj R_ij. The scales of a group are searched on its weights as corrected when it is reached, as by GPTQ.
    Entries of a tile on one anti-diagonal know nothing of one another, and so with tiles: they are rounded together.
    Arithmetic in float64, n_out n_in (n_out + n_in) multiply-adds. Raises InputError for factors of other sizes.
    """
    W, group = checked(W, bits, group)
    n_out, n_in = W.shape
    U, order = columns.by_weight(group)
    for name, factor, size in (("U", U, n_in), ("V", rows.V, n_out)):
        if factor.shape != (size, size):
            raise InputError(f"The factor {name} is {tuple(factor.shape)}: it must be ({size}, {size}).")
    found = _Tiled(W[rows.order][:, order], bits, group, U.to(W), rows.V.to(W)).rounded()
    up, left = rows.order.argsort(), order.argsort()
    groups = (order[::group] // group).argsort()
    scales, zeros = (each[up][:, groups] for each in (found.scales, found.zeros))
    return replace(found, codes=found.codes[up][:, left], scales=scales, zeros=zeros)


def refitted(W: torch.Tensor, found: Quantized, columns: Columns, rows: Rows) -> Quantized:
    """The same codes and zero points with the scales under which ‖A (W − Ŵ) B‖² is least, or as good as.

    W (out, in) is what was rounded; scales were searched before the errors of their own group and of what came behind
    it were known. The loss is a quadratic form in all scales s, Ŵ_ij = s_ig (code_ij − zero_ig): `STEPS` of conjugate
    gradients from the scales that are there, preconditioned by its diagonal, each two products with G and C. In units
    of the largest scale and of the mean diagonals, in float32: a scale is stored in 16 bits. One that would not be
    positive and finite stays as it is; all do where nothing was gained.
    """
    group, width, unit = found.group, W.shape[1], found.scales.double().amax()
    C, G = (moment.to(W.device) for moment in (columns.damped(), rows.G))
    C, G = ((moment / moment.diagonal().mean()).float() for moment in (C, G))
    whole, scales = (W.double() / unit).float(), (found.scales / unit).float()
    steps = replace(found, scales=torch.ones_like(found.scales)).dense()  # Ŵ in units of its scales

    def spread(scales: torch.Tensor) -> torch.Tensor:
        return steps * scales.repeat_interleave(group, 1)[:, :width]

    def gathered(D: torch.Tensor) -> torch.Tensor:
        """Of a matrix what each scale sees."""
        return in_groups(steps * D, group)[0].sum(-1)

    own = torch.block_diag(*(C[at : at + group, at : at + group] for at in range(0, width, group)))
    diagonal = G.diagonal()[:, None] * gathered(steps @ own)
    diagonal = torch.where(diagonal > 0, diagonal, 1.0)
    D = whole - spread(scales)
    pull = G @ D @ C
    was, left = (pull * D).sum(), gathered(pull)
    along, size = left / diagonal, (left.square() / diagonal).sum()
    least = size * EPS32**2
    for _ in range(STEPS):
        if size <= least:  # nothing is left to be gained, all there was included
            break
        seen = gathered(G @ spread(along) @ C)
        part = size / (along * seen).sum()
        scales, left = scales + part * along, left - part * seen
        size, before = (left.square() / diagonal).sum(), size
        along = left / diagonal + size / before * along
    fitted = (scales * unit).half()
    fitted = torch.where((fitted > 0) & fitted.isfinite(), fitted, found.scales)
    D = whole - spread((fitted / unit).float())
    return replace(found, scales=fitted) if (G @ D @ C * D).sum() < was else found


class _Tiled:
    """A weight cut into tiles, filled up with zeros where they are larger; zeros are rounded to themselves."""

    def __init__(self, W: torch.Tensor, bits: int, group: int, U: torch.Tensor, V: torch.Tensor) -> None:
        self.bits, self.group, self.shape = bits, group, W.shape
        self.per_group = -(-group // WIDEST)
        self.width = -(-group // self.per_group)
        groups = -(-W.shape[1] // group)
        # Each anti-diagonal costs a dozen calls, however few its entries: the fewer the better.
        across = groups * self.per_group
        self.height = min(HEIGHTS, key=lambda rows: (-(-len(W) // rows) + across - 1) * (rows + self.width - 1))
        height, width = -(-len(W) // self.height) * self.height, across * self.width
        columns = torch.arange(W.shape[1], device=W.device)
        self.columns = columns // group * (self.per_group * self.width) + columns % group  # where each of W's lies
        self.W = W.new_zeros(height, width)
        self.W[: len(W), self.columns] = W
        self.U, self.V = _spread(U, self.columns, width), _spread(V, torch.arange(len(V), device=V.device), height)
        self.codes, self.E, self.R = (torch.zeros_like(self.W) for _ in range(3))
        self.scales, self.zeros = (self.W.new_zeros(height, groups) for _ in range(2))

    def rounded(self) -> Quantized:
        across = _on_diagonal(self.U, self.width)
        down = _on_diagonal(self.V, self.height)
        steps = list(_anti_diagonals(self.height, self.width))
        for tiles in _in_turn(len(down), len(across)):
            left, above = (torch.stack(each) for each in zip(*map(self._corrected, tiles), strict=True))
            self._search(tiles, left, above)
            found = _round_tiles(
                torch.stack([self.scales[self._rows(i), self._group(j)] for i, j in tiles]).cpu().numpy(),
                torch.stack([self.zeros[self._rows(i), self._group(j)] for i, j in tiles]).cpu().numpy(),
                left.cpu().numpy(),
                above.cpu().numpy(),
                across[[j for _, j in tiles]],
                down[[i for i, _ in tiles]],
                2**self.bits - 1,
                steps,
            )
            for target, values in zip((self.codes, self.E, self.R), found, strict=True):
                for (i, j), each in zip(tiles, torch.from_numpy(values).to(target), strict=True):
                    target[self._rows(i), self._columns(j)] = each
        n_out = self.shape[0]
        codes = self.codes[:n_out, self.columns].to(torch.uint8)
        zeros = self.zeros[:n_out].to(torch.uint8)
        return Quantized(codes, self.scales[:n_out].half(), zeros, self.bits, self.group)

    def _rows(self, i: int) -> slice:
        return slice(i * self.height, (i + 1) * self.height)

    def _columns(self, j: int) -> slice:
        return slice(j * self.width, (j + 1) * self.width)

    def _group(self, j: int) -> int:
        return j // self.per_group

    def _left(self, rows: slice, columns: slice) -> torch.Tensor:
        """W less what the columns before these left over."""
        before = slice(0, columns.start)
        return torch.addmm(self.W[rows, columns], self.E[rows, before], self.U[before, columns], alpha=-1)

    def _corrected(self, tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
        """`_left` of a tile, and Σ V_li R_lj over the rows above it."""
        rows, columns = self._rows(tile[0]), self._columns(tile[1])
        before = slice(0, rows.start)
        return self._left(rows, columns), self.V[before, rows].T @ self.R[before, columns]

    def _search(self, tiles: list[Tile], left: torch.Tensor, above: torch.Tensor) -> None:
        """The scales of the groups that begin with one of these tiles."""
        if tiles_of_groups := [n for n, (_, j) in enumerate(tiles) if j % self.per_group == 0]:
            seen = torch.cat([self._seen(tiles[n], left[n], above[n]) for n in tiles_of_groups])
            weights = torch.cat([self._weights(tiles[n][1]) for n in tiles_of_groups])
            blocks, used = in_groups(seen, seen.shape[1])
            found = (each.split(self.height) for each in search(blocks, used, self.bits, weights=weights))
            for n, scale, zero in zip(tiles_of_groups, *found, strict=True):
                rows, group = self._rows(tiles[n][0]), self._group(tiles[n][1])
                self.scales[rows, group], self.zeros[rows, group] = scale[:, 0], zero[:, 0]

    def _weights(self, j: int) -> torch.Tensor:
        """1 / U_jj² of the columns of the group that begins with this tile, for each row."""
        columns = slice(j * self.width, (j + self.per_group) * self.width)
        return self.U.diagonal()[columns].square().reciprocal().expand(self.height, 1, -1)

    def _seen(self, tile: Tile, left: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """The weights of the group that begins with a tile, as corrected so far."""
        columns = self._columns(tile[1])
        if self.per_group == 1:
            return left - above @ self.U[columns, columns]
        # What the rows above leave over in the columns behind this tile is not known yet.
        return self._left(self._rows(tile[0]), slice(columns.start, columns.start + self.per_group * self.width))


def _spread(factor: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """A factor (n, n) at these places of a larger one, the identity elsewhere."""
    if len(factor) == size:
        return factor
    found = torch.eye(size, dtype=factor.dtype, device=factor.device)
    found[places[:, None], places] = factor
    return found


def _on_diagonal(factor: torch.Tensor, size: int) -> np.ndarray:
    """The blocks (size, size) on the diagonal of a factor, one after the other."""
    return np.stack([factor[at : at + size, at : at + size].cpu().numpy() for at in range(0, len(factor), size)])


def _in_turn(rows: int, columns: int) -> Iterator[list[Tile]]:
    """Tiles that can be rounded together, one anti-diagonal after the other."""
    for total in range(rows + columns - 1):
        yield [(i, total - i) for i in range(max(0, total - columns + 1), min(rows, total + 1))]


def _anti_diagonals(height: int, width: int) -> Iterator[tuple[slice, slice, slice, slice, int, int]]:
    """For each anti-diagonal of a tile (height, width): its rows, its columns from the last to the first, both as
    contiguous slices, then its entries in a tile that is one line, and in one that lies transposed with its columns
    reversed; and how many columns and rows at most an entry of it needs, itself among them."""
    for total in range(height + width - 1):
        first, last = max(0, total - width + 1), min(height, total + 1)
        count, reversed_ = last - first, width - 1 - total + first
        start = first * width + total - first
        line = slice(start, start + (count - 1) * (width - 1) + 1, max(1, width - 1))
        start = reversed_ * height + first
        turned = slice(start, start + (count - 1) * (height + 1) + 1, height + 1)
        yield slice(first, last), slice(reversed_, reversed_ + count), line, turned, total - first + 1, last


def _round_tiles(
    scale: np.ndarray,
    zero: np.ndarray,
    left: np.ndarray,
    above: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    top: int,
    steps: list[tuple[slice, slice, slice, slice, int, int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, E and R of tiles (tiles, rows, width), each with the scales and zero points of its rows, what is `left` of
    it and comes from `above`, and its blocks of U and V on the diagonal.

    Everything is in steps of the grid of its row, E and R besides without U_jj and V_ii, which the factors take
    instead. An entry of E or R holds what is `left` of it or comes from `above` until it is rounded, so that one scalar
    product, whose last factor is 1, tells what it is rounded from.
    In numpy: calls for so few numbers cost a third of torch's.
    """
    tiles, rows, width = left.shape
    scale = scale[..., None]
    own_across, own_down = across.diagonal(0, 1, 2), down.diagonal(0, 1, 2)
    unit = across / own_across[..., None]  # U_kj / U_kk
    # By j from the last to the first, and k; V_li / V_ll by i and l
    back = np.ascontiguousarray((2 * np.eye(width) - unit.transpose(0, 2, 1))[:, ::-1])
    up = (down / own_down[..., None]).transpose(0, 2, 1) * (scale.transpose(0, 2, 1) / scale)
    left = left / scale + zero[..., None]
    E = left.copy()
    # By j from the last to the first, and l
    R = np.ascontiguousarray((above * own_across[:, None] / scale).transpose(0, 2, 1)[:, ::-1])
    flat_E, flat_R = (each.reshape(tiles, -1) for each in (E, R))
    for among, columns, line, turned, before, over in steps:
        wanted = np.vecdot(E[:, among, :before], back[:, columns, :before])
        corrected = wanted - np.vecdot(up[:, among, :over], R[:, columns, :over])
        code = np.rint(corrected)
        np.maximum(code, 0.0, out=code)
        np.minimum(code, top, out=code)
        np.subtract(wanted, code, out=flat_E[:, line])
        np.subtract(corrected, code, out=flat_R[:, turned])
    codes = np.rint(left - E @ unit)
    units = scale / own_across[:, None]
    E *= units
    return codes, E, np.ascontiguousarray(R[:, ::-1].transpose(0, 2, 1)) * units / own_down[..., None]
