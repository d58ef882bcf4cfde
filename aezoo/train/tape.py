"""A computation as a list of kernels on fixed memory: recorded once, run again without Python, autograd or allocation around it.

While it is recorded, every kernel leaves its results in tensors that stay. Running it again calls each kernel with the same tensors,
its results written over the old ones (`out=`), so what is a view of a result needs no work at all. New inputs are copied into the
tensors that the recording read; new results are found in those that it was told to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PLACE = {"dtype", "layout", "device", "pin_memory"}  # what a result is told, and what a given tensor already has
EMPTY = {getattr(torch.ops.aten, n) for n in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
ASKS = {getattr(torch.ops.aten, n) for n in ("mkldnn_rnn_layer",) if hasattr(torch.ops.aten, n)}
VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class _Call(NamedTuple):
    func: Any
    args: Any
    kwargs: Any
    results: list[Any]
    """Empty for what works in place."""


class Tape(TorchDispatchMode):
    """Records what runs inside the block `with tape:`; after `finish`, `run()` does it again.

    What is recorded must not depend on values, or on a generator that is not torch's own (`depends` says whether it does: an `.item()`, a
    choice by a tensor's content). Random numbers are drawn anew at each run. `written` and `made` say which memory was changed in place,
    and which came about on the tape."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[_Call] = []
        self.depends = False
        self.made: set[int] = set()
        self.written: set[int] = set()  # memory that something in place changed
        self.calls: list[Callable[[], Any]] = []
        self.rare: list[Callable[[], Any]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler to keep it out of the method below, which takes more than a second; nothing compiles here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.depends = self.depends or _depends(func, args, kwargs)
        result = func(*args, **kwargs)
        results = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, (tuple, list)) else []
        before, after = ({_memory(t) for t in _tensors(part)} for part in ([args, kwargs], results))
        writes = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
        if torch.Tag.inplace_view in func.tags:
            return result  # what comes later was recorded with the shape that this gave it
        if any(writes):
            given = [*args, *(kwargs[a.name] for a in func._schema.arguments[len(args) :] if a.name in kwargs)]
            self.written |= {_memory(t) for value, w in zip(given, writes) if w for t in _tensors(value)}
            self.recorded.append(_Call(func, _apart(args), _apart(kwargs), []))
        elif not results or not after & before:  # else it is a view, or the argument itself
            self.made |= after
            self.recorded.append(_Call(func, _apart(args), _apart(kwargs), _apart(results)))
        return result

    def finish(self, keep: Sequence[Tensor], rarely: Sequence[Tensor] = ()) -> None:
        """Plans the memory. `keep`: results that are read afterwards. `rarely`: inputs that seldom change; what depends on nothing
        else is left out of `run` and computed by `refresh`.

        Other results share memory with those that come after their last use: what fits into a processor's cache stays there from
        kernel to kernel."""
        last: dict[int, int] = {}
        for i, call in enumerate(self.recorded):
            last |= dict.fromkeys(_memories(call), i)
        rare = self._rare({_memory(t) for t in rarely}, {_memory(t) for t in keep})
        kept = {_memory(t) for t in keep} | {m for i in rare for m in _memories(self.recorded[i])}
        blocks: dict[int, Tensor] = {}  # by the memory that they stand for
        free: dict[tuple[torch.device, int], list[Tensor]] = {}  # by device and size in bytes
        self.calls, self.rare = [], []
        for i, call in enumerate(self.recorded):
            for t in _tensors(call.results):
                memory, place = _memory(t), (t.device, t.untyped_storage().nbytes())
                if memory not in kept and memory not in blocks and place[1]:
                    spare = free.get(place)
                    blocks[memory] = spare.pop() if spare else torch.empty(place[1], dtype=torch.uint8, device=t.device)
            moved = _Call(call.func, *(_moved(part, blocks) for part in (call.args, call.kwargs, call.results)))
            again = partial(_bare(call.func), *moved.args, **moved.kwargs) if not call.results else _again(moved)
            if call.func.overloadpacket not in EMPTY:
                (self.rare if i in rare else self.calls).append(again)
            for memory in _memories(call):
                if last[memory] == i and memory in blocks:
                    free.setdefault((blocks[memory].device, blocks[memory].numel()), []).append(blocks[memory])
        self.recorded = []

    def _rare(self, rarely: set[int], keep: set[int]) -> set[int]:
        """Numbers of the calls that read nothing but what seldom changes, and whose results nothing changes in place: on the tape, or
        who reads what is kept."""
        changed = {m for call in self.recorded if not call.results for m in _memories(call)}
        made = {_memory(t) for call in self.recorded for t in _tensors(call.results)}
        moving, found = changed | keep, set()
        for i, call in enumerate(self.recorded):
            read = {_memory(t) for t in _tensors([call.args, call.kwargs])}
            results = {_memory(t) for t in _tensors(call.results)}
            if (
                call.results
                and torch.Tag.nondeterministic_seeded not in call.func.tags
                and not results & moving
                and all(m in rarely or (m in made and m not in moving) for m in read)
            ):
                found.add(i)
            else:
                moving = moving | results
        return found

    @torch.no_grad()
    def run(self) -> None:
        for call in self.calls:
            call()

    @torch.no_grad()
    def refresh(self) -> None:
        """After a change of an input that seldom changes."""
        for call in self.rare:
            call()


