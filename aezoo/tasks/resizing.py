"""Whether a model's weights fit images of any size, and the model for another size on the same weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..base import BaseAE
from ..randomness import forked_rng
from ..registry import plain

PROBE = 160  # edge of the image on which `local` looks how far a change reaches
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def resized(model: BaseAE, height: int, width: int) -> BaseAE | None:
    """The same model for images (C, height, width), on the very weights of `model` (no copies), in evaluation mode; None where some
    weight depends on the size, or the model's pieces have no names to be built by. The global RNG is left as it was."""
    channels = model.input_shape[0]
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("prior.")}
    with forked_rng(torch.device("cpu")):
        try:
            args: dict[str, Any] = {**plain(model.config), "input_shape": (channels, height, width)}
            other = type(model)(**args)
        except (TypeError, ValueError):
            return None
    wanted = {k: v.shape for k, v in other.state_dict().items() if not k.startswith("prior.")}
    if wanted != {k: v.shape for k, v in state.items()}:
        return None
    like = next(model.parameters())
    other.to(device=like.device, dtype=like.dtype)  # buffers that are in no state
    other.load_state_dict(state, strict=False, assign=True)
    return other.eval().requires_grad_(False)


def stride(model: nn.Module) -> int:
    """A number of pixels of which sizes may be multiples so that every strided convolution divides them evenly."""
    return math.prod(max(m.stride) for m in model.modules() if isinstance(m, _CONVOLUTIONS))


@torch.no_grad()
def local(model: BaseAE, condition: Tensor | None = None) -> bool:
    """Whether the model takes images of any size and a pixel of the result depends on pixels near it only, so that a large image may go
    through it as a whole: `resized` works, and a change in one corner of an image does not reach the opposite quarter.

    Attention, norms over the whole map and codes that are one vector reach everywhere (or do not fit another size)."""
    step = stride(model)
    edge = step * math.ceil(max(PROBE, 2 * max(model.input_shape[1:])) / step)
    other = resized(model, edge, edge)
    if other is None:
        return False
    like, draw = next(model.parameters()), torch.Generator().manual_seed(0)
    x = torch.rand(1, model.input_shape[0], edge, edge, generator=draw)
    changed = x.clone()
    changed[..., : edge // 8, : edge // 8] = 1 - changed[..., : edge // 8, : edge // 8].round()
    try:
        a, b = (other.reconstruct(t.to(like), condition)[..., edge // 2 :, edge // 2 :] for t in (x, changed))
    except (RuntimeError, ValueError):  # a pass that is written for one size
        return False
    return a.shape == x[..., edge // 2 :, edge // 2 :].shape and bool((a - b).abs().max() <= 1e-6)
