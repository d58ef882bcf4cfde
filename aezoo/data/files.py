"""Folders of images and files of arrays."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..storage import read_tensors
from .sources import DatasetSource, Source, TensorSource

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IN_MEMORY = 2 * 2**30  # bytes of decoded pixels up to which a folder becomes one tensor

X_KEYS = ("x", "X", "data", "images", "samples", "x_train", "arr_0")
Y_KEYS = ("y", "Y", "labels", "label", "targets", "target", "class", "y_train")


# --------------------------------------------------------------------------------------------------------------- images


def read_image(path: str | Path, size: tuple[int, int] | None = None, channels: int = 3) -> Tensor:
    """One image file -> (C, H, W) uint8, turned as its EXIF says. `size` (height, width): resized to cover, centre-cropped.

    Raises ValueError naming the file if it cannot be read."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                pixels = np.asarray(image, dtype=np.float32)
                top = 65535.0 if image.mode != "F" else (1.0 if pixels.max(initial=0) <= 1 else 255.0)
                image = Image.fromarray((pixels * (255 / top)).clip(0, 255).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            image = image.convert("L" if channels == 1 else "RGB")
            if size is not None and image.size != (size[1], size[0]):
                image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
            array = np.array(image)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise ValueError(f"{path} cannot be read as an image: {type(error).__name__}: {error}") from None
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _look(path: Path) -> tuple[tuple[int, int], bool] | str:
    """((height, width), has colour) from the header alone, or why it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            size = image.size if turned else image.size[::-1]
            return size, image.mode not in ("1", "L", "LA", "I", "F") and not image.mode.startswith("I;")
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class _Images(torch.utils.data.Dataset):
    """Image files as a Dataset of (uint8 tensor, label); picklable, for loader processes."""

    def __init__(self, paths: list[Path], labels: list[int] | None, size: tuple[int, int] | None, channels: int):
        self.paths, self.labels, self.size, self.channels = paths, labels, size, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        x = read_image(self.paths[i], self.size, self.channels)
        return x if self.labels is None else (x, self.labels[i])


def load_folder(
    folder: Path, size: Any, channels: int | None, binarize: str, workers: int | None, skip_corrupt: bool
) -> Source:
    """A folder of images, flat or one folder a class: in memory (uint8) up to 2 GiB, else read by loader processes.

    Raises ValueError if it holds no image, for images that cannot be read (all are listed), and for mixed sizes without `size`."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    paths = [p for p in files if p.suffix.lower() in IMAGE_ENDINGS]
    if not paths:
        holds = Counter(p.suffix.lower() or "no ending" for p in files)
        found = ", ".join(f"{n} x {ending}" for ending, n in holds.most_common(4)) or "nothing"
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGE_ENDINGS)}); it holds {found}")

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        looks = list(pool.map(_look, paths))
    bad = [(p, look) for p, look in zip(paths, looks) if isinstance(look, str)]
    kept = [(p, look) for p, look in zip(paths, looks) if not isinstance(look, str)]
    if (bad and not skip_corrupt) or not kept:
        raise ValueError(_corrupt(folder, [f"{p.relative_to(folder)} ({why})" for p, why in bad], len(paths)))
    sizes = Counter(look[0] for _, look in kept)
    if size is None and len(sizes) > 1:
        most = ", ".join(f"{n} of {h}x{w}" for (h, w), n in sizes.most_common(3))
        smallest = min(min(s) for s in sizes)
        raise ValueError(
            f"{folder} holds images of {len(sizes)} sizes (height x width: {most}); pass size=, e.g. size={smallest}"
        )
    height, width = size or next(iter(sizes))
    channels = channels or (3 if any(look[1] for _, look in kept) else 1)

    paths = [p for p, _ in kept]
    names = sorted({p.relative_to(folder).parts[0] for p in paths if len(p.relative_to(folder).parts) > 1})
    classes = len(names) > 1 and all(len(p.relative_to(folder).parts) > 1 for p in paths)
    labels = [names.index(p.relative_to(folder).parts[0]) for p in paths] if classes else None
    images = _Images(paths, labels, size, channels)
    source: Source
    if len(paths) * channels * height * width <= IN_MEMORY:
        source, failed = _decoded(images, channels, height, width, binarize, str(folder))
        if failed and not skip_corrupt:
            raise ValueError(_corrupt(folder, failed, len(paths)))
        bad_names = [str(p.relative_to(folder)) for p, _ in bad] + failed
    else:
        source = DatasetSource(
            images,
            workers=os.cpu_count() or 1 if workers is None else workers,
            binarize=binarize,
            description=str(folder),
        )
        bad_names = [str(p.relative_to(folder)) for p, _ in bad]
    if bad_names:
        print(
            f"{folder}: left out {len(bad_names)} unreadable images: {', '.join(bad_names[:5])}{', ...' * (len(bad_names) > 5)}"
        )
    source.class_names = names if classes else None
    return source


def _corrupt(folder: Path, names: list[str], total: int) -> str:
    shown = "; ".join(names[:5]) + ("; ..." if len(names) > 5 else "")
    return f"{folder}: {len(names)} of {total} images cannot be read: {shown}. Repair or remove them, or pass skip_corrupt=True"


def _decoded(
    images: _Images, channels: int, height: int, width: int, binarize: str, description: str
) -> tuple[TensorSource, list[str]]:
    """Every image in one uint8 tensor, and the names of those that broke while decoding."""
    from tqdm import tqdm

    x = torch.empty(len(images), channels, height, width, dtype=torch.uint8)

    def put(i: int) -> str | None:
        try:
            x[i] = read_image(images.paths[i], images.size, images.channels)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        many = tqdm(pool.map(put, range(len(images))), "reading", len(images), unit="img", leave=False, delay=1.0)
        errors = list(many)
    good = torch.tensor([i for i, e in enumerate(errors) if e is None], dtype=torch.long)
    y = None if images.labels is None else torch.tensor(images.labels)
    failed = [e for e in errors if e is not None]
    if failed:
        if not len(good):
            return TensorSource(x, y, description=description), failed
        x, y = x[good], None if y is None else y[good]
    return TensorSource(x, y, binarize=binarize, description=description), failed


# --------------------------------------------------------------------------------------------------------------- arrays


def _pick(arrays: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """Samples and labels among named arrays."""
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


def _npy(path: Path) -> tuple[Any, Any]:
    import numpy as np

    return np.load(path, allow_pickle=False, mmap_mode=None), None


def _npz(path: Path) -> tuple[Any, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as f:
        return _pick({k: f[k] for k in f.files}, path)


def _safetensors(path: Path) -> tuple[Any, Any]:
    return _pick(read_tensors(path)[0], path)


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
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'a file without an ending'!r}{why}{one}; allowed: {', '.join(READERS)}"
        )
    try:
        return reader(path)
    except (EOFError, OSError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(path) in message else f"{path} cannot be read: {message}") from None
