"""Ways through a latent space: what moves along them, from where to where.

Where a code is a few numbers, each is a way of its own, those that vary most first; where it is a map or a long vector, the ways are
the principal components of the codes of some data; where it is sparse, they are the latents that fire most.

Legend: N codes, K numbers of a code, W ways.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .base import BaseAE, positive

FEW, MANY = 32, 256  # numbers up to which each is a way of its own; the latter where a KL keeps them apart
REACH = 2.5  # standard deviations to each side of the mean


class Directions(NamedTuple):
    """W straight lines through a latent space."""

    centre: Tensor
    """The mean of the codes, (K,)."""
    axes: Tensor
    """Unit vectors, (W, K)."""
    low: Tensor
    """Where each way begins, in the units of `axes` and as a coordinate: (W,)."""
    high: Tensor
    """Where it ends, (W,)."""
    names: list[str]
    """What each is called, in words."""

    def coordinates(self, z: Tensor) -> Tensor:
        """Codes (N, *latent_shape) -> where they lie on each way, (N, W)."""
        return (z.flatten(1) - self.origin) @ self.axes.T

    def moved(self, z: Tensor, where: Tensor) -> Tensor:
        """Codes (N, *latent_shape) with their coordinates set to `where` (N, W); what lies across the ways stays."""
        return (z.flatten(1) + (where - self.coordinates(z)) @ self.axes).view_as(z)

    @property
    def origin(self) -> Tensor:
        """Where all coordinates are 0: single latents are measured from 0, principal components from the mean."""
        return self.centre if self.names and self.names[0].startswith("component") else torch.zeros_like(self.centre)


def no_code(model: BaseAE) -> str:
    """Why there is no way through the latent space of this model; "" if there is one."""
    if isinstance(model.decoder, nn.Identity):
        return f"{model.name} has no narrow code: its code is the denoised sample itself"
    return ""


def directions(model: BaseAE, z: Tensor, most: int = 8) -> Directions:
    """The `most` ways that matter most in codes z (N, *latent_shape) of a model.

    Each reaches 2.5 standard deviations to both sides of the mean of the codes; a latent that fires from 0 to its largest value."""
    positive("most", most)
    flat = z.detach().flatten(1)
    centre, numbers = flat.mean(0), flat.shape[1]
    if model.sparse_code:
        firing = (flat > 0).float().mean(0)
        chosen = firing.argsort(descending=True, stable=True)[:most]
        axes = torch.eye(numbers, dtype=flat.dtype, device=flat.device)[chosen]
        low, high = torch.minimum(flat.min(0).values[chosen], flat.new_zeros(())), flat.max(0).values[chosen]
        names = [f"latent {i + 1} (fires for {firing[i]:.0%})" for i in chosen.tolist()]
    elif len(model.latent_shape) == 1 and numbers <= (MANY if model.bound else FEW):
        spread = flat.std(0, correction=0)
        chosen = spread.argsort(descending=True, stable=True)[:most]
        axes = torch.eye(numbers, dtype=flat.dtype, device=flat.device)[chosen]
        low, high = (centre + side * REACH * spread for side in (-1, 1))
        low, high = low[chosen], high[chosen]
        names = [f"z{i + 1}" for i in chosen.tolist()]
    else:
        some = flat[:512].double() - centre.double()
        _, s, v = torch.linalg.svd(some.cpu(), full_matrices=False)
        axes = v[: min(most, len(some) - 1 or 1)].to(flat)
        spread = (s[: len(axes)] / len(some) ** 0.5).to(flat)
        low, high = -REACH * spread, REACH * spread
        share = s.square() / s.square().sum().clamp_min(1e-30)
        names = [f"component {i + 1} ({share[i]:.0%})" for i in range(len(axes))]
    high = torch.where(high > low, high, low + 1)  # a latent that never moves, and a single code
    return Directions(centre, axes, low, high, names)


def unit(model: BaseAE, most: int = 8) -> Directions:
    """The first `most` numbers of the code from -REACH to REACH, where there is no data to ask what varies."""
    like = next(model.parameters())
    numbers = torch.Size(model.latent_shape).numel()
    axes = torch.eye(numbers, dtype=like.dtype, device=like.device)[:most]
    ends = torch.full((len(axes),), REACH, dtype=like.dtype, device=like.device)
    low = torch.zeros_like(ends) if model.sparse_code else -ends
    return Directions(like.new_zeros(numbers), axes, low, ends, [f"z{i + 1}" for i in range(len(axes))])
