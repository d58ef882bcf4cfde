"""What the decoder's output means, and what a reconstruction costs.

Two kinds, never to be mixed up:
- **densities** (gaussian, laplace, bernoulli, continuous_bernoulli, logistic_mixture): -log p(x|z) in nats, *summed* over a sample's
  dims;
- **plain losses** (mse, l1, huber, bce, ms_ssim): the textbook's *mean* over a sample's dims. They are no densities, so models with a KL
  term refuse them: a mean beside a sum silently multiplies beta by D.

Legend: B batch, P numbers the decoder emits per data element, params (B, P, *input_shape), x (B, *input_shape), mask (B, *input_shape),
True where an entry of x is there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional as fn
from .precision import Averaging
from .registry import Recorded, Registry, choice
from .wholebatch import batch_sum, grand_mean

LIKELIHOODS: Registry[Likelihood] = Registry("likelihood")


def first(params: Tensor) -> Tensor:
    """The location among the decoder's numbers, (B, P, *input_shape) -> (B, *input_shape): a view whose gradient is one, too,
    where it is the only one."""
    return params.squeeze(1) if params.shape[1] == 1 else params[:, 0]


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)


class Likelihood(nn.Module, metaclass=Recorded):
    """Base of all likelihoods and plain losses. A subclass gives `nll` and, where it differs, `mean` and `sample`."""

    name = ""
    config: dict[str, Any]
    density = True  # nats per sample, or else the mean over dims
    num_params = 1  # P
    support: tuple[float, float] | None = None  # range that x must keep
    instead = ""  # for a plain loss: the density that is meant where a bound needs one
    elementwise = True  # each entry is scored by itself: entries can be left out, and patches scored alone

    @property
    def units(self) -> str:
        return "nats per sample" if self.density else "mean over dims"

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """(B, P, *input_shape), (B, *input_shape) -> (B,), in `units`."""
        raise TypeError(f"{type(self).__name__} does not define nll(params, x)")

    def nll_observed(self, params: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """`nll` over the entries that are there, (B,): densities sum over them, plain losses take their mean in each sample (0 where
        none is). What x holds elsewhere, NaN for instance, is never read, and no gradient comes from there."""
        each = self.elements(params, fn.filled(x, mask), mask)
        return fn.masked_sum(each, mask) if self.density else fn.masked_mean(each, mask)

    def elements(self, params: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """What each entry costs, (B, *input_shape): `nll` with every entry as a sample of its own. x must be finite, and only
        the entries in `mask` mean anything. A likelihood that couples the entries of a sample must say otherwise."""
        alone = params.movedim(1, -1).reshape(-1, params.shape[1], 1)  # (B, P, *shape) -> (N, P, 1)
        return self.nll(alone, x.reshape(-1, 1)).view(x.shape)

    def per_column(self, columns: int) -> None:
        """From now on `columns` data elements each have a scale of their own, where a scale is learned or estimated."""

    def mean(self, params: Tensor) -> Tensor:
        """The expected x, in data space: (B, P, *input_shape) -> (B, *input_shape)."""
        return first(params)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
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
        return fn.per_sample_mean(F.mse_loss(fn.full(first(params)), fn.full(x), reduction="none"))


@LIKELIHOODS.register("l1")
class L1(_Plain):
    """Mean over dims of |x - x^|. The density with this optimum: laplace."""

    instead = "laplace"

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.per_sample_mean((fn.full(first(params)) - fn.full(x)).abs())


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
        return fn.per_sample_mean(F.huber_loss(fn.full(first(params)), fn.full(x), reduction="none", delta=self.delta))


@LIKELIHOODS.register("bce")
class BCE(_Plain):
    """Mean over dims of the binary cross-entropy; the decoder emits logits and `mean` is their sigmoid. x in [0, 1].

    On grey values this is a fair loss but no density (its minimum is the entropy of x, not 0)."""

    support = (0.0, 1.0)
    instead = "bernoulli (binary data) or continuous_bernoulli (data in [0, 1])"

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.bernoulli_nll(x, first(params)) / (x.numel() // len(x))

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(first(params))


@LIKELIHOODS.register("ms_ssim")
class MSSSIM(_Plain):
    """1 - MS-SSIM(x, x^), 0 for equal pictures, 1 for ones that have nothing in common (`functional.ms_ssim`). x in [0, 1].

    Papers: Wang, Simoncelli & Bovik 2003 for the index, Snell et al. 2017, arXiv:1511.06409, for autoencoders trained on it. Takes
    samples with axes besides the channels: (C, T), (C, H, W), (C, D, H, W). `window`: edge of the Gaussian window, odd. The index hardly
    sees what is the same everywhere: a flat shift of a bright picture costs next to nothing.

    Raises ValueError for vectors, which have no neighbourhood."""

    support = (0.0, 1.0)
    instead = "gaussian or laplace"
    elementwise = False

    def __init__(self, window: int = 11):
        super().__init__()
        if isinstance(window, bool) or not isinstance(window, int) or window < 3 or window % 2 == 0:
            raise ValueError(f"ms_ssim: window={window!r} must be an odd integer of at least 3")
        self.window = window

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise ValueError(
                f"likelihood 'ms_ssim' compares pictures, with axes besides the channels; a sample here has shape "
                f"{tuple(x.shape[1:])}: take likelihood='mse'"
            )
        return 1 - fn.ms_ssim(self.mean(params), x, window=self.window)

    def elements(self, params: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        raise ValueError("likelihood 'ms_ssim' scores whole pictures, not entry by entry: take likelihood='mse'")

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(first(params))


# ----------------------------------------------------------------------------------------------------------- densities


class _Located(Averaging, Likelihood):
    """A location the decoder emits, and a scale s that is said in one of four ways:

    - a number: fixed;
    - "learned": one scalar parameter, log s, shared by all dims (or one for each, after `per_column`);
    - "optimal": the closed-form maximum of the likelihood given the residuals (sigma-VAE, arXiv:2006.13202, eq. 5). In
      training that of the batch (held constant in the backward pass, which is exact by the envelope theorem), over the
      entries that are there; in evaluation the running mean (momentum 0.99, bias-corrected) kept in a buffer, so that scores
      of one sample never depend on the others;
    - "predicted": the decoder emits log s per element as a second number (P = 2), softly bounded to (-7, 7).
    """

    MOMENTUM = 0.99
    averages = ("moment", "weight")
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
            self.register_buffer("moment", torch.zeros(()))  # running mean of `_moment`, not yet bias-corrected
            self.register_buffer("weight", torch.zeros(()))  # 1 - momentum^t: what corrects it

    def _moment(self, residual: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define the moment that its scale is of")

    def _log_scale_of(self, statistic: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define its scale")

    def _density(self, x: Tensor, mean: Tensor, log_scale: Tensor | float) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define its density")

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return self._density(x, first(params), self._log_scale(params, x))

    def elements(self, params: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        log_scale = self._log_scale(params, x, mask)
        if isinstance(log_scale, Tensor):
            log_scale = log_scale.expand(x.shape).reshape(-1, 1)
        return self._density(x.reshape(-1, 1), first(params).reshape(-1, 1), log_scale).view(x.shape)

    def per_column(self, columns: int) -> None:
        if self.mode == "learned":
            self.log_scale = nn.Parameter(torch.zeros(columns))
        if self.mode == "optimal":
            self.moment, self.weight = torch.zeros(columns), torch.zeros(columns)

    def _log_scale(self, params: Tensor, x: Tensor | None, mask: Tensor | None = None) -> Tensor | float:
        if self.mode == "fixed":
            return self.fixed
        if self.mode == "learned":
            return self.log_scale
        if self.mode == "predicted":
            return fn.soft_bound(params[:, 1], 7.0)
        if self.training and x is not None:
            with torch.no_grad():
                moments = self._moment(fn.full(first(params)) - fn.full(x))
                if mask is not None:
                    return self._log_scale_of(self._observed(moments, mask))
                now = grand_mean(moments).clamp_min(1e-8)
                self.moment.lerp_(now.to(self.moment), 1 - self.MOMENTUM)
                self.weight.lerp_(torch.ones_like(self.weight), 1 - self.MOMENTUM)
            return self._log_scale_of(now)
        return self._log_scale_of(self._kept())

    def _kept(self) -> Tensor:
        """The running mean, bias-corrected; 1 before anything was seen."""
        return torch.where(self.weight > 0, self.moment / self.weight.clamp_min(1e-30), 1.0)

    def _observed(self, moments: Tensor, mask: Tensor) -> Tensor:
        """The batch's mean over the entries that are there (of each column, after `per_column`), which is counted in the running
        mean; that itself where none is there."""
        total, seen = batch_sum(fn.filled(moments, mask)), batch_sum(mask.to(moments.dtype))
        if self.moment.dim() == 0:
            total, seen = total.sum(), seen.sum()
        now = (total / seen.clamp_min(1)).clamp_min(1e-8).to(self.moment)
        share = (1 - self.MOMENTUM) * (seen > 0).to(self.moment)
        self.moment.lerp_(now, share)
        self.weight.lerp_(torch.ones_like(self.weight), share)
        return torch.where(seen > 0, now, self._kept())

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

    def _moment(self, residual: Tensor) -> Tensor:
        return residual.square()

    def _log_scale_of(self, statistic: Tensor) -> Tensor:
        return 0.5 * statistic.log()

    def _density(self, x: Tensor, mean: Tensor, log_scale: Tensor | float) -> Tensor:
        return fn.gaussian_nll(x, mean, log_scale)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = first(params)
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + self._scale_like(params) * noise


@LIKELIHOODS.register("laplace")
class Laplace(_Located):
    """-log Laplace(x; x^, b), nats per sample. `scale` (b): a number, "learned", "optimal" (default) or "predicted"."""

    def __init__(self, scale: float | str = "optimal"):
        super().__init__(scale, "scale")

    def _moment(self, residual: Tensor) -> Tensor:
        return residual.abs()

    def _log_scale_of(self, statistic: Tensor) -> Tensor:
        return statistic.log()

    def _density(self, x: Tensor, mean: Tensor, log_scale: Tensor | float) -> Tensor:
        return fn.laplace_nll(x, mean, log_scale)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = _uniform(first(params), generator) - 0.5
        most = 1 - torch.finfo(u.dtype).eps / 2  # a uniform draw may be 0, of which the logarithm is not finite
        return first(params) - self._scale_like(params) * u.sign() * torch.log1p(-(2 * u.abs()).clamp_max(most))


@LIKELIHOODS.register("bernoulli")
class Bernoulli(Likelihood):
    """-log Bernoulli(x; sigmoid(logits)), nats per sample, x in {0, 1}; the decoder emits logits, `mean` is the probability.

    Grey values in [0, 1] are scored (much of the literature does so) but are then no density: binarise the data, or take
    continuous_bernoulli."""

    support = (0.0, 1.0)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.bernoulli_nll(x, first(params))

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(first(params))

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean(params), generator=generator)


@LIKELIHOODS.register("continuous_bernoulli")
class ContinuousBernoulli(Likelihood):
    """-log CB(x; logits), nats per sample, x in [0, 1] (arXiv:1907.06845). `mean` is the distribution's mean, not lambda."""

    support = (0.0, 1.0)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.continuous_bernoulli_nll(x, first(params))

    def mean(self, params: Tensor) -> Tensor:
        return fn.continuous_bernoulli_mean(first(params))

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits = fn.full(first(params))
        u = _uniform(logits, generator)
        small = logits.abs() < 1e-3  # there the distribution is uniform to first order
        safe = torch.where(small, torch.ones_like(logits), logits)
        steep = safe.abs()  # drawn from the end where the density is largest, so that no exp overflows
        distance = -torch.log1p(u * torch.expm1(-steep)) / steep
        return torch.where(small, u, torch.where(safe < 0, distance, 1 - distance)).clamp(0, 1)


