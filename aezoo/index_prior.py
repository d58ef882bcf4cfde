"""Priors over the indices of a quantised code: p(i_1, ..., i_T), one small transformer each.

    prior.sample(n, shape, like, generator)     indices, (n, *shape) int64, with shape the model's `index_shape`

A sample's indices are one sequence in the order in which they are stored: the grid's rows, with the levels of one vector after
each other where there are several (`rvq_vae`), and all of the coarse grid before the fine one (`vq_vae_2`, whose prior so is
p(top) p(bottom | top)). `aezoo.fit_prior(model, data, "autoregressive" | "maskgit")` trains them; `model.sample` draws indices and decodes
them.

Legend: B batch, T indices of a sample, K codes, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional as fn
from .base import number, positive
from .priors import PRIORS, Prior
from .transformer import TransformerBlock


class IndexPrior(Prior):
    """Base of priors over indices: a transformer from tokens to logits. A subclass gives `nll` and `draw`.

    Args: num_codes, K, and length, T, are the model's; width, layers, heads: of the transformer."""

    causal = False

    def __init__(self, num_codes: int, length: int, width: int = 128, layers: int = 3, heads: int = 4):
        super().__init__()
        self.num_codes, self.length = positive("num_codes", num_codes), positive("length", length)
        self.dim = self.length
        self.tokens = nn.Embedding(num_codes + 1, positive("width", width))  # the last one: "not known yet"
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        blocks = nn.ModuleList(
            TransformerBlock(width, heads, causal=self.causal) for _ in range(positive("layers", layers))
        )
        self.blocks: Sequence[TransformerBlock] = blocks  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes)

    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens (B, t), K for "not known yet", t up to T -> (B, t, K)."""
        h = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            h = block(h)
        return fn.full(self.head(self.norm(h)))

    def nll(self, indices: Tensor) -> Tensor:
        """What training minimises, nats per sample: (B, T) -> (B,)."""
        raise TypeError(f"{type(self).__name__} does not define nll(indices)")

    def draw(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """(n, T)"""
        raise TypeError(f"{type(self).__name__} does not define draw")

    def sample(self, n: int, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """n draws, int64: (n, *shape), on the device of `like`. Raises ValueError for a shape of another size than T."""
        self._check(shape, "shape")
        with torch.no_grad():
            return self.draw(n, like.device, generator).view(n, *shape)


def log_likelihood(logits: Tensor, indices: Tensor) -> Tensor:
    """log p of each index: (B, T, K), (B, T) -> (B, T)."""
    return -F.cross_entropy(logits.movedim(2, 1), indices, reduction="none")


def drawn(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index from each distribution: (..., K) -> (...)."""
    flat = logits.flatten(0, -2).softmax(1)
    return torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])


@PRIORS.register("autoregressive")
class Autoregressive(IndexPrior):
    """p(i) = prod_t p(i_t | i_1, ..., i_{t-1}), by a causal transformer; T passes to sample.

    Paper: van den Oord et al. 2017, arXiv:1711.00937 (section 3.3), with a transformer (Esser et al. 2020, arXiv:2012.09841,
    section 3.2) in place of the PixelCNN. `log_prob(indices)` is exact, in nats."""

    causal = True

    def nll(self, indices: Tensor) -> Tensor:
        start = torch.full_like(indices[:, :1], self.num_codes)
        return -log_likelihood(self.logits(torch.cat([start, indices[:, :-1]], 1)), indices).sum(1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p of indices, (B, *index_shape) -> (B,)."""
        self._check(z.shape[1:], "indices")
        return -self.nll(z.long().flatten(1))

    def draw(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        tokens = torch.full((n, 1), self.num_codes, device=device)
        for _ in range(self.length):
            tokens = torch.cat([tokens, drawn(self.logits(tokens)[:, -1:], generator)], 1)
        return tokens[:, 1:]


@PRIORS.register("maskgit")
class MaskGIT(IndexPrior):
    """Indices that are not known yet are predicted all at once, and the surest are kept, round by round: `rounds` passes to sample.

    Trained on -sum of log p(i_t | the known ones) over the unknown ones, a random fraction cos(pi u / 2), u ~ U(0, 1), of all.

    Paper: Chang et al. 2022, arXiv:2202.04200 (eq. 1, section 3.2). Args (beside those of `IndexPrior`): rounds, 8 in the paper;
    noise: the confidence that decides has Gumbel noise of this scale, which falls linearly to 0 (the authors' code: 4.5)."""

    def __init__(
        self,
        num_codes: int,
        length: int,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        rounds: int = 8,
        noise: float = 4.5,
    ):
        super().__init__(num_codes, length, width, layers, heads)
        self.rounds = positive("rounds", rounds)
        self.noise = number("noise", noise, "a number of at least 0", lambda v: 0 <= v < math.inf)

    def nll(self, indices: Tensor) -> Tensor:
        u = torch.rand(len(indices), device=indices.device)
        unknown = (torch.cos(0.5 * math.pi * u) * self.length).ceil().clamp(min=1)
        rank = (
            torch.rand(indices.shape, device=indices.device).argsort(1).argsort(1)
        )  # a random order of each sample's own
        hidden = rank < unknown[:, None]
        found = log_likelihood(self.logits(indices.masked_fill(hidden, self.num_codes)), indices)
        return -(found * hidden).sum(1)

    def log_prob(self, z: Tensor) -> Tensor:
        raise ValueError("maskgit defines no log-likelihood; the prior 'autoregressive' does")

    def draw(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        tokens = torch.full((n, self.length), self.num_codes, device=device)
        for done in range(1, self.rounds + 1):
            unknown = tokens == self.num_codes
            logits = self.logits(tokens)
            tokens = torch.where(unknown, drawn(logits, generator), tokens)
            u = torch.rand(tokens.shape, device=device, generator=generator, dtype=logits.dtype)
            gumbel = -torch.log(-torch.log(u.clamp(1e-20, 1 - 1e-7)))
            sure = log_likelihood(logits, tokens) + self.noise * (1 - done / self.rounds) * gumbel
            sure = sure.masked_fill(~unknown, math.inf)
            left = int(self.length * math.cos(0.5 * math.pi * done / self.rounds))  # 0 in the last round
            least = sure.argsort(1)[:, :left]
            tokens = tokens.scatter(1, least, self.num_codes)
        return tokens
