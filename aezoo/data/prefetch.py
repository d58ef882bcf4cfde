"""Moving batches to the device while it still works on the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor | None]  # samples and labels, as they are stored


def to_device(batches: Iterable[Pair], device: torch.device) -> Iterable[Pair]:
    """Batches in host memory, on `device`; to a GPU they go through pinned memory, one batch ahead.

    On the CPU this is `batches` itself."""
    if device.type == "cpu":
        return batches
    if device.type == "cuda":
        return _copied_ahead(batches, device)
    return ((x.to(device), None if y is None else y.to(device)) for x, y in batches)


def _copied_ahead(batches: Iterable[Pair], device: torch.device) -> Iterator[Pair]:
    """Each batch is copied on a stream of its own, while the device computes on the one that was handed out before it."""
    side = torch.cuda.Stream(device)

    def start(x: Tensor, y: Tensor | None) -> tuple[Pair, torch.cuda.Event]:
        with torch.cuda.stream(side):
            # the allocator of pinned memory gives a block out again only after the copies from it are over
            x = x.pin_memory().to(device, non_blocking=True)
            y = None if y is None else y.pin_memory().to(device, non_blocking=True)
            return (x, y), side.record_event()

    def arrived(batch: Pair, copied: torch.cuda.Event) -> Pair:
        now = torch.cuda.current_stream(device)
        now.wait_event(copied)
        for tensor in batch:
            if tensor is not None:
                tensor.record_stream(now)  # it was allocated on the side stream: keep it until this one is done with it
        return batch

    ahead: tuple[Pair, torch.cuda.Event] | None = None
    for x, y in batches:
        started = start(x, y)
        if ahead is not None:
            yield arrived(*ahead)
        ahead = started
    if ahead is not None:
        yield arrived(*ahead)
