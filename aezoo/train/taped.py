"""The step as it is written, recorded on a tape and replayed: for CPUs, what a CUDA graph is for GPUs.

A small or middling step spends as much on Python, autograd and memory that comes and goes as on arithmetic. A replay calls the same
kernels in the same order on memory that stays in the cache, so its numbers are the same to the bit.

The first step runs as written, the second is recorded beside the one that counts, and the third, the 16th, the 64th and so on are
computed both ways and compared; batches of other shapes are recorded when they have come back a few times. What may not be recorded runs
as written from then on: a loss that reads values on the host, that changes anything but buffers, or that is watched by hooks. What a
callback or `after_step` changes in the model makes the recording start again.

What Python does in a loss cannot be found out in full (a clock, a global variable, an iterator). So only models whose parts are all
aezoo's or torch's are recorded, and classes that say so of themselves: `recordable = True`.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..base import BaseAE
from .step import Clock, Eager, Values
from .tape import Tape

if TYPE_CHECKING:
    from .loop import _Trainer

PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
DEPTH = 6  # of what is looked at in an attribute
SHAPES = 8  # of batches that are recorded
RARE = 8  # steps after which a shape that is not the first one, as of the last batch of an epoch, is worth a record
PROOFS = {3, *(4**n for n in range(2, 16))}  # steps that are computed both ways, counted from 2 where it was recorded
OURS = {"aezoo", "torch", "torchvision"}
UNREAD = {"backbone", "config", "adapted", "origin"}  # attributes of a model that no loss reads
REPLACED = {"forward", "loss", "propagate", "scored"}  # methods that nobody should have put into an instance
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
        if not type(t.optimizer).__module__.startswith("torch.optim"):
            return f"the optimiser, {type(t.optimizer).__name__}, is not torch's"
        foreign = next(strangers(t.model), "")
        return f"{foreign} is not aezoo's and does not say that it is recordable" if foreign else ""

    def __call__(self, x: Tensor, share: float, last: bool, condition: Tensor | None = None) -> Values:
        if self.off or share != 1:
            return self.eager(x, share, last, condition)
        if self.counting and (counted := self.plain()) != self.counted:
            self.counted, self.records, self.steps = counted, {}, {}
        key = _form(x), _form(condition)
        steps = self.steps[key] = self.steps.get(key, 0) + 1
        record = self.records.get(key)
        if record is None and (steps < (RARE if self.records else 2) or len(self.records) == SHAPES):
            return self.eager(x, share, last, condition)
        if record is None:
            self.steps[key] = 2
        if record is None or self.steps[key] in PROOFS:
            return self.both_ways(key, record, x, condition)
        return record.run(x, condition)

    def plain(self) -> list[Any]:
        """Numbers, switches and texts of the modules that have an `after_step`: looked at before every step."""
        return [v for m in self.counting for v in vars(m).values() if type(v) in PLAIN]

    def look(self) -> None:
        """Whatever happens between two rows may have changed the model: is it what was recorded?"""
        if not self.records:
            return
        if marks_of(self.model) != self.marks:
            self.records, self.steps = {}, {}
        if watched(self.model):
            self.stop("it has hooks")

    def stop(self, why: str) -> None:
        self.off, self.records = why, {}

    def both_ways(self, key: Any, record: _Record | None, x: Tensor, condition: Tensor | None) -> Values:
        """The step as written, which counts, and once more: recorded, or from the record."""
        fresh = record is None
        if fresh:
            self.look()  # records of other shapes would be of what the model was
            marks, drawn = marks_of(self.model), _python_draws()
        before = _State(self.model)
        values = self.eager(x, 1.0, True, condition)
        after, gradients = _State(self.model), [p.grad for p in self.model.parameters()]
        if fresh and (marks_of(self.model) != marks or _python_draws() != drawn):
            self.stop("its loss changes more than tensors in place")
            return values
        before.put_back()
        try:
            record = self.recorded(x, condition) if record is None else record
            found = values if record is None else record.values if fresh else record.run(x, condition)
            pairs: list[tuple[Tensor | None, Tensor | None]] = [(values.total, found.total)]
            pairs += [(v, found.named.get(k)) for k, v in values.named.items()]
            pairs += [(g, p.grad) for g, p in zip(gradients, self.model.parameters())]
            if not self.off and not (after.same() and all(_same(a, b) for a, b in pairs)):
                self.stop("a replay gave other numbers")
        except Exception:  # of torch's, which cannot be watched in all that it does: the step as written was fine
            self.stop("it cannot be recorded")
        if fresh and record is not None and not self.off:
            self.records[key], self.marks = record, marks
        after.put_back()
        for p, g in zip(self.model.parameters(), gradients):
            p.grad = g
        return values

    def recorded(self, x: Tensor, condition: Tensor | None) -> _Record | None:
        """A step on a new tape; None, with the reason in `off`, for one that may not be replayed."""
        tape, reads = Tape(), _Reads()
        x, condition = x.clone(), condition if condition is None else condition.clone()
        with tape, reads:
            values = self.eager(x, 1.0, True, condition)
        gradients = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        may_change = tape.made | {b.untyped_storage().data_ptr() for b in self.model.buffers()}
        if tape.depends or reads.found:
            self.stop("its loss reads values on the host")
        elif not tape.written <= may_change:
            self.stop("its loss changes tensors that are no buffers")
        elif watched(self.model):
            self.stop("it has hooks")
        if self.off:
            return None
        tape.finish([values.total, *values.named.values(), *(g for _, g in gradients)])
        return _Record(tape, x, condition, values, gradients)


class _State:
    """Weights, buffers, and torch's generator, as they are now."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.tensors = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
        self.drawn = torch.get_rng_state()

    def same(self) -> bool:
        return torch.equal(torch.get_rng_state(), self.drawn) and all(_same(t, kept) for t, kept in self.tensors)

    def put_back(self) -> None:
        """And no gradients."""
        torch.set_rng_state(self.drawn)
        with torch.no_grad():
            for t, kept in self.tensors:
                if not _same(t, kept):
                    t.copy_(kept)
        for p in self.model.parameters():
            p.grad = None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """To the bit, where NaN is NaN."""
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if torch.equal(a, b):
        return True
    return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a.isnan(), b.isnan())


