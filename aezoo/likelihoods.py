"""What the decoder's output means, and what a reconstruction costs.

Two kinds, never to be mixed up:
- **densities** (gaussian, laplace, bernoulli, continuous_bernoulli): -log p(x|z) in nats, *summed* over a sample's dims;
- **plain losses** (mse, l1, huber, bce): the textbook's *mean* over a sample's dims. They are no densities, so models with a KL
  term refuse them: a mean beside a sum silently multiplies beta by D.

Legend: B batch, P numbers the decoder emits per data element, params (B, P, *input_shape), x (B, *input_shape).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional as fn
from .registry import Recorded, Registry, choice

LIKELIHOODS: Registry[Likelihood] = Registry("likelihood")


class Likelihood(nn.Module, metaclass=Recorded):
    """Base of all likelihoods and plain losses. A subclass gives `nll` and, where it differs, `mean` and `sample`."""

    name = ""
    config: dict[str, Any]
    density = True  # nats per sample, or else the mean over dims
    num_params = 1  # P
    support: tuple[float, float] | None = None  # range that x must keep
    instead = ""  # for a plain loss: the density that is meant where a bound needs one

    @property
    def units(self) -> str:
        return "nats per sample" if self.density else "mean over dims"

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """(B, P, *input_shape), (B, *input_shape) -> (B,), in `units`."""
        raise TypeError(f"{type(self).__name__} does not define nll(params, x)")

    def mean(self, params: Tensor) -> Tensor:
        """The expected x, in data space: (B, P, *input_shape) -> (B, *input_shape)."""
        return params[:, 0]

    def sample(self, params: Tensor) -> Tensor:
        """Draws x; a plain loss has no distribution and returns the mean."""
        return self.mean(params)

    def check(self, low: float, high: float) -> None:
        """Raises ValueError if data in [low, high] cannot be scored, naming the range seen and what to do."""
        if self.support and (low < self.support[0] or high > self.support[1]):
            scale = (
                "divide by 255" if low >= 0 and 1 < high <= 255 else "rescale the data, e.g. (x - min) / (max - min)"
            )
            raise ValueError(
                f"likelihood {self.name!r} needs data in [{self.support[0]:g}, {self.support[1]:g}], but the data lies in "
                f"[{low:g}, {high:g}]: {scale}, or take likelihood='{'gaussian' if self.density else 'mse'}'"
            )


# -------------------------------------------------------------------------------------------------------- plain losses


class _Plain(Likelihood):
    density = False


@LIKELIHOODS.register("mse")
class MSE(_Plain):
    """Mean over dims of (x - x^)^2. The density with this optimum: gaussian."""

    instead = "gaussian"

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.per_sample_mean((fn.full(params[:, 0]) - fn.full(x)).square())


@LIKELIHOODS.register("l1")
class L1(_Plain):
    """Mean over dims of |x - x^|. The density with this optimum: laplace."""

    instead = "laplace"

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.per_sample_mean((fn.full(params[:, 0]) - fn.full(x)).abs())


@LIKELIHOODS.register("huber")
class Huber(_Plain):
    """Mean over dims of Huber's loss: r^2/2 for |r| <= delta, delta (|r| - delta/2) beyond."""

    instead = "gaussian or laplace"

    def __init__(self, delta: float = 1.0):
        super().__init__()
        if not delta > 0:
            raise ValueError(f"huber: delta={delta!r} must be > 0")
        self.delta = delta

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.per_sample_mean(F.huber_loss(fn.full(params[:, 0]), fn.full(x), reduction="none", delta=self.delta))


@LIKELIHOODS.register("bce")
class BCE(_Plain):
    """Mean over dims of the binary cross-entropy; the decoder emits logits and `mean` is their sigmoid. x in [0, 1].

    On grey values this is a fair loss but no density (its minimum is the entropy of x, not 0)."""

    support = (0.0, 1.0)
    instead = "bernoulli (binary data) or continuous_bernoulli (data in [0, 1])"

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.per_sample_mean(
            F.binary_cross_entropy_with_logits(fn.full(params[:, 0]), fn.full(x), reduction="none")
        )

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(params[:, 0])


# ----------------------------------------------------------------------------------------------------------- densities


