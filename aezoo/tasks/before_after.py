"""A picture of images before and after, side by side, pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..pictures import INK, as_images, figure

EDGE = 192  # pixels along an edge of what is shown of an image


def before_after(path: str | Path, rows: Sequence[Mapping[str, Tensor]], edge: int = EDGE) -> None:
    """A row for each image, {title: image (C, H, W) in [0, 1]}: the middle of each of its versions, all of one row of the same size."""
    across = max(map(len, rows))
    fig = figure(3.1 * across, 3.3 * len(rows))
    for i, row in enumerate(rows):
        for j, (title, x) in enumerate(row.items()):
            height, width = (min(edge, s) for s in x.shape[1:])
            top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
            shown = as_images(x[None, :, top : top + height, left : left + width])[0].clamp(0, 1)
            ax = fig.add_subplot(len(rows), across, i * across + j + 1)
            ax.imshow(shown.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
            ax.set_title(title, loc="left", color=INK, fontsize=9)
            ax.set_axis_off()
    fig.savefig(path, dpi=120, facecolor="white")
