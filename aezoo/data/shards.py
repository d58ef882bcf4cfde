"""Rows of equal shape in files: `.npy` and `.safetensors`, one file or many, read by position.

Files are read, not mapped into memory: pages of a map that were touched count as resident until the kernel takes them back.
"""

from __future__ import annotations

import io
import json
import math
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

HEADER = 2**20  # bytes that the header of a file of arrays may take
X_KEYS = ("x", "X", "data", "images", "samples", "x_train", "arr_0")
Y_KEYS = ("y", "Y", "labels", "label", "targets", "target", "class", "y_train")

SAFETENSORS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16, "U32": torch.uint32,
    "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


def pick(arrays: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """Samples and labels among named arrays. Raises ValueError if it is not clear which are the samples."""
    shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in arrays.items()) or "nothing"
    y = next((arrays[k] for k in Y_KEYS if k in arrays), None)
    x = next((arrays[k] for k in X_KEYS if k in arrays), None)
    if x is None:
        rest = [v for k, v in arrays.items() if k not in Y_KEYS]
        if not rest and y is not None:
            raise ValueError(f"{path} holds labels only ({shapes}); name the samples {', '.join(X_KEYS[:3])}")
        if len(rest) != 1:
            raise ValueError(
                f"{path} holds {shapes}; name the samples {', '.join(X_KEYS[:3])} (and labels {', '.join(Y_KEYS[:3])})"
            )
        x = rest[0]
    return x, y


class Rows(ABC):
    """Base: N rows of `shape` and `dtype` in files, with `labels` (N, ...) or None."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    labels: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def read(self, start: int, stop: int, out: Tensor) -> None:
        """The bytes of rows [start, stop) into `out`, (stop - start, row_bytes) uint8."""

    def decode(self, stored: Tensor) -> Tensor:
        """Bytes of rows (n, row_bytes) -> (n, *shape); booleans become 0 and 255, unsigned integers beyond 8 bits int64."""
        if self.dtype == torch.bool:
            x = (stored != 0).to(torch.uint8).mul_(255)
        else:
            x = stored.view(self.dtype)
            if self.dtype in (torch.uint16, torch.uint32, torch.uint64):
                x = x.to(torch.int64)  # few operators know them
        return x.view(len(stored), *self.shape)

    def all(self) -> Tensor:
        """Every row, (N, *shape)."""
        from tqdm import tqdm

        stored = torch.empty(len(self), self.row_bytes, dtype=torch.uint8)
        step = max(1, 2**24 // self.row_bytes)
        for start in tqdm(range(0, len(self), step), "reading", unit="block", leave=False, delay=1.0):
            self.read(start, min(start + step, len(self)), stored[start : start + step])
        return self.decode(stored)


class Part(NamedTuple):
    """The rows of one file: they begin `offset` bytes into it, and follow each other."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    """(rows, *shape)."""
    dtype: torch.dtype
    labels: Tensor | None = None


class ArrayRows(Rows):
    """The rows of `.npy` or `.safetensors` files, one file after the other.

    Raises ValueError, naming the file, for one that is damaged or truncated and for one whose rows are not like the first's."""

    def __init__(self, paths: Sequence[Path]):
        opened = {".npy": open_npy, ".safetensors": open_safetensors}
        self.parts = [opened[path.suffix.lower()](path) for path in paths]
        first = self.parts[0]
        self.shape, self.dtype = first.shape[1:], first.dtype
        for part in self.parts[1:]:
            if (part.shape[1:], part.dtype) != (self.shape, self.dtype):
                raise ValueError(
                    f"{part.path} holds samples of shape {part.shape[1:]} and {part.dtype}, but {first.path.name} of shape "
                    f"{self.shape} and {self.dtype}; the shards of a data set must agree (and .npy shards hold samples only)"
                )
            if (part.labels is None) != (first.labels is None):
                with_labels, without = (first, part) if part.labels is None else (part, first)
                raise ValueError(f"{with_labels.path} holds labels, but {without.path} does not")
        if first.labels is not None:
            self.labels = torch.cat([part.labels for part in self.parts if part.labels is not None])
        self.ends: list[int] = []
        for part in self.parts:
            self.ends.append((self.ends[-1] if self.ends else 0) + part.shape[0])

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, start: int, stop: int, out: Tensor) -> None:
        number = bisect_right(self.ends, start)
        while start < stop:
            part, end = self.parts[number], min(stop, self.ends[number])
            row = start - (self.ends[number] - part.shape[0])
            into = out[: end - start]
            if len(into):
                with open(part.path, "rb", buffering=0) as f:
                    read_into(f, part.offset + row * self.row_bytes, into, part.path)
            out, start, number = out[len(into) :], end, number + 1


