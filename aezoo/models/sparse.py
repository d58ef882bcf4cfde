"""Codes of which only a few latents are active.

Legend: B batch, K latents; z code, rho the wanted mean activation, rho_j that of latent j.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from ..base import BaseAE, Code, Spec, Terms, count, number, positive
from ..precision import Averaging
from ..registry import choice, register
from ..wholebatch import batch_mean, whole_batch

ALIVE = 0.1  # added before the ReLU, so that no latent starts dead; the encoder's bias can undo it


@register("sparse_ae")
class SparseAE(Averaging, BaseAE):
    """Sparse autoencoder: loss(x, x^) + weight * penalty(z).

    - penalty="l1": ReLU code, sum_j |z_j| per sample ("sparsity" in the terms).
    - penalty="kl": sigmoid code, sum_j KL(Bernoulli(rho) || Bernoulli(rho_j)), rho_j the mean activation of latent j. The notes
      take it over the whole training set, which a batch does not show: its value here is a running mean (momentum 0.99,
      bias-corrected, in buffers), and its gradient that of the batch's mean. Evaluation uses the running mean.

    Paper: Ng 2011, "Sparse autoencoder" (CS294A lecture notes), for the KL; L1 on the code is folklore.
    Deviations: no decay of the weights, which the notes add to the cost (`weight_decay=` of `fit`); any backbone, where the notes have
    one hidden layer; with "l1", 0.1 is added before the ReLU, so that no latent starts dead (the bias can undo it).

    Args (beside those of `BaseAE`): `penalty`; `weight`, lambda, default 1e-4 (l1) or 1e-3 (kl) with plain losses, which are means over
    the D dims, and D times that with densities, which are sums; `rho`, wanted mean activation, default 0.05."""

    paper = "Ng 2011 (CS294A notes)"
    weight_keywords = ("weight",)
    MOMENTUM = 0.99
    averages = ("activity", "activity_weight")
    activity: Tensor
    activity_weight: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 128,
        *,
        penalty: str = "l1",
        weight: float | None = None,
        rho: float = 0.05,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.penalty = choice("penalty", penalty, ["l1", "kl"])
        if weight is None:
            weight = {"l1": 1e-4, "kl": 1e-3}[penalty] * (math.prod(self.input_shape) if self.likelihood.density else 1)
        self.weight = number("weight", weight, "a number of at least 0", lambda v: 0 <= v < math.inf)
        self.rho = number("rho", rho, "a number between 0 and 1", lambda v: 0 < v < 1)
        self.sparse_code = penalty == "l1"  # a sigmoid is never 0
        if penalty == "kl":
            self.register_buffer("activity", torch.zeros(self.latent_dim))  # not yet bias-corrected
            self.register_buffer("activity_weight", torch.zeros(()))

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        if self.penalty == "l1":
            z = torch.relu(h + ALIVE)
            return z, {"sparsity": fn.per_sample(z.abs())}
        z = torch.sigmoid(h)
        return z, {"sparsity": fn.bernoulli_kl(self.rho, self._activity(fn.full(z)))}

    def _activity(self, z: Tensor) -> Tensor:
        """rho_j, (B, K) -> (K,): the running mean's value with the batch mean's gradient."""
        if not self.training:
            seen = self.activity_weight > 0
            return torch.where(seen, self.activity / self.activity_weight.clamp_min(1e-30), self.rho)
        batch = batch_mean(z)
        with torch.no_grad():
            self.activity.lerp_(batch.to(self.activity), 1 - self.MOMENTUM)
            self.activity_weight.lerp_(torch.ones_like(self.activity_weight), 1 - self.MOMENTUM)
            gap = self.activity / self.activity_weight - batch
        return batch + gap

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"sparsity": self.weight}


@register("k_sparse_ae")
class KSparseAE(BaseAE):
    """k-sparse autoencoder: a linear code of which each sample keeps its k largest values (by value, not magnitude):

    h = W x + b,   z_j = h_j if h_j is among the k largest of the sample, else 0,   x^ = d(z),   min loss(x, x^).

    Paper: Makhzani & Frey 2013, arXiv:1312.5663. Deviations: the decoder has weights of its own, where the paper ties them
    (`backbone="linear(tied=True)"` is the paper's model); hidden layers by default; alpha is 1 by default, where the paper takes up
    to 3. Args (beside those of `BaseAE`):
        k: active latents in training.
        alpha: in evaluation mode and in `encode`, round(alpha * k) are kept (the paper's alpha >= 1).
        anneal: optimiser steps over which the kept number falls linearly from K to k (the paper's scheduling, which revives
            dead units); 0: none."""

    paper = "arXiv:1312.5663"
    sparse_code = True
    num_steps: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 256,
        *,
        k: int | None = None,
        alpha: float = 1.0,
        anneal: int = 0,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        k = max(1, self.latent_dim // 8) if k is None else k
        if positive("k", k) > self.latent_dim:
            raise ValueError(f"k={k!r} must be an integer from 1 to latent_dim={self.latent_dim}")
        alpha = number("alpha", alpha, "a number of at least 1", lambda v: 1 <= v < math.inf)
        self.k, self.anneal = int(k), count("anneal", anneal)
        self.k_eval = min(self.latent_dim, round(alpha * k))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        if not self.training:
            return fn.keep_top_k(h, self.k_eval), {}
        if not self.anneal:
            return fn.keep_top_k(h, self.k), {}
        left = (1 - self.num_steps / self.anneal).clamp(min=0.0)
        return fn.keep_top_k(h, (self.k + (self.latent_dim - self.k) * left).round().long()), {}

    def after_step(self) -> None:
        self.num_steps += 1


@register("wta_ae")
class WTAAE(BaseAE):
    """Winner-take-all autoencoder: z = relu(h), and in training each latent keeps only the rate * B largest of its activations over
    the batch (lifetime sparsity): it is active for that share of the samples, whatever the others do.

    In evaluation mode and in `encode` nothing is taken away, so more latents are active than the decoder was trained on: the smaller
    the rate, the better the features and the worse the reconstructions in use. Gradients flow through the winners alone. At least one
    activation of each latent wins; activations that tie with the last winner win, too. The batch is the whole one, of all processes.

    Paper: Makhzani & Frey 2015, "Winner-take-all autoencoders", arXiv:1409.2752 (section 2, the fully connected one). Deviations: one
    ReLU layer by default, where the paper has one or two; any backbone fits.

    Args (beside those of `BaseAE`): `rate`, share of the samples that may use a latent, default 0.05. Metric "l0": latents above 0 per
    sample."""

    paper = "arXiv:1409.2752"
    sparse_code = True

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 1000,
        *,
        rate: float = 0.05,
        backbone: Spec = "linear",
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
        self.rate = number("rate", rate, "a number above 0 and at most 1", lambda v: 0 < v <= 1)

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        z = torch.relu(h)
        if self.training:
            rows = whole_batch(z.detach())
            z = z * (z.detach() >= fn.lifetime_cutoff(rows, max(1, round(self.rate * len(rows)))))
        return Code(z, {}, {"l0": (z.detach() > 0).sum(1).float()})
