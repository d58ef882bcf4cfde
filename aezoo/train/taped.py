"""The step as it is written, recorded on a tape and replayed: for CPUs, what a CUDA graph is for GPUs.

A small or middling step spends as much on Python, autograd and memory that comes and goes as on arithmetic. A replay calls the same
kernels in the same order on memory that stays in the cache, so its numbers are the same to the bit.

Of each shape of batch the first step runs as written, the second is recorded, the third is computed both ways and compared. What
may not be recorded runs as written from then on: a loss that reads values on the host, that leaves anything behind in its module
(a counter, a list), or that is watched by hooks. What a callback or `after_step` changes in the model makes the recording start again.
A loss that depends on a global variable or on a clock cannot be found out: `fit(compile=False)` runs every step as it is written.
"""

from __future__ import annotations

import contextlib
import random
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..base import BaseAE
from .step import Clock, Eager, Values
from .tape import Tape

if TYPE_CHECKING:
    from .loop import _Trainer

PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device}
DEPTH = 4  # of what is looked at in an attribute
SHAPES = 8  # of batches that are recorded
TO_THE_HOST = {
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.item,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
}


class _Reads(TorchFunctionMode):
    """Notes whether a value was read on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or func in TO_THE_HOST
        return func(*args, **(kwargs or {}))


class _Record(NamedTuple):
    tape: Tape
    x: Tensor
    condition: Tensor | None
    values: Values
    gradients: list[tuple[nn.Parameter, Tensor]]

    def run(self, x: Tensor, condition: Tensor | None) -> Values:
        """A step's loss and gradients, in memory that the next one uses again."""
        self.x.copy_(x)
        if self.condition is not None and condition is not None:
            self.condition.copy_(condition)
        self.tape.run()
        for p, g in self.gradients:
            p.grad = g
        return self.values


class Taped:
    """In place of `Eager`, of one stage of a run in which each step is one batch."""

    whole = False

    def __init__(self, eager: Eager, model: BaseAE):
        self.eager, self.model = eager, model
        self.records: dict[Any, _Record] = {}
        self.steps: dict[Any, int] = {}  # taken, by shape
        self.off = ""  # why nothing is recorded any more
        self.marks: Any = None  # of the model, when it was recorded
        counts: Any = [(m, getattr(type(m), "after_step", None)) for m in model.modules()]
        self.counting = [m for m, own in counts if own not in (None, BaseAE.after_step)]
        self.counted: Any = None
        self.clock: Clock | None = None

    @staticmethod
    def why_not(t: _Trainer) -> str:
        """Why this run's steps cannot be replayed, or nothing."""
        if t.asked["accumulate"] > 1 or t.asked["recompute"]:
            return "accumulate and recompute run as written"
        if t.hooks.step or t.profile:
            return "something looks at every step"
        return ""

    def __call__(self, x: Tensor, share: float, last: bool, condition: Tensor | None = None) -> Values:
        if self.off or share != 1:
            return self.eager(x, share, last, condition)
        if self.counting and (counted := self.plain()) != self.counted:
            self.counted, self.records, self.steps = counted, {}, {}
        key = _form(x), _form(condition)
        steps = self.steps[key] = self.steps.get(key, 0) + 1
        record = self.records.get(key)
        if record is None and (steps == 1 or len(self.records) == SHAPES):
            return self.eager(x, share, last, condition)
        if record is None:
            return self.record(key, x, condition)
        return self.prove(record, x, condition) if steps == 3 else record.run(x, condition)

    def plain(self) -> list[Any]:
        """Numbers, switches and texts of the modules that have an `after_step`: looked at before every step."""
        return [v for m in self.counting for v in vars(m).values() if type(v) in PLAIN]

    def look(self) -> None:
        """Whatever happens between two rows may have changed the model: is it what was recorded?"""
        if self.records and marks_of(self.model) != self.marks:
            self.records, self.steps = {}, {}

    def record(self, key: Any, x: Tensor, condition: Tensor | None) -> Values:
        """The step as written, and what it did."""
        before, drawn = _Before(self.model), _python_draws()
        tape, reads = Tape(), _Reads()
        x, condition = x.clone(), condition if condition is None else condition.clone()
        try:
            with tape, reads:
                values = self.eager(x, 1.0, True, condition)
        except Exception:  # it may not stand being watched; else the step as written says what is wrong
            before.put_back()
            self.off = "it does not run under torch's dispatch mode"
            return self.eager(x, 1.0, True, condition)
        if marks_of(self.model) != before.marks or _python_draws() != drawn:
            self.off = "its loss changes more than tensors in place"
        elif tape.depends or reads.found:
            self.off = "its loss reads values on the host"
        elif watched(self.model):
            self.off = "it has hooks"
        if self.off:
            self.records = {}
            return values
        gradients = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        tape.finish([values.total, *values.named.values(), *(g for _, g in gradients)])
        self.records[key], self.marks = _Record(tape, x, condition, values, gradients), before.marks
        return values

    def prove(self, record: _Record, x: Tensor, condition: Tensor | None) -> Values:
        """The step both ways; what is written is right."""
        before = _Before(self.model)
        values = self.eager(x, 1.0, True, condition)
        after, gradients = _Before(self.model), [p.grad for p in self.model.parameters()]
        before.put_back()
        again = record.run(x, condition)
        pairs: list[tuple[Tensor | None, Tensor | None]] = [
            (values.total, again.total),
            *zip(values.named.values(), again.named.values()),
        ]
        pairs += [(g, p.grad) for g, p in zip(gradients, self.model.parameters())]
        if all(_same(a, b) for a, b in pairs) and after.same():
            return again
        self.off, self.records = "a replay gave other numbers", {}
        after.put_back()
        for p, g in zip(self.model.parameters(), gradients):
            p.grad = g
        return values


