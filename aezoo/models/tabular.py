"""Autoencoders of tables: numbers and classes side by side, with entries missing.

`columns` says what each column is, by its number of classes: 0 for numbers, n for classes 0 .. n-1 (held as floating point, as the
rest of the table; `aezoo.encode_table` makes such tensors of strings). NaN is a missing entry. A sample of several axes is read
as one row, flattened.

    x (B, D) --> values standardised, classes one-hot, 0 where missing; and an indicator of what is missing --> encoder --> z
    z --> decoder --> a location per number (and a scale, if predicted), logits per class --> likelihood of what is there

Legend: B batch, D columns, N of them numbers, G of classes, M classes of the largest of these, F = N + all classes; x data, z code;
m and s mean and standard deviation of a column of numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional as fn
from ..base import BaseAE, Pass, Terms, positive
from ..likelihoods import Likelihood
from ..registry import register
from ..wholebatch import batch_mean, batch_sum
from .variational import VAE


def checked_columns(columns: Any, width: int) -> tuple[int, ...]:
    """The number of classes of each of `width` columns, 0 for numbers. A mapping {position: classes} names those with classes.

    Raises ValueError for a wrong length, a position out of range, and anything but 0 or at least 2 classes."""
    if isinstance(columns, Mapping):
        given = {int(k): v for k, v in columns.items()}
        beyond = [k for k in given if not 0 <= k < width]
        if beyond:
            raise ValueError(f"columns={dict(columns)!r} names column {beyond[0]}; a row has columns 0 to {width - 1}")
        columns = [given.get(i, 0) for i in range(width)]
    classes = [0] * width if columns is None else list(columns)
    if len(classes) != width:
        raise ValueError(f"columns={columns!r} describes {len(classes)} columns; a row has {width}")
    for i, c in enumerate(classes):
        if isinstance(c, bool) or not isinstance(c, int) or c < 0 or c == 1:
            raise ValueError(f"columns: {c!r} for column {i} must be 0 (numbers) or a number of classes, at least 2")
    return tuple(classes)


class Mixed(Likelihood):
    """Scores numbers by a likelihood and classes by the cross-entropy, -log softmax(logits)[class] in nats, where they are there.

    A density is the sum over a row's entries, its numbers in data units: -log p((x - m) / s) + log s, with a scale of its own for
    each column where the likelihood estimates one. A plain loss is the mean over a row's entries, its numbers standardised, so
    that columns of any unit weigh the same. A likelihood of numbers in [0, 1] (bernoulli, say) takes them as they are.

    m and s are those of all entries seen in training so far (buffers). The mean in data space has the most probable class where a
    column holds classes. A class that is not 0 .. n-1 makes the loss NaN. params: (B, P, F), numbers first."""

    count: Tensor
    centre: Tensor
    variance: Tensor
    numeric: Tensor
    classed: Tensor
    classes: Tensor
    slots: Tensor
    owner: Tensor
    place: Tensor

    def __init__(self, numbers: Likelihood, columns: tuple[int, ...], shape: tuple[int, ...]):
        super().__init__()
        self.numbers, self.columns, self.shape = numbers, columns, shape
        self.name, self.density, self.num_params = numbers.name, numbers.density, numbers.num_params
        self.instead, self.scaled = numbers.instead, numbers.support is None
        numeric = [i for i, c in enumerate(columns) if not c]
        classed = [i for i, c in enumerate(columns) if c]
        sizes = [columns[i] for i in classed]
        self.support = None if classed else numbers.support
        self.features_dim, self.width = len(numeric) + sum(sizes), max(sizes, default=0)
        inside = {column: i for i, column in enumerate(numeric + classed)}
        tables = {
            "numeric": numeric,
            "classed": classed,
            "classes": sizes,
            "slots": [g * self.width + c for g, n in enumerate(sizes) for c in range(n)],  # of (G, M) that are classes
            "owner": [*range(len(numeric)), *(len(numeric) + g for g, n in enumerate(sizes) for _ in range(n))],
            "place": [inside[i] for i in range(len(columns))],
        }
        for name, values in tables.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)
        for name, start in (("count", 0.0), ("centre", 0.0), ("variance", 1.0)):
            self.register_buffer(name, torch.full((len(numeric),), start))
        numbers.per_column(len(numeric))

    # ------------------------------------------------------------------------------------------------------ the columns

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Counts a batch (B, *shape) in the columns' means and variances."""
        x = fn.full(x.flatten(1)[:, self.numeric])
        there = ~torch.isnan(x)
        new = batch_sum(there.to(x.dtype))
        mean = batch_sum(fn.filled(x, there)) / new.clamp_min(1)
        var = batch_sum(fn.filled(x - mean, there).square()) / new.clamp_min(1)
        merged = fn.merge_moments(self.count, self.centre, self.variance, new, mean, var)
        for buffer, value in zip((self.count, self.centre, self.variance), merged):
            buffer.copy_(value)

    @property
    def spread(self) -> Tensor:
        """s, (N,); 1 for a column that never varied."""
        fixed = self.variance <= 1e-12 * self.centre.square()
        return torch.where(fixed, 1.0, self.variance.clamp_min(1e-30).sqrt())

    def standardised(self, x: Tensor) -> Tensor:
        """(x - m) / s of the numbers, NaN where missing: (B, *shape) -> (B, N)."""
        return (x.flatten(1)[:, self.numeric] - self.centre) / self.spread

    def features(self, x: Tensor) -> Tensor:
        """What the encoder reads, (B, *shape) -> (B, 2, F): values, 0 where missing, and 1 for what is missing."""
        flat, numbers = x.flatten(1), self.standardised(x)
        missing = torch.isnan(flat)[:, torch.cat([self.numeric, self.classed])]  # (B, N + G)
        n = numbers.shape[1]
        values = fn.filled(numbers, ~missing[:, :n])
        if self.width:
            kinds = torch.arange(self.width, device=x.device)
            one_hot = (flat[:, self.classed, None] == kinds).flatten(1)[:, self.slots]  # NaN equals nothing
            values = torch.cat([values, one_hot.to(values.dtype)], 1)
        return torch.stack([values, missing[:, self.owner].to(values.dtype)], 1)

    def _logits(self, params: Tensor) -> Tensor:
        """(B, P, F) -> (B, G, M), -inf beyond a column's own classes."""
        given = fn.full(params[:, 0, len(self.numeric) :])
        padded = torch.full(
            (given.shape[0], len(self.classed) * self.width), -math.inf, dtype=given.dtype, device=given.device
        )
        return padded.index_copy(1, self.slots, given).view(given.shape[0], len(self.classed), self.width)

    # ------------------------------------------------------------------------------------------------------- likelihood

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        flat, n = x.flatten(1), len(self.numeric)
        numbers = self.standardised(x) if self.scaled else flat[:, self.numeric]
        there = ~torch.isnan(numbers)
        values = fn.filled(numbers, there)
        each = self.numbers.elements(params[:, :, :n], values, there) if n else fn.full(values)
        if self.density and self.scaled:
            each = each + fn.full(self.spread).log()
        if self.width:
            classes, known = flat[:, self.classed], ~torch.isnan(flat[:, self.classed])
            index = fn.filled(classes, known).long()
            valid = (index == classes) & (index >= 0) & (index < self.classes)
            cost = fn.column_cross_entropy(self._logits(params), torch.where(valid, index, 0))
            each = torch.cat([each, torch.where(valid, cost, math.nan)], 1)
            there = torch.cat([there, known], 1)
        return fn.masked_sum(each, there) if self.density else fn.masked_mean(each, there)

    def _in_data_space(self, numbers: Tensor, classes: Tensor) -> Tensor:
        if self.scaled:
            numbers = numbers * self.spread + self.centre
        together = torch.cat([numbers, classes.to(numbers.dtype)], 1)
        return together[:, self.place].view(together.shape[0], *self.shape)

    def mean(self, params: Tensor) -> Tensor:
        """(B, P, F) -> (B, *shape): expected numbers and the most probable classes."""
        numbers = self.numbers.mean(params[:, :, : len(self.numeric)])
        classes = self._logits(params).argmax(2) if self.width else numbers[:, :0]
        return self._in_data_space(numbers, classes)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, P, F) -> rows (B, *shape), every entry drawn from its distribution (a plain loss has none for its numbers: the mean)."""
        numbers = self.numbers.sample(params[:, :, : len(self.numeric)], generator)
        classes = numbers[:, :0]
        if self.width:
            odds = self._logits(params).softmax(2).flatten(0, 1)
            classes = torch.multinomial(odds, 1, generator=generator).view(len(params), -1)
        return self._in_data_space(numbers, classes)

    @torch.no_grad()
    def metrics(self, params: Tensor, x: Tensor) -> Terms:
        """ "missing": share of a row's entries, (B,); "accuracy" of the most probable class, over all that are there, and its parts, of
        each row how many classes are right, and how many there are: (B,)."""
        flat = x.flatten(1)
        found = {"missing": fn.per_sample_mean(torch.isnan(flat).float())}
        if self.width:
            classes = flat[:, self.classed]
            right = fn.per_sample((self._logits(params).argmax(2) == classes).float())
            there = fn.per_sample((~torch.isnan(classes)).float())
            found["accuracy"] = batch_mean(right) / batch_mean(there).clamp_min(1e-12)
            found |= {"accuracy.over": right, "accuracy.under": there}
        return found


# --------------------------------------------------------------------------------------------------------------- models


class Tabular(BaseAE):
    """Base of the models here: reads and scores rows by `Mixed`, which takes the place of the likelihood that is asked for."""

    accepts_missing = True
    likelihood: Mixed

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 8,
        *,
        columns: Sequence[int] | Mapping[Any, int] | None = None,
        **base: Any,
    ):
        object.__setattr__(self, "_asked_columns", columns)  # the networks, which the next line builds, depend on them
        super().__init__(input_shape, latent_dim, **base)

    def build_networks(self) -> None:
        columns = checked_columns(self.__dict__.pop("_asked_columns"), math.prod(self.input_shape))
        self.likelihood = Mixed(copy.deepcopy(self.likelihood), columns, self.input_shape)
        sizes = (self.latent_dim, self.code_params, self.likelihood.num_params)
        f = self.likelihood.features_dim
        self.encoder, self.decoder = self.backbone.build((2, f), *sizes)
        if not getattr(self.backbone, "tied", False):  # indicators are read, but never written
            self.decoder = self.backbone.build((f,), *sizes)[1]

    def corrupt(self, x: Tensor, where: str = "input") -> Tensor:
        """Noise on the input acts on the standardised numbers; classes and what is missing are left as they are."""
        if where != "input":
            return super().corrupt(x, where)
        like = self.likelihood
        numbers = like.standardised(x)
        noisy = super().corrupt(numbers, where)
        if noisy is numbers:
            return x
        noisy = torch.where(torch.isnan(numbers), numbers, noisy * like.spread + like.centre)
        return x.flatten(1).index_copy(1, like.numeric, noisy.to(x.dtype)).view_as(x)

    def check_samples(self, x: Tensor) -> None:
        """Raises ValueError where a column of classes holds anything but 0 .. n-1 and NaN."""
        for i, n in enumerate(self.likelihood.columns):
            values = x.flatten(1)[:, i]
            wrong = values[((values != values.floor()) | (values < 0) | (values >= n)) & ~torch.isnan(values)]
            if n and len(wrong):
                raise ValueError(
                    f"column {i} holds {wrong[0]:g}, but columns={self._told()} says that it holds classes 0 to {n - 1}; say what the "
                    "columns of this table are (columns=None: all are numbers; --model.columns null), or let aezoo.encode_table number "
                    "its classes"
                )

    def _told(self) -> dict[int, int]:
        """The columns that hold classes."""
        return {i: n for i, n in enumerate(self.likelihood.columns) if n}

    def hidden(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.encoder(self.likelihood.features(x))

    def emit(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (B, K) -> (B, P, F)."""
        return self.decoder(z).flatten(2)[:, :, : self.likelihood.features_dim]

    def propagate(self, x: Tensor, target: Tensor | None = None, condition: Tensor | None = None) -> Pass:
        self.check_input(x)
        wanted = x if target is None else target
        if self.training:
            self.check_input(wanted, "target")
            self.likelihood.observe(wanted)
        out = super().propagate(x, target, condition)
        return out._replace(metrics={**out.metrics, **self.likelihood.metrics(out.params, wanted)})


