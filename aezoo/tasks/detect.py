"""How abnormal samples are, by a trained model of the zoo. High = abnormal.

    recon         |x - x^|^2 / D: what a model of normal data cannot give back
    elbo          -ELBO, nats: what it finds improbable
    latent_knn    mean distance of the code to the nearest codes of normal samples
    mahalanobis   distance of the code to the mean of the codes of normal samples, in units of their spread

Legend: N samples, D data dims, K numbers of a code (flattened), x data, x^ reconstruction, z code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import functional as fn
from ..base import BaseAE, positive
from ..data import Source, data_for
from ..metrics.base import Seen, pieces
from ..models.tabular import Mixed
from ..randomness import checked_seed, forked_rng, mix_seed
from ..registry import MODELS, choice
from ..train.hardware import decide
from .distances import Mahalanobis, Neighbours

SCORES = ("recon", "elbo", "latent_knn", "mahalanobis")


def anomaly_scores(
    model: BaseAE,
    data: Any,
    score: str = "recon",
    reference: Any = None,
    *,
    neighbors: int = 5,
    draws: int = 8,
    batch_size: int = 512,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """How abnormal each sample of `data` is: (N,) float64 on the CPU, high = abnormal. Also `aezoo.detect`.

    Args:
        model: any trained model. data: anything that `load_data` takes, with samples of the model's shape.
        score: "recon", mean squared error of the reconstruction over the entries that are there (a table's own reconstruction
            term on models of tables, where columns may be classes); "elbo", -ELBO in nats on models that have one; "latent_knn" and
            "mahalanobis", distances of codes to those of `reference`.
        reference: normal samples, usually those that the model was trained on; needed by the last two.
        neighbors: k of "latent_knn" (Angiulli & Pizzuti 2002: the mean over k distances).
        draws: from the posterior, over which "elbo" is averaged.
        batch_size: samples at once, at most 512. device: where it computes. seed: of the draws. A score depends on the sample, its
            position and the seed, not on the batch it came in.

    The global RNG, the model's mode and its device are left as they were.
    Raises ValueError for an unknown score, "elbo" on a model without one, a missing reference, NaN where the model takes none."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    choice("score", score, SCORES)
    for name, value in (("neighbors", neighbors), ("draws", draws), ("batch_size", batch_size)):
        positive(name, value)
    checked_seed(seed)
    by_codes = score in ("latent_knn", "mahalanobis")
    if by_codes and reference is None:
        raise ValueError(
            f"score={score!r} compares with normal samples; pass reference=, e.g. what the model was trained on"
        )
    if score == "elbo":
        check_elbo(model)
    before = next(model.parameters()).device
    place = decide(device, "fp32", False).device
    if place.type == "mps" and next(model.parameters()).dtype == torch.float64:
        place = torch.device("cpu")
    walk = _Walk(model, place, batch_size, progress)
    try:
        model.to(place)
        with forked_rng(place), model.evaluating(), torch.no_grad():
            if not by_codes:
                source = walk.source(data)
                if score == "recon":
                    return torch.cat([errors(seen) for seen in walk(source, seed)])
                each = [
                    torch.cat([_bound(seen) for seen in walk(source, mix_seed(seed, i) if i else seed)])
                    for i in range(draws)
                ]
                return torch.stack(each).mean(0)
            normal, new = (
                torch.cat([seen.code.cpu().double() for seen in walk(walk.source(d), seed)]).numpy()
                for d in (reference, data)
            )
            if len(normal) < 2:
                raise ValueError(
                    f"score={score!r} compares with normal samples; reference= has {len(normal)}, it takes at least 2"
                )
            distance = Neighbours(normal, neighbors) if score == "latent_knn" else Mahalanobis(normal)
            return torch.from_numpy(np.ascontiguousarray(distance(new), dtype=np.float64))
    finally:
        model.to(before)


def detect(*args: Any, **keywords: Any) -> Tensor:
    """`anomaly_scores` under a shorter name: aezoo.detect(model, x, score="recon")."""
    return anomaly_scores(*args, **keywords)


detect.__wrapped__ = anomaly_scores  # type: ignore[attr-defined]  # its signature, for help()


def check_elbo(model: BaseAE | type[BaseAE]) -> None:
    """Raises ValueError on models whose passes report no "elbo" of single samples."""
    if not model.bound:
        able = [m for m in MODELS if MODELS[m].bound]
        raise ValueError(
            f"score='elbo' needs a model with a bound on the likelihood, and {model.name} has none; models with one: "
            f"{', '.join(able)}; scores for {model.name}: recon, latent_knn, mahalanobis"
        )


def errors(seen: Seen) -> Tensor:
    """ "recon" of the samples of a piece, (B,) float64 on the CPU. Of a sample of which nothing is there: NaN."""
    if isinstance(seen.model.likelihood, Mixed):
        return seen.out.terms["recon"].cpu().double()
    error = (seen.recon.cpu().double() - seen.x.cpu().double()).square().flatten(1)
    return error.nanmean(1) if seen.model.accepts_missing else fn.per_sample_mean(error)


def _bound(seen: Seen) -> Tensor:
    """-ELBO of one draw for each sample of a piece, (B,) float64 on the CPU."""
    found = seen.out.metrics.get("elbo")
    if found is None or found.dim() == 0:
        raise ValueError(
            f"score='elbo': {seen.model.name} reports no ELBO of single samples; take another score, e.g. 'recon'"
        )
    return -found.cpu().double()


class _Walk:
    """All samples of a source in pieces that the model looks at, with a bar after two seconds."""

    def __init__(self, model: BaseAE, device: torch.device, batch_size: int, progress: bool):
        self.model, self.device, self.batch_size, self.progress = model, device, batch_size, progress

    def source(self, data: Any) -> Source:
        source = data_for(self.model.input_shape, data)
        source.check(self.model.likelihood.support, self.model.accepts_missing)
        return source

    def __call__(self, source: Source, seed: int) -> Any:
        from tqdm import tqdm

        dtype = next(self.model.parameters()).dtype
        with tqdm(
            total=len(source),
            desc="score",
            unit=" samples",
            unit_scale=True,
            delay=2,
            leave=False,
            disable=not self.progress,
        ) as bar:
            for seen in pieces(source, self.batch_size, self.device, dtype, seed):
                yield seen.of(self.model)
                bar.update(len(seen))
