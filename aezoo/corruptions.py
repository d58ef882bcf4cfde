"""Noise on the input or on the hidden code (Vincent et al. 2008, 2010): `x~ = c(x)`, while the loss looks at the clean x.

A level is a number, or a range (low, high) from which each sample draws its own, uniformly (a blind denoiser's training).
`where="input"` corrupts what the encoder sees, `where="latent"` what the decoder sees. `when="training"` is active in training
mode only, `when="always"` in evaluation too; `encode` and `reconstruct` never corrupt. Noise comes from the global RNG, which
the training loop seeds anew at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .registry import Recorded, Registry, choice

CORRUPTIONS: Registry[Corruption] = Registry("corruption")

Level = float | Sequence[float]


class Corruption(metaclass=Recorded):
    """Base: (B, ...) -> (B, ...), same shape, dtype and device."""

    name = ""
    config: dict[str, Any]

    def __init__(self, where: str = "input", when: str = "training"):
        self.where = choice(f"{self.name}: where", where, ["input", "latent"])
        self.when = choice(f"{self.name}: when", when, ["training", "always"])

    def __call__(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define __call__(x)")

    def _checked(self, word: str, level: Level, highest: float) -> tuple[float, float]:
        bounds = tuple(level) if isinstance(level, Sequence) and not isinstance(level, str) else (level, level)
        fine = len(bounds) == 2 and all(isinstance(b, (int, float)) and not isinstance(b, bool) for b in bounds)
        if not fine or not 0 <= bounds[0] <= bounds[1] <= highest or bounds[1] == float("inf"):
            raise ValueError(
                f"{self.name}: {word}={level!r} must be a number, or a range (low, high), within [0, {highest:g}]"
            )
        return float(bounds[0]), float(bounds[1])


def _draw(bounds: tuple[float, float], x: Tensor) -> Tensor | float:
    """The level itself, or one for each sample, shaped (B, 1, ..., 1)."""
    low, high = bounds
    if low == high:
        return low
    shape = (x.shape[0],) + (1,) * (x.dim() - 1)
    return low + (high - low) * torch.rand(shape, device=x.device, dtype=x.dtype)


@CORRUPTIONS.register("none")
class NoCorruption(Corruption):
    """The identity."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


@CORRUPTIONS.register("gaussian")
class GaussianNoise(Corruption):
    """x~ = x + sigma eps, eps ~ N(0, I); not clipped. `sigma` in data units, a number or a range."""

    def __init__(self, sigma: Level = 0.3, where: str = "input", when: str = "training"):
        super().__init__(where, when)
        self.level = self._checked("sigma", sigma, float("inf"))

    def __call__(self, x: Tensor) -> Tensor:
        return x + _draw(self.level, x) * torch.randn_like(x)


@CORRUPTIONS.register("masking")
class Masking(Corruption):
    """Each element is set to 0 with probability `p` (the masking noise of Vincent et al. 2008); the rest is not rescaled."""

    def __init__(self, p: Level = 0.25, where: str = "input", when: str = "training"):
        super().__init__(where, when)
        self.level = self._checked("p", p, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= _draw(self.level, x))


@CORRUPTIONS.register("salt_and_pepper")
class SaltAndPepper(Corruption):
    """Each element is replaced with probability `p` by `low` or `high`, one as likely as the other (Vincent et al. 2010)."""

    def __init__(
        self, p: Level = 0.25, low: float = 0.0, high: float = 1.0, where: str = "input", when: str = "training"
    ):
        super().__init__(where, when)
        if not low < high:
            raise ValueError(f"salt_and_pepper: low={low!r} must be below high={high!r}")
        self.level, self.low, self.high = self._checked("p", p, 1.0), low, high

    def __call__(self, x: Tensor) -> Tensor:
        p, u = _draw(self.level, x), torch.rand_like(x)  # u < p/2: pepper; p/2 <= u < p: salt
        hit = torch.where(u * 2 < p, torch.full_like(x, self.low), torch.full_like(x, self.high))
        return torch.where(u < p, hit, x)


@CORRUPTIONS.register("speckle")
class Speckle(Corruption):
    """Multiplicative noise: x~ = x (1 + sigma eps), eps ~ N(0, I); not clipped."""

    def __init__(self, sigma: Level = 0.3, where: str = "input", when: str = "training"):
        super().__init__(where, when)
        self.level = self._checked("sigma", sigma, float("inf"))

    def __call__(self, x: Tensor) -> Tensor:
        return x * (1 + _draw(self.level, x) * torch.randn_like(x))


@CORRUPTIONS.register("poisson")
class Poisson(Corruption):
    """Shot noise: x~ = n / peak, n ~ Poisson(peak * x), so that the mean is x and the variance x / peak; values below 0 count as 0.

    `peak`: expected count at x = 1, a number above 0 or a range: the lower, the noisier. The counts come from one uniform number
    per element, whatever x is, so that they are the same however a batch is spread over processes (`torch.poisson` draws as
    many as the values need)."""

    def __init__(self, peak: Level = 30.0, where: str = "input", when: str = "training"):
        super().__init__(where, when)
        self.level = self._checked("peak", peak, float("inf"))
        if not self.level[0] > 0:
            raise ValueError(f"poisson: peak={peak!r} must be above 0")

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        peak, u = _draw(self.level, wide), torch.rand_like(wide)
        return (_poisson_quantile(u, peak * wide.clamp_min(0)) / peak).to(x.dtype)


FEW = 10  # expected counts up to which the distribution is summed up


def _poisson_quantile(u: Tensor, rate: Tensor) -> Tensor:
    """The smallest n with P(N <= n) > u for N ~ Poisson(rate), u in [0, 1), elementwise.

    Up to a rate of `FEW` by summing P(N = n), exact to rounding. Above, the Cornish-Fisher expansion of the quantile to second
    order in 1/sqrt(rate), for a variable that is rounded to whole counts: off by one count for at most 3 in 1000 of all u."""
    few = rate.clamp_max(FEW)
    term = torch.exp(-few)  # P(N = 0)
    below, n = term, torch.zeros_like(rate)
    for k in range(1, 4 * FEW):
        n = n + (u >= below)
        term = term * few / k
        below = below + term
    z = torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7))
    root = rate.clamp_min(FEW).sqrt()
    many = rate + root * z + (z.square() - 1) / 6 - (z**3 + 2 * z) / (72 * root)
    return torch.where(rate <= FEW, n, (many + 0.5).floor())
