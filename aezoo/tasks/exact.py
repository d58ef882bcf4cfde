"""Networks that give the same bits on every machine: what a lossless coder computes on both sides must not differ in the last place.

A float64 holds integers up to 2^53 exactly. With weights and inputs that are multiples of 2^-16, and inputs cut to a range that keeps every
partial sum below 2^53 of its units, a linear layer or convolution in float64 has no rounding at all: whatever the order of summation, the
number of threads, the batch size or the instructions, the result is the same. Activations are read from tables by linear interpolation;
+, -, *, / and the square root are correctly rounded by IEEE 754. So networks of linear layers, convolutions, batch norm and the
activations of `aezoo` are exact. Whatever else a network holds (layer norm, group norm, attention) runs in float64 on one thread and is rounded
to multiples of 2^-16 before the next linear layer: the same bits on the same machine and, but for a number that falls
right between two multiples, on others; the checksum in the file tells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..base import BaseAE

GRID = 2.0**16  # units in 1 of weights and of a layer's input
ROOM = 2.0**20  # largest sum of a layer: 2^52 / 2^32
SPAN, STEPS = 24.0, 512  # tables go from -SPAN to SPAN in steps of 1 / STEPS
VALUES = 2.0**40  # tables hold multiples of 1 / VALUES, which is far above what two libraries differ by


def grid(x: Tensor) -> Tensor:
    """The nearest multiples of 2^-16."""
    return torch.round(x * GRID) / GRID


def _above_relu(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda t: f(t) - t.clamp_min(0)


CURVES: dict[str, Callable[[Tensor], Tensor]] = {  # each is constant beyond the span, to the precision of the tables
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": _above_relu(F.silu),
    "gelu": _above_relu(F.gelu),
    "softplus": _above_relu(F.softplus),
    "elu": lambda t: torch.expm1(t.clamp_max(0)),
    "normal": torch.special.ndtr,
    "exp": lambda t: torch.exp(t.clamp_max(0)),
}


def make_tables() -> dict[str, Tensor]:
    """The values of each curve at -SPAN, -SPAN + 1 / STEPS, ..., SPAN, float64; frozen and saved with a codec."""
    at = torch.arange(-SPAN * STEPS, SPAN * STEPS + 1, dtype=torch.float64) / STEPS
    return {name: torch.round(curve(at) * VALUES) / VALUES for name, curve in CURVES.items()}


def lookup(table: Tensor, x: Tensor) -> Tensor:
    """The curve at x, float64, any shape, by linear interpolation; constant beyond the span."""
    place = (x.clamp(-SPAN, SPAN) + SPAN) * STEPS
    below = place.floor().clamp_max(len(table) - 2)
    i = below.long()
    low = table[i]
    return low + (table[i + 1] - low) * (place - below)


class Exact(TorchFunctionMode):
    """Inside the block linear layers and convolutions round their input, and activations are read from tables."""

    def __init__(self, tables: dict[str, Tensor]):
        super().__init__()
        self.tables = tables
        self.limits: dict[tuple, tuple[Tensor, float]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removeprefix("_").rstrip("_")
        if name in LAYERS and len(args) >= 2:
            x, weight, *rest = args
            limit = self._limit(name, weight)
            return func(grid(x.clamp(-limit, limit)), weight, *rest, **kwargs)
        if name in CURVES and name not in ("normal", "exp") and _plain(name, args, kwargs):
            x = args[0]
            found = lookup(self.tables[name], x)
            return found if name in ("sigmoid", "tanh") else found + x.clamp_min(0)
        if name == "batch_norm" and len(args) + len(kwargs) >= 3:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _limit(self, name: str, weight: Tensor) -> float:
        """Range of the input in which no sum of the layer can round."""
        key = (weight.data_ptr(), weight.shape, weight.stride(), name)
        if key not in self.limits:
            axes = [d for d in range(weight.dim()) if d != (1 if "transpose" in name else 0)]
            most = float(weight.abs().sum(axes).max())
            self.limits[key] = (weight, 2.0 ** torch.tensor(ROOM / max(most, 2.0**-16)).log2().floor().item())
        return self.limits[key][1]


LAYERS = {"linear", *(f"conv{r}d" for r in (1, 2, 3)), *(f"conv_transpose{r}d" for r in (1, 2, 3))}


def _plain(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether an activation has the options that the tables are of."""
    options = {"elu": ("alpha", 1.0), "softplus": ("beta", 1.0), "gelu": ("approximate", "none")}
    if name not in options:
        return True
    key, value = options[name]
    given = args[1] if len(args) > 1 else kwargs.get(key, value)
    return bool(given == value)


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
    **more: Any,
) -> Tensor:
    """In evaluation mode, by operations that are rounded one by one."""
    eps = rest[2] if len(rest) > 2 else more.get("eps", 1e-5)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    scale = 1 / torch.sqrt(var + eps)
    scale = scale if weight is None else scale * weight
    y = (x - mean.view(shape)) * scale.view(shape)
    return y if bias is None else y + bias.view(shape)


def exact_copy(model: BaseAE) -> BaseAE:
    """The model on the CPU in float64, in evaluation mode, its weights rounded to multiples of 2^-16."""
    twin = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        for p in twin.parameters():
            p.copy_(grid(p))
            p.requires_grad_(False)
    return twin


@contextmanager
def one_thread() -> Iterator[None]:
    """torch runs on one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
