"""The data that a codec takes, and gives back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import BaseAE
from ..data.sources import floats
from .bits_back import levels_of


def checked(model: BaseAE, x: Any, lossless: bool) -> tuple[Tensor, bool]:
    """(samples as the model takes them, or integers for a lossless codec; whether they were 8-bit)."""
    x = tensor_of(x)
    as_bytes = x.dtype == torch.uint8
    like = next(model.parameters())
    scaled = floats(x, torch.float64 if lossless else like.dtype)
    model.check_input(x if lossless and x.is_floating_point() else scaled.to(like.dtype))
    if not bool(scaled.isfinite().all()):
        i = int((~scaled.flatten(1).isfinite().all(1)).nonzero()[0])
        raise ValueError(f"sample {i} holds NaN or infinity; there is no code for it")
    model.likelihood.check(float(scaled.min()), float(scaled.max()))
    if not lossless:
        return scaled, as_bytes
    levels = levels_of(model.likelihood)
    whole = torch.round(scaled * (levels - 1))
    exactly = torch.equal(restored(whole.long(), levels, as_bytes, x.dtype), x.cpu())
    if not exactly:
        values = "0 and 1 (binarise it)" if levels == 2 else f"k / {levels - 1}, as x.float() / {levels - 1} gives them"
        raise ValueError(
            f"this codec is lossless for the {levels} values {values}; the data holds others, e.g. "
            f"{float(scaled.flatten()[(scaled * (levels - 1) - whole).abs().argmax()]):.6g}"
        )
    return whole.long(), as_bytes


def restored(integers: Tensor, levels: int, as_bytes: bool, dtype: torch.dtype) -> Tensor:
    """Integers of 0 .. levels - 1 as the data they stand for."""
    if as_bytes:
        return (
            (integers * (255 // (levels - 1))).to(torch.uint8) if 255 % (levels - 1) == 0 else integers.to(torch.uint8)
        )
    return integers.to(dtype) / (levels - 1)


def tensor_of(x: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor or an array of samples; got {type(x).__name__}")
    return x.detach()
