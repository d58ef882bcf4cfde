"""What a metric is, what it sees, and what it is chosen by.

A metric is a class with a name in METRICS. It says by `why_not` what it needs, and fills one or more of

    each(seen)      figures of single samples, (<= B,) each: their mean and standard error are taken over the whole set
    see(seen)       what it counts itself, piece by piece
    whole(kept)     figures of the whole set, from what it counted and from what it asked by `keeps` to be kept of all samples

so samples count equally, whatever pieces they come in. The same samples, draws and figures come out of pieces of any size: samples
belong to blocks of 512, every block has a seed of its own, and a piece's draws are cut from those of its block (`Seen.drawing`).

Legend: B samples of a piece, N of the whole set, D data dims, K numbers of a code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import functional as fn
from ..base import AEOutput, BaseAE
from ..data.sources import Source
from ..index_prior import IndexPrior
from ..randomness import mix_seed, set_seed
from ..registry import Registry
from ..wholebatch import spread

METRICS: Registry[Metric] = Registry("metric")
BLOCK = 512  # samples that share a seed; the most that are taken at once
GROUPS = 20  # of samples, for the jackknife: every twentieth
DATA, FORWARD, CODES, WEIGHTS, PRIOR, MODEL_SAMPLES = range(6)  # what is drawn, each from a seed of its own


class Figure(NamedTuple):
    """One number that tells how good a model is."""

    mean: float
    stderr: float
    """Its standard error; NaN where there is none."""
    samples: int
    """How many samples it was taken over."""
    values: list[float] | None = None
    """Its parts, e.g. one for each latent."""


class Place(NamedTuple):
    """Rows `start` to `stop` of a block of `total` samples."""

    block: int
    start: int
    stop: int
    total: int


def pieces(source: Source, size: int, device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[Seen]:
    """All samples in pieces of at most `size`, none of which lies in two blocks."""
    size = min(size, BLOCK)
    blocks = torch.arange(len(source)).split(BLOCK)
    plan = [part for block in blocks for part in block.split(size)] if source.ordered else []
    batches, at = iter(source.batches(plan, device, dtype, seed)), 0
    step = 0
    while True:
        expected = len(plan[step]) if step < len(plan) else 0
        set_seed(mix_seed(seed, at // BLOCK, DATA), device)
        with _cut(_place(at, expected, len(source))) if expected else nullcontext():
            batch = next(batches, None)
        if batch is None:
            return
        step, done = step + 1, 0
        while done < len(batch.x):
            stop = min(done + size, done + BLOCK - at % BLOCK, len(batch.x))
            y = None if batch.y is None else batch.y[done:stop]
            yield Seen(batch.x[done:stop], y, _place(at, stop - done, len(source)), seed)
            at, done = at + stop - done, stop


def _place(at: int, rows: int, samples: int) -> Place:
    block, start = divmod(at, BLOCK)
    return Place(block, start, start + rows, max(start + rows, min(BLOCK, samples - block * BLOCK)))


def _cut(place: Place) -> Any:
    """Draws inside the block are those of the whole block of samples, cut to the place's rows."""
    if place.start == 0 and place.stop == place.total:
        return nullcontext()
    return spread(place.start, place.stop, place.total, alone=True)


class Seen:
    """A piece of the data and what the model makes of it, each computed when it is first asked for."""

    model: BaseAE

    def __init__(self, x: Tensor, y: Tensor | None, place: Place, seed: int):
        self.x, self.y, self.place, self.seed = x, y, place, seed

    def __len__(self) -> int:
        return len(self.x)

    def of(self, model: BaseAE) -> Seen:
        self.model = model
        return self

    @contextmanager
    def drawing(self, what: int) -> Iterator[None]:
        """Draws inside the block are a function of the seed, `what` and the samples: not of the piece they came in, nor of what
        else was drawn."""
        set_seed(mix_seed(self.seed, self.place.block, what), self.x.device)
        with _cut(self.place):
            yield

    @property
    def told(self) -> dict[str, Tensor]:
        return {"condition": self.y} if self.model.takes_condition and self.y is not None else {}

    @cached_property
    def positions(self) -> Tensor:
        """Of the samples in the whole set, (B,) int64."""
        return torch.arange(self.place.start, self.place.stop, device=self.x.device) + self.place.block * BLOCK

    @cached_property
    def out(self) -> AEOutput:
        """One pass as in training, with its draws, in evaluation mode; with the parts of figures that are no means over samples."""
        with self.drawing(FORWARD), self.model.reporting_parts():
            return self.model(self.x, **self.told)

    @cached_property
    def recon(self) -> Tensor:
        return self.model.reconstruct(self.x, **self.told)

    @cached_property
    def errors(self) -> tuple[Tensor, Tensor]:
        """(summed, mean) squared error of each sample that has an entry which is there: (<= B,) twice."""
        error = (self.recon - self.x).square().flatten(1)
        if not self.model.accepts_missing:
            return error.sum(1), error.mean(1)
        there = ~torch.isnan(self.x.flatten(1))
        kept = there.any(1)
        return fn.masked_sum(error, there)[kept], fn.masked_mean(error, there)[kept]

    @cached_property
    def z(self) -> Tensor:
        return self.model.encode(self.x, False, **self.told)

    @cached_property
    def code(self) -> Tensor:
        """The code in a row, (B, K)."""
        return self.z.flatten(1)

    @cached_property
    def drawn(self) -> Tensor:
        """The code in a row, drawn from the posterior where there is one: (B, K)."""
        with self.drawing(CODES):
            return self.model.encode(self.x, True, **self.told).flatten(1)

    @cached_property
    def _posterior(self) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        return model.posterior(model.hidden(self.x, self.told.get("condition")))

    @property
    def mu(self) -> Tensor:
        return self._posterior[0]

    @property
    def logvar(self) -> Tensor:
        return self._posterior[1]


