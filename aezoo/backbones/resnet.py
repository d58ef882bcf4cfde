"""Residual convolutional backbone in 1-D, 2-D and 3-D, for any size and channel count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..blocks import ResnetDecoder, ResnetEncoder, as_map, halved
from .base import BACKBONES, Backbone, checked


@BACKBONES.register("resnet")
class Resnet(Backbone):
    """Residual blocks (group norm, SiLU) on levels of `widths` channels, then one linear layer to the code; mirrored in the decoder.

    The arrangement of latent diffusion's autoencoder (Rombach et al. 2021, arXiv:2112.10752): each level but the last halves every axis
    by a stride-2 convolution, rounding up; the decoder doubles positions and crops to the exact size. A code that is a grid
    has that of the last level. Between the two ends lie two more blocks.

    `input_shape`: (L,) is one channel of length L, (C, L), (C, H, W) or (C, D, H, W). `blocks`: per level in the encoder, one more in
    the decoder. `groups`: of the norms, at most, as far as they divide the channels; by default 32, of four channels at least.
    `attention`: one head over all positions of the smallest map, between two blocks of its own. `attention_levels`: those whose every
    block is followed by one, too, 0 being the largest map. `dropout`: within the blocks.
    Stable Diffusion's sizes: widths=(128, 256, 512, 512), blocks=2, attention=True."""

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        groups: int | None = None,
        attention: bool = False,
        dropout: float = 0.0,
        attention_levels: Sequence[int] = (),
    ):
        self.widths = checked(self.name, widths, "silu", "none", dropout)
        if not self.widths:
            raise ValueError("resnet: widths=() holds no level; give at least one channel count, e.g. (32,)")
        for key, value in {"blocks": blocks, **({} if groups is None else {"groups": groups})}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"resnet: {key}={value!r} must be an integer of at least 1")
        levels = range(len(self.widths))
        fine = isinstance(attention_levels, Sequence) and not isinstance(attention_levels, str)
        if not fine or not all(type(i) is int and i in levels for i in attention_levels):
            raise ValueError(
                f"resnet: attention_levels={attention_levels!r} must be levels, integers from 0 (the largest map) to {levels[-1]}"
            )
        self.options: dict[str, Any] = {
            "blocks": blocks,
            "groups": groups,
            "attention": bool(attention),
            "dropout": dropout,
            "attention_levels": tuple(attention_levels),
        }

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        smallest = (self.widths[-1], *self.grid(input_shape))
        encoder = ResnetEncoder(input_shape, self.widths, None, **self.options)
        decoder = ResnetDecoder(input_shape, self.widths, self.widths[-1], num_params, **self.options)
        flat = math.prod(smallest)
        return (
            nn.Sequential(encoder, nn.Flatten(1), nn.Linear(flat, code_params * latent_dim)),
            nn.Sequential(nn.Linear(latent_dim, flat), nn.Unflatten(1, smallest), decoder),
        )

    def build_grid(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        encoder = ResnetEncoder(input_shape, self.widths, code_params * latent_dim, **self.options)
        decoder = ResnetDecoder(input_shape, self.widths, latent_dim, num_params, **self.options)
        return encoder, decoder, self.grid(input_shape)

    def grid(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the smallest map."""
        return halved(as_map(input_shape)[1], len(self.widths) - 1)[-1]
