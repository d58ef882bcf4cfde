"""How close a model's samples come to the data: `frechet`, asked of what `model.sample` draws.

The evaluated set is compared with `samples` draws (by default as many as it has) in the space of `features` ("pixels", "fashion",
"inception" or a function, see `aezoo.metrics.features`). Draws are cut to [0, 1] if the data lie there, as a picture's file would be.
Figures compare with each other only where features and numbers of samples are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import frechet
from .base import METRICS, Figure, Metric, Seen, Subject
from .features import feature_extractor
from .labels import figures_of

NEIGHBOURS = 3  # arXiv:1904.06991, section 2


class OfSamples(Metric):
    """Base of those that compare new samples with the data."""

    cheap = False
    few = 2

    def __init__(self, subject: Subject):
        super().__init__(subject)
        self.features = feature_extractor(subject.features)
        self.real: list[Tensor] = []

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        if subject.model.accepts_missing:
            return "it takes data without missing entries"
        number = min(subject.size, subject.wanted())
        return subject.samples_itself or ("" if number >= cls.few else f"it needs at least {cls.few} samples and draws")

    def unit_of(self, figure: str) -> str:
        return f"features: {self.features.name}"

    def see(self, seen: Seen) -> None:
        self.real.append(self.features(seen.x).cpu())

    def both(self) -> tuple[Tensor, Tensor]:
        """Features of the data (N, K) and of the draws (M, K)."""
        return torch.cat(self.real), self.subject.model_samples(self.subject.wanted(), self.features)


@METRICS.register("frechet_distance")
class FrechetDistance(OfSamples):
    """Fréchet distance between the features of the data and those of samples from the model ("FID" with Inception's features)."""

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        groups = 10 if self.real[0].shape[1] <= 256 else 0  # each group costs two decompositions
        return figures_of(frechet.frechet_distance(*self.both(), groups=groups, seed=self.subject.seed))


@METRICS.register("precision_recall")
class PrecisionRecall(OfSamples):
    """Precision and recall of samples from the model: the share of them among the data, and of the data among them (arXiv:1904.06991)."""

    gives = ("precision", "recall")
    few = NEIGHBOURS + 1

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        return figures_of(frechet.precision_recall(*self.both(), NEIGHBOURS, seed=self.subject.seed))
