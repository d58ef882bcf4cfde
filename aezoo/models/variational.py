"""Variational autoencoders.

Legend: B batch, K latents; q(z|x) = N(mu, diag exp(logvar)), p(z) = N(0, I). Everything in nats per sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import functional as fn
from ..base import BaseAE, Code, Pass, Spec, Terms, count, number, positive
from ..priors import StandardNormal
from ..registry import register
from ..wholebatch import rows_per_sample, whole_size

BOUND = 10.0  # of a log-variance
CHUNK = 2**24  # decoded values held at once by log_prob: 64 MiB in float32
CACHED = 2**20  # the same on a CPU, where 4 MiB stay in its cache: more than twice as fast


class Variational(BaseAE):
    """What every model with a Gaussian posterior q(z|x) = N(mu, diag exp(logvar)) and a prior shares; no model by itself.

    The log-variance is bounded softly to (-10, 10): 10 tanh(v / 10)."""

    code_params = 2
    bound = True
    generative = True
    main_metric = "elbo"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, likelihood: Spec = "gaussian", **base: Any):
        super().__init__(input_shape, latent_dim, likelihood=likelihood, **base)
        self.prior = StandardNormal()

    def posterior(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output (B, 2K) -> mu, logvar, (B, K) each."""
        mu, logvar = h.chunk(2, dim=1)
        return mu, fn.soft_bound(logvar, BOUND)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms] | Code:
        if sample and type(self).posterior is Variational.posterior:
            z, kl = fn.draw_and_kl(h, torch.randn_like(h.chunk(2, dim=1)[0]), BOUND)
            return z, {"kl": kl}
        mu, logvar = self.posterior(h)
        z = mu + torch.exp(0.5 * logvar).to(mu.dtype) * torch.randn_like(mu) if sample else mu
        return z, {"kl": fn.gaussian_kl(mu, logvar)}

    def draw(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """One draw z ~ q(z|x) for each row of h, and log q(z|x): (B, *latent_shape) in at least float32, (B,).

        A draw that is rounded to h's precision is none of q: its densities are off by nats where q is narrow and far from 0. So
        they are taken of this one, and what is decoded is cast afterwards."""
        mu, logvar = self.posterior(h)
        mean = fn.full(mu)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return z, -fn.gaussian_nll(z, mean, 0.5 * logvar)

    def log_prob(self, x: Tensor, n: int = 5000, condition: Tensor | None = None) -> Tensor:
        """log p(x) ~ log 1/n sum_i p(x|z_i) p(z_i) / q(z_i|x), z_i ~ q(z|x), in nats: (B, *input_shape) -> (B,) float64.

        A lower bound in expectation that rises to log p(x) with n (arXiv:1509.00519, eq. 8). The logsumexp runs in float64; at
        most 2^24 decoded values (2^20 on a CPU) are held at once (but at least one sample), and exactly n samples are drawn for each x. Uses
        the global RNG. (`aezoo.evaluate(model, data, log_prob=n)` tells how sure the estimate is.)"""
        self.check_input(x)
        self.check_condition(condition, len(x))
        positive("n", n)
        at_once = _at_once(x)
        if len(x) > at_once:
            conditions = condition.split(at_once) if condition is not None else [None] * len(x)
            return torch.cat([self.log_prob(part, n, c) for part, c in zip(x.split(at_once), conditions)])
        with self.evaluating(), torch.no_grad():
            h = self.hidden(x, condition)
            total = torch.full((), -math.inf)
            for s in self.draws_at_once(n, x):
                part = torch.logsumexp(self.log_weights(x, h, s, condition), 0)
                total = torch.logaddexp(total.to(part), part)
            return total - math.log(n)

    def draws_at_once(self, n: int, x: Tensor) -> list[int]:
        """n draws for each x (B, *input_shape) in parts, such that no more decoded values are held at once than `log_prob` says, but
        at least one draw. They are the same however a batch is spread."""
        step = max(1, _at_once(x) // whole_size(len(x)))
        return [min(step, n - done) for done in range(0, n, step)]

    def log_weights(self, x: Tensor, h: Tensor, draws: int, condition: Tensor | None = None) -> Tensor:
        """log w = log p(x|z) + log p(z) - log q(z|x) at `draws` z ~ q(z|x) of each x, nats: x (B, *input_shape), h its encoder output
        -> (draws, B), float64 where the device has it. For evaluation mode; uses the global RNG."""
        with rows_per_sample(draws):
            z, log_q = self.draw(_each(h, draws))  # (B * draws, ...): those of a sample lie behind each other
            c = None if condition is None else _each(condition, draws)
            log_joint = self.prior.log_prob(z) - self.likelihood.nll(self.emit(z.to(h.dtype), c), _each(x, draws))
        log_w = (log_joint - log_q).view(len(x), draws).T
        return log_w if log_w.device.type == "mps" else log_w.double()


@register("vae")
class VAE(Variational):
    """Variational autoencoder: minimises -ELBO = E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)), beta = 1.

    Paper: Kingma & Welling 2013, arXiv:1312.6114 (eq. 10).
    Deviations: the log-variance is bounded softly to (-10, 10) (10 tanh(v / 10)); the default likelihood is a Gaussian whose
    sigma is the batch's closed-form optimum (sigma-VAE, arXiv:2006.13202), which needs no hand-set weight between the terms.

    Args (beside those of `BaseAE`):
        beta: weight of the KL term; > 1 is a beta-VAE.
        kl_warmup: optimiser steps over which the weight rises linearly from 0 to `beta` in training (0: none). In evaluation
            mode the weight is always `beta`, so validation losses compare across steps.

    Terms: "recon" and "kl"; metric "elbo" = -(recon + kl), whatever beta is. `forward` draws z from q in either mode (the
    bound is defined by that draw); `encode` returns mu."""

    paper = "arXiv:1312.6114"
    weight_keywords: ClassVar[tuple[str, ...]] = ("beta", "kl_warmup")
    num_steps: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        likelihood: Spec = "gaussian",
        beta: float = 1.0,
        kl_warmup: int = 0,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, likelihood=likelihood, **base)
        self.beta = number("beta", beta, "a number of at least 0", lambda v: 0 <= v < math.inf)
        self.kl_warmup = count("kl_warmup", kl_warmup)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    def term_weights(self) -> dict[str, float | Tensor]:
        if self.training and self.kl_warmup:
            return {"kl": self.beta * (self.num_steps / self.kl_warmup).clamp(max=1.0)}
        return {"kl": self.beta}

    def after_step(self) -> None:
        self.num_steps += 1

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super().propagate(x, target, condition)
        return out._replace(metrics={**out.metrics, "elbo": -(out.terms["recon"] + out.terms["kl"])})


def _at_once(x: Tensor) -> int:
    """Samples like those of x (B, ...) that are decoded at once by log_prob."""
    values = min(CHUNK, CACHED) if x.device.type == "cpu" else CHUNK
    return max(1, values // math.prod(x.shape[1:]))


def _each(x: Tensor, n: int) -> Tensor:
    """(B, ...) -> (B * n, ...): every row n times, one behind the other."""
    return x.repeat_interleave(n, 0)


@register("beta_vae")
class BetaVAE(VAE):
    """VAE with a heavier KL term: E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)), beta = 4 by default, for disentangled latents.

    Paper: Higgins et al. 2017, "beta-VAE: Learning basic visual concepts with a constrained variational framework" (ICLR).
    Both terms are sums over dims, so beta is the paper's beta and not divided by D or K. Deviations: those of `vae`."""

    paper = "Higgins et al. 2017 (ICLR)"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, beta: float = 4.0, **base: Any):
        super().__init__(input_shape, latent_dim, beta=beta, **base)
