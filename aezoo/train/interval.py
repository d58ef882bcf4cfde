"""Sums of what is logged, on the device, from one row of the history to the next."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from .processes import Processes


class Interval:
    """`skip`: steps that were not finite count for nothing."""

    def __init__(self, device: torch.device, world: Processes, skip: bool):
        self.device, self.world, self.skip = device, world, skip
        self.sums: dict[str, Tensor] = {}
        self.samples = 0  # of all processes
        self.timed = 0  # the same, in this process's lifetime
        self.began = time.perf_counter()

    def begin_again(self) -> None:
        """As a new one, in the same tensors, which a graph may add to."""
        for v in self.sums.values():
            v.zero_()
        self.samples = self.timed = 0
        self.began = time.perf_counter()

    def count(self, named: dict[str, Tensor], samples: float, bad: Tensor) -> None:
        """Adds `samples` times each value."""
        if self.skip:
            named = {**{k: torch.where(bad > 0, 0.0, v) for k, v in named.items()}, "skipped": bad}
        if list(self.sums) == list(named):
            torch._foreach_add_(list(self.sums.values()), list(named.values()), alpha=samples)
        else:
            zero = torch.zeros((), device=self.device)  # new tensors: a graph that adds to the sums is recorded later
            self.sums = {k: self.sums.get(k, zero) + v * samples for k, v in named.items()}

    def so_far(self) -> dict[str, float]:
        """Means over this process's samples, for who looks at them while the others go on; waits for the device."""
        share = max(1.0, self.samples / self.world.size)
        return {k: float(v) / share for k, v in self.sums.items()}

    def totals(self) -> dict[str, Tensor]:
        """The sums over all processes, on the host; waits for the device."""
        if not self.sums:
            return {}
        sums = torch.stack([v.double() if v.device.type != "mps" else v for v in self.sums.values()]).cpu()
        return dict(zip(self.sums, self.world.sum(sums)))

    def means(self) -> dict[str, float]:
        """Means over the samples of the interval, none if no step of it was finite; waits for the device."""
        sums = {k: float(v) for k, v in self.totals().items()}
        good = self.samples - sums.pop("skipped", 0.0)
        return {k: v / good for k, v in sums.items()} if good > 0.5 else {}

    def load(self, sums: dict[str, Tensor], samples: int) -> None:
        """Goes on with saved sums, which the first process adds to; the others begin at 0."""
        kept = {k: v.to(self.device) for k, v in sums.items()}
        self.sums = kept if self.world.main else {k: torch.zeros_like(v) for k, v in kept.items()}
        self.samples = samples
