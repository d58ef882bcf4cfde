"""How close generated samples come to real ones, in a space of features: Fréchet distance, precision and recall.

    features = feature_extractor("fashion")                 # or "pixels", "inception", any function x -> (N, K)
    frechet_distance(features(real), features(fake))        # {"frechet_distance": (value, stderr, samples)}
    precision_recall(features(real), features(fake))

Figures compare with each other only where features and numbers of samples are the same. Standard errors are jackknives': again without
each of some groups of samples, or on halves.

Legend: N real and M generated samples, K features, k neighbours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..base import count, positive
from ..functional import squared_distances
from ..randomness import checked_seed
from .checks import Scores, checked_codes, jackknife
from .features import Features, feature_extractor

__all__ = ["Features", "feature_extractor", "frechet_distance", "gaussian_frechet", "precision_recall"]

CHUNK = 2**24  # distances held at once


# --------------------------------------------------------------------------------------------------- Fréchet distance


def gaussian_frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The squared 2-Wasserstein distance of two Gaussians,

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)

    with roots by eigenvalues of symmetric matrices in float64, which singular covariances do not disturb (the root of the product C_a C_b, which
    is not symmetric, can come out complex). (K,), (K, K) each; on MPS, which has no float64, computed on the CPU."""
    mean_a, cov_a, mean_b, cov_b = (_double(t) for t in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ cov_b @ root
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared
    return max(0.0, float(distance))


def frechet_distance(a: Any, b: Any, *, groups: int = 10, seed: int = 0) -> Scores:
    """Fréchet distance of the Gaussians that are fitted to two sets of features, (N, K) and (M, K) (arXiv:1706.08500, "FID" where the
    features are Inception's). Covariances are over N - 1. Few samples make it too large, by about an equal amount for equal N and M.

    Returns {"frechet_distance"}; samples: the smaller of N and M. `groups` of the jackknife are dealt by `seed`; each costs two more
    decompositions of K x K matrices, so that 0, which leaves the error NaN, suits thousands of features.
    Raises ValueError or TypeError for features that do not fit each other."""
    a = checked_codes("a", a)
    b = checked_codes("b", b, a.shape[1])
    a = _double(a)
    b = _double(b).to(a.device)
    moments = [_moments(x) for x in (a, b)]
    whole = gaussian_frechet(*moments[0], *moments[1])
    parts = []
    for left_a, left_b in zip(*(_dealt(len(x), groups, seed, x.device) for x in (a, b))):
        parts.append(gaussian_frechet(*_without(*moments[0], a, left_a), *_without(*moments[1], b, left_b)))
    return {"frechet_distance": (whole, jackknife(whole, parts), min(len(a), len(b)))}


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (K,) and covariance (K, K) of (N, K)."""
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def _without(mean: Tensor, cov: Tensor, x: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of x without the rows `left`, from those of all of x."""
    n, kept = len(x), len(x) - len(left)
    out = x[left] - mean
    shift = -out.sum(0) / kept  # of the mean
    scatter = cov * (n - 1) - out.T @ out - kept * torch.outer(shift, shift)
    return mean + shift, scatter / (kept - 1)


def _dealt(n: int, groups: int, seed: int, device: torch.device) -> list[Tensor]:
    """Positions 0 .. n-1 in `groups` parts of equal size, to one; none where a part would have fewer than 4."""
    groups = count("groups", groups)
    if groups < 2 or n < groups * 4:
        return []
    order = torch.randperm(n, generator=torch.Generator().manual_seed(checked_seed(seed))).to(device)
    return list(order.tensor_split(groups))


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()


# -------------------------------------------------------------------------------------------------- precision, recall


def precision_recall(real: Any, fake: Any, k: int = 3, *, halves: int = 10, seed: int = 0) -> Scores:
    """Precision and recall of generated samples (arXiv:1904.06991): around each sample of a set lies a ball that reaches to its k-th
    nearest neighbour in the set (itself not counted), and the balls together are the set's manifold.

        precision: the share of generated features (M, K) on the manifold of the real ones (N, K)
        recall:    the share of real features on the manifold of the generated ones

    Both depend on N and M. Distances are products of matrices, in chunks, on the features' device.
    Returns {"precision": (..., M), "recall": (..., N)}. The errors are the deviation of the figure over `halves` random halves of both sets,
    drawn by `seed` (the delete-half jackknife, Shao & Wu 1989, which holds for what is not smooth, as a k-th neighbour is not). They count
    that the manifolds vary, which a binomial error does not, and come out somewhat too large rather than too small. NaN for fewer than
    two halves, or halves of at most k samples.
    Raises ValueError or TypeError for features that do not fit each other, and for sets of at most k samples."""
    real = checked_codes("real", real)
    fake = checked_codes("fake", fake, real.shape[1]).to(real)
    if min(len(real), len(fake)) <= positive("k", k):
        raise ValueError(f"k={k} neighbours need more than {k} samples; got {len(real)} real and {len(fake)} generated")
    middle = real.mean(0)
    real, fake = real - middle, fake - middle  # so that the products lose no digits where all features lie far from 0
    g, error = torch.Generator().manual_seed(checked_seed(seed)), [math.nan, math.nan]
    if count("halves", halves) > 1 and min(len(real), len(fake)) // 2 > k:
        parts = []
        for _ in range(halves):
            i, j = (torch.randperm(len(x), generator=g)[: len(x) // 2].to(x.device) for x in (real, fake))
            parts.append([_on_manifold(fake[j], real[i], k), _on_manifold(real[i], fake[j], k)])
        error = torch.tensor(parts, dtype=torch.float64).std(0).tolist()
    return {
        "precision": (_on_manifold(fake, real, k), error[0], len(fake)),
        "recall": (_on_manifold(real, fake, k), error[1], len(real)),
    }


def _on_manifold(x: Tensor, ground: Tensor, k: int) -> float:
    """The share of x (n, K) in the balls of `ground` (m, K)."""
    rows, radii, on = max(1, CHUNK // len(ground)), [], 0
    for near in torch.arange(len(ground), device=ground.device).split(rows):
        distances = squared_distances(ground[near], ground)
        distances[torch.arange(len(near), device=ground.device), near] = math.inf  # itself
        radii.append(distances.topk(k, largest=False).values.amax(1))
    reach = torch.cat(radii)
    for part in x.split(rows):
        on += int((squared_distances(part, ground) <= reach).any(1).sum())
    return on / len(x)
