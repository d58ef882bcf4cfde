"""Training: one loop for every model. `.to(device)`, autocast and compile appear in this folder only."""

from .fitting import fit
from .hooks import Callback
from .result import FitResult

__all__ = ["Callback", "FitResult", "fit"]
