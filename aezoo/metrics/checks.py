"""What every metric asks of its codes and labels, and how it says what it found.

Legend: N samples, K numbers of a code, F factors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Scores = dict[str, tuple[float, float, int]]
"""{name: (value, standard error, samples)}."""


def checked_codes(name: str, z: Any, width: int | None = None) -> Tensor:
    """Codes (N, ...) as (N, K) in float32 or float64, detached, on their device.

    Raises TypeError for what is no tensor or array, ValueError for less than two axes or two samples, for NaN and infinities, and
    where K is not `width`."""
    z = as_tensor(name, z)
    if z.dim() < 2 or len(z) < 2:
        raise ValueError(f"{name} must hold at least two codes, (N, K); got shape {tuple(z.shape)}")
    z = z.detach().flatten(1)
    z = z if z.dtype == torch.float64 else z.float()
    if width is not None and z.shape[1] != width:
        raise ValueError(f"{name} has {z.shape[1]} numbers a sample, the codes that it is compared with {width}")
    if not bool(torch.isfinite(z).all()):
        bad = int((~torch.isfinite(z).all(1)).nonzero()[0])
        raise ValueError(f"{name} holds NaN or infinity, first in sample {bad}")
    return z


def checked_labels(name: str, y: Any, n: int, device: torch.device) -> Tensor:
    """Whole-number labels (n,) as int64 on `device`. Raises TypeError or ValueError for anything else."""
    y = as_tensor(name, y)
    if y.is_floating_point() or y.is_complex() or y.dim() != 1:
        hint = "; of a table of factors, pass one column" if y.dim() == 2 else ""
        raise ValueError(f"{name} must be whole-number labels, ({n},); got {y.dtype} of shape {tuple(y.shape)}{hint}")
    if len(y) != n:
        raise ValueError(f"{name} holds {len(y)} labels for {n} codes")
    return y.detach().to(device).long()


def as_tensor(name: str, x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if type(x).__module__ != "numpy":
        raise TypeError(f"{name} must be a tensor or an array; got {type(x).__name__}")
    return torch.from_numpy(x)


def proportion(p: float, n: int) -> tuple[float, float, int]:
    """A share p of n independent samples, with its binomial standard error sqrt(p (1 - p) / n)."""
    return p, math.sqrt(max(0.0, p * (1 - p)) / n), n


def jackknife(whole: float, parts: list[float]) -> float:
    """Standard error from G values, each of all but one of G equal groups of samples: sqrt((G-1)/G sum_g (part_g - mean)^2).

    NaN for fewer than two groups. (Efron & Stein 1981; `whole` being NaN makes it NaN.)"""
    if len(parts) < 2 or math.isnan(whole):
        return math.nan
    mean = math.fsum(parts) / len(parts)
    return math.sqrt((len(parts) - 1) / len(parts) * math.fsum((p - mean) ** 2 for p in parts))
