"""A critic on patches, as part of image tokenizers: its own loss, the adversarial one, and a perceptual one in its features.

Legend: B batch, N patches; x data, x^ reconstruction, C the critic's logits (large: real), f its last feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import functional as fn
from ..base import Terms
from ..critics import DataCritic, held
from ..likelihoods import Likelihood
from ..wholebatch import batch_sum


class PatchCritic(nn.Module):
    """(B, *input_shape) -> logits (B, N), one for each position of the last feature map, and that map (B, C, ...).

    The body of `DataCritic`; a vector is one patch. The last layer has no bias: it would shift real and reconstructed alike, and under
    a hinge that both sides are inside of its gradient is exactly 0."""

    def __init__(self, input_shape: Sequence[int], widths: Sequence[int]):
        super().__init__()
        self.body = DataCritic(input_shape, widths).body
        self.head = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.head(h.reshape(*h.shape[:2], -1).transpose(1, 2)).squeeze(
            2
        ), h  # (B, C, ...) -> (B, N, C) -> (B, N)


class PatchGAN(nn.Module):
    """weight * balance * E[-C(x^)] + features * E|f(x) - f(x^)|, while C is trained on E[max(0, 1 - C(x)) + max(0, 1 + C(x^))].

    Expectations over patches, the perceptual term's over feature elements. No gradient of the first two reaches the critic, none of the
    third anything else. `balance` is 1, or with adaptive=True that of VQGAN (arXiv:2012.09841, eq. 7): the norm of the
    reconstruction's gradient by that of the adversarial term's, both with respect to what the decoder puts out (the paper: to its last
    layer's weights), of the newest step. The first two count from step `start` on; the critic learns from the first (the paper: from
    there on, too), so that what it first says means something. In evaluation mode no weight counts: a critic's opinion
    does not compare across steps, and validation losses must."""

    steps: Tensor
    balance: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        weight: float,
        features: float,
        start: int = 0,
        adaptive: bool = False,
        widths: Sequence[int] = (32, 64),
    ):
        super().__init__()
        self.weight, self.features, self.start, self.adaptive = weight, features, start, adaptive
        self.critic = PatchCritic(input_shape, widths)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        if adaptive:
            self.register_buffer("balance", torch.ones(()))

    def forward(self, x: Tensor, params: Tensor, likelihood: Likelihood) -> tuple[Terms, Terms]:
        """Data (B, *input_shape) and decoder output (B, P, *input_shape) -> terms and metrics, (B,) or scalar."""
        recon = likelihood.mean(params)
        real, wanted = self.critic(x)
        fake, _ = self.critic(recon.detach())
        judged, seen = held(self.critic, recon)
        terms = {"critic": fn.hinge_critic(real, fake)}
        if self.weight:
            terms["adversarial"] = fn.hinge_generator(judged)
        if self.features:
            terms["features"] = fn.feature_matching(wanted, seen)
        right = 0.5 * (fn.per_sample_mean((real > 0).float()) + fn.per_sample_mean((fake <= 0).float()))
        metrics = {"critic_accuracy": right.detach()}
        if self.adaptive:
            if self.training:
                self.balance.copy_(self._balance(x, params.detach(), likelihood))
            metrics["balance"] = self.balance.clone()
        return terms, metrics

    @torch.no_grad()
    def _balance(self, x: Tensor, params: Tensor, likelihood: Likelihood) -> Tensor:
        """From the two gradients in `params`; the likelihood's scale is the one that evaluation uses."""

        def recon(p: Tensor) -> Tensor:
            return likelihood.nll(p, x).sum()

        def adversarial(p: Tensor) -> Tensor:
            logits, _ = held(self.critic, likelihood.mean(p))
            return fn.hinge_generator(logits).sum()

        likelihood.training = False  # its running scale has seen this batch already
        try:
            gradients = [torch.func.grad(term)(params) for term in (recon, adversarial)]
        finally:
            likelihood.training = True
        count = batch_sum(torch.ones(len(x), device=x.device))
        of_recon, of_gan = (
            batch_sum(fn.per_sample(g.square())).sqrt() / count for g in gradients
        )  # of the whole batch's means
        return fn.adaptive_weight(of_recon, of_gan)

    def weights(self) -> dict[str, float | Tensor]:
        if not self.training:
            return {"critic": 0.0, "adversarial": 0.0, "features": 0.0}
        on: float | Tensor = (self.steps >= self.start).float() if self.start else 1.0
        balance: float | Tensor = self.balance.clone() if self.adaptive else 1.0
        return {"adversarial": self.weight * on * balance, "features": self.features * on}

    def after_step(self) -> None:
        if self.training:  # not frozen
            self.steps += 1
