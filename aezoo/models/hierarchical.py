"""VAEs with several layers of latents, each on a feature map of its own resolution.

Legend: B batch, L layers, numbered from the data up; z_i latents of layer i, t_i features of the top-down path, q posterior, p prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as fn
from ..backbones import Conv
from ..backbones.transposed import ConvTranspose2d
from ..base import Code, Pass, Spec, Terms, number
from ..registry import register
from ..wholebatch import batch_mean
from .variational import VAE

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, ConvTranspose2d, nn.ConvTranspose3d)
BOUND = 5.0  # log-variances of each layer lie softly within (-BOUND, BOUND)

Chooser = Callable[[int, Tensor, Tensor], Tensor]  # (layer, mu_p, logvar_p) -> z of that layer


class BottomUp(nn.Module):
    """x -> what each layer's data say about its latents: (B, *input_shape) -> (B, 2 * sum of the layers' sizes), the means of all
    layers first, then the log-variances."""

    def __init__(self, input_shape: tuple[int, ...], sizes: list[tuple[int, ...]], spec: Conv, latent_dim: int):
        super().__init__()
        conv = _CONV[len(sizes[0]) - 1]
        self.shape = input_shape if len(input_shape) > 1 else (1, *input_shape)
        widths = [self.shape[0], *spec.widths]
        self.down = nn.ModuleList(
            nn.Sequential(
                conv(a, b, spec.kernel, stride=2, padding=spec.kernel // 2), nn.SiLU(),
                conv(b, b, spec.kernel, padding=spec.kernel // 2), nn.SiLU(),
            )
            for a, b in zip(widths, widths[1:])
        )  # fmt: skip
        self.heads = nn.ModuleList(conv(b, 2 * latent_dim, 1) for b in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(x.shape[0], *self.shape)
        means, logvars = [], []
        for down, head in zip(self.down, self.heads):
            h = down(h)
            mu, logvar = head(h).chunk(2, dim=1)
            means.append(mu.flatten(1))
            logvars.append(logvar.flatten(1))
        return torch.cat([*means, *logvars], 1)


class TopDown(nn.Module):
    """The generative path: latents from the top layer to the bottom one, then the data.

    t_L is learned; p(z_L) = N(0, I) and p(z_i | z_>i) = N(mu(t_i), exp(logvar(t_i))); t_{i-1} = up(t_i + conv(z_i))."""

    def __init__(
        self, input_shape: tuple[int, ...], sizes: list[tuple[int, ...]], spec: Conv, latent_dim: int, num_params: int
    ):
        super().__init__()
        rank, kernel, pad = len(sizes[0]), spec.kernel, spec.kernel // 2
        conv, transposed = _CONV[rank - 1], _TRANSPOSED[rank - 1]
        self.input_shape, self.num_params = input_shape, num_params
        self.maps = [(latent_dim, *size) for size in sizes[1:]]  # of z_1, ..., z_L
        self.lengths = [math.prod(m) for m in self.maps]
        widths = [max(8, spec.widths[0]), *spec.widths]
        channels = input_shape[0] if len(input_shape) > 1 else 1
        self.top = nn.Parameter(0.02 * torch.randn(1, widths[-1], *sizes[-1]))
        self.priors = nn.ModuleList(conv(w, 2 * latent_dim, 1) for w in spec.widths[:-1])  # of all layers but the top
        self.take = nn.ModuleList(conv(latent_dim, w, 1) for w in spec.widths)
        self.up = nn.ModuleList()
        for i, w in enumerate(spec.widths):
            # (s-1)*2 - 2*pad + kernel + extra = target
            extra = tuple(want - (2 * have - 1) for want, have in zip(sizes[i], sizes[i + 1]))
            self.up.append(
                nn.Sequential(
                    nn.SiLU(), conv(w, w, kernel, padding=pad), nn.SiLU(),
                    transposed(w, widths[i], kernel, stride=2, padding=pad, output_padding=extra),  # type: ignore[arg-type]
                )
            )  # fmt: skip
        self.out = nn.Sequential(nn.SiLU(), conv(widths[0], channels * num_params, kernel, padding=pad))

    def walk(self, n: int, choose: Chooser, like: Tensor) -> Tensor:
        """Goes down the layers, taking each layer's latents from `choose`; returns t_0, the features before the output."""
        t = self.top.expand(n, *self.top.shape[1:]).to(like.dtype)
        for i in range(len(self.maps) - 1, -1, -1):
            if i == len(self.maps) - 1:
                mu = logvar = like.new_zeros(n, *self.maps[i])
            else:
                mu, logvar = self.priors[i](t).chunk(2, dim=1)
                logvar = fn.soft_bound(logvar, BOUND)
            t = self.up[i](t + self.take[i](choose(i, mu, logvar).to(t.dtype)))
        return t

    def split(self, z: Tensor) -> list[Tensor]:
        """(B, sum of sizes) -> each layer's map."""
        return [part.reshape(z.shape[0], *m) for part, m in zip(z.split(self.lengths, 1), self.maps)]

    def forward(self, z: Tensor) -> Tensor:
        """(B, sum of sizes) -> (B, P, *input_shape)."""
        parts = self.split(z)
        t = self.walk(z.shape[0], lambda i, mu, logvar: parts[i], z)
        return self.out(t).reshape(z.shape[0], self.num_params, *self.input_shape)


