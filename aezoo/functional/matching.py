"""How far two sets of points lie apart, as distributions.

Legend: n and m points, K dims, L directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .core import full


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the dtype of its factors, which autocast would lower."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (n, K), (m, K) -> (n, m)."""
    x, y = full(x), full(y)
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * _product(x, y.T)).clamp_min(0)


def mmd_kernel(x: Tensor, y: Tensor, name: str, scales: Sequence[float]) -> Tensor:
    """k(x_i, y_j), (n, K), (m, K) -> (n, m), a mean over `scales`; 1 where the points agree.

    With C = 2 K s for a scale s, that is s times the mean squared distance of two draws from N(0, I):
    - "imq", inverse multiquadratic: C / (C + |x - y|^2) (arXiv:1711.01558, section 4, s = 1);
    - "rbf": exp(-|x - y|^2 / C), a Gaussian kernel of bandwidth sqrt(K s)."""
    r = squared_distances(x, y) / (2 * x.shape[1])
    total = torch.zeros_like(r)
    for s in scales:
        total = total + (1 / (1 + r / s) if name == "imq" else torch.exp(-r / s))
    return total / len(scales)


def mmd(x: Tensor, y: Tensor, name: str = "imq", scales: Sequence[float] = (1.0,)) -> Tensor:
    """The unbiased estimate of the squared maximum mean discrepancy (arXiv:1711.01558, algorithm 2), a scalar:

        sum_{i != j} k(x_i, x_j) / (n (n-1)) + sum_{i != j} k(y_i, y_j) / (m (m-1)) - 2 sum_ij k(x_i, y_j) / (n m)

    (n, K), (m, K). Below 0 at times, being 0 on average for equal distributions. A single point has no such estimate: 0."""
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return 0.0 * full(x).sum()
    of_x, of_y = mmd_kernel(x, x, name, scales), mmd_kernel(y, y, name, scales)
    within_x = (of_x.sum() - of_x.diagonal().sum()) / (n * (n - 1))
    within_y = (of_y.sum() - of_y.diagonal().sum()) / (m * (m - 1))
    return within_x + within_y - 2 * mmd_kernel(x, y, name, scales).mean()


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Mean over unit directions t_l of the squared 2-Wasserstein distance of the projections, a scalar (arXiv:1804.01947, algorithm 1):

        1/(L n) sum_l sum_i ((t_l x)_[i] - (t_l y)_[i])^2, [i] the i-th smallest

    x, y: (n, K), as many points each; directions (L, K). In one dimension sorting is the optimal transport."""
    directions = full(directions).T
    a, b = _product(full(x), directions), _product(full(y), directions)  # (n, L)
    return (a.sort(0).values - b.sort(0).values).square().mean()