class _Before:
    """Buffers, and torch's generator, as they are now."""

    def __init__(self, model: nn.Module):
        self.model, self.marks = model, marks_of(model)
        self.buffers = [(b, b.clone()) for b in model.buffers()]
        self.drawn = torch.get_rng_state()

    def same(self) -> bool:
        return torch.equal(torch.get_rng_state(), self.drawn) and all(_same(b, kept) for b, kept in self.buffers)

    def put_back(self) -> None:
        """And no gradients."""
        torch.set_rng_state(self.drawn)
        with torch.no_grad():
            for b, kept in self.buffers:
                if not _same(b, kept):
                    b.copy_(kept)
        for p in self.model.parameters():
            p.grad = None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """To the bit, where NaN is NaN."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a.isnan(), b.isnan())  # fmt: skip


def _form(x: Tensor | None) -> Any:
    return None if x is None else (x.shape, x.stride(), x.dtype)


def _python_draws() -> Any:
    """What Python's and NumPy's generators would draw next."""
    numpy: Any = sys.modules.get("numpy")
    return random.getstate(), str(numpy.random.get_state()) if numpy else None


def watched(model: nn.Module) -> bool:
    """Does anything but the loss run when a module is called?"""
    from torch.nn.modules import module

    own = any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in model.modules()
    )
    on_parameters = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    return own or on_parameters or module._has_any_global_hook() or torch.is_anomaly_enabled()


def marks_of(model: nn.Module) -> Any:
    """What a loss may depend on beside its input and the values of tensors: modes, numbers, and which tensors and modules there are."""
    return [(id(m), _mark(vars(m), DEPTH)) for m in model.modules()]


def _mark(value: Any, depth: int) -> Any:
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        return id(value), value.data_ptr(), value.requires_grad
    if isinstance(value, nn.Module) or not depth:
        return id(value)
    if isinstance(value, dict):
        return [(k if type(k) in PLAIN else id(k), _mark(v, depth - 1)) for k, v in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [len(value), *(_mark(v, depth - 1) for v in value)]
    with contextlib.suppress(TypeError):
        return id(value), _mark(vars(value), depth - 1)
    return id(value)