class LayeredPrior(nn.Module):
    """p(z) = p(z_L) prod_i p(z_i | z_>i), which is the decoder's."""

    decoder: TopDown

    def __init__(self, decoder: TopDown):
        super().__init__()
        object.__setattr__(self, "decoder", decoder)  # not registered as a child: its weights are in the state once

    def log_prob(self, z: Tensor) -> Tensor:
        """(B, sum of sizes) -> (B,), nats."""
        parts, total = self.decoder.split(z), []

        def choose(i: int, mu: Tensor, logvar: Tensor) -> Tensor:
            total.append(-fn.gaussian_nll(parts[i], mu, 0.5 * logvar))
            return parts[i]

        self.decoder.walk(z.shape[0], choose, z.to(self.decoder.top.dtype))
        return torch.stack(total).sum(0)

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, *shape), with the dtype and device of `like`; layer by layer."""
        parts: dict[int, Tensor] = {}

        def choose(i: int, mu: Tensor, logvar: Tensor) -> Tensor:
            noise = torch.randn(mu.shape, dtype=like.dtype, device=like.device, generator=generator)
            parts[i] = mu + torch.exp(0.5 * logvar) * noise
            return parts[i]

        self.decoder.walk(n, choose, like.new_zeros(n))
        return torch.cat([parts[i].flatten(1) for i in range(len(parts))], 1).reshape(n, *shape).to(like.dtype)


@register("ladder_vae")
class LadderVAE(VAE):
    """Ladder VAE: a layer of latents on every feature map of a convolutional network, inferred from the top down:

    -ELBO = E_q[-log p(x | z)] + beta sum_i KL(q(z_i | x, z_>i) || p(z_i | z_>i)).

    q(z_i | x, z_>i) is the precision-weighted product of what the data say (a bottom-up pass) and of the prior p(z_i | z_>i), so a layer
    that has nothing to say keeps to its prior at no cost.

    Paper: Sonderby et al. 2016, arXiv:1602.02282 (eq. 8 to 14).
    Deviations: convolutional, with latents on maps and a residual top-down path whose features reach p(x|z), as in later hierarchical
    models (VDVAE, arXiv:2011.10650); no batch norm; log-variances softly within (-5, 5).

    Args (beside those of `VAE`):
        latent_dim: channels of the latents of each layer.
        free_bits: nats that each layer's KL (its batch mean) may cost for nothing: sum_i max(KL_i, free_bits) is what is minimised
            (arXiv:1606.04934, eq. 15). 0: the bound itself. A warm-up of the KL, `kl_warmup`, is the paper's own remedy.
        backbone: "conv(widths=..., kernel=...)": a layer for each width, the first next to the data; its other options do not apply.

    The code is every layer's latents behind one another, layer 1 (the finest) first: (B, latent_dim * sum of the maps' sizes).
    Terms: "recon" and "kl", the sum over layers; with free bits "kl_free" in place of "kl". Metrics: "elbo", and "kl_1" to "kl_L", one for
    each layer."""

    paper = "arXiv:1602.02282"
    backbones = ("conv",)
    weight_keywords = ("beta", "kl_warmup")
    decoder: TopDown

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 8,
        *,
        backbone: Spec = "conv",
        free_bits: float = 0.0,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, backbone=backbone, **base)
        self.free_bits = number("free_bits", free_bits, "a number of at least 0", lambda v: 0 <= v < math.inf)
        self.prior = LayeredPrior(self.decoder)

    def build_networks(self) -> None:
        spec = self.backbone
        assert isinstance(spec, Conv)
        sizes = spec.sizes(self.input_shape)
        self.encoder = BottomUp(self.input_shape, sizes, spec, self.latent_dim)
        self.decoder = TopDown(self.input_shape, sizes, spec, self.latent_dim, self.likelihood.num_params)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (sum(self.decoder.lengths),)

    def descend(self, h: Tensor, sample: bool) -> tuple[Tensor, list[Tensor], Tensor]:
        """(z (B, sum of sizes), in at least float32, KL of each layer (B,), log q(z|x) (B,)); `sample=False` takes each layer's posterior mean."""
        mus, logvars = (self.decoder.split(part) for part in h.chunk(2, dim=1))
        kls: dict[int, Tensor] = {}
        zs: dict[int, Tensor] = {}
        log_q: list[Tensor] = []

        def choose(i: int, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
            mu, logvar = fn.precision_weighted(mus[i], fn.soft_bound(logvars[i], BOUND), mu_p, logvar_p)
            zs[i] = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) if sample else mu
            kls[i] = fn.gaussian_kl_between(mu, logvar, mu_p, logvar_p)
            log_q.append(-fn.gaussian_nll(zs[i], mu, 0.5 * logvar))
            return zs[i]

        self.decoder.walk(h.shape[0], choose, h)
        layers = range(len(zs))
        z = torch.cat([zs[i].flatten(1) for i in layers], 1)
        return z, [kls[i] for i in layers], torch.stack(log_q).sum(0)

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        z, kls, _ = self.descend(h, sample)
        terms: Terms = {"kl": torch.stack(kls).sum(0)}
        metrics: Terms = {f"kl_{i + 1}": kl.detach() for i, kl in enumerate(kls)}
        if self.free_bits:
            metrics |= {"kl": terms["kl"].detach()}
            terms = {"kl_free": torch.stack([batch_mean(kl).clamp_min(self.free_bits) for kl in kls]).sum()}
        return Code(z.to(h.dtype), terms, metrics)

    def draw(self, h: Tensor) -> tuple[Tensor, Tensor]:
        z, _, log_q = self.descend(h, sample=True)
        return z, log_q

    def term_weights(self) -> dict[str, float | Tensor]:
        weights = super().term_weights()
        return {"kl_free": weights["kl"]} if self.free_bits else weights

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super(VAE, self).propagate(x, target, condition)
        kl = out.metrics["kl"] if self.free_bits else out.terms["kl"]
        return out._replace(metrics={**out.metrics, "elbo": -(out.terms["recon"] + kl)})