@LIKELIHOODS.register("logistic_mixture")
class LogisticMixture(Likelihood):
    """-log P(x) of 8-bit values under a mixture of logistics that is rounded to their grid, nats per sample, x in [0, 1]: a
    probability and no density, so that nats / (D ln 2) are bits per dim (arXiv:1701.05517, eq. 1 and 2).

    The decoder emits 3 `components` numbers for each element: means (from evenly spread starts in [0, 1]), log-scales (softly within
    (-8, 4)), logits. `mean` is that of the logistics cut to [0, 1], `sample` draws values of the grid. Deviation from the paper: the
    channels of a pixel are independent given z, each with a mixture of its own.

    `components`: the paper finds 5 enough. `levels`: values of the grid k / (levels - 1); x is taken to the nearest of them."""

    support = (0.0, 1.0)

    def __init__(self, components: int = 5, levels: int = 256):
        super().__init__()
        for word, value, least in (("components", components, 1), ("levels", levels, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"logistic_mixture: {word}={value!r} must be an integer of at least {least}")
        self.components, self.levels = components, levels
        self.num_params = 3 * components

    def _mixture(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3M, ...) -> means, log-scales, logits, (B, M, ...) each."""
        means, log_scales, logits = fn.full(params).chunk(3, 1)
        m = self.components
        starts = (torch.arange(m, dtype=means.dtype, device=means.device) + 0.5) / m
        return means + starts.view(1, -1, *(1,) * (means.dim() - 2)), fn.soft_bound(log_scales, 6.0) - 2, logits

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        return fn.discretized_logistic_mixture_nll(x, *self._mixture(params), self.levels)

    def mean(self, params: Tensor) -> Tensor:
        return fn.logistic_mixture_mean(*self._mixture(params)).to(params.dtype)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        means, log_scales, logits = self._mixture(params)
        tiny = torch.finfo(means.dtype).tiny
        gumbel = -torch.log(-torch.log(_uniform(means, generator).clamp(tiny, 1 - 1e-7)))
        chosen = (logits + gumbel).argmax(1, keepdim=True)
        means, log_scales = (t.gather(1, chosen).squeeze(1) for t in (means, log_scales))
        u = _uniform(means, generator).clamp(1e-7, 1 - 1e-7)
        y = means + log_scales.exp() * torch.logit(u)
        return (torch.round(y.clamp(0, 1) * (self.levels - 1)) / (self.levels - 1)).to(params.dtype)
