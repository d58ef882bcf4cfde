"""What a page is made from: a run folder's files, its model, held-out samples, and what the model makes of them.

Each is read or computed when a section first asks for it. Legend: N samples, K numbers of a code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from ..base import BaseAE
from ..data.sources import Source
from ..directions import Directions, directions
from ..models.tabular import Mixed
from ..pictures import is_image, one_label
from ..runs import HARDWARE, Progress, progress, read_object, read_rows

BATCH = 256


class Material:
    """`model` and `source` are None where there are none; what needs them raises Missing, and the page says so."""

    def __init__(
        self, folder: Path, config: dict[str, dict[str, Any]], model: BaseAE | None, weights: str, most: int, seed: int
    ):
        self.folder, self.config, self._model, self.weights, self.most, self.seed = (
            folder,
            config,
            model,
            weights,
            most,
            seed,
        )
        self.source: Source | None = None
        self.what = ""

    # ------------------------------------------------------------------------------------------------------- the files

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.folder / "metrics.jsonl")

    @cached_property
    def speed(self) -> list[dict[str, Any]]:
        return read_rows(self.folder / "speed.jsonl")

    @cached_property
    def hardware(self) -> dict[str, Any]:
        return read_object(self.folder / HARDWARE)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        return read_object(self.folder / "evaluation.json")

    @cached_property
    def progress(self) -> Progress:
        return progress(self.folder, self.rows)

    @property
    def best(self) -> dict[str, Any]:
        """The row of the lowest validation loss, else the last one."""
        judged = [row for row in self.rows if isinstance(row.get("val_loss"), (int, float))]
        return min(judged, key=lambda row: row["val_loss"]) if judged else self.rows[-1] if self.rows else {}

    # --------------------------------------------------------------------------------------------------- model and data

    @property
    def model(self) -> BaseAE:
        if self._model is None:
            raise Missing("there are no weights")
        return self._model

    @property
    def has_model(self) -> bool:
        return self._model is not None

    @property
    def like(self) -> Tensor:
        return next(self.model.parameters())

    @cached_property
    def _batch(self) -> Any:
        if self.source is None:
            raise Missing("there is no data to show")
        return self.source.peek(self.most, self.like.device, self.like.dtype)

    @property
    def x(self) -> Tensor:
        """Held-out samples, (N, *input_shape)."""
        return self._batch.x

    @cached_property
    def labels(self) -> Tensor | None:
        """One label for each sample, (N,), on the CPU; None where there are none."""
        y = one_label(self._batch.y, len(self.x))
        return None if y is None else y.cpu()

    @cached_property
    def classes(self) -> list[int]:
        """The labels that occur, if they are classes and few; else none."""
        if self.labels is None or self.labels.is_floating_point():
            return []
        kinds: list[int] = self.labels.unique().tolist()
        return kinds if len(kinds) <= 20 else []

    def class_name(self, label: int) -> str:
        names = self.source.class_names if self.source is not None else None
        return names[label] if names is not None and 0 <= label < len(names) else str(label)

    def told(self, index: Any = slice(None)) -> dict[str, Tensor]:
        """What some of the samples are told beside x, for models that take it."""
        y = self._batch.y
        return {"condition": y[index]} if self.model.takes_condition and y is not None else {}

    @property
    def images(self) -> bool:
        return is_image(self.model.input_shape)

    # --------------------------------------------------------------------------------------------- what the model makes

    def in_parts(self, compute: Callable[[Tensor, dict[str, Tensor]], Tensor]) -> Tensor:
        """`compute` of all samples and what they are told, batch by batch."""
        index = torch.arange(len(self.x), device=self.x.device).split(BATCH)
        return torch.cat([compute(self.x[i], self.told(i)) for i in index])

    @cached_property
    def z(self) -> Tensor:
        """(N, *latent_shape)"""
        return self.in_parts(lambda x, told: self.model.encode(x, False, **told))

    @cached_property
    def recon(self) -> Tensor:
        return self.in_parts(lambda x, told: self.model.reconstruct(x, **told))

    def decode(self, z: Tensor, index: Any) -> Tensor:
        """Codes of the samples `index`, or of what is told the same."""
        return self.model.decode(z, **self.told(index))

    @cached_property
    def errors(self) -> Tensor:
        """Mean squared error of each sample over what is there, (N,) on the CPU; NaN for a sample of which nothing is. Of tables, numbers
        are standardised, and a wrong class counts 1."""
        error = (
            self.drawn(self.recon) - self.drawn(self.x) if self.table else (self.recon - self.x).float().cpu()
        ).flatten(1)
        if self.table:
            classed = self.table.classed.cpu()
            error[:, classed] = (error[:, classed] != 0).float() + 0 * error[:, classed]
        there = ~torch.isnan(error)
        mean = fn.masked_mean(fn.filled(error.square(), there), there)
        return torch.where(there.any(1), mean, torch.nan)

    @property
    def error_name(self) -> str:
        return "squared error (standardised; a wrong class counts 1)" if self.table else "squared error"

    @property
    def table(self) -> Mixed | None:
        """The scales of the columns of a model of tables."""
        likelihood: Any = self.model.likelihood
        return likelihood if isinstance(likelihood, Mixed) else None

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of each feature, (D,) both, of data whose features have units of their own."""
        if self.images or (len(self.model.input_shape) > 1 and self.table is None):
            return None
        numbers = math.prod(self.model.input_shape)
        if self.table is not None:
            like, centre, spread = self.table, torch.zeros(numbers), torch.ones(numbers)
            centre[like.numeric.cpu()], spread[like.numeric.cpu()] = (
                like.centre.float().cpu(),
                like.spread.float().cpu(),
            )
            return centre, spread
        x = self.x.flatten(1).float().cpu()
        there = ~torch.isnan(x)
        centre = fn.filled(x, there).sum(0) / there.sum(0).clamp_min(1)
        spread = (fn.filled((x - centre).square(), there).sum(0) / there.sum(0).clamp_min(1)).sqrt()
        return centre, torch.where(spread > 0, spread, 1.0)

    def drawn(self, x: Tensor) -> Tensor:
        """Samples (n, *shape) as they are drawn, on the CPU: features with units of their own are standardised."""
        x = x.float().cpu()
        if self.images or self.source is None or self._scales is None:
            return x
        centre, spread = self._scales
        return ((x.flatten(1) - centre) / spread).view_as(x)

    @cached_property
    def directions(self) -> Directions:
        return directions(self.model, self.z)

    def caption(self, i: int) -> str:
        """The label of a sample, in words."""
        if self.labels is None:
            return ""
        value = self.labels[i].item()
        return self.class_name(int(value)) if not self.labels.is_floating_point() else f"{value:.3g}"


class Missing(ValueError):
    """Why a section cannot be drawn."""


def spread_over(errors: Tensor, n: int) -> Sequence[int]:
    """n samples with errors from small to large, so that what is seen is neither the best nor the worst: their numbers."""
    order = errors.nan_to_num(torch.inf).argsort(stable=True)
    places = torch.linspace(0.05, 0.95, n).mul(len(order) - 1).round().long().unique()
    return order[places].tolist()
