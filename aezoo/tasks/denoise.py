"""Images of any size through any model of the zoo, to take noise off them.

Legend: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import functional as fn
from ..base import BaseAE, count
from ..registry import choice
from .resizing import local, resized, stride
from .tiles import over_tiles, padded

WHOLE = 2**21  # pixels up to which an image goes through a convolutional model as one
TILE, MARGIN = 1024, 128  # edge of the tiles of a larger one, and how far they overlap
AT_ONCE = 2**20  # pixels in one pass

_LOCAL: WeakKeyDictionary[BaseAE, bool] = WeakKeyDictionary()  # what `local` said of each model


def denoise(
    model: BaseAE,
    x: Any,
    *,
    tile: int | str = "auto",
    overlap: int | None = None,
    condition: Any = None,
    progress: bool = True,
) -> Any:
    """What `model` makes of images of any size: its reconstruction, which adds no noise, of the whole image or tile by tile.

    A model that is convolutional throughout (`unet_denoiser`, quantised ones on `conv`, ...) takes the whole image, mirrored at the right
    and lower edge up to a multiple of its stride. Any other takes tiles of its own size that overlap by half, and what it makes of them is
    averaged under smooth windows (sin^2, `tiles.window`), so that no seam shows. Which kind a model is, is found out by trying
    (`resizing.local`). Images smaller than a tile are mirrored at the right and lower edge, then their last row or column is repeated.

    Args:
        x: one image (C, H, W) or several (B, C, H, W) of the same size, a tensor or array of floating point in the data's range,
            [0, 1] for pictures; noise may go beyond it.
        tile: "auto": whole images up to two megapixels, then tiles of 1024; "whole", or the edge of the tiles in pixels, for models that are
            convolutional throughout. overlap: of neighbouring tiles, in pixels, less than the tile's edge.
        condition: for models that are told something (`cvae`, a noise level as a vector): one for each image, or one for all.
        progress: a bar, if it takes more than two seconds.

    Returns the images in the shape, dtype and kind of x, on its device, clamped to the range of the model's likelihood where it has one.
    Computed on the model's device. The model, its mode and the global RNG are left as they were.
    Raises TypeError or ValueError for a model that takes no images, other channels, ranks, sizes, values that are not finite, and, where the
    likelihood says what range data have, a scale far from it."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.from_pretrained; got {type(model).__name__}")
    images, single = _checked(model, x)
    like = next(model.parameters())
    wide = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    y = images.to(like.device, wide)
    told = _condition(condition, len(y), like)
    with torch.no_grad():
        y = _denoised(model, y, like.dtype, tile, overlap, told, progress)
        if model.likelihood.support:
            y = y.clamp(*model.likelihood.support)
    y = y.to(images.device, images.dtype).contiguous()
    y = y[0] if single else y
    return y if isinstance(x, Tensor) else y.numpy()


