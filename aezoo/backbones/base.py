"""What a backbone is, and the pieces that backbones share.

A backbone is a small spec: it keeps its options and, in `build`, makes the two networks

    encoder: (B, *input_shape)  -> (B, code_params * latent_dim)
    decoder: (B, latent_dim)    -> (B, num_params, *input_shape)

where `code_params` is what the bottleneck needs per latent (2 for a Gaussian: mean and log-variance) and `num_params` what the
likelihood needs per data element. Both are `Blocks`, mirror images of each other: the decoder's block -1-i undoes the encoder's
block i, so what lies between two blocks has the same shape on both sides (greedy layer-wise training relies on it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.core import plain_cpu
from ..registry import Recorded, Registry, choice

BACKBONES: Registry[Backbone] = Registry("backbone")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


TOKENS = 8  # vectors of a code that a backbone without axes of its own is cut into


class Backbone(metaclass=Recorded):
    """Base of all backbones; a subclass gives `build`."""

    name = ""
    config: dict[str, Any]

    def build(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        """Returns (encoder, decoder), shapes as in the module's docstring."""
        raise TypeError(f"{type(self).__name__} does not define build")

    def build_grid(
        self, input_shape: tuple[int, ...], latent_dim: int, code_params: int = 1, num_params: int = 1
    ) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        """Returns (encoder, decoder, grid) for codes that are a grid of vectors:

            encoder: (B, *input_shape)        -> (B, code_params * latent_dim, *grid)
            decoder: (B, latent_dim, *grid)   -> (B, num_params, *input_shape)

        A backbone without axes of its own makes one flat code and cuts it into `TOKENS` vectors."""
        encoder, decoder = self.build(input_shape, TOKENS * latent_dim, code_params, num_params)
        whole = (code_params * latent_dim, TOKENS)
        return (
            nn.Sequential(encoder, nn.Unflatten(1, whole)),
            nn.Sequential(nn.Flatten(1), decoder),
            (TOKENS,),
        )


class _OfMaps(torch.autograd.Function):
    """A reshape of maps whose channels lie last in memory; its gradient lies as the maps do. Where gradient and outcome of an
    activation lie in different orders, its backward pass takes ten times longer on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = x.shape
        return x.reshape(x.shape[0], *shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].reshape(ctx.shape).contiguous(memory_format=torch.channels_last), None


def channels_last(x: Tensor) -> bool:
    """Is it a batch of maps, or a kernel, whose channels lie last in memory (and which could lie otherwise)?"""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def reshaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, ...) -> (B, *shape)."""
    if x.requires_grad and torch.is_grad_enabled() and plain_cpu(x) and channels_last(x):
        y: Tensor = _OfMaps.apply(x, shape)
        return y
    return x.reshape(x.shape[0], *shape)


class Blocks(nn.Sequential):
    """A chain of blocks; `blocks[i]` is the i-th."""


class Block(nn.Module):
    """reshape -> layer -> norm -> activation -> dropout -> reshape; the last three may be absent.

    `norm`: "none", "batch" or "layer" (for feature maps: over channels, one group)."""

    def __init__(
        self,
        layer: nn.Module,
        features: int,
        *,
        spatial: int = 0,
        activation: str = "identity",
        norm: str = "none",
        dropout: float = 0.0,
        before: Sequence[int] | None = None,
        after: Sequence[int] | None = None,
    ):
        super().__init__()
        self.before = None if before is None else tuple(before)
        self.after = None if after is None else tuple(after)
        self.layer = layer
        self.norm: nn.Module | None = None
        if norm == "batch":
            self.norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[spatial](features)
        elif norm == "layer":
            self.norm = nn.GroupNorm(1, features)
        self.activation = None if activation == "identity" else ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = reshaped(x, self.before)  # (B, ...) -> (B, *before)
        x = self.layer(x)
        for module in (self.norm, self.activation, self.dropout):
            if module is not None:
                x = module(x)
        return x if self.after is None else x.reshape(x.shape[0], *self.after)


class Tied(nn.Module):
    """A layer that applies the transpose of another's weight, with a bias of its own. The weight is stored once, with its
    owner."""

    owner: Any

    def __init__(self, owner: nn.Module, transpose: Callable[..., Tensor], features: int, **options: Any):
        super().__init__()
        object.__setattr__(self, "owner", owner)  # not registered as a child: the weight is in the state once
        self.transpose = transpose
        self.features = features
        self.options = options
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.transpose(x, self.owner.weight, self.bias, **self.options)

    def extra_repr(self) -> str:
        return f"transpose of the encoder's {tuple(self.owner.weight.shape)}"


def linear_transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b with the encoder's W (out, in); only as many of its rows as x has columns (a Gaussian head has more)."""
    return F.linear(x, weight[: x.shape[1]].t(), bias)


def checked(name: str, widths: Sequence[int], activation: str, norm: str, dropout: float) -> tuple[int, ...]:
    """The options that backbones share; returns the widths as a tuple. Raises ValueError naming value and choices."""
    choice(f"{name}: activation", activation, ACTIVATIONS)
    choice(f"{name}: norm", norm, ["none", "batch", "layer"])
    if not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
        raise ValueError(f"{name}: dropout={dropout!r} must be a number in [0, 1)")
    if isinstance(widths, int):
        widths = (widths,)
    if not isinstance(widths, Sequence) or not all(isinstance(w, int) and w > 0 for w in widths):
        raise ValueError(f"{name}: widths={widths!r} must be positive integers, e.g. (512, 256)")
    return tuple(widths)


def check_tied(name: str, num_params: int) -> None:
    """Tied weights leave no room for a second decoder output per element."""
    if num_params != 1:
        raise ValueError(
            f"{name}: tied=True needs a likelihood with one decoder output per element; this one needs {num_params}"
        )
