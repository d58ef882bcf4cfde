"""`AEDetector` with PyOD's conventions: high = abnormal, labels 0 and 1. A `pyod.models.base.BaseDetector` where PyOD is installed.

PyOD is not needed: without it the class brings what is used most itself: `fit`, `decision_function`, `predict`, `predict_proba`,
`fit_predict`, and PyOD's attributes. PyOD's base class adds its confidences and evaluation helpers.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from .registry import choice

if TYPE_CHECKING:
    from .sklearn.detector import AEDetector as Inner


class _Conventions(BaseEstimator):
    """What PyOD's base class gives its detectors: threshold, labels and probabilities from `decision_scores_`.

    Attributes after `fit`: `decision_scores_` (N,) of the training rows, high = abnormal; `threshold_`, their (1 - contamination)
    quantile; `labels_` (N,), 1 above it."""

    contamination: float
    decision_scores_: np.ndarray

    def __init__(self, contamination: float = 0.1):
        if isinstance(contamination, bool) or not isinstance(contamination, Real) or not 0 < contamination <= 0.5:
            raise ValueError(f"contamination={contamination!r} must be a fraction in (0, 0.5]")
        self.contamination = contamination

    def _set_n_classes(self, y: Any) -> None:
        self._classes = 2

    def _process_decision_scores(self) -> _Conventions:
        self.threshold_ = float(np.percentile(self.decision_scores_, 100 * (1 - self.contamination)))
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        self._mu, self._sigma = float(np.mean(self.decision_scores_)), float(np.std(self.decision_scores_))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} does not define decision_function(X)")

    def fit(self, X: Any, y: Any = None) -> Any:
        raise TypeError(f"{type(self).__name__} does not define fit(X)")

    def predict(self, X: Any) -> np.ndarray:
        """0 for normal rows, 1 for abnormal ones, (N,)."""
        check_is_fitted(self, ["decision_scores_", "threshold_", "labels_"])
        return (self.decision_function(X) > self.threshold_).astype(int)

    def predict_proba(self, X: Any, method: str = "linear") -> np.ndarray:
        """(N, 2): probabilities of normal and abnormal; "linear": scores scaled to [0, 1] by the training rows' range; "unify": the
        error function of the standardised score (Kriegel et al. 2011)."""
        check_is_fitted(self, ["decision_scores_", "threshold_", "labels_"])
        choice("method", method, ["linear", "unify"])
        scores = self.decision_function(X)
        if method == "linear":
            low, high = float(self.decision_scores_.min()), float(self.decision_scores_.max())
            p = (scores - low) / (high - low if high > low else 1.0)
        else:
            from scipy.special import erf

            p = erf((scores - self._mu) / ((self._sigma or 1.0) * np.sqrt(2)))
        p = np.clip(p, 0.0, 1.0)
        return np.stack([1 - p, p], 1)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """`labels_` after `fit(X)`."""
        self.fit(X, y)
        return self.labels_


try:
    from pyod.models.base import BaseDetector as _Base
except ImportError:
    _Base = _Conventions


class AEDetector(_Base):
    """`aezoo.sklearn.AEDetector` for PyOD: the same parameters, but `contamination`, a fraction in (0, 0.5].

    After `fit`: `decision_scores_`, `threshold_`, `labels_` (PyOD's), `detector_` (the estimator inside), `history_`,
    `n_features_in_`. `decision_function` is high for abnormal rows, `predict` 1; `predict_proba` (N, 2)."""

    def __init__(
        self,
        contamination: float = 0.1,
        model: str = "ae",
        score: str = "ensemble",
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
        super().__init__(contamination=contamination)
        self.model = model
        self.score = score
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
        from .sklearn.detector import AEDetector as Inner

        self._set_n_classes(y)
        self.detector_: Inner = Inner(**self.get_params(deep=False))
        self.decision_scores_ = self.detector_._fit_scores(X)
        self.history_, self.n_features_in_ = self.detector_.history_, self.detector_.n_features_in_
        self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """How abnormal each row is, (N,): high = abnormal."""
        check_is_fitted(self, ["detector_"])
        return -self.detector_.score_samples(X)
