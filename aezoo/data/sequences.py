"""Series: of different lengths in one tensor, and a data set of waves that is made up.

Legend: N series, T steps, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import positive

WAVES = ("sine", "saw", "chirp")
STEPS, SHORTEST, NOISE = 64, 24, 0.05


def pad_sequences(series: Sequence[Any], length: int | None = None) -> Tensor:
    """Series (t_i, C) of different lengths as one tensor (N, T, C), NaN after the end of each; (t_i,) is one channel.

    T is the longest, or `length`. Takes tensors, arrays or lists of numbers; floating point stays as it is, other numbers become
    float32. Raises ValueError for no series, an empty one, one longer than `length`, and different numbers of channels."""
    if isinstance(series, Tensor) or not isinstance(series, Sequence) or not len(series):
        raise ValueError(f"pad_sequences takes a list of at least one series (t_i, C); got {type(series).__name__}")
    tensors = [x.detach() if isinstance(x, Tensor) else torch.as_tensor(x) for x in series]
    tensors = [x[:, None] if x.dim() == 1 else x for x in tensors]
    for i, x in enumerate(tensors):
        if x.dim() != 2 or x.shape[1] != tensors[0].shape[1] or not x.numel():
            want = f"(steps, {tensors[0].shape[1]})" if tensors[0].dim() == 2 else "(steps, channels)"
            raise ValueError(f"series {i} has shape {tuple(x.shape)}; it must be {want} with at least one step")
    longest = max(len(x) for x in tensors)
    steps = longest if length is None else positive("length", length)
    if longest > steps:
        raise ValueError(f"length={length!r} is shorter than the longest series, which has {longest} steps")
    dtype = tensors[0].dtype if tensors[0].is_floating_point() else torch.get_default_dtype()
    out = torch.full((len(tensors), steps, tensors[0].shape[1]), math.nan, dtype=dtype)
    for row, x in zip(out, tensors):
        row[: len(x)] = x
    return out


def waves(split: str, ragged: bool = False) -> tuple[Tensor, Tensor]:
    """2,000 series to train and 500 to test, (N, 64, 2), and their kinds: 0 sine, 1 saw, 2 chirp.

    Each has a phase, an amplitude in [0.5, 1] and 1.5 to 4 cycles of its own (a chirp's frequency triples on the way); the second
    channel is the first a quarter of a cycle later; both carry noise of deviation 0.05. `ragged`: each has a length of its own, 24
    to 64 steps, and is padded with NaN. A function of the split alone: the two are drawn from different seeds."""
    n, seed = (2000, 1) if split == "train" else (500, 2)
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(len(WAVES), (n,), generator=g)
    phase, loud, rate = torch.rand(3, n, 1, 1, generator=g)
    t = torch.linspace(0, 1, STEPS)[:, None]  # (T, 1)
    later = torch.tensor([0.0, -0.25])  # of a cycle, (C,)
    warped = torch.where(kind.view(-1, 1, 1) == 2, 0.5 * t + 0.5 * t.square(), t)  # its slope grows threefold
    cycles = (1.5 + 2.5 * rate) * warped + phase + later  # (N, T, C)
    saw = 2 * (cycles - cycles.floor()) - 1
    x = torch.where(kind.view(-1, 1, 1) == 1, saw, torch.sin(2 * math.pi * cycles)) * (0.5 + 0.5 * loud)
    x = x + NOISE * torch.randn(x.shape, generator=g)
    if ragged:
        lengths = torch.randint(SHORTEST, STEPS + 1, (n, 1, 1), generator=g)
        x = x.masked_fill(torch.arange(STEPS)[:, None] >= lengths, math.nan)
    return x, kind
