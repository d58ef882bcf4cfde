"""The whole step as a CUDA graph: gather, loss, backward, check, optimiser, average and sums are replayed by one call.

A small model at a usual batch is bound by the launches of its kernels, not by their work; a replay launches them all, and several
steps in one replay where they are small. What differs from step to step lies in tensors that the host fills before:
which samples, the learning rate's factor, the average's weight. Draws come from the device's generator, which is seeded
before every replay, so noise is f(seed, first step of the replay) whether it is replayed or run as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..data.sources import TensorSource

if TYPE_CHECKING:
    from .loop import _Trainer

STEPS = 8  # a replay, where steps are small
WARM_UP = 3  # replays that are run as written first, so that workspaces and optimiser state are there


class Block(NamedTuple):
    """Several full batches: positions of their samples, (steps, batch_size)."""

    positions: Tensor


class Graphed:
    """Steps of one stage, recorded for each number of steps a replay may have (1 and `STEPS`)."""

    def __init__(self, trainer: _Trainer):
        self.t = trainer
        self.recorded: dict[int, _Record] = {}
        self.runs: dict[int, int] = {}

    @staticmethod
    def why_not(t: _Trainer) -> str:
        """Why this run cannot be recorded, or nothing."""
        if not isinstance(t.source, TensorSource) or t.source.x.device != t.device:
            return "the data is not on the device"
        if t.model.takes_condition:
            return f"{t.model.name} takes labels from the data"
        if t.update.bare is None:
            return f"optimizer {type(t.optimizer).__name__} has no kernel that takes its rate from the device"
        if t.asked["accumulate"] > 1 or t.asked["recompute"]:
            return "accumulate and recompute run as written"
        if t.hooks.step or t.profile:
            return "something looks at every step"
        return ""

    def steps_from(self, done: int, sizes: Sequence[int]) -> int:
        """How many steps the replay has that begins at window `done` of the epoch; `sizes`: of the batches from there on.

        A function of the settings alone: a replay of several begins at a multiple of `STEPS` and crosses neither a row nor
        a checkpoint nor a shorter batch."""
        t = self.t
        n = STEPS if t.hardware.small else 1
        begins = t.step
        if n == 1 or done % n or len(sizes) < n or any(s != t.batch_size for s in sizes[:n]):
            return 1
        marks = [e for e in (t.asked["log_every"], t.asked["checkpoint_every"]) if e]
        ends = min([t.total, t.stage_ends[t.model.stage], *(begins + e - begins % e for e in marks)])
        return n if begins + n <= ends else 1

    def windows(self, plan: Sequence[Tensor], done: int) -> Iterator[Any]:
        """Blocks to replay, and single batches (of another size) to run as written; seeds each."""
        from .loop import Piece

        i, sizes = 0, [len(index) for index in plan]
        while i < len(plan):
            n = self.steps_from(done + i, sizes[i:])
            self.t.seed_step(self.t.step)
            if sizes[i] == self.t.batch_size:
                yield Block(torch.stack(list(plan[i : i + n])))
            else:
                yield [Piece(self.t.source.take(plan[i], self.t.device, self.t.dtype), sizes[i])]  # type: ignore[attr-defined]
            i += n

    def run(self, block: Block) -> None:
        """Takes the block's steps; nothing waits for the device."""
        t, n = self.t, len(block.positions)
        factors, averages = [], []
        for _ in range(n):
            t.used_lr = t.lr()
            factors.append(t.used_lr / t.asked["lr"])
            averages.append(t.average.weight(t.step + 1) if t.average else 0.0)
            t.step += 1
        t.step -= n
        record = self.recorded.get(n)
        if record is None:
            record = self.recorded[n] = _Record(t, n)
        record.fill(block.positions, factors, averages)
        seen = self.runs[n] = self.runs.get(n, 0) + 1
        if seen <= WARM_UP:
            record.as_written()
        else:
            record.replay()
        t.step += n
        t.interval.samples += block.positions.numel()
        t.interval.timed += block.positions.numel()


class _Record:
    """`n` steps over tensors that stay where they are."""

    def __init__(self, t: _Trainer, n: int):
        self.t, self.n = t, n
        self.index = torch.zeros(n, t.batch_size, dtype=torch.long, device=t.device)
        self.factors = torch.ones(n, device=t.device)
        self.averages = torch.zeros(n, device=t.device)
        self.graph: Any = None
        self.stream: Any = torch.cuda.Stream(t.device) if t.device.type == "cuda" else None

    def fill(self, index: Tensor, factors: Sequence[float], averages: Sequence[float]) -> None:
        pinned = self.t.device.type == "cuda"
        self.index.copy_(index, non_blocking=True)
        self.factors.copy_(torch.tensor(factors, pin_memory=pinned), non_blocking=True)
        self.averages.copy_(torch.tensor(averages, pin_memory=pinned), non_blocking=True)

    def steps(self) -> None:
        """What is recorded. The same as `one_step`, over the tensors of this record."""
        t = self.t
        for i in range(self.n):
            x = t.source.take(self.index[i], t.device, t.dtype)  # type: ignore[attr-defined]
            t.kept.keep()
            values = t.compute(t.hardware.place(x), 1.0, True)
            t.update.step(values.total, self.factors[i])
            t.interval.count(values.named, t.batch_size, t.update.bad)
            t.kept.put_back(t.update.bad)
            t.model.after_step()
            if t.average is not None:
                t.average.move(self.averages[i])

    def as_written(self) -> None:
        self._aside(self.steps)

    def _aside(self, work: Callable[[], None]) -> None:
        """On the stream that will record, so that its memory is warm."""
        if self.stream is None:
            work()
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.t.device))
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream(self.t.device).wait_stream(self.stream)

    def replay(self) -> None:
        if self.graph is None:
            self.graph = record(self.steps, self.stream)
        self.graph.replay()


def record(work: Callable[[], None], stream: Any) -> Any:
    """A graph of `work`, which is recorded and not run."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    return graph
