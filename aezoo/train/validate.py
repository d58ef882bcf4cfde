"""One pass over held-out data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import BaseAE
from ..data import Source
from .hardware import Hardware


def mean_loss(model: BaseAE, source: Source, hardware: Hardware, batch_size: int) -> dict[str, float]:
    """Mean loss, terms and metrics over all of `source`: each sample counts once, whatever batch it was in.

    Runs in evaluation mode without gradients; draws come from the global RNG, which the caller seeds."""
    sums: dict[str, Tensor] = {}
    seen = 0
    dtype = next(model.parameters()).dtype
    with model.evaluating(), torch.no_grad(), hardware.autocast():
        for batch in source.batches(list(torch.arange(len(source)).split(batch_size)), hardware.device, dtype):
            loss = model.loss(batch.x)
            seen += len(batch.x)
            for name, value in {"loss": loss.total, **loss.terms, **loss.metrics}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(batch.x)
    return {name: float(value) / seen for name, value in sums.items()}
