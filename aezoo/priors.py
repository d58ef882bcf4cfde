"""Priors p(z): what a generative model samples its latents from. B batch, K latents; log-densities in nats per sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import functional as fn


class StandardNormal(nn.Module):
    """p(z) = N(0, I)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """(B, ...) -> (B,)."""
        return -fn.gaussian_nll(z, torch.zeros_like(z), 0.0)

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the given latent shape, with the dtype and device of `like`: (n, *shape)."""
        return torch.randn((n, *shape), dtype=like.dtype, device=like.device, generator=generator)
