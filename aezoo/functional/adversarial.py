"""Losses of two sides with opposite aims, and of what one side sees in the other's work.

Legend: B batch; logits of a critic, large where it takes a sample for a real one: (B,), (B, 1), or (B, ...) with one for each patch.
All losses are means over a sample's patches, (B, ...) -> (B,), without weights. What gradient each side gets is the caller's affair
(`aezoo.critics`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .core import full, per_sample_mean


def _patches(logits: Tensor) -> Tensor:
    """In at least float32, (B,) -> (B, 1)."""
    return full(logits).reshape(len(logits), -1)


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - real) + max(0, 1 + fake) (Lim & Ye 2017, arXiv:1705.02894; no factor 1/2)."""
    return per_sample_mean(F.relu(1 - _patches(real))) + per_sample_mean(F.relu(1 + _patches(fake)))


def hinge_generator(fake: Tensor) -> Tensor:
    """-fake, without a hinge: the generator is never done (arXiv:1705.02894)."""
    return -per_sample_mean(_patches(fake))


def gan_critic(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake)) with D = sigmoid(logit), in nats (Goodfellow et al. 2014, arXiv:1406.2661, eq. 1): twice
    the cross-entropy of telling the two apart."""
    return per_sample_mean(F.softplus(-_patches(real))) + per_sample_mean(F.softplus(_patches(fake)))


def nonsaturating_generator(fake: Tensor) -> Tensor:
    """-log D(fake), in nats (arXiv:1406.2661, section 3): where the critic is sure, its gradient is large; that of log(1 - D(fake)),
    which the game's minimax form would minimise, vanishes there."""
    return per_sample_mean(F.softplus(-_patches(fake)))


def feature_matching(real: Tensor, fake: Tensor) -> Tensor:
    """Mean over the features of |f(real) - f(fake)|, (B, ...) -> (B,). No gradient reaches the real ones."""
    return per_sample_mean((full(real.detach()) - full(fake)).abs())


def adaptive_weight(recon: Tensor, gan: Tensor, delta: float = 1e-6, largest: float = 1e4) -> Tensor:
    """|recon| / (|gan| + delta), at most `largest`, from the norms of the two terms' gradients in the same place; without a gradient
    (Esser et al. 2020, arXiv:2012.09841, eq. 7)."""
    return (recon.detach() / (gan.detach() + delta)).clamp(max=largest)
