"""Series, images and volumes as patches, masks over patches, and positions on a grid.

Legend: B batch, C channels, size the one to three axes behind the channels, N patches, M masked ones, S elements per channel of a
patch. Where a patch size does not divide an axis, the last patch sticks out beyond the edge and is filled with the last slice again
and again: every value of a patch is one of the data's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .core import full


def patch_grid(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Number of patches along each axis: ceil(s / p)."""
    return tuple(-(-s // p) for s, p in zip(size, patch))


def default_patch(size: Sequence[int]) -> tuple[int, ...]:
    """About an eighth of each axis: the divisor next to it, or if none lies within a factor of two, s / 8 rounded up."""

    def side(s: int) -> int:
        near = [d for d in range(1, s + 1) if s % d == 0 and 0.5 <= 8 * d / s <= 2]
        return min(near, key=lambda d: abs(math.log(8 * d / s))) if near else -(-s // 8)

    return tuple(side(s) for s in size)


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, C, *size) -> (B, N, C, S), patches in row-major order."""
    for axis, (s, p) in enumerate(zip(x.shape[2:], patch), start=2):
        if s % p:
            last = x.narrow(axis, s - 1, 1)
            x = torch.cat([x, last.expand(*x.shape[:axis], -s % p, *x.shape[axis + 1 :])], axis)
    rank, grid = len(patch), [s // p for s, p in zip(x.shape[2:], patch)]
    x = x.reshape(*x.shape[:2], *(n for pair in zip(grid, patch) for n in pair))  # (B, C, g1, p1, g2, p2, ...)
    x = x.permute(0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2))  # (B, g1, g2, ..., C, p1, p2, ...)
    return x.reshape(x.shape[0], math.prod(grid), x.shape[1 + rank], math.prod(patch))


def unpatchify(patches: Tensor, patch: Sequence[int], size: Sequence[int]) -> Tensor:
    """(B, N, C, S) -> (B, C, *size): undoes `patchify`; what sticks out is cropped."""
    rank, grid = len(patch), patch_grid(size, patch)
    x = patches.reshape(patches.shape[0], *grid, patches.shape[2], *patch)
    x = x.permute(0, 1 + rank, *(n for i in range(rank) for n in (1 + i, 2 + rank + i)))  # (B, C, g1, p1, g2, p2, ...)
    x = x.reshape(x.shape[0], x.shape[1], *(g * p for g, p in zip(grid, patch)))
    for axis, s in enumerate(size, start=2):
        x = x.narrow(axis, 0, s)
    return x


def split_by_noise(noise: Tensor, masked: int) -> tuple[Tensor, Tensor]:
    """noise (B, N) -> indices of the visible patches (B, N - masked), those with the least noise, and of the others (B, masked).

    Independent continuous noise makes every set of `masked` patches as likely as any other, and always of that size."""
    order = noise.argsort(1)
    return order[:, : noise.shape[1] - masked], order[:, noise.shape[1] - masked :]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each sample: x (B, N, ...), index (B, M) -> (B, M, ...)."""
    index = index.reshape(*index.shape, *(1,) * (x.dim() - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


def put_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """A copy of x (B, N, W) with rows (B, M, W) at the places index (B, M)."""
    return x.scatter(1, index[..., None].expand_as(rows), rows)


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """(t - mean) / sqrt(var + eps), both over all C * S values of a patch, var the unbiased one: (B, N, C, S) -> the same."""
    patches = full(patches)
    var, mean = torch.var_mean(patches, (2, 3), keepdim=True)
    return (patches - mean) * torch.rsqrt(var + eps)


def sincos_positions(grid: Sequence[int], width: int) -> Tensor:
    """Fixed positions on a grid of any rank, (N, width): each axis i has an equal share of the width, half of it sin(p_i w_k), half
    cos(p_i w_k), w_k = 10000^(-k/n), k = 0 ... n-1 (arXiv:1706.03762, section 3.5; more axes as in arXiv:2111.06377). What does not
    divide is 0. Raises ValueError if there is no room for one pair an axis."""
    n = width // (2 * len(grid))
    if n == 0:
        raise ValueError(
            f"width={width!r} must be at least {2 * len(grid)}: a sine and a cosine for each axis of {grid}"
        )
    frequencies = 10000.0 ** (-torch.arange(n, dtype=torch.float64) / n)
    places = torch.meshgrid(*(torch.arange(g, dtype=torch.float64) for g in grid), indexing="ij")
    angles = torch.stack([p.flatten() for p in places], 1)[..., None] * frequencies  # (N, rank, n)
    table = torch.zeros(math.prod(grid), width)
    table[:, : 2 * n * len(grid)] = torch.cat([angles.sin(), angles.cos()], 2).flatten(1).float()
    return table
