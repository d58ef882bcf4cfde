"""`AETransformer`: codes of rows as features, with scikit-learn's interface.

Legend: N rows, F columns, K numbers of a code (all axes flattened).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..base import BaseAE
from .base import AEEstimator


class AETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, AEEstimator):
    """Turns rows into codes of an autoencoder that is trained on them, as `sklearn.decomposition.PCA` turns them into components.

    >>> codes = AETransformer(latent_dim=8, random_state=0).fit_transform(X)  # (N, 8)
    >>> make_pipeline(AETransformer("vae"), LogisticRegression()).fit(X, y)

    Args:
        model: name of a model of the zoo.
        latent_dim: K; "auto": half the columns, at least 1, at most 32. Codes with more axes are flattened.
        backbone: as for `aezoo.create_model`; "auto": layers of 128 and 64 units for models built on an "mlp", else the model's own.
        model_params: further keywords of the model, {"beta": 2.0}.
        scaler: of the columns before: "standard", "robust", "quantile", "minmax", "none".
        input_shape: shape of a sample where a row is a picture or a series; by default (F,).
        epochs, steps, batch_size, lr, weight_decay: as for `aezoo.fit`.
        device: where it trains and encodes. random_state: of weights, order and draws; an integer makes all results reproducible.
        verbose: a bar in training.

    After `fit`: `model_`, `scaler_`, `history_` (rows as of `aezoo.fit`), `n_features_in_`, `feature_names_in_` where columns have names.
    Codes are deterministic, of VAEs the posterior's mean, and a row's code does not depend on the rows beside it.

    Raises ValueError or TypeError in `fit` for parameters and rows that do not fit: NaN, infinity, text."""

    model_: BaseAE

    def __init__(
        self,
        model: str = "ae",
        latent_dim: Any = "auto",
        *,
        backbone: Any = "auto",
        model_params: Mapping[str, Any] | None = None,
        scaler: str = "standard",
        input_shape: Any = None,
        epochs: int | None = None,
        steps: int | None = 1000,
        batch_size: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        device: str = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ):
        self.model = model
        self.latent_dim = latent_dim
        self.backbone = backbone
        self.model_params = model_params
        self.scaler = scaler
        self.input_shape = input_shape
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> AETransformer:
        """Trains on rows (N, F); y is ignored. Returns self."""
        self._fit_rows(X)
        return self

    def transform(self, X: Any) -> Any:
        """Rows (N, F) -> codes (N, K)."""
        return self._apply(_codes, self._rows(X))[0]

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Codes (N, K) -> rows (N, F), in the units of the data: decoded and scaled back.

        Raises ValueError for codes of another size."""
        check_is_fitted(self)
        z = check_array(X, dtype=np.float64, copy=True)
        if z.shape[1] != self._n_features_out:
            raise ValueError(f"X has {z.shape[1]} columns, but codes of this {self.model} have {self._n_features_out}")

        def decode(model: BaseAE, codes: Tensor) -> Tensor:
            return model.decode(codes.view(len(codes), *model.latent_shape)).flatten(1)

        rows = self._apply_to_codes(decode, z)
        return rows if self.scaler_ is None else self.scaler_.inverse_transform(rows)

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the mean squared error of the reconstruction of scaled rows: the larger, the better. y is ignored."""
        rows = self._rows(X)
        back = self._apply(lambda model, x: model.reconstruct(x).flatten(1), rows)[0]
        return -float(np.square(back - rows).mean())

    def _apply_to_codes(self, function: Any, z: np.ndarray) -> np.ndarray:
        """`_apply` for codes (N, K): it shapes what it is given as the model's samples, and codes are none."""
        model = self.model_
        model.to(torch.float64)
        try:
            with torch.no_grad(), model.evaluating():
                return torch.cat([function(model, part) for part in torch.from_numpy(z).split(1024)]).numpy()
        finally:
            model.to(torch.float32)

    @property
    def _n_features_out(self) -> int:
        """K, for the names of the columns."""
        return int(np.prod(self.model_.latent_shape))


def _codes(model: BaseAE, x: Tensor) -> Tensor:
    """x (B, *input_shape) -> (B, K)."""
    return model.encode(x).flatten(1)
