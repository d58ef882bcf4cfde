"""What is used of a codebook or a dictionary, counted over the whole set.

Legend: N samples, K codes of a codebook or latents of a dictionary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from .base import GROUPS, METRICS, Figure, Metric, Seen, Subject
from .reconstruction import grouped


@METRICS.register("codebook")
class Codebook(Metric):
    """ "perplexity", exp of the entropy of how often each code is used, and "usage", the fraction of the codes that are used at all.

    Over the whole set, where a mean over batches would be too low. A uniform codebook has its size as perplexity. Of several codebooks
    the means, and each one's own, e.g. "perplexity_top". The perplexity's error is the jackknife's over twenty groups of samples."""

    gives = ("perplexity", "usage")

    def __init__(self, subject: Subject):
        super().__init__(subject)
        self.counts: dict[str, Tensor] = {}  # of each codebook: (GROUPS, K)
        self.samples = torch.zeros(GROUPS)

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        return "" if hasattr(subject.model, "by_codebook") else f"{subject.model.name} has no codebook"

    @classmethod
    def figures(cls, subject: Subject) -> list[str]:
        model: Any = subject.model
        books = model.by_codebook(model.indices(subject.first.x))
        each = [f"{kind}_{book}" for kind in ("perplexity", "usage") for book in books if book]
        return [*cls.gives, *each]

    def unit_of(self, figure: str) -> str:
        model: Any = self.subject.model
        return f"of {model.num_codes} codes" if figure.startswith("perplexity") else "fraction"

    def see(self, seen: Seen) -> None:
        model: Any = self.subject.model
        group = seen.positions.cpu() % GROUPS
        self.samples.index_add_(0, group, torch.ones(len(seen)))
        for book, indices in model.by_codebook(model.indices(seen.x)).items():
            rows = indices.flatten(1).cpu()
            count = self.counts.setdefault(book, torch.zeros(GROUPS, model.num_codes, dtype=torch.int64))
            flat = (group[:, None] * model.num_codes + rows).flatten()
            count.view(-1).index_add_(0, flat, torch.ones_like(flat))

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        n = int(self.samples.sum())
        found = {}
        for book, counts in self.counts.items():
            name = f"_{book}" if book else ""
            found["perplexity" + name] = grouped(lambda keep, c=counts: self._perplexity(c, keep), self.samples)
            found["usage" + name] = Figure(float((counts.sum(0) > 0).double().mean()), math.nan, n)
        if "perplexity" not in found:
            every = list(self.counts.values())

            def together(keep: Tensor) -> float:
                return sum(self._perplexity(c, keep) for c in every) / len(every)

            used = [found[f"usage_{book}"].mean for book in self.counts]
            both = {"perplexity": grouped(together, self.samples), "usage": Figure(sum(used) / len(used), math.nan, n)}
            found = {**both, **found}
        return found

    @staticmethod
    def _perplexity(counts: Tensor, keep: Tensor) -> float:
        return float(fn.perplexity(counts[keep].sum(0).double()))


def _not_sparse(subject: Subject) -> str:
    return "" if subject.model.sparse_code else f"{subject.model.name} has no sparse code"


@METRICS.register("l0")
class L0(Metric):
    """Latents that are not 0, per sample."""

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        return _not_sparse(subject)

    def unit_of(self, figure: str) -> str:
        return f"of {math.prod(self.subject.model.latent_shape)} latents"

    def each(self, seen: Seen) -> dict[str, Tensor]:
        return {"l0": (seen.code != 0).sum(1)}


@METRICS.register("dead")
class Dead(Metric):
    """Fraction of the latents that are 0 for every sample of the set."""

    unit = "fraction"

    def __init__(self, subject: Subject):
        super().__init__(subject)
        self.fired: Tensor | None = None
        self.samples = 0

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        return _not_sparse(subject)

    def see(self, seen: Seen) -> None:
        fired = (seen.z != 0).transpose(0, 1).flatten(1).any(1)  # (K,): a latent of a grid may fire at any place
        self.fired = fired if self.fired is None else self.fired | fired
        self.samples += len(seen)

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        assert self.fired is not None
        return {"dead": Figure(float((~self.fired).double().mean()), math.nan, self.samples)}
