"""Training: one loop for every model. `.to(device)`, autocast and compile appear in this folder only."""

from .loop import FitResult, fit

__all__ = ["FitResult", "fit"]
