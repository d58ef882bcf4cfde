"""`load_data`: tensors, arrays, Datasets, DataLoaders, folders, files, shards and registered names, all through one door."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import positive
from ..registry import choice, nearest
from . import files
from .datasets import DatasetSource, LoaderSource
from .files import READERS, SHARDS, files_in, load_file, load_folder, load_shards, shards_of
from .named import DATASETS
from .sources import Source, arrays_source

MANY = 2000  # samples from which a Dataset is read by loader processes


def load_data(
    source: Any,
    *,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    binarize: str = "none",
    limit: int | None = None,
    root: str | None = None,
    workers: int | None = None,
    skip_corrupt: bool = False,
) -> Source:
    """Turns anything that holds samples into a `Source`, which the loop and `evaluate` read.

    Args:
        source: a tensor or NumPy array (N, *shape), a pair (samples, labels), a `torch.utils.data.Dataset` (with or without
            labels), a `DataLoader`, a folder of images (flat, or one folder a class), a .npy/.npz/.safetensors/.csv file, or a
            registered name such as "fashion-mini". uint8 is scaled to [0, 1]; floating point is taken as it is.
            Shards, .npy or .safetensors (samples `x`, labels `y`) or WebDataset .tar (images or .npy, with .cls or .json): a
            folder of them, a pattern such as "data/shard-*.tar", or one file. Up to 2 GiB of decoded samples are held in
            memory; more is streamed with flat memory, shuffled by blocks of consecutive samples and within windows of blocks.
        split: "train" or "test", for registered names.
        size: height = width, or (height, width): images are resized to cover it and cropped at the centre. Folders and .tar
            shards of mixed sizes need it.
        channels: 1 or 3, for folders and .tar shards; by default 3 if any image has colour.
        binarize: "none"; "dynamic" (each pixel drawn anew with its grey value as probability at every visit), "static" (drawn once,
            always the same) or "threshold" (> 0.5). These are different data sets: never compare figures across them.
        limit: keep only the first that many samples.
        root: where registered data sets lie, in torchvision's layout; default: the environment's AEZOO_DATA, else
            ~/.cache/aezoo. They are downloaded there if they are missing and there is a network.
        workers: loader processes for Datasets and folders too large for memory, decoding threads for .tar shards; by default the
            cores (8 at most), and no process for Datasets of fewer than 2,000 samples. The batches do not depend on it.
        skip_corrupt: leave images of a folder that cannot be read out, and name them, instead of raising an error that names them all.

    Raises FileNotFoundError, ValueError or TypeError that name what was found and what is taken."""
    options = {k: v for k, v in locals().items() if k != "source"}
    if limit is not None:
        positive("limit", limit)
    choice("split", split, ["train", "test"])
    choice("binarize", binarize, ["none", "dynamic", "static", "threshold"])
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r} must be 1 (grey) or 3 (colour)")
    if size is not None:
        pair = size if isinstance(size, (tuple, list)) else (size, size)
        if len(pair) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in pair):
            raise ValueError(f"size={size!r} must be a positive integer or (height, width)")
        size = (pair[0], pair[1])
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise ValueError(f"workers={workers!r} must be a number of processes, an integer of at least 0")
    if isinstance(source, Source):
        return _limited(source, limit)
    if isinstance(source, Mapping):  # how a config file says it
        given = dict(source)
        unknown = [k for k in given if k not in options and k != "source"]
        if unknown:
            raise TypeError(
                f"data takes no key {unknown[0]!r}; allowed: source, {', '.join(options)}.{nearest(unknown[0], options)}"
            )
        return load_data(given.pop("source"), **given)
    if isinstance(source, (str, os.PathLike)):
        given = {k: v for k, v in options.items() if v != _DEFAULTS[k]}
        loaded = _limited(
            _from_text(str(source), given, size, channels, binarize, root, workers, skip_corrupt, split), limit
        )
        loaded.replay = {"source": str(source), **given}
        return loaded
    _refuse(
        type(source).__name__, {k: v for k, v in options.items() if v != _DEFAULTS[k]}, "binarize", "limit", "workers"
    )
    return _limited(_from_object(source, binarize, workers), limit)


def data_for(shape: Sequence[int], source: Any, **options: Any) -> Source:
    """`load_data` for a model of samples of `shape`: a folder of pictures is fitted to their size and channels, unless `options` say
    otherwise. Raises as `load_data` does, and ValueError for samples of another shape."""
    if isinstance(source, Mapping) and "source" in source:  # how a config file says it
        options = {**{k: v for k, v in source.items() if k != "source"}, **options}
        source = source["source"]
        if unknown := [k for k in options if k not in _DEFAULTS]:
            return load_data({"source": source, unknown[0]: None})  # says what is allowed
    if len(shape) == 3 and shape[0] in (1, 3) and isinstance(source, (str, os.PathLike)):
        folder = Path(source).expanduser()
        if folder.is_dir() and any(p.suffix.lower() in files.IMAGE_ENDINGS for p in files_in(folder)):
            options = {"size": tuple(shape[1:]), "channels": shape[0], **options}
    return load_data(source, **options).reshaped(shape)


_DEFAULTS = dict(load_data.__kwdefaults__ or {})


def _limited(source: Source, limit: int | None) -> Source:
    return source if limit is None or limit >= len(source) else source.subset(torch.arange(limit))


def _refuse(what: str, given: Mapping[str, Any], *fitting: str) -> None:
    """Raises ValueError for an option that means nothing for this kind of data: it would be ignored in silence."""
    for key, value in given.items():
        if key not in fitting:
            raise ValueError(f"{key}={value!r} does not apply to {what}; for it there are: {', '.join(fitting)}")


def _from_text(
    text: str,
    given: Mapping[str, Any],
    size: Any,
    channels: Any,
    binarize: str,
    root: Any,
    workers: Any,
    skip_corrupt: bool,
    split: str,
) -> Source:
    path = Path(text).expanduser()
    if path.is_dir():
        found = files_in(path)
        if shards := shards_of(text, found):
            _refuse(f"the shards in {text}", given, "size", "channels", "binarize", "limit", "workers")
            return load_shards(shards, text, size, channels, binarize, workers)
        _refuse(f"the folder {text}", given, "size", "channels", "binarize", "limit", "workers", "skip_corrupt")
        return load_folder(path, found, size, channels, binarize, workers, skip_corrupt)
    if path.is_file():
        ending = path.suffix.lower()
        if ending == ".tar":
            _refuse(f"the file {text}", given, "size", "channels", "binarize", "limit", "workers")
            return load_shards([path], text, size, channels, binarize, workers)
        _refuse(f"the file {text}", given, "binarize", "limit")
        if ending in SHARDS and path.stat().st_size > files.IN_MEMORY:
            return load_shards([path], text, None, None, binarize, None)
        return arrays_source(*load_file(path), binarize, str(path))
    if text in DATASETS:
        _refuse(f"the data set {text}", given, "split", "size", "binarize", "limit", "root", "workers")
        return DATASETS[text](split=split, size=size, binarize=binarize, root=root, workers=workers)
    if any(c in text for c in "*?["):
        _refuse(f"the shards {text}", given, "size", "channels", "binarize", "limit", "workers")
        found = sorted(Path(p) for p in glob(str(path), recursive=True) if Path(p).is_file())
        if not found:
            raise FileNotFoundError(f"no file matches {text!r}; shards are {', '.join(SHARDS)}")
        if odd := [p.name for p in found if p.suffix.lower() not in SHARDS]:
            raise ValueError(
                f"{text} matches {odd[0]!r}; a pattern takes shards ({', '.join(SHARDS)}), images go by folder"
            )
        return load_shards(shards_of(text, found), text, size, channels, binarize, workers)
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(text, DATASETS) or nearest(path.name, beside)
    raise FileNotFoundError(
        f"no file, folder or data set {text!r}; registered data sets: {', '.join(DATASETS)}; "
        f"files: a folder of images, {', '.join(READERS)}, or shards ({', '.join(SHARDS)}) by folder or pattern.{hint}"
    )


def _from_object(source: Any, binarize: str, workers: int | None) -> Source:
    if hasattr(source, "to_numpy"):  # a table of pandas or polars
        return arrays_source(source.to_numpy(), None, binarize, type(source).__name__)
    if isinstance(source, torch.utils.data.DataLoader):
        if binarize != "none":
            raise ValueError("binarize= does not apply to a DataLoader; binarise in its Dataset")
        return LoaderSource(source)
    if isinstance(source, torch.utils.data.TensorDataset):
        labels = source.tensors[1] if len(source.tensors) > 1 else None
        return arrays_source(source.tensors[0], labels, binarize, "TensorDataset")
    if isinstance(source, (tuple, list)) and len(source) == 2 and all(hasattr(s, "shape") for s in source):
        return arrays_source(source[0], source[1], binarize, "(samples, labels)")
    if isinstance(source, Tensor) or type(source).__module__ == "numpy":
        return arrays_source(source, None, binarize, "tensor" if isinstance(source, Tensor) else "array")
    if isinstance(source, torch.utils.data.IterableDataset):
        raise TypeError(
            "an IterableDataset has no length and no order; make it map-style, with __len__ and __getitem__"
        )
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (list, tuple, dict)):
        if workers is None:  # starting processes pays for itself only on long epochs
            workers = min(8, os.cpu_count() or 1) if len(source) >= MANY else 0
        return DatasetSource(source, workers=workers, binarize=binarize, description=type(source).__name__)
    raise TypeError(
        f"cannot read data from {type(source).__name__}; pass a tensor, an array, a pair (samples, labels), a Dataset, a DataLoader, "
        "a folder, a file, a pattern of shards or a registered name"
    )


__all__ = ["load_data"]
