"""Quantisers: modules that replace each vector of a code by one of finitely many, with one interface.

    z_q, indices, terms, metrics = quantizer(z)     z (B, C, *grid) -> z_q (B, C, *grid), indices (B, *grid[, levels])
    z_q = quantizer.codes(indices)
    quantizer.after_step()                          once per optimiser step: what the codebook learns without a gradient

Terms are (B,), unweighted, sums over a sample's numbers with reduction="sum" (beside a density) and means with "mean" (beside a plain
loss), never over the batch. Metrics "perplexity" (exp of the entropy of how often each code is used) and "usage" (fraction of the codes
that are used) are those of the whole batch. Everything runs in at least float32, under autocast, too.

A codebook that learns by moving averages only *gathers* counts and sums in the forward pass, in training mode, and learns from them in
`after_step`. So a step of several accumulated batches is the step of the joined batch, a pass in evaluation mode changes nothing, the
codebook stays the same within a step, and CUDA graphs replay both parts.

Legend: B batch, T vectors of a sample, C channels, K codes; z encoder output, e code vectors, q the chosen ones, n counts, m sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional as fn
from .base import Terms, number, positive
from .figures import shown, used
from .precision import Averaging
from .registry import choice
from .wholebatch import batch_axis, batch_sum, whole_batch

FINEST = 256  # levels of one channel that the margin of `fsq_bound` allows
MOST_BITS = 20  # of a lookup-free code, whose usage is counted code by code


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """No autocast inside the block; nothing at all in an exported program, which holds none."""
    exporting = torch.compiler.is_exporting()
    return nullcontext() if exporting else torch.autocast(like.device.type, enabled=False)


class Quantized(NamedTuple):
    """What a quantiser returns."""

    z: Tensor
    """The quantised code, like its input, with a gradient to it."""
    indices: Tensor
    """Numbers of the codes, int64: (B, *grid), or (B, *grid, levels)."""
    terms: Terms
    """Unweighted, (B,) each, or scalar for a term of the whole batch."""
    metrics: Terms
    """Of the whole batch, scalars: "perplexity" and "usage", means over levels where there are several."""


class Chosen(NamedTuple):
    """What `quantize` returns, of the vectors in a row."""

    q: Tensor  # (B, T, C)
    indices: Tensor
    """(B, T), or (B, T, levels)"""
    terms: Terms
    counts: Tensor
    """How often the whole batch uses each code, (levels, K)."""


class Quantizer(nn.Module):
    """Base of all: a subclass gives `quantize` and `vectors`."""

    levels: int = 0  # indices of one vector; 0: a single one, without an axis of its own

    def __init__(self, num_codes: int, dim: int, reduction: str = "mean"):
        super().__init__()
        self.num_codes, self.dim = positive("num_codes", num_codes), positive("dim", dim)
        self.reduction = choice("reduction", reduction, ["mean", "sum"])

    def forward(self, z: Tensor) -> Quantized:
        """z (B, C, *grid), or (B, C) for a single vector. Raises ValueError for another number of channels."""
        out = self.counted(z)
        return out._replace(metrics=shown(out.metrics))

    def counted(self, z: Tensor) -> Quantized:
        """The same with a metric more, which the two are of a whole set made of (`figures`): "codes.", how often a sample uses each code,
        (levels, K)."""
        if z.dim() < 2 or z.shape[1] != self.dim:
            raise ValueError(f"z has shape {tuple(z.shape)}; this quantiser takes (batch, {self.dim}, *grid)")
        rows = fn.full(z).reshape(*z.shape[:2], -1).movedim(1, 2).contiguous()  # (B, C, *grid) -> (B, T, C)
        with full_precision(z):
            q, indices, terms, counts = self.quantize(rows)
            metrics = used(counts, z.shape[0])
        z_q = q.movedim(2, 1).reshape(z.shape).to(z.dtype)
        return Quantized(z_q, indices.reshape(z.shape[0], *z.shape[2:], *indices.shape[2:]), terms, metrics)

    def codes(self, indices: Tensor) -> Tensor:
        """The code of these indices: (B, *grid[, levels]) -> (B, C, *grid), in at least float32."""
        grid = indices.shape[1:-1] if self.levels else indices.shape[1:]
        flat = indices.reshape(len(indices), math.prod(grid), *indices.shape[len(grid) + 1 :])
        with full_precision(indices):
            rows = self.vectors(flat)
        return rows.movedim(2, 1).reshape(len(indices), self.dim, *grid)

    def quantize(self, rows: Tensor) -> Chosen:
        """rows (B, T, C)."""
        raise TypeError(f"{type(self).__name__} does not define quantize(rows)")

    def vectors(self, indices: Tensor) -> Tensor:
        """(B, T[, levels]) -> (B, T, C)."""
        raise TypeError(f"{type(self).__name__} does not define vectors(indices)")

    def after_step(self) -> None:
        """What is learned without a gradient, once per optimiser step."""

    def reduced(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B,)."""
        return fn.per_sample(x) if self.reduction == "sum" else fn.per_sample_mean(x)

    @torch.no_grad()
    def count(self, indices: Tensor, like: Tensor, weight: Tensor | None = None) -> Tensor:
        """How often the whole batch uses each code: indices (B, T), weight (B,) -> (K,), in the dtype of `like`."""
        ones = like.new_ones(indices.shape) if weight is None else weight[:, None].expand(indices.shape)
        return batch_sum(like.new_zeros(self.num_codes).index_add(0, indices.flatten(), ones.flatten())[None])


