"""Lossless coding with a VAE: bits back (BB-ANS).

    pop z from q(z|x), push x by p(x|z), push z by p(z): on average -ELBO bits for each sample.

Paper: Townsend, Bird & Barber 2019, arXiv:1901.04866. As there, z is cut into bins of equal mass under the prior, here 2^16 for each
latent. Deviations: no random bits to start with (the stack lies on words that both sides know, and the first samples are coded one by one,
then an eighth of those before together, so that they find the bits of those before); numbers of many values are coded in digits of base 16, each by
an integer table of its own, so that neither q nor p(x|z) is ever evaluated at all of its values.

All that both sides compute is exact (`exact`): the same tables on another day, machine and number of threads.

Legend: B samples, K latents, D data dims, M components of a mixture, n = B D or B K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import BaseAE
from ..likelihoods import Bernoulli, LogisticMixture
from ..models.variational import Variational
from ..prior_fitting import gaussian_posterior
from ..priors import StandardNormal
from .ans import TOTAL, UNIFORM, Array, Stack, table
from .exact import SPAN, STEPS, Exact, exact_copy, grid, lookup, one_thread

BASE = 16
DIGITS = 4  # of a latent's bin: 16^4 = 2^16 bins
FINE = 2.0**40  # a distribution function is known to 2^-40
WEIGHTS = 1 << 16  # a mixture's weights sum to this


def prior_edges() -> Tensor:
    """Where the 2^16 bins of N(0, 1) of equal mass begin and end, (2^16 + 1,), float32, the ends cut off at +-5."""
    at = torch.arange(1, UNIFORM, dtype=torch.float64) / UNIFORM
    inner = torch.special.ndtri(at).float()
    return torch.cat([torch.tensor([-5.0]), inner, torch.tensor([5.0])])


def check_lossless(model: Any, x: Tensor) -> None:
    """Raises ValueError if bits back does not work with the model, saying why."""
    if not isinstance(model.likelihood, (Bernoulli, LogisticMixture)):
        raise ValueError(
            f"lossless=True needs a likelihood that is a probability of finitely many values: bernoulli (binary data) or logistic_mixture "
            f"(8-bit data); this {model.name} has {model.likelihood.name!r}"
        )
    plainly = isinstance(model, Variational) and type(model).draw is Variational.draw
    found = gaussian_posterior(model, x[:2], {}) if plainly else None
    prior = model.prior
    standard = isinstance(prior, StandardNormal) or getattr(prior, "fitted", False)
    if found is None or not standard or found[0][0].numel() != math.prod(model.latent_shape):
        raise ValueError(
            f"lossless=True needs a VAE with a Gaussian posterior and the prior N(0, I), as vae, conv_vae and iwae have; {model.name} has not"
        )


def levels_of(likelihood: Any) -> int:
    """Number of values of the data under a likelihood that is a probability of finitely many."""
    return 2 if isinstance(likelihood, Bernoulli) else int(likelihood.levels)


class BitsBack:
    """Sender and receiver of one model. `tables`: as `make_tables` and `prior_edges` ("edges") gave them, float64."""

    def __init__(self, model: BaseAE, tables: dict[str, Tensor]):
        self.net: Any = exact_copy(model)
        self.tables = tables
        self.edges = tables["edges"].double().numpy()
        self.normal, self.sigmoid, self.exp = (tables[k].numpy() for k in ("normal", "sigmoid", "exp"))
        self.levels = levels_of(model.likelihood)
        self.bernoulli = isinstance(model.likelihood, Bernoulli)
        digits = 1
        while BASE**digits < self.levels:
            digits += 1
        self.digits = digits  # of a data value, for mixtures
        self.mode = Exact(tables)

    # --------------------------------------------------------------------------------------------- the two networks

    def posterior(self, x: Array) -> tuple[Array, Array]:
        """Integers (B, *input_shape) -> mu and sigma of q(z|x), (B K,) each."""
        data = torch.from_numpy(x).double() / (self.levels - 1)
        with self.mode:
            mu, logvar = self.net.posterior(self.net.hidden(data))
        sigma = lookup(self.tables["exp"], grid(logvar) / 2 - 8) / lookup(
            self.tables["exp"], torch.tensor(-8.0).double()
        )
        return grid(mu).flatten().numpy(), sigma.flatten().numpy()

    def emitted(self, bins: Array) -> Any:
        """Bins (B, K) -> what `pixels` takes: the parameters of p(x|z)."""
        z = (self.edges[bins] + self.edges[bins + 1]) / 2
        with self.mode:
            params = self.net.emit(torch.from_numpy(z).view(-1, *self.net.latent_shape))
            if self.bernoulli:
                return grid(params).flatten().numpy()
            parts = self.net.likelihood._mixture(params)  # (B, M, *input_shape) each
        means, log_scales, logits = (grid(t).movedim(1, -1).flatten(0, -2).numpy() for t in parts)  # (n, M)
        steep = 1 / (_read(self.exp, log_scales - 4.0) / _read(self.exp, np.array(-4.0)))
        heights = np.floor(_read(self.exp, logits - logits.max(1, keepdims=True)) * FINE).astype(np.int64)
        heights = np.maximum(heights >> 20, 1)
        weights = heights * WEIGHTS // heights.sum(1, keepdims=True)
        weights[np.arange(len(weights)), weights.argmax(1)] += WEIGHTS - weights.sum(1)
        return means, steep, weights

    # ------------------------------------------------------------------------------------------------------- tables

    def latent_digit(self, mu: Array, sigma: Array, before: Array, digit: int) -> Array:
        """Of q(z|x): the table of a bin's next digit given those before, (n, 16)."""
        at = (before[:, None] * BASE + np.arange(BASE + 1)) * BASE ** (DIGITS - 1 - digit)
        mass = np.floor(_read(self.normal, (self.edges[at] - mu[:, None]) / sigma[:, None]) * FINE).astype(np.int64)
        mass[at == 0], mass[at == UNIFORM] = 0, int(FINE)
        return table(np.diff(mass, axis=1))

    def data_digit(self, params: Any, before: Array, digit: int) -> Array:
        """Of p(x|z): the table of a value's next digit given those before, (n, 16)."""
        means, steep, weights = params
        size = BASE ** (self.digits - 1 - digit)
        at = np.minimum((before[:, None] * BASE + np.arange(BASE + 1)) * size, self.levels)
        edge = (at - 0.5) / (self.levels - 1)
        mass = np.zeros(at.shape, np.int64)
        for m in range(means.shape[1]):
            below = _read(self.sigmoid, (edge - means[:, m, None]) * steep[:, m, None])
            mass += np.floor(below * FINE).astype(np.int64) * weights[:, m, None]
        mass >>= 16
        mass[at == 0], mass[at == self.levels] = 0, int(FINE)
        return table(np.maximum(np.diff(mass, axis=1), 0))

    def coin(self, logits: Array) -> Array:
        """Of p(x|z) for binary data, (n, 2)."""
        ones = np.floor(_read(self.sigmoid, logits) * TOTAL).astype(np.int64).clip(1, TOTAL - 1)
        return np.stack([TOTAL - ones, ones], 1)

    # --------------------------------------------------------------------------------------------------- one batch

    def push(self, stack: Stack, x: Array) -> None:
        """Integers (B, *input_shape)."""
        mu, sigma = self.posterior(x)
        bins = np.zeros(len(mu), np.int64)
        for digit in range(DIGITS):
            bins = bins * BASE + stack.pop(self.latent_digit(mu, sigma, bins, digit))
        params, values = self.emitted(bins.reshape(len(x), -1)), x.ravel()
        if self.bernoulli:
            stack.push(values, self.coin(params))
        else:
            for digit in reversed(range(self.digits)):
                rest = values // BASE ** (self.digits - 1 - digit)
                stack.push(rest % BASE, self.data_digit(params, rest // BASE, digit))
        stack.push_uniform(bins, UNIFORM)

    def pop(self, stack: Stack, samples: int) -> Array:
        """Undoes `push`: (samples, *input_shape)."""
        bins = stack.pop_uniform(samples * int(np.prod(self.net.latent_shape)), UNIFORM)
        params = self.emitted(bins.reshape(samples, -1))
        if self.bernoulli:
            values = stack.pop(self.coin(params))
        else:
            values = np.zeros(len(params[0]), np.int64)
            for digit in range(self.digits):
                values = values * BASE + stack.pop(self.data_digit(params, values, digit))
        if values.max(initial=0) >= self.levels:
            raise ValueError("the stream holds a value that the data cannot have")
        x = values.reshape(samples, *self.net.input_shape)
        mu, sigma = self.posterior(x)
        for digit in reversed(range(DIGITS)):
            rest = bins // BASE ** (DIGITS - 1 - digit)
            stack.push(rest % BASE, self.latent_digit(mu, sigma, rest // BASE, digit))
        return x

    # ------------------------------------------------------------------------------------------------------- stream

    def encode(self, x: Array, together: int, bar: Any) -> tuple[bytes, int]:
        """Integers (N, *input_shape) -> (payload, words of the seed in it)."""
        stack = Stack(seeded=True)
        with one_thread(), torch.no_grad():
            for begin, end in schedule(len(x), together):
                self.push(stack, x[begin:end])
                bar.update(end - begin)
        return stack.payload()

    def decode(self, stack: Stack, samples: int, together: int, bar: Any) -> Array:
        """Raises ValueError if the stack is none that `encode` left."""
        parts = []
        with one_thread(), torch.no_grad():
            for begin, end in reversed(list(schedule(samples, together))):
                parts.append(self.pop(stack, end - begin))
                bar.update(end - begin)
        if not stack.is_fresh():
            raise ValueError("the bits that are left over are not those that the coder began with")
        return np.concatenate(parts[::-1])


def schedule(samples: int, together: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the batches: an eighth of the samples before it, at least 1 and at most `together`.

    A batch pops 16 bits for each latent before it pushes anything, about what some samples leave; what is not there is taken from the
    seed, and paid for."""
    begin = 0
    while begin < samples:
        end = min(samples, begin + max(1, min(begin // 8, together)))
        yield begin, end
        begin = end


def _read(values: Array, x: Array) -> Array:
    """`exact.lookup` for arrays."""
    place = (np.clip(x, -SPAN, SPAN) + SPAN) * STEPS
    below = np.minimum(np.floor(place), len(values) - 2)
    i = below.astype(np.int64)
    low = values[i]
    return low + (values[i + 1] - low) * (place - below)
