"""How far rows lie from normal ones: to their nearest neighbours, and in units of their spread.

Both learn from reference rows (N, F) and then give a distance >= 0 for each row of (M, F), high = far.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Neighbours:
    """The mean distance to the k nearest reference rows (Angiulli & Pizzuti 2002, divided by k), Euclidean.

    A row that is itself a reference row is no neighbour of its own: a nearest distance within rounding of 0 (1e-6 of the
    reference's extent, and 1e-7 of its largest value) is left out, once, and others like it count as 0. So rows have the same
    distance whether they are asked for alone or as part of the reference. k is cut to what there is; a row without any other has
    distance 0."""

    def __init__(self, rows: np.ndarray, k: int = 5):
        from sklearn.neighbors import NearestNeighbors

        rows = np.asarray(rows, dtype=np.float64)
        self.k = min(k + 1, len(rows))
        self.rounding = 1e-6 * float(np.sqrt(rows.var(0).sum())) + 1e-7 * float(np.abs(rows).max(initial=0.0))
        self.index: Any = NearestNeighbors(n_neighbors=self.k, algorithm="brute").fit(rows)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        distances = self.index.kneighbors(np.asarray(rows, dtype=np.float64))[0]  # (M, k + 1), rising
        itself = distances[:, 0] <= self.rounding
        distances = np.where(distances <= self.rounding, 0.0, distances)
        if self.k == 1:
            return distances[:, 0]
        return np.where(itself, distances[:, 1:].mean(1), distances[:, :-1].mean(1))


class Mahalanobis:
    """sqrt((z - m)^T S^-1 (z - m)) with mean m and covariance S of the reference rows, S shrunk towards a multiple of the identity by
    as much as is best for its expected squared error (Ledoit & Wolf 2004), so that it can always be inverted.

    Columns are divided by their standard deviation before, which would make no difference without the shrinkage."""

    def __init__(self, rows: np.ndarray):
        from sklearn.covariance import LedoitWolf

        rows = rows.astype(np.float64)
        self.centre, deviation = rows.mean(0), rows.std(0)
        self.deviation = np.where(deviation > 1e-8 * max(1.0, float(np.abs(rows).max())), deviation, 1.0)
        inside = self._inside(rows)
        self.precision = np.eye(rows.shape[1])
        if np.any(inside):  # without any spread every distance is Euclidean
            covariance = LedoitWolf(assume_centered=True).fit(inside).covariance_
            self.precision = np.linalg.pinv(covariance, hermitian=True)

    def _inside(self, rows: np.ndarray) -> np.ndarray:
        """What is no farther from the mean than rounding lies on it: else rows that are all equal would be far from themselves."""
        away = rows.astype(np.float64) - self.centre
        return np.where(np.abs(away) <= 1e-8 * np.maximum(1.0, np.abs(self.centre)), 0.0, away) / self.deviation

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        inside = self._inside(rows)
        return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", inside, self.precision, inside, optimize=True), 0.0))