# ----------------------------------------------------------------------------------------------------------- codebooks


class Codebook(Quantizer):
    """The nearest of K vectors. A subclass gives `table`, and `observe` where it learns from what it sees.

    Terms: "commitment", |z - sg(e)|^2, and, where the table has a gradient, "codebook", |sg(z) - e|^2 (arXiv:1711.00937, eq. 3)."""

    learned = False  # by a gradient

    def __init__(self, num_codes: int, dim: int, rotation: bool = False, reduction: str = "mean"):
        super().__init__(num_codes, dim, reduction)
        self.rotation = bool(rotation)

    def table(self) -> Tensor:
        """The code vectors, (K, C), in at least float32."""
        raise TypeError(f"{type(self).__name__} does not define table()")

    def observe(self, rows: Tensor, indices: Tensor, count: Tensor, weight: Tensor | None) -> None:
        """Called in training mode, without gradients."""

    def assign(self, rows: Tensor, weight: Tensor | None = None) -> Chosen:
        """The nearest codes, with no gradient from them to `rows`. weight (B,): which samples count."""
        table = self.table()
        indices = fn.nearest_code(rows.flatten(0, 1), table).view(rows.shape[:2])
        q = table[indices]
        terms = {"commitment": self.reduced((rows - q.detach()).square())}
        if self.learned:
            terms["codebook"] = self.reduced((rows.detach() - q).square())
        if weight is not None:
            terms = {name: weight * term for name, term in terms.items()}
        count = self.count(indices, rows, weight)
        if self.training:
            with torch.no_grad():
                self.observe(rows, indices, count, weight)
        return Chosen(q.detach(), indices, terms, count[None])

    def quantize(self, rows: Tensor) -> Chosen:
        chosen = self.assign(rows)
        return chosen._replace(q=carry(rows, chosen.q, self.rotation))

    def vectors(self, indices: Tensor) -> Tensor:
        return self.table()[indices]


def carry(rows: Tensor, q: Tensor, rotation: bool) -> Tensor:
    """q with a gradient to `rows`."""
    return fn.rotation_trick(rows, q) if rotation else fn.straight_through(rows, q)


