"""Sparse autoencoders that pay for the latents they use.

Legend: B batch, D data dims, K latents; x data, f code, W_enc and W_dec one row per latent, b_enc and b_dec biases, lambda the weight
of the penalty. How lambda relates to the papers', whose squared error is a sum over dims, says `PenalisedSAE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as fn
from ..base import Terms, number
from ..registry import choice, register
from .sae_dictionary import PenalisedSAE, RowDecoder, RowEncoder


def start_small(model: PenalisedSAE, norms: Tensor | float = 0.1) -> None:
    """Decoder rows of norm 0.1 (`norms`: a factor, or one for each element of a row), W_enc the same, no b_dec taken from x."""
    assert isinstance(model.decoder, RowDecoder)
    with torch.no_grad():
        model.decoder.weight.mul_(norms)
    model.encoder = RowEncoder(model.decoder, math.prod(model.sample_shape()), centred=False)


@register("l1_sae")
class L1SAE(PenalisedSAE):
    """Sparse autoencoder with an L1 penalty: f = relu(W_enc x + b_enc), x^ = f W_dec + b_dec.

    recipe="2023": x - b_dec is encoded; loss = |x - x^|^2 / D + lambda sum_i f_i; decoder rows are unit vectors, normalised after every
        step, and the part of their gradient along the row is taken away before it, so that Adam's moments never see it.
    recipe="april2024": x is encoded; loss = |x - x^|^2 / D + lambda sum_i f_i ||W_dec,i||, rows are free; W_enc starts as W_dec^T, rows
        of norm 0.1, biases 0. The paper raises lambda from 0 over the first 5 % of training: `warmup=` that many steps.

    Paper: Bricken et al. 2023, "Towards monosemanticity: decomposing language models with dictionary learning" (2023), and Conerly
    et al. 2024, "Update on how we train SAEs" (Transformer Circuits, April 2024).
    Deviations: no resampling of dead latents (2023); b_dec starts at 0, not at the data's geometric median. The papers scale the data
    (2024: to a mean squared norm of D, with lambda 5) and clip gradients to norm 1, which is `clip=1.0` of `fit`; here the data is taken
    as it is, and lambda D is 1 by default.

    Args (beside those of `BaseAE`):
        recipe: "2023" or "april2024".
        weight: lambda; default 1/D with plain losses, 1 with densities. The paper's lambda, beside a sum over dims, divided by D.
        warmup: optimiser steps over which lambda rises linearly from 0.
        dead_after: samples of training without a positive value after which a latent counts as dead.

    Terms: "recon"; "sparsity", sum_i f_i or sum_i f_i ||W_dec,i|| per sample. Metrics: "l0", "dead", "fvu"."""

    paper = "Bricken et al. 2023"
    backbones = ("linear",)

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 1024,
        *,
        recipe: str = "2023",
        weight: float | None = None,
        warmup: int = 0,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, weight=weight, warmup=warmup, **base)
        self.recipe = choice("recipe", recipe, ["2023", "april2024"])
        if recipe == "2023":
            self.project_rows()
        else:
            start_small(self)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        f = torch.relu(h)
        if self.recipe == "2023":
            return f, {"sparsity": fn.per_sample(f)}
        assert isinstance(self.decoder, RowDecoder)
        return f, {"sparsity": fn.weighted_l1(f, torch.linalg.vector_norm(fn.full(self.decoder.weight), dim=1))}


@register("jump_relu_sae")
class JumpReLUSAE(PenalisedSAE):
    """JumpReLU sparse autoencoder: f = z H(z - theta), z = W_enc (x - b_dec) + b_enc, loss = |x - x^|^2 / D + lambda sum_i H(z_i - theta_i).

    Each latent has a threshold theta >= 0 of its own, which is learned though a step function has no gradient: df/dtheta is estimated
    as -(theta / eps) K((z - theta) / eps) and dH/dtheta as -(1 / eps) K((z - theta) / eps), K(u) = 1[|u| < 1/2], on the z before the jump.

    Paper: Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders",
    arXiv:2407.14435. Deviations: theta itself is the parameter (kept at least 0 after every step), where the paper's code learns its
    logarithm; the paper scales the data to a mean squared norm of 1, for which its eps and first theta are 0.001, while here the data
    is taken as it is: for elements of size 1 the same share of z's spread is some 0.05 to 0.1.

    Args (beside those of `BaseAE`):
        weight: lambda; default 0.1/D with plain losses, 0.1 with densities. The paper's, beside a sum over dims, divided by D.
        warmup: optimiser steps over which lambda rises linearly from 0.
        bandwidth: eps. Too narrow, and no sample of a batch moves a threshold.
        threshold: theta at the start.
        dead_after: samples of training without a positive value after which a latent counts as dead.
        normalize_decoder: decoder rows stay unit vectors, and their gradients have no part along them.

    Thresholds, jump and penalty are computed in float32.
    Terms: "recon"; "sparsity", the number of latents above their threshold. Metrics: "l0", "dead", "fvu"."""

    paper = "arXiv:2407.14435"
    backbones = ("linear",)
    lam = 0.1

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 1024,
        *,
        weight: float | None = None,
        warmup: int = 0,
        bandwidth: float = 0.1,
        threshold: float = 0.1,
        normalize_decoder: bool = True,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, weight=weight, warmup=warmup, **base)
        self.bandwidth = number("bandwidth", bandwidth, "a number above 0", lambda v: 0 < v < math.inf)
        start = number("threshold", threshold, "a number of at least 0", lambda v: 0 <= v < math.inf)
        self.threshold = nn.Parameter(torch.full((self.latent_dim,), start))
        if normalize_decoder:
            self.project_rows()

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        f = fn.jump_relu(h, self.threshold, self.bandwidth)
        return f.to(h.dtype), {"sparsity": fn.per_sample(fn.step_above(h, self.threshold, self.bandwidth))}

    def after_step(self) -> None:
        super().after_step()
        with torch.no_grad():
            self.threshold.clamp_(min=0)


@register("gated_sae")
class GatedSAE(PenalisedSAE):
    """Gated sparse autoencoder: whether a latent is active, and how much, are two questions with one weight matrix.

        gate = W_gate (x - b_dec) + b_gate,   magnitude = exp(r) * W_gate (x - b_dec) + b_mag,   f = 1[gate > 0] relu(magnitude)
        loss = |x - x^(f)|^2 / D + lambda sum_i relu(gate_i) + |x - x^_frozen(relu(gate))|^2 / D

    So the penalty shrinks the gate alone and not the magnitudes. In the last term, "aux", which gives the gate a reason to be open,
    the decoder is frozen in both its uses: neither W_dec and b_dec that decode nor the b_dec that is taken from x get a gradient
    of it. One product with W_gate serves both paths.

    Paper: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", arXiv:2404.16014 (section 3.2).
    Deviations: W_gate starts as W_dec^T and all biases and r as 0; no resampling of dead latents; the data is not scaled.

    Args (beside those of `BaseAE`):
        weight: lambda; default 1/D with plain losses, 1 with densities. The paper's, beside a sum over dims, divided by D.
        warmup: optimiser steps over which lambda rises linearly from 0.
        dead_after: samples of training without a positive value after which a latent counts as dead.
        normalize_decoder: decoder rows stay unit vectors, and their gradients have no part along them.

    Terms: "recon"; "sparsity", sum_i relu(gate_i) per sample; "aux", in the unit of "recon". Metrics: "l0", "dead", "fvu"."""

    paper = "arXiv:2404.16014"
    backbones = ("linear",)

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int = 1024, *, normalize_decoder: bool = True, **base: Any
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.log_scale = nn.Parameter(torch.zeros(self.latent_dim))  # r
        self.magnitude_bias = nn.Parameter(torch.zeros(self.latent_dim))
        if normalize_decoder:
            self.project_rows()

    def hidden(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """W_gate x: the one product. What b_dec takes from it is the same for all samples."""
        assert isinstance(self.encoder, RowEncoder)
        return F.linear(self.source(x).flatten(1), self.encoder.weight)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        assert isinstance(self.encoder, RowEncoder)
        centred = h - self.encoder.weight @ self.encoder.pre_bias
        gate = centred + self.encoder.bias
        magnitude = torch.relu(self.log_scale.exp() * centred + self.magnitude_bias)
        return magnitude * (gate > 0), {"sparsity": fn.per_sample(torch.relu(gate))}

    def more_terms(self, h: Tensor, params: Tensor, goal: Tensor) -> Terms:
        assert isinstance(self.encoder, RowEncoder) and isinstance(self.decoder, RowDecoder)
        weight, bias = self.decoder.weight.detach(), self.decoder.bias.detach()
        gate = h - self.encoder.weight @ self.encoder.pre_bias.detach() + self.encoder.bias
        by_gate = torch.addmm(bias, torch.relu(gate), weight).view_as(params)
        return {"aux": self.side_cost(by_gate, goal)}
