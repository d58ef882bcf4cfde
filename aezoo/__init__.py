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
    from .cards import write_card
    from .convert import convert_pt
    from .data import load_data
    from .data.sequences import pad_sequences
    from .data.tables import encode_table
    from .evaluation import evaluate
    from .exporting import export
    from .hub import from_pretrained, pull, push
    from .interop import load_foreign, save_foreign
    from .prior_fitting import fit_prior
    from .reporting import report
    from .sampling import walkback
    from .tasks.compress import Codec
    from .tasks.denoise import denoise
    from .tasks.detect import detect
    from .tasks.features import features
    from .tasks.generate import interpolate, traverse
    from .train import Callback, FitResult, fit
    from .train.find import find_batch_size
    from .train.many import fit_many
    from .train.range_test import LRResult, find_lr

_LAZY = {  # loaded on first use
    "Callback": "train",
    "features": "tasks.features",
    "Codec": "tasks.compress",
    "fit": "train",
    "fit_many": "train.many",
    "fit_prior": "prior_fitting",
    "FitResult": "train",
    "load_data": "data",
    "load_foreign": "interop",
    "save_foreign": "interop",
    "detect": "tasks.detect",
    "evaluate": "evaluation",
    "export": "exporting",
    "from_pretrained": "hub",
    "interpolate": "tasks.generate",
    "pull": "hub",
    "push": "hub",
    "report": "reporting",
    "write_card": "cards",
    "convert_pt": "convert",
    "denoise": "tasks.denoise",
    "encode_table": "data.tables",
    "pad_sequences": "data.sequences",
    "find_batch_size": "train.find",
    "find_lr": "train.range_test",
    "LRResult": "train.range_test",
    "traverse": "tasks.generate",
    "walkback": "sampling",
}

__all__ = [
    "AELoss",
    "AEOutput",
    "BaseAE",
    "Callback",
    "Codec",
    "FitResult",
    "LRResult",
    "convert_pt",
    "create_model",
    "denoise",
    "detect",
    "encode_table",
    "evaluate",
    "export",
    "features",
    "find_batch_size",
    "find_lr",
    "fit",
    "fit_many",
    "fit_prior",
    "from_pretrained",
    "interpolate",
    "list_models",
    "load_data",
    "load_foreign",
    "pad_sequences",
    "pull",
    "push",
    "register",
    "report",
    "save_foreign",
    "traverse",
    "walkback",
    "write_card",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in ("interop", "pyod", "sklearn", "tasks"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "interop", "models", "pyod", "sklearn", "tasks", "__version__"])
