"""Images of any size for a model of one size: tiles that overlap, and their blending.

Legend: B images, C channels, H height, W width, t edge of a tile, o overlap of two neighbours, all in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def padded(x: Tensor, height: int, width: int) -> Tensor:
    """x (B, C, H, W) with rows and columns added below and on the right up to (height, width), where it is smaller: mirrored ones, as
    many as there are, then copies of the last."""
    for axis, want in ((2, height), (3, width)):
        have = x.shape[axis]
        for mode, room in (("reflect", have - 1), ("replicate", want)):
            more = min(max(want - x.shape[axis], 0), room)
            if more:
                x = F.pad(x, (0, more, 0, 0) if axis == 3 else (0, 0, 0, more), mode=mode)
    return x


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First positions of the fewest tiles that cover `length` with at least `overlap` between neighbours, evenly spread."""
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / (tile - overlap)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def window(tile: int, overlap: int, like: Tensor) -> Tensor:
    """Weights of the t positions of a tile along one axis: sin^2 from near 0 up over the first o, 1, and down over the last o. All are
    above 0, and at t = 2 o it is Hann's window, shifted copies of which add up to 1. (t,)"""
    i = torch.arange(tile, dtype=like.dtype, device=like.device) + 0.5
    ramp = min(overlap, tile // 2)
    if not ramp:
        return torch.ones_like(i)
    return torch.sin(math.pi / 2 * (torch.minimum(i, tile - i) / ramp).clamp_max(1)).square()


def over_tiles(
    x: Tensor,
    tile: tuple[int, int],
    overlap: tuple[int, int],
    apply: Callable[[Tensor, list[int]], Tensor],
    at_once: int,
    tick: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """x (B, C, H, W) -> (B, C, H, W): the mean of what `apply` makes of the tiles that cover a pixel, weighed by `window`.

    `apply` takes (n, C, *tile), n <= `at_once`, and the number of the image that each tile is of. H and W are at least the tile's.
    `tick` is told how many tiles are done."""
    high, wide = (window(t, o, x) for t, o in zip(tile, overlap))
    weights = high[:, None] * wide
    total, norm = torch.zeros_like(x), x.new_zeros(x.shape[2:])
    places = [(r, c) for r in starts(x.shape[2], tile[0], overlap[0]) for c in starts(x.shape[3], tile[1], overlap[1])]
    for r, c in places:
        norm[r : r + tile[0], c : c + tile[1]] += weights
    for part in _parts([(i, r, c) for i in range(len(x)) for r, c in places], at_once):
        stack = torch.stack([x[i, :, r : r + tile[0], c : c + tile[1]] for i, r, c in part])
        for (i, r, c), y in zip(part, apply(stack, [i for i, _, _ in part])):
            total[i, :, r : r + tile[0], c : c + tile[1]] += weights * y
        tick(len(part))
    return total / norm


def _parts(items: list[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]