class Subject:
    """The model and the data that are evaluated, and what a metric may ask before anything is computed."""

    def __init__(
        self,
        model: BaseAE,
        source: Source,
        *,
        span: tuple[float, float],
        device: torch.device,
        seed: int,
        log_prob: int = 0,
        samples: int | None = None,
        features: Any = "pixels",
        train: Callable[[], Source] | None = None,
        tick: Callable[[float], Any] = lambda n: None,
    ):
        self.model, self.source, self.span, self.device, self.seed = model, source, span, device, seed
        self.log_prob, self.samples, self.features, self.train, self.tick = log_prob, samples, features, train, tick
        self.dtype = next(model.parameters()).dtype
        self.size = len(source)

    def pieces(self, source: Source, size: int) -> Iterator[Seen]:
        """All samples of a source, each piece with the model to look at it."""
        return (seen.of(self.model) for seen in pieces(source, size, self.device, self.dtype, self.seed))

    @cached_property
    def first(self) -> Seen:
        """The first two samples, or the only one."""
        batch = self.source.peek(2, self.device, self.dtype)
        return Seen(batch.x, batch.y, Place(0, 0, len(batch.x), len(batch.x)), self.seed).of(self.model)

    @cached_property
    def gaussian(self) -> bool:
        """Does the model draw from q(z|x) = N(mu, diag exp(logvar))?"""
        from ..prior_fitting import gaussian_posterior

        with self.first.drawing(CODES):
            return gaussian_posterior(self.model, self.first.x, self.first.told) is not None

    @cached_property
    def in_unit_range(self) -> bool:
        return self.span[0] >= 0 and self.span[1] <= 1

    @cached_property
    def binary(self) -> bool:
        """Are all values 0 or 1? Of the first samples that are looked at, where not all lie in a tensor."""
        x = getattr(self.source, "x", None)
        if self.source.binarize != "none":
            return True
        if not self.in_unit_range or self.span[0] > 0:
            return False
        if not isinstance(x, Tensor):
            x = self.source.peek(BLOCK, self.device, self.dtype).x
        top = 255 if x.dtype == torch.uint8 else 1
        return bool(((x == 0) | (x == top) | (x != x)).all())

    @property
    def eight_bit(self) -> bool:
        """Was the data given as 8-bit integers, of which more than two occur?"""
        return self.source.stored == torch.uint8 and not self.binary

    def wide(self, x: Tensor) -> Tensor:
        """`x` in float64, on the device where that has it."""
        return x.cpu().double() if self.device.type == "mps" else x.to(self.device, torch.float64)

    @cached_property
    def training_codes(self) -> tuple[Tensor, Tensor]:
        """Codes (N, K) and labels (N,) of what the model was trained on, on the CPU. Raises ValueError if it has no labels."""
        assert self.train is not None
        parts = [(seen.code.cpu(), seen.y) for seen in self.pieces(self.train(), BLOCK)]
        labels = [y.cpu() for _, y in parts if y is not None]
        if len(labels) < len(parts):
            raise ValueError("the data that the model was trained on has no labels, to which a probe could be fitted")
        return torch.cat([z for z, _ in parts]), torch.cat(labels)

    def wanted(self) -> int:
        """Draws from a prior: as many as were asked for, else one for each sample."""
        return self.samples or self.size

    def prior_codes(self, n: int) -> Tensor:
        """n codes from the model's prior in a row, (n, K)."""
        like = next(self.model.parameters())
        return self._in_blocks(n, PRIOR, lambda m: self.model.prior.sample(m, self.model.latent_shape, like).flatten(1))

    def model_samples(self, n: int, features: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of n new samples from the model, (n, K), on the CPU. Samples are cut to [0, 1] if the data lie there."""
        low, high = (0.0, 1.0) if self.in_unit_range else (-math.inf, math.inf)
        return self._in_blocks(n, MODEL_SAMPLES, lambda m: features(self.model.sample(m).clamp(low, high)).cpu())

    def _in_blocks(self, n: int, what: int, draw: Callable[[int], Tensor]) -> Tensor:
        parts = []
        for i, first in enumerate(range(0, n, BLOCK)):
            set_seed(mix_seed(self.seed, i, what), self.device)
            parts.append(draw(min(BLOCK, n - first)))
        return torch.cat(parts)

    @property
    def samples_itself(self) -> str:
        """Why the model cannot draw new samples; "" if it can."""
        return "" if self.model.prior is not None else f"{self.model.name} has no prior; aezoo.fit_prior gives it one"

    @property
    def has_density_prior(self) -> str:
        """Why no codes can be drawn from the model's prior; "" if they can."""
        if isinstance(self.model.prior, IndexPrior):
            return f"the prior of this {self.model.name} is one of indices, not of codes"
        return self.samples_itself


class Metric:
    """Base of all metrics. Its docstring's first line is what `aezoo evaluate --list` shows."""

    name: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    cheap: ClassVar[bool] = True  # taken without being asked for, where it fits
    gives: ClassVar[tuple[str, ...]] = ()  # its figures, as far as they are always the same; (): one of its own name
    keeps: ClassVar[tuple[str, ...]] = ()  # attributes of `Seen` that `whole` gets of all samples, on the CPU

    def __init__(self, subject: Subject):
        self.subject = subject

    @classmethod
    def why_not(cls, subject: Subject) -> str:
        """Why it does not fit this model and data; "" if it does."""
        return ""

    @classmethod
    def by_default(cls, subject: Subject) -> bool:
        """Is it taken without being asked for, where it fits?"""
        return cls.cheap

    @classmethod
    def figures(cls, subject: Subject) -> list[str]:
        """The names of what it gives, where it fits."""
        return list(cls.gives or (cls.name,))

    def unit_of(self, figure: str) -> str:
        return self.unit

    def each(self, seen: Seen) -> dict[str, Tensor]:
        """Figures of single samples, (<= B,), or 0-dim for what belongs to the whole piece."""
        return {}

    def see(self, seen: Seen) -> None:
        """Counts a piece."""

    def whole(self, kept: dict[str, Tensor]) -> dict[str, Figure]:
        """Figures of the whole set."""
        return {}


class Mean:
    """Mean and standard error of a figure of single samples, in float64."""

    def __init__(self) -> None:
        self.total = self.squares = 0.0
        self.samples = 0
        self.whole_piece = False

    def add(self, values: Tensor, samples: int) -> None:
        """(n,), or 0-dim: then it stands for `samples` samples, and there is no standard error."""
        values = values.detach()
        if values.dim() == 0:
            self.whole_piece, values = True, values.expand(samples)
        values = values.cpu().double() if values.device.type == "mps" else values.double()
        self.total += float(values.sum())
        self.squares += float(values.square().sum())
        self.samples += len(values)

    def figure(self) -> Figure:
        n = self.samples
        if n == 0:
            return Figure(math.nan, math.nan, 0)
        mean = self.total / n
        spread = max(0.0, self.squares / n - mean * mean) * n / max(1, n - 1)
        error = math.nan if self.whole_piece or n < 2 else math.sqrt(spread / n)
        return Figure(mean, error if math.isfinite(error) else math.nan, n)


class Ratio:
    """R = sum a / sum b of two figures of single samples, in float64, with its linearised standard error:

    stderr^2 = n / (n - 1) * sum (a - R b)^2 / (sum b)^2 over the n samples whose b is not 0; that of the mean where b is 1."""

    def __init__(self) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64)  # of a, b, a^2, ab, b^2
        self.samples = 0
        self.whole_piece = False

    def add(self, over: Tensor, under: Tensor, samples: int) -> None:
        """a and b, (n,) each, or 0-dim: then they stand for `samples` samples, and there is no standard error."""
        self.whole_piece |= over.dim() == 0 or under.dim() == 0
        a, b = (v.detach().cpu().double().expand(samples) for v in (over, under))
        self.sums += torch.stack([a, b, a * a, a * b, b * b], 1).sum(0)
        self.samples += int((b != 0).sum())

    def figure(self) -> Figure:
        a, b, aa, ab, bb = self.sums.tolist()
        if b == 0:
            return Figure(math.nan, math.nan, 0)
        n, ratio = self.samples, a / b
        left = max(0.0, aa - 2 * ratio * ab + ratio * ratio * bb) * n / max(1, n - 1)
        return Figure(ratio, math.nan if self.whole_piece or n < 2 else math.sqrt(left) / abs(b), n)
