"""Gaussians over several layers of latents. Legend: q approximate posterior, p prior of a layer given the layers above it."""

from __future__ import annotations

import torch
from torch import Tensor

from .core import full, per_sample


def gaussian_kl_between(mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL(N(mu_q, diag exp(logvar_q)) || N(mu_p, diag exp(logvar_p))), nats, (B, ...) -> (B,).

    1/2 sum((mu_q - mu_p)^2 / var_p + var_q / var_p - 1 - log(var_q / var_p))."""
    ratio = full(logvar_q) - full(logvar_p)
    distance = (full(mu_q) - full(mu_p)).square() * torch.exp(-full(logvar_p))
    return 0.5 * per_sample(distance + torch.expm1(ratio) - ratio)


def precision_weighted(mu_a: Tensor, logvar_a: Tensor, mu_b: Tensor, logvar_b: Tensor) -> tuple[Tensor, Tensor]:
    """(mu, logvar) of the normalised product of two Gaussians (arXiv:1602.02282, eq. 13 and 14), elementwise:

    1 / var = 1 / var_a + 1 / var_b,   mu = var (mu_a / var_a + mu_b / var_b)."""
    logvar = -torch.logaddexp(-full(logvar_a), -full(logvar_b))
    mu = torch.exp(logvar) * (full(mu_a) * torch.exp(-full(logvar_a)) + full(mu_b) * torch.exp(-full(logvar_b)))
    return mu, logvar
