"""Denoisers that predict the noise.

Legend: B batch, P numbers that the likelihood needs per data element; x data, y noisy data, r the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as fn
from ..backbones.unet import UNet
from ..base import BaseAE, Pass, Spec
from ..likelihoods import Likelihood
from ..registry import register


class Residual(nn.Module):
    """y (B, *input_shape) -> (B, P, *input_shape): y - r(y) for the location, r(y) for what else there is."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, y: Tensor) -> Tensor:
        r = self.network(y)
        return torch.cat([y[:, None] - r[:, :1], r[:, 1:]], 1)


@register("unet_denoiser")
class UNetDenoiser(BaseAE):
    """Blind denoiser with a U-Net r that predicts the noise: y = x + sigma eps, x^ = y - r(y), loss(x, x^), sigma drawn for each
    sample from a range.

    Papers: Zhang et al. 2017, arXiv:1608.03981 (DnCNN: eq. 1's residual learning, section III-D's blind range, up to 55/255 there);
    Ronneberger et al. 2015, arXiv:1505.04597, for the network; Mohan et al. 2019, arXiv:1906.05478, for `unet(bias=False)`.
    Deviations: a U-Net, where DnCNN is a chain of convolutions with batch norms; the likelihood scores x^ against x, which for
    squared errors is DnCNN's |r(y) - (y - x)|^2, here as a mean over dims, or in nats.

    There is no narrow code, since the skips go around it: the code is the denoised sample itself, `encode` denoises, and `decode`
    only takes the likelihood's mean (z has the shape of a sample; for likelihoods with P > 1 numbers per element a leading axis
    of P). `latent_dim` is the number of channels of the network's bottleneck. Likelihoods whose decoder emits logits (bce,
    bernoulli, continuous_bernoulli) get r(y) as logits, without the residual.

    Args (beside those of `BaseAE`): `corruption`: noise on the input, Gaussian with sigma from 0 to 50/255 by default. It is
    there in evaluation mode too (when='always'), since the loss on clean data tells nothing; `encode` and `reconstruct` denoise
    what they are given. Metric "denoised_mse": squared error per element of x^."""

    paper = "arXiv:1608.03981"
    backbones = ("unet",)
    main_metric = "denoised_mse"
    backbone: UNet

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 128,
        *,
        backbone: Spec = "unet",
        corruption: Spec = "gaussian(sigma=(0.0, 0.196), when='always')",
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, corruption=corruption, **base)
        if any(c.where == "latent" for c in self.corruptions):
            raise ValueError("unet_denoiser has no code between encoder and decoder: where='latent' must be 'input'")

    def build_networks(self) -> None:
        network: nn.Module = self.backbone.network(self.input_shape, self.latent_dim, self.likelihood.num_params)
        located = type(self.likelihood).mean is Likelihood.mean  # the first number is the mean itself, no logit
        self.encoder, self.decoder = Residual(network) if located else network, nn.Identity()

    @property
    def latent_shape(self) -> tuple[int, ...]:
        p = self.likelihood.num_params
        return self.input_shape if p == 1 else (p, *self.input_shape)

    def hidden(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.encoder(x).reshape(x.shape[0], *self.latent_shape)

    def emit(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return z.reshape(z.shape[0], -1, *self.input_shape)

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super().propagate(x, target, condition)
        with torch.no_grad():
            error = fn.full(self.likelihood.mean(out.params)) - fn.full(x if target is None else target)
        return out._replace(metrics={"denoised_mse": fn.per_sample_mean(error.square())})