def read_into(f: Any, offset: int, out: Tensor, path: Path) -> None:
    """Fills `out` (contiguous uint8) from `offset` of the open file. Raises ValueError if the file ends before."""
    view = out.numpy().data.cast("B")
    f.seek(offset)
    while len(view):
        count = f.readinto(view)
        if not count:
            raise ValueError(f"{path} is truncated: it ends {len(view)} bytes too early")
        view = view[count:]


def open_npy(path: Path) -> Part:
    """Where the rows of a `.npy` file lie. Raises ValueError for what cannot be read row by row, TypeError for complex numbers."""
    import numpy as np

    size = os.path.getsize(path)
    with open(path, "rb") as f:
        head = io.BytesIO(f.read(HEADER))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or not a .npy file: {str(error).splitlines()[0]}") from None
    if dtype.hasobject:
        raise ValueError(f"{path} holds Python objects, which are stored as pickles and can run code; save numbers")
    if dtype.kind == "c":
        raise TypeError(f"{path} is complex ({dtype}); save real numbers, e.g. real and imaginary part as channels")
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative:
        raise ValueError(f"{path} has dtype {dtype.str}; allowed: numbers and booleans of up to 8 bytes, little-endian")
    if fortran and len(shape) > 1:
        raise ValueError(f"{path} is in Fortran order, so a row is not in one place; save np.ascontiguousarray(x)")
    part = Part(path, head.tell(), shape, torch.from_numpy(np.empty(0, dtype)).dtype)
    _check_extent(part, size)
    return part


def _check_extent(part: Part, size: int) -> None:
    if len(part.shape) < 2:
        raise ValueError(f"{part.path} has shape {part.shape}; samples are (N, *shape), with at least two axes")
    if any(n < 0 for n in part.shape) or 0 in part.shape[1:]:
        raise ValueError(f"{part.path} claims the shape {part.shape}, which holds no samples")
    need = part.offset + math.prod(part.shape) * part.dtype.itemsize
    if size < need:
        raise ValueError(f"{part.path} is truncated: it has {size} bytes, and shape {part.shape} needs {need}")


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    end: int


def open_safetensors(path: Path) -> Part:
    """Where the rows `x` of a `.safetensors` file lie, and its labels `y`.

    Raises ValueError if the header takes more than 1 MiB, is no JSON, or does not agree with the size of the file."""

    def damaged(why: str) -> ValueError:
        return ValueError(f"{path} is truncated, damaged or not a safetensors file: {why}")

    size = os.path.getsize(path)
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > size - 8:
            raise damaged(f"a header of {length} bytes in a file of {size}")
        if length > HEADER:
            raise ValueError(
                f"{path} has a header of {length:,} bytes; shards of samples need far less than {HEADER:,}"
            )
        text = f.read(length)
        try:
            header = json.loads(text)
            entries = {k: _entry(v) for k, v in header.items() if k != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(f"its header cannot be read ({type(error).__name__}: {error})") from None
        data = 8 + length
        for name, e in entries.items():
            if e.end - e.begin != math.prod(e.shape) * e.dtype.itemsize or data + e.end > size:
                raise damaged(f"{name!r} does not lie within its {size} bytes")
        if data + max((e.end for e in entries.values()), default=0) != size:
            raise damaged(f"the header describes another size than its {size} bytes")
        x, y = pick(entries, path)
        labels = None
        if y is not None:
            stored = torch.empty(y.end - y.begin, dtype=torch.uint8)
            read_into(f, data + y.begin, stored, path)
            labels = stored.view(y.dtype).view(y.shape)
            labels = labels.squeeze(-1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
            if labels.dim() == 0 or len(labels) != x.shape[0]:
                raise ValueError(f"{path} holds {x.shape[0]} samples but labels of shape {tuple(labels.shape)}")
    part = Part(path, data + x.begin, x.shape, x.dtype, labels)
    _check_extent(part, size)
    return part


def _entry(raw: dict[str, Any]) -> _Entry:
    """One tensor of a safetensors header. Raises ValueError, KeyError or TypeError if it makes no sense."""
    shape, (begin, end) = raw["shape"], raw["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)) or begin > end:
        raise ValueError(f"shape {shape}, offsets {begin!r} to {end!r}")
    return _Entry(tuple(shape), SAFETENSORS[raw["dtype"]], begin, end)
