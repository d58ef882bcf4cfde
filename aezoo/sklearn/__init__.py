"""Estimators with scikit-learn's interface: they pass its `check_estimator`, and work in pipelines, grid searches, `clone` and joblib.

AETransformer   codes of rows as features
AEDetector      how abnormal rows are
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .detector import AEDetector
    from .transformer import AETransformer

_LAZY = {"AEDetector": "detector", "AETransformer": "transformer"}

__all__ = ["AEDetector", "AETransformer"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
