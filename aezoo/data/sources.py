"""Sources: samples that can be asked for by position, and come back as float batches on the wanted device.

A source is one of
- `TensorSource`: everything in one tensor, uint8 kept as uint8; a batch is a gather, and conversion happens after it;
- `DatasetSource`: a map-style `Dataset`, read by a worker-backed loader;
- `LoaderSource`: a `DataLoader` of the user's own, taken as it is (its batches, its order).
The loop asks for `batches(plan, device)`, where the plan is a list of index tensors, one per batch: the order of the data is the
loop's business, f(seed, epoch), and the source's only business is to fetch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import checked_shape, shape_hint
from ..randomness import mix_seed, seeded_sample
from ..registry import choice


class Batch(NamedTuple):
    x: Tensor
    """(B, *shape), floating point, on the device."""
    y: Tensor | None
    """Labels (B,), or None."""


class Source:
    """Base of all sources."""

    description = ""
    shape: tuple[int, ...]
    labels: Tensor | None = None
    class_names: Sequence[str] | None = None
    replay: dict[str, Any] | None = None  # keywords of `load_data` that make this source again, where that is possible
    binarize: str = "none"
    ordered = True  # whether `batches` honours a plan

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} does not define its length")

    def __repr__(self) -> str:
        return f"<{len(self):,} samples of {self.description}, shape {self.shape}>"

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
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held = max(1, round(fraction * len(self)))
        if held >= len(self):
            raise ValueError(
                f"val={fraction!r} of {len(self)} samples leaves none to train on; pass a smaller fraction or more data"
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

    def check(self, support: tuple[float, float] | None = None) -> tuple[float, float]:
        """Looks at the whole tensor, or at the first batch where there is no tensor; returns (lowest, highest).

        Raises ValueError for NaN and infinities, naming the first such sample."""
        raise TypeError(f"{type(self).__name__} does not define check")


def _finite_range(x: Tensor, first: int = 0) -> tuple[float, float]:
    if not x.is_floating_point():
        if x.dtype == torch.uint8:
            return float(x.min()) / 255, float(x.max()) / 255
        x = x.float()
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


def _check_binary(binarize: str, low: float, high: float) -> None:
    if binarize != "none" and not (low >= 0 and high <= 1):
        raise ValueError(f"binarize={binarize!r} needs data in [0, 1]; it lies in [{low:g}, {high:g}]")


def _floats(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """On the device, 8-bit values scaled to [0, 1]."""
    x = x.to(device, non_blocking=True)
    return x.to(dtype).div_(255) if x.dtype == torch.uint8 else x.to(dtype)


class TensorSource(Source):
    """All samples in one tensor `x` (N, *shape): uint8 (scaled to [0, 1] after the gather) or floating point."""

    def __init__(self, x: Tensor, labels: Tensor | None = None, *, binarize: str = "none", description: str = "tensor"):
        self.x, self.labels, self.description = x, labels, description
        self.shape = tuple(x.shape[1:])
        self.index: Tensor | None = None  # positions of this subset in x
        self.binarize = choice("binarize", binarize, ["none", "dynamic", "static", "threshold"])
        if labels is not None and len(labels) != len(x):
            raise ValueError(f"{description} has {len(x)} samples but {len(labels)} labels")
        if self.binarize in ("static", "threshold"):
            _check_binary(binarize, *_finite_range(x))
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

    def take(self, index: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Samples by position: gathered, moved, scaled, binarised. (B,) -> (B, *shape)."""
        index = index.to(self.x.device)
        x = self.x.index_select(0, index if self.index is None else self.index[index])
        x = _floats(x, device, dtype).view(len(x), *self.shape)
        return torch.bernoulli(x) if self.binarize == "dynamic" else x

    def batches(
        self, plan: Sequence[Tensor], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Iterator[Batch]:
        for index in plan:
            y = None if self.labels is None else self.labels[index.to(self.labels.device)]
            yield Batch(self.take(index, device, dtype), y)

    def check(self, support: tuple[float, float] | None = None) -> tuple[float, float]:
        x = self.x if self.index is None else self.x[self.index]
        low, high = _finite_range(x)
        _check_binary(self.binarize, low, high)
        pixels = x.is_floating_point() and len(self.shape) >= 3 and low >= 0 and 128 <= high <= 255
        if pixels and bool((x[:256] == x[:256].round()).all()):
            raise ValueError(
                f"the data lies in [{low:g}, {high:g}] and holds whole numbers: 8-bit pixels stored as {x.dtype}; "
                "pass them as uint8, or divide by 255"
            )
        return low, high


def _unpack(item: Any) -> tuple[Any, Any]:
    """(x, y) of what a Dataset or DataLoader yields: a tensor, (x,), (x, y, ...) or a dict with a usual key."""
    if isinstance(item, dict):
        for key in ("x", "image", "images", "pixel_values", "data", "input"):
            if key in item:
                return item[key], next((item[k] for k in ("y", "label", "labels", "target") if k in item), None)
        raise ValueError(
            f"the data yields dicts with keys {', '.join(map(repr, item))}; name the samples 'x' (and labels 'y')"
        )
    if isinstance(item, (tuple, list)):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _as_tensor(x: Any) -> Tensor:
    """One sample as a tensor; PIL images become (C, H, W) uint8."""
    if isinstance(x, Tensor):
        return x
    import numpy as np

    if hasattr(x, "getbands"):
        array = np.array(x)
        return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
    return torch.as_tensor(np.asarray(x))


class _Seeded(torch.utils.data.Dataset):
    """A data set whose random draws for sample i are a function of (seed, i) alone."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        with seeded_sample(mix_seed(self.seed, i)):
            return self.dataset[i]


class DatasetSource(Source):
    """A map-style `Dataset` behind a worker-backed loader. Samples may be tensors, arrays or PIL images, with or without a label."""

    def __init__(self, dataset: Any, *, workers: int = 0, binarize: str = "none", description: str = "dataset"):
        self.dataset, self.workers, self.description = dataset, workers, description
        self.binarize = choice("binarize", binarize, ["none", "dynamic", "threshold"])
        if len(dataset) == 0:
            raise ValueError(f"{description} is empty")
        x, y = self._sample(0)
        if x.dim() == 0:
            raise ValueError(
                f"{description} yields single numbers, which look like labels only; a sample needs at least one axis"
            )
        self.shape = tuple(x.shape)
        self.has_labels = y is not None

    def _sample(self, i: int) -> tuple[Tensor, Any]:
        x, y = _unpack(self.dataset[i])
        return _as_tensor(x), y

    def __len__(self) -> int:
        return len(self.dataset)

    def subset(self, index: Tensor) -> DatasetSource:
        other = copy.copy(self)
        other.replay = None
        other.dataset = torch.utils.data.Subset(self.dataset, index.tolist())
        return other

    def _collate(self, items: list[Any]) -> tuple[Tensor, Tensor | None]:
        pairs = [_unpack(item) for item in items]
        xs = [_as_tensor(x) for x, _ in pairs]
        odd = next((i for i, x in enumerate(xs) if x.shape != xs[0].shape), None)
        if odd is not None:
            raise ValueError(
                f"{self.description} holds samples of different shapes, {tuple(xs[0].shape)} and {tuple(xs[odd].shape)}; "
                "resize them in the Dataset, or load the folder with size="
            )
        ys = [y for _, y in pairs]
        if all(isinstance(y, Number) for y in ys):
            return torch.stack(xs), torch.as_tensor(ys)
        same = all(isinstance(y, Tensor) and y.shape == ys[0].shape for y in ys)
        return torch.stack(xs), torch.stack(ys) if same else None

    def batches(
        self, plan: Sequence[Tensor], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(
            _Seeded(self.dataset, seed),
            batch_sampler=[index.tolist() for index in plan],
            collate_fn=self._collate,
            num_workers=self.workers if len(plan) > 1 else 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the loader draws its seed here, not from the global RNG
        )
        for x, y in loader:
            x = _floats(x, device, dtype).view(len(x), *self.shape)
            if self.binarize != "none":
                x = torch.bernoulli(x) if self.binarize == "dynamic" else (x > 0.5).to(dtype)
            yield Batch(x, y)

    def check(self, support: tuple[float, float] | None = None) -> tuple[float, float]:
        with seeded_sample(0):
            x = self._collate([self.dataset[i] for i in range(min(64, len(self)))])[0]
        low, high = _finite_range(x)
        _check_binary(self.binarize, low, high)
        return low, high


class LoaderSource(Source):
    """A `DataLoader` of the user's own: batches as they come, the plan is ignored. `len` counts its samples."""

    ordered = False

    def __init__(self, loader: Any, description: str = "DataLoader"):
        self.loader, self.description = loader, description
        if isinstance(loader.dataset, torch.utils.data.IterableDataset):
            raise TypeError(
                "the DataLoader reads an IterableDataset, which has no length; give its data set __len__ and __getitem__"
            )
        x = _unpack(next(iter(loader), (torch.empty(0),)))[0]
        if not isinstance(x, Tensor) or x.dim() < 2:
            raise ValueError(
                f"{description} yields {type(x).__name__} batches without samples; it must yield tensors (batch, ...)"
            )
        self.shape = tuple(x.shape[1:])
        self.first = x

    def __len__(self) -> int:
        return len(self.loader.dataset)

    @property
    def num_batches(self) -> int:
        return len(self.loader)

    def batches(
        self, plan: Sequence[Tensor], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Iterator[Batch]:
        for item in self.loader:
            x, y = _unpack(item)
            yield Batch(_floats(x, device, dtype).view(len(x), *self.shape), y if isinstance(y, Tensor) else None)

    def check(self, support: tuple[float, float] | None = None) -> tuple[float, float]:
        return _finite_range(self.first)
