"""Variational autoencoders that are told something about x beside x itself.

Legend: B batch, K latents, E numbers that a condition becomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..base import Code, Pass, number, positive
from ..registry import register
from .variational import VAE

LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@register("cvae")
class CVAE(VAE):
    """Conditional VAE: -E_q[log p(x|z, c)] + beta KL(q(z|x, c) || p(z)); c is a label or a vector, or is not known.

    Paper: Sohn, Lee & Yan 2015, "Learning structured output representation using deep conditional generative models" (NeurIPS),
    eq. 4, with its prior made independent of the condition (section 4.1), as in Kingma et al. 2014, arXiv:1406.5298.
    Deviations: those of `vae`; 10 % of the conditions are taken for unknown in training by default, so that the model works without
    one, too (`drop=0.0` is the paper's); the condition is added to x, not put beside it, and no baseline network guesses x from c.

    c becomes a learned vector e (E,), an entry of a table or a linear map of the vector. It enters any backbone in the same way:
    a learned linear map of e, of the input's shape and 0 at the start, is added to x before the encoder, and e stands beside z
    before the decoder: the networks are built for K + E latents, and what the encoder says about the last E is not used (so that
    backbones with tied weights fit, too).

    Args (beside those of `vae`):
        num_classes: number of labels (10 if nothing is said); conditions are integers (B,) from 0 to num_classes - 1.
        condition_dim: instead, the length of float vectors (B, condition_dim).
        features: E.
        drop: in training each sample's condition is taken for unknown with this probability, so that a learned e of its own
            stands for `condition=None`.

    `sample(n, condition=...)` takes a label, or one for each sample; without it labels are drawn uniformly (vectors are unknown).
    Raises ValueError for labels out of range, of a wrong dtype or shape; the range is looked at on the CPU only, since on a GPU the
    look would wait for the device. Terms: "recon" and "kl"; metric "elbo"."""

    paper = "Sohn et al. 2015 (NeurIPS)"
    takes_condition = True

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        num_classes: int | None = None,
        condition_dim: int | None = None,
        features: int = 16,
        drop: float = 0.1,
        **base: Any,
    ):
        if num_classes is not None and condition_dim is not None:
            raise ValueError(
                f"num_classes={num_classes!r} and condition_dim={condition_dim!r} exclude each other: labels, or vectors"
            )
        labels = condition_dim is None
        self.num_classes = positive("num_classes", 10 if num_classes is None else num_classes) if labels else None
        self.condition_dim = None if labels else positive("condition_dim", condition_dim)
        self.features = positive("features", features)  # set before the networks are built, which need it
        self.drop = number("drop", drop, "a number in [0, 1]", lambda v: 0 <= v <= 1)
        super().__init__(input_shape, latent_dim, **base)
        self.embedding: nn.Module
        if self.num_classes is not None:
            self.embedding = nn.Embedding(self.num_classes + 1, self.features)  # the last entry: unknown
        else:
            self.embedding = nn.Linear(self.condition_dim or 0, self.features)
            self.unknown = nn.Parameter(torch.randn(self.features))
        self.shift = nn.Linear(self.features, math.prod(self.input_shape), bias=False)
        nn.init.zeros_(self.shift.weight)

    def build_networks(self) -> None:
        numbers = (self.code_params, self.likelihood.num_params)
        self.encoder, self.decoder = self.backbone.build(self.input_shape, self.latent_dim + self.features, *numbers)

    # ------------------------------------------------------------------------------------------------- the condition

    def check_condition(self, condition: Tensor | None, n: int) -> None:
        super().check_condition(condition, n)
        if condition is None:
            return
        if self.num_classes is None:
            if condition.shape != (n, self.condition_dim) or not condition.is_floating_point():
                raise ValueError(
                    f"condition must be floating point of shape ({n}, {self.condition_dim}); got {condition.dtype} of shape "
                    f"{tuple(condition.shape)}"
                )
        elif condition.dtype not in LABELS or condition.dim() != 1:
            raise ValueError(
                f"condition must hold one integer label for each of the {n} samples, shape ({n},); got {condition.dtype} "
                f"of shape {tuple(condition.shape)}"
            )
        elif condition.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check_labels(condition)

    def check_labels(self, labels: Tensor) -> None:
        """Raises ValueError if one of them is no class. Reads the values."""
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high >= (self.num_classes or 0):
            raise ValueError(
                f"condition holds the label {low if low < 0 else high}, but num_classes={self.num_classes}: labels are "
                f"integers from 0 to {(self.num_classes or 0) - 1}; condition=None means that they are not known"
            )

    def embed(self, condition: Tensor | None, n: int, keep: Tensor | None = None) -> Tensor:
        """e, (n, E); where `keep` (n,) is False the condition is taken for unknown."""
        if self.num_classes is not None:
            table = self.embedding.weight
            assert isinstance(table, Tensor)
            if condition is None:
                return table[-1].expand(n, -1)
            label = condition.long() if keep is None else torch.where(keep, condition.long(), self.num_classes)
            e: Tensor = self.embedding(label)
            return e
        unknown = self.unknown.expand(n, -1)
        if condition is None:
            return unknown
        e = self.embedding(condition.to(self.unknown.dtype))
        return e if keep is None else torch.where(keep[:, None], e, unknown.to(e.dtype))

    def encoded(self, x: Tensor, e: Tensor) -> Tensor:
        """x (B, *input_shape), e (B, E) -> h (B, 2K)."""
        h = self.encoder(x + self.shift(e).view(-1, *self.input_shape))
        return h.unflatten(1, (2, -1))[:, :, : self.latent_dim].flatten(1)

    def decoded(self, z: Tensor, e: Tensor) -> Tensor:
        """z (B, K), e (B, E) -> (B, P, *input_shape)."""
        params: Tensor = self.decoder(torch.cat([z, e.to(z.dtype)], 1))
        return params

    def hidden(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.encoded(x, self.embed(condition, x.shape[0]))

    def emit(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.decoded(z, self.embed(condition, z.shape[0]))

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        """As in `VAE`, with one and the same e, dropped or not, in encoder and decoder."""
        self.check_input(x)
        if target is not None:
            self.check_input(target, "target")
        self.check_condition(condition, len(x))
        dropping = self.training and self.drop > 0 and condition is not None
        keep = torch.rand(len(x), device=x.device) >= self.drop if dropping else None
        e = self.embed(condition, len(x), keep)
        code = Code(*self.bottleneck(self.encoded(self.corrupt(x), e), sample=True))
        params = self.decoded(self.corrupt(code.z, "latent"), e)
        recon = self.likelihood.nll(params, x if target is None else target)
        return Pass(params, code.z, {"recon": recon, **code.terms}, {"elbo": -(recon + code.terms["kl"])})

    def sample(self, n: int, condition: Tensor | int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n new samples, (n, *input_shape). `condition`: a label or a vector for all, or one for each; None: labels drawn
        uniformly, or unknown vectors."""
        positive("n", n)
        device = next(self.parameters()).device
        if self.num_classes is not None and condition is None:
            condition = torch.randint(self.num_classes, (n,), device=device, generator=generator)
        if isinstance(condition, Integral):
            condition = torch.tensor(int(condition))
        if condition is not None:
            condition = torch.as_tensor(condition, device=device)
            whole = 1 if self.num_classes is not None else 2
            condition = condition if condition.dim() >= whole else condition.expand(n, *condition.shape)
            self.check_condition(condition, n)
            if self.num_classes is not None:
                self.check_labels(condition)
        return super().sample(n, condition, generator)
