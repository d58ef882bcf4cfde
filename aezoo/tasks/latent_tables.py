"""What of a code is written: integers, in groups that share a step and a table of frequencies.

A code vector's channel is a group (in a flat code every latent is one), and so is every codebook. Continuous latents become
round(z / step), indices are integers already. A table covers the values seen when it was made; its last entry is an escape, after
which the value follows in bits.

Legend: N samples, P integers of a sample, G groups; q integers (N, P).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..base import BaseAE
from .ans import Array, Stack, table

MOST_VALUES = 1 << 16  # of a table, beside the escape
LARGEST = 1 << 60  # largest integer that can be coded
PROBES = 4096  # decoded samples by which the sensitivity of all latents is measured; 4 to 32 for each


def indexed(model: Any) -> bool:
    """Whether codes are indices into a codebook."""
    return callable(getattr(model, "indices", None)) and callable(getattr(model, "decode_indices", None))


def groups_of(model: Any) -> Array:
    """The group of each of a sample's P integers, (P,)."""
    if indexed(model):
        shape = tuple(model.index_shape)
        places = torch.arange(math.prod(shape)).view(1, *shape)
        group = np.zeros(math.prod(shape), np.int64)
        for number, part in enumerate(model.by_codebook(places).values()):
            group[part.flatten().numpy()] = number
        return group
    shape = tuple(model.latent_shape)
    return np.repeat(np.arange(shape[0]), math.prod(shape[1:]))


def codes_of(model: Any, x: Tensor) -> Tensor:
    """x (B, *input_shape) -> indices as int64 or the code as float64, (B, P), on the CPU."""
    with torch.no_grad():
        if indexed(model):
            return model.indices(x).flatten(1).cpu()
        return model.encode(x).flatten(1).cpu().double()


def decoded(model: Any, q: Array, steps: Array | None) -> Tensor:
    """Integers (B, P) -> reconstructions. Raises ValueError for what are no indices of the model."""
    like = next(model.parameters())
    with torch.no_grad():
        if steps is None:
            return model.decode_indices(torch.from_numpy(q).view(-1, *model.index_shape).to(like.device))
        z = torch.from_numpy(q * steps[groups_of(model)])
        return model.decode(z.to(like).view(-1, *model.latent_shape))


def rounded(z: Tensor, steps: Array | None, groups: Array) -> Array:
    """The integers that are written, (N, P), int64. Raises ValueError for codes that are not finite or too large."""
    if steps is None:
        return z.numpy().astype(np.int64)
    values = z.numpy() / steps[groups]
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > LARGEST:
        raise ValueError(
            "the model makes codes of this data that are not finite or beyond all range; is the data what it was trained on?"
        )
    return np.rint(values).astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------- steps


