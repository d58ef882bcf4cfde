"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import Shards


class Average:
    """shadow <- decay * shadow + (1 - decay) * weights, after every step; buffers are not averaged.

    The decay is min(decay, (1 + t) / (10 + t)) at step t, so that short runs are not ruled by the initial weights."""

    def __init__(self, model: nn.Module | Shards, decay: float):
        self.decay = decay
        self.weights = list(model.parameters())
        self.names = [name for name, _ in model.named_parameters()]
        self.shadow = [p.detach().clone() for p in self.weights]

    def weight(self, step: int) -> float:
        """Of the weights after step `step`, against what the average was."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.weights], self.weight(step))

    @torch.no_grad()
    def move(self, weight: Tensor) -> None:
        """The same with a weight that is on the device."""
        for s, p in zip(self.shadow, self.weights):
            s.lerp_(p.detach(), weight.to(s.dtype))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights are the model's inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, s in zip(self.weights, self.shadow):
            kept = p.detach().clone()
            p.copy_(s)
            s.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.shadow))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for name, s in zip(self.names, self.shadow):
            s.copy_(state[name])
