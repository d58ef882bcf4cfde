"""One pass over held-out data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..base import AELoss, BaseAE
from ..data import Source
from .hardware import Hardware
from .interval import Interval
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
    """Mean loss, terms and metrics over all of `source`, and figures of the whole of it (`figures`): each sample counts once, whatever
    batch it was in.

    Runs in evaluation mode without gradients; draws come from the global RNG, which the caller seeds. `between` is called between
    two batches; what it raises ends the pass. `loss_of` takes the place of `model.loss`."""
    sums = Interval(hardware.device, world, skip=False)
    dtype = next(model.parameters()).dtype
    plan = list(torch.arange(len(source)).split(batch_size)) if source.ordered else []
    totals = iter([len(index) for index in plan])
    batches = iter(source.batches(world.share(plan), hardware.device, dtype))
    with model.evaluating(), model.reporting_parts(), torch.no_grad(), hardware.autocast():
        while True:
            between()
            total = next(totals, 0)
            with world.spread(total):
                batch = next(batches, None)
                if batch is None:
                    break
                total = total or len(batch.x)
                loss = (loss_of or model.loss)(hardware.place(batch.x), **told(condition_of(model, batch)))
            sums.count({"loss": loss.total, **loss.terms, **loss.metrics}, world.rows(total))
            sums.samples += total
    return sums.means()
