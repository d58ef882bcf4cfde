"""Folders of images and files of arrays."""

from __future__ import annotations

import csv
import lzma
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError
from typing import Any

import torch

from ..storage import read_tensors
from .datasets import DatasetSource
from .images import IMAGE_ENDINGS, ends_well, look, read_image
from .shards import Y_KEYS, ArrayRows, pick
from .sources import Source, TensorSource, arrays_source
from .streams import StreamSource
from .tars import TarRows

IN_MEMORY = 2 * 2**30  # bytes of samples up to which a folder or a file becomes one tensor; what is larger is streamed

MOST_NAMES = 1000  # of damaged files in one message

# --------------------------------------------------------------------------------------------------------------- images


class _Images(torch.utils.data.Dataset):
    """Image files as a Dataset of (uint8 tensor, label); picklable, for loader processes."""

    def __init__(self, paths: list[Path], labels: list[int] | None, size: tuple[int, int] | None, channels: int):
        self.size, self.channels = size, channels
        self.labels = None if labels is None else torch.tensor(labels)
        # names in one string of bytes: a list of paths would be copied page by page into each loader process that reads it
        names = [os.fsencode(p) for p in paths]
        self.names, self.ends = b"".join(names), torch.tensor([0, *map(len, names)]).cumsum(0)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def path(self, i: int) -> str:
        begin, end = self.ends[i : i + 2].tolist()
        return os.fsdecode(self.names[begin:end])

    def __getitem__(self, i: int) -> Any:
        x = read_image(self.path(i), self.size, self.channels)
        return x if self.labels is None else (x, int(self.labels[i]))


