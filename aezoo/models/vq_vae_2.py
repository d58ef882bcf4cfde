"""VQ-VAE-2: a coarse code for the whole, a fine one for what the coarse one leaves open.

Legend: B batch, C channels of a code vector (`latent_dim`), T vectors of both levels; h bottom features, e code vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import BACKBONES
from ..base import Code, Spec, Terms
from ..figures import shown
from ..quantizers import Quantized, VectorQuantizer
from ..registry import register
from .quantized import QuantizedAE, weight

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@register("vq_vae_2")
class VQVAE2(QuantizedAE):
    """Two-level vector quantisation: x -> bottom features h -> top code; h and what the top code says -> bottom code; both -> x^.

    Paper: Razavi et al. 2019, arXiv:1906.00446 (section 3.1, algorithm 1). Loss as of `vq_vae`, summed over the levels.
    Deviations: those of `vq_vae`; one network decodes the top code, half of its channels for the bottom's code and half for x^; by
    default plain convolutions that halve four and two times less, where the paper has residual blocks and maps of 1/4 and 1/8.

    Args (beside those of `vq_vae`): backbone: between x and the bottom's features. top_backbone: between those and the top code.
    Both levels have codebooks of `num_codes` vectors of `latent_dim` channels.

    A code is (latent_dim, T): the vectors of the top's grid, then those of the bottom's; indices are (T,). Terms as of `vq_vae`.
    Metrics: "perplexity" and "usage", means over the levels, and "perplexity_top", "perplexity_bottom"."""

    paper = "arXiv:1906.00446"
    weight_keywords = ("beta",)

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        backbone: Spec = "conv(widths=(64, 128))",
        top_backbone: Spec = "conv(widths=(128,))",
        num_codes: int = 512,
        codebook: str = "ema",
        decay: float = 0.99,
        revive: float = 0.1,
        rotation: bool = False,
        init: str = "data",
        beta: float = 0.25,
        **base: Any,
    ):
        self._top_spec = top_backbone
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
        self.beta = weight("beta", beta)
        options = {"codebook": codebook, "decay": decay, "revive": revive, "rotation": rotation, "init": init}
        self.quantizer, self.top_quantizer = (
            VectorQuantizer(num_codes, self.latent_dim, reduction=self.reduction, **options)  # type: ignore[arg-type]
            for _ in range(2)
        )

    def build_networks(self) -> None:
        """The bottom's pair has 2 C channels in the middle: features on the way in, both levels' vectors on the way out."""
        c = self.latent_dim
        self.encoder, self.decoder, self.bottom_grid = self.backbone.build_grid(
            self.input_shape, 2 * c, 1, self.likelihood.num_params
        )
        top = BACKBONES.build(self._top_spec)
        self.top_encoder, self.top_decoder, self.top_grid = top.build_grid((2 * c, *self.bottom_grid), c)
        self.merge = _CONV[len(self.bottom_grid) - 1](3 * c, c, 1)
        self.top_size = math.prod(self.top_grid)
        self.grid = (self.top_size + math.prod(self.bottom_grid),)

    def from_top(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Top code (B, C, *top_grid) -> what it tells the bottom's quantiser, and what it tells the decoder: (B, C, *bottom_grid)."""
        said, shown = self.top_decoder(e)[:, 0].chunk(2, 1)  # (B, 1, 2C, *bottom_grid)
        return said, shown

    def both(self, h: Tensor) -> tuple[Quantized, Quantized]:
        """Bottom features (B, 2C, *bottom_grid) -> the top's and the bottom's code."""
        top = self.top_quantizer.counted(self.top_encoder(h))
        return top, self.quantizer.counted(self.merge(torch.cat([h, self.from_top(top.z)[0]], 1)))

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        top, bottom = self.both(h)
        z = torch.cat([top.z.flatten(2), bottom.z.flatten(2)], 2)  # (B, C, T)
        terms: Terms = {name: term + bottom.terms[name] for name, term in top.terms.items()}
        metrics = {name: (value + bottom.metrics[name]) / 2 for name, value in shown(top.metrics).items()}
        for name, book in (("top", top), ("bottom", bottom)):
            metrics |= {f"perplexity_{name}": book.metrics["perplexity"], f"codes.{name}": book.metrics["codes."]}
        return Code(z, terms, metrics)

    def emit(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        top, bottom = z.tensor_split([self.top_size], 2)
        shown = self.from_top(top.unflatten(2, self.top_grid))[1]
        return self.decoder(torch.cat([bottom.unflatten(2, self.bottom_grid), shown], 1))

    def after_step(self) -> None:
        self.top_quantizer.after_step()
        self.quantizer.after_step()

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"commitment": self.beta}

    def indices_of(self, h: Tensor) -> Tensor:
        top, bottom = self.both(h)
        return torch.cat([top.indices.flatten(1), bottom.indices.flatten(1)], 1)

    def by_codebook(self, indices: Tensor) -> dict[str, Tensor]:
        top, bottom = indices.tensor_split([self.top_size], 1)
        return {"top": top, "bottom": bottom}

    def codes(self, indices: Tensor) -> Tensor:
        top, bottom = indices.tensor_split([self.top_size], 1)
        return torch.cat([self.top_quantizer.codes(top), self.quantizer.codes(bottom)], 2).to(self._weights_dtype())
