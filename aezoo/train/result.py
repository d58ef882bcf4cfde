"""What a run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import BaseAE


@dataclass
class FitResult:
    """What `fit` returns."""

    model: BaseAE
    """The trained model, in evaluation mode, with the best weights by validation loss (the last ones without validation)."""
    history: list[dict[str, Any]]
    """One row per epoch, and per `log_every` steps: epoch, step, lr, loss, each term, samples_per_s, seconds; at the end of an epoch
    the loss and the terms with val_ in front, too, where `val` was given."""
    best: dict[str, Any]
    """The row of the best epoch."""
    stopped: str
    """Why training ended: "finished", "converged", "callback" or "time"."""
    seconds: float
    """Wall time of the training steps and validations, this call only."""
    samples_per_s: float
    """Training samples per second, median over the epochs."""
    out: Path | None = None
    """The run folder."""
