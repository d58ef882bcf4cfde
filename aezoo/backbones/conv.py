"""Convolutional backbone in 1-D, 2-D and 3-D, for any size and channel count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn

from .base import BACKBONES, Backbone, Block, Blocks, Tied, check_tied, checked, linear_transposed

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED_F = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@BACKBONES.register("conv")
class Conv(Backbone):
    """Stride-2 convolutions with `widths` channels, then one linear layer to the code; mirrored in the decoder.

    `input_shape`: (L,) is one channel of length L, (C, L), (C, H, W) or (C, D, H, W). Each layer halves every axis, rounding up;
    its mirror image restores the exact size (odd ones too) through the output padding, so nothing is cropped or resized.
    `kernel` is odd. Each hidden layer: convolution, `norm`, `activation`, `dropout`. `tied=True`: the decoder uses the
    encoder's kernels and linear weight, transposed, with biases of its own."""

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        kernel: int = 3,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        tied: bool = False,
    ):
        self.widths = checked(self.name, widths, activation, norm, dropout)
        if not (isinstance(kernel, int) and kernel > 1 and kernel % 2):
            raise ValueError(f"conv: kernel={kernel!r} must be an odd integer of at least 3")
        if not self.widths:
            raise ValueError("conv: widths=() holds no layer; give at least one channel count, e.g. (32,)")
        self.kernel, self.tied = kernel, tied
        self.hidden: dict[str, Any] = {"activation": activation, "norm": norm, "dropout": dropout}

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        if self.tied:
            check_tied(self.name, num_params)
        channels, *size = input_shape if len(input_shape) > 1 else (1, *input_shape)
        rank, pad = len(size), self.kernel // 2
        widths = [channels, *self.widths]
        sizes = [tuple(size)]
        for _ in self.widths:
            sizes.append(tuple(-(-s // 2) for s in sizes[-1]))  # ceil(s / 2)
        flat = widths[-1] * math.prod(sizes[-1])

        convs = [_CONV[rank - 1](a, b, self.kernel, stride=2, padding=pad) for a, b in zip(widths, widths[1:])]
        head = nn.Linear(flat, code_params * latent_dim)
        encoder = [
            Block(conv, widths[i + 1], spatial=rank, before=(channels, *size) if i == 0 else None, **self.hidden)
            for i, conv in enumerate(convs)
        ]
        encoder.append(Block(head, latent_dim, before=(flat,)))

        unhead = Tied(head, linear_transposed, flat) if self.tied else nn.Linear(latent_dim, flat)
        unflatten = nn.Sequential(unhead, nn.Unflatten(1, (widths[-1], *sizes[-1])))
        decoder = [Block(unflatten, widths[-1], spatial=rank, **self.hidden)]
        for i in range(len(convs) - 1, -1, -1):
            # (s-1)*2 - 2*pad + kernel + extra = target  =>  extra = target - (2s - 1), 0 or 1
            extra = tuple(want - (2 * have - 1) for want, have in zip(sizes[i], sizes[i + 1]))
            outputs = widths[i] * (num_params if i == 0 else 1)
            options = {"stride": 2, "padding": pad, "output_padding": extra}
            layer = (
                Tied(convs[i], _TRANSPOSED_F[rank - 1], outputs, **options)
                if self.tied
                else _TRANSPOSED[rank - 1](widths[i + 1], outputs, self.kernel, **options)  # type: ignore[arg-type]
            )
            last = i == 0
            decoder.append(
                Block(
                    layer,
                    outputs,
                    spatial=rank,
                    after=(num_params, *input_shape) if last else None,
                    **({} if last else self.hidden),
                )
            )
        return Blocks(*encoder), Blocks(*decoder)
