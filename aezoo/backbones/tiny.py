"""The small convolutional network of distilled image tokenizers, in 1-D, 2-D and 3-D."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..blocks import CONV, as_map, doubled, halved
from .base import BACKBONES, Backbone

REACH = 3.0  # of a code, see `Clamp`


@BACKBONES.register("tiny")
class Tiny(Backbone):
    """Plain chains of ReLU blocks of `width` channels, without norms: `levels` times a stride-2 convolution and `blocks` blocks down, as
    many doublings up.

    The layout of TAESD (Bohan 2023), whose sizes are width=64, levels=3, blocks=3: encoder and decoder are sequences with its indices,
    and a code is bounded softly to (-3, 3), 3 tanh(z / 3), before it is decoded. Odd sizes are halved upwards, and cropped to
    on the way up. A flat code has one linear layer each way. `signed`: data in [-1, 1] outside, which the layers take as (x + 1) / 2
    and return as 2 x - 1."""

    def __init__(self, width: int = 32, levels: int = 3, blocks: int = 3, signed: bool = False):
        for key, value in {"width": width, "levels": levels, "blocks": blocks}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"tiny: {key}={value!r} must be an integer of at least 1")
        self.width, self.levels, self.blocks, self.signed = width, levels, blocks, bool(signed)

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        encoder, decoder, grid = self.build_grid(input_shape, self.width, 1, num_params)
        smallest = (self.width, *grid)
        flat = math.prod(smallest)
        return (
            nn.Sequential(encoder, nn.Flatten(1), nn.Linear(flat, code_params * latent_dim)),
            nn.Sequential(nn.Linear(latent_dim, flat), nn.Unflatten(1, smallest), decoder),
        )

    def build_grid(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        if self.signed and num_params != 1:
            raise ValueError(
                f"tiny: signed=True needs a likelihood with one decoder output per element; this one needs {num_params}"
            )
        channels, size = as_map(input_shape)
        rank, width, sizes = len(size), self.width, halved(size, self.levels)
        conv = CONV[rank - 1]

        def blocks() -> list[nn.Module]:
            return [ReluBlock(rank, width) for _ in range(self.blocks)]

        down: list[nn.Module] = [conv(channels, width, 3, padding=1), ReluBlock(rank, width)]
        up: list[nn.Module] = [Clamp(), conv(latent_dim, width, 3, padding=1), nn.ReLU()]
        for i in range(self.levels):
            down += [conv(width, width, 3, stride=2, padding=1, bias=False), *blocks()]
            up += [*blocks(), Double(sizes[-2 - i]), conv(width, width, 3, padding=1, bias=False)]
        down += [conv(width, code_params * latent_dim, 3, padding=1)]
        up += [ReluBlock(rank, width), conv(width, num_params * channels, 3, padding=1)]
        encoder = Chain(down, before=(channels, *size), signed=self.signed)
        return encoder, Chain(up, after=(num_params, *input_shape), signed=self.signed), sizes[-1]


class Chain(nn.Sequential):
    """Layers in a row, with a sample's shape set before or after them, and on that side its range [-1, 1] if `signed`."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        before: tuple[int, ...] | None = None,
        after: tuple[int, ...] | None = None,
        signed: bool = False,
    ):
        super().__init__(*layers)
        self.before, self.after, self.signed = before, after, signed

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = x.reshape(x.shape[0], *self.before)
            x = (x + 1) / 2 if self.signed else x
        x = super().forward(x)
        if self.after is not None:
            x = 2 * x - 1 if self.signed else x
            x = x.reshape(x.shape[0], *self.after)
        return x


class ReluBlock(nn.Module):
    """relu(x + three convolutions of x with ReLUs between them)."""

    def __init__(self, rank: int, width: int):
        super().__init__()
        first, second, third = (CONV[rank - 1](width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


class Clamp(nn.Module):
    """3 tanh(z / 3)."""

    def forward(self, z: Tensor) -> Tensor:
        return REACH * torch.tanh(z / REACH)


class Double(nn.Module):
    """Every position twice along each axis, cropped to `size`."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        return doubled(x, self.size)

    def extra_repr(self) -> str:
        return f"to {self.size}"