@register("tabular_ae")
class TabularAE(Tabular):
    """Autoencoder of rows of numbers and classes with entries missing; the loss is the mean over a row's entries that are there of
    ((x - x^) / s)^2 for numbers and -log softmax(logits)[x], in nats, for classes.

    Paper: the treatment of mixed and missing entries is that of HI-VAE (Nazabal et al. 2018, arXiv:1807.03653), section 3: missing
    entries are 0 in the input and left out of the loss. Deviations: no KL; an indicator of what is missing is read, too; numbers
    are standardised by the mean m and deviation s of all entries seen in training so far, not of the batch.

    Args (beside those of `BaseAE`):
        columns: the number of classes of each column, 0 for numbers, e.g. (0, 0, 3, 5), or a mapping of those that hold classes,
            {2: 3, 3: 5}; by default all are numbers.
        likelihood: of the numbers. A plain loss or a density of unbounded numbers scores them standardised (a density is turned
            back to data units by + log s, and is summed over the row, classes included); bce, bernoulli and
            continuous_bernoulli need numbers in [0, 1] and score them as they are.

    The reconstruction is in data space: numbers in their units, the index of the most probable class, at missing entries as well.
    Metrics: "accuracy" of the classes that are there, over all rows together; "missing", the share of entries that are not."""

    paper = "arXiv:1807.03653"
    main_metric = "recon"


