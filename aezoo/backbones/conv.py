"""Convolutional backbone in 1-D, 2-D and 3-D, for any size and channel count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import BACKBONES, Backbone, Block, Blocks, Tied, channels_last, check_tied, checked, linear_transposed
from .transposed import ConvTranspose2d, conv_transpose2d

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED_F: Any = (F.conv_transpose1d, conv_transpose2d, F.conv_transpose3d)


def _head_transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The transpose of a 1x1 convolution; only as many of its outputs as x has channels (a Gaussian head has more)."""
    return _TRANSPOSED_F[x.dim() - 3](x, weight[: x.shape[1]], bias)


class _ToMap(nn.Unflatten):
    """(B, C * h * w) -> (B, C, h, w) in the order of memory that the convolutions around have (those of `other`), so that what comes
    next need not turn it, nor its gradient."""

    other: Any

    def __init__(self, shape: tuple[int, ...], other: nn.Module):
        super().__init__(1, shape)
        object.__setattr__(self, "other", other)  # not registered as a child

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x.contiguous(memory_format=torch.channels_last) if channels_last(self.other.weight) else x


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
        sizes = self.sizes(input_shape)
        flat = self.widths[-1] * math.prod(sizes[-1])

        def ends(convs: Sequence[nn.Module]) -> tuple[nn.Module, nn.Module]:
            head = nn.Linear(flat, code_params * latent_dim)
            unhead = Tied(head, linear_transposed, flat) if self.tied else nn.Linear(latent_dim, flat)
            first = nn.Sequential(unhead, _ToMap((self.widths[-1], *sizes[-1]), convs[-1]))
            return Block(head, latent_dim, before=(flat,)), first

        return self._chain(input_shape, ends, num_params)

    def build_grid(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        """The grid is the smallest feature map; a 1x1 convolution each way leads to the code."""
        grid, conv = self.sizes(input_shape)[-1], _CONV[len(input_shape[1:] or (1,)) - 1]

        def ends(convs: Sequence[nn.Module]) -> tuple[nn.Module, nn.Module]:
            head = conv(self.widths[-1], code_params * latent_dim, 1)
            if self.tied:
                return Block(head, latent_dim), Tied(head, _head_transposed, self.widths[-1])
            return Block(head, latent_dim), conv(latent_dim, self.widths[-1], 1)

        return *self._chain(input_shape, ends, num_params), grid

    def sizes(self, input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of the input and of the feature map after each layer: ceil(s / 2)."""
        sizes = [tuple(input_shape[1:] or input_shape)]
        for _ in self.widths:
            sizes.append(tuple(-(-s // 2) for s in sizes[-1]))
        return sizes

    def _chain(
        self,
        input_shape: tuple[int, ...],
        ends: Callable[[Sequence[nn.Module]], tuple[nn.Module, nn.Module]],
        num_params: int,
    ) -> tuple[nn.Module, nn.Module]:
        """Convolutions and their mirror images; `ends` makes, of the convolutions, what leads to the code, and from it to the smallest
        map."""
        if self.tied:
            check_tied(self.name, num_params)
        channels, *size = input_shape if len(input_shape) > 1 else (1, *input_shape)
        rank, pad, sizes = len(size), self.kernel // 2, self.sizes(input_shape)
        widths = [channels, *self.widths]
        convs = [_CONV[rank - 1](a, b, self.kernel, stride=2, padding=pad) for a, b in zip(widths, widths[1:])]
        encoder: list[nn.Module] = [
            Block(
                conv,
                widths[i + 1],
                spatial=rank,
                before=(channels, *size) if i == 0 else None,
                **self.hidden,
            )
            for i, conv in enumerate(convs)
        ]
        head, first = ends(convs)
        decoder = [Block(first, widths[-1], spatial=rank, **self.hidden)]
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
        return Blocks(*encoder, head), Blocks(*decoder)
