"""A learning rate to begin with, from a range test."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import BaseAE, number, positive
from ..data import Source, data_for
from ..randomness import batches_of, checked_seed, forked_rng, mix_seed, set_seed
from .hardware import Hardware, decide, out_of_memory, settle
from .optim import build_optimizer, set_lr
from .step import condition_of, penalty, told
from .update import Update

FEWEST = 10  # steps that make a curve


@dataclass
class LRResult:
    """What `find_lr` returns."""

    lrs: list[float]
    """The rates that were tried, each the one before times a constant."""
    losses: list[float]
    """The loss at each, smoothed: the mean over a window of about a tenth of the steps, centred."""
    suggestion: float
    """The rate at which the smoothed loss falls fastest per decade."""
    raw: list[float]
    """The loss at each, as measured."""

    def plot(self, path: str | Path) -> Path:
        """Draws loss over rate, with the suggestion; returns the path (.png where it has no ending)."""
        from ..pictures import INK, figure, plain_axes

        path = Path(path).expanduser()
        path = path if path.suffix else path.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        fig = figure(5.4, 3.4)
        ax = fig.add_subplot(1, 1, 1)
        ax.plot(self.lrs, self.raw, color="#c9cfda", linewidth=1, label="as measured")
        ax.plot(self.lrs, self.losses, color="#1b6ca8", label="smoothed")
        ax.axvline(self.suggestion, color=INK, linewidth=1, linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        ax.set_xscale("log")
        low, high = min(self.losses), max(self.losses[: self.losses.index(min(self.losses)) + 1])
        gap = 0.3 * (high - low or 1.0)  # the fall fills the picture; where it breaks runs out of it
        ax.set_ylim(low - gap, high + gap)
        plain_axes(ax, "loss while the learning rate rises", "learning rate")
        ax.legend(frameon=False, fontsize=9)
        fig.savefig(path, dpi=120, facecolor="white")
        return path


def find_lr(
    model: BaseAE,
    data: Any,
    *,
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
    batch_size: int | None = None,
    optimizer: Any = "adam",
    weight_decay: float = 0.0,
    l1: float = 0.0,
    accumulate: int = 1,
    clip: float | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> LRResult:
    """The learning-rate range test (Smith 2015, arXiv:1506.01186): trains a copy of the model while the rate rises.

    lr_i = lowest * (highest / lowest)^(i / (steps - 1)). It ends early where the loss is not finite or far above where it began.
    The suggestion is the rate at which d(smoothed loss) / d(log lr) is lowest, among the rates up to that of the smallest
    smoothed loss: training gains most there, and does not break yet. The paper's loss is the validation accuracy; here it is the
    training loss. The model and the global RNG are left as they were. With several stages of training it is the first one's rate.

    Args: `steps`: optimiser steps, at least 10; the others as in `fit`. Raises ValueError or TypeError for arguments out of range
    and if the loss falls at no rate; MemoryError if a batch does not fit."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    number("lowest", lowest, "a rate above 0", lambda v: 0 < v < math.inf)
    number("highest", highest, f"a rate above lowest={lowest:g}", lambda v: lowest < v < math.inf)
    if positive("steps", steps) < FEWEST:
        raise ValueError(f"steps={steps} must be at least {FEWEST}: fewer make no curve")
    positive("accumulate", accumulate)
    if batch_size is not None:
        positive("batch_size", batch_size)
    number("weight_decay", weight_decay, "a number of at least 0", lambda v: 0 <= v < math.inf)
    number("l1", l1, "a number of at least 0", lambda v: 0 <= v < math.inf)
    if clip is not None:
        number("clip", clip, "a number above 0", lambda v: v > 0)
    checked_seed(seed)
    hardware = decide(device, precision, compile=False)
    with forked_rng(hardware.device):
        source = data_for(model.input_shape, data)
        model.likelihood.check(*source.check(model.likelihood.support, model.accepts_missing))
        if source.ordered and (batch_size or 1) > len(source):
            raise ValueError(f"batch_size={batch_size} is larger than the {len(source)} samples to train on")
        size = min(batch_size or 128, len(source))
        model = copy.deepcopy(model).to(hardware.device).train()
        settle(hardware, model, False, size, steps)
        model.stage = 0
        named = {id(p): n for n, p in model.named_parameters()}
        parameters = [(named.get(id(p), ""), p) for p in model.stages()[0].parameters if p.requires_grad]
        if not parameters:
            raise ValueError(f"{model.name} has no parameter to train: every requires_grad is False")
        model.zero_grad(set_to_none=True)
        made = build_optimizer(optimizer, parameters, 1.0, weight_decay)
        weights = [p for _, p in parameters if p.dim() > 1]
        update = Update(made, clip, sticky=True)
        batches = _endless(model, source.to(hardware.device), size, seed, hardware)
        lrs, raw = [], []
        with hardware.applied():
            try:
                for i in range(steps):
                    lr = lowest * (highest / lowest) ** (i / (steps - 1))
                    set_lr(made, lr)
                    set_seed(mix_seed(seed, i, 1), hardware.device)
                    window = list(itertools.islice(batches, accumulate))
                    loss = torch.zeros((), device=hardware.device)
                    for x, condition in window:
                        with hardware.autocast():
                            total = model.loss(hardware.place(x), **told(condition)).total
                        total = total + l1 * penalty(weights) if l1 else total
                        part = total * (len(x) / sum(len(x) for x, _ in window))
                        part.backward()
                        loss += part.detach()
                    update.step(loss)
                    model.after_step()
                    if bool(update.bad) or not math.isfinite(float(loss)):
                        break
                    lrs.append(lr)
                    raw.append(float(loss))
                    if _exploded(raw):
                        break
            except Exception as error:
                if not out_of_memory(error):
                    raise
                raise MemoryError(
                    f"out of memory on {hardware.device} with batch_size={size}; pass a smaller one"
                ) from None
    if len(raw) < FEWEST:
        raise ValueError(
            f"the loss was not finite, or exploded, after {len(raw)} of {steps} steps, at lr={(lrs or [lowest])[-1]:g}; "
            f"lower lowest={lowest:g}, or scale the data"
        )
    return suggest(lrs, raw, max(1, steps // 20))


def suggest(lrs: list[float], raw: list[float], reach: int) -> LRResult:
    """The result of a range test: smoothed over `reach` steps to either side, and the point of steepest descent."""
    near = [raw[max(0, i - reach) : i + reach + 1] for i in range(len(raw))]
    losses = [sum(part) / len(part) for part in near]
    bottom = losses.index(min(losses))
    if bottom == 0:
        raise ValueError(
            f"the loss fell at no learning rate from {lrs[0]:g} to {lrs[-1]:g}: it began at {losses[0]:g} and never was lower. "
            "Lower lowest, or start from a model that is not trained yet"
        )
    slopes = [losses[min(i + 1, len(raw) - 1)] - losses[max(0, i - 1)] for i in range(bottom + 1)]
    slopes[0] *= 2  # one-sided
    return LRResult(lrs, losses, lrs[slopes.index(min(slopes))], raw)


def _exploded(raw: list[float]) -> bool:
    """Is the loss well above its first values? The measure is how far it fell, how it scatters, and its size.

    A factor on the loss would not do, since a density's may be negative."""
    if len(raw) <= FEWEST:
        return False
    first = torch.tensor(raw[:FEWEST])
    begun, now = float(first.mean()), sum(raw[-3:]) / 3
    return now > begun + (begun - min(raw)) + 4 * float(first.std()) + 0.1 * abs(begun)


def _endless(
    model: BaseAE, source: Source, size: int, seed: int, hardware: Hardware
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches in the order of `fit`'s epochs, without end."""
    dtype = next(model.parameters()).dtype
    for epoch in itertools.count():
        plan = batches_of(source.order(mix_seed(seed, epoch)), size) if source.ordered else []
        found = False
        for batch in source.batches(plan, hardware.device, dtype, mix_seed(seed, epoch, 3)):
            found = True
            yield batch.x, condition_of(model, batch)
        if not found:
            raise ValueError(f"{source.description} yielded no batch in epoch {epoch + 1}")
