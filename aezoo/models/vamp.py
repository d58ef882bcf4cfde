"""Variational autoencoders with a prior that is learned: a mixture.

Legend: B batch, C components, K latents; u pseudo-inputs. Everything in nats per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as fn
from ..base import Terms, positive
from ..registry import choice, register
from .variational import VAE

EDGE = 1e-3  # pseudo-inputs taken from data keep this share of the range between them and its ends


class MixturePrior(nn.Module):
    """p(z) = 1/C sum_c N(z; mu_c, diag exp(logvar_c)); a subclass gives `components`."""

    def components(self) -> tuple[Tensor, Tensor]:
        """mu and logvar, (C, K) each."""
        raise TypeError(f"{type(self).__name__} does not define components()")

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) by logsumexp - log C, nats: (B, K) -> (B,)."""
        return fn.gaussian_mixture_log_prob(z, *self.components())

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws with the dtype and device of `like`: (n, K)."""
        mu, logvar = self.components()
        which = torch.randint(len(mu), (n,), device=like.device, generator=generator)
        noise = torch.randn((n, *shape), dtype=like.dtype, device=like.device, generator=generator)
        return (mu[which] + torch.exp(0.5 * logvar[which]) * noise).to(like.dtype)


class GaussianMixture(MixturePrior):
    """Free means and log-variances. The means start at draws from N(0, I), the variances at 1."""

    def __init__(self, components: int, latent_dim: int):
        super().__init__()
        self.mu = nn.Parameter(torch.randn(components, latent_dim))
        self.logvar = nn.Parameter(torch.zeros(components, latent_dim))

    def components(self) -> tuple[Tensor, Tensor]:
        return self.mu, fn.soft_bound(self.logvar, 10.0)


class VampPrior(MixturePrior):
    """The posteriors of C learned pseudo-inputs: mu_c, logvar_c those of q(z|u_c).

    `posterior_of`: (C, *input_shape) -> mu, logvar; `support`: the range that the likelihood scores, in which a sigmoid keeps the
    pseudo-inputs (None: they are free)."""

    def __init__(
        self,
        components: int,
        input_shape: Sequence[int],
        posterior_of: Callable[[Tensor], tuple[Tensor, Tensor]],
        support: tuple[float, float] | None,
    ):
        super().__init__()
        self.raw = nn.Parameter(torch.randn(components, *input_shape))
        self.posterior_of, self.support = posterior_of, support

    def pseudo_inputs(self) -> Tensor:
        """u, (C, *input_shape), in data space."""
        if self.support is None:
            return self.raw
        low, high = self.support
        return low + (high - low) * torch.sigmoid(self.raw)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Sets the pseudo-inputs to the first C rows of x, (at least C, *input_shape)."""
        if len(x) < len(self.raw) or x.shape[1:] != self.raw.shape[1:]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; {len(self.raw)} pseudo-inputs of shape {tuple(self.raw.shape[1:])} "
                "take as many samples of that shape, or more"
            )
        x = x[: len(self.raw)].to(self.raw)
        if self.support is not None:
            low, high = self.support
            x = torch.logit(((x - low) / (high - low)).clamp(EDGE, 1 - EDGE))
        self.raw.copy_(x)

    def components(self) -> tuple[Tensor, Tensor]:
        return self.posterior_of(self.pseudo_inputs())


@register("vamp_vae")
class VampVAE(VAE):
    """VAE with a learned mixture as its prior: p(z) = 1/C sum_c q(z|u_c), u_c learned pseudo-inputs.

    Paper: Tomczak & Welling 2018, "VAE with a VampPrior", arXiv:1705.07120. KL(q(z|x) || p(z)) has no closed form: it is
    log q(z|x) - log p(z) at the draw that is decoded, whose gradient reaches the encoder through the prior, too.
    Deviations: a sigmoid keeps pseudo-inputs in the range of the likelihood where the paper cuts them off at its ends; they pass
    the encoder as in evaluation (batch norms by their running moments, no dropout), so that they do not mix with the data.

    Args (beside those of `vae`):
        prior: "vamp", or "mog", a mixture of C Gaussians with free means and variances (the paper's comparison).
        components: C. Each step encodes C pseudo-inputs beside the batch.

    `model.prior.start_from(x)` starts the pseudo-inputs at samples (the paper's other way; noise by default). Terms: "recon" and
    "kl"; metric "elbo"."""

    paper = "arXiv:1705.07120"

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        prior: str = "vamp",
        components: int = 100,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        components = positive("components", components)
        if choice("prior", prior, ["vamp", "mog"]) == "mog":
            self.prior = GaussianMixture(components, self.latent_dim)
        else:
            self.prior = VampPrior(components, self.input_shape, self.pseudo_posterior, self.likelihood.support)

    def pseudo_posterior(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|u) for pseudo-inputs, (C, *input_shape) -> mu, logvar, (C, K) each."""
        with self.evaluating():
            return self.posterior(self.hidden(u))

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        if not sample:
            return self.posterior(h)[0], {}
        z, log_q = self.draw(h)
        return z.to(h.dtype), {"kl": log_q - self.prior.log_prob(z)}
