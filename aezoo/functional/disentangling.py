"""What is asked of the aggregate posterior q(z) = E_x q(z|x): independent latents, covariance, category use.

Legend: B batch, N samples of the training set, K latents, C categories; z latent, mu and logvar of q(z|x) = N(mu, diag exp(logvar)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .core import LOG_2PI, full, per_sample


def minibatch_log_weights(batch: int, num_data: Tensor | int, estimator: str, like: Tensor) -> Tensor:
    """log w of the estimate q(z_i) ~ sum_j w_ij q(z_i|x_j) from a batch, (B, B) (arXiv:1802.04942, appendix C).

    - "mss", minibatch stratified sampling: unbiased. With M = B - 1 the other samples of the batch, w_ii = 1/N (the sample that z_i
      was drawn from), once per row (N - M) / (N M), here right after the diagonal, and 1/M elsewhere; each row adds up to 1.
    - "mws", minibatch weighted sampling: 1 / (N B) everywhere, appendix C.1. A biased estimate that never adds up to 1.

    `num_data`, N, is taken as B where it is smaller; a tensor needs no host synchronisation. `like` gives dtype and device. A batch of
    one sample under "mss" is its own estimate, with weight 1."""
    n = num_data.to(like.dtype) if isinstance(num_data, Tensor) else like.new_full((), num_data)
    n = n.clamp_min(batch)
    if estimator == "mws":
        return -(n * batch).log().expand(batch, batch)
    if batch == 1:
        return like.new_zeros(1, 1)
    m = batch - 1
    own = torch.eye(batch, dtype=like.dtype, device=like.device)
    other = own.roll(1, 1)
    return ((1 - own - other) / m + own / n + other * (n - m) / (n * m)).log()


def kl_decomposition(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E_x KL(q(z|x) || N(0, I)) = MI + TC + dimension-wise KL (arXiv:1802.04942, eq. 2), one draw of z each, nats.

        MI   = log q(z|x) - log q(z)            index-code mutual information
        TC   = log q(z) - sum_k log q(z_k)      total correlation
        DWKL = sum_k log q(z_k) - log p(z)

    with log q(z_i) ~ logsumexp_j(log w_ij + sum_k log q(z_ik|x_j)) and, for each latent, log q(z_ik) ~
    logsumexp_j(log w_ij + log q(z_ik|x_j)). z, mu, logvar: (B, K) in the same order; log_weights (B, B) -> three times (B,). Holds
    (B, B, K) numbers."""
    z, mu, logvar = full(z), full(mu), full(logvar)
    distance = (z[:, None] - mu).square() * torch.exp(-logvar)  # (B, B, K): z_i under the posterior of x_j
    log_q = -0.5 * (distance + logvar + LOG_2PI)
    log_q_own = per_sample(log_q.diagonal().T)  # (B, K) -> (B,)
    log_q_z = torch.logsumexp(log_weights + log_q.sum(2), 1)
    log_q_each = torch.logsumexp(log_weights[:, :, None] + log_q, 1).sum(1)
    log_p = -0.5 * per_sample(z.square() + LOG_2PI)
    return log_q_own - log_q_z, log_q_z - log_q_each, log_q_each - log_p


def permute_dims(z: Tensor) -> Tensor:
    """Each latent in a random order of its own across the batch (arXiv:1802.05983, algorithm 1): (B, K) -> (B, K).

    A draw from the product of the batch's marginals. Uses the global RNG."""
    return z.gather(0, torch.rand_like(full(z)).argsort(0))


def covariance(x: Tensor) -> Tensor:
    """1/B sum_i (x_i - mean)(x_i - mean)^T, the mean over the batch: (B, K) -> (K, K).

    Holds (B, K, K) numbers: a matrix product would run in half precision under autocast."""
    centred = full(x) - full(x).mean(0)
    return (centred[:, :, None] * centred[:, None, :]).mean(0)


def identity_gaps(cov: Tensor) -> tuple[Tensor, Tensor]:
    """sum_{i != j} C_ij^2 and sum_i (C_ii - 1)^2, (K, K) -> two scalars (arXiv:1711.00848, eq. 6)."""
    diagonal = cov.diagonal()
    return (cov - torch.diag(diagonal)).square().sum(), (diagonal - 1).square().sum()


def categorical_kl(logits: Tensor) -> Tensor:
    """KL(Cat(softmax(logits)) || uniform) = log C + sum_c q_c log q_c, nats, (B, C) -> (B,)."""
    log_q = torch.log_softmax(full(logits), 1)
    return math.log(logits.shape[1]) + (log_q.exp() * log_q).sum(1)
