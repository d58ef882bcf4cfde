"""Variational autoencoders trained on tighter bounds, with several draws of z for each x.

Legend: B batch, K latents, M groups of k draws, n = M k; log w = log p(x, z) - log q(z|x). Everything in nats per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from ..base import Pass, Spec, number, positive
from ..registry import choice, register
from ..wholebatch import rows_per_sample
from .variational import Variational


@register("iwae")
class IWAE(Variational):
    """Importance-weighted autoencoder: minimises -L_k = -E[log 1/k sum_i p(x, z_i) / q(z_i|x)], z_1 ... z_k ~ q(z|x).

    Paper: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519 (eq. 8 and 13). L_1 is the ELBO, and L_k rises to log p(x).
    Every density is taken at the draws (no KL in closed form). Deviations: those of `vae`; one layer of latents; the default sigma is that of `vae`, in closed form: it maximises the
    ELBO of these draws, and L_1 exactly; "gaussian(sigma='learned')" is fitted to L_k itself, in more steps.

    Args (beside those of `BaseAE`):
        k: draws for each x; the decoder sees k B rows.
        gradient: "standard", that of the bound; or "dreg", the doubly reparameterised one (Tucker et al. 2018,
            arXiv:1810.04152): the same for decoder, prior and likelihood and in expectation for the encoder, whose signal then
            does not drown in noise as k grows.

    Terms, whose sum is -L_k: "recon" = -log p(x|z) and "kl" = log q(z|x) - log p(z), means over the draws, and "gap" = ELBO - L_k,
    by how much the bound is tighter than the ELBO of the same draws (at most 0). Metrics: "iwae", the bound, and "elbo".
    `forward` returns the first draw and its reconstruction; `encode` returns mu."""

    paper = "arXiv:1509.00519"
    main_metric = "iwae"
    groups = 1  # M
    beta = 0.0  # the ELBO's share of the total

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        k: int = 8,
        gradient: str = "standard",
        likelihood: Spec = "gaussian",
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, likelihood=likelihood, **base)
        self.k = positive("k", k)
        self.gradient = choice("gradient", gradient, ["standard", "dreg"])

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        self.check_input(x)
        if target is not None:
            self.check_input(target, "target")
        self.check_condition(condition, len(x))
        n = self.groups * self.k
        mu, logvar = self.posterior(self.hidden(self.corrupt(x), condition))  # (B, K) each
        mean = fn.full(mu)
        noise = torch.randn(len(x), n, self.latent_dim, dtype=mean.dtype, device=mean.device)
        draws = (
            mean[:, None] + torch.exp(0.5 * logvar)[:, None] * noise
        )  # (B, n, K), not rounded: their densities are asked for
        z = draws.flatten(0, 1)  # (B n, K): the draws of a sample lie behind each other
        with rows_per_sample(n):
            params = self.emit(self.corrupt(z.to(mu.dtype), "latent"), _each(condition, n))
            nll = self.likelihood.nll(params, _each(x if target is None else target, n))
        if self.gradient == "dreg":  # q's parameters act through z alone
            mean, logvar = mean.detach(), logvar.detach()
        log_ratio = -fn.gaussian_nll(z, _each(mean, n), 0.5 * _each(logvar, n)) - self.prior.log_prob(
            z
        )  # log q - log p
        log_w = -(nll + log_ratio).unflatten(0, (-1, self.groups, self.k))  # (B, M, k)
        if self.gradient == "dreg" and z.requires_grad:
            factor = fn.path_factor(log_w, self.beta).flatten()[:, None]
            z.register_hook(lambda gradient: gradient * factor.to(gradient))
        bound, elbo = fn.importance_bound(log_w).mean(1), log_w.mean((1, 2))
        terms = {
            "recon": nll.unflatten(0, (-1, n)).mean(1),
            "kl": log_ratio.unflatten(0, (-1, n)).mean(1),
            "gap": elbo - bound,
        }
        return Pass(params.unflatten(0, (-1, n))[:, 0], draws[:, 0].to(mu.dtype), terms, {"iwae": bound, "elbo": elbo})


@register("miwae")
class MIWAE(IWAE):
    """Multiply importance-weighted autoencoder: minimises -1/M sum_m L_k^(m), the mean of M bounds, each of k draws of its own.

    Paper: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better", arXiv:1802.05538. M = 1 is
    IWAE, k = 1 is the ELBO of M draws; with M k fixed, more groups give the encoder a better signal and a looser bound.
    Deviations: those of `iwae`.

    Args (beside those of `iwae`): `groups`: M. Terms and metrics as in `iwae`; "iwae" is the mean over the groups."""

    paper = "arXiv:1802.05538"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, k: int = 8, groups: int = 4, **base: Any):
        super().__init__(input_shape, latent_dim, k=k, **base)
        self.groups = positive("groups", groups)


@register("ciwae")
class CIWAE(IWAE):
    """Combination of both bounds: minimises -(beta ELBO + (1 - beta) L_k), from the same k draws.

    Paper: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better", arXiv:1802.05538. beta = 0 is
    IWAE, beta = 1 is the ELBO of k draws. Deviations: those of `iwae`.

    Args (beside those of `iwae`): `beta`: the ELBO's share, in [0, 1]. Terms and metrics as in `iwae`; "gap" counts 1 - beta.
    With gradient="dreg" both parts are doubly reparameterised (the ELBO is the bound of one draw)."""

    paper = "arXiv:1802.05538"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, beta: float = 0.5, **base: Any):
        super().__init__(input_shape, latent_dim, **base)
        self.beta = number("beta", beta, "a number in [0, 1]", lambda v: 0 <= v <= 1)

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"gap": 1 - self.beta}


def _each(x: Any, n: int) -> Any:
    """(B, ...) -> (B n, ...): every row n times, one behind the other."""
    return None if x is None else x.repeat_interleave(n, 0)
