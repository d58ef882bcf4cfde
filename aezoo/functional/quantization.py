"""Codes from a finite set: the nearest code vector, gradients past the choice, usage, finite scalar and lookup-free quantisation.

Legend: B batch, T vectors, C channels of a vector, K codes; z encoder output, q or e the code vector, n counts, l logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import full

AT_ONCE = 2**24  # distances that are held at once
TINY = 1e-12
FSQ_MARGIN = 1e-3  # the bound's reach beyond the outermost levels, relative


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """argmin_k |z - e_k|^2, the first of equals: (T, C), (K, C) -> (T,). No gradient; |z|^2, equal for all k, is left out."""
    with torch.no_grad():
        squares = codebook.square().sum(1)
        whole = torch.compiler.is_exporting()  # a program for any number of vectors cannot say how many parts there are
        parts = (z,) if whole else z.split(max(1, AT_ONCE // len(codebook)))
        return torch.cat([torch.addmm(squares, part, codebook.t(), alpha=-2).argmin(1) for part in parts])


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The value of q, to the bit, with the gradient of z."""
    return q.detach() + (z - z.detach())


def rotation_trick(z: Tensor, q: Tensor) -> Tensor:
    """The value of q with the gradient of lambda R z, where lambda = |q| / |z| and R, which rotates z onto q, are constants.

    R = I - 2 r r^T + 2 q^ z^^T with unit vectors z^ and q^, r = (z^ + q^) / |z^ + q^| (arXiv:2410.06424). The last
    axis holds the vectors. Where z is 0, lambda is 1."""
    with torch.no_grad():
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        scale = torch.where(
            length > TINY, torch.linalg.vector_norm(q, dim=-1, keepdim=True) / length.clamp_min(TINY), 1
        )
        z_hat, q_hat = F.normalize(z, dim=-1), F.normalize(q, dim=-1)
        r = F.normalize(z_hat + q_hat, dim=-1)

    def along(unit: Tensor) -> Tensor:
        return (z * unit).sum(-1, keepdim=True)

    return straight_through(scale * (z - 2 * along(r) * r + 2 * along(z_hat) * q_hat), q)


def laplace_smoothed(n: Tensor, eps: float) -> Tensor:
    """(n + eps) / (N + K eps) N with N = sum n: no count is 0, and the sum stays. (K,) -> (K,)."""
    total = n.sum()
    return (n + eps) / (total + len(n) * eps) * total


def entropy(p: Tensor) -> Tensor:
    """-sum p log p over the last axis, nats; a probability of 0 counts nothing and has a finite gradient."""
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of counts / sum: the number of codes in use, from 1 to K. (..., K) -> (...)."""
    return entropy(counts / counts.sum(-1, keepdim=True).clamp_min(TINY)).exp()


def fsq_bound(z: Tensor, levels: Tensor) -> Tensor:
    """Squeezes channel i into the interval whose integers are its L_i levels, 0 to 0: (..., C), (C,) -> (..., C).

    h tanh(z + atanh(o / h)) - o with h = (L - 1) / 2 (and a margin), o = 1/2 for even L, 0 for odd L (arXiv:2309.15505; the
    listing in its appendix shifts by tan(o / h), which does not send 0 to 0). Even L: -L/2 to L/2 - 1."""
    half = (levels - 1) / 2 * (1 + FSQ_MARGIN)
    offset = 0.5 * (levels % 2 == 0)
    return half * torch.tanh(full(z) + torch.atanh(offset / half)) - offset


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy of Bernoulli(sigmoid(l)), elementwise, nats: log(1 + e^-|l|) + |l| sigmoid(-|l|)."""
    size = full(logits).abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def sign_probabilities(logits: Tensor) -> Tensor:
    """Probability of each pattern of independent signs; bit i of the pattern's number is channel i. (T, C) -> (T, 2^C)."""
    p = torch.ones_like(logits[:, :1])
    for i in range(logits.shape[1]):
        bit = logits[:, i : i + 1]
        p = torch.cat([p * torch.sigmoid(-bit), p * torch.sigmoid(bit)], 1)
    return p


def sign_totals(logits: Tensor) -> Tensor:
    """Sum over the vectors of `sign_probabilities`: (T, C) -> (2^C,), exact, and without a (T, 2^C) tensor.

    The probability of a pattern is that of its low bits times that of its high ones, so the sum is one matrix product."""
    low = logits.shape[1] // 2
    return (sign_probabilities(logits[:, low:]).t() @ sign_probabilities(logits[:, :low])).flatten()
