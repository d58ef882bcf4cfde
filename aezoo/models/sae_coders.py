"""Sparse codes between two places, or shared by several.

Legend: B batch, D dims of one place, L layers, K latents; x input, y output, f code, W_enc and W_dec one row per latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as fn
from ..base import AEOutput, Terms
from ..registry import register
from .sae import TopKSAE
from .sae_dictionary import PenalisedSAE, RowDecoder, RowEncoder
from .sae_penalty import start_small


@register("transcoder")
class Transcoder(TopKSAE):
    """Transcoder: predicts y, e.g. the output of a layer, from x, its input, through a sparse code:
    z = relu(TopK(W_enc x + b_enc)), y^ = z W_dec + b_dec (+ W_skip x).

    Nothing is taken from x before it is encoded: b_dec belongs to y.

    Where y comes from:
        `loss(x, target=y)` and `model(x, target=y)`, both of shape (B, *input_shape); without a target x itself is reconstructed.
        pairs=True: `input_shape` is (2, D) (or (2, ...)), a sample is the pair: row 0 is x, row 1 is y. So `aezoo.fit` takes one tensor,
        `torch.stack([x, y], 1)`, (N, 2, D). Then `reconstruct` and `.recon` are pairs, too, with x as it was and y^, so that a squared
        error over the pair is half of that of y^; `decode` gives y^ alone, (B, D).

    Paper: Dunefsky, Chlenski & Nanda 2024, "Transcoders find interpretable LLM feature circuits", arXiv:2406.11944, with the TopK code
    and AuxK of arXiv:2406.04093; skip: Paulo, Shabalin & Belrose 2025, "Transcoders beat sparse autoencoders for interpretability",
    arXiv:2501.18823. Deviations: the paper's first has an L1 penalty; W_enc starts as W_dec^T. The rest is as in `topk_sae`.

    Args (beside those of `topk_sae`):
        skip: adds W_skip x to y^, W_skip starts at 0. `decode`, which does not know x, leaves it out.
        pairs: samples are pairs (x, y), see above."""

    paper = "arXiv:2406.11944"

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 1024,
        *,
        skip: bool = False,
        pairs: bool = False,
        **base: Any,
    ):
        self.pairs = bool(pairs)
        super().__init__(input_shape, latent_dim, **base)
        dims = math.prod(self.sample_shape())
        if isinstance(self.decoder, RowDecoder):
            self.encoder = RowEncoder(self.decoder, dims, centred=False)
        self.skip = nn.Parameter(torch.zeros(self.likelihood.num_params * dims, dims)) if skip else None

    def sample_shape(self) -> tuple[int, ...]:
        if not self.pairs:
            return self.input_shape
        if len(self.input_shape) < 2 or self.input_shape[0] != 2:
            raise ValueError(f"input_shape={self.input_shape} must be (2, ...) with pairs=True: x and y, stacked")
        return self.input_shape[1:]

    def source(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.pairs else x

    def goal(self, x: Tensor, target: Tensor | None) -> Tensor:
        if self.pairs and target is not None:
            raise ValueError("with pairs=True a sample holds its target, x[:, 1]; pass no other")
        return x[:, 1] if self.pairs else super().goal(x, target)

    def past_code(self, params: Tensor, x: Tensor) -> Tensor:
        if self.skip is None:
            return params
        return params + F.linear(self.source(x).flatten(1), self.skip).view_as(params)

    def _paired(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([self.source(x), y.to(x.dtype)], 1) if self.pairs else y

    def forward(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> AEOutput:
        out = super().forward(x, target, condition)
        return out._replace(recon=self._paired(x, out.recon))

    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """y^ from x, by way of the code and of what goes past it; with pairs=True (x, y^)."""
        z = self.encode(x, condition=condition)
        with self.evaluating():
            return self._paired(x, self.likelihood.mean(self.past_code(self.emit(z), x)))


@register("crosscoder")
class Crosscoder(PenalisedSAE):
    """Crosscoder: one sparse code for several layers (or models), f = relu(sum_l W_enc^l x^l + b_enc), x^l^ = f W_dec^l + b_dec^l,
    loss = sum_l |x^l - x^l^|^2 / (L D) + lambda sum_i f_i sum_l ||W_dec,i^l||.

    `input_shape` is (L, D) or (L, ...): the first axis are the layers, and a sample holds what they gave for the same input. Of
    rank 1, (D,), it is a single layer; then this is `l1_sae` with recipe="april2024". Because the penalty adds norms and not squares,
    a latent may belong to some of the layers only.

    Paper: Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model diffing" (Transformer Circuits, October 2024).
    Deviations: the data is not scaled; rows start with norm 0.1 in each layer and W_enc^l as W_dec^l transposed.

    Args (beside those of `BaseAE`):
        weight: lambda; default 1/(L D) with plain losses, 1 with densities. The paper's, beside a sum over layers and dims,
            divided by L D.
        warmup: optimiser steps over which lambda rises linearly from 0.
        dead_after: samples of training without a positive value after which a latent counts as dead.

    Terms: "recon"; "sparsity", the weighted sum above per sample. Metrics: "l0", "dead", "fvu"."""

    paper = "Lindsey et al. 2024"
    backbones = ("linear",)

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 1024, **base: Any):
        super().__init__(input_shape, latent_dim, **base)
        self.num_layers = self.input_shape[0] if len(self.input_shape) > 1 else 1
        with torch.no_grad():
            norms = self.layer_norms().clamp_min(1e-12)  # (K, L)
            start_small(self, (0.1 / norms)[:, None, :, None].expand(self._by_layer().shape).flatten(1))

    def _by_layer(self) -> Tensor:
        """W_dec as (K, P, L, D)."""
        assert isinstance(self.decoder, RowDecoder)
        return self.decoder.weight.view(self.latent_dim, self.likelihood.num_params, self.num_layers, -1)

    def layer_norms(self) -> Tensor:
        """||W_dec,i^l||, (K, L): which layers each latent belongs to."""
        return torch.linalg.vector_norm(fn.full(self._by_layer()), dim=(1, 3))

    def bottleneck(self, h: Tensor, sample: bool) -> tuple[Tensor, Terms]:
        f = torch.relu(h)
        return f, {"sparsity": fn.weighted_l1(f, self.layer_norms().sum(1))}