def _form(x: Tensor | None) -> Any:
    return None if x is None else (x.shape, x.stride(), x.dtype)


def _python_draws() -> Any:
    """What Python's and NumPy's generators would draw next."""
    numpy: Any = sys.modules.get("numpy")
    name, keys, *rest = numpy.random.get_state() if numpy else ("", random)
    return random.getstate(), name, keys.tobytes() if numpy else None, rest


def watched(model: nn.Module) -> bool:
    """Does anything but the loss run when a module is called?"""
    from torch.nn.modules import module

    own = any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in model.modules()
    )
    on_parameters = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    return own or on_parameters or module._has_any_global_hook() or torch.is_anomaly_enabled()


# ----------------------------------------------------------------------------------------------- what a model is made of


def strangers(model: BaseAE) -> Iterator[str]:
    """Names of what a loss may call, and that neither aezoo nor torch nor its own class vouches for."""
    for m in model.modules():
        if not _ours(m):
            yield type(m).__name__
        if any(name in vars(m) for name in REPLACED):
            yield f"a method of {type(m).__name__} that was replaced"
        for name, value in vars(m).items():
            if not (m is model and name in UNREAD):
                yield from _foreign(value, DEPTH)


def _ours(value: Any) -> bool:
    kind = type(value)
    return kind.__module__.partition(".")[0] in OURS or vars(kind).get("recordable") is True


def _foreign(value: Any, depth: int) -> Iterator[str]:
    """Of one attribute that is no module."""
    if type(value) in PLAIN or isinstance(value, (Tensor, nn.Module, type)):
        return
    if not depth:
        yield f"what lies deep in a {type(value).__name__}"
    elif isinstance(value, dict):
        for v in value.values():
            yield from _foreign(v, depth - 1)
    elif type(value) in (list, tuple, set, frozenset, range):
        for v in value:
            yield from _foreign(v, depth - 1)
    elif isinstance(value, (FunctionType, MethodType)):
        if str(value.__module__).partition(".")[0] not in OURS:
            yield value.__name__
    elif not _ours(value) and type(value).__module__ not in ("builtins", "collections", "functools", "weakref"):
        yield type(value).__name__


class _Is:
    """Equal to what holds the same object, and to nothing else."""

    def __init__(self, held: Any):
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and self.held is other.held

    __hash__ = None  # type: ignore[assignment]


def marks_of(model: nn.Module) -> Any:
    """What a loss may depend on beside its input and the values of tensors: modes, numbers, and which tensors and modules there are."""
    return [(_Is(m), _mark(vars(m), DEPTH)) for m in model.modules()]


def _mark(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return kind, value
    if isinstance(value, Tensor):
        return _Is(value), value.data_ptr(), value.shape, value.stride(), value.dtype, value.requires_grad
    if isinstance(value, nn.Module) or not depth:
        return _Is(value)
    if isinstance(value, dict):
        return [(k if type(k) in PLAIN else _Is(k), _mark(v, depth - 1)) for k, v in value.items()]
    if kind in (list, tuple, set, frozenset):
        return [len(value), *(_mark(v, depth - 1) for v in value)]
    with contextlib.suppress(TypeError):
        return _Is(value), _mark(vars(value), depth - 1)
    return _Is(value)