class VectorQuantizer(Averaging, Codebook):
    """The codebook of the VQ-VAE, learned by moving averages or by its gradient.

    Paper: van den Oord et al. 2017, arXiv:1711.00937 (eq. 1 to 3; moving averages: appendix A.1). With codebook="ema", in `after_step`,
        n <- decay n + (1 - decay) count,  m <- decay m + (1 - decay) sum of the z that chose the code,  e = m / n~,
    where n~ is n with Laplace smoothing, which is never stored; n = 1 and m = e at the start.

    Args:
        num_codes, dim: K and C.
        codebook: "ema", or "gradient": e is a parameter and the term "codebook" trains it.
        decay: of the moving averages.
        rotation: gradient by the rotation trick (arXiv:2410.06424) instead of straight through.
        revive: a code whose n, the vectors that choose it in a step, falls below this becomes a random encoder output of the whole
            batch, with n = 1 and m = e anew; from 0 (never) to below 1.
        init: "data": all codes become random encoder outputs of the first step's batch, after that step; "random": N(0, I / C).
        reduction: "mean" or "sum", see the module. eps: of the Laplace smoothing.

    All state is in buffers: `codebook` (with "gradient" a parameter), `cluster_size` n, `cluster_sum` m, `num_steps`. What is gathered
    between two steps is not saved. A batch that is not finite is not learned from. In a model of half precision what is averaged stays
    in float32."""

    averages = ("codebook", "cluster_size", "cluster_sum", "num_steps", "new_size", "new_sum", "candidates")
    codebook: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    num_steps: Tensor
    new_size: Tensor
    new_sum: Tensor
    candidates: Tensor

    def __init__(
        self,
        num_codes: int = 512,
        dim: int = 64,
        *,
        codebook: str = "ema",
        decay: float = 0.99,
        rotation: bool = False,
        revive: float = 0.1,
        init: str = "data",
        reduction: str = "mean",
        eps: float = 1e-5,
    ):
        super().__init__(num_codes, dim, rotation, reduction)
        self.learned = choice("codebook", codebook, ["ema", "gradient"]) == "gradient"
        self.decay = number("decay", decay, "a number from 0 to below 1", lambda v: 0 <= v < 1)
        self.revive = number("revive", revive, "a number from 0 (never) to below 1", lambda v: 0 <= v < 1)
        self.init = choice("init", init, ["data", "random"])
        self.eps = number("eps", eps, "a number above 0", lambda v: 0 < v < math.inf)
        e = torch.randn(self.num_codes, self.dim) / math.sqrt(self.dim)
        if self.learned:
            self.codebook = nn.Parameter(e)
        else:
            self.register_buffer("codebook", e)
            self.register_buffer("cluster_sum", e.clone())
            self.register_buffer("new_sum", torch.zeros_like(e), persistent=False)
        self.register_buffer("cluster_size", torch.ones(self.num_codes))
        self.register_buffer("num_steps", torch.zeros(()))
        self.register_buffer("new_size", torch.zeros(self.num_codes), persistent=False)
        self.renews = self.revive > 0 or self.init == "data"  # codes are replaced by encoder outputs
        if self.renews:
            self.register_buffer("candidates", torch.zeros_like(e), persistent=False)

    def table(self) -> Tensor:
        return fn.full(self.codebook)

    def observe(self, rows: Tensor, indices: Tensor, count: Tensor, weight: Tensor | None) -> None:
        self.new_size.add_(count)
        if not self.learned:
            chosen = rows if weight is None else rows * weight[:, None, None]
            total = rows.new_zeros(self.new_sum.shape).index_add(0, indices.flatten(), chosen.flatten(0, 1))
            self.new_sum.add_(batch_sum(total[None]))
        if self.renews:
            self.candidates.copy_(self.picked(rows))

    def picked(self, rows: Tensor) -> Tensor:
        """K vectors of the whole batch at random, different ones while there are enough: (B, T, C) -> (K, C)."""
        vectors = whole_batch(rows).flatten(0, 1)
        with batch_axis(None):
            order = torch.rand(len(vectors), device=rows.device).argsort()
        return vectors[order[torch.arange(self.num_codes, device=rows.device) % len(vectors)]]

    @torch.no_grad()
    def after_step(self) -> None:
        total = self.new_size.sum() + 0 * (self.candidates.sum() if self.renews else 0)
        n, e = torch.lerp(self.cluster_size, self.new_size, 1 - self.decay), self.codebook.detach()
        m = e
        if not self.learned:
            total = total + 0 * self.new_sum.sum()
            m = torch.lerp(self.cluster_sum, self.new_sum, 1 - self.decay)
            e = m / fn.laplace_smoothed(n, self.eps)[:, None]
        if self.renews:
            dead = n < self.revive
            if self.init == "data":
                dead = dead | (self.num_steps == 0)
            n = torch.where(dead, 1, n)
            e, m = (torch.where(dead[:, None], self.candidates, v) for v in (e, m))
        learns = (total > 0) & total.isfinite()  # nothing was seen in a step that was passed over
        self.num_steps.add_(learns)
        self.cluster_size.copy_(torch.where(learns, n, self.cluster_size))
        self.codebook.copy_(torch.where(learns, e, self.codebook))
        self.new_size.zero_()
        if not self.learned:
            self.cluster_sum.copy_(torch.where(learns, m, self.cluster_sum))
            self.new_sum.zero_()


