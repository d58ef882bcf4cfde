"""`AEDetector`: how abnormal rows of a table are, by autoencoders, with scikit-learn's interface and signs.

Legend: N rows, F columns, K latents; x scaled row, x^ reconstruction, z code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import OutlierMixin
from torch import Tensor

from ..base import BaseAE, positive
from ..randomness import set_seed
from ..registry import MODELS, choice
from ..tasks.detect import check_elbo
from ..tasks.limits import check_contamination, score_limit
from .base import AEEstimator
from .measures import Measures, SameForAll, View
from .score_name import ScoreParameter

SCORES = ("recon", "elbo", "latent_knn", "mahalanobis", "ensemble")
ENSEMBLE = ("input_knn", "latent_knn", "recon")
REFERENCE = 20_000  # rows that neighbours are looked for among, at most
CENTRE = (
    2_000  # training rows that the ensemble's scales, and the limit of contamination="auto", are taken from, at most
)
DRAWS = 8  # from the posterior, for "elbo"
TINY = 1e-9  # added before logarithms of distances between standardised rows


class AEDetector(OutlierMixin, AEEstimator):
    """Finds abnormal rows by autoencoders that were trained on (mostly) normal ones.

    >>> detector = AEDetector(random_state=0).fit(X_train)
    >>> detector.predict(X_new)  # 1: normal, -1: abnormal

    Args:
        model: name of a model of the zoo.
        score: "recon", the mean squared error of the reconstruction of the scaled row;
            "elbo", -ELBO in nats, on models that have one;
            "latent_knn", the mean distance to the `n_neighbors` nearest training rows in the code, each latent in units of its
            standard deviation;
            "mahalanobis", the distance to the mean of codes and errors [z, x^ - x] in units of their covariance, shrunk
            (Ledoit & Wolf 2004);
            "ensemble", the mean of the logarithms of the three things that an autoencoder tells of a row: the distances to the nearest
            training rows in the scaled row x itself and in its code z, and the reconstruction error; each standardised by median and
            quartiles over training rows. x tells what lies off the normal rows in any direction, z what is unlike them in the
            directions that the model has learned, the error what lies off what it can make.
        contamination: "auto": abnormal is what lies 2.5 robust standard deviations above the median of the training rows' scores
            (of their logarithms, but for "ensemble", which is one, and "elbo"); or the fraction of training rows, in (0, 0.5],
            that `predict` calls abnormal.
        n_models: how many models, which differ in their seed, are trained (together, by `aezoo.fit_many`) and averaged.
        n_neighbors: k of "latent_knn" and "ensemble". A training row is no neighbour of its own.
        latent_dim: K; "auto": 32, whatever the number of columns: codes are compared here, and need not be narrow.
        backbone: as for `aezoo.create_model`; "auto": layers of 128 and 64 units for models built on an
            "mlp", else the model's own.
        model_params: further keywords of the model, {"beta": 2.0}.
        scaler: of the columns before: "standard", "robust", "quantile", "minmax", "none".
        input_shape: shape of a sample where a row is a picture or a series; by default (F,).
        epochs, steps, batch_size, lr, weight_decay: as for `aezoo.fit`.
        device: where it trains and scores. random_state: of weights, order and draws; an integer makes all results reproducible.
        verbose: a bar in training.

    After `fit`: `offset_` (decision_function = score_samples - offset_), `model_`, `models_`, `scaler_`, `history_` (rows as of
    `aezoo.fit`, of the first model), `n_features_in_`, `feature_names_in_` where columns have names.

    Raises ValueError or TypeError in `fit` for parameters and rows that do not fit: NaN, infinity, fewer than two rows, text."""

    score = ScoreParameter()

    def __init__(
        self,
        model: str = "ae",
        score: str = "ensemble",
        contamination: Any = "auto",
        *,
        n_models: int = 1,
        n_neighbors: int = 3,
        latent_dim: Any = "auto",
        backbone: Any = "auto",
        model_params: Mapping[str, Any] | None = None,
        scaler: str = "standard",
        input_shape: Any = None,
        epochs: int | None = None,
        steps: int | None = 100,
        batch_size: int = 256,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        device: str = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ):
        self.model = model
        self.score = score
        self.contamination = contamination
        self.n_models = n_models
        self.n_neighbors = n_neighbors
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

    def fit(self, X: Any, y: Any = None) -> AEDetector:
        """Trains on rows (N, F); y is ignored. Returns self."""
        self._fit_scores(X, every=not isinstance(self.contamination, str))
        return self

    def _fit_scores(self, X: Any, every: bool = True) -> np.ndarray:
        """Trains, and returns the abnormality of `every` training row (N,), or of CENTRE of them; high = abnormal."""
        rows = self._fit_rows(X, self.n_models, min_rows=2)
        draw = np.random.default_rng(self.seed_)
        kept = np.sort(draw.choice(len(rows), REFERENCE, replace=False)) if len(rows) > REFERENCE else slice(None)
        wanted = ENSEMBLE if self.score == "ensemble" else (self.score,)
        views = self._views(rows)
        self._measures = [Measures(v, kept, wanted, self.n_neighbors) for v in views]
        some = np.sort(draw.choice(len(rows), CENTRE, replace=False)) if len(rows) > CENTRE else np.arange(len(rows))
        raw = self._raw(rows[some], [v.part(some) for v in views])
        self._centres = {}
        for name, values in raw.items() if self.score == "ensemble" else ():
            logs = np.log(values + TINY)
            low, middle, high = np.percentile(logs, [25, 50, 75], axis=1)
            spread = (high - low) / 1.349  # a normal distribution's deviation
            self._centres[name] = middle, np.where(spread > 1e-4, spread, 1.0)
        scores = self._combined(raw)
        if every and len(some) < len(rows):
            scores = self._combined(self._raw(rows, views))
        limit = score_limit(scores, self.contamination, logs=self.score not in ("ensemble", "elbo"))
        scale = max(1.0, np.abs(scores).max()) if self.score == "ensemble" else np.abs(scores).max()
        self.offset_ = -float(limit + 1e-9 * scale)  # rounding makes no row abnormal
        return scores

    def score_samples(self, X: Any) -> np.ndarray:
        """How normal each row is, (N,): low = abnormal."""
        return -self._combined(self._raw(self._rows(X)))

    def decision_function(self, X: Any) -> np.ndarray:
        """score_samples - offset_, (N,): below 0 = abnormal."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for normal rows, -1 for abnormal ones, (N,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters as they were given."""
        return {**super().get_params(deep), "score": vars(self)["score"]}

    # ------------------------------------------------------------------------------------------------------- the inside

    def _checked_params(self) -> None:
        choice("score", self.score, SCORES)
        super()._checked_params()
        positive("n_models", self.n_models)
        positive("n_neighbors", self.n_neighbors)
        check_contamination(self.contamination)
        if self.score == "elbo":
            check_elbo(MODELS[self.model])

    def _auto_latent_dim(self, features: int) -> int:
        return 32

    def _views(self, rows: np.ndarray) -> list[View]:
        """Scaled rows (N, F) as each model sees them."""
        x = rows.astype(np.float64)
        if self.score == "elbo":
            return [View(x, x[:, :0], x)] * len(self.models_)

        def view(model: BaseAE, x: Tensor) -> Tensor:
            z = model.encode(x)
            return torch.cat([model.decode(z).flatten(1), z.flatten(1).to(x.dtype)], 1)

        width = rows.shape[1]
        return [View(x, v[:, width:], v[:, :width]) for v in self._apply(view, rows)]

    def _raw(self, rows: np.ndarray, views: list[View] | None = None) -> dict[str, np.ndarray]:
        """Each measure by each model: {name: (models, N)}, "elbo" in nats and the others at least 0."""
        if self.score == "elbo":
            return {"elbo": np.stack(self._apply(self._bound, rows))}
        views = self._views(rows) if views is None else views
        found = [measure(view) for measure, view in zip(self._measures, views)]
        return {name: np.stack([f[name] for f in found]) for name in found[0]}

    def _bound(self, model: BaseAE, x: Tensor) -> Tensor:
        """-ELBO (B,), the mean over draws that are the same for every row."""
        set_seed(self.seed_, x.device)
        with SameForAll():
            return torch.stack([-model(x).metrics["elbo"] for _ in range(DRAWS)]).mean(0)

    def _combined(self, raw: dict[str, np.ndarray]) -> np.ndarray:
        """The abnormality of rows, (N,)."""
        if self.score != "ensemble":
            return raw[self.score].mean(0)
        each = []
        for name, values in raw.items():
            middle, spread = self._centres[name]
            each.append(((np.log(values + TINY) - middle[:, None]) / spread[:, None]).mean(0))
        return np.mean(each, 0)
