"""Sources over objects of the user's own: a map-style `Dataset`, or a `DataLoader`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from ..randomness import mix_seed, seeded_sample
from ..registry import choice
from .prefetch import to_device
from .sources import Batch, Source, check_binary, finite_range, floats


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


class _Part(torch.utils.data.Dataset):
    """Samples of a data set by an index tensor (a list would be a Python object for each sample, in each loader process)."""

    def __init__(self, dataset: Any, index: Tensor):
        self.dataset, self.index = dataset, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[int(self.index[i])]


class _Plan:
    """The plan as a batch sampler, turned into lists one batch at a time."""

    def __init__(self, plan: Sequence[Tensor]):
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.plan)


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
        self.shape, self.stored = tuple(x.shape), x.dtype
        self.has_labels = y is not None

    def _sample(self, i: int) -> tuple[Tensor, Any]:
        x, y = _unpack(self.dataset[i])
        return _as_tensor(x), y

    def __len__(self) -> int:
        return len(self.dataset)

    def subset(self, index: Tensor) -> DatasetSource:
        other = copy.copy(self)
        other.replay = None
        other.dataset = _Part(self.dataset, index.cpu())
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
            batch_sampler=_Plan(plan),
            collate_fn=self._collate,
            num_workers=self.workers if len(plan) > 1 else 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the loader draws its seed here, not from the global RNG
        )
        for x, y in to_device(loader, device):
            x = floats(x, dtype).view(len(x), *self.shape)
            if self.binarize != "none":
                x = torch.bernoulli(x) if self.binarize == "dynamic" else (x > 0.5).to(dtype)
            yield Batch(x, y)

    def check(self, support: tuple[float, float] | None = None, missing: bool = False) -> tuple[float, float]:
        with seeded_sample(0):
            x = self._collate([self.dataset[i] for i in range(min(64, len(self)))])[0]
        low, high = finite_range(x, missing=missing)
        check_binary(self.binarize, low, high)
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
        self.shape, self.stored = tuple(x.shape[1:]), x.dtype
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
            x = floats(x.to(device, non_blocking=True), dtype).view(len(x), *self.shape)
            yield Batch(x, y if isinstance(y, Tensor) else None)

    def check(self, support: tuple[float, float] | None = None, missing: bool = False) -> tuple[float, float]:
        return finite_range(self.first, missing=missing)
