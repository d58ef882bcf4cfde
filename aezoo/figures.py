"""Figures of many batches that are no mean of the batches' figures: ratios of sums, and what is used of a codebook.

The loop averages what a model reports over samples. That is right for a loss; but a mean of ratios is not the ratio of the whole, and
a small batch cannot use all codes. So beside such a figure of the batch a model reports its *parts* among the metrics: means over
the batch, of any shape, named "figure.part"; those of a ratio are (B,), one for each sample, or such means. The loop averages them over
samples, too, in float64 where the device has it, and `folded` makes the figure of an epoch or of a validation set from their averages;
`aezoo.evaluate` makes ratios of the whole set of them. Whoever else reads `model(x).metrics` or those of `model.loss(x)` sees the
batch's figures alone.

    "NAME.over", "NAME.under"                  NAME = over / under
    "NAME.fired"                               how often each latent is used, (K,): NAME is the fraction that is used at all
    "fvu.left", ".spread", ".square", ".mean"  mean |x - x^|^2, mean |x - m|^2, |m|^2 and m, where m is the batch's mean:
                                               fvu = E[left] / (E[spread] + E[square] - |E[mean]|^2)
    "codes.BOOK"                               how often a sample uses each code of a codebook, (levels, K): "perplexity" and "usage",
                                               means over all levels of all books, and "perplexity_BOOK"

The last bracket of fvu is the variance of the whole as the mean variance within the batches and that of their means (Chan, Golub &
LeVeque 1983): only what lies between batches is a difference of squares, so no digits are lost where means are far from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from . import functional as fn
from .wholebatch import batch_mean, whole_size

_PART = re.compile(r"fvu\.(left|spread|square|mean)|codes\.\w*|\w+\.(over|under|fired)")
SAME = 1e-12  # variance over squared mean below which data count as constant: the rounding of means in float32


def is_part(name: str) -> bool:
    """Is it a part of a figure, not a figure?"""
    return "." in name and _PART.fullmatch(name) is not None


def shown(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The metrics without parts."""
    return {k: v for k, v in metrics.items() if not is_part(k)}


def averaged(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Metrics of a pass, (B,) or scalar, as scalars without gradient; parts of other figures than ratios are means already."""
    ready = {k for k in metrics if is_part(k) and not k.endswith((".over", ".under"))}
    return {k: v.detach() if k in ready else v.detach().mean() for k, v in metrics.items()}


def wide(x: Tensor) -> Tensor:
    """`x` in float64, where the device has it."""
    return x if x.device.type == "mps" else x.double()


# ------------------------------------------------------------------------------------------------- what models report


@torch.no_grad()
def unexplained(recon: Tensor, goal: Tensor) -> dict[str, Tensor]:
    """ "fvu" of the whole batch and its parts: |x - x^|^2 / |x - mean(x)|^2, both summed over the batch. (B, ...) twice; no gradient."""
    goal, recon = fn.full(goal), fn.full(recon)
    mean = batch_mean(goal)
    left, spread = (batch_mean(torch.linalg.vector_norm((goal - x).flatten(1), dim=1).square()) for x in (recon, mean))
    fvu = torch.where(spread > 0, left / torch.where(spread > 0, spread, 1), 0)
    parts = {"left": left, "spread": spread, "square": wide(mean).square().sum(), "mean": mean}
    return {"fvu": fvu, **{f"fvu.{k}": v for k, v in parts.items()}}


def used(counts: Tensor, rows: int) -> dict[str, Tensor]:
    """ "perplexity" and "usage", means over levels, and their part. counts (levels, K): how often the whole batch, of which `rows`
    samples are here, uses each code."""
    figures = {"perplexity": fn.perplexity(counts).mean(), "usage": (counts > 0).to(counts).mean()}
    return {**figures, "codes.": counts / whole_size(rows)}


# ------------------------------------------------------------------------------------------------ what the loop makes of it


def folded(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Averages over samples, parts included -> the figures, each where its batches' average stood."""
    result = {k: float(v) for k, v in means.items() if not is_part(k)}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in means.items():
        if is_part(name):
            figure, _, part = name.partition(".")
            parts.setdefault(figure, {})[part] = value.double().cpu()
    for figure, found in parts.items():
        if figure == "codes":
            result |= _codes(found)
        elif figure == "fvu":
            result["fvu"] = _fvu(**found)
        elif "fired" in found:
            result[figure] = float((found["fired"] > 0).double().mean())
        else:
            result[figure] = _ratio(**found)
    return result


def _ratio(over: Tensor, under: Tensor) -> float:
    return float(over / under) if under else 0.0


def _fvu(left: Tensor, spread: Tensor, square: Tensor, mean: Tensor) -> float:
    between = square - mean.square().sum()
    return 0.0 if spread + between <= SAME * square else _ratio(left, spread + between)


def _codes(books: dict[str, Tensor]) -> dict[str, float]:
    perplexity = {f"perplexity_{book}": float(fn.perplexity(counts).mean()) for book, counts in books.items() if book}
    levels = list(books.values())
    each = torch.cat([fn.perplexity(counts) for counts in levels])
    usage = torch.cat([(counts > 0).double().mean(1) for counts in levels])
    return {"perplexity": float(each.mean()), "usage": float(usage.mean()), **perplexity}
