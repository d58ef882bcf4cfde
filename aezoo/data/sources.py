"""Sources: samples that can be asked for by position, and come back as float batches on the wanted device.

A source is one of
- `TensorSource`: everything in one tensor, uint8 kept as uint8; a batch is a gather, and conversion happens after it;
- `StreamSource` (streams.py): rows in files that do not fit in memory, read in blocks by a thread;
- `DatasetSource` (datasets.py): a map-style `Dataset`, read by a worker-backed loader;
- `LoaderSource` (datasets.py): a `DataLoader` of the user's own, taken as it is (its batches, its order).
The loop takes `order(seed)`, a permutation that depends on nothing but the seed, cuts it into a plan (index tensors, one per
batch) and asks for `batches(plan, device)`. So a run resumes at any step by asking for the rest of the plan.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import checked_shape, shape_hint
from ..registry import choice
from .prefetch import to_device


class Batch(NamedTuple):
    x: Tensor
    """(B, *shape), floating point, on the device."""
    y: Tensor | None
    """Labels (B,), tables of factors (B, F), or None."""


class Source:
    """Base of all sources."""

    description = ""
    shape: tuple[int, ...]
    labels: Tensor | None = None
    class_names: Sequence[str] | None = None  # of the labels; of a table of factors, the first's
    factor_names: Sequence[str] | None = None  # where labels are tables of factors (N, F)
    replay: dict[str, Any] | None = None  # keywords of `load_data` that make this source again, where that is possible
    binarize: str = "none"
    ordered = True  # whether `batches` honours a plan
    stored: torch.dtype | None = None  # of the samples before they are scaled, where it is known

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} does not define its length")

    def __repr__(self) -> str:
        return f"<{len(self):,} samples of {self.description}, shape {self.shape}>"

    def order(self, seed: int) -> Tensor:
        """A permutation of range(len(self)), (N,) int64: a pure function of `seed`, and what an epoch goes through."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))

    def batches(
        self, plan: Sequence[Tensor], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Iterator[Batch]:
        """Batches at the planned positions. `seed` is for what a data set draws itself (random transforms)."""
        raise TypeError(f"{type(self).__name__} does not define batches")

    def to(self, device: torch.device) -> Source:
        """The same source with its storage on `device`, where that fits."""
        return self

    def subset(self, index: Tensor) -> Source:
        raise TypeError(f"{self.description or type(self).__name__} cannot be split; pass val= as data of its own")

    def split(self, fraction: float, seed: int) -> tuple[Source, Source]:
        """(1 - fraction, fraction) of the samples, drawn at random by `seed`."""
        return self._parts(fraction, torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)))

    def _parts(self, fraction: float, order: Tensor) -> tuple[Source, Source]:
        """The first `fraction` of `order` is held out."""
        held = max(1, round(fraction * len(self)))
        if held >= len(self):
            raise ValueError(
                f"val={fraction!r} of {len(self)} samples leaves none to train on; pass val=None (--train.val null), a "
                "smaller fraction, or more data"
            )
        return self.subset(order[held:].sort().values), self.subset(order[:held].sort().values)

    def peek(self, n: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
        """The first `n` samples."""
        xs, ys, seen = [], [], 0
        for batch in self.batches(list(torch.arange(min(n, len(self))).split(256)), device, dtype):
            xs.append(batch.x)
            ys.append(batch.y)
            seen += len(batch.x)
            if seen >= n:
                break
        y = None if any(y is None for y in ys) else torch.cat([y for y in ys if y is not None])[:n]
        return Batch(torch.cat(xs)[:n], y)

    def reshaped(self, shape: Sequence[int]) -> Source:
        """The same samples with axes of length 1 added or dropped to make `shape`. Raises ValueError for any other change."""
        want, have = checked_shape(shape), self.shape
        if want == have:
            return self
        if [s for s in want if s != 1] != [s for s in have if s != 1]:
            raise ValueError(
                f"the data holds samples of shape {have}, but the model takes {want}"
                + shape_hint((len(self), *have), want)
            )
        other = copy.copy(self)
        other.shape = want
        return other

    def check(self, support: tuple[float, float] | None = None, missing: bool = False) -> tuple[float, float]:
        """Looks at the whole tensor, or at the first batch where there is no tensor; returns (lowest, highest).

        Raises ValueError for NaN and infinities, naming the first such sample; `missing` lets NaN pass, which stands for a
        value that is not there."""
        raise TypeError(f"{type(self).__name__} does not define check")


def finite_range(x: Tensor, first: int = 0, missing: bool = False) -> tuple[float, float]:
    if not x.is_floating_point():
        if x.dtype == torch.uint8:
            return float(x.min()) / 255, float(x.max()) / 255
        x = x.float()
    if missing:
        x = x[~torch.isnan(x)].view(-1, 1)
        if not x.numel():
            raise ValueError("the data holds nothing but NaN")
    low, high = x.aminmax()
    if not torch.isfinite(low) or not torch.isfinite(high):
        bad = (~torch.isfinite(x.flatten(1))).nonzero()
        rows = bad[:, 0].unique()
        what = "NaN" if torch.isnan(x).any() else "infinity"
        raise ValueError(
            f"the data holds {what} in {len(rows)} of {len(x)} samples, first in sample {first + int(rows[0])} "
            f"(element {int(bad[0, 1])}); remove or fill them"
        )
    return float(low), float(high)


def check_binary(binarize: str, low: float, high: float) -> None:
    if binarize != "none" and not (low >= 0 and high <= 1):
        raise ValueError(f"binarize={binarize!r} needs data in [0, 1]; it lies in [{low:g}, {high:g}]")


def check_pixels(x: Tensor, low: float, high: float) -> None:
    """Raises ValueError for images (N, C, H, W) in floating point that hold 8-bit values."""
    pixels = x.is_floating_point() and x.dim() >= 4 and low >= 0 and 128 <= high <= 255
    if pixels and bool((x[:256] == x[:256].round()).all()):
        raise ValueError(
            f"the data lies in [{low:g}, {high:g}] and holds whole numbers: 8-bit pixels stored as {x.dtype}; "
            "pass them as uint8, or divide by 255"
        )


def floats(x: Tensor, dtype: torch.dtype) -> Tensor:
    """8-bit values scaled to [0, 1], others as they are."""
    return x.to(dtype).div_(255) if x.dtype == torch.uint8 else x.to(dtype)


class TensorSource(Source):
    """All samples in one tensor `x` (N, *shape): uint8 (scaled to [0, 1] after the gather) or floating point."""

    def __init__(self, x: Tensor, labels: Tensor | None = None, *, binarize: str = "none", description: str = "tensor"):
        self.x, self.labels, self.description = x, labels, description
        self.shape, self.stored = tuple(x.shape[1:]), x.dtype
        self.index: Tensor | None = None  # positions of this subset in x
        self.binarize = choice("binarize", binarize, ["none", "dynamic", "static", "threshold"])
        if labels is not None and len(labels) != len(x):
            raise ValueError(f"{description} has {len(x)} samples but {len(labels)} labels")
        if self.binarize in ("static", "threshold"):
            check_binary(binarize, *finite_range(x))
            scaled = x.float() / 255 if x.dtype == torch.uint8 else x
            draw = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) if binarize == "static" else 0.5
            self.x = (scaled > draw).to(torch.uint8) * 255

    def __len__(self) -> int:
        return len(self.x) if self.index is None else len(self.index)

    def subset(self, index: Tensor) -> TensorSource:
        other = copy.copy(self)
        index = index.to(self.x.device)
        other.index = index if self.index is None else self.index[index]
        other.labels = None if self.labels is None else self.labels[index.to(self.labels.device)]
        other.replay = None  # a part is not what the name or path stands for
        return other

    def to(self, device: torch.device) -> TensorSource:
        """On `device` if the tensor takes at most half of what is free there; else it stays, and batches are moved."""
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if self.x.numel() * self.x.element_size() > free / 2:
                return self
        other = copy.copy(self)
        other.x = self.x.to(device)
        other.labels = (
            None if self.labels is None else self.labels.to(device)
        )  # else each batch would wait for its labels
        other.index = None if self.index is None else self.index.to(device)
        return other

    def _gather(self, index: Tensor) -> Tensor:
        index = index.to(self.x.device)
        return self.x.index_select(0, index if self.index is None else self.index[index])

    def _finish(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = floats(x, dtype).view(len(x), *self.shape)
        return torch.bernoulli(x) if self.binarize == "dynamic" else x

    def take(self, index: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Samples by position: gathered, moved, scaled, binarised. (B,) -> (B, *shape)."""
        return self._finish(self._gather(index).to(device), dtype)

    def batches(
        self, plan: Sequence[Tensor], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Iterator[Batch]:
        stored = (
            (self._gather(i), None if self.labels is None else self.labels[i.to(self.labels.device)]) for i in plan
        )
        for x, y in stored if self.x.device.type == device.type else to_device(stored, device):
            yield Batch(self._finish(x, dtype), y)

    def check(self, support: tuple[float, float] | None = None, missing: bool = False) -> tuple[float, float]:
        x = self.x if self.index is None else self.x[self.index]
        low, high = finite_range(x, missing=missing)
        check_binary(self.binarize, low, high)
        check_pixels(x, low, high)
        return low, high


def arrays_source(x: Any, y: Any, binarize: str, description: str) -> TensorSource:
    """Samples and labels in arrays, checked."""
    x = x if isinstance(x, Tensor) else as_numbers(x, description)
    if x.dim() < 2:
        what = "looks like labels only" if not x.is_floating_point() else "has no axis for the features of a sample"
        raise ValueError(
            f"{description} has shape {tuple(x.shape)}, which {what}; samples are (N, *shape), with at least two axes"
        )
    if len(x) == 0:
        raise ValueError(f"{description} is empty: shape {tuple(x.shape)}")
    if x.is_complex():
        raise TypeError(
            f"{description} is complex ({x.dtype}); pass real numbers, e.g. the magnitude, or real and imaginary channels"
        )
    if x.dtype == torch.bool:
        x = x.to(torch.uint8) * 255
    elif x.dtype != torch.uint8:
        x = x.to(torch.get_default_dtype()) if not x.is_floating_point() else x
    if y is not None:
        y = (y if isinstance(y, Tensor) else as_numbers(y, f"labels of {description}")).cpu()
        y = y.squeeze(-1) if y.dim() == 2 and y.shape[1] == 1 else y
    return TensorSource(x.detach(), y, binarize=binarize, description=description)


def as_numbers(array: Any, description: str) -> Tensor:
    """A NumPy array as a tensor; unsigned integers beyond 8 bits become int64. Raises TypeError for what is no number."""
    import numpy as np

    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{description} has dtype {array.dtype}; allowed: numbers and booleans")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array))
