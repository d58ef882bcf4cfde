"""What one of several models does inside `vmap`: its random draws are written down or handed in, and its layers take the kernels that
fit a stack of them.

Legend: M models, B batch, I and O features in and out. Inside `vmap` the axis M is hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Draw(NamedTuple):
    """One random tensor of one model's pass: its form, and how it is filled from a generator."""

    like: Tensor
    fill: Callable[[Tensor, torch.Generator], Any]
    scale: float = 1.0  # what the filled values are divided by

    def stacked(self, count: int) -> Tensor:
        """Memory for `count` models, each part laid out as a single model's tensor."""
        shape, strides = self.like.shape, self.like.stride()
        span = 1 + sum((s - 1) * t for s, t in zip(shape, strides))
        return torch.empty_strided((count, *shape), (span, *strides), dtype=self.like.dtype, device=self.like.device)


def _filled(name: str, args: Any, kwargs: Any) -> Callable[[Tensor, torch.Generator], Any]:
    given = {k: v for k, v in kwargs.items() if k != "generator"}
    return lambda out, g: getattr(out, name)(*args, **given, generator=g)


class Batched(TorchFunctionMode):
    """Inside the block random tensors are written down (`given` is None: one model alone), or taken from `given` one after the
    other (one of several, inside `vmap`)."""

    def __init__(self, given: Sequence[Tensor] | None = None):
        super().__init__()
        self.recorded: list[Draw] = []
        self.given = iter(given) if given is not None else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self.dropout(*args, **kwargs)
        if func in MADE:
            if self.given is not None:
                return next(self.given)
            result = func(*args, **kwargs)
            return self.write(result, _filled(MADE[func], (), {}))
        if func in IN_PLACE:
            if self.given is not None:
                return args[0].copy_(next(self.given))
            return self.write(func(*args, **kwargs), _filled(func.__name__, args[1:], kwargs))
        if func is F.linear and self.given is not None and args[0].dim() == 2:
            return _Linear.apply(*_linear_arguments(*args, **kwargs))
        if func is F.batch_norm and self.given is not None and args[0].dim() == 2:
            return _batch_norm(*args, **kwargs)
        if func is Tensor.lerp_ and self.given is not None and isinstance(args[2], float) and args[2] < 0.5:
            return args[0].add_((args[1] - args[0]) * args[2])  # vmap has no rule for lerp_ and would loop
        return func(*args, **kwargs)

    def write(self, result: Tensor, fill: Callable[[Tensor, torch.Generator], Any], scale: float = 1.0) -> Tensor:
        self.recorded.append(Draw(result.detach(), fill, scale))
        return result

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """x * mask / (1 - p), with the mask that torch draws on the CPU."""
        if not training or p == 0:
            return x
        if self.given is not None:
            return x * next(self.given)
        mask = torch.empty_like(x).bernoulli_(1 - p)
        return x * self.write(mask, _filled("bernoulli_", (1 - p,), {}), 1 - p) / (1 - p)


MADE = {torch.randn_like: "normal_", torch.rand_like: "uniform_", torch.randn: "normal_", torch.rand: "uniform_"}
IN_PLACE = (Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_)


# --------------------------------------------------------------------------------------------------------------- layers


def _linear_arguments(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return x, weight, weight.new_zeros(()).expand(weight.shape[0]) if bias is None else bias


def _stacked(info: Any, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The models along the first axis, of each tensor."""
    return [t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0) for d, t in zip(dims, tensors)]


class _Linear(torch.autograd.Function):
    """x W^T + b, (B, I) -> (B, O); of several models one product of stacks with the bias in the same kernel."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: only `vmap` is ever called, whose gradient is autograd's own."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, int]:
        x, weight, bias = _stacked(info, in_dims, (x, weight, bias))
        return torch.baddbmm(bias[:, None], x, weight.mT), 0  # (M, B, I), (M, I, O) -> (M, B, O)


def _batch_norm(x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
    if mean is None or var is None or weight is None or bias is None:
        return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(x, mean, var, weight, bias, training, momentum, eps)


class _BatchNorm(torch.autograd.Function):
    """Batch norm of (B, O); of several models one of (B, M * O), whose channels are the features of all of them."""

    @staticmethod
    def forward(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """As above."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        x, mean, var, weight, bias = _stacked(info, in_dims[:5], (x, *rest[:4]))
        wide = x.transpose(0, 1).reshape(x.shape[1], -1)  # (M, B, O) -> (B, M * O)
        flat = [t.reshape(-1) for t in (mean, var, weight, bias)]  # views: the statistics are updated in the stack
        out: Tensor = F.batch_norm(wide, flat[0], flat[1], flat[2], flat[3], *rest[4:])
        return out.view(x.shape[1], x.shape[0], x.shape[2]).transpose(0, 1), 0
