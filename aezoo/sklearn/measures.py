"""What a trained autoencoder tells about rows, as distances from normal ones.

Legend: N rows, F columns, K latents; z code, r = x^ - x, view = [z, r] (N, K + F).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..tasks.distances import Mahalanobis, Neighbours


class Measures:
    """Scores of rows by one model, each at least 0 and high = abnormal, from views of the training rows."""

    def __init__(self, codes: int, views: np.ndarray, kept: Any, wanted: Sequence[str], k: int):
        self.codes = codes
        self.spread = np.sqrt(views[:, codes:].var(0) + 1e-12)
        self.distances: dict[str, Any] = {}
        for name in wanted:
            if name == "latent_knn":
                self.distances[name] = Neighbours(self.placed(views)[kept], k)
            elif name == "mahalanobis":
                self.distances[name] = Mahalanobis(views)
            elif name == "recon":
                self.distances[name] = None

    def placed(self, views: np.ndarray) -> np.ndarray:
        return views

    def __call__(self, views: np.ndarray) -> dict[str, np.ndarray]:
        """Views (M, K + F) -> {score: (M,)}."""
        found = {}
        for name, distance in self.distances.items():
            if name == "recon":
                found[name] = np.square(views[:, self.codes :]).mean(1)
            else:
                found[name] = distance(self.placed(views) if name == "latent_knn" else views)
        return found


class SameForAll(TorchFunctionMode):
    """Inside the block, draws shaped like a batch are those of one sample, repeated: what a row gets does not depend on its neighbours."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn_like, torch.rand_like) and args and isinstance(args[0], Tensor) and args[0].dim():
            return func(args[0][:1], *args[1:], **kwargs).expand_as(args[0]).clone()
        return func(*args, **kwargs)