def choose_steps(model: BaseAE, x: Tensor, extra: float, progress: bool = False) -> Array:
    """A step for each group, (G,), such that rounding raises the mean squared error of reconstructions by a fraction of `extra`.

    Uniform noise of a step d in each latent adds sum_k s_k^2 d_k^2 / 12, s_k the size of the decoder's change for a change of latent k.
    It is least for a given rate where all s_k d_k are the same (the slope of every latent's rate-distortion curve is); s_k is measured
    by finite differences, and the one number that is left by bisection."""
    groups = groups_of(model)
    z = codes_of(model, x)
    base = decoded_float(model, z)
    target = ((base - x.cpu().double()) ** 2).mean() * (1 + extra) + 1e-9 * (x.double() ** 2).mean().cpu()
    sizes = sensitivities(model, z[: min(32, max(4, PROBES // (int(groups.max()) + 1)))], groups, progress)
    reach = np.zeros(len(sizes))
    np.maximum.at(reach, np.broadcast_to(groups, z.shape), z.abs().numpy())
    low, high = -40.0, 20.0

    def steps_at(power: float) -> Array:
        with np.errstate(divide="ignore"):
            steps = 2.0**power / sizes
        return np.minimum(steps, 4 * reach + 1)  # a latent that says nothing is always 0

    for _ in range(16):
        middle = (low + high) / 2
        steps = steps_at(middle)
        back = decoded(model, rounded(z, steps, groups), steps).cpu().double()
        if float(((back - x.cpu().double()) ** 2).mean()) <= float(target):
            low = middle
        else:
            high = middle
    return steps_at(low)


def decoded_float(model: Any, z: Tensor) -> Tensor:
    """Codes (B, P) -> reconstructions, float64 on the CPU."""
    like = next(model.parameters())
    with torch.no_grad():
        return model.decode(z.to(like).view(-1, *model.latent_shape)).cpu().double()


def sensitivities(model: Any, z: Tensor, groups: Array, progress: bool = False) -> Array:
    """Size of the decoder's change for a change of one number of each group, (G,): sqrt of mean |D(z + e) - D(z)|^2 / |e|^2, e random
    signs times a hundredth of the group's spread."""
    count = int(groups.max()) + 1
    base, member = decoded_float(model, z), torch.from_numpy(groups)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, z.shape, generator=generator).double() * 2 - 1
    found = np.zeros(count)
    for g in tqdm(range(count), "sensitivity", unit=" latents", delay=2, leave=False, disable=not progress):
        here = member == g
        spread = float(z[:, here].std(unbiased=False)) or float(z[:, here].abs().max()) or 1.0
        moved = z + torch.where(here, signs * (0.01 * spread), 0.0)
        change = ((decoded_float(model, moved) - base) ** 2).flatten(1).sum(1).mean()
        found[g] = math.sqrt(float(change) / ((0.01 * spread) ** 2 * int(here.sum())))
    return found


# --------------------------------------------------------------------------------------------------------------- tables


def make_tables(q: Array, groups: Array) -> tuple[Array, list[Array]]:
    """Integers seen at fit (N, P) -> the lowest value (G,), and a table for each group; its last entry is the escape.

    Frequencies are counts + 1/2 (Krichevsky & Trofimov 1981)."""
    lows, tables = [], []
    for g in range(int(groups.max()) + 1):
        values = q[:, groups == g].ravel()
        low, high = int(values.min()), int(values.max())
        if high - low >= MOST_VALUES:
            low = max(low, int(np.median(values)) - MOST_VALUES // 2)
            high = min(high, low + MOST_VALUES - 1)
        values = values[(values >= low) & (values <= high)]
        lows.append(low)
        tables.append(table(np.append(2 * np.bincount(values - low, minlength=high - low + 1) + 1, 1)))
    return np.array(lows, np.int64), tables


def push_codes(stack: Stack, q: Array, groups: Array, lows: Array, tables: list[Array]) -> None:
    """Integers (N, P)."""
    escaped: list[int] = []
    symbols = []
    for g, counts in enumerate(tables):
        place = q[:, groups == g].ravel() - lows[g]
        outside = (place < 0) | (place >= len(counts) - 1)
        escaped += place[outside].tolist()
        symbols.append(np.where(outside, len(counts) - 1, place))
    for value in reversed(escaped):
        _push_integer(stack, value)
    for g in reversed(range(len(tables))):
        stack.push(symbols[g], tables[g])


def pop_codes(stack: Stack, samples: int, groups: Array, lows: Array, tables: list[Array]) -> Array:
    q = np.zeros((samples, len(groups)), np.int64)
    for g, counts in enumerate(tables):
        here = groups == g
        q[:, here] = stack.pop(counts, samples * int(here.sum())).reshape(samples, -1)
    for g, counts in enumerate(tables):
        here = np.nonzero(groups == g)[0]
        part = q[:, here]
        for i in np.nonzero(part.ravel() == len(counts) - 1)[0]:
            part.flat[i] = _pop_integer(stack)
        q[:, here] = part + lows[g]
    return q


def _push_integer(stack: Stack, value: int) -> None:
    """The number of 8-bit digits and the sign, then the digits."""
    size = abs(value)
    digits = [size >> 8 * i & 255 for i in range(8) if size >> 8 * i]
    stack.push_uniform(np.array(digits), 256)
    stack.push_uniform(np.array([2 * len(digits) + (value < 0)]), 32)


def _pop_integer(stack: Stack) -> int:
    head = int(stack.pop_uniform(1, 32)[0])
    if head > 17:
        raise ValueError("the stream holds a number that no encoder writes")
    digits = stack.pop_uniform(head // 2, 256)
    value = sum(int(d) << 8 * i for i, d in enumerate(digits))
    return -value if head % 2 else value
