"""One pass over held-out data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base import AELoss, BaseAE
from ..data import Source
from .hardware import Hardware
from .processes import Processes
from .step import condition_of, told

VALIDATION = 2**40  # stands for the step in the seed of validation draws, far from any real step


def mean_loss(
    model: BaseAE,
    source: Source,
    hardware: Hardware,
    batch_size: int,
    world: Processes,
    between: Callable[[], Any] = lambda: None,
    loss_of: Callable[..., AELoss] | None = None,
) -> dict[str, float]:
    """Mean loss, terms and metrics over all of `source`: each sample counts once, whatever batch it was in.

    Runs in evaluation mode without gradients; draws come from the global RNG, which the caller seeds. `between` is called between
    two batches; what it raises ends the pass. `loss_of` takes the place of `model.loss`."""
    sums: dict[str, Tensor] = {}
    dtype = next(model.parameters()).dtype
    plan = list(torch.arange(len(source)).split(batch_size)) if source.ordered else []
    totals = iter([len(index) for index in plan])
    batches = iter(source.batches(world.share(plan), hardware.device, dtype))
    seen = 0
    with model.evaluating(), torch.no_grad(), hardware.autocast():
        while True:
            between()
            total = next(totals, 0)
            with world.spread(total):
                batch = next(batches, None)
                if batch is None:
                    break
                total = total or len(batch.x)
                loss = (loss_of or model.loss)(hardware.place(batch.x), **told(condition_of(model, batch)))
            seen += total
            for name, value in {"loss": loss.total, **loss.terms, **loss.metrics}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * world.rows(total)
    values = torch.stack([v.double() if v.device.type != "mps" else v for v in sums.values()]).cpu()
    return dict(zip(sums, (world.sum(values) / seen).tolist()))
