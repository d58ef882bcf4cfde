"""Autoencoders with a critic. One optimiser and one backward pass serve both sides, see `aezoo.critics`.

Legend: B batch, K latents; z code, x~ a decoded sample, C the critic's logit (large: real), sg stop-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as fn
from ..base import BaseAE, Code, Pass, Spec, count, number
from ..critics import DataCritic, held, mlp_critic
from ..registry import choice, register
from ..wholebatch import batch_mean
from .variational import VAE


def _weight(name: str, value: Any) -> float:
    return number(name, value, "a number of at least 0", lambda v: 0 <= v < math.inf)


# --------------------------------------------------------------------------------------------------------- critic on codes


class ShapedPrior(nn.Module):
    """What an adversarial autoencoder's codes are to look like: anything that can be drawn from.

    "normal": N(0, I); "uniform": on [-1, 1]^K; "mixture": on each pair of latents ten Gaussians (0.5 x 0.1) around a circle of radius 2,
    as the petals of the paper's figure 5; "swiss_roll": a rolled line on each pair. With `classes` one-hot draws of as many classes follow."""

    def __init__(self, kind: str, classes: int = 0):
        super().__init__()
        self.kind = choice("prior", kind, ["normal", "uniform", "mixture", "swiss_roll"])
        self.classes = classes

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, *shape), with the dtype and device of `like`."""
        how: dict[str, Any] = {"dtype": like.dtype, "device": like.device, "generator": generator}
        style = self._style(n, shape[0] - self.classes, how)
        if not self.classes:
            return style
        index = (torch.rand(n, **how) * self.classes).long().clamp_max(self.classes - 1)
        return torch.cat([style, F.one_hot(index, self.classes).to(style)], 1)

    def _style(self, n: int, k: int, how: dict[str, Any]) -> Tensor:
        if self.kind == "normal":
            return torch.randn(n, k, **how)
        if self.kind == "uniform":
            return 2 * torch.rand(n, k, **how) - 1
        pairs = -(-k // 2)
        turn = torch.rand(n, pairs, **how)
        if self.kind == "swiss_roll":
            angle = 3 * math.pi * torch.sqrt(turn)
            length = 2 * angle / (3 * math.pi)
            across = torch.zeros_like(length)
        else:
            angle = 2 * math.pi * (turn * 10).floor() / 10
            length = 2 + 0.5 * torch.randn(n, pairs, **how)
            across = 0.1 * torch.randn(n, pairs, **how)
        cos, sin = torch.cos(angle), torch.sin(angle)
        both = torch.stack([length * cos - across * sin, length * sin + across * cos], 2)
        return both.flatten(1)[:, :k]


@register("aae")
class AdversarialAE(BaseAE):
    """Adversarial autoencoder: a critic on codes makes their distribution that of the prior,

    E[recon] + weight * E[-log sigmoid C(z)],  while C is trained on E[-log sigmoid C(z')] + E[-log(1 - sigmoid C(z))], z' ~ p(z).

    The prior need not have a density: it is only drawn from. With `num_classes` the code is style and class (figure 8 of the paper): the
    encoder ends in a softmax over classes, a second critic makes it one-hot-like, and labels, where there are any, train it by
    cross-entropy. Labels come with the data (or as `condition=`); -1 marks a sample without one.

    Paper: Makhzani et al. 2015, arXiv:1511.05644 (sections 2 and 5).
    Deviations: reconstruction, critic and encoder step at the same time with one optimiser, where the paper takes turns; the encoder is
    deterministic (the paper's first choice); no batch norm.

    Args (beside those of `BaseAE`):
        prior: "normal", "uniform", "mixture" (ten Gaussians around a circle), "swiss_roll", or a module of your own with
            `sample(n, shape, like, generator)` (that one cannot be written to config.json).
        weight: of the encoder's adversarial term; by default 1 with a density and 0.01 with the plain losses (means over dims).
        num_classes: classes of the semi-supervised model; 0: none.
        widths: hidden units of the critics.

    The code is (latent_dim + num_classes,): style, then class probabilities. Terms: "recon"; "adversarial", nats; "critic", nats, the
    critics' own; "classes", the cross-entropy over labelled samples. In evaluation mode the critics' two have no weight: their opinion
    does not compare across steps, and validation losses must.
    Metrics: "critic_accuracy", 1/2 where the critic cannot tell; "accuracy" of classes, where there are labels."""

    paper = "arXiv:1511.05644"
    generative = True
    takes_condition = True
    game = True

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 8,
        *,
        prior: Any = "normal",
        weight: float | None = None,
        num_classes: int = 0,
        widths: Sequence[int] = (256, 256),
        **base: Any,
    ):
        self.num_classes = count("num_classes", num_classes)
        super().__init__(input_shape, latent_dim, **base)
        if not isinstance(prior, str) and not hasattr(prior, "sample"):
            raise TypeError(f"prior={prior!r} must be a name or a module with sample(n, shape, like, generator)")
        self.prior = ShapedPrior(prior, self.num_classes) if isinstance(prior, str) else prior
        self.weight = _weight("weight", (1.0 if self.likelihood.density else 0.01) if weight is None else weight)
        self.critic = mlp_critic(self.latent_dim, widths=widths)
        self.class_critic = mlp_critic(self.num_classes, widths=widths) if self.num_classes else None

    def build_networks(self) -> None:
        sizes = (self.input_shape, self.latent_dim + self.num_classes, 1, self.likelihood.num_params)
        self.encoder, self.decoder = self.backbone.build(*sizes)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_dim + self.num_classes,)

    def check_condition(self, condition: Tensor | None, n: int) -> None:
        if condition is not None and not self.num_classes:
            return  # labels that came with the data, and that this model has no use for
        super().check_condition(condition, n)
        if condition is not None and (condition.dim() != 1 or condition.is_floating_point()):
            raise ValueError(
                f"condition must be whole-numbered labels of shape ({n},), -1 where there is none; got {condition.dtype} of "
                f"shape {tuple(condition.shape)}"
            )

    def bottleneck(self, h: Tensor, sample: bool) -> Code:
        if not self.num_classes:
            return Code(h, {})
        style, logits = h[:, : self.latent_dim], fn.full(h[:, self.latent_dim :])
        return Code(torch.cat([style, logits.softmax(1).to(h.dtype)], 1), {})

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        self.check_input(x)
        self.check_condition(condition, len(x))
        if target is not None:
            self.check_input(target, "target")
        h = self.hidden(self.corrupt(x))
        z = self.bottleneck(h, sample=True).z
        params = self.emit(self.corrupt(z, "latent"))
        terms = {"recon": self.likelihood.nll(params, x if target is None else target)}
        wanted = self.prior.sample(len(x), self.latent_shape, z).detach()
        k = self.latent_dim
        pairs = [(self.critic, wanted[:, :k], z[:, :k])]
        if self.class_critic is not None:
            pairs.append((self.class_critic, wanted[:, k:], z[:, k:]))
        right = []
        terms |= {"critic": 0.0, "adversarial": 0.0}  # type: ignore[dict-item]
        for critic, real, fake in pairs:
            on_real, on_fake = critic(real), critic(fake.detach())
            terms["critic"] = terms["critic"] + fn.gan_critic(on_real, on_fake)
            terms["adversarial"] = terms["adversarial"] + fn.nonsaturating_generator(held(critic, fake))
            right.append(0.5 * ((on_real > 0).float() + (on_fake <= 0).float()).flatten().detach())
        metrics = {"critic_accuracy": torch.stack(right).mean(0)}
        if self.num_classes and condition is not None:
            logits = fn.full(h[:, k:])
            known = (condition >= 0).float()
            share = batch_mean(known)  # labelled ones of the whole batch: the term's mean is one over them
            cross = F.cross_entropy(logits, condition.clamp_min(0), reduction="none")
            terms["classes"] = cross * known / torch.where(share > 0, share, 1)
            hits = (logits.argmax(1) == condition) * known
            metrics |= {
                "accuracy": batch_mean(hits) / torch.where(share > 0, share, 1),
                "accuracy.over": hits,
                "accuracy.under": known,
            }
        return Pass(params, z, terms, metrics)

    def term_weights(self) -> dict[str, float | Tensor]:
        return {"adversarial": self.weight, "critic": 1.0} if self.training else {"adversarial": 0.0, "critic": 0.0}

    def classify(self, x: Tensor) -> Tensor:
        """Class probabilities, (B, *input_shape) -> (B, num_classes). Raises ValueError on a model without classes."""
        if not self.num_classes:
            raise ValueError("this aae has no classes: make it with num_classes=")
        return self.encode(x)[:, self.latent_dim :]


# ---------------------------------------------------------------------------------------------------------- critic on data


@register("vae_gan")
class VAEGAN(VAE):
    """VAE-GAN: reconstructions are scored in the features of a critic that learns to tell data from what is decoded.

    With l the critic's last hidden layer and x~ the reconstruction, x_p = d(z_p) with z_p ~ p(z):
    encoder: KL + L_l;  decoder: gamma L_l - log C(x~) - log C(x_p);  critic: -log C(x) - 1/2 log(1 - C(x~)) - 1/2 log(1 - C(x_p)),
    L_l = 1/2 ||f_l(x) - f_l(x~)||^2, a unit Gaussian in feature space.

    Paper: Larsen et al. 2016, arXiv:1512.09300 (eq. 5 to 8 and algorithm 1).
    Deviations: all three sides step at the same time; the decoder's adversarial term is the non-saturating one; the two kinds of decoded
    samples share a weight of one. As in the paper the encoder sees no adversarial gradient.

    Args (beside those of `VAE`): gamma: weight of L_l for the decoder; pixel: weight of the likelihood's own term (the paper: 0); widths:
    channels of the critic's layers.

    Terms: "recon" (the likelihood's, nats), "kl", "features" (L_l, nats), "adversarial", "critic". Metric "elbo", the likelihood's. In
    evaluation mode the total is recon + beta KL whatever `pixel` is: distances in the features of a critic that learns do not compare
    across steps, and validation losses must."""

    paper = "arXiv:1512.09300"
    game = True
    weight_keywords = ("beta", "kl_warmup", "pixel")

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        gamma: float = 1.0,
        pixel: float = 0.0,
        widths: Sequence[int] = (32, 64, 128),
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, **base)
        self.gamma = number("gamma", gamma, "a number above 0", lambda v: 0 < v < math.inf)
        self.pixel = _weight("pixel", pixel)
        self.critic = DataCritic(self.input_shape, widths)

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super().propagate(x, target, condition)
        wanted = x if target is None else target
        # L_l counts gamma times for the decoder and once for the encoder
        z = out.z / self.gamma + (out.z - out.z / self.gamma).detach()
        recon = self.likelihood.mean(self.emit(z))
        features = held_features(self.critic, recon) - self.critic.features(wanted).detach()
        drawn = self.prior.sample(len(x), self.latent_shape, out.z)
        fakes = [self.likelihood.mean(self.emit(code)) for code in (out.z.detach(), drawn)]
        on_real = self.critic(wanted)
        critic = torch.stack([fn.gan_critic(on_real, self.critic(fake.detach())) for fake in fakes]).mean(0)
        adversarial = torch.stack([fn.nonsaturating_generator(held(self.critic, fake)) for fake in fakes]).mean(0)
        terms = {
            **out.terms,
            "features": 0.5 * fn.per_sample(features.square()),
            "adversarial": adversarial,
            "critic": critic,
        }
        return out._replace(terms=terms)

    def term_weights(self) -> dict[str, float | Tensor]:
        weights = super().term_weights()
        if not self.training:
            return {**weights, "features": 0.0, "adversarial": 0.0, "critic": 0.0}
        return {**weights, "recon": self.pixel, "features": self.gamma, "critic": 1.0}


def held_features(critic: DataCritic, x: Tensor) -> Tensor:
    """The critic's last hidden layer, with gradients to x and none to the critic."""
    features: Tensor = held(critic.body, x)
    return features


@register("soft_intro_vae")
class SoftIntroVAE(VAE):
    """Soft-IntroVAE: the encoder tells data from decoded draws by its own bound, and no critic is needed.

    With s = 1 / D, x_f = d(z_f) and z_f ~ p(z):
    encoder: s (recon(x) + KL(x)) + 1/2 exp(-2 s (recon(sg x_f) + beta_neg KL(sg x_f)));
    decoder: s recon(x) + s (KL(x_f) + gamma_r recon(sg x_f)).

    Paper: Daniel & Tamar 2021, arXiv:2012.13253 (eq. 4 with alpha = 2, algorithm 1).
    Deviations: encoder and decoder step at the same time; only decoded draws count as false samples, not reconstructions, too; the
    reconstruction is the likelihood's (nats), by default a Gaussian with sigma = 1.

    Args (beside those of `VAE`; `beta` weighs the KLs that are minimised): beta_neg: weight of the KL inside of the exponential; the paper
    takes values up to 1024 for images of many dims; gamma_r: weight of the decoder's reconstruction of its own samples, the paper's 1e-8.

    Terms: "recon", "kl" (nats), "expelbo" (the exponential term), "fake_kl", "fake_recon" (nats). Metric "elbo". In evaluation mode the
    total is s (recon + beta KL): how well the encoder tells false samples does not compare across steps, and validation losses must."""

    paper = "arXiv:2012.13253"
    weight_keywords = ("beta", "kl_warmup")

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        likelihood: Spec = "gaussian(sigma=1.0)",
        beta_neg: float = 1.0,
        gamma_r: float = 1e-8,
        **base: Any,
    ):
        super().__init__(input_shape, latent_dim, likelihood=likelihood, **base)
        self.beta_neg, self.gamma_r = _weight("beta_neg", beta_neg), _weight("gamma_r", gamma_r)

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        out = super().propagate(x, target, condition)
        drawn = self.prior.sample(len(x), self.latent_shape, out.z)
        fake = self.likelihood.mean(self.emit(drawn))
        still = fake.detach()
        z, terms = self.bottleneck(self.hidden(still), sample=True)[:2]
        with _scoring(self.likelihood):
            seen = self.likelihood.nll(held(self.decoder, z), still)
            again = self.likelihood.nll(self.emit(z.detach()), still)
        scale = 1.0 / math.prod(self.input_shape)
        expelbo = 0.5 * torch.exp(-2 * scale * (seen + self.beta_neg * terms["kl"]))
        fake_kl = self.bottleneck(held(self.encoder, fake), sample=True)[1]["kl"]
        return out._replace(terms={**out.terms, "expelbo": expelbo, "fake_kl": fake_kl, "fake_recon": again})

    def term_weights(self) -> dict[str, float | Tensor]:
        scale, kl = 1.0 / math.prod(self.input_shape), super().term_weights()["kl"]
        if not self.training:
            return {"recon": scale, "kl": scale * kl, "expelbo": 0.0, "fake_kl": 0.0, "fake_recon": 0.0}
        return {"recon": scale, "kl": scale * kl, "fake_kl": scale * kl, "fake_recon": scale * self.gamma_r}


@contextmanager
def _scoring(likelihood: nn.Module) -> Any:
    """Inside the block running scales are read and not updated: decoded samples are no data."""
    was, likelihood.training = likelihood.training, False
    try:
        yield
    finally:
        likelihood.training = was
