"""Transposed convolutions over images, for training on a CPU.

Torch's own are slow there in three places: with a bias, a kernel may be taken that needs twice the time; the gradient of the bias, a
sum over maps whose channels lie last in memory, can take longer than those of kernel and input together; and one output channel takes
as long as sixteen. All are computed here by other means, to the same values. Everywhere else (GPUs, evaluation, compilers, other
precisions) torch's function runs.

Legend: B batch, C and O channels in and out, h w places of the input, k l of the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.core import plain_cpu

Pair = tuple[int, int]


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: Pair, padding: Pair, extra: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, (1, 1), True, extra, 1
        if weight.shape[1] > 1:
            return F.conv_transpose2d(x, weight, None, stride, padding, extra).add_(bias.view(-1, 1, 1))
        taps = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) @ weight.flatten(1)  # (B h w, C) (C, k l) -> (B h w, k l)
        columns = taps.view(x.shape[0], -1, taps.shape[1]).transpose(1, 2)  # (B, k l, h w)
        kernel = weight.shape[2:]
        size = [
            (s - 1) * step - 2 * pad + k + more
            for s, step, pad, k, more in zip(x.shape[2:], stride, padding, kernel, extra)
        ]
        return F.fold(columns, size, kernel, padding=padding, stride=stride).add_(bias)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x, weight), g = ctx.saved_tensors, gradients[0]
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        to_x, to_weight = None, None
        if for_x or for_weight:
            to_x, to_weight, _ = torch.ops.aten.convolution_backward(
                g, x, weight, [weight.shape[1]], *ctx.options, (for_x, for_weight, False)
            )
        to_bias = g.permute(0, 2, 3, 1).reshape(-1, g.shape[1]).sum(0) if for_bias else None
        return to_x, to_weight, to_bias, None, None, None


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0
) -> Tensor:
    """The same as torch's: (B, C, h, w), (C, O, k, l), (O,) -> (B, O, H, W)."""
    stride, padding, extra = (
        tuple(v) if isinstance(v, (tuple, list)) else (v, v) for v in (stride, padding, output_padding)
    )
    trained = torch.is_grad_enabled() and weight.requires_grad
    if (
        bias is None
        or not trained
        or x.dim() != 4
        or not plain_cpu(x)
        or torch.is_autocast_enabled("cpu")
        or not plain_cpu(weight)
    ):
        return F.conv_transpose2d(x, weight, bias, stride, padding, extra)
    y: Tensor = _Transposed.apply(x, weight, bias, stride, padding, extra)
    return y


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's layer by the function above."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or self.groups > 1 or self.dilation != (1, 1):
            return super().forward(x, output_size)
        return conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding, self.output_padding)
