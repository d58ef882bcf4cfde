"""What codes tell of labels: a linear probe, nearest neighbours, clusters.

Legend: N samples, M of them in the training part, K numbers of a code, C classes, k neighbours or clusters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import number, positive
from ..heads import logistic_regression
from ..randomness import checked_seed
from ..registry import choice
from .checks import Scores, checked_codes, checked_labels, proportion

CHUNK = 2**24  # distances held at once


def linear_probe(
    z_train: Any, y_train: Any, z_test: Any, y_test: Any, *, weight_decay: float = 1e-4, max_iter: int = 200
) -> Scores:
    """Accuracy on the test codes of a multinomial logistic regression on the training codes (`aezoo.heads.fit_probe` has its formula).

    Codes (M, K) and (N, K), or with more axes, which are flattened; labels whole numbers, any. Features are standardised by the
    training part; the regression runs in float64 on the CPU from zero weights and draws nothing. A label that the training part
    does not have counts as missed.
    Returns {"linear_probe_accuracy"}, its error binomial over the test samples (the training part is taken as given).
    Raises ValueError or TypeError for codes and labels that do not fit each other."""
    number("weight_decay", weight_decay, "a number of at least 0", lambda v: 0 <= v < float("inf"))
    train, classes, labels, test, answers = _checked(z_train, y_train, z_test, y_test)
    train, test = train.double().cpu(), test.double().cpu()
    mean, scale, weight, bias = logistic_regression(train, labels.cpu(), weight_decay, max_iter)
    said = classes.cpu()[F.linear((test - mean) / scale, weight, bias).argmax(1)]
    return {"linear_probe_accuracy": proportion(float((said == answers.cpu()).double().mean()), len(test))}


def knn_accuracy(
    z_train: Any, y_train: Any, z_test: Any, y_test: Any, k: int = 10, *, metric: str = "cosine"
) -> Scores:
    """Accuracy of the majority among the k nearest training codes of each test code.

    metric: "cosine" (the angle between codes as they are, neither centred nor standardised) or "euclidean". Of classes with equally
    many votes the one with the nearest neighbour wins. Distances are products of matrices, in chunks, on the codes' device.
    Returns {"knn_accuracy"}, its error binomial over the test samples (the training part is taken as given).
    Raises ValueError or TypeError for codes and labels that do not fit each other, and for k above M."""
    choice("metric", metric, ["cosine", "euclidean"])
    train, classes, labels, test, answers = _checked(z_train, y_train, z_test, y_test)
    if positive("k", k) > len(train):
        raise ValueError(f"k={k} neighbours cannot be found among {len(train)} training codes")
    if metric == "cosine":
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    else:  # centred, so that the products lose no digits where all codes lie far from 0
        middle = train.mean(0)
        train, test = train - middle, test - middle
    lengths, right = train.square().sum(1), 0
    with torch.autocast(train.device.type, enabled=False), torch.no_grad():
        for part, answer in zip(*(t.split(max(1, CHUNK // len(train))) for t in (test, answers))):
            near = (lengths - 2 * (part @ train.T)).topk(k, largest=False, sorted=True).indices  # (n, k), nearest first
            right += int((classes[_majority(labels[near], len(classes))] == answer).sum())
    return {"knn_accuracy": proportion(right / len(test), len(test))}


def _majority(votes: Tensor, classes: int) -> Tensor:
    """Votes (n, k) for classes, nearest first -> (n,): the class with most, of equals the one named first."""
    k = votes.shape[1]
    counts = torch.zeros(len(votes), classes, dtype=torch.long, device=votes.device)
    counts.scatter_add_(1, votes, torch.ones_like(votes))
    closeness = torch.arange(k, 0, -1, device=votes.device).expand_as(votes)
    first = torch.zeros_like(counts).scatter_reduce_(1, votes, closeness, "amax")
    return (counts * (k + 1) + first).argmax(1)


def kmeans_scores(z: Any, y: Any, k: int | None = None, seed: int = 0, *, starts: int = 10) -> Scores:
    """How well k-means clusters of the codes (scikit-learn's, the best of `starts`, k = the number of classes) agree with the labels.

    "kmeans_nmi": mutual information over the mean of both entropies; "kmeans_ari": adjusted Rand index, 0 by chance;
    "kmeans_accuracy": the share of samples that is right if each cluster stands for a class of its own, best assigned (Hungarian
    method; of more clusters than classes those left over are wrong). Codes are taken as they are, not standardised.
    The accuracy's error is binomial, the clusters taken as given; NMI and ARI belong to the whole set and have none: NaN.
    A function of codes, labels and seed. Raises ValueError or TypeError for codes and labels that do not fit each other."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    z = checked_codes("z", z)
    labels = checked_labels("y", y, len(z), z.device).unique(return_inverse=True)[1].cpu()
    classes = int(labels.max()) + 1
    clusters = classes if k is None else positive("k", k)
    if clusters > len(z):
        raise ValueError(f"k={clusters} clusters cannot be made of {len(z)} codes")
    means = KMeans(clusters, n_init=positive("starts", starts), random_state=checked_seed(seed) % 2**32)
    found = torch.from_numpy(means.fit_predict(z.cpu().numpy())).long()
    table = torch.bincount(found * classes + labels, minlength=clusters * classes).view(clusters, classes)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    accuracy = int(table[rows, columns].sum()) / len(z)
    pair = labels.numpy(), found.numpy()
    return {
        "kmeans_nmi": (float(normalized_mutual_info_score(*pair)), math.nan, len(z)),
        "kmeans_ari": (float(adjusted_rand_score(*pair)), math.nan, len(z)),
        "kmeans_accuracy": proportion(accuracy, len(z)),
    }


def _checked(z_train: Any, y_train: Any, z_test: Any, y_test: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> codes (M, K), classes (C,), positions of the labels among them (M,), test codes (N, K), test labels (N,)."""
    train = checked_codes("z_train", z_train)
    test = checked_codes("z_test", z_test, train.shape[1]).to(train)
    classes, labels = checked_labels("y_train", y_train, len(train), train.device).unique(return_inverse=True)
    return train, classes, labels, test, checked_labels("y_test", y_test, len(test), train.device)
