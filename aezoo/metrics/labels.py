"""What the code tells of labels and factors: `probing` and `disentanglement`, asked of a model's codes.

Codes are those of `model.encode`, in a row. Probes are fitted to the codes of `train`, the data that the model was trained on; without
it, to a half of the evaluated set that the seed draws, and judged on the other half.

Legend: N samples, K numbers of a code, F factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import disentanglement, probing
from .base import METRICS, Figure, Metric, Subject
from .checks import Scores


def figures_of(scores: Scores) -> dict[str, Figure]:
    return {name: Figure(*score) for name, score in scores.items()}


class OfLabels(Metric):
    """Base of those that need one whole-number label a sample."""

    cheap = False
    keeps = ("code", "y")

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        y = subject.first.y
        if y is None or y.dim() != 1 or y.is_floating_point():
            return "it needs a whole-number label for each sample, and the data has none"
        return "" if subject.size > 1 else "it needs at least two samples"

    def halves(self, kept: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes and labels to fit, codes and labels to judge."""
        subject = self.subject
        if subject.train is not None:
            return *subject.training_codes, kept["code"], kept["y"]
        order = torch.randperm(subject.size, generator=torch.Generator().manual_seed(subject.seed))
        fit, judge = order[: subject.size // 2], order[subject.size // 2 :]
        return kept["code"][fit], kept["y"][fit], kept["code"][judge], kept["y"][judge]


@METRICS.register("linear_probe")
class LinearProbe(OfLabels):
    """Accuracy of a linear classifier of the codes."""

    unit = "fraction"
    gives = ("linear_probe_accuracy",)

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        return figures_of(probing.linear_probe(*self.halves(kept)))


@METRICS.register("knn")
class KNN(OfLabels):
    """Accuracy of the majority of the 10 nearest codes by angle (of all of them, where there are fewer)."""

    unit = "fraction"
    gives = ("knn_accuracy",)

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        halves = self.halves(kept)
        return figures_of(probing.knn_accuracy(*halves, k=min(10, len(halves[0]))))


@METRICS.register("kmeans")
class KMeans(OfLabels):
    """How well k-means clusters of the codes, as many as there are classes, agree with the labels."""

    gives = ("kmeans_nmi", "kmeans_ari", "kmeans_accuracy")

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        return figures_of(probing.kmeans_scores(kept["code"], kept["y"], seed=self.subject.seed))


class OfFactors(Metric):
    """Base of those that need a table of factors: labels (N, F)."""

    cheap = False
    keeps = ("code", "y")
    score: Callable[..., Scores]

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        y = subject.first.y
        if y is None or y.dim() != 2:
            return "it needs a table of factors, labels (N, F), and the data has none"
        return "" if subject.size > 1 else "it needs at least two samples"

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        call: Any = type(self).score
        return figures_of(call(kept["code"], kept["y"], seed=self.subject.seed))


@METRICS.register("mig")
class MIG(OfFactors):
    """Mutual information gap (arXiv:1802.04942)."""

    score = staticmethod(disentanglement.mig)


@METRICS.register("sap")
class SAP(OfFactors):
    """Separated attribute predictability (arXiv:1711.00848)."""

    score = staticmethod(disentanglement.sap)


@METRICS.register("dci")
class DCI(OfFactors):
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018)."""

    gives = ("dci_disentanglement", "dci_completeness", "dci_informativeness")
    score = staticmethod(disentanglement.dci)


@METRICS.register("factor_vae")
class FactorVAEScore(OfFactors):
    """The metric of FactorVAE (arXiv:1802.05983, section 4)."""

    gives = ("factor_vae_score", "factor_vae_score_corrected")
    score = staticmethod(disentanglement.factor_vae_score)
