"""Order and seeds: pure functions of (seed, epoch) and (seed, step), so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def batches_of(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive slices of `size`; a last one of a single sample is joined to the one before (a batch norm needs two)."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 and size > 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def mix_seed(*numbers: int) -> int:
    """A 63-bit seed from several integers (splitmix64 over each in turn)."""
    state = 0
    for n in numbers:
        state = (state + n + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


@contextlib.contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """The global RNGs come out as they went in."""
    devices = [device.index or 0] if device.type == "cuda" else []
    kind = device.type if device.type != "cpu" else "cuda"
    with torch.random.fork_rng(devices=devices, device_type=kind):
        yield
