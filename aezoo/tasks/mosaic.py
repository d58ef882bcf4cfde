"""Pictures of any size for models of one size, cut without overlap: the whole for models that are convolutional throughout, else parts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..base import BaseAE
from .resizing import resized

WHOLE = 2**21  # pixels up to which a picture goes through a convolutional model at once
EDGE = 1024  # edge of the tiles of larger ones


def channels_of(shape: tuple[int, ...]) -> int | None:
    """Channels of the pictures that a model of this input shape takes; None if it takes none."""
    if len(shape) == 2:
        return 1
    return shape[0] if len(shape) == 3 and shape[0] in (1, 3) else None


def for_size(model: BaseAE, size: tuple[int, int]) -> BaseAE | None:
    """The same model for pictures of another (height, width), sharing its weights; None if its weights do not fit one.

    A model without a grid of codes has none: its linear layers are of one size."""
    if tuple(model.input_shape[-2:]) == size:
        return model
    return resized(model, *size) if model.spatial and len(model.input_shape) == 3 else None


def tile_size(model: BaseAE, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the parts that a picture is coded in."""
    size = (height, width) if height * width <= WHOLE else (min(height, EDGE), min(width, EDGE))
    return size if for_size(model, size) is not None else (model.input_shape[-2], model.input_shape[-1])


def cut(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (C, H, W) -> tiles (T, C, *size), row by row; the last of a row and column are filled up with the edge's values."""
    c, height, width = x.shape
    h, w = size
    down, right = -height % h, -width % w
    x = F.pad(x[None].double(), (0, right, 0, down), mode="replicate")[0].to(x.dtype)
    return x.view(c, (height + down) // h, h, -1, w).permute(1, 3, 0, 2, 4).reshape(-1, c, h, w)


def joined(tiles: Tensor, height: int, width: int) -> Tensor:
    """The picture that `cut` made tiles of."""
    _, c, h, w = tiles.shape
    rows, columns = -(-height // h), -(-width // w)
    whole = tiles.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    return whole[:, :height, :width]