def _denoised(
    model: BaseAE, y: Tensor, dtype: torch.dtype, tile: Any, overlap: Any, told: Tensor | None, progress: bool
) -> Tensor:
    (height, width), own = y.shape[2:], (model.input_shape[1], model.input_shape[2])
    edges, margins, any_size = _tiling(model, (height, width), tile, overlap, told)
    y = padded(y, *edges)
    network = model
    if any_size and edges != own:
        network = resized(model, *edges)  # type: ignore[assignment]

    def apply(part: Tensor, which: list[int]) -> Tensor:
        return fn.full(network.reconstruct(part.to(dtype), None if told is None else told[which])).to(part.dtype)

    at_once = max(1, AT_ONCE // math.prod(edges))
    with _bar(progress) as bar:
        return over_tiles(y, edges, margins, apply, at_once, bar.update)[..., :height, :width]


def _tiling(
    model: BaseAE, size: tuple[int, int], tile: Any, overlap: Any, told: Tensor | None
) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """(size of a tile, overlap along each axis, whether the model takes any size) for images of this size."""
    if isinstance(tile, str):
        choice("tile", tile, ["auto", "whole"])
    elif isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise ValueError(
            f"tile={tile!r} must be 'auto', 'whole' or the edge of a tile in pixels, an integer of at least 1"
        )
    own = (model.input_shape[1], model.input_shape[2])
    if model not in _LOCAL:
        _LOCAL[model] = local(model, None if told is None else told[:1])
    if not _LOCAL[model]:
        if tile != "auto" and (tile, tile) != own:
            raise ValueError(
                f"tile={tile!r} is for models that are convolutional throughout; this {model.name} takes tiles of its own size, "
                f"{own[0]} x {own[1]}: leave tile away"
            )
        edges = own
        margins = (own[0] // 2, own[1] // 2)
    else:
        step = stride(model)
        if isinstance(tile, int):
            asked: tuple[int, int] = (tile, tile)
        else:
            asked = size if tile == "whole" or math.prod(size) <= WHOLE else (min(size[0], TILE), min(size[1], TILE))
        edges = (step * math.ceil(asked[0] / step), step * math.ceil(asked[1] / step))
        margins = (min(MARGIN, edges[0] // 2), min(MARGIN, edges[1] // 2))
    if overlap is not None:
        if count("overlap", overlap) >= min(edges):
            raise ValueError(f"overlap={overlap} must be less than the tile's edge, {min(edges)}")
        margins = (overlap, overlap)
    return edges, margins, _LOCAL[model]


def _checked(model: BaseAE, x: Any) -> tuple[Tensor, bool]:
    """(images (B, C, H, W), whether x was one image)."""
    shape = model.input_shape
    if len(shape) != 3:
        kind = {1: "vectors", 2: "sequences", 4: "volumes"}[len(shape)]
        raise ValueError(
            f"denoise takes models of images, input_shape=(channels, height, width); this {model.name} takes {kind} of shape {shape}: "
            "model.reconstruct(x) denoises those"
        )
    if isinstance(x, Tensor):
        images = x.detach()
    elif type(x).__module__ == "numpy":
        images = torch.from_numpy(x.copy())
    else:
        raise TypeError(f"x must be a tensor or an array of images, (C, H, W) or (B, C, H, W); got {type(x).__name__}")
    if images.dim() not in (3, 4):
        hint = "; a grey image needs its channel axis: x[None]" if images.dim() == 2 and shape[0] == 1 else ""
        raise ValueError(
            f"x has shape {tuple(images.shape)}; denoise takes one image (C, H, W) or several (B, C, H, W){hint}"
        )
    single = images.dim() == 3
    images = images[None] if single else images
    if not images.numel():
        raise ValueError(f"x has shape {tuple(x.shape)}: it holds no pixel")
    if images.shape[1] != shape[0]:
        last = "; it looks channels-last: " + ("x.transpose(2, 0, 1)" if single else "x.transpose(0, 3, 1, 2)")
        hint = last.replace("transpose", "permute" if isinstance(x, Tensor) else "transpose")
        raise ValueError(
            f"x has shape {tuple(x.shape)}, {images.shape[1]} channels, and this {model.name} takes {shape[0]}"
            + (hint if images.shape[3] == shape[0] else "")
        )
    if not images.is_floating_point():
        scale = "; scale it first: x.float() / 255" if images.dtype == torch.uint8 else ""
        raise TypeError(f"x has dtype {images.dtype}; denoise takes floating point{scale}")
    bad = int((~torch.isfinite(images)).sum())
    if bad:
        raise ValueError(f"x holds {bad} values that are not finite (NaN or infinite) among {images.numel()}")
    if model.likelihood.support:  # noise goes beyond the range of the data, but not by as much as all of it
        low, high = model.likelihood.support
        if float(images.min()) < 2 * low - high or float(images.max()) > 2 * high - low:
            model.likelihood.check(float(images.min()), float(images.max()))
    return images, single


def _condition(condition: Any, n: int, like: Tensor) -> Tensor | None:
    """One entry for each image, on the device of the model: (n,) labels or (n, K) vectors."""
    if condition is None:
        return None
    told = torch.as_tensor(condition)
    told = told.to(like.device, like.dtype if told.is_floating_point() else told.dtype)
    if told.is_floating_point() and told.dim() < 2:  # one vector for all, or one number
        told = told.reshape(1, -1).expand(n, -1)
    elif told.dim() == 0:  # one label for all
        told = told.expand(n)
    if len(told) != n:
        raise ValueError(f"condition has {len(told)} entries for {n} images; give one for each, or one for all")
    return told


def _bar(progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(desc="denoise", unit=" tiles", delay=2, leave=False, disable=not progress)
