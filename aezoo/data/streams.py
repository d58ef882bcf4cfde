"""Rows in files that do not fit in memory: read block by block by a thread, and shuffled within windows of blocks.

    files   |block 0|block 1|block 2| ...            a block: 2 MiB of consecutive rows, across the ends of files
    order   a permutation of the blocks, cut into windows of up to 96 MiB; a permutation of the rows of each window
    memory  two windows: the one that batches are taken from, and the one that the thread reads meanwhile

The order is a function of the seed alone, and what is read follows from the plan alone: a plan that begins in the middle of an
epoch begins with the window that it needs.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..randomness import mix_seed
from ..registry import choice
from .prefetch import Pair, to_device
from .shards import Rows
from .sources import Batch, Source, TensorSource, check_binary, check_pixels, finite_range, floats

BLOCK = 2 * 2**20  # bytes of rows that are read at once
WINDOW = 96 * 2**20  # bytes of rows that are shuffled together; two windows are in memory


class Segment(NamedTuple):
    """A stretch of the plan that can be served from one window."""

    slots: dict[int, int]
    """Block -> its place in the window."""
    pieces: list[tuple[Tensor, bool]]
    """Places of rows in the window, (n,), and whether this completes a batch."""


def segments(plan: Iterable[Tensor], block: int, most: int) -> Iterator[Segment]:
    """Cuts the plan where it would need more than `most` blocks of `block` rows; a batch may lie on both sides of a cut."""
    slots: dict[int, int] = {}
    pieces: list[tuple[Tensor, bool]] = []
    for index in plan:
        rows = index.numpy()
        while True:
            found, first, inverse = np.unique(rows // block, return_index=True, return_inverse=True)
            fresh = sorted(int(f) for b, f in zip(found.tolist(), first) if b not in slots)
            room = most - len(slots)
            cut = len(rows) if len(fresh) <= room else fresh[room]
            for f in fresh[:room]:
                slots[int(rows[f]) // block] = len(slots)
            places = np.array([slots.get(b, 0) for b in found.tolist()], dtype=np.int64)[inverse[:cut]]
            pieces.append((torch.from_numpy(places * block + rows[:cut] % block), cut == len(rows)))
            if cut == len(rows):
                break
            yield Segment(slots, pieces)
            slots, pieces, rows = {}, [], rows[cut:]
    if pieces:
        yield Segment(slots, pieces)


class StreamSource(Source):
    """`rows` in files, of which two windows are in memory at a time.

    Args:
        rows: what knows the files: `ArrayRows` or `TarRows`.
        binarize: "none", "dynamic", "static" (drawn once by the position of the row) or "threshold".
        block_bytes, window_bytes: bytes that are read at once, and that are shuffled together (at least one block); by default
            2 and 96 MiB.

    Any other plan than one from `order` gives the right samples, too, but may read each block many times."""

    def __init__(
        self,
        rows: Rows,
        *,
        binarize: str = "none",
        description: str = "stream",
        block_bytes: int | None = None,
        window_bytes: int | None = None,
    ):
        self.rows, self.description = rows, description
        self.binarize = choice("binarize", binarize, ["none", "dynamic", "static", "threshold"])
        self.shape, self.labels, self.stored = rows.shape, rows.labels, rows.dtype
        self.block = max(1, (block_bytes or BLOCK) // rows.row_bytes)  # rows
        self.window = max(1, (window_bytes or WINDOW) // (self.block * rows.row_bytes))  # blocks
        self.index: Tensor | None = None  # rows of this subset, in the order of its positions

    def __len__(self) -> int:
        return len(self.rows) if self.index is None else len(self.index)

    # ----------------------------------------------------------------------------------------------- order and subsets

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """First position and number of positions of each block that this source has rows of."""
        if self.index is None:
            starts = torch.arange(0, len(self), self.block)
            return starts, (len(self) - starts).clamp_max(self.block)
        counts = torch.unique_consecutive(self.index // self.block, return_counts=True)[1]
        return counts.cumsum(0) - counts, counts

    def order(self, seed: int) -> Tensor:
        """Blocks in random order, and rows in random order within each window of blocks."""
        generator = torch.Generator().manual_seed(seed)
        starts, counts = self._blocks()
        blocks = torch.randperm(len(starts), generator=generator)
        order, done = torch.empty(len(self), dtype=torch.int64), 0
        for window in blocks.tensor_split(-(-len(blocks) // self.window)):  # of near equal size: none is shuffled badly
            positions = _ranges(starts[window], counts[window])
            shuffled = positions[torch.randperm(len(positions), generator=generator)]
            order[done : done + len(positions)] = shuffled
            done += len(positions)
        return order

    def subset(self, index: Tensor) -> StreamSource:
        other = copy.copy(self)
        index = index.cpu()
        other.index = index if self.index is None else self.index[index]
        other.labels = None if self.labels is None else self.labels[index]
        other.replay = None  # a part is not what the name or path stands for
        return other

    def split(self, fraction: float, seed: int) -> tuple[Source, Source]:
        """(1 - fraction, fraction) of the samples: whole blocks drawn by `seed`, and a part of one more for an exact count."""
        starts, counts = self._blocks()
        blocks = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed))
        return self._parts(fraction, _ranges(starts[blocks], counts[blocks]))

    # -------------------------------------------------------------------------------------------------------- batches

    def batches(
        self, plan: Sequence[Tensor], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Iterator[Batch]:
        for x, y in to_device(self._stored(plan), device):
            x = floats(x, dtype).view(len(x), *self.shape)
            if self.binarize == "dynamic":  # drawn here, from the generator that the loop has just seeded
                x = torch.bernoulli(x)
            elif self.binarize == "threshold":
                x = (x > 0.5).to(dtype)
            yield Batch(x, y)

    def _stored(self, plan: Sequence[Tensor]) -> Iterator[Pair]:
        """The batches of the plan as they lie in the files."""
        parts: list[Tensor] = []
        number = 0
        for window, pieces in self._windows(plan):
            for places, complete in pieces:
                parts.append(window.index_select(0, places))
                if complete:
                    x = self.rows.decode(parts[0] if len(parts) == 1 else torch.cat(parts))
                    yield x, None if self.labels is None else self.labels[plan[number].cpu()]
                    parts, number = [], number + 1

    def _windows(self, plan: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[tuple[Tensor, bool]]]]:
        """(rows, pieces) of each segment of the plan, read ahead by a thread that ends with this generator.

        `rows` is overwritten after the next item was asked for."""
        free: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()  # windows to read into; None: stop
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()  # windows that were read; an exception; None: the end
        stop = threading.Event()

        def read_ahead() -> None:
            try:
                before: tuple[dict[int, int], Tensor] | None = None
                rows = (i.cpu() if self.index is None else self.index[i.cpu()] for i in plan)
                for slots, pieces in segments(rows, self.block, self.window):
                    window = free.get()
                    if window is None or not self._fill(window, slots, before, stop):
                        return
                    ready.put((window, pieces))
                    before = slots, window
                ready.put(None)
            except BaseException as error:  # is raised again where the batches are asked for
                ready.put(error)

        blocks = min(self.window, -(-len(self.rows) // self.block))
        for _ in range(2):
            free.put(torch.empty(blocks * self.block, self.rows.row_bytes, dtype=torch.uint8))
        thread = threading.Thread(target=read_ahead, name="aezoo stream", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
                free.put(item[0])
        finally:
            stop.set()
            free.put(None)
            thread.join()

    def _fill(
        self, window: Tensor, slots: dict[int, int], before: tuple[dict[int, int], Tensor] | None, stop: threading.Event
    ) -> bool:
        """Reads the blocks into their places, in the order of the files; those of the window before are copied from there.

        False if it was told to stop."""
        for block, slot in sorted(slots.items()):
            if stop.is_set():
                return False
            into = window[slot * self.block : (slot + 1) * self.block]
            if before is not None and block in before[0]:
                place = before[0][block] * self.block
                into.copy_(before[1][place : place + self.block])
            else:
                start, stop_row = block * self.block, min((block + 1) * self.block, len(self.rows))
                self._read(start, stop_row, into[: stop_row - start])
        return True

    def _read(self, start: int, stop: int, out: Tensor) -> None:
        self.rows.read(start, stop, out)
        if self.binarize == "static":
            x = self.rows.decode(out)
            generator = torch.Generator().manual_seed(mix_seed(0, start))
            on = torch.rand(x.shape, generator=generator) < floats(x, torch.float32)
            stored = on.to(x.dtype) * (255 if x.dtype == torch.uint8 else 1)
            out.copy_(stored.to(self.rows.dtype).view(len(x), -1).view(torch.uint8))

    # ---------------------------------------------------------------------------------------------------------- checks

    def check(self, support: tuple[float, float] | None = None, missing: bool = False) -> tuple[float, float]:
        """Looks at the first, a middle and the last block; returns (lowest, highest). Raises ValueError as every `check`."""
        starts, counts = self._blocks()
        lows, highs = [], []
        for number in sorted({0, len(starts) // 2, len(starts) - 1}):
            start, count = int(starts[number]), int(counts[number])
            x = next(iter(self._stored([torch.arange(start, start + count)])))[0]
            low, high = finite_range(x, start, missing)
            check_pixels(x, low, high)
            lows.append(low)
            highs.append(high)
        check_binary(self.binarize, min(lows), max(highs))
        return min(lows), max(highs)

    # ---------------------------------------------------------------------------------------------------------- device

    def to(self, device: torch.device) -> Source:
        """On a GPU if the rows take at most half of what is free there; else they are streamed. The order stays the same."""
        if device.type == "cuda":
            need = len(self) * self.rows.row_bytes
            if need <= torch.cuda.mem_get_info(device)[0] / 2:
                return self.resident(device)
        return self

    def resident(self, device: torch.device) -> TensorSource:
        """All rows in one tensor on `device`, read window by window, in the order of this stream."""
        plan, done = list(torch.arange(len(self)).split(self.block)), 0
        x: Tensor | None = None
        for part, _ in to_device(self._stored(plan), device):
            if x is None:
                x = torch.empty(len(self), *self.rows.shape, dtype=part.dtype, device=device)
            x[done : done + len(part)] = part
            done += len(part)
        assert x is not None
        return _Resident(self, x)


class _Resident(TensorSource):
    """A stream that was read into one tensor: what it yields, and the order, are those of the stream."""

    def __init__(self, stream: StreamSource, x: Tensor):
        labels = None if stream.labels is None else stream.labels.to(x.device)
        super().__init__(x, labels, description=stream.description)
        self.stream, self.shape, self.class_names = stream, stream.shape, stream.class_names
        self.binarize = stream.binarize

    def order(self, seed: int) -> Tensor:
        return self.stream.order(seed)

    def subset(self, index: Tensor) -> TensorSource:
        other = super().subset(index)
        assert isinstance(other, _Resident)
        other.stream = self.stream.subset(index)
        return other

    def _finish(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = super()._finish(x, dtype)
        return (x > 0.5).to(dtype) if self.binarize == "threshold" else x


def _ranges(starts: Tensor, counts: Tensor) -> Tensor:
    """start, start + 1, ..., start + count - 1 of each pair, one after the other."""
    shifts = starts - (counts.cumsum(0) - counts)
    return shifts.repeat_interleave(counts) + torch.arange(int(counts.sum()))
