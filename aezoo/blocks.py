"""Residual blocks and the encoder and decoder made of them, in 1-D, 2-D and 3-D, for any size and channel count.

Modules and parameters have the names of diffusers' `AutoencoderKL`, so that weights of that layout fit as they are.

Legend: B batch, C channels, T positions of a map; x or h a map (B, C, *size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

CONV: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
EPS = 1e-6  # of the norms
GROUPS, PER_GROUP = 32, 4  # of a group norm: at most so many groups, with so many channels at least


def as_map(input_shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Channels and size of a sample as a map; a vector is one channel."""
    channels, *size = input_shape if len(input_shape) > 1 else (1, *input_shape)
    return channels, tuple(size)


def halved(size: Sequence[int], times: int) -> list[tuple[int, ...]]:
    """The size, and what halving every axis, rounding up, makes of it that many times."""
    sizes = [tuple(size)]
    for _ in range(times):
        sizes.append(tuple(math.ceil(s / 2) for s in sizes[-1]))
    return sizes


def group_norm(channels: int, groups: int | None = None) -> nn.GroupNorm:
    """Group norm with as many groups as divide the channels, at most `groups`. None: at most 32, of four channels at least, since
    a group of one channel would lose its mean, and on a map of one position everything."""
    most, least = (groups, 1) if groups else (GROUPS, PER_GROUP)
    fine = [g for g in range(1, min(most, channels) + 1) if channels % g == 0 and channels // g >= least]
    return nn.GroupNorm(max(fine, default=1), channels, eps=EPS)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), (B, C, *size) -> (B, C', *size); x goes through a 1x1 convolution where C' differs."""

    def __init__(self, rank: int, inputs: int, outputs: int, groups: int | None = None, dropout: float = 0.0):
        super().__init__()
        conv = CONV[rank - 1]
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = conv(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(outputs, outputs, 3, padding=1)
        self.conv_shortcut = conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """x + W_o softmax(q k^T / sqrt(C)) v over the T positions of a map, one head; q, k, v are linear in the normed x."""

    def __init__(self, channels: int, groups: int | None = None):
        super().__init__()
        self.group_norm = group_norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, C, *size) -> (B, T, C)
        q, k, v = (layer(h).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))  # (B, 1, T, C)
        h = self.to_out(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + h.transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Stride-2 convolution, s -> ceil(s / 2): zeros are added after the last position only, one of them on even axes (0, 1) and two on
    odd ones."""

    def __init__(self, rank: int, channels: int):
        super().__init__()
        self.conv = CONV[rank - 1](channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        padding = [n for s in reversed(x.shape[2:]) for n in (0, 1 + s % 2)]  # the last axis comes first
        return self.conv(F.pad(x, padding))


class Upsample(nn.Module):
    """Every position twice along each axis, cropped to `size`, then a convolution."""

    def __init__(self, rank: int, channels: int, size: Sequence[int]):
        super().__init__()
        self.size = tuple(size)
        self.conv = CONV[rank - 1](channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(doubled(x, self.size))

    def extra_repr(self) -> str:
        return f"to {self.size}"


def doubled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour upsampling by 2 that ends at `size`: (B, C, *ceil(size / 2)) -> (B, C, *size)."""
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    for axis, s in enumerate(size, start=2):
        x = x.narrow(axis, 0, s)
    return x


class MidBlock(nn.Module):
    """Residual block, attention (if asked for), residual block."""

    def __init__(self, rank: int, channels: int, groups: int | None, attention: bool, dropout: float):
        super().__init__()
        self.attentions = nn.Sequential(*([Attention(channels, groups)] if attention else []))
        self.resnets = nn.ModuleList(ResnetBlock(rank, channels, channels, groups, dropout) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.resnets
        return after(self.attentions(before(x)))


class Level(nn.Module):
    """Residual blocks of one level, with attention after each if it is asked for."""

    def __init__(
        self, rank: int, inputs: int, outputs: int, blocks: int, attention: bool, groups: int | None, dropout: float
    ):
        super().__init__()
        widths = [inputs, *[outputs] * blocks]
        self.resnets = nn.Sequential(*(ResnetBlock(rank, a, b, groups, dropout) for a, b in zip(widths, widths[1:])))
        self.attentions = nn.ModuleList(Attention(outputs, groups) for _ in range(blocks) if attention)

    def blocks(self, x: Tensor) -> Tensor:
        if not self.attentions:
            return self.resnets(x)
        for block, attention in zip(self.resnets, self.attentions):
            x = attention(block(x))
        return x


class DownBlock(Level):
    """A level, then (but on the last one) half the size."""

    def __init__(
        self,
        rank: int,
        inputs: int,
        outputs: int,
        blocks: int,
        halve: bool,
        attention: bool,
        groups: int | None,
        dropout: float,
    ):
        super().__init__(rank, inputs, outputs, blocks, attention, groups, dropout)
        self.downsamplers = nn.Sequential(*([Downsample(rank, outputs)] if halve else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsamplers(self.blocks(x))


class UpBlock(Level):
    """A level, then (but on the last one) up to `size`."""

    def __init__(
        self,
        rank: int,
        inputs: int,
        outputs: int,
        blocks: int,
        size: Sequence[int] | None,
        attention: bool,
        groups: int | None,
        dropout: float,
    ):
        super().__init__(rank, inputs, outputs, blocks, attention, groups, dropout)
        self.upsamplers = nn.Sequential(*([] if size is None else [Upsample(rank, outputs, size)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.upsamplers(self.blocks(x))


class ResnetEncoder(nn.Module):
    """(B, *input_shape) -> (B, outputs, *grid), each level but the last halving the size; outputs=None: ends before the last convolution,
    with `widths[-1]` channels after norm and SiLU."""

    def __init__(
        self,
        input_shape: Sequence[int],
        widths: Sequence[int],
        outputs: int | None = None,
        blocks: int = 2,
        groups: int | None = None,
        attention: bool = True,
        dropout: float = 0.0,
        attention_levels: Sequence[int] = (),
    ):
        super().__init__()
        self.channels, self.size = as_map(input_shape)
        rank, last = len(self.size), len(widths) - 1
        self.conv_in = CONV[rank - 1](self.channels, widths[0], 3, padding=1)
        self.down_blocks = nn.Sequential(
            *(
                DownBlock(rank, widths[max(i - 1, 0)], width, blocks, i < last, i in attention_levels, groups, dropout)
                for i, width in enumerate(widths)
            )
        )
        self.mid_block = MidBlock(rank, widths[-1], groups, attention, dropout)
        self.conv_norm_out = group_norm(widths[-1], groups)
        self.conv_out = None if outputs is None else CONV[rank - 1](widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x.reshape(x.shape[0], self.channels, *self.size))
        h = self.mid_block(self.down_blocks(h))
        h = F.silu(self.conv_norm_out(h))
        return h if self.conv_out is None else self.conv_out(h)


class ResnetDecoder(nn.Module):
    """(B, inputs, *grid) -> (B, num_params, *input_shape), with one residual block more on each level than the encoder."""

    def __init__(
        self,
        input_shape: Sequence[int],
        widths: Sequence[int],
        inputs: int,
        num_params: int = 1,
        blocks: int = 2,
        groups: int | None = None,
        attention: bool = True,
        dropout: float = 0.0,
        attention_levels: Sequence[int] = (),
    ):
        super().__init__()
        channels, size = as_map(input_shape)
        rank, sizes = len(size), halved(size, len(widths) - 1)
        self.shape = (num_params, *input_shape)
        self.conv_in = CONV[rank - 1](inputs, widths[-1], 3, padding=1)
        self.mid_block = MidBlock(rank, widths[-1], groups, attention, dropout)
        levels = list(range(len(widths) - 1, -1, -1))
        self.up_blocks = nn.Sequential(
            *(
                UpBlock(
                    rank,
                    widths[min(i + 1, levels[0])],
                    widths[i],
                    blocks + 1,
                    sizes[i - 1] if i else None,
                    i in attention_levels,
                    groups,
                    dropout,
                )
                for i in levels
            )
        )
        self.conv_norm_out = group_norm(widths[0], groups)
        self.conv_out = CONV[rank - 1](widths[0], num_params * channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.up_blocks(self.mid_block(self.conv_in(z)))
        return self.conv_out(F.silu(self.conv_norm_out(h))).reshape(z.shape[0], *self.shape)
