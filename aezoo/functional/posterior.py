"""A Gaussian posterior's draw and its KL divergence, from what the encoder says, in one step of the gradient.

Legend: B batch, K latents; h (B, 2K) = mu, v; logvar = limit tanh(v / limit); q = N(mu, diag exp(logvar)).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .core import gaussian_kl, plain_cpu, soft_bound


def _as_written(h: Tensor, noise: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    mu, v = h.chunk(2, dim=1)
    logvar = soft_bound(v, limit)
    return mu + torch.exp(0.5 * logvar).to(mu.dtype) * noise, gaussian_kl(mu, logvar)


class _Posterior(torch.autograd.Function):
    """The same numbers by a third of the calls, which are what so small tensors cost: with gz and gk the gradients of z and KL,
    d mu = gz + gk mu,  d v = (gz sigma noise + gk (sigma^2 - 1)) / 2 * (1 - tanh^2)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, noise: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        mu, v = h.chunk(2, dim=1)
        tanh = v.div(limit).tanh_()
        logvar = tanh * limit
        scaled, excess = torch.exp(logvar * 0.5).mul_(noise), torch.expm1(logvar)
        ctx.save_for_backward(h, noise, tanh, scaled, excess)
        ctx.limit = limit
        kl = mu.square().add_(excess).sub_(logvar).sum(1).mul_(0.5)
        return mu + scaled, kl

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        h, noise, tanh, scaled, excess = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            (to_h,) = torch.autograd.grad(_as_written(h, noise, ctx.limit), h, gradients, create_graph=True)
            return to_h, None, None
        gz, gk = gradients[0], gradients[1].unsqueeze(1)  # (B, K), (B, 1)
        to_h = torch.empty_like(h)
        to_mu, to_v = to_h.chunk(2, dim=1)
        torch.addcmul(gz, h.chunk(2, dim=1)[0], gk, out=to_mu)
        torch.mul(scaled, gz, out=to_v)
        to_v.addcmul_(excess, gk).mul_(tanh.square().mul_(-0.5).add_(0.5))
        return to_h, None, None


def draw_and_kl(h: Tensor, noise: Tensor, limit: float = 10.0) -> tuple[Tensor, Tensor]:
    """z = mu + sigma noise, and KL(q || N(0, I)) in nats: (B, 2K), (B, K) -> (B, K), (B,); `noise` is given no gradient."""
    if h.dim() == 2 and h.requires_grad and torch.is_grad_enabled() and plain_cpu(h) and not noise.requires_grad:
        z, kl = _Posterior.apply(h, noise, limit)
        return z, kl
    return _as_written(h, noise, limit)
