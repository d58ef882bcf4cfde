"""Codes that change little where the data changes.

Legend: B batch, D data dims, K latents; x data, h = sigmoid(encoder(x)) the code, J = dh/dx its Jacobian, (K, D) for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as fn
from ..backbones import MLP
from ..base import BaseAE, Pass, Spec, Terms, number, positive
from ..registry import choice, register


@register("contractive_ae")
class ContractiveAE(BaseAE):
    """Contractive autoencoder: h = sigmoid(encoder(x)), loss = recon + lambda ||dh/dx||_F^2 at the clean x.

    method="closed": sum_j (h_j (1 - h_j))^2 ||W_j||^2, exact and as cheap as the code, where the encoder is one layer ("linear");
    method="hutchinson": the mean of ||J^T v||^2 over `draws` random sign vectors v, unbiased, one backward pass each;
    method="exact": all K rows of J, K backward passes in one; for small codes and for comparison;
    method="auto": "closed" where it fits, else "hutchinson".

    Paper: Rifai, Vincent, Muller, Glorot & Bengio 2011, "Contractive auto-encoders: explicit invariance during feature extraction"
    (ICML). Deviations: any encoder (the paper: one layer, tied weights, `backbone="linear(tied=True)"`); squared
    error by default, where the paper has the cross-entropy (`likelihood="bernoulli"`).

    Args (beside those of `BaseAE`):
        weight: lambda. Default 0.1 with densities, which are sums over dims as in the paper, and 0.1/D with plain losses, which are means.
        method, draws: see above.

    Term "contraction": ||J||_F^2 per sample, unweighted; in evaluation mode, too, also where no gradients are recorded. "hutchinson" draws
    from the global RNG in `loss` and `forward`, never in `encode`. With dropout or batch norm J is that of the encoder in evaluation
    mode, which sees each sample by itself."""

    paper = "Rifai et al. 2011 (ICML)"
    weight_keywords = ("weight",)

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 128,
        *,
        weight: float | None = None,
        method: str = "auto",
        draws: int = 1,
        backbone: Spec = "linear",
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
        self.method = choice("method", method, ["auto", "closed", "hutchinson", "exact"])
        one_layer = isinstance(self.backbone, MLP) and not self.backbone.widths
        if method == "auto":
            self.method = "closed" if one_layer else "hutchinson"
        if method == "closed" and not one_layer:
            raise ValueError(
                f"method='closed' needs an encoder of one layer; backbone={self.backbone.name!r} has more: "
                "take backbone='linear', or method='hutchinson'"
            )
        self.draws = positive("draws", draws)
        if weight is None:
            weight = 0.1 if self.likelihood.density else 0.1 / math.prod(self.input_shape)
        steady = (nn.Dropout, nn.modules.batchnorm._BatchNorm)
        self.steady = not any(isinstance(m, steady) for m in self.encoder.modules())
        self.weight = number("weight", weight, "a number of at least 0", lambda v: 0 <= v < math.inf)

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        return torch.sigmoid(h), {}

    def code(self, x: Tensor) -> Tensor:
        """h, (B, K)."""
        return self.bottleneck(self.hidden(x), sample=True)[0]

    def contraction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """h and ||dh/dx||_F^2, (B, K) and (B,), with the gradients of both, also inside `torch.no_grad` where they are not recorded."""
        if self.method == "closed":
            h = self.code(x)
            return h, fn.sigmoid_jacobian(h, self._weight())
        h, pull = torch.func.vjp(self.code, x)[:2]
        if self.method == "exact":
            return h, fn.exact_jacobian(pull, h)
        return h, fn.hutchinson_jacobian(pull, h, self.draws)

    def _weight(self) -> Tensor:
        """W of the only layer, (K, D)."""
        (weight,) = (m.weight for m in self.encoder.modules() if isinstance(m, nn.Linear))
        return weight

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        self.check_input(x)
        if target is not None:
            self.check_input(target, "target")
        self.check_condition(condition, len(x))
        noisy = self.corrupt(x)
        if self.steady:
            h, norm = self.contraction(x)
        else:
            with self.evaluating():
                h, norm = self.contraction(x)
        if noisy is not x or not self.steady:
            h = self.code(noisy)
        params = self.emit(self.corrupt(h, "latent"))
        recon = self.likelihood.nll(params, x if target is None else target)
        return Pass(params, h, {"recon": recon, "contraction": norm}, {})

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"contraction": self.weight}
