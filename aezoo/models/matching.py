"""Autoencoders whose codes, all of them together, are to be distributed like the prior.

Legend: B batch, D data dims, K latents; q(z) = E_x q(z|x) the distribution of all codes, p(z) = N(0, I); SW a sliced Wasserstein distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional as fn
from ..base import BaseAE, Code, Terms, number, positive
from ..priors import StandardNormal
from ..registry import choice, register
from ..wholebatch import batch_axis, whole_batch
from .disentangling import WeightedVAE, nonnegative


def checked_kernel(kernel: str, scales: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """Both if they are what `fn.mmd_kernel` takes; else ValueError."""
    choice("kernel", kernel, ["imq", "rbf"])
    several = isinstance(scales, Sequence) and not isinstance(scales, str) and len(scales) > 0
    if not several:
        raise ValueError(f"scales={scales!r} must be numbers above 0, e.g. (0.5, 1.0, 2.0)")
    return kernel, tuple(number("scales", s, "numbers above 0", lambda v: 0 < v < math.inf) for s in scales)


def codes_and_draws(z: Tensor) -> tuple[Tensor, Tensor]:
    """The whole batch's codes, and as many draws from N(0, I), (B, K) -> (N, K) each."""
    z = fn.full(z)
    return whole_batch(z), whole_batch(torch.randn_like(z))


@register("info_vae")
class InfoVAE(WeightedVAE):
    """VAE that need not hide x from z: E_q[-log p(x|z)] + (1 - alpha) KL(q(z|x) || p(z)) + (alpha + lambda - 1) MMD(q(z), p(z)).

    alpha = 0 and lambda = 1 are the VAE; alpha = 1 leaves the MMD alone (MMD-VAE).

    Paper: Zhao, Song & Ermon 2017, arXiv:1706.02262 (eq. 6, with D = MMD).
    Deviations: those of `vae`; by default the inverse multiquadric kernel ("imq"), where the paper has a Gaussian one ("rbf"), and
    lambda = 1000, which the equation leaves open.

    Args (beside those of `BaseAE`):
        alpha: weight of the mutual information between x and z, at most 1.
        lambda_: the paper's lambda, above 0, with alpha + lambda_ >= 1.
        kernel: "imq", C / (C + |a - b|^2), or "rbf", exp(-|a - b|^2 / C), with C = 2 K s.
        scales: the s; of several the mean of the kernels is taken.

    MMD is the unbiased estimate (of the squared distance) between the batch's draws of z and as many of p(z); it may be below 0.
    Terms: "recon", "kl" (nats), "mmd" (0 to 2, no unit). Metric "elbo" = -(recon + kl), a bound whatever alpha and lambda are."""

    paper = "arXiv:1706.02262"
    weight_keywords = ("alpha", "lambda_")

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        alpha: float = 0.0,
        lambda_: float = 1000.0,
        kernel: str = "imq",
        scales: Sequence[float] = (1.0,),
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.alpha = number("alpha", alpha, "a number of at most 1", lambda v: -math.inf < v <= 1)
        self.lambda_ = number("lambda_", lambda_, "a number above 0", lambda v: 0 < v < math.inf)
        if self.alpha + self.lambda_ < 1:
            raise ValueError(
                f"alpha={alpha!r} and lambda_={lambda_!r} must add up to at least 1: that less 1 weighs the MMD"
            )
        self.kernel, self.scales = checked_kernel(kernel, scales)

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        z, terms, _ = super().bottleneck(h, sample)
        if sample:
            terms = {**terms, "mmd": fn.mmd(*codes_and_draws(z), self.kernel, self.scales)}
        return Code(z, terms)

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"kl": 1 - self.alpha, "mmd": self.alpha + self.lambda_ - 1}


class _Matched(BaseAE):
    """recon + weight * divergence(q(z), p(z)) with a deterministic encoder; a subclass gives `divergence`.

    No bound on log p(x), so any likelihood will do, as the cost of a reconstruction. `weight` is that of the papers, beside a cost
    summed over a sample's dims; plain losses are means over the D dims, and the default is 1/D of it with them."""

    generative = True
    weight_keywords = ("weight",)
    DEFAULT = 10.0  # beside a sum over dims

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, weight: float | None = None, **base: Any):
        super().__init__(input_shape, latent_dim, **base)
        self.prior = StandardNormal()
        default = self.DEFAULT if self.likelihood.density else self.DEFAULT / math.prod(self.input_shape)
        self.weight = default if weight is None else nonnegative("weight", weight)

    def divergence(self, z: Tensor, draws: Tensor) -> Terms:
        """The term between codes and draws of the prior, (N, K) each."""
        raise TypeError(f"{type(self).__name__} does not define divergence(z, draws)")

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        return h, self.divergence(*codes_and_draws(h)) if sample else {}


@register("wae_mmd")
class WAEMMD(_Matched):
    """Wasserstein autoencoder with the MMD penalty: cost(x, x^) + weight * MMD(q(z), p(z)), with a deterministic encoder.

    Paper: Tolstikhin et al. 2017, arXiv:1711.01558 (eq. 4, algorithm 2).
    Deviation: the default cost is the mean over dims of the squared error, not their sum, and `weight` is adjusted to it.

    Args (beside those of `BaseAE`):
        weight: lambda. By default the paper's 10 (for MNIST) with a density, 10 / D with a plain loss such as "mse".
        kernel: "imq", C / (C + |a - b|^2) (the paper's choice), or "rbf", exp(-|a - b|^2 / C), with C = 2 K s.
        scales: the s; (1,) is the paper's C. Of several the mean of the kernels is taken.

    The MMD is the unbiased estimate (of the squared distance) between the batch's codes and as many draws of N(0, I); it may be below 0.
    Terms: "recon", "mmd" (0 to 2, no unit)."""

    paper = "arXiv:1711.01558"

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        kernel: str = "imq",
        scales: Sequence[float] = (1.0,),
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.kernel, self.scales = checked_kernel(kernel, scales)

    def divergence(self, z: Tensor, draws: Tensor) -> Terms:
        return {"mmd": fn.mmd(z, draws, self.kernel, self.scales)}

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"mmd": self.weight}


@register("swae")
class SWAE(_Matched):
    """Sliced-Wasserstein autoencoder: cost(x, x^) + weight * SW(q(z), p(z)), with a deterministic encoder.

    SW is the squared 2-Wasserstein distance between the batch's codes and as many draws of N(0, I) after projection to a line, which
    sorting solves, averaged over random directions.

    Paper: Kolouri et al. 2018, arXiv:1804.01947 (algorithm 1).
    Deviation: the default cost is the mean over dims of the squared error, not their sum, and `weight` is adjusted to it.

    Args (beside those of `BaseAE`):
        weight: lambda. By default 10 with a density, 10 / D with a plain loss such as "mse".
        projections: number of directions, drawn anew for every batch.

    Terms: "recon", "sw" (in units of z squared)."""

    paper = "arXiv:1804.01947"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, projections: int = 50, **base: Any):
        super().__init__(input_shape, latent_dim, **base)
        self.projections = positive("projections", projections)

    def divergence(self, z: Tensor, draws: Tensor) -> Terms:
        with batch_axis(None):  # the same directions on every process
            directions = torch.randn(self.projections, self.latent_dim, dtype=z.dtype, device=z.device)
        return {"sw": fn.sliced_wasserstein(z, draws, F.normalize(directions, dim=1))}

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"sw": self.weight}
