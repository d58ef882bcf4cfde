"""Training: one loop for every model. `.to(device)`, autocast and compile appear in this folder only."""

from .loop import fit
from .result import FitResult

__all__ = ["FitResult", "fit"]
