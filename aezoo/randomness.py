"""Order and seeds: pure functions of (seed, epoch) and (seed, step), so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def checked_seed(seed: Any) -> int:
    """`seed` if it is an integer from 0 to 2^63 - 1; else ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r} must be an integer from 0 to 2^63 - 1")
    return seed


def mix_seed(*numbers: int) -> int:
    """A 63-bit seed from several integers (splitmix64 over each in turn)."""
    state = 0
    for n in numbers:
        state = (state + n + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


def set_seed(seed: int, device: torch.device) -> None:
    """Seeds the CPU's generator and that of `device`, and no other device's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """The CPU's generator and that of `device` come out of the block as they went in."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextlib.contextmanager
def seeded_sample(seed: int) -> Iterator[None]:
    """Inside the block torch, `random` and NumPy (where it is loaded) draw from `seed`; afterwards as if nothing had been.

    A data set's own random transforms run in here, so that what they draw depends neither on the number of loader processes nor
    on where a run was resumed."""
    numpy: Any = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if numpy:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.random.set_state(states[2])


def batches_of(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive slices of `size`; a last one of a single sample is joined to the one before (a batch norm needs two)."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 and size > 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
