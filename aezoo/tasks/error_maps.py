"""Where a picture is abnormal: the squared error of each pixel.

Legend: N pictures, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import BaseAE, number
from ..pictures import GRID, as_images, figure, to_unit
from ..randomness import forked_rng
from ..train.hardware import decide
from .detect import _Walk


def error_map(
    model: BaseAE,
    x: Any,
    *,
    smooth: float = 0.0,
    batch_size: int = 512,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Tensor:
    """The squared error of each pixel, mean over the channels: (N, H, W) float32 on the CPU.

    Without smoothing, a map's mean is the picture's "recon" score of `anomaly_scores`; the largest value of a smoothed map is a
    score for small defects.

    Args:
        model: any model of pictures, input_shape (C, H, W) or (H, W).
        x: pictures, anything that `load_data` takes.
        smooth: standard deviation in pixels of a Gaussian that the maps are blurred with (edges mirrored); 0: none.
        batch_size: pictures at once. device: where it computes.

    The global RNG, the model's mode and its device are left as they were. Entries that are missing (NaN) have no error and are 0.
    Raises ValueError for a model of anything but pictures, and for pictures that do not fit."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    number("smooth", smooth, "a number of pixels, at least 0", lambda v: 0 <= v < float("inf"))
    shape = model.input_shape
    if len(shape) not in (2, 3):
        raise ValueError(
            f"error_map needs a model of pictures, input_shape (channels, height, width) or (height, width); {model.name} takes "
            f"{shape}. aezoo.detect gives each sample's score"
        )
    place = decide(device, "fp32", False).device
    before = next(model.parameters()).device
    walk = _Walk(model, place, batch_size, progress)
    try:
        model.to(place)
        with forked_rng(place), model.evaluating(), torch.no_grad():
            parts = []
            for seen in walk(walk.source(x), 0):
                error = (seen.recon.float() - seen.x.float()).square().cpu()
                parts.append(error.nanmean(1).nan_to_num(0.0) if error.dim() == 4 else error.nan_to_num(0.0))
    finally:
        model.to(before)
    maps = torch.cat(parts)
    return blurred(maps, smooth) if smooth else maps


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """(N, H, W) with each map convolved with a Gaussian of standard deviation `sigma` pixels, mirrored at the edges."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(maps.numpy(), (0, sigma, sigma), mode="reflect"))


def draw_error_maps(path: Any, x: Tensor, recon: Tensor, maps: Tensor, titles: list[str]) -> Any:
    """A picture file: a column for each sample with the input, its reconstruction and its map over one colour scale."""
    images, back = to_unit(as_images(x)), to_unit(as_images(recon), as_images(x))
    n = len(images)
    fig = figure(max(3.0, 1.3 * n + 1.0), 4.6)
    axes = fig.subplots(3, n, squeeze=False)
    top = float(maps.max()) or 1.0
    for i in range(n):
        for row, image in enumerate((images[i], back[i])):
            axes[row, i].imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy(), vmin=0, vmax=1)
        drawn = axes[2, i].imshow(maps[i].numpy(), vmin=0, vmax=top, cmap="inferno")
        axes[0, i].set_title(titles[i], fontsize=8)
    for row, name in enumerate(("input", "reconstruction", "error")):
        axes[row, 0].set_ylabel(name, fontsize=9)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        for side in ax.spines.values():
            side.set_color(GRID)
    fig.colorbar(drawn, ax=list(axes[2]), shrink=0.9, label="squared error")
    fig.savefig(path, dpi=120)
    return path
