"""What the code of a generative model holds: active units, information about x, distance to the prior.

Legend: N samples, K numbers of a code; q(z|x) = N(mu, diag exp(logvar)), q(z) = 1/N sum_n q(z|x_n), p(z) the prior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import functional as fn
from .base import METRICS, Figure, Mean, Metric, Subject

ACTIVE = 0.01  # Burda et al. 2016, section 5.2
AT_ONCE = 2**24  # kernel values held at once
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def _not_gaussian(subject: Subject) -> str:
    return "" if subject.gaussian else f"it needs a Gaussian posterior q(z|x), which {subject.model.name} does not have"


@METRICS.register("active_units")
class ActiveUnits(Metric):
    """Latents that tell samples apart: how many have Var_x(E_q[z_k]) > 0.01 (Burda et al. 2016, arXiv:1509.00519, section 5.2).

    "values" holds the variance of each latent."""

    keeps = ("mu",)

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        return _not_gaussian(subject) or ("" if subject.size > 1 else "it needs at least two samples")

    def unit_of(self, figure: str) -> str:
        return f"of {self.subject.model.latent_dim} latents"

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        variances = kept["mu"].double().var(0)
        active = int((variances > ACTIVE).sum())
        return {"active_units": Figure(active, math.nan, len(kept["mu"]), variances.tolist())}


@METRICS.register("mutual_information")
class MutualInformation(Metric):
    """I(x; z) = E_x KL(q(z|x) || q(z)) over the evaluated set, and "marginal_kl" = KL(q(z) || p(z)).

    Their sum is the mean KL (Hoffman & Johnson 2016, "ELBO surgery"). One draw z_i ~ q(z|x_i) a sample and q(z) exactly, as the
    mixture of all N posteriors: log q(z_i|x_i) - log q(z_i). The set has N members, so I is at most log N, which it says as its unit.
    Errors are those of the mean over the draws. Time and not memory grow with N^2."""

    unit = "nats"
    cheap = False
    gives = ("mutual_information", "marginal_kl")
    keeps = ("mu", "logvar", "drawn")

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        return _not_gaussian(subject)

    @classmethod
    def figures(cls, subject: Subject) -> list[str]:
        return [name for name in cls.gives if name != "marginal_kl" or not subject.has_density_prior]

    def unit_of(self, figure: str) -> str:
        return f"nats, at most {math.log(self.subject.size):.4g}" if figure == "mutual_information" else "nats"

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        mu, logvar, z = (self.subject.wide(kept[k]) for k in self.keeps)
        own = -fn.gaussian_nll(z, mu, 0.5 * logvar)
        together = fn.gaussian_mixture_log_prob(z, mu, logvar)
        found = {"mutual_information": own - together}
        if not self.subject.has_density_prior:
            place = kept["drawn"].to(self.subject.device)
            shape = self.subject.model.latent_shape
            log_p = torch.cat(
                [self.subject.model.prior.log_prob(part.unflatten(1, shape)) for part in place.split(512)]
            )
            found["marginal_kl"] = together - self.subject.wide(log_p)
        return {name: mean(values) for name, values in found.items()}


def mean(values: Tensor) -> Figure:
    total = Mean()
    total.add(values, len(values))
    return total.figure()


@METRICS.register("mmd")
class MMD(Metric):
    """Squared maximum mean discrepancy between q(z), one draw a sample, and draws from p(z); 0 on average where they agree.

    The unbiased estimate (arXiv:1711.01558, algorithm 2) with two kernels, of mean 1 at distance 0, s in (0.1, 0.2, 0.5, 1, 2, 5, 10) and
    C = 2 K s: "mmd_imq", the mean over s of C / (C + |a - b|^2), and "mmd_rbf", exp(-|a - b|^2 / C) at s = 1. May be below 0. Its
    error is of first order (the variance of the U-statistic's projection), and too large where q(z) = p(z). Takes `samples` draws
    from p(z), by default one for each sample. Time and not memory grow with N^2."""

    cheap = False
    gives = ("mmd_imq", "mmd_rbf")
    keeps = ("drawn",)
    KERNELS = (("mmd_imq", "imq", SCALES), ("mmd_rbf", "rbf", (1.0,)))

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        few = "" if min(subject.size, subject.wanted()) > 1 else "it needs at least two samples and two draws"
        return subject.has_density_prior or few

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        x = self.subject.wide(kept["drawn"])
        y = self.subject.wide(self.subject.prior_codes(self.subject.wanted()))
        return {name: mmd(x, y, kernel, scales) for name, kernel, scales in self.KERNELS}


def mmd(x: Tensor, y: Tensor, kernel: str, scales: tuple[float, ...]) -> Figure:
    """The unbiased squared MMD of two sets (n, K) and (m, K) with its standard error, row by row."""

    def to(a: Tensor, b: Tensor, own: bool) -> Tensor:
        """Mean kernel value of each row of a to all of b; without itself if both are the same set."""
        rows = a.split(max(1, AT_ONCE // len(b)))
        total = torch.cat([fn.mmd_kernel(part, b, kernel, scales).sum(1) for part in rows])
        return (total - 1) / (len(b) - 1) if own else total / len(b)

    xx, yy, xy, yx = to(x, x, True), to(y, y, True), to(x, y, False), to(y, x, False)
    value = xx.mean() + yy.mean() - xy.mean() - yx.mean()
    variance = 4 * (xx - xy).var() / len(x) + 4 * (yy - yx).var() / len(y)
    return Figure(float(value), float(variance.sqrt()), len(x))
