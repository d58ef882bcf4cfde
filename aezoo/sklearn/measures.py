"""What a trained autoencoder tells about rows, as distances from normal ones.

Legend: N rows, F columns, K latents; x scaled rows (N, F), z codes (N, K), x^ reconstructions (N, F).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..tasks.distances import Mahalanobis, Neighbours

NEIGHBOURS = ("input_knn", "latent_knn")


class View(NamedTuple):
    """Rows as a model sees them."""

    x: np.ndarray
    z: np.ndarray
    back: np.ndarray
    """x^"""

    @property
    def error(self) -> np.ndarray:
        return self.back - self.x

    def part(self, index: Any) -> View:
        return View(*(a[index] for a in self))


class Measures:
    """Scores of rows by one model, each at least 0 and high = abnormal, from the view of the training rows.

    recon: mean of (x^ - x)^2. mahalanobis: of [z, x^ - x]. input_knn, latent_knn: distance to the k nearest training rows in
    x, and in z with each latent divided by its standard deviation."""

    def __init__(self, view: View, kept: Any, wanted: Sequence[str], k: int):
        spread = view.z.std(0)
        self.spread = np.where(spread > 1e-6 * max(1.0, float(spread.max(initial=0.0))), spread, 1.0)
        self.distances: dict[str, Any] = {}
        for name in wanted:
            if name in NEIGHBOURS:
                self.distances[name] = Neighbours(self.space(name, view)[kept], k)
            elif name == "mahalanobis":
                self.distances[name] = Mahalanobis(self.space(name, view))
            else:
                self.distances[name] = None

    def space(self, name: str, view: View) -> np.ndarray:
        """Where a distance is taken: (N, dims)."""
        if name == "mahalanobis":
            return np.hstack([view.z, view.error])
        return view.z / self.spread if name == "latent_knn" else view.x

    def __call__(self, view: View) -> dict[str, np.ndarray]:
        """{score: (N,)} of any rows."""
        return {
            name: np.square(view.error).mean(1) if distance is None else distance(self.space(name, view))
            for name, distance in self.distances.items()
        }


class SameForAll(TorchFunctionMode):
    """Inside the block, draws shaped like a batch are those of one sample, repeated: what a row gets does not depend on its neighbours."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn_like, torch.rand_like) and args and isinstance(args[0], Tensor) and args[0].dim():
            return func(args[0][:1], *args[1:], **kwargs).expand_as(args[0]).clone()
        return func(*args, **kwargs)
