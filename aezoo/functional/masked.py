"""Where some entries are not there: sums, means and moments over those that are, and columns of classes.

Legend: B batch, T steps, W width, G columns of classes, M classes of the largest of them; `mask` is True where an entry is there.
An entry that is not there may be NaN, and 0 * NaN is NaN, in the backward pass as well: such entries are replaced by
`torch.where` before anything is computed with them, never multiplied by 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core import full, per_sample


def filled(x: Tensor, mask: Tensor, value: float = 0.0) -> Tensor:
    """`x` where `mask` is True, `value` elsewhere; the gradient there is exactly 0."""
    return torch.where(mask, x, value)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over a sample's entries that are there: (B, ...), (B, ...) -> (B,); 0 where none is."""
    return per_sample(filled(x, mask))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over a sample's entries that are there: (B, ...), (B, ...) -> (B,); 0 where none is."""
    total = masked_sum(x, mask)
    return total / mask.flatten(1).sum(1).clamp_min(1).to(total.dtype)


def masked_time_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Mean over the steps that are there: h (B, T, W), mask (B, T) -> (B, W); 0 where none is."""
    total = filled(h, mask[:, :, None]).sum(1)
    return total / mask.sum(1, keepdim=True).clamp_min(1).to(total.dtype)


def merge_moments(
    count: Tensor, mean: Tensor, var: Tensor, new_count: Tensor, new_mean: Tensor, new_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, variance) of two sets together, elementwise (Chan, Golub & LeVeque 1983, eq. 2.1, divided by the count):

    mean = m_a + d n_b / n,  var = (n_a v_a + n_b v_b) / n + d^2 n_a n_b / n^2,  d = m_b - m_a, n = n_a + n_b.

    Variances divide by the count. Where both counts are 0, the first mean and variance are returned as they are."""
    total = count + new_count
    share = new_count / total.clamp_min(1)
    delta = new_mean - mean
    merged = var + (new_var - var) * share + delta.square() * share * (1 - share)
    seen = new_count > 0
    return total, torch.where(seen, mean + delta * share, mean), torch.where(seen, merged, var)


def column_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """-log softmax(logits)[class] of each column, in nats: (B, G, M), (B, G) int64 -> (B, G).

    A column with fewer than M classes holds -inf in the places after its own."""
    return -torch.log_softmax(full(logits), -1).gather(-1, classes[:, :, None])[:, :, 0]
