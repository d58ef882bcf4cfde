"""Image networks: VAEs of residual blocks, and tokenizers, which turn pictures into small grids of vectors for other models.

All work on samples of any shape (1-D, 2-D, 3-D and vectors) and size.

Legend: B batch, K latents (channels of a code vector); x data, x^ reconstruction, h encoder output, z code (B, K, *grid).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import functional as fn
from ..base import BaseAE, Pass, Spec, count, number, positive
from ..blocks import CONV
from ..registry import choice, register
from .patchgan import PatchGAN
from .quantized import VQVAE
from .variational import VAE


@register("resnet_vae")
class ResnetVAE(VAE):
    """The variational autoencoder with residual blocks, `backbone="resnet"`: -ELBO = E_q[-log p(x|z)] + beta KL(q(z|x) || N(0, I)),
    with layers h + conv(s(norm(conv(s(norm(h)))))), s(a) = a sigmoid(a).

    Paper: Kingma & Welling 2013, arXiv:1312.6114, with the residual blocks of He et al. 2016, arXiv:1603.05027 (activation first), in the
    arrangement of latent diffusion's autoencoder, arXiv:2112.10752. Deviations: those of `vae`; group norms and SiLU, where He et al.
    have batch norms and ReLU; a linear layer between the last map and the code. Every keyword is one of `VAE`."""

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 32, *, backbone: Spec = "resnet", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)


class Tokenizer(BaseAE):
    """Base of the tokenizers: a grid of code vectors between two 1x1 convolutions, and, where it is asked for, a critic on patches.

    Args (beside those of `BaseAE`), all of `PatchGAN`:
        gan_weight: weight of the adversarial term; it stands beside the reconstruction in the likelihood's units, so a density (a sum
            over dims) wants about D times the weight that a mean does.
        feature_weight: weight of the perceptual term, the mean distance in the critic's features. With both 0 there is no critic.
        gan_start: optimiser steps after which the two begin to count.
        adaptive: the adversarial weight is multiplied by the ratio of the two gradients' norms.
        critic_widths: channels of the critic's layers, each of which halves every axis.
        inner_dim: channels between backbone and 1x1 convolutions (for a Gaussian: of its mean, and as many of its log-variance); None:
            latent_dim.

    Terms of the critic, means over patches: "critic", "adversarial", "features". Metrics: "critic_accuracy", "balance"."""

    spatial = True
    main_metric = "mse"

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int,
        *,
        gan_weight: float = 0.0,
        feature_weight: float = 0.0,
        gan_start: int = 0,
        adaptive: bool = False,
        critic_widths: Sequence[int] = (32, 64),
        inner_dim: int | None = None,
        **base: Any,
    ):
        self.inner_dim = None if inner_dim is None else positive("inner_dim", inner_dim)  # the networks need it
        super().__init__(input_shape, latent_dim, **base)
        weight = number("gan_weight", gan_weight, "a number of at least 0", lambda v: 0 <= v < math.inf)
        features = number("feature_weight", feature_weight, "a number of at least 0", lambda v: 0 <= v < math.inf)
        if isinstance(critic_widths, str) or not isinstance(critic_widths, Sequence) or not critic_widths:
            raise ValueError(f"critic_widths={critic_widths!r} must be positive integers, e.g. (32, 64)")
        widths = [positive("critic_widths", w) for w in critic_widths]
        start, balanced = count("gan_start", gan_start), bool(adaptive) and weight > 0
        self.gan: PatchGAN | None = None
        if weight or features:
            self.gan = PatchGAN(self.input_shape, weight, features, start, balanced, widths)

    def build_networks(self) -> None:
        inner, numbers = self.inner_dim or self.latent_dim, (self.code_params, self.likelihood.num_params)
        self.encoder, self.decoder, self.grid = self.backbone.build_grid(self.input_shape, inner, *numbers)
        conv, params = CONV[len(self.grid) - 1], self.code_params
        self.quant_conv = conv(params * inner, params * self.latent_dim, 1)
        self.post_quant_conv = conv(self.latent_dim, inner, 1)
        for layer in (self.quant_conv, self.post_quant_conv) if inner == self.latent_dim else ():
            nn.init.dirac_(layer.weight)  # the identity at first: a random one would shrink the code
            nn.init.zeros_(layer.bias)

    def hidden(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.quant_conv(super().hidden(x, condition))

    def emit(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().emit(self.post_quant_conv(z), condition)

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super().propagate(x, target, condition)
        if self.gan is None:
            return out
        terms, metrics = self.gan(x if target is None else target, out.params, self.likelihood)
        return out._replace(terms={**out.terms, **terms}, metrics={**out.metrics, **metrics})

    def term_weights(self) -> dict[str, float | Tensor]:
        return {**super().term_weights(), **(self.gan.weights() if self.gan is not None else {})}

    def after_step(self) -> None:
        super().after_step()
        if self.gan is not None:
            self.gan.after_step()


@register("autoencoder_kl")
class AutoencoderKL(Tokenizer, VAE):
    """The tokenizer of latent diffusion: a VAE with a grid of K-dimensional codes and a KL that barely counts,

    E_q[-log p(x|z)] + beta KL(q(z|x) || N(0, I)) + gan_weight E[-C(x^)] + feature_weight E|f(x) - f(x^)|,  beta = 1e-6.

    Paper: Rombach et al. 2021, arXiv:2112.10752 (section 3.1 and appendix G; eq. 25). The likelihood is the paper's absolute error as a
    density, a Laplace of scale 1; both terms are sums over a sample's dims.
    Deviations: a perceptual term in the critic's own features where the paper takes LPIPS, whose network is trained elsewhere, and off by
    default with the critic (gan_weight, feature_weight); the log-variance is bounded softly to (-30, 30) unless logvar="cut"; odd
    sizes are halved upwards and cropped to on the way up.

    `backbone`: any; the default is the paper's network with fewer channels. Stable Diffusion's own is
    "resnet(widths=(128, 256, 512, 512), blocks=2, attention=True)" with latent_dim=4: 83,653,863 parameters, which have the names of
    diffusers' `AutoencoderKL`.

    Args (beside those of `BaseAE`): beta, kl_warmup: as of `VAE`. gan_weight, feature_weight, gan_start, adaptive, critic_widths,
    inner_dim: see `Tokenizer`. logvar: "soft", 30 tanh(v / 30), or "cut", to [-30, 20] as the paper's code does, with no gradient
    beyond. Terms: "recon", "kl", and with a critic "critic", "adversarial", "features"; metrics "elbo",
    "critic_accuracy", "balance". `sample` decodes N(0, I), of which so small a KL leaves the codes far: a prior
    for them is another model's work, as in the paper."""

    paper = "arXiv:2112.10752"

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 4,
        *,
        backbone: Spec = "resnet(widths=(32, 64, 64), blocks=2, attention=True)",
        likelihood: Spec = "laplace(scale=1.0)",
        beta: float = 1e-6,
        logvar: str = "soft",
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, likelihood=likelihood, beta=beta, **base)
        self.logvar = choice("logvar", logvar, ["soft", "cut"])

    def posterior(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output (B, 2K, *grid) -> mu, logvar, (B, K, *grid) each."""
        mu, logvar = h.chunk(2, dim=1)
        return mu, fn.soft_bound(logvar, 30.0) if self.logvar == "soft" else fn.full(logvar).clamp(-30.0, 20.0)


@register("vqgan")
class VQGAN(Tokenizer, VQVAE):
    """The vector-quantised tokenizer with a critic on patches:

    |x - x^| + beta |z - sg(e)|^2 + gan_weight * balance * E[-C(x^)] + feature_weight E|f(x) - f(x^)|.

    Paper: Esser et al. 2020, arXiv:2012.09841 (eq. 4 to 7). Its sizes: latent_dim=256, num_codes=1024,
    backbone="resnet(widths=(128, 128, 256, 256, 512), blocks=2, attention=True)" for 256x256 pixels.
    Deviations: those of `vq_vae` in how the codebook learns; a perceptual term in the critic's own features in place of LPIPS;
    balance = 1 unless adaptive=True (see `PatchGAN`; with it the paper's gan_weight is 0.8); attention by default on the smallest map
    after its blocks, not between them as well (the backbone's attention_levels).

    Args (beside those of `BaseAE` and `VQVAE`): gan_weight, feature_weight, gan_start, adaptive, critic_widths, inner_dim: see
    `Tokenizer`.
    Terms: "recon", "commitment", "critic", "adversarial", "features". Metrics: "perplexity", "usage", "critic_accuracy", "balance"."""

    paper = "arXiv:2012.09841"
    game = True

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 64,
        *,
        backbone: Spec = "resnet(widths=(32, 64, 64), blocks=2, attention=True)",
        likelihood: Spec = "l1",
        gan_weight: float = 0.01,
        feature_weight: float = 0.1,
        **base: Any,
    ):
        base |= {"gan_weight": gan_weight, "feature_weight": feature_weight}
        super().__init__(input_shape, latent_dim, backbone=backbone, likelihood=likelihood, **base)


@register("tiny_ae")
class TinyAE(BaseAE):
    """A small, fast tokenizer without norms and without a distribution: a grid of K-dimensional codes between two plain chains of
    blocks relu(h + conv(relu(conv(relu(conv(h)))))): min loss(x, x^), x^ = d(3 tanh(z / 3)).

    Paper: none; the layout is that of TAESD (Bohan 2023), in the indices of its sequences: `backbone="tiny(width=64)"` with latent_dim=4
    has its sizes. Deviation: trained on reconstruction alone, where TAESD is distilled from a larger tokenizer with a critic.

    Every keyword is one of `BaseAE`; any backbone fits."""

    paper = "Bohan 2023 (TAESD)"
    spatial = True

    def __init__(self, input_shape: Sequence[int], latent_dim: int = 4, *, backbone: Spec = "tiny", **base: Any):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
