"""The convolutional presets. Any model becomes convolutional by backbone="conv"; these two are asked for by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import functional as fn
from ..base import Pass, Spec, number
from ..registry import register
from .vanilla import AE
from .variational import VAE


@register("conv_ae")
class ConvAE(AE):
    """A plain autoencoder with strided convolutions, in 1-D, 2-D or 3-D by the rank of `input_shape`: min loss(x, x^),
    h_i = s(W_i * h_{i-1} + b_i) at every second place, h_0 = x, and transposed convolutions back.

    Paper: Masci et al. 2011, "Stacked convolutional auto-encoders for hierarchical feature extraction".
    Deviations: strided convolutions where the paper pools, trained at once and not layer by layer."""

    paper = "Masci et al. 2011"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "conv", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


@register("conv_vae")
class ConvVAE(VAE):
    """The variational autoencoder with strided convolutions: minimises

    pixel E_q[-log p(x|z)] + beta KL(q(z|x) || N(0, I)) + ms_ssim E_q[1 - MS-SSIM(x, x^)],  pixel = 1 and ms_ssim = 0 by default.

    Papers: Kingma & Welling 2013, arXiv:1312.6114 (eq. 10), with the kind of network of Radford et al. 2015, arXiv:1511.06434; the last
    term is the reconstruction of Snell et al. 2017, arXiv:1511.06409 (pixel=0 leaves it alone, as there).
    Deviations: those of `vae`; no batch norm by default (`conv(norm='batch')`), one more linear layer between maps and code.

    Args (beside those of `vae`):
        ms_ssim: weight of the multi-scale structural dissimilarity (0 to 1, see `functional.ms_ssim`), which counts beside nats: some
            hundreds for pictures of 28x28. The data must lie in [0, 1].
        pixel: weight of the likelihood's own term. "elbo" is -(recon + kl) whatever it is."""

    weight_keywords = (*VAE.weight_keywords, "pixel")

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        backbone: Spec = "conv",
        ms_ssim: float = 0.0,
        pixel: float = 1.0,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
        self.ms_ssim = number("ms_ssim", ms_ssim, "a number of at least 0", lambda v: 0 <= v < math.inf)
        self.pixel = number("pixel", pixel, "a number of at least 0", lambda v: 0 <= v < math.inf)
        if self.ms_ssim and len(self.input_shape) < 2:
            raise ValueError(
                f"ms_ssim={ms_ssim!r} compares pictures; a sample of shape {self.input_shape} has no places"
            )
        if not self.pixel and not self.ms_ssim:
            raise ValueError("pixel=0 leaves no reconstruction in the loss; give ms_ssim a weight above 0")

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super().propagate(x, target, condition)
        if not self.ms_ssim:
            return out
        likeness = fn.ms_ssim(self.likelihood.mean(out.params), x if target is None else target)
        return out._replace(terms={**out.terms, "ms_ssim": 1 - likeness})

    def term_weights(self) -> dict[str, float | Tensor]:
        return {**super().term_weights(), "recon": self.pixel, "ms_ssim": self.ms_ssim}
