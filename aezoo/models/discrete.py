"""Autoencoders of which part of the code is a category.

Legend: B batch, K continuous latents, C_j categories of the j-th discrete latent; q(c_j|x) = Cat(softmax(logits_j)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as fn
from ..base import Code, number, positive
from ..priors import StandardNormal
from ..registry import register
from .disentangling import CapacityVAE, nonnegative


def gumbel_like(logits: Tensor) -> Tensor:
    """Standard Gumbel noise in the form of `logits`."""
    return -torch.empty_like(logits, memory_format=torch.contiguous_format).exponential_().log()


def one_hot(scores: Tensor) -> Tensor:
    """A one at the largest of each row, (B, C) -> (B, C)."""
    return torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1.0)


class NormalAndCategories(nn.Module):
    """p(z) = N(0, I) on the first `latents` entries, times a uniform distribution on the one-hot vectors of each discrete latent."""

    def __init__(self, latents: int, categories: Sequence[int]):
        super().__init__()
        self.latents, self.categories = latents, tuple(categories)
        self.normal = StandardNormal()

    def log_prob(self, z: Tensor) -> Tensor:
        """(B, K + sum C_j) -> (B,); the log-density of the continuous part plus the log-probability of the categories."""
        return self.normal.log_prob(z[:, : self.latents]) - sum(map(math.log, self.categories))

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, *shape), with the dtype and device of `like`."""
        parts = [self.normal.sample(n, (self.latents,), like, generator)]
        for c in self.categories:
            drawn = torch.randint(c, (n,), device=like.device, generator=generator)
            parts.append(F.one_hot(drawn, c).to(like.dtype))
        return torch.cat(parts, 1)


@register("joint_vae")
class JointVAE(CapacityVAE):
    """VAE with continuous and discrete latents: E_q[-log p(x|z, c)] + gamma |mean KL_z - C_z| + gamma |mean KL_c - C_c|.

    q(z|x) is a Gaussian, q(c_j|x) a categorical, both independent given x; p(z) = N(0, I), p(c_j) uniform. In training c_j is relaxed:
    softmax((logits + Gumbel noise) / temperature). In evaluation mode it is drawn as it is, a one-hot vector, so that "elbo" is a
    bound of the model that `sample` draws from.

    Paper: Dupont 2018, arXiv:1804.00104 (eq. 7).
    Deviation: draws in evaluation mode, see above.

    The code is (z, c_1, c_2, ...), `latent_dim` + sum C_j numbers. `encode` gives the mean and the one-hot vectors of the most probable
    categories; `sample=True` draws both.

    Args (beside those of `BaseAE`; `latent_dim` is the number of continuous latents):
        categories: C_j of each discrete latent.
        gamma: weight of both distances.
        capacity: C_z at the end, nats.
        discrete_capacity: C_c at the end, nats; by default, and at most, sum_j log C_j, beyond which the KL cannot go.
        anneal: optimiser steps over which both rise from 0 in training (0: they are there from the start). In evaluation mode they are
            at their ends.
        temperature: of the relaxation.

    Terms: "recon", "capacity" = |mean KL_z - C_z|, "discrete_capacity" = |mean KL_c - C_c|. Metrics: "kl" = KL_z + KL_c,
    "kl_continuous", "kl_discrete" (exact, of the categorical that is relaxed), "elbo" = -(recon + kl)."""

    paper = "arXiv:1804.00104"

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 10,
        *,
        categories: Sequence[int] = (10,),
        gamma: float = 30.0,
        capacity: float = 5.0,
        discrete_capacity: float | None = None,
        temperature: float = 0.67,
        **base: Any,
    ):
        several = isinstance(categories, Sequence) and not isinstance(categories, str) and len(categories) > 0
        if not several or min(positive("categories", c) for c in categories) < 2:
            raise ValueError(f"categories={categories!r} must be integers of at least 2, e.g. (10,) or (3, 4)")
        sizes = tuple(int(c) for c in categories)
        limit = sum(map(math.log, sizes))
        top = limit if discrete_capacity is None else nonnegative("discrete_capacity", discrete_capacity)
        if top > limit:
            raise ValueError(
                f"discrete_capacity={discrete_capacity!r} is more than {limit:.4g} nats, sum log C_j, and can never be reached"
            )
        temperature = number("temperature", temperature, "a number above 0", lambda v: 0 < v < math.inf)
        self.categories = sizes  # first: the networks are built around it
        super().__init__(input_shape, latent_dim, gamma=gamma, capacity=capacity, **base)
        self.prior = NormalAndCategories(self.latent_dim, sizes)
        self.discrete_capacity, self.temperature = top, temperature

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One number for each continuous latent and each category."""
        return (self.latent_dim + sum(self.categories),)

    def build_networks(self) -> None:
        sizes = (self.input_shape, self.latent_shape[0], self.code_params, self.likelihood.num_params)
        self.encoder, self.decoder = self.backbone.build(*sizes)

    def posterior(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Of the continuous latents: encoder output -> mu, logvar, (B, K) each."""
        mu, logvar = super().posterior(h)
        return mu[:, : self.latent_dim], logvar[:, : self.latent_dim]

    def logits(self, h: Tensor) -> list[Tensor]:
        """Of the discrete latents: encoder output -> (B, C_j) each.

        The encoder emits two numbers for every entry of the code; of a category the first is its logit, the second is not read."""
        return list(fn.full(h.chunk(2, dim=1)[0][:, self.latent_dim :]).split(self.categories, 1))

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        z, terms, metrics = super().bottleneck(h, sample)
        assert metrics is not None
        logits, kl_z = self.logits(h), metrics["kl"]
        kl_c = torch.stack([fn.categorical_kl(part) for part in logits]).sum(0)
        if not sample:
            c = [one_hot(part) for part in logits]
        elif self.training:
            c = [torch.softmax((part + gumbel_like(part)) / self.temperature, 1) for part in logits]
        else:
            c = [one_hot(part + gumbel_like(part)) for part in logits]
        terms = {**terms, "discrete_capacity": self.gap(kl_c, self.discrete_capacity)}
        metrics = {"kl": kl_z + kl_c, "kl_continuous": kl_z, "kl_discrete": kl_c}
        return Code(torch.cat([z, *(part.to(z.dtype) for part in c)], 1), terms, metrics)

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"capacity": self.gamma, "discrete_capacity": self.gamma}

    def draw(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """One draw of z and of the categories (one-hot) for each row of h, and log q of both: (B, *latent_shape), (B,)."""
        z, log_q = super().draw(h)
        logits = self.logits(h)
        c = [one_hot(part + gumbel_like(part)) for part in logits]
        for part, drawn in zip(logits, c):
            log_q = log_q + (torch.log_softmax(part, 1) * drawn).sum(1)
        return torch.cat([z, *(part.to(z.dtype) for part in c)], 1), log_q
