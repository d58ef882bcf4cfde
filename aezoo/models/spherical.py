"""Variational autoencoders whose latents lie on a sphere.

Legend: B batch, K the dimension of the space around the sphere S^(K-1); mu mean direction, kappa concentration. Everything in nats
per sample; densities on the sphere with respect to its area.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as fn
from ..base import Code
from ..registry import register
from .variational import VAE


class UniformOnSphere(nn.Module):
    """p(z) = 1 / area of S^(K-1), |z| = 1."""

    def log_prob(self, z: Tensor) -> Tensor:
        """(B, K) -> (B,), a constant."""
        return fn.full(z).new_full((len(z),), -fn.sphere_log_area(z.shape[1]))

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws with the dtype and device of `like`: (n, K)."""
        z = torch.randn((n, *shape), dtype=like.dtype, device=like.device, generator=generator)
        return F.normalize(z, dim=1)


@register("svae")
class SVAE(VAE):
    """Hyperspherical VAE: E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)), q = vMF(mu, kappa), p uniform on the unit sphere.

    Paper: Davidson et al. 2018, "Hyperspherical variational auto-encoders", arXiv:1804.00891. `latent_dim` is the dimension of the
    space around the sphere: the latents have K - 1 degrees of freedom. mu is the first half of the encoder's output, made a unit
    vector, and kappa = 1 + softplus(mean of the second half), the paper's with one linear unit. As K grows past some tens, the KL
    of any useful kappa grows, too: take K small.

    Deviations: the gradient of the angle between mu and z is the implicit one (arXiv:1805.08498), which has the expectation of the
    paper's reparameterised acceptance *with* its score-function correction, and no such term's variance; all proposals of Wood's
    sampler are drawn at once (32 for each z).

    Args as for `vae`; `latent_dim` is at least 2. Terms: "recon" and "kl"; metrics "elbo" and "kappa". `encode` returns mu."""

    paper = "arXiv:1804.00891"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 8, **base: Any):
        super().__init__(input_shape, latent_dim, **base)
        if self.latent_dim < 2:
            raise ValueError(
                f"latent_dim={latent_dim!r} must be an integer of at least 2: svae's latents lie on a sphere in it"
            )
        self.prior = UniformOnSphere()

    def posterior(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output (B, 2K) -> mu (B, K), kappa (B,)."""
        direction, concentration = fn.full(h).chunk(2, dim=1)
        return F.normalize(direction, dim=1), 1 + F.softplus(concentration.mean(1))

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        mu, kappa = self.posterior(h)
        z = fn.vmf_draw(mu, kappa) if sample else mu
        return Code(z.to(h.dtype), {"kl": fn.vmf_kl(kappa, self.latent_dim)}, {"kappa": kappa.detach()})

    def draw(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mu, kappa = self.posterior(h)
        z = fn.vmf_draw(mu, kappa)
        return z, fn.vmf_log_prob(z, mu, kappa)
