"""VAEs whose posterior is bent by a flow.

Legend: B batch, K latents; z_0 ~ N(mu, diag exp(logvar)), z = f(z_0; c) with an invertible f, c a context from the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from ..base import Terms, positive
from ..flows import IAF
from ..registry import register
from .variational import VAE


@register("iaf_vae")
class IAFVAE(VAE):
    """VAE with an inverse autoregressive flow as posterior: log q(z|x) = log N(z_0; mu, exp(logvar)) - log |det df/dz_0|.

    minimises E_q[-log p(x|z)] + beta (log q(z|x) - log p(z)), the KL term by the same single draw of z that is decoded (it has no
    closed form; its expectation is the KL, and a single value can be negative).

    Paper: Kingma et al. 2016, arXiv:1606.04934, algorithm 1 with one shared context. Deviations: sigma = exp of a number bounded
    softly to (-3, 3) rather than a gate; the context has K numbers; no free bits.

    Args (beside those of `VAE`): flow_layers, number of autoregressive layers (the latents' order is reversed between them);
    flow_width, hidden units of each.

    Terms: "recon", and "kl" (one draw), in nats per sample; metric "elbo". `encode` is f at the base's mean, which uses no random
    numbers and is no mean of q. `posterior` returns mu and logvar of the base."""

    paper = "arXiv:1606.04934"
    code_params = 3

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        flow_layers: int = 2,
        flow_width: int = 64,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        layers, width = positive("flow_layers", flow_layers), positive("flow_width", flow_width)
        self.flow = IAF(self.latent_dim, layers, width, context=self.latent_dim)

    def posterior(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output (B, 3K) -> mu, logvar of the base, (B, K) each."""
        mu, logvar, _ = h.chunk(3, dim=1)
        return mu, fn.soft_bound(logvar, 10.0)

    def bend(self, z_0: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """z = f(z_0; c) and log |det df/dz_0|: (B, K) in at least float32, (B,)."""
        z, log_det = self.flow(z_0, h.chunk(3, dim=1)[2])
        return z, log_det

    def draw(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.posterior(h)
        z_0 = fn.full(mu) + torch.exp(0.5 * logvar) * torch.randn_like(fn.full(mu))
        z, log_det = self.bend(z_0, h)
        return z, -fn.gaussian_nll(z_0, mu, 0.5 * logvar) - log_det

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        if not sample:
            return self.bend(self.posterior(h)[0], h)[0].to(h.dtype), {}
        z, log_q = self.draw(h)
        return z.to(h.dtype), {"kl": log_q + fn.gaussian_nll(z, torch.zeros_like(z), 0.0)}
