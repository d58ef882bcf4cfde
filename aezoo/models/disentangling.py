"""Variational autoencoders whose latents are to mean one thing each.

Legend: B batch, N training samples, K latents; q(z|x) = N(mu, diag exp(logvar)), q(z) its mean over the data, p(z) = N(0, I); C a
capacity. Everything in nats per sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional as fn
from ..base import Code, Pass, Terms, count, number, positive
from ..critics import held, mlp_critic
from ..registry import choice, register
from ..wholebatch import batch_axis, batch_mean, whole_batch
from .variational import VAE, Variational


def nonnegative(name: str, value: Any) -> float:
    """`value` if it is a finite number of at least 0; else ValueError."""
    return number(name, value, "a number of at least 0", lambda v: 0 <= v < math.inf)


class WeightedVAE(Variational):
    """A VAE whose divergence is weighed in a way of its own. `bottleneck` reports the KL as a term or, where it is none, as a metric."""

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        return Code(*super().bottleneck(h, sample))

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super().propagate(x, target, condition)
        kl = {**out.metrics, **out.terms}["kl"]
        return out._replace(metrics={**out.metrics, "elbo": -(out.terms["recon"] + kl)})


@register("capacity_vae")
class CapacityVAE(WeightedVAE):
    """VAE whose latents are to carry C nats: E_q[-log p(x|z)] + gamma |E_x KL(q(z|x) || p(z)) - C|, C rising linearly from 0.

    The mean over the batch stands inside the absolute value: single samples may carry more or less.

    Paper: Burgess et al. 2018, "Understanding disentangling in beta-VAE", arXiv:1804.03599 (eq. 8).
    Deviations: those of `vae`; a faster annealing by default, see below.

    Args (beside those of `BaseAE`):
        gamma: weight of the distance from C; the paper's 1000 by default.
        capacity: C at the end, nats; the paper's 25 by default.
        anneal: optimiser steps over which C rises from 0 to `capacity` in training (0: it is there from the start); the paper takes
            100,000. In evaluation mode C is always `capacity`, so that validation losses compare across steps.

    Terms: "recon", "capacity" = |mean KL - C|. Metrics: "kl", "elbo" = -(recon + kl)."""

    paper = "arXiv:1804.03599"
    weight_keywords = ("gamma",)
    num_steps: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        gamma: float = 1000.0,
        capacity: float = 25.0,
        anneal: int = 10_000,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.gamma, self.capacity = nonnegative("gamma", gamma), nonnegative("capacity", capacity)
        self.anneal = count("anneal", anneal)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    def gap(self, kl: Tensor, capacity: float) -> Tensor:
        """|mean KL - C| with today's part of `capacity` as C, (B,) -> ()."""
        if self.training and self.anneal:
            return (batch_mean(kl) - capacity * (self.num_steps / self.anneal).clamp(max=1.0)).abs()
        return (batch_mean(kl) - capacity).abs()

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        z, kl, _ = super().bottleneck(h, sample)
        return Code(z, {"capacity": self.gap(kl["kl"], self.capacity)}, kl)

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"capacity": self.gamma}

    def after_step(self) -> None:
        self.num_steps += 1


@register("beta_tc_vae")
class BetaTCVAE(WeightedVAE):
    """VAE whose KL is weighed in three parts: E_q[-log p(x|z)] + alpha MI + beta TC + gamma DWKL.

    E_x KL(q(z|x) || p(z)) = MI(x; z) + KL(q(z) || prod_k q(z_k)) + sum_k KL(q(z_k) || p(z_k)): index-code mutual information, total
    correlation, dimension-wise KL. The middle one asks for independent latents.

    Paper: Chen et al. 2018, arXiv:1802.04942 (eq. 2, 4 and appendix C).
    Deviations: those of `vae`; the weights of "mss" are those of the appendix's formula, not of the authors' listing, which has 1/N in
    its first column instead of on the diagonal; "mss" is the default.

    q(z) is a mean over all N training samples, of which a batch shows B. Args (beside those of `BaseAE`):
        alpha, beta, gamma: weights of MI, TC and DWKL.
        estimator: "mss" (minibatch stratified sampling, an unbiased estimate of q(z) itself) or "mws" (minibatch weighted sampling:
            off by constants of log N and log B, of which the gradient sees nothing).
        num_data: N, the number of training samples. None: what `see_data` was told last; as long as nobody told it anything, N is the
            number of samples in the batch, as if the batch were the whole data set. N is never taken to be less than the batch.

    Terms, means over the batch: "recon", "mi", "tc", "dwkl" (estimates, each may be below 0). Metrics: "kl", the exact one, and
    "elbo" = -(recon + kl). Memory grows with B^2 K."""

    paper = "arXiv:1802.04942"
    weight_keywords = ("alpha", "beta", "gamma")
    samples_seen: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        estimator: str = "mss",
        num_data: int | None = None,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.alpha, self.beta, self.gamma = (
            nonnegative("alpha", alpha),
            nonnegative("beta", beta),
            nonnegative("gamma", gamma),
        )
        self.estimator = choice("estimator", estimator, ["mss", "mws"])
        self.num_data = None if num_data is None else positive("num_data", num_data)
        self.register_buffer("samples_seen", torch.tensor(self.num_data or 0, dtype=torch.long))

    def see_data(self, samples: int) -> None:
        """How many samples there are to train on; `num_data`, where it was given, stays what it is."""
        if self.num_data is None:
            self.samples_seen.fill_(samples)

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        mu, logvar = self.posterior(h)
        kl = {"kl": fn.gaussian_kl(mu, logvar)}
        if not sample:
            return Code(mu, kl)
        mean = fn.full(mu)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)  # not rounded: its density under q is asked for
        draws, means, logvars = whole_batch(z), whole_batch(mean), whole_batch(logvar)
        log_weights = fn.minibatch_log_weights(len(draws), self.samples_seen, self.estimator, like=z)
        parts = fn.kl_decomposition(draws, means, logvars, log_weights)
        return Code(z.to(mu.dtype), {name: part.mean() for name, part in zip(("mi", "tc", "dwkl"), parts)}, kl)

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"mi": self.alpha, "tc": self.beta, "dwkl": self.gamma}


