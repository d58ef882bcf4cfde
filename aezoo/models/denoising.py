"""Autoencoders that see a corrupted input and must give back the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from ..backbones import Blocks
from ..base import AELoss, BaseAE, Spec, Stage, number
from ..registry import register


@register("denoising_ae")
class DenoisingAE(BaseAE):
    """Denoising autoencoder: E[loss(x, d(e(c(x))))] with a corruption c, masking noise by default.

    Paper: Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders"; 2010 for the noises.
    Deviations: squared error by default, where the paper has the cross-entropy (`likelihood="bce"`); each entry is masked with
    probability p by itself, where the paper masks a fixed number of them; several layers of ReLU units, untied, where it has one.
    Every corruption of `aezoo.corruptions` and every keyword of `BaseAE` fits."""

    paper = "Vincent et al. 2008"

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 128, *, corruption: Spec = "masking", **base: Any):
        super().__init__(input_shape, latent_dim, corruption=corruption, **base)


@register("stacked_denoising_ae")
class StackedDenoisingAE(DenoisingAE):
    """Stacked denoising autoencoder: each layer is first trained alone to denoise the (clean) output of the layers below, then
    all are trained together: stage i minimises E||h_{i-1} - d_i(e_i(c(h_{i-1})))||^2 with h_i = e_i(h_{i-1}), h_0 = x, and the last one
    E[loss(x, d(e(c(x))))].

    Paper: Vincent et al. 2010, "Stacked denoising autoencoders" (JMLR 11). Layer i has the encoder's block i and its mirror
    image in the decoder; the lowest is scored by the model's likelihood, the others by the summed squared error per sample.
    Deviation: the fine-tuning here is the whole stack's reconstruction; the paper's is a classifier's.

    Works with backbones of mirrored blocks (mlp, conv, linear). Args (beside those of `BaseAE`): `pretrain`: fraction of all
    steps that goes into pre-training, shared evenly among the layers; the rest fine-tunes the stack."""

    paper = "Vincent et al. 2010 (JMLR 11)"
    encoder: Blocks
    decoder: Blocks

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 128, *, pretrain: float = 0.5, **base: Any):
        super().__init__(input_shape, latent_dim, **base)
        self.pretrain = number("pretrain", pretrain, "a number in [0, 1)", lambda v: 0 <= v < 1)
        if not isinstance(self.encoder, Blocks) or not isinstance(self.decoder, Blocks):
            raise ValueError(
                f"stacked_denoising_ae needs a backbone of mirrored blocks, and {self.backbone.name!r} has none"
            )
        self.num_layers = len(self.encoder)
        self.stage = self.num_layers  # the whole stack, unless the loop says otherwise

    def layer(self, i: int) -> list[torch.nn.Module]:
        """Block i of the encoder and its mirror image in the decoder; the lowest has the likelihood's own scale, if any."""
        pair = [self.encoder[i], self.decoder[self.num_layers - 1 - i]]
        return [*pair, self.likelihood] if i == 0 else pair

    def stages(self) -> list[Stage]:
        whole = Stage("fine-tune", 1.0 - self.pretrain, list(self.parameters()))
        if not self.pretrain:
            return [Stage("fine-tune", 0.0, [])] * self.num_layers + [whole]
        share = self.pretrain / self.num_layers
        layers = [[p for m in self.layer(i) for p in m.parameters()] for i in range(self.num_layers)]
        return [Stage(f"layer {i + 1}", share, ps) for i, ps in enumerate(layers)] + [whole]

    def loss(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> AELoss:
        if self.stage >= self.num_layers:
            return super().loss(x, target, condition)
        self.check_input(x)
        if target is not None or condition is not None:
            raise ValueError("greedy pre-training denoises its own layers: it takes no target and no condition")
        i = self.stage
        encode, decode = self.layer(i)[:2]
        with torch.no_grad(), self.evaluating():
            h = self.encoder[:i](x)  # what the layers below make of the clean input
        out = decode(encode(self.corrupt(h)))
        recon = self.likelihood.nll(out, h) if i == 0 else fn.per_sample((out - h).square())
        total = recon.mean()
        return AELoss(total, {"recon": total}, {})