def files_in(folder: Path) -> list[Path]:
    """All files below `folder`, sorted, without hidden ones."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )


def load_folder(
    folder: Path, files: list[Path], size: Any, channels: int | None, binarize: str, workers: int | None, skip: bool
) -> Source:
    """The images among the `files` of a folder, flat or one folder a class: in memory (uint8) up to 2 GiB, else read by loader
    processes. `skip`: leave unreadable ones out. What is held in memory is decoded at once; of what is not, the header is read and
    the end is looked at, which finds files that are cut off.

    Raises ValueError if there is no image, for images that cannot be read (all are named), and for mixed sizes without `size`."""
    paths = [p for p in files if p.suffix.lower() in IMAGE_ENDINGS]
    if not paths:
        holds = Counter(p.suffix.lower() or "no ending" for p in files)
        found = ", ".join(f"{n} x {ending}" for ending, n in holds.most_common(4)) or "nothing"
        raise ValueError(
            f"{folder} holds no image ({', '.join(IMAGE_ENDINGS)}) and no shard ({', '.join(SHARDS)}); it holds {found}"
        )

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        looks = list(pool.map(look, paths))
    bad = [(p, seen) for p, seen in zip(paths, looks) if isinstance(seen, str)]
    kept = [(p, seen) for p, seen in zip(paths, looks) if not isinstance(seen, str)]
    names_of_bad = [f"{p.relative_to(folder)} ({why})" for p, why in bad]
    if not kept:
        raise ValueError(_corrupt(folder, names_of_bad, len(paths)))
    sizes = Counter(seen[0] for _, seen in kept)
    height, width = size or next(iter(sizes))
    channels = channels or (3 if any(seen[1] for _, seen in kept) else 1)
    in_memory = len(kept) * channels * height * width <= IN_MEMORY
    if size is None and len(sizes) > 1:
        if bad and not skip:
            raise ValueError(_corrupt(folder, names_of_bad, len(paths)))
        most = ", ".join(f"{n} of {h}x{w}" for (h, w), n in sizes.most_common(3))
        smallest = min(min(s) for s in sizes)
        raise ValueError(
            f"{folder} holds images of {len(sizes)} sizes (height x width: {most}); pass size=, e.g. size={smallest}"
        )

    total, paths = len(paths), [p for p, _ in kept]
    if not in_memory:
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            cut = dict(zip(paths, pool.map(lambda p: None if ends_well(p) else _fault(p), paths)))
        names_of_bad += [f"{p.relative_to(folder)} ({why})" for p, why in cut.items() if why]
        paths = [p for p, why in cut.items() if not why]
    names = sorted({p.relative_to(folder).parts[0] for p in paths if len(p.relative_to(folder).parts) > 1})
    classes = len(names) > 1 and all(len(p.relative_to(folder).parts) > 1 for p in paths)
    labels = [names.index(p.relative_to(folder).parts[0]) for p in paths] if classes else None
    source: Source | None = None
    if in_memory:
        images = _Images(paths, labels, size, channels)
        source, failed = _decoded(images, channels, height, width, binarize, str(folder))
        names_of_bad += [f"{Path(p).relative_to(folder)} ({why})" for p, why in failed]
    if names_of_bad and (not skip or len(names_of_bad) == total):
        raise ValueError(_corrupt(folder, names_of_bad, total))
    if source is None:
        source = DatasetSource(
            _Images(paths, labels, size, channels),
            workers=min(8, os.cpu_count() or 1) if workers is None else workers,
            binarize=binarize,
            description=str(folder),
        )
    if names_of_bad:
        print(f"{folder}: left out {len(names_of_bad)} of {total} images, which cannot be read: {_all(names_of_bad)}")
    source.class_names = names if classes else None
    return source


def _corrupt(folder: Path, names: list[str], total: int) -> str:
    return f"{folder}: {len(names)} of {total} images cannot be read: {_all(names)}. Repair or remove them, or pass skip_corrupt=True"


def _all(names: list[str]) -> str:
    return "; ".join(names[:MOST_NAMES]) + (f"; and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _fault(path: Path) -> str | None:
    """Why an image cannot be decoded, or None."""
    try:
        read_image(path)
    except ValueError as error:
        return str(error).removeprefix(f"{path} cannot be read as an image: ")
    return None


def _decoded(
    images: _Images, channels: int, height: int, width: int, binarize: str, description: str
) -> tuple[TensorSource, list[tuple[str, str]]]:
    """Every image in one uint8 tensor, and (path, reason) of those that broke while decoding."""
    from tqdm import tqdm

    x = torch.empty(len(images), channels, height, width, dtype=torch.uint8)

    def put(i: int) -> str | None:
        try:
            x[i] = read_image(images.path(i), images.size, images.channels)
        except ValueError as error:
            return str(error).removeprefix(f"{images.path(i)} cannot be read as an image: ")
        return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        many = tqdm(pool.map(put, range(len(images))), "reading", len(images), unit="img", leave=False, delay=1.0)
        errors = list(many)
    good = torch.tensor([i for i, e in enumerate(errors) if e is None], dtype=torch.long)
    y = images.labels
    failed = [(images.path(i), e) for i, e in enumerate(errors) if e is not None]
    if failed:
        if not len(good):
            return TensorSource(x, y, description=description), failed
        x, y = x[good], None if y is None else y[good]
    return TensorSource(x, y, binarize=binarize, description=description), failed


# --------------------------------------------------------------------------------------------------------------- arrays


def _npy(path: Path) -> tuple[Any, Any]:
    import numpy as np

    return np.load(path, allow_pickle=False, mmap_mode=None), None


MOST_PACKED = 100  # times that an .npz may grow beyond `IN_MEMORY` when it is unpacked; no data but a hostile file's grows so much


def _npz(path: Path) -> tuple[Any, Any]:
    import numpy as np

    with zipfile.ZipFile(path) as z:
        unpacked, packed = sum(part.file_size for part in z.infolist()), path.stat().st_size
    if unpacked > max(IN_MEMORY, MOST_PACKED * packed):
        raise ValueError(
            f"{path} has {packed:,} bytes and would unpack to {unpacked:,}, more than {MOST_PACKED} times as many; if "
            "that is right, save it as .npy"
        )
    with np.load(path, allow_pickle=False) as f:
        return pick({k: f[k] for k in f.files}, path)


def _safetensors(path: Path) -> tuple[Any, Any]:
    return pick(read_tensors(path)[0], path)


def _csv(path: Path) -> tuple[Any, Any]:
    """Rows of numbers, with or without a header; a column named like a label (y, label, target, ...) holds the labels."""
    with open(path, newline="", encoding="utf-8-sig") as f:
        sample = f.read(8192)
        f.seek(0)
        delimiter = max(",;\t", key=sample.count)
        rows = [(i, row) for i, row in enumerate(csv.reader(f, delimiter=delimiter), 1) if row]
    if not rows:
        raise ValueError(f"{path} is empty")

    def number(cell: str) -> float | None:
        try:
            return float(cell) if cell.strip() else float("nan")
        except ValueError:
            return None

    header = None
    if any(number(cell) is None for cell in rows[0][1]):
        header = [cell.strip() for cell in rows[0][1]]
        rows = rows[1:]
    width = len(header or (rows[0][1] if rows else []))
    values = []
    for line, row in rows:
        if len(row) != width:
            raise ValueError(f"{path}, line {line}: {len(row)} cells where {width} are expected")
        cells = [number(cell) for cell in row]
        for column, cell in enumerate(cells):
            if cell is None:
                name = header[column] if header else str(column + 1)
                raise ValueError(
                    f"{path}, line {line}, column {name!r}: {row[column]!r} is no number; encode or drop that column"
                )
        values.append(cells)
    if not values:
        raise ValueError(f"{path} holds a header and no rows")
    table = torch.tensor(values, dtype=torch.float64)
    label = next((i for i, name in enumerate(header or []) if name in Y_KEYS), None)
    if label is None:
        return table, None
    if table.shape[1] == 1:
        raise ValueError(f"{path} holds labels only (its one column is {header[label]!r})")  # type: ignore[index]
    y = table[:, label]
    y = y.long() if bool((y == y.round()).all()) else y
    return torch.cat([table[:, :label], table[:, label + 1 :]], 1), y


SHARDS = (".tar", ".safetensors", ".npy")


def shards_of(what: str, files: list[Path]) -> list[Path]:
    """The shards among `files`: those of the one ending, .tar, .safetensors or .npy, that occurs; none if there is an image.

    Raises ValueError, naming `what`, if several of these endings occur."""
    endings = Counter(p.suffix.lower() for p in files)
    kinds = [ending for ending in SHARDS if endings[ending]]
    if not kinds or any(endings[ending] for ending in IMAGE_ENDINGS):
        return []
    if len(kinds) > 1:
        held = ", ".join(f"{endings[k]} x {k}" for k in kinds)
        raise ValueError(
            f"{what} holds shards of several kinds ({held}); pass a pattern, e.g. {what.rstrip('/')}/*{kinds[0]}"
        )
    return [p for p in files if p.suffix.lower() == kinds[0]]


def load_shards(
    paths: list[Path], description: str, size: Any, channels: int | None, binarize: str, workers: int | None
) -> Source:
    """Shards of one kind as one source: in memory up to 2 GiB, else streamed.

    Raises ValueError for damaged, hostile or mixed shards, and for a `size` or `channels` that the stored arrays do not have."""
    try:
        rows = TarRows(paths, size, channels, workers) if paths[0].suffix.lower() == ".tar" else ArrayRows(paths)
    except OSError as error:
        raise ValueError(f"{description} cannot be read: {error}") from None
    if len(rows) == 0:
        raise ValueError(f"{description} is empty: shape {(0, *rows.shape)}")
    stored = rows.shape if len(rows.shape) == 3 else (None, *rows.shape[:2])
    if (size is not None and size != stored[1:]) or (channels is not None and channels != stored[0]):
        asked = f"size={size!r}" if size is not None and size != stored[1:] else f"channels={channels!r}"
        raise ValueError(
            f"{asked} does not apply to the arrays of {description}, which hold samples of shape {rows.shape}"
        )
    if len(rows) * rows.row_bytes > IN_MEMORY:
        return StreamSource(rows, binarize=binarize, description=description)
    return arrays_source(rows.all(), rows.labels, binarize, description)


# what zip, numpy and csv make of files that are no such file, or of one with a byte changed (RuntimeError: "is encrypted")
DAMAGE = (EOFError, OSError, KeyError, UnicodeDecodeError, SyntaxError, TokenError, TypeError, RuntimeError, OverflowError,
          struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, csv.Error)  # fmt: skip

READERS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".csv": _csv,
}


def load_file(path: Path) -> tuple[Any, Any]:
    """(samples, labels or None) of a file of arrays. Raises ValueError for an unknown ending or a damaged file."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        why = " (pickles can run code, so they are not read)" if path.suffix.lower() in (".pt", ".pth", ".pkl") else ""
        one = " (for images, pass their folder)" if path.suffix.lower() in IMAGE_ENDINGS else ""
        packed = path.name.lower().endswith((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"))
        unpack = " (it cannot be read by position: unpack it to .tar first)" if packed else ""
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'a file without an ending'!r}{why}{one}{unpack}; allowed: "
            f"{', '.join(READERS)}, .tar"
        )
    try:
        return reader(path)
    except MemoryError:
        raise ValueError(
            f"{path} says that it holds more than fits into memory; it is damaged, or needs a larger machine"
        ) from None
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(path) in message else f"{path} cannot be read: {message}") from None
