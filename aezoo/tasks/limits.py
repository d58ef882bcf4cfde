"""From which score on something is abnormal."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

DEVIATIONS = 2.5  # robust standard deviations above the median: 0.6 % of a normal distribution


def check_contamination(value: Any) -> None:
    """Raises ValueError unless `value` is "auto" or a fraction in (0, 0.5]."""
    if isinstance(value, str) and value == "auto":
        return
    if isinstance(value, (bool, str)) or not isinstance(value, Real) or not 0 < float(value) <= 0.5:
        raise ValueError(f"contamination={value!r} must be 'auto' or a fraction in (0, 0.5]")


def score_limit(scores: np.ndarray, contamination: Any = "auto", logs: bool | None = None) -> float:
    """The limit above which a score (high = abnormal) is called abnormal, from scores (N,) of normal samples; NaN are left out.

    A fraction: their (1 - contamination) quantile. "auto": median + 2.5 * 1.4826 * MAD, MAD the median absolute deviation from the
    median; of the scores' logarithms where `logs`, by default where all are positive: errors and distances spread by factors.
    Scores that are all equal give that score: nothing like them is abnormal."""
    check_contamination(contamination)
    known = np.asarray(scores, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        raise ValueError("there are no scores to take a limit from")
    if contamination != "auto":
        return float(np.percentile(known, 100 * (1 - float(contamination))))
    positive = bool((known > 0).all())
    logs = positive and (logs is None or logs)
    values = np.log(known) if logs else known
    middle = float(np.median(values))
    limit = middle + DEVIATIONS * 1.4826 * float(np.median(np.abs(values - middle)))
    return math.exp(min(limit, 700.0)) if logs else limit