class SimVQ(Codebook):
    """A frozen random codebook seen through a learned linear map: e = C W^T. A gradient moves all codes at once, so none dies.

    Paper: Zhu et al. 2024, arXiv:2411.02038. C ~ N(0, I / C), a buffer; W without bias. Args: as of `VectorQuantizer`."""

    learned = True
    frozen: Tensor

    def __init__(self, num_codes: int = 512, dim: int = 64, *, rotation: bool = False, reduction: str = "mean"):
        super().__init__(num_codes, dim, rotation, reduction)
        self.register_buffer("frozen", torch.randn(self.num_codes, self.dim) / math.sqrt(self.dim))
        self.map = nn.Linear(self.dim, self.dim, bias=False)

    def table(self) -> Tensor:
        return F.linear(fn.full(self.frozen), fn.full(self.map.weight))


class ResidualQuantizer(Quantizer):
    """Several codebooks one after the other, each for what the ones before left over: z_q = sum_i q_i, r_{i+1} = r_i - sg(q_i).

    Paper: Zeghidour et al. 2021 (SoundStream), arXiv:2107.03312 (section III.C). The gradient goes from z_q to z once, not once a
    level. Terms: those of `VectorQuantizer`, summed over the levels.

    Args: num_codes: K of each level. levels: how many. level_dropout: probability that a sample, in training, is left with its first
    1 to `levels` levels, their number drawn uniformly (the paper's quantiser dropout: 1); the levels that it lacks neither count nor
    learn. options: those of `VectorQuantizer`."""

    def __init__(
        self,
        num_codes: int = 512,
        dim: int = 64,
        *,
        levels: int = 4,
        level_dropout: float = 0.0,
        rotation: bool = False,
        reduction: str = "mean",
        **options: Any,
    ):
        super().__init__(num_codes, dim, reduction)
        self.levels, self.rotation = positive("levels", levels), bool(rotation)
        self.level_dropout = number("level_dropout", level_dropout, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        options["reduction"] = reduction
        books = nn.ModuleList(VectorQuantizer(num_codes, dim, **options) for _ in range(self.levels))
        self.books: Sequence[VectorQuantizer] = books  # type: ignore[assignment]

    def depth(self, rows: Tensor) -> Tensor | None:
        """How many levels each sample has: (B,), or None for all."""
        if not (self.training and self.level_dropout):
            return None
        u = torch.rand(len(rows), 2, device=rows.device)
        return torch.where(u[:, 0] < self.level_dropout, 1 + (u[:, 1] * self.levels).floor(), self.levels)

    def quantize(self, rows: Tensor) -> Chosen:
        depth = self.depth(rows)
        residual, total = rows, torch.zeros_like(rows)
        terms: Terms = {}
        indices, counts = [], []
        for i, book in enumerate(self.books):
            weight = None if depth is None else (depth > i).to(rows)
            found = book.assign(residual, weight)
            total = total + (found.q if weight is None else found.q * weight[:, None, None])
            residual = residual - found.q
            terms = {name: term + terms[name] if i else term for name, term in found.terms.items()}
            indices.append(found.indices)
            counts.append(found.counts)
        return Chosen(carry(rows, total, self.rotation), torch.stack(indices, 2), terms, torch.cat(counts))

    def vectors(self, indices: Tensor) -> Tensor:
        """(B, T, L) -> (B, T, C) of the first L levels; L may be smaller than `levels`."""
        total = torch.zeros_like(self.books[0].table()[0])
        for book, index in zip(self.books, indices.unbind(2)):  # added in the order of `quantize`
            total = total + book.vectors(index)
        return total

    def after_step(self) -> None:
        for book in self.books:
            book.after_step()


# --------------------------------------------------------------------------------------------------- without a codebook


class _Linear(nn.Linear):
    """In at least float32, whatever the weights are kept in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, fn.full(self.weight), fn.full(self.bias))


class _Lattice(Quantizer):
    """Codes on a lattice with sizes_i points along channel i, and a linear layer each way where the code has another number of
    channels. An index counts the steps along the first channel, then those along the second, ..."""

    sizes: Tensor
    digits: Tensor

    def __init__(self, sizes: Sequence[int], dim: int | None, reduction: str):
        channels = len(sizes)
        super().__init__(math.prod(sizes), channels if dim is None else dim, reduction)
        same = self.dim == channels
        self.enter: nn.Module = nn.Identity() if same else _Linear(self.dim, channels)
        self.leave: nn.Module = nn.Identity() if same else _Linear(channels, self.dim)
        digits = torch.tensor([math.prod(sizes[:i]) for i in range(channels)])
        self.register_buffer("digits", digits, persistent=False)
        self.register_buffer("sizes", torch.tensor(sizes, dtype=torch.get_default_dtype()), persistent=False)

    def points(self, steps: Tensor) -> Tensor:
        """Steps from 0 on along each channel -> the channels' values."""
        raise TypeError(f"{type(self).__name__} does not define points(steps)")

    def number(self, steps: Tensor) -> Tensor:
        """(B, T, channels) -> index (B, T)."""
        return (steps.long() * self.digits).sum(-1)

    def vectors(self, indices: Tensor) -> Tensor:
        steps = indices[..., None] // self.digits % self.sizes.long()
        return self.leave(self.points(steps.to(fn.full(self.sizes))))


class FSQ(_Lattice):
    """Finite scalar quantisation: each channel is bounded and rounded to one of its L_i levels; the codebook is their product.

    Paper: Mentzer et al. 2023, arXiv:2309.15505. The bound is `functional.fsq_bound`; rounding is straight through, so the gradient
    is that of the bound. Values are integers divided by floor(L / 2), as in the paper: within [-1, 1]. No terms.

    Args: levels: L_i, integers from 3 to 256 (2 have no useful bound: take `LFQ`). dim: C; if it is not the number of levels, a
    linear layer leads from C channels to one a level, and another one back."""

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5), dim: int | None = None, *, reduction: str = "mean"):
        levels = [levels] if isinstance(levels, int) else list(levels)
        if not levels or any(isinstance(v, bool) or not isinstance(v, int) or not 3 <= v <= FINEST for v in levels):
            raise ValueError(f"levels={levels!r} must be integers from 3 to {FINEST}, e.g. (8, 5, 5, 5)")
        super().__init__(levels, dim, reduction)

    def points(self, steps: Tensor) -> Tensor:
        half = (fn.full(self.sizes) / 2).floor()
        return (steps - half) / half

    def quantize(self, rows: Tensor) -> Chosen:
        sizes = fn.full(self.sizes)
        bounded = fn.fsq_bound(self.enter(rows), sizes) + (sizes / 2).floor()  # 0 to L - 1 when rounded
        steps = bounded.detach().round()
        indices = self.number(steps)
        q = fn.straight_through(self.points(bounded), self.points(steps))
        return Chosen(self.leave(q), indices, {}, self.count(indices, rows)[None])


