"""What the estimators of `aezoo.sklearn` share: rows (N, F) are checked, scaled, and models of the zoo are trained on them.

Legend: N rows, F columns, K latents.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, RobustScaler, StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..base import BaseAE, checked_shape, positive
from ..randomness import forked_rng, set_seed
from ..registry import MODELS, choice, create_model, nearest, signature
from ..train.hardware import decide

SCALERS = ("standard", "robust", "quantile", "minmax", "none")
AT_ONCE = 2**22  # values of a batch in which fitted models are applied: 16 MiB in float32
LARGEST = 1e18  # scaled values above are refused: their squares are not finite in float32


def validated(estimator: BaseEstimator, X: Any, reset: bool, min_rows: int = 1) -> np.ndarray:
    """X as (N, F) float64, with `n_features_in_` set or compared; the way scikit-learn wants it, before and since 1.6."""
    options = {"dtype": np.float64, "reset": reset, "ensure_min_samples": min_rows}
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:
        return estimator._validate_data(X, **options)
    return validate_data(estimator, X, **options)


def new_scaler(name: str, rows: int, random_state: int) -> Any:
    """An unfitted scaler of scikit-learn for each column, or None: "standard" mean 0 and deviation 1; "robust" median and
    quartiles; "quantile" ranks to a normal distribution; "minmax" to [0, 1]. Raises ValueError for another name."""
    choice("scaler", name, SCALERS)
    if name == "quantile":
        return QuantileTransformer(
            n_quantiles=max(1, min(1000, rows)), output_distribution="normal", random_state=random_state
        )
    return {"standard": StandardScaler, "robust": RobustScaler, "minmax": MinMaxScaler, "none": lambda: None}[name]()


class AEEstimator(BaseEstimator):
    """Base of the estimators; no estimator by itself. Subclasses list these keywords in their own constructors, as scikit-learn wants:

    model: name of a model of the zoo. latent_dim: K, or "auto". backbone: as for `create_model`, or "auto". model_params:
    further keywords of the model, or None.
    scaler: one of `SCALERS`. input_shape: shape of a sample where a row is an image or a series, (F,) by default.
    epochs, steps, batch_size, lr, weight_decay: as for `aezoo.fit`. device: where it trains. random_state. verbose.

    After `_fit_rows`: `models_` (a list), `model_` (the first), `scaler_`, `history_` (of the first), `seed_`, `n_features_in_`."""

    def _checked_params(self) -> None:
        """Raises ValueError or TypeError for parameters that fit nothing, before any work."""
        MODELS[self.model]
        choice("scaler", self.scaler, SCALERS)
        if not (isinstance(self.latent_dim, str) and self.latent_dim == "auto"):
            positive("latent_dim", self.latent_dim)
        if self.model_params is not None and not isinstance(self.model_params, Mapping):
            raise TypeError(
                f"model_params={self.model_params!r} must be a dict of the model's keywords, e.g. {{'beta': 2.0}}"
            )
        for key in self.model_params or {}:
            allowed = [
                k
                for k in signature(MODELS[self.model]).parameters
                if k not in ("input_shape", "latent_dim", "backbone")
            ]
            if key not in allowed:
                raise TypeError(
                    f"model_params: {self.model} takes no keyword {key!r} here; allowed: {', '.join(allowed)}."
                    f"{nearest(key, allowed)}"
                )

    def _shape(self, features: int) -> tuple[int, ...]:
        """The shape of one sample for rows of `features` numbers."""
        if self.input_shape is None:
            return (features,)
        shape = checked_shape(self.input_shape)
        if math.prod(shape) != features:
            raise ValueError(f"input_shape={shape} has {math.prod(shape)} values, but X has {features} columns")
        return shape

    def _auto_latent_dim(self, features: int) -> int:
        """K where latent_dim="auto": half the columns, at least 1 and at most 32."""
        return min(32, max(1, features // 2))

    def _new_models(self, features: int, seeds: Sequence[int]) -> list[BaseAE]:
        """One untrained model for each seed."""
        given = dict(self.model_params or {})
        given["latent_dim"] = self._auto_latent_dim(features) if self.latent_dim == "auto" else self.latent_dim
        if not (isinstance(self.backbone, str) and self.backbone == "auto"):
            given["backbone"] = self.backbone
        elif MODELS[self.model].backbones == () and self.input_shape is None:
            default = inspect.signature(MODELS[self.model]).parameters["backbone"].default
            if default == "mlp":  # made for pictures: 512 and 256 units; a table needs less
                given["backbone"] = "mlp(widths=(128, 64))"
        models = []
        cpu = torch.device("cpu")
        with forked_rng(cpu):
            for seed in seeds:
                set_seed(seed, cpu)
                models.append(create_model(self.model, input_shape=self._shape(features), **given))
        return models

    def _fit_rows(self, X: Any, n_models: int = 1, min_rows: int = 1) -> np.ndarray:
        """Checks parameters and rows, fits the scaler, trains `n_models` models that differ in their seed.

        Returns the scaled rows (N, F), float32."""
        self._checked_params()
        X = validated(self, X, reset=True, min_rows=min_rows)
        self.seed_ = seed = int(check_random_state(self.random_state).randint(2**31 - n_models))
        self.scaler_ = new_scaler(self.scaler, len(X), seed)
        if self.scaler_ is not None:
            self.scaler_.fit(X)
        rows = self._scaled(X)
        seeds = [seed + i for i in range(n_models)]
        self.models_ = self._new_models(X.shape[1], seeds)
        self.history_ = self._train(rows, seeds)
        self.model_ = self.models_[0]
        return rows

    def _train(self, rows: np.ndarray, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Trains `models_` in place on scaled rows (N, F); returns the first one's history."""
        from ..train import fit
        from ..train.many import fit_many

        x = torch.from_numpy(rows).view(-1, *self.models_[0].input_shape)
        settings = {
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": min(self.batch_size, len(x)) if isinstance(self.batch_size, int) else self.batch_size,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "device": self.device,
            "precision": "fp32",
            "progress": bool(self.verbose),
        }
        if len(self.models_) == 1:
            results = [fit(self.models_[0], x, seed=seeds[0], **settings)]
        else:
            results = fit_many(self.models_, x, seed=list(seeds), **settings)
        for model in self.models_:
            model.to("cpu").eval().requires_grad_(False)
        return results[0].history

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        """Checked rows (N, F) float64 -> scaled, float32. Raises ValueError for values beyond float32."""
        rows = X if self.scaler_ is None else self.scaler_.transform(X)
        if rows.size and not np.abs(rows).max() < LARGEST:
            column = int(np.abs(np.nan_to_num(rows, nan=np.inf)).max(0).argmax())
            raise ValueError(
                f"column {column} of X holds values too large for float32 after scaling (scaler={self.scaler!r}); the largest is "
                f"{np.abs(X[:, column]).max():.3g}. Take a logarithm, clip it, or use scaler='quantile'"
            )
        return np.ascontiguousarray(rows, dtype=np.float32)

    def _rows(self, X: Any) -> np.ndarray:
        """New rows, checked against what was fitted and scaled: (N, F) float32."""
        check_is_fitted(self)
        return self._scaled(validated(self, X, reset=False))

    def _batches(self, rows: np.ndarray) -> list[Tensor]:
        """Scaled rows (N, F) as the models' batches (B, *input_shape), of at most AT_ONCE values."""
        x = torch.from_numpy(rows).view(-1, *self.model_.input_shape)
        return list(x.split(max(1, AT_ONCE // max(1, rows.shape[1]))))

    def _apply(self, function: Any, rows: np.ndarray) -> list[np.ndarray]:
        """function(model, x (B, *input_shape)) -> (B, ...) over all scaled rows, for each model: an array (N, ...) each.

        Runs on `device` in float64 (on the CPU where that has none), so that a row's result does not depend on its batch
        beyond 1e-12, without gradients, in evaluation mode; the global RNG is left as it was."""
        device = decide(self.device, "fp32", False).device
        if device.type == "mps":
            device = torch.device("cpu")
        found = []
        with forked_rng(device), torch.no_grad():
            for model in self.models_:
                model.to(device, torch.float64)
                try:
                    with model.evaluating():
                        parts = [
                            function(model, x.to(device, torch.float64)).detach().cpu() for x in self._batches(rows)
                        ]
                finally:
                    model.to("cpu", torch.float32)  # the weights are what they were, bit by bit
                found.append(torch.cat(parts).numpy())
        return found
