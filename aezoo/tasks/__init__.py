"""The five things that trained models are used for, one module each; every one takes any model of the zoo."""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "interpolate": "generate",
    "probe_report": "features",
    "save_gif": "frames",
    "save_grid": "frames",
    "traverse": "generate",
    "Codec": "compress",
    "anomaly_scores": "detect",
    "detect_series": "series",
    "error_map": "error_maps",
    "Interval": "series",
    "sliding_windows": "series",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
