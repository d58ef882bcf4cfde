"""How well samples come back: loss, squared error, PSNR, SSIM, unexplained variance.

Legend: B samples of a piece, N of the whole set, D data dims, C channels, H x W pixels; x data, x^ its reconstruction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import functional as fn
from ..figures import shown
from .base import GROUPS, METRICS, Figure, Metric, Ratio, Seen, Subject
from .checks import jackknife

FLOOR = 1e-10  # of the squared error in `psnr`: 100 dB


@METRICS.register("loss")
class Loss(Metric):
    """The loss, its terms unweighted, and what the model watches beside them, e.g. "elbo", as in training but in evaluation mode.

    A term that belongs to a batch (the KL sparsity penalty, an MMD, an estimate of the total correlation) is that of pieces of
    `batch_size`, at most 512, and such a scalar has no standard error. A ratio such as an accuracy over the entries that are there is
    that of the whole set. What other metrics take over the whole set is left to them."""

    LEFT_OUT = ("active",)  # of a batch; 1 - "dead" of the whole set

    @classmethod
    def figures(cls, subject: Subject) -> list[str]:
        others = [m for name, m in METRICS.entries.items() if name != cls.name and not m.why_not(subject)]
        taken = {*cls.LEFT_OUT, *(figure for m in others for figure in m.figures(subject))}
        out = subject.first.out
        return ["loss", *(name for name in (*out.terms, *shown(out.metrics)) if name not in taken)]

    def __init__(self, subject: Subject):
        super().__init__(subject)
        self.wanted = set(self.figures(subject))
        self.ratios: dict[str, Ratio] = {}

    def unit_of(self, figure: str) -> str:
        model = self.subject.model
        known = {"recon": model.units, "loss": model.units if model.likelihood.density else ""}
        nats = model.bound and figure in ("kl", "elbo", "iwae", "gap")
        return "nats per sample" if nats else known.get(figure, "")

    def each(self, seen: Seen) -> dict[str, Tensor]:
        out, weights = seen.out, self.subject.model.term_weights()
        weighted = [v * weights.get(k, 1.0) for k, v in out.terms.items()]
        loss = torch.stack([t if t.dim() else t.expand(len(seen)) for t in weighted]).sum(0)
        named = {**out.terms, **out.metrics}
        return {"loss": loss, **{k: v for k, v in named.items() if k in self.wanted}}

    def see(self, seen: Seen) -> None:
        found = seen.out.metrics
        for name in self.wanted:
            if f"{name}.over" in found:
                ratio = self.ratios.setdefault(name, Ratio())
                ratio.add(found[f"{name}.over"], found[f"{name}.under"], len(seen))

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        return {name: ratio.figure() for name, ratio in self.ratios.items()}


@METRICS.register("mse")
class MSE(Metric):
    """Squared error per data element of the reconstruction. Missing entries are left out."""

    unit = "per element"

    def each(self, seen: Seen) -> dict[str, Tensor]:
        return {"mse": seen.errors[1]}


@METRICS.register("squared_error")
class SquaredError(Metric):
    """Squared error of the reconstruction, summed over a sample. Missing entries are left out."""

    unit = "per sample"

    def each(self, seen: Seen) -> dict[str, Tensor]:
        return {"squared_error": seen.errors[0]}


def _outside(subject: Subject) -> str:
    low, high = subject.span
    return "" if subject.in_unit_range else f"it needs data in [0, 1], and this lies in [{low:g}, {high:g}]"


@METRICS.register("psnr")
class PSNR(Metric):
    """Peak signal-to-noise ratio -10 log10(mse) of each sample, for data in [0, 1]; at most 100 dB."""

    unit = "dB"

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        return _outside(subject)

    def each(self, seen: Seen) -> dict[str, Tensor]:
        return {"psnr": -10 * torch.log10(seen.errors[1].clamp_min(FLOOR))}


@METRICS.register("ssim")
class SSIM(Metric):
    """Structural similarity (Wang et al. 2004), 1 for equal images, for images in [0, 1]; `aezoo.functional.ssim` has the formula.

    Images of less than 11 pixels along an edge have the largest odd window that fits."""

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        shape = subject.model.input_shape
        if len(shape) != 3 or min(shape[1:]) < 3:
            return f"it needs images (channels, height, width) of at least 3 x 3 pixels, and samples are {shape}"
        return "it takes images without missing pixels" if subject.model.accepts_missing else _outside(subject)

    def each(self, seen: Seen) -> dict[str, Tensor]:
        return {"ssim": fn.ssim(seen.recon, seen.x)}


@METRICS.register("fvu")
class FVU(Metric):
    """Fraction of variance unexplained, sum |x - x^|^2 / sum |x - mean|^2, both sums and the mean over the whole set.

    Its error is the jackknife's over twenty groups. Without being asked for on models with a sparse code."""

    unit = "fraction"

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        return "it takes data without missing entries" if subject.model.accepts_missing else ""

    @classmethod
    def by_default(cls, subject: Subject) -> bool:
        return subject.model.sparse_code

    def __init__(self, subject: Subject):
        super().__init__(subject)
        self.origin: Tensor | None = None  # the first sample, which keeps digits where the mean is far from 0

    def see(self, seen: Seen) -> None:
        goal = getattr(self.subject.model, "goal", lambda x, target: x)(seen.x, None)
        rows = self.subject.wide(goal).flatten(1)  # (B, D)
        if self.origin is None:
            self.origin = rows[0]
            self.counts = rows.new_zeros(GROUPS)
            self.residual, self.squares = rows.new_zeros(GROUPS), rows.new_zeros(GROUPS)
            self.sums = rows.new_zeros(GROUPS, rows.shape[1])
        away, group = rows - self.origin, seen.positions.to(rows.device) % GROUPS
        error = self.subject.wide(seen.recon - seen.x).square().flatten(1).sum(1)
        self.counts.index_add_(0, group, torch.ones_like(error))
        self.residual.index_add_(0, group, error)
        self.squares.index_add_(0, group, away.square().sum(1))
        self.sums.index_add_(0, group, away)

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        def fvu(keep: Tensor) -> float:
            n = self.counts[keep].sum()
            spread = self.squares[keep].sum() - self.sums[keep].sum(0).square().sum() / n
            return float(self.residual[keep].sum() / spread) if spread > 0 else math.nan

        return {"fvu": grouped(fvu, self.counts)}


def grouped(value: object, counts: Tensor) -> Figure:
    """A figure of the whole set with the jackknife's error: `value(keep)` is that of the groups in `keep`, (GROUPS,) bool; `counts`
    are their samples."""
    assert callable(value)
    there = counts > 0
    whole = value(there)
    parts = [value(there & (torch.arange(GROUPS, device=counts.device) != g)) for g in there.nonzero()[:, 0].tolist()]
    return Figure(whole, jackknife(whole, parts) if int(there.sum()) > 1 else math.nan, int(counts.sum()))