def _depends(func: Any, args: Any, kwargs: Any) -> bool:
    """Does the shape of a result, or the host, depend on values? Of an index only where it is a mask. Are numbers drawn from a generator
    that was brought along?"""
    if any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values())):
        return True
    masks = func is not torch.ops.aten.index.Tensor or any(
        t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1])
    )
    return not VALUES.isdisjoint(func.tags) and masks


def _apart(value: Any) -> Any:
    """The same memory in tensors of their own, whose shapes nothing changes."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (list, tuple)):
        return type(value)(_apart(v) for v in value)
    return {k: _apart(v) for k, v in value.items()} if isinstance(value, dict) else value


def _memories(call: _Call) -> set[int]:
    return {_memory(t) for t in _tensors([call.args, call.kwargs, call.results])}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _memory(t: Tensor) -> int:
    """What tensors have in common that are views of each other; of an empty tensor, nothing."""
    return t.untyped_storage().data_ptr() or -id(t)


def _moved(value: Any, blocks: dict[int, Tensor]) -> Any:
    """The same arguments, with their tensors in the memory that was planned for them."""
    if isinstance(value, Tensor):
        block = blocks.get(_memory(value))
        if block is None:
            return value
        new = torch.empty(0, dtype=value.dtype, device=value.device)
        return new.set_(block.untyped_storage(), value.storage_offset(), value.size(), value.stride())
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(v, blocks) for v in value)
    return {k: _moved(v, blocks) for k, v in value.items()} if isinstance(value, dict) else value


def _again(call: _Call) -> Callable[[], Any]:
    """Computes the results anew, in their own memory."""
    if call.func.overloadpacket in ASKS:
        return _as_in_training(call)
    out = _out_variant(call.func)
    names = [a.name for a in out._schema.arguments if a.is_out] if out is not None else []
    if len(names) == len(call.results) and all(isinstance(r, Tensor) for r in call.results):
        takes = {a.name for a in out._schema.arguments}
        given = {k: v for k, v in call.kwargs.items() if k in takes}
        return partial(_bare(out), *call.args, **given, **{n: r.detach() for n, r in zip(names, call.results)})

    def compute_and_copy() -> None:
        _copy(call.results, call.func(*call.args, **call.kwargs))

    return compute_and_copy


def _as_in_training(call: _Call) -> Callable[[], None]:
    """An operation that asks whether gradients are wanted, though it stands below the level where they are made."""

    def compute_and_copy() -> None:
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
            fresh = call.func(*call.args, **call.kwargs)
        _copy(call.results, fresh)

    return compute_and_copy


def _copy(results: list[Any], fresh: Any) -> None:
    for old, new in zip(results, [fresh] if isinstance(fresh, Tensor) else fresh):
        if isinstance(old, Tensor):
            old.copy_(new)


def _bare(func: Any) -> Any:
    """An operation without the Python method around it."""
    return getattr(func, "_op", func)


@cache
def _out_variant(func: Any) -> Any:
    """The overload of the same operation that writes into given tensors; None where there is none."""
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments if a.name not in PLACE]
    given = {a.name: a.default_value for a in func._schema.arguments}
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        arguments = other._schema.arguments
        if any(not a.is_out and (a.name not in given or a.default_value != given[a.name]) for a in arguments):
            continue
        takes = [(a.name, str(a.type)) for a in arguments if not a.is_out and a.name not in PLACE]
        if any(a.is_out for a in arguments) and takes == wanted:
            return other
    return None
