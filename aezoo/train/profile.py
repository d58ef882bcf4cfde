"""Where a step's time goes: data, forward, backward, optimiser, and host: what comes between two steps (callbacks, the bar, rows)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .setup import Setup

FIRST, LAST = 5, 105  # steps of the run that are looked at; the ones before warm up
PHASES = ("data", "forward", "backward", "forward + backward", "optimiser", "host")


class Profile:
    """Times the phases of steps `FIRST` to `LAST`, then says the medians. Waits for the device at every phase while it looks."""

    def __init__(self, trainer: Setup):
        self.trainer = trainer
        self.seen: list[dict[str, float]] = []
        self.now: dict[str, float] = {}
        self.last = time.perf_counter()
        self.done = False

    def clock(self, phase: str) -> None:
        """A phase has ended."""
        if self.done:
            return
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
        now = time.perf_counter()
        if phase == "data":
            self._end_of_step(now)
        if phase == "data" or self.now:  # what was before the first step belongs to none
            self.now[phase] = self.now.get(phase, 0.0) + now - self.last
        self.last = now

    def _end_of_step(self, now: float) -> None:
        if self.now:
            self.seen.append(self.now)
        self.now = {}
        if len(self.seen) >= LAST or self.trainer.step + 1 >= self.trainer.total:
            self.done = True
            if self.seen:
                self.trainer.bar.say(self.report())

    def report(self) -> str:
        """The table, images per second, and the share of the device's measured matrix-product ceiling."""
        seen = self.seen[FIRST:] or self.seen
        phases = [p for p in PHASES if any(p in s for s in seen)]
        median = {p: _median([s.get(p, 0.0) for s in seen]) for p in phases}
        whole = sum(median.values())
        t = self.trainer
        samples = t.batch_size * t.asked["accumulate"]
        flops = count_flops(t)
        ceiling = gemm_ceiling(t.device, t.hardware.precision)
        share = flops / whole / ceiling
        lines = [f"profile: medians of {len(seen)} steps of {samples} samples, {t.hardware.reason}"]
        lines += [f"  {p:<20}{1e3 * s:9.3f} ms {100 * s / whole:5.1f} %" for p, s in median.items()]
        lines.append(f"  {'step':<20}{1e3 * whole:9.3f} ms         {samples / whole:,.0f} samples/s")
        lines.append(
            f"  {flops / 1e9:.3f} GFLOP a step = {flops / whole / 1e9:,.1f} GFLOP/s, {100 * share:.0f} % of the "
            f"{ceiling / 1e9:,.0f} GFLOP/s that a large matrix product reaches here"
        )
        return "\n".join(lines)


def count_flops(t: Setup) -> float:
    """Matrix products and convolutions of one step's forward and backward passes, by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    from ..randomness import forked_rng

    x = t.source.peek(t.batch_size, t.device, t.dtype).x
    kept = {k: v.clone() for k, v in t.model.state_dict().items()}
    with forked_rng(t.device), FlopCounterMode(display=False) as counter:
        t.model.loss(t.hardware.place(x)).total.backward()
    t.model.zero_grad(set_to_none=True)
    t.model.load_state_dict(kept)
    return float(counter.get_total_flops()) * t.asked["accumulate"]


def gemm_ceiling(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square matrix product, the best of several."""
    n = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2.0 * n**3 / (time.perf_counter() - began))
    return best


def _median(values: list[Any]) -> float:
    return float(sorted(values)[len(values) // 2])
