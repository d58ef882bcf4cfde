"""The batch as a whole, also where it is spread over several processes.

A statistic of the batch (a mean activation, a codebook's counts, a batch norm's moments) must not depend on how many processes
share the batch, and neither must a random draw. In a single process everything here is the plain operation.

What a model has to do for it: take sums and means over the batch that are no plain mean of per-sample values by `batch_sum`,
`batch_mean` or `grand_mean`; ask for other processes' samples by `whole_batch`; and say by `batch_axis` which draws have the batch
elsewhere than on their first axis. Draws by functions of torch and batch norms look after themselves, with two exceptions, which
draw the same on every process: dropout inside of an attention kernel, and functions of which the values decide how much they draw
(poisson, rrelu).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SPREAD: Spread | None = None  # how the current batch is spread, if it is


def _alone() -> bool:
    """Are there no other processes that hold rows of the batch?"""
    return _SPREAD is None or _SPREAD.alone


def batch_sum(x: Tensor) -> Tensor:
    """Sum over the first axis of the whole batch, with its gradient: (B, ...) -> (...)."""
    return x.sum(0) if _alone() else _all(x.sum(0))


def batch_mean(x: Tensor) -> Tensor:
    """Mean over the first axis of the whole batch, with its gradient: (B, ...) -> (...)."""
    return x.mean(0) if _alone() or _SPREAD is None else _all(x.sum(0)) / _SPREAD.total


def grand_mean(x: Tensor) -> Tensor:
    """Mean over every element of the whole batch, with its gradient: (B, ...) -> ()."""
    return x.mean() if _alone() or _SPREAD is None else _all(x.sum()) / (_SPREAD.total * x[0].numel())


def whole_batch(x: Tensor) -> Tensor:
    """Every process's rows, in the order of the batch, with their gradient: (B, ...) -> (N, ...), N the whole batch's samples.

    For terms that compare samples with one another, and for rows that are picked at random from the batch."""
    return x if _alone() or _SPREAD is None else _all(_SPREAD.padded(x))


@contextmanager
def batch_axis(axis: int | None) -> Iterator[None]:
    """Random tensors that are drawn inside the block have the batch on this axis; None: on none, they are the same everywhere.

    Without it, a draw whose first axis is as long as the batch is one for each sample, and every other one is the same everywhere:
    `with batch_axis(1): torch.randn(S, B, K)` for S draws per sample, `with batch_axis(None): torch.randn(K, D)` for new weights."""
    if _SPREAD is None:
        yield
        return
    held, before = _SPREAD, _SPREAD.axis
    held.axis = axis
    try:
        yield
    finally:
        held.axis = before


class _AllReduce(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from torch.distributed import all_reduce

        x = x.clone(memory_format=torch.contiguous_format)
        all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all(gradient)


def _all(x: Tensor) -> Tensor:
    result: Tensor = _AllReduce.apply(x)
    return result


class Spread(TorchFunctionMode):
    """Inside the block this process holds rows `start` to `stop` of a batch of `total`.

    Random tensors with as many rows as the process holds are drawn for the whole batch, by the seed that all processes share, and cut;
    all others are the same everywhere. Batch norms in training mode use the whole batch's moments.

    `alone`: the other rows are in no process, being taken one piece after the other by this one: draws are cut from the whole
    batch's all the same, while sums, means and moments are those of the piece."""

    def __init__(self, start: int, stop: int, total: int, alone: bool = False):
        super().__init__()
        self.start, self.stop, self.total, self.alone = start, stop, total, alone
        self.axis: int | None = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and not self.alone and _given(args, kwargs, 5, "training", False):
            return self._batch_norm(*args, **kwargs)
        draw = _DRAWS.get(func)
        return func(*args, **kwargs) if draw is None else draw(self, func, args, kwargs)

    def holds(self, sizes: Any) -> bool:
        """Is a tensor of these sizes this process's part of a batch?"""
        return self.axis is not None and len(sizes) > self.axis and sizes[self.axis] == self.stop - self.start

    def whole(self, sizes: Any) -> list[int]:
        """The sizes of the whole batch."""
        assert self.axis is not None
        return [*sizes[: self.axis], self.total, *sizes[self.axis + 1 :]]

    def mine(self, x: Tensor) -> Tensor:
        assert self.axis is not None
        return x.narrow(self.axis, self.start, self.stop - self.start)

    def padded(self, x: Tensor, axis: int = 0) -> Tensor:
        """The whole batch with zeros for the others' rows; with the gradient of `x`."""
        before, after = list(x.shape), list(x.shape)
        before[axis], after[axis] = self.start, self.total - self.stop
        return _laid_out(torch.cat([x.new_zeros(before), x, x.new_zeros(after)], axis), x)

    def _batch_norm(self, input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                    training: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = self.total * (x[0, 0].numel() if x.dim() > 2 else 1)
        mean = _all(x.sum(axes)) / count
        centred = x - mean.view(shape)
        var = _all(centred.square().sum(axes)) / count
        if running_mean is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((var * (count / max(1, count - 1))).to(running_var), momentum)
        y = centred * torch.rsqrt(var + eps).view(shape)
        if weight is not None:
            y = y * weight.view(shape) + bias.view(shape)
        return y.to(input.dtype)


def _laid_out(whole: Tensor, part: Tensor) -> Tensor:
    """In the layout of `part`: the order in which numbers are drawn is that of the memory."""
    last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()
    return whole.contiguous(memory_format=torch.channels_last) if last else whole


def _given(args: Any, kwargs: Any, position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


# How each kind of function that draws is answered. Those of a tensor:


def _padded(spread: Spread, func: Any, args: Any, kwargs: Any) -> Any:
    """randn_like, bernoulli, gumbel_softmax, ...: each row of the outcome belongs to a row of the first argument."""
    if not spread.holds(args[0].shape):
        return func(*args, **kwargs)
    return spread.mine(func(spread.padded(args[0], spread.axis or 0), *args[1:], **kwargs))


def _in_place(spread: Spread, func: Any, args: Any, kwargs: Any) -> Any:
    """x.normal_(), x.uniform_(), x.bernoulli_(p)."""
    x = args[0]
    if not spread.holds(x.shape) or any(isinstance(a, Tensor) and a.dim() for a in args[1:]):
        return func(*args, **kwargs)
    whole = _laid_out(x.new_empty(spread.whole(x.shape)), x)
    return x.copy_(spread.mine(func(whole, *args[1:], **kwargs)))


def _multinomial(spread: Spread, func: Any, args: Any, kwargs: Any) -> Any:
    """Weights of shape (B, classes), or of several rows per sample: (B * n, classes)."""
    x, held = args[0], spread.stop - spread.start
    if spread.axis is None or x.dim() < 2 or len(x) % held:
        return func(*args, **kwargs)
    n = len(x) // held
    others = [x.new_ones(rows * n, x.shape[1]) for rows in (spread.start, spread.total - spread.stop)]
    drawn = func(torch.cat([others[0], x, others[1]]), *args[1:], **kwargs)
    return drawn[spread.start * n : spread.stop * n]


def _normal(spread: Spread, func: Any, args: Any, kwargs: Any) -> Any:
    """torch.normal(mean, std) with a tensor for one or both."""
    mean, std = (_given(args, kwargs, i, name, v) for i, (name, v) in enumerate({"mean": 0.0, "std": 1.0}.items()))
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    if not tensors or "out" in kwargs:
        return func(*args, **kwargs)
    sizes = torch.broadcast_shapes(*(t.shape for t in tensors))
    if not spread.holds(sizes):
        return func(*args, **kwargs)
    like, generator = tensors[0], kwargs.get("generator")
    drawn = torch.empty(spread.whole(sizes), dtype=like.dtype, device=like.device).normal_(generator=generator)
    return mean + std * spread.mine(drawn)


# those of sizes:


def _by_sizes(spread: Spread, func: Any, args: Any, kwargs: Any) -> Any:
    """randn, rand: sizes as one argument or several."""
    sizes = kwargs.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
    if not spread.holds(sizes):
        return func(*args, **kwargs)
    options = {k: v for k, v in kwargs.items() if k != "size"}
    return spread.mine(func(spread.whole(sizes), **options))


def _randint(spread: Spread, func: Any, args: Any, kwargs: Any) -> Any:
    """randint([low,] high, size)."""
    sizes = kwargs.get("size", args[-1] if args else ())
    if not isinstance(sizes, (tuple, list)) or not spread.holds(sizes):
        return func(*args, **kwargs)
    bounds = args if "size" in kwargs else args[:-1]
    return spread.mine(func(*bounds, **{**kwargs, "size": spread.whole(sizes)}))


# and those of training only, by the position of the argument `training`:


def _dropout(spread: Spread, func: Any, args: Any, kwargs: Any) -> Any:
    """A mask of ones and zeros, drawn for all and cut, since the product with it is cheaper than a whole batch's."""
    x, p = args[0], _given(args, kwargs, 1, "p", 0.5)
    if not spread.holds(x.shape) or p == 0 or not _given(args, kwargs, 2, "training", True):
        return func(*args, **kwargs)
    return x * spread.mine(func(_laid_out(x.new_ones(spread.whole(x.shape)), x), p, True))


def _in_training(spread: Spread, func: Any, args: Any, kwargs: Any) -> Any:
    if not _given(args, kwargs, 2, "training", False):
        return func(*args, **kwargs)
    return _padded(spread, func, args, kwargs)


_DRAWS: dict[Any, Any] = {
    **dict.fromkeys((torch.randn_like, torch.rand_like, torch.randint_like), _padded),
    **dict.fromkeys((torch.bernoulli, Tensor.bernoulli, F.gumbel_softmax), _padded),
    **dict.fromkeys((Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_), _in_place),
    **dict.fromkeys((Tensor.random_, Tensor.geometric_, Tensor.log_normal_, Tensor.cauchy_), _in_place),
    **dict.fromkeys((torch.multinomial, Tensor.multinomial), _multinomial),
    **dict.fromkeys((torch.randn, torch.rand), _by_sizes),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), _dropout),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), _in_training),
    torch.normal: _normal,
    torch.randint: _randint,
}


@contextmanager
def spread(start: int, stop: int, total: int, alone: bool = False) -> Iterator[None]:
    """The rest of the block sees rows `start` to `stop` of a batch of `total`; `alone`: see `Spread`."""
    global _SPREAD
    before, _SPREAD = _SPREAD, Spread(start, stop, total, alone)
    try:
        with _SPREAD:
            yield
    finally:
        _SPREAD = before


@contextmanager
def rows_per_sample(n: int) -> Iterator[None]:
    """Inside the block every sample has n rows, one behind the other: statistics and draws of a batch that is spread are those of n
    times as many rows."""
    held = _SPREAD
    if held is None:
        yield
        return
    with spread(held.start * n, held.stop * n, held.total * n, held.alone):
        yield


def whole_size(rows: int) -> int:
    """Samples of the whole batch, of which `rows` are here."""
    return rows if _SPREAD is None else _SPREAD.total
