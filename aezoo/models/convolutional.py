"""The convolutional presets. Any model becomes convolutional by backbone="conv"; these two are asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base import Spec
from ..registry import register
from .vanilla import AE
from .variational import VAE


@register("conv_ae")
class ConvAE(AE):
    """A plain autoencoder with strided convolutions, in 1-D, 2-D or 3-D by the rank of `input_shape`.

    Paper: Masci et al. 2011, "Stacked convolutional auto-encoders for hierarchical feature extraction".
    Deviations: strided convolutions where the paper pools, trained at once and not layer by layer."""

    paper = "Masci et al. 2011"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "conv", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("conv_vae")
class ConvVAE(VAE):
    """The variational autoencoder with strided convolutions.

    Paper: Kingma & Welling 2013, arXiv:1312.6114, with the kind of network of Radford et al. 2015, arXiv:1511.06434."""

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "conv", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
