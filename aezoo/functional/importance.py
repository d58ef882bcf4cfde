"""Importance weights and mixtures: what is averaged inside of a logarithm.

Legend: B batch, k draws per sample, C components, K latents; log_w = log p(x, z) - log q(z|x) of one draw z ~ q(z|x).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .core import LOG_2PI, full

HELD = 2**24  # differences between latents and components held at once: 64 MiB in float32


def importance_bound(log_w: Tensor) -> Tensor:
    """log 1/k sum_i w_i over the last axis, nats, (..., k) -> (...): a lower bound on log p(x) in expectation
    (arXiv:1509.00519, eq. 8)."""
    log_w = full(log_w)
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def normalized_weights(log_w: Tensor) -> Tensor:
    """w_i / sum_j w_j over the last axis, (..., k) -> (..., k)."""
    return torch.softmax(full(log_w), -1)


def path_factor(log_w: Tensor, beta: float = 0.0) -> Tensor:
    """By what the doubly reparameterised gradient multiplies the one that reaches each z: (..., k) -> (..., k), no gradient.

    The gradient of the bound with respect to z_i is v_i dlog w_i/dz_i, v the normalised weights. With q's parameters held
    in log w, sum_i v_i^2 dlog w_i/dz_i dz_i/dphi has the same expectation (arXiv:1810.04152), so the factor is v_i. For
    beta ELBO + (1 - beta) bound the weights are b_i = beta/k + (1 - beta) v_i, and beta/k + (1 - beta) v_i^2 on the path
    to z: the ELBO is the bound of one draw, whose v is 1."""
    v = normalized_weights(log_w.detach())
    if beta == 0:
        return v
    share = beta / log_w.shape[-1]
    return (share + (1 - beta) * v.square()) / (share + (1 - beta) * v)


def gaussian_mixture_log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log 1/C sum_c N(z; mu_c, diag exp(logvar_c)), nats: z (B, K), mu and logvar (C, K) -> (B,).

    Squared differences are taken before they are summed (a matrix product would cancel digits where a component is narrow),
    at most 2^24 at once."""
    z, mu, logvar = full(z), full(mu), full(logvar)
    precision, log_norm = torch.exp(-logvar), (logvar + LOG_2PI).sum(1)

    def log_prob(rows: Tensor) -> Tensor:
        distance = ((rows[:, None] - mu).square() * precision).sum(2)  # (B, C)
        return importance_bound(-0.5 * (distance + log_norm))

    at_once = max(1, HELD // mu.numel())
    return log_prob(z) if len(z) <= at_once else torch.cat([log_prob(rows) for rows in z.split(at_once)])
