"""Sums of what is logged, on the device, from one row of the history to the next."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ..figures import folded, is_part, wide
from .processes import Processes


class Interval:
    """`skip`: steps that were not finite count for nothing."""

    def __init__(self, device: torch.device, world: Processes, skip: bool):
        self.device, self.world, self.skip = device, world, skip
        self.sums: dict[str, Tensor] = {}
        self.parts: dict[str, Tensor] = {}  # of figures that are no means over samples, in float64
        self.samples = 0  # of all processes
        self.timed = 0  # the same, in this process's lifetime
        self.began = time.perf_counter()

    def begin_again(self) -> None:
        """As a new one, in the same tensors, which a graph may add to."""
        for v in (*self.sums.values(), *self.parts.values()):
            v.zero_()
        self.samples = self.timed = 0
        self.began = time.perf_counter()

    def count(self, named: dict[str, Tensor], samples: float, bad: Tensor | None = None) -> None:
        """Adds `samples` times each value."""
        if self.skip and bad is not None:
            named = {**{k: torch.where(bad > 0, 0.0, v) for k, v in named.items()}, "skipped": bad}
        parts = {k: v for k, v in named.items() if is_part(k)}
        if parts:
            named = {k: v for k, v in named.items() if k not in parts}
            if list(self.parts) != list(parts):
                fresh = {k: torch.zeros_like(wide(v)) for k, v in parts.items()}
                self.parts = {k: self.parts.get(k, zero) for k, zero in fresh.items()}
            for k, v in parts.items():
                self.parts[k].add_(v, alpha=samples)
        if list(self.sums) == list(named):
            torch._foreach_add_(list(self.sums.values()), list(named.values()), alpha=samples)
        else:
            zero = torch.zeros((), device=self.device)  # new tensors: a graph that adds to the sums is recorded later
            self.sums = {k: self.sums.get(k, zero) + v * samples for k, v in named.items()}

    def state(self) -> dict[str, Tensor]:
        """All sums by name: of all processes on the host, where there are several."""
        return {**self.sums, **self.parts} if self.world.size == 1 else self.totals()

    def totals(self) -> dict[str, Tensor]:
        """The sums over all processes, on the host; waits for the device."""
        return {**self._together(self.sums), **self._together(self.parts)}

    def _together(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        if not sums:
            return {}
        sizes: Sequence[int] = [v.numel() for v in sums.values()]
        flat = torch.cat([wide(v).reshape(-1) for v in sums.values()]).cpu()
        return {k: part.view(v.shape) for (k, v), part in zip(sums.items(), self.world.sum(flat).split(list(sizes)))}

    def means(self) -> dict[str, float]:
        """Means over the samples of the interval, and figures of all of them together (`figures`); none if no step of it was finite.
        Waits for the device."""
        sums = self.totals()
        good = self.samples - float(sums.pop("skipped", 0.0))
        return folded({k: v / good for k, v in sums.items()}) if good > 0.5 else {}

    def load(self, sums: dict[str, Tensor], samples: int) -> None:
        """Goes on with saved sums, which the first process adds to; the others begin at 0."""
        kept = {k: v.to(self.device) for k, v in sums.items()}
        kept = kept if self.world.main else {k: torch.zeros_like(v) for k, v in kept.items()}
        self.sums = {k: v for k, v in kept.items() if not is_part(k)}
        self.parts = {k: v for k, v in kept.items() if is_part(k)}
        self.samples = samples
