"""Sprites: pictures of one shape each, made up here from five known factors.

    factor        values
    shape         square, ellipse, heart
    scale         6, from half to full size (a radius of 1/8 to 1/4 of the picture's side)
    orientation   10 in steps of 9 degrees, counter-clockwise
    x, y          16 each, 1/32 of the side apart, rightwards and downwards

All 46,080 combinations make the grid, and no two make the same picture: orientations stop short of a quarter turn, after which a square would be
back where it began (in dSprites, whose idea this is, they do not, and so cannot be told from the picture).

Each shape is drawn once for each scale and orientation, eight by eight points a pixel, and put where it belongs; positions are whole
multiples of a pixel or half one. Everything is whole-number arithmetic: the same bits on every machine.

Legend: N pictures, S side in pixels, G glyphs (a shape at a scale and an orientation), E side of a glyph.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ..base import positive
from ..randomness import checked_seed
from ..registry import choice

SHAPES = ("square", "ellipse", "heart")
FACTORS = ("shape", "scale", "orientation", "x", "y")
SIZES = (3, 6, 10, 16, 16)
GRID = math.prod(SIZES)  # 46,080
HELD_OUT = 6_080  # of the grid, to test
FINE = 8  # points a pixel, each way
TURN = 2**14  # 1 in sines and cosines
UNIT = 512  # the radius of a shape, in the coordinates that it is drawn in


def sprites(split: str = "train", samples: int | None = None, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (N, 1, size, size) uint8 of a random part of the grid, and their factors (N, 5), int64 indices in the order of `FACTORS`.

    split: "train" draws from 40,000 combinations, "test" from the other 6,080; "all" is the whole grid, the last factor fastest.
    samples: how many, all of them by default. `seed` shuffles the grid before it is parted; a smaller N is the beginning of a larger.
    Raises ValueError for a size that is no multiple of 32 and for more samples than there are."""
    choice("split", split, ["train", "test", "all"])
    which = torch.arange(GRID)
    if split != "all":
        order = torch.randperm(GRID, generator=torch.Generator().manual_seed(checked_seed(seed)))
        which = order[:HELD_OUT] if split == "test" else order[HELD_OUT:]
    if samples is not None and positive("samples", samples) > len(which):
        raise ValueError(f"samples={samples} is more than the {len(which):,} sprites of split={split!r}")
    factors = factors_of(which[:samples])
    return draw(factors, size), factors


def factors_of(which: Tensor) -> Tensor:
    """Positions in the grid (N,) -> factors (N, 5)."""
    return torch.stack(torch.unravel_index(which, SIZES), 1)


def draw(factors: Tensor, size: int = 32) -> Tensor:
    """Factors (N, 5), indices in the order of `FACTORS` -> pictures (N, 1, size, size) uint8, white on black.

    Raises ValueError for a size that is no multiple of 32, and for factors that are no such indices."""
    if positive("size", size) % 32:
        raise ValueError(f"size={size!r} must be a multiple of 32, so that the sprites' positions fall on the pixels")
    sizes = torch.tensor(SIZES)
    if factors.dim() != 2 or factors.shape[1] != 5 or factors.is_floating_point():
        raise ValueError(f"factors must be whole numbers, (N, 5); got {factors.dtype} of shape {tuple(factors.shape)}")
    if bool(((factors < 0) | (factors >= sizes.to(factors.device))).any()):
        raise ValueError(f"factors must be indices below {SIZES} ({', '.join(FACTORS)})")
    shape, scale, orientation, x, y = factors.cpu().long().unbind(1)
    stored = glyphs(size)
    edge, step = stored.shape[-1], size // 32
    which = (shape * SIZES[1] + scale) * SIZES[2] + orientation
    pixels = torch.arange(size)
    left, top = (_corner(p, size, step, edge) for p in (x, y))  # (N,)
    columns, rows = (
        (pixels - start[:, None]).clamp(0, edge - 1) for start in (left, top)
    )  # the rim of a glyph is black
    return stored[which[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def _corner(position: Tensor, size: int, step: int, edge: int) -> Tensor:
    """First pixel of a glyph whose middle lies at size / 2 + (position - 7.5) step."""
    middle2 = size + (2 * position - SIZES[3] + 1) * step  # in half pixels
    return (middle2 - edge) // 2  # a glyph's side is odd where `step` is


@cache
def glyphs(size: int) -> Tensor:
    """All shapes at all scales and orientations, (G, E, E) uint8, with a black rim of at least one pixel."""
    edge = (
        size // 2 + 4 - size // 32 % 2
    )  # the largest has a radius of size / 4; odd where positions are at middles of pixels
    point = 2 * torch.arange(edge * FINE) + 1 - edge * FINE  # from the middle, in 1 / (2 FINE) of a pixel
    right, up = point[None, :], -point[:, None]
    turns = torch.arange(SIZES[2])
    cosine, sine = (
        torch.tensor([round(TURN * f(math.radians(9 * int(t)))) for t in turns]).view(-1, 1, 1)
        for f in (math.cos, math.sin)
    )
    drawn = []
    for shape in SHAPES:
        for scale in range(SIZES[1]):
            radius = 2 * FINE * size * (scale + 5)  # / 40; size / 4 at scale 5
            u, v = (
                torch.div(40 * UNIT * along, radius * TURN, rounding_mode="floor").clamp(-3 * UNIT // 2, 3 * UNIT // 2)
                for along in (right * cosine + up * sine, up * cosine - right * sine)
            )  # (10, E FINE, E FINE), turned back
            inside = _inside(shape, u, v).view(SIZES[2], edge, FINE, edge, FINE)
            count = inside.sum((2, 4))
            drawn.append((count * 255 + FINE * FINE // 2) // (FINE * FINE))
    return torch.cat(drawn).to(torch.uint8)


def _inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Whether points lie in a shape of radius `UNIT` about the origin."""
    if shape == "square":
        half = UNIT * 7 // 10
        return (u.abs() <= half) & (v.abs() <= half)
    if shape == "ellipse":  # half as high as wide
        return u.square() + 4 * v.square() <= UNIT * UNIT
    r = UNIT * 7 // 10  # (u^2 + v^2 - r^2)^3 <= r u^2 v^3, which reaches as far as 1.42 r
    outside = u.square() + v.square() - r * r
    return outside * outside * outside <= r * u.square() * v * v * v
