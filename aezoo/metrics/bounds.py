"""What a density model says of data: bits per dim, and the log-likelihood by importance sampling.

Legend: B samples of a piece, D data dims, n draws; w = p(x, z) / q(z|x) of one draw z ~ q(z|x).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..base import BaseAE
from .base import METRICS, WEIGHTS, Figure, Metric, Seen, Subject

DRAWS = 5000  # where the metric is named and their number is not


def bits(nats: Tensor, x: Tensor, subject: Subject) -> Tensor:
    """-nats / (D ln 2), + 8 for continuous densities of data given as 8-bit integers: (B,), (B, *shape) -> (B,).

    D counts the entries that are there. The 8 are log2 of the 256 levels: the density of a value in [0, 1] times the width of its
    level is the level's probability."""
    there = (~torch.isnan(x)).flatten(1).sum(1) if subject.model.accepts_missing else x[0].numel()
    levels = 8.0 if subject.eight_bit and subject.model.likelihood.name != "bernoulli" else 0.0
    return levels - nats / (math.log(2) * there)


def no_bits(subject: Subject) -> str:
    likelihood = subject.model.likelihood
    if likelihood.name == "bernoulli" and not subject.binary:
        return "'bernoulli' is no density of grey values; binarise the data, or take 'continuous_bernoulli'"
    return "" if likelihood.density else f"the likelihood {likelihood.name!r} is no density"


@METRICS.register("bits_per_dim")
class BitsPerDim(Metric):
    """The negative ELBO in bits per data dim, an upper bound: -elbo / (D ln 2), + 8 for data given as 8-bit integers."""

    unit = "bits per dim"

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        return no_bits(subject) or ("" if "elbo" in subject.first.out.metrics else f"{subject.model.name} has no ELBO")

    def each(self, seen: Seen) -> dict[str, Tensor]:
        return {"bits_per_dim": bits(seen.out.metrics["elbo"], seen.x, self.subject)}


@METRICS.register("log_prob")
class LogProb(Metric):
    """The log-likelihood by importance sampling, log 1/n sum_i w_i, with n = `log_prob` draws (5000).

    In float64 (arXiv:1509.00519, eq. 8). A lower bound in expectation, which rises to log p(x) with n. How far it still has to
    rise is told by
    - "log_prob_1", "log_prob_10", ...: the bound with so many draws, from the same draws in groups;
    - "log_prob_noise": how much the mean over the samples varies with the draws, its standard deviation by the delta method,
      sqrt(sum_x (n sum w^2 / (sum w)^2 - 1) / n) / N, which is too small where few draws count;
    - "log_prob_ess": (sum w)^2 / sum w^2, the draws that count, of n;
    - "log_prob_bits_per_dim" as "bits_per_dim".
    Holds 8 n bytes for each sample of a piece."""

    gives = ("log_prob", "log_prob_noise", "log_prob_ess", "log_prob_bits_per_dim")
    unit = "nats per sample"

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        model = subject.model
        if type(model).log_prob is BaseAE.log_prob:
            return f"{model.name} defines no log-likelihood; models with a bound on one do, e.g. vae"
        return ""

    @classmethod
    def by_default(cls, subject: Subject) -> bool:
        return subject.log_prob > 0

    @classmethod
    def figures(cls, subject: Subject) -> list[str]:
        names = ["log_prob"]
        if hasattr(subject.model, "log_weights"):
            names += ["log_prob_noise", "log_prob_ess", *(f"log_prob_{k}" for k in fewer(subject.log_prob or DRAWS))]
        return names if no_bits(subject) else [*names, "log_prob_bits_per_dim"]

    def __init__(self, subject: Subject):
        super().__init__(subject)
        self.draws = subject.log_prob or DRAWS
        self.variance = 0.0
        self.count = 0
        self.in_bits = not no_bits(subject)

    def unit_of(self, figure: str) -> str:
        return {"log_prob_ess": f"of {self.draws} draws", "log_prob_bits_per_dim": "bits per dim"}.get(
            figure, self.unit
        )

    def each(self, seen: Seen) -> dict[str, Tensor]:
        model: Any = self.subject.model
        if not hasattr(model, "log_weights"):  # a model of the user's own that has nothing but the contract
            with seen.drawing(WEIGHTS):
                value = model.log_prob(seen.x, self.draws, **seen.told)
            self.subject.tick(len(seen))
            return {"log_prob": value, **self._bits(value, seen)}
        n, done = self.draws, 0
        wide = torch.float32 if seen.x.device.type == "mps" else torch.float64
        log_w = torch.empty(
            n, len(seen), dtype=wide, device=seen.x.device
        )  # of one piece: a list of parts would scatter the heap
        with seen.drawing(WEIGHTS):
            h = model.hidden(seen.x, **seen.told)
            for s in model.draws_at_once(n, seen.x):
                log_w[done : done + s] = model.log_weights(seen.x, h, s, **seen.told)
                done += s
                self.subject.tick(len(seen) * s / n)
        total = torch.logsumexp(log_w, 0)
        ess = torch.exp(2 * total - torch.logsumexp(2 * log_w, 0))
        self.variance += float(((n / ess - 1).clamp_min(0) / n).sum())
        self.count += len(seen)
        value = total - math.log(n)
        few = {f"log_prob_{k}": bound_of_groups(log_w, k) for k in fewer(n)}
        return {"log_prob": value, "log_prob_ess": ess, **few, **self._bits(value, seen)}

    def _bits(self, value: Tensor, seen: Seen) -> dict[str, Tensor]:
        return {"log_prob_bits_per_dim": bits(value, seen.x, self.subject)} if self.in_bits else {}

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        if not self.count:
            return {}
        return {"log_prob_noise": Figure(math.sqrt(self.variance) / self.count, math.nan, self.count)}


def fewer(n: int) -> list[int]:
    """1, 10, 100, ... below n."""
    return [10**i for i in range(len(str(n))) if 10**i < n]


def bound_of_groups(log_w: Tensor, k: int) -> Tensor:
    """The mean over groups of k draws of log 1/k sum w, an unbiased estimate of the bound with k draws: (n, B) -> (B,).

    An incomplete last group is left out. Of nested groups the larger one is never below the smaller (Jensen)."""
    whole = log_w[: len(log_w) // k * k].unflatten(0, (-1, k))
    return (torch.logsumexp(whole, 1) - math.log(k)).mean(0)
