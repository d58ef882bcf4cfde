"""aezoo: the autoencoder zoo for PyTorch. One contract, every variant, one training loop.

import aezoo
model = aezoo.create_model("vae", input_shape=(1, 28, 28), latent_dim=16)
result = aezoo.fit(model, "fashion-mini", epochs=5, out="runs/first")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from . import models  # noqa: F401  registers the zoo
from .base import AELoss, AEOutput, BaseAE
from .registry import create_model, list_models, register

if TYPE_CHECKING:
    from .data import load_data
    from .evaluation import evaluate
    from .hub import from_pretrained
    from .train import FitResult, fit

_LAZY = {  # loaded on first use
    "fit": "train",
    "FitResult": "train",
    "load_data": "data",
    "evaluate": "evaluation",
    "from_pretrained": "hub",
}

__all__ = [
    "AELoss",
    "AEOutput",
    "BaseAE",
    "FitResult",
    "create_model",
    "evaluate",
    "fit",
    "from_pretrained",
    "list_models",
    "load_data",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "models", "__version__"])
