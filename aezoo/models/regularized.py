"""Deterministic autoencoders with a smooth decoder, whose latents get a prior afterwards.

Legend: B batch, D data dims, K latents; D(z) the decoder's mean in data space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .. import functional as fn
from ..backbones.base import Tied
from ..base import BaseAE, Pass, Terms, number
from ..registry import choice, register

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def jacobian_square(f: Callable[[Tensor], Tensor], z: Tensor, probes: int) -> Tensor:
    """||df/dz||_F^2 per sample, (B,), for an f that treats each sample by itself; differentiable in z and in what f depends on.

    `probes` > 0: Hutchinson's unbiased estimate, the mean of |v^T J|^2 over that many sign vectors v in data space, each one more
    backward pass; 0: exactly, by K forward-mode passes."""
    if probes == 0:
        basis = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device).view(-1, *z.shape[1:])
        columns = (torch.func.jvp(f, (z,), (e.expand_as(z),))[1] for e in basis)
        return torch.stack([fn.per_sample(c.square()) for c in columns]).sum(0)
    out, pull = torch.func.vjp(f, z)[:2]
    return fn.hutchinson_jacobian(pull, out, probes)


@register("rae")
class RAE(BaseAE):
    """Regularised autoencoder: recon + beta |z|^2 / 2 + weight * R(decoder), without a draw or a KL.

    - penalty="l2": R = |theta|^2, the squares of the decoder's weights and biases;
    - penalty="gp": R = ||dD(z)/dz||_F^2 at the code of each sample, the decoder's slope by z;
    - penalty="sn": no R; spectral norm on every layer of the decoder that has a weight (for a convolution, of its kernel
      as a matrix), which bounds the slope.

    Paper: Ghosh et al. 2020, "From variational to deterministic autoencoders", arXiv:1903.12436. Sampling
    is for afterwards: `aezoo.fit_prior(model, data, "gmm")` gives it the paper's ex-post density estimate.
    Deviations: the gradient penalty is estimated without bias from `probes` random directions, and taken of the decoder as it is in
    evaluation mode (no dropout, batch norms by their running moments), where each sample has a slope of its own.

    Args (beside those of `BaseAE`):
        penalty: see above.
        beta: weight of the code's term; by default 1e-4 with plain losses, which are means over the D dims, and D times that with
            densities, which are sums.
        weight: that of R, by default 1e-6 (l2) or 1e-5 (gp), and D times that with densities.
        probes: directions for "gp"; 0: the exact norm, at K times the cost of a decoder pass.

    Terms: "recon"; "latent" = |z|^2 / 2 summed over latents; "decoder" = R ("l2", "gp"). Plain `encode`, no random numbers but the
    probes'."""

    paper = "arXiv:1903.12436"
    weight_keywords = ("beta", "weight")

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        penalty: str = "l2",
        beta: float | None = None,
        weight: float | None = None,
        probes: int = 1,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.penalty = choice("penalty", penalty, ["l2", "gp", "sn"])
        scale = math.prod(self.input_shape) if self.likelihood.density else 1
        beta = 1e-4 * scale if beta is None else beta
        self.beta = number("beta", beta, "a number of at least 0", lambda v: 0 <= v < math.inf)
        weight = {"l2": 1e-6, "gp": 1e-5, "sn": 0.0}[penalty] * scale if weight is None else weight
        self.weight = number("weight", weight, "a number of at least 0", lambda v: 0 <= v < math.inf)
        self.probes = int(number("probes", probes, "an integer of at least 0", lambda v: v >= 0 and v.is_integer()))
        if penalty == "sn":
            self.bound_decoder()

    def bound_decoder(self) -> None:
        """Spectral norm on the decoder's layers."""
        layers = [m for m in self.decoder.modules() if isinstance(m, LAYERS)]
        if not layers:
            raise ValueError(
                f"penalty='sn' needs decoder layers with weights of their own; backbone={self.backbone.name!r} has none"
            )
        for layer in layers:
            parametrizations.spectral_norm(layer)

    def decoder_weights(self) -> list[Tensor]:
        """Everything that the decoder multiplies with or adds, weights that it shares with the encoder included."""
        tied = [m.owner.weight for m in self.decoder.modules() if isinstance(m, Tied)]
        return [*self.decoder.parameters(), *tied]

    def slope(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """||dD(z)/dz||_F^2 of each sample, (B, *latent_shape) -> (B,)."""
        with self.evaluating():
            return jacobian_square(lambda z: fn.full(self.likelihood.mean(self.emit(z, condition))), z, self.probes)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        return h, {"latent": 0.5 * fn.per_sample(h.square())}

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super().propagate(x, target, condition)
        if self.penalty == "sn":
            return out
        if self.penalty == "gp":
            decoder = self.slope(out.z, condition)
        else:
            decoder = torch.stack([fn.full(w).square().sum() for w in self.decoder_weights()]).sum()
        return out._replace(terms={**out.terms, "decoder": decoder})

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"latent": self.beta, "decoder": self.weight}
