"""U-Net in 1-D, 2-D and 3-D, for any size and channel count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import ACTIVATIONS, BACKBONES, Backbone, checked
from .transposed import ConvTranspose2d

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
HOMOGENEOUS = ("relu", "leaky_relu", "identity")  # f(a x) = a f(x) for a >= 0


@BACKBONES.register("unet")
class UNet(Backbone):
    """Two convolutions on each level, stride-2 convolutions down, transposed ones up, and what each level saw on the way down joined
    to what comes up: a network from data to data. With these skips there is no code, so only denoisers take it.

    Paper: Ronneberger et al. 2015, arXiv:1505.04597. Deviations: zero-padded convolutions, so that nothing is cropped from the
    output; stride-2 convolutions, where the paper has max-pooling.

    `input_shape`: (L,) is one channel of length L, (C, L), (C, H, W) or (C, D, H, W). `widths`: channels of the levels, of which each
    halves every axis, rounding up; the bottleneck below them has as many channels as the model's latent_dim. `kernel` is odd.
    After each convolution of a level: `norm` ("none", "batch", "layer"), `activation`.
    `bias=False`: no additive constant anywhere, so that f(a x) = a f(x) for a >= 0, and a denoiser works at noise levels that it
    never saw (Mohan et al. 2019, arXiv:1906.05478); with it go activation "relu", "leaky_relu" or "identity" and norm "none"."""

    def __init__(
        self,
        widths: Sequence[int] = (32, 64),
        kernel: int = 3,
        activation: str = "relu",
        norm: str = "none",
        bias: bool = True,
    ):
        self.widths = checked(self.name, widths, activation, norm, 0.0)
        if not self.widths:
            raise ValueError("unet: widths=() holds no level; give at least one channel count, e.g. (32,)")
        if not (isinstance(kernel, int) and kernel > 1 and kernel % 2):
            raise ValueError(f"unet: kernel={kernel!r} must be an odd integer of at least 3")
        if not bias and (activation not in HOMOGENEOUS or norm != "none"):
            raise ValueError(
                f"unet: bias=False needs norm='none' and an activation of {', '.join(HOMOGENEOUS)}, which scale as their input does; "
                f"got norm={norm!r}, activation={activation!r}"
            )
        self.kernel, self.activation, self.norm, self.bias = kernel, activation, norm, bool(bias)

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        raise ValueError(
            "backbone='unet' has skips around its bottleneck, so it is no encoder and decoder; it is for model unet_denoiser"
        )

    def network(self, input_shape: tuple[int, ...], bottleneck: int, num_params: int) -> Network:
        """(B, *input_shape) -> (B, num_params, *input_shape), with `bottleneck` channels on the lowest level."""
        return Network(self, input_shape, [*self.widths, bottleneck], num_params)

    def level(self, rank: int, inputs: int, outputs: int) -> nn.Sequential:
        """Two convolutions."""
        layers: list[nn.Module] = []
        for a in (inputs, outputs):
            layers.append(_CONV[rank - 1](a, outputs, self.kernel, padding=self.kernel // 2, bias=self.bias))
            if self.norm != "none":
                layers.append(_BATCH_NORM[rank - 1](outputs) if self.norm == "batch" else nn.GroupNorm(1, outputs))
            layers.append(ACTIVATIONS[self.activation]())
        return nn.Sequential(*layers)


class Network(nn.Module):
    """What `UNet` describes. `widths`: channels of all levels, the bottleneck's last."""

    def __init__(self, spec: UNet, input_shape: tuple[int, ...], widths: Sequence[int], num_params: int):
        super().__init__()
        channels, *size = input_shape if len(input_shape) > 1 else (1, *input_shape)
        self.channels, self.size, self.shape, rank = channels, tuple(size), (num_params, *input_shape), len(size)
        pairs, options = list(zip(widths, widths[1:])), {"stride": 2, "bias": spec.bias}
        conv: Any = _CONV[rank - 1]
        transposed: Any = _TRANSPOSED[rank - 1]
        self.down = nn.ModuleList(spec.level(rank, a, b) for a, b in zip([channels, *widths], widths))
        self.shrink = nn.ModuleList(conv(a, a, 3, padding=1, **options) for a, _ in pairs)  # s -> ceil(s / 2)
        self.grow = nn.ModuleList(transposed(b, a, 2, **options) for a, b in pairs)  # s -> 2 s
        self.up = nn.ModuleList(spec.level(rank, 2 * a, a) for a, _ in pairs)
        self.last = conv(widths[0], num_params * channels, 1, bias=spec.bias)
        for layer in self.modules():
            if isinstance(layer, (*_CONV, *_TRANSPOSED)) and layer.bias is not None:
                nn.init.zeros_(layer.bias)  # the noise to be predicted may be far smaller than torch's own start
        for level in (*self.down, *self.up):
            for layer in level:
                if isinstance(layer, _CONV):  # sqrt(2 / fan_in): the paper's section 3
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(x.shape[0], self.channels, *self.size)
        skips = []
        for down, shrink in zip(self.down, self.shrink):
            h = down(h)
            skips.append(h)
            h = shrink(h)
        h = self.down[-1](h)
        for grow, up, skip in zip(reversed(self.grow), reversed(self.up), reversed(skips)):
            h = grow(h)
            for axis, s in enumerate(skip.shape[2:], start=2):
                h = h.narrow(axis, 0, s)  # odd sizes: what went down as (s + 1) / 2 comes up as s + 1
            h = up(torch.cat([skip, h], 1))
        return self.last(h).reshape(x.shape[0], *self.shape)
