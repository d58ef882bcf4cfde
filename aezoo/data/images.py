"""Single images: what their header says, and their pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_image(
    path: str | Path | BinaryIO,
    size: tuple[int, int] | None = None,
    channels: int = 3,
    name: Callable[[], str] | None = None,
) -> Tensor:
    """One image file -> (C, H, W) uint8, turned as its EXIF says. `size` (height, width): resized to cover, centre-cropped.

    Raises ValueError naming the file (or what `name()` says) if it cannot be read."""
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
        what = path if name is None else name()
        raise ValueError(f"{what} cannot be read as an image: {type(error).__name__}: {error}") from None
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def lost_in_reading(path: str | Path, channels: int) -> str:
    """What an image file holds that `read_image` does not give back: "16 bits a channel", "transparency", "colour"; "" if nothing."""
    from PIL import Image

    with Image.open(path) as image:
        lost = ["more than 8 bits a channel"] if image.mode.startswith("I") or image.mode == "F" else []
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            lost.append("transparency")
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            lost.append(f"colours as {image.mode}")
        elif channels == 1 and image.mode not in ("1", "L", "LA", "F") and not image.mode.startswith("I"):
            lost.append("colour")
    return " and ".join(lost)


def look(path: str | Path | BinaryIO) -> tuple[tuple[int, int], bool] | str:
    """((height, width), has colour) from the header alone, or why it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            size = image.size if turned else image.size[::-1]
            return size, image.mode not in ("1", "L", "LA", "I", "F") and not image.mode.startswith("I;")
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def ends_well(path: str | Path) -> bool:
    """False if the last bytes are not those of a whole file of its kind: it is cut off, or has something behind its end."""
    with open(path, "rb") as f:
        start = f.read(12)
        size = f.seek(0, 2)
        f.seek(max(0, size - 64))
        end = f.read()
    if start.startswith(b"\x89PNG"):
        return b"IEND" in end
    if start.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in end
    if start.startswith(b"GIF8"):
        return end.endswith(b";")
    if start.startswith(b"BM"):
        return int.from_bytes(start[2:6], "little") <= size
    if start.startswith(b"RIFF"):
        return int.from_bytes(start[4:8], "little") + 8 <= size
    return True
