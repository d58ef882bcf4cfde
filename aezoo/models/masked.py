"""Autoencoders that see a few patches and must fill in the others.

Legend: B batch, C channels, N patches, V visible ones, M masked ones, S elements per channel of a patch, K numbers per patch's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as fn
from ..backbones.vit import PatchDecoder, PatchEncoder, ViT
from ..base import BaseAE, Pass, Spec, number
from ..registry import register


class MaskToken(nn.Module):
    """Puts the tokens that there are to their places, and one learned token to all others."""

    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, tokens: Tensor, index: Tensor, count: int) -> Tensor:
        """tokens (B, V, W), their places index (B, V) -> (B, count, W)."""
        blank = self.token.to(tokens.dtype).expand(len(tokens), count, -1)
        return fn.put_rows(blank, index, tokens)


@register("mae")
class MaskedAE(BaseAE):
    """Masked autoencoder: M of N patches are hidden, the encoder sees the V others only, the decoder sees their codes and a mask token
    in place of each hidden patch, and

        loss = loss(x, x^), x^ = d(e(visible patches)), over the hidden patches alone: their mean for plain losses, and for densities
        -log p(hidden | visible) in nats.

    Paper: He et al. 2021, arXiv:2111.06377 (section 3). Every sample draws its own set of exactly M = round(mask_ratio * N) patches (at
    least one, and one stays visible), in evaluation mode too, since the loss is defined by that draw.
    Deviations: no class token; a layer norm after the embedding of the patches; a linear layer from the encoder's width to latent_dim numbers per patch, where the paper's leads
    to the decoder's width; learned positions that start as the paper's fixed ones (`vit(positions='sincos')`).

    Args (beside those of `BaseAE`):
        latent_dim: K, numbers per patch; the code is (K, *grid).
        mask_ratio: fraction of the patches that is hidden.
        norm_pixels: the target of each patch is (t - mean) / sqrt(var + 1e-6) over its own values (the paper's normalised
            pixels). `decode`, `reconstruct` and `recon` are in these units then, so that "mse" says nothing; "masked_mse" does.
        backbone: "vit" with any of its options: `patch`, `width`, `depth`, `decoder_width`, `decoder_depth`, ...

    Term "recon"; metric "masked_mse": squared error per element of the hidden patches. `forward`: z holds 0 for hidden patches,
    recon is the decoder's output everywhere, of which nothing trains the visible part. `encode` sees all patches, for features:
    `encode(x).flatten(2).mean(2)`, and nothing is drawn. `reconstruct` decodes that, which is no objective of the training: what
    it shows of visible patches is chance. Where the patch size does not divide an axis, the elements of patches at the edge are
    repeated to fill them, and scored so."""

    paper = "arXiv:2111.06377"
    spatial = True
    backbones = ("vit",)
    main_metric = "masked_mse"
    backbone: ViT
    encoder: PatchEncoder
    decoder: PatchDecoder

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 64,
        *,
        mask_ratio: float = 0.75,
        norm_pixels: bool = False,
        backbone: Spec = "vit(decoder_width=64, decoder_depth=2)",
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
        if not self.likelihood.elementwise:
            raise ValueError(
                f"mae scores the hidden patches, and likelihood={self.likelihood.name!r} whole pictures; take likelihood='mse'"
            )
        self.mask_ratio = number("mask_ratio", mask_ratio, "a number between 0 and 1", lambda v: 0 < v < 1)
        layout = self.encoder.layout
        if layout.num_patches < 2:
            raise ValueError(
                f"mae needs at least 2 patches to hide one, but patch={layout.patch} makes one of {layout.size}; take smaller patches"
            )
        self.num_masked = min(layout.num_patches - 1, max(1, round(self.mask_ratio * layout.num_patches)))
        self.norm_pixels = bool(norm_pixels)
        values = self.encoder.embed.in_features
        if norm_pixels and values < 2:
            raise ValueError(f"norm_pixels=True needs patches of at least 2 values; patch={layout.patch} has 1")
        if norm_pixels and self.likelihood.support:
            raise ValueError(
                f"norm_pixels=True makes targets below 0 and above 1, and likelihood={self.likelihood.name!r} needs them within "
                f"{list(self.likelihood.support)}; take likelihood='{'gaussian' if self.likelihood.density else 'mse'}'"
            )
        self.mask_token = MaskToken(self.decoder.embed.out_features)

    def draw_mask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Places of visible and of hidden patches for each sample, (B, V) and (B, M)."""
        noise = torch.rand(
            x.shape[0], self.encoder.layout.num_patches, device=x.device
        )  # a row for each sample of the batch
        return fn.split_by_noise(noise, self.num_masked)

    def fill_in(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """x, places (B, V) -> codes of these patches (B, V, K), and the decoder's output (B, P, *input_shape)."""
        seen = fn.take_rows(self.encoder.tokens(x), visible)  # (B, V, W)
        codes = self.encoder.head(self.encoder.features(seen))
        tokens = self.decoder.embed(self.corrupt(codes, "latent"))
        return codes, self.decoder.data(self.mask_token(tokens, visible, self.encoder.layout.num_patches))

    def targets(self, x: Tensor) -> Tensor:
        """What is to be predicted: (B, *input_shape) -> (B, N, C, S)."""
        patches = self.encoder.layout.patchify(x)
        return fn.normalize_patches(patches) if self.norm_pixels else patches

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        self.check_input(x)
        if target is not None:
            self.check_input(target, "target")
        self.check_condition(condition, len(x))
        visible, hidden = self.draw_mask(x)
        codes, params = self.fill_in(self.corrupt(x), visible)
        wanted = fn.take_rows(self.targets(x if target is None else target), hidden)  # (B, M, C, S)
        given = fn.take_rows(self.encoder.layout.patchify(params), hidden)  # (B, M, P * C, S)
        wanted, given = (t.transpose(1, 2).flatten(2) for t in (wanted, given))  # (B, C, M * S), (B, P * C, M * S)
        given = given.reshape(len(x), -1, *wanted.shape[1:])  # (B, P, C, M * S)
        with torch.no_grad():
            error = fn.per_sample_mean((fn.full(self.likelihood.mean(given)) - fn.full(wanted)).square())
        blank = codes.new_zeros(x.shape[0], self.encoder.layout.num_patches, self.latent_dim)
        z = fn.put_rows(blank, visible, codes).transpose(1, 2).reshape(x.shape[0], *self.latent_shape)
        return Pass(params, z, {"recon": self.likelihood.nll(given, wanted)}, {"masked_mse": error})