@register("tabular_vae")
class TabularVAE(VAE, Tabular):
    """Variational autoencoder of rows of numbers and classes with entries missing: minimises, over the entries that are there,

    -ELBO = E_q[-sum_d log p(x_d|z)] + beta KL(q(z|x) || N(0, I)),  p(x_d|z) = N(x^_d, sigma_d^2) or softmax(logits_d)[x_d],

    in nats per row. With gaussian(sigma='optimal'), the default, or 'learned', each column of numbers has a sigma_d of its own.

    Paper: Nazabal et al. 2018, "Handling incomplete heterogeneous data using VAEs", arXiv:1807.03653, section 3 (the bound over
    what is observed, zeros in the input for what is not). Deviations: a standard normal prior instead of the mixture, one decoder
    for all columns, an indicator of what is missing in the input, and sigma_d per column instead of per row.

    Args: `columns`, `likelihood`, terms, metrics and reconstruction as in `tabular_ae` and `vae`. `sample` draws rows from p(x|z), not
    its mean; `log_prob` is that of the entries that are there."""

    paper = "arXiv:1807.03653"

    def sample(self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n new rows, (n, *input_shape), in data space: z from the prior, then every entry from p(x|z). All draws are from
        `generator`, or else the global RNG."""
        self.check_condition(condition, positive("n", n))
        like = next(self.parameters())
        z = self.prior.sample(n, self.latent_shape, like, generator)
        with self.evaluating():
            return self.likelihood.sample(self.emit(z, condition), generator)
