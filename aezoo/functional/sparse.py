"""Sparse codes: which activations are kept, estimators of gradients that a step function does not have, penalties.

Legend: B batch, D data dims, K latents; z pre-activation, theta its threshold, H(u) = 1[u > 0], eps the bandwidth of an estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import full, per_sample

# ------------------------------------------------------------------------------------------------------- what is kept


def lifetime_cutoff(z: Tensor, n: int) -> Tensor:
    """The n-th largest activation of each latent over the batch: (B, K) -> (K,) (arXiv:1409.2752, section 2)."""
    return z.topk(n, dim=0, sorted=False).values.amin(0)


def batch_cutoff(z: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n-th largest of all activations of a batch, and the smallest positive one among those n: (B, K) -> (), ().

    The second is infinite where none of them is positive."""
    values = z.flatten().topk(n, sorted=False).values
    return values.amin(), torch.where(values > 0, values, torch.inf).amin()


# ------------------------------------------------------------------------------------- straight-through estimators


def _in_window(z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """K((z - theta) / eps) with the rectangle K(u) = 1[|u| < 1/2]."""
    return ((z - theta).abs() < bandwidth / 2).to(z.dtype)


def _slope(value: Tensor, by: Tensor, estimate: Tensor) -> Tensor:
    """`value` to the bit, with `estimate` as its derivative by `by` (in addition to what it has).

    Of plain operations and no autograd function of our own: compilers and `torch.func` see the gradient, too."""
    return value + estimate.detach() * (by - by.detach())


def jump_relu(z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """f = z H(z - theta), z (B, K), theta (K,) (arXiv:2407.14435, section 3).

    df/dz = H(z - theta); df/dtheta is estimated as -(theta / eps) K((z - theta) / eps), K(u) = 1[|u| < 1/2], where z is what comes
    *before* the jump. In at least float32."""
    z, theta = full(z), full(theta)
    return _slope(z * (z > theta), theta, -(theta / bandwidth) * _in_window(z, theta, bandwidth))


def step_above(z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """H(z - theta) of each entry, so that its sum over K is L0: (B, K), (K,) -> (B, K) (arXiv:2407.14435, section 3).

    dH/dtheta is estimated as -(1 / eps) K((z - theta) / eps); dH/dz is 0."""
    z, theta = full(z).detach(), full(theta)
    return _slope((z > theta).to(z.dtype), theta, -_in_window(z, theta, bandwidth) / bandwidth)


def across_rows(weight: Tensor) -> Tensor:
    """The identity, with the part of the gradient along each row taken away: g - (g . w) w / ||w||^2. (K, D) -> (K, D).

    For rows that are kept at unit length: so no optimiser's moments ever see what the normalisation would undo."""
    unit = F.normalize(weight.detach(), dim=1)
    along = (unit * weight).sum(1, keepdim=True)
    return weight + unit * (along.detach() - along)


# -------------------------------------------------------------------------------------------------- errors, penalties


def relative_error(estimate: Tensor, x: Tensor) -> Tensor:
    """||x - x^||^2 / ||x||^2 of each sample, 0 where x is 0: (B, ...) -> (B,)."""
    size = per_sample(full(x).square())
    some = size > 0
    error = per_sample((full(x) - full(estimate)).square())
    return torch.where(some, error / torch.where(some, size, 1), 0)  # the denominator is safe in the backward pass, too


def weighted_l1(f: Tensor, weights: Tensor) -> Tensor:
    """sum_i |f_i| w_i: (B, K), (K,) -> (B,)."""
    return per_sample(full(f).abs() * full(weights))


# ---------------------------------------------------------------------------------------------------------- Jacobians


def sigmoid_jacobian(h: Tensor, weight: Tensor) -> Tensor:
    """||dh/dx||_F^2 of one layer h = sigmoid(W x + b): sum_j (h_j (1 - h_j))^2 sum_i W_ji^2, (B, K), (K, D) -> (B,)
    (Rifai et al. 2011)."""
    h = full(h)
    return per_sample((h * (1 - h)).square() * full(weight).square().sum(1))


def exact_jacobian(pull: Callable[[Tensor], tuple[Tensor, ...]], h: Tensor) -> Tensor:
    """||dh/dx||_F^2 by all K rows of the Jacobian; `pull` (from `torch.func.vjp`) maps v to J^T v. (B, K) -> (B,)."""
    basis = torch.eye(h.shape[1], dtype=h.dtype, device=h.device)[:, None].expand(-1, len(h), -1)  # (K, B, K)
    rows = torch.func.vmap(lambda v: pull(v)[0])(basis)  # (K, B, *input_shape)
    return full(rows).square().transpose(0, 1).flatten(1).sum(1)


def hutchinson_jacobian(pull: Callable[[Tensor], tuple[Tensor, ...]], h: Tensor, draws: int = 1) -> Tensor:
    """An unbiased estimate of ||dh/dx||_F^2: the mean of ||J^T v||^2 over `draws` v of random signs, E[v v^T] = I. (B, K) -> (B,)."""
    total: Any = 0
    for _ in range(draws):
        signs = torch.where(torch.rand_like(h) < 0.5, -1.0, 1.0).to(h.dtype)
        total = total + per_sample(full(pull(signs)[0]).square())
    return total / draws
