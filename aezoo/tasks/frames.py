"""Pictures and animations of ways through the space of codes.

Legend: R rows, T steps of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import pictures
from ..base import number

INK = pictures.INK


def save_grid(x: Tensor, path: str | Path, names: Sequence[str] = (), like: Tensor | None = None) -> Path:
    """Rows of samples (R, T, *shape) as one picture, R rows of T images; of what is no image, R panels of T curves from dark to light.

    Args: names: one for each row, written beside it. like: data whose range [lowest, highest] is shown, by default x itself.
    Returns the file. Raises ValueError for another number of names, an ending that is no picture's, and samples of no shape."""
    path = _file(path, (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"), ".png")
    if not isinstance(x, Tensor) or x.dim() < 3:
        raise ValueError(f"x must be rows of samples, (rows, steps, *shape); got {_what(x)}")
    if names and len(names) != len(x):
        raise ValueError(f"{len(names)} names do not fit {len(x)} rows")
    rows, steps = x.shape[:2]
    if not pictures.is_image(x.shape[2:]):
        return _panels(x, path, names)
    flat = pictures.as_images(x.flatten(0, 1))
    shown = list(pictures.to_unit(flat, flat if like is None else pictures.as_images(like)).split(steps))
    if not names and path.suffix.lower() not in (".pdf", ".svg"):
        pictures.grid(shown).save(path)
        return path
    height, width = shown[0].shape[2:]
    whole = pictures.grid(shown, smallest=64)
    cell = max(0.45, 10.0 / max(steps, 12))
    aside = 0.09 * max((len(n) for n in names), default=0) + 0.2
    fig = pictures.figure(cell * steps + aside, cell * height / width * rows + 0.1)
    ax = fig.add_subplot()
    ax.imshow(whole, interpolation="nearest")
    ax.set_xticks([])
    pitch = (whole.height + 2) / rows  # a row and the gap below it
    ax.set_yticks([pitch * (i + 0.5) - 1 for i in range(rows)], names or [""] * rows, color=INK, fontsize=10)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    fig.savefig(path, dpi=130, facecolor="white", bbox_inches="tight", pad_inches=0.05)
    return path


def _panels(x: Tensor, path: Path, names: Sequence[str]) -> Path:
    from matplotlib import colormaps

    rows, steps = x.shape[:2]
    across = min(rows, 4)
    fig = pictures.figure(1.2 + 3.2 * across, 2.5 * math.ceil(rows / across) + 0.3)
    axes = fig.subplots(math.ceil(rows / across), across, sharex=True, squeeze=False).flatten()
    colours = colormaps["viridis"](torch.linspace(0, 0.92, steps).numpy())
    for i, ax in enumerate(axes):
        if i >= rows:
            ax.set_visible(False)
            continue
        for sample, colour in zip(x[i], colours):
            ax.plot(pictures._curve(sample).numpy(), color=colour, linewidth=1.2)
        pictures.plain_axes(ax, names[i] if names else "", pictures._axis_of(x.shape[2:]) if i + across >= rows else "")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.tick_params(labelsize=7)
    handles = [axes[0].lines[0], axes[0].lines[-1]]
    fig.legend(handles, ["first step", "last step"], loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    fig.savefig(path, dpi=130, facecolor="white")
    return path


def save_gif(
    x: Tensor, path: str | Path, *, seconds: float = 2.0, back: bool = True, like: Tensor | None = None
) -> Path:
    """Samples (T, *shape) as an animation that repeats: images, or the curve of what is no image on axes that stand still.

    Args: seconds: from the first to the last sample. back: and the same way back. like: as in `save_grid`.
    Returns the file. Raises ValueError for an ending other than .gif, for fewer than two samples and for a time that is none."""
    path = _file(path, (".gif",), ".gif")
    number("seconds", seconds, "a number above 0 and at most 600", lambda v: 0 < v <= 600)
    if not isinstance(x, Tensor) or x.dim() < 2 or len(x) < 2:
        raise ValueError(f"x must be at least two samples, (steps, *shape); got {_what(x)}")
    frames = _images(x, like) if pictures.is_image(x.shape[1:]) else _drawn(x)
    if back:
        frames += frames[-2:0:-1]
    pace = max(20, round(1000 * seconds / (len(x) - 1)))  # viewers take less than 20 ms for 100
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=pace, loop=0, disposal=1)
    return path


def _images(x: Tensor, like: Tensor | None) -> list[Any]:
    flat = pictures.as_images(x)
    shown = pictures.to_unit(flat, flat if like is None else pictures.as_images(like))
    grey = shown.shape[1] == 1
    return [pictures.grid([image[None]], smallest=224).convert("L" if grey else "RGB") for image in shown]


def _drawn(x: Tensor) -> list[Any]:
    from PIL import Image

    curves = torch.stack([pictures._curve(sample) for sample in x])
    low, high = float(curves.min()), float(curves.max())
    gap = 0.06 * (high - low or 1.0)
    frames = []
    for i, curve in enumerate(curves):
        fig = pictures.figure(5.4, 3.2)
        fig.set_dpi(90)
        ax = fig.add_subplot()
        ax.plot(curve.numpy(), color="#1b6ca8", linewidth=1.5)
        ax.set_ylim(low - gap, high + gap)
        pictures.plain_axes(
            ax, f"step {i + 1} of {len(curves)}{pictures._shown_of(x.shape[1:])}", pictures._axis_of(x.shape[1:])
        )
        fig.canvas.draw()
        frames.append(Image.fromarray(_pixels(fig)).convert("RGB"))
    return frames


def _pixels(fig: Any) -> Any:
    import numpy as np

    return np.asarray(fig.canvas.buffer_rgba())[:, :, :3].copy()


def _file(path: str | Path, endings: tuple[str, ...], default: str) -> Path:
    """The path with its ending checked (`default` where there is none) and its folder made."""
    path = Path(path).expanduser()
    path = path if path.suffix else path.with_suffix(default)
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path} must end in {' or '.join(endings)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _what(x: Any) -> str:
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