@register("factor_vae")
class FactorVAE(VAE):
    """VAE with a penalty on the total correlation that a discriminator estimates: -ELBO + gamma TC(z).

    The discriminator tells draws of q(z) (label 1) from draws of prod_k q(z_k) (label 0), made by permuting each latent across the
    batch; TC(z) ~ E_q(z) log D(z) / (1 - D(z)), which is its logit. Its own loss takes z detached, and the TC term holds its weights:
    neither side's term reaches the other's parameters.

    Paper: Kim & Mnih 2018, arXiv:1802.05983 (eq. 2 and 3, algorithms 1 and 2).
    Deviations: one logit instead of two; the permuted latents are those of the same batch, not of a second one; both sides step at
    the same time, with one optimiser; the discriminator is smaller than the paper's six layers of 1000 units.

    Args (beside those of `VAE`):
        gamma: weight of the TC term.
        critic_widths: hidden layers of the discriminator.
        critic_lr: its learning rate as a multiple of the optimiser's.

    Terms: "recon", "kl", "tc" (nats, an estimate), "critic" (the discriminator's mean cross-entropy; log 2 where it cannot tell).
    Metric "elbo". In evaluation mode the discriminator's two have no weight: its estimate does not compare across steps, and validation
    losses must."""

    paper = "arXiv:1802.05983"
    game = True
    weight_keywords = ("beta", "kl_warmup", "gamma")

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        gamma: float = 10.0,
        critic_widths: Sequence[int] = (256, 256),
        critic_lr: float = 1.0,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.gamma = nonnegative("gamma", gamma)
        self.critic_lr = number("critic_lr", critic_lr, "a number above 0", lambda v: 0 < v < math.inf)
        widths = [positive("critic_widths", w) for w in critic_widths]
        self.critic = mlp_critic(self.latent_dim, 1, widths)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        z, terms, _ = Code(*super().bottleneck(h, sample))
        if not sample:
            return z, terms
        tc = fn.full(held(self.critic, z)).squeeze(1)
        return z, {**terms, "tc": tc, "critic": self.critic_loss(z.detach())}

    def critic_loss(self, z: Tensor) -> Tensor:
        """Cross-entropy of the discriminator between z and z permuted, (B, K) -> ()."""
        real = whole_batch(z)
        with batch_axis(None):  # one permutation of the whole batch, the same on every process
            permuted = fn.permute_dims(real)
        logits = fn.full(self.critic(torch.cat([real, permuted])).squeeze(1))
        labels = torch.cat([torch.ones_like(logits[: len(real)]), torch.zeros_like(logits[len(real) :])])
        return F.binary_cross_entropy_with_logits(logits, labels)

    def term_weights(self) -> dict[str, float | Tensor]:
        weights = super().term_weights()
        return {**weights, "tc": self.gamma} if self.training else {**weights, "tc": 0.0, "critic": 0.0}

    def rates(self) -> dict[str, dict[str, float]]:
        return {} if self.critic_lr == 1 else {"critic.*": {"lr": self.critic_lr}}


@register("dip_vae")
class DIPVAE(VAE):
    """VAE that matches the second moments of q(z) to those of N(0, I):

        -ELBO + off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2

    with C = Cov_x[mu(x)] (kind="i") or Cov_q(z)[z] = Cov_x[mu(x)] + E_x[diag exp(logvar(x))] (kind="ii"), over the batch (1/B).

    Paper: Kumar et al. 2017, arXiv:1711.00848 (eq. 6 and 7).
    Deviations: those of `vae`.

    Args (beside those of `VAE`):
        kind: "i" or "ii".
        off_diagonal: weight of the covariances between latents.
        diagonal: weight of the variances; by default 10 times `off_diagonal` for kind="i" and as much for kind="ii", as in the paper.

    Terms: "recon", "kl", "off_diagonal", "diagonal" (of the whole batch). Metric "elbo". Memory grows with B K^2."""

    paper = "arXiv:1711.00848"
    weight_keywords = ("beta", "kl_warmup", "off_diagonal", "diagonal")

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        kind: str = "ii",
        off_diagonal: float = 10.0,
        diagonal: float | None = None,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.kind = choice("kind", kind, ["i", "ii"])
        self.off_diagonal = nonnegative("off_diagonal", off_diagonal)
        default = self.off_diagonal * {"i": 10, "ii": 1}[self.kind]
        self.diagonal = default if diagonal is None else nonnegative("diagonal", diagonal)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        z, terms, _ = Code(*super().bottleneck(h, sample))
        mu, logvar = self.posterior(h)
        cov = fn.covariance(whole_batch(fn.full(mu)))
        if self.kind == "ii":
            cov = cov + torch.diag(batch_mean(torch.exp(logvar)))
        off_diagonal, diagonal = fn.identity_gaps(cov)
        return z, {**terms, "off_diagonal": off_diagonal, "diagonal": diagonal}

    def term_weights(self) -> dict[str, float | Tensor]:
        return {**super().term_weights(), "off_diagonal": self.off_diagonal, "diagonal": self.diagonal}