class LFQ(_Lattice):
    """Lookup-free quantisation: a code is the signs of its channels, in {-1, 1}; K = 2^channels.

    Paper: Yu et al. 2023 (MAGVIT-v2), arXiv:2310.05737. Straight-through gradient. With q(c|z), the softmax of
    -|z - c|^2 / temperature over all codes c, which falls into independent bits, the terms are
        "commitment":    |z - sg(q)|^2;
        "code_entropy":  E[H(q(c|z))], (B,), to be made small: each vector is sure of its code;
        "batch_entropy": H(E[q(c|z)]), scalar, to be made large: all codes are used. Exact, over all 2^channels codes.
    Entropies are in nats, of one vector with reduction="mean", of a sample's T vectors with "sum".

    Args: num_codes: K, a power of 2. dim: C; if it is not log2 K, there is a linear layer each way. temperature: of q(c|z)."""

    def __init__(self, num_codes: int = 512, dim: int | None = None, *, temperature: float = 1.0, reduction: str = "mean"):  # fmt: skip
        bits = positive("num_codes", num_codes).bit_length() - 1
        if num_codes != 2**bits or not 1 <= bits <= MOST_BITS:
            raise ValueError(f"num_codes={num_codes!r} must be a power of 2, from 2 to 2**{MOST_BITS}")
        super().__init__([2] * bits, dim, reduction)
        self.temperature = number("temperature", temperature, "a number above 0", lambda v: 0 < v < math.inf)

    def points(self, steps: Tensor) -> Tensor:
        return 2 * steps - 1

    def quantize(self, rows: Tensor) -> Chosen:
        z = self.enter(rows)
        steps = (z.detach() > 0).to(z)
        q, indices = self.points(steps), self.number(steps)
        logits = 4 * z / self.temperature  # of a sign: (|z + 1|^2 - |z - 1|^2) / temperature
        code_entropy = fn.bernoulli_entropy(logits).sum(-1)  # (B, T)
        totals = batch_sum(fn.sign_totals(logits.flatten(0, 1))[None])
        batch_entropy = fn.entropy(totals / totals.detach().sum())
        terms = {
            "commitment": self.reduced((z - q).square()),
            "code_entropy": self.reduced(code_entropy),
            "batch_entropy": batch_entropy * (rows.shape[1] if self.reduction == "sum" else 1),
        }
        return Chosen(self.leave(fn.straight_through(z, q)), indices, terms, self.count(indices, rows)[None])