class _Located(Likelihood):
    """A location the decoder emits, and a scale s that is said in one of four ways:

    - a number: fixed;
    - "learned": one scalar parameter, log s, shared by all dims;
    - "optimal": the closed-form maximum of the likelihood given the residuals (sigma-VAE, arXiv:2006.13202, eq. 5). In
      training that of the batch (held constant in the backward pass, which is exact by the envelope theorem); in
      evaluation the running mean (momentum 0.99, bias-corrected) kept in a buffer, so that scores of one sample
      never depend on the others;
    - "predicted": the decoder emits log s per element as a second number (P = 2), softly bounded to (-7, 7).
    """

    MOMENTUM = 0.99
    moment: Tensor
    weight: Tensor

    def __init__(self, scale: float | str, word: str):
        super().__init__()
        if isinstance(scale, str):
            choice(f"{self.name}: {word}", scale, ["learned", "optimal", "predicted"])
        elif not (isinstance(scale, (int, float)) and scale > 0 and math.isfinite(scale)):
            raise ValueError(
                f"{self.name}: {word}={scale!r} must be a number > 0, or 'learned', 'optimal' or 'predicted'"
            )
        self.mode = scale if isinstance(scale, str) else "fixed"
        self.num_params = 2 if scale == "predicted" else 1
        self.fixed = 0.0 if isinstance(scale, str) else math.log(scale)
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.zeros(()))
        if scale == "optimal":
            self.register_buffer("moment", torch.zeros(()))  # running mean of `self._statistic`, not yet bias-corrected
            self.register_buffer("weight", torch.zeros(()))  # 1 - momentum^t: what corrects it

    def _statistic(self, residual: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define the statistic of its scale")

    def _log_scale_of(self, statistic: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define its scale")

    def _log_scale(self, params: Tensor, x: Tensor | None) -> Tensor | float:
        if self.mode == "fixed":
            return self.fixed
        if self.mode == "learned":
            return self.log_scale
        if self.mode == "predicted":
            return fn.soft_bound(params[:, 1], 7.0)
        if self.training and x is not None:
            with torch.no_grad():
                now = self._statistic(fn.full(params[:, 0]) - fn.full(x)).clamp_min(1e-8)
                self.moment.lerp_(now.to(self.moment), 1 - self.MOMENTUM)
                self.weight.lerp_(torch.ones_like(self.weight), 1 - self.MOMENTUM)
            return self._log_scale_of(now)
        seen = self.weight > 0
        kept = torch.where(seen, self.moment / self.weight.clamp_min(1e-30), 1.0)
        return self._log_scale_of(kept)

    @property
    def scale(self) -> Tensor | float | None:
        """The scale that evaluation uses (sigma or b, in data units); None where the decoder predicts it."""
        if self.mode == "predicted":
            return None
        log_scale: Tensor | float = self.log_scale if self.mode == "learned" else self.fixed
        if self.mode == "optimal":
            was, self.training = self.training, False
            log_scale = self._log_scale(self.moment, None)
            self.training = was
        return log_scale.detach().exp() if isinstance(log_scale, Tensor) else math.exp(log_scale)

    def _scale_like(self, params: Tensor) -> Tensor:
        """The scale as a tensor that broadcasts against the mean, for drawing."""
        log_scale = self._log_scale(params, None)
        return torch.as_tensor(log_scale, dtype=params.dtype, device=params.device).exp()


@LIKELIHOODS.register("gaussian")
class Gaussian(_Located):
    """-log N(x; x^, sigma^2), nats per sample. `sigma`: a number, "learned", "optimal" (default) or "predicted", see above.

    sigma=1 is half the summed squared error plus a constant; squared error *without* the half means sigma^2 = 1/2."""

    def __init__(self, sigma: float | str = "optimal"):
        super().__init__(sigma, "sigma")

    def _statistic(self, residual: Tensor) -> Tensor:
        return residual.square().mean()

    def _log_scale_of(self, statistic: Tensor) -> Tensor:
        return 0.5 * statistic.log()

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.gaussian_nll(x, params[:, 0], self._log_scale(params, x))

    def sample(self, params: Tensor) -> Tensor:
        return params[:, 0] + self._scale_like(params) * torch.randn_like(params[:, 0])


@LIKELIHOODS.register("laplace")
class Laplace(_Located):
    """-log Laplace(x; x^, b), nats per sample. `scale` (b): a number, "learned", "optimal" (default) or "predicted"."""

    def __init__(self, scale: float | str = "optimal"):
        super().__init__(scale, "scale")

    def _statistic(self, residual: Tensor) -> Tensor:
        return residual.abs().mean()

    def _log_scale_of(self, statistic: Tensor) -> Tensor:
        return statistic.log()

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.laplace_nll(x, params[:, 0], self._log_scale(params, x))

    def sample(self, params: Tensor) -> Tensor:
        u = torch.rand_like(params[:, 0]) - 0.5
        return params[:, 0] - self._scale_like(params) * u.sign() * torch.log1p(-2 * u.abs())


@LIKELIHOODS.register("bernoulli")
class Bernoulli(Likelihood):
    """-log Bernoulli(x; sigmoid(logits)), nats per sample, x in {0, 1}; the decoder emits logits, `mean` is the probability.

    Grey values in [0, 1] are scored (much of the literature does so) but are then no density: binarise the data, or take
    continuous_bernoulli."""

    support = (0.0, 1.0)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.bernoulli_nll(x, params[:, 0])

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(params[:, 0])

    def sample(self, params: Tensor) -> Tensor:
        return torch.bernoulli(self.mean(params))


@LIKELIHOODS.register("continuous_bernoulli")
class ContinuousBernoulli(Likelihood):
    """-log CB(x; logits), nats per sample, x in [0, 1] (arXiv:1907.06845). `mean` is the distribution's mean, not lambda."""

    support = (0.0, 1.0)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.continuous_bernoulli_nll(x, params[:, 0])

    def mean(self, params: Tensor) -> Tensor:
        return fn.continuous_bernoulli_mean(params[:, 0])

    def sample(self, params: Tensor) -> Tensor:
        logits, u = fn.full(params[:, 0]), torch.rand_like(fn.full(params[:, 0]))
        small = logits.abs() < 1e-3  # there the distribution is uniform to first order
        safe = torch.where(small, torch.ones_like(logits), logits)
        return torch.where(small, u, torch.log1p(u * torch.expm1(safe)) / safe).clamp(0, 1)
