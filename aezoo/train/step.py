"""Loss and gradients of one batch, in two ways: as written, or compiled into one graph.

Both return the values as tensors on the device, and leave the gradients in `p.grad` (added to what is there); a graph of a whole
step returns these, too."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base import AELoss, BaseAE
from ..data.sources import Batch
from .hardware import Hardware
from .processes import Loss, Processes
from .sharding import Shards
from .update import Update, clip_


class Values(NamedTuple):
    """Scalars of one batch, detached: the total that was minimised, and by name everything that is logged."""

    total: Tensor
    named: dict[str, Tensor]
    gradients: list[Tensor] | None = None
    """Of the optimiser's parameters, checked and clipped; None where they are in `p.grad`, and are neither yet."""


Clock = Callable[[str], None]


def condition_of(model: BaseAE, batch: Batch) -> Tensor | None:
    """What comes with the data for models that are told more than x."""
    return batch.y if model.takes_condition else None


def told(condition: Tensor | None) -> dict[str, Tensor]:
    """The condition as a keyword of `loss`; none where there is none."""
    return {} if condition is None else {"condition": condition}


def penalty(weights: Sequence[Tensor]) -> Tensor:
    """sum |w|."""
    return torch.stack([w.abs().sum() for w in weights]).sum()


class Eager:
    """Forward, backward, as the model's author wrote them."""

    whole = False

    def __init__(
        self, model: BaseAE, weights: Sequence[nn.Parameter], l1: float, hardware: Hardware, world: Processes,
        shards: Shards | None,
    ):  # fmt: skip
        self.hardware, self.world, self.l1, self.weights, self.shards = hardware, world, l1, weights, shards
        self.module: nn.Module | None = None
        if world.size > 1:
            self.module = shards.module if shards is not None else world.wrap(Loss(model))
        self.loss: Callable[..., AELoss] = self.module if self.module is not None else model.loss
        self.fp32 = hardware.precision == "fp32"
        self.clock: Clock | None = None

    def __call__(self, x: Tensor, share: float, last: bool, condition: Tensor | None = None) -> Values:
        """`share`: the batch's weight in the step; `last`: no other batch belongs to the step."""
        if self.module is None:
            return self.compute(x, share, condition)
        with self.world.no_sync(self.module, last):
            values = self.compute(x, share, condition)
        if last and self.shards is not None:
            self.shards.hand_over()
        if last and self.l1:  # this gradient needs no exchange: every process knows it
            with torch.no_grad():
                for w in self.weights:
                    w.grad = self.l1 * w.sign() if w.grad is None else w.grad.add_(w.sign(), alpha=self.l1)
        return values

    def compute(self, x: Tensor, share: float, condition: Tensor | None) -> Values:
        if self.fp32:
            loss = self.loss(x, **told(condition))
        else:
            with self.hardware.autocast():
                loss = self.loss(x, **told(condition))
        total = loss.total
        named = {"loss": total, **loss.terms, **loss.metrics}
        if self.l1:
            named["l1"] = penalty(self.weights)
            if self.shards is not None:
                self.world.all_reduce(named["l1"].detach())
            named["loss"] = total + self.l1 * named["l1"]
            total = named["loss"] if self.module is None else total
        if self.clock:
            self.clock("forward")
        if self.module is None:
            (total if share == 1 else total * share).backward()
        else:  # a loss that is not finite makes these gradients NaN, and so those of all processes
            total.backward(share + 0 * total.detach())
        if self.clock:
            self.clock("backward")
        return Values(named["loss"].detach(), {k: v.detach() for k, v in named.items()})


class Compiled:
    """The same as one graph: no Python and no autograd engine between two kernels.

    With `update`, where a step is one batch, the graph goes on from the gradients to what the optimiser's kernel takes: they are
    checked and clipped in it, and buffers stay what they were if something is not finite. Else it ends at the gradients, which
    are added up in `p.grad`.

    The model's buffers go in and come out as values, since a graph of a gradient may not change what it did not make."""

    whole = False  # gradients come checked and clipped, and buffers are put back if the step is bad

    def __init__(
        self,
        model: BaseAE,
        weights: Sequence[nn.Parameter],
        l1: float,
        hardware: Hardware,
        update: Update | None = None,
    ):
        self.module, self.hardware, self.l1, self.update = Loss(model), hardware, l1, update
        named = dict(self.module.named_parameters())
        self.parameters = {k: p for k, p in named.items() if p.requires_grad}
        self.others: dict[str, Tensor] = {}
        if update is not None:
            names = {id(p): k for k, p in named.items()}
            self.parameters = {names[id(p)]: p for p in update.parameters}
            self.others = {k: p.detach() for k, p in named.items() if k not in self.parameters}  # of another stage
            self.whole = True
        self.buffers = dict(self.module.named_buffers())
        self.penalised = [k for k, p in self.parameters.items() if any(p is w for w in weights)]
        self.run: Any = compiled(self._step if self.whole else self._values_and_gradients)
        self.clock: Clock | None = None

    def _values_and_gradients(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        share: Tensor | None,
        condition: Tensor | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        def total_of(p: dict[str, Tensor]) -> tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]:
            own = {k: v.clone() for k, v in buffers.items()}
            with self.hardware.autocast():
                loss: AELoss = torch.func.functional_call(
                    self.module, ({**self.others, **p}, own), (x,), told(condition)
                )
            total, named = loss.total, {**loss.terms, **loss.metrics}
            if self.l1:
                named["l1"] = penalty([p[k] for k in self.penalised])
                total = total + self.l1 * named["l1"]
            return total if share is None else total * share, ({"loss": total, **named}, own)

        gradients, (_, (named, own)) = torch.func.grad_and_value(total_of, has_aux=True)(parameters)
        return gradients, named, own

    def _step(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        condition: Tensor | None,
        bad: Tensor,
        num_bad: Tensor,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        assert self.update is not None
        gradients, named, own = self._values_and_gradients(parameters, buffers, x, None, condition)
        grads = list(gradients.values())
        fine = torch.stack([v.isfinite().all() for v in [*grads, named["loss"]]]).all()
        now = (~fine).to(bad.dtype)
        bad.copy_(torch.maximum(bad, now) if self.update.sticky else now)
        num_bad.add_(bad)
        if self.update.clip:
            clip_(grads, self.update.clip)
        for k, b in buffers.items():
            b.copy_(torch.where(bad > 0, b, own[k]))
        return grads, named

    @torch.no_grad()
    def __call__(self, x: Tensor, share: float, last: bool, condition: Tensor | None = None) -> Values:
        if self.update is not None:
            grads, named = self.run(self.parameters, self.buffers, x, condition, self.update.bad, self.update.num_bad)
            if self.clock:
                self.clock("forward + backward")
            return Values(named["loss"], named, grads)
        gradients, named, own = self.run(self.parameters, self.buffers, x, torch.as_tensor(share), condition)
        if self.clock:
            self.clock("forward + backward")
        for k, p in self.parameters.items():
            p.grad = gradients[k] if p.grad is None else p.grad.add_(gradients[k])
        for k, b in self.buffers.items():
            b.copy_(own[k])
        return Values(named["loss"], named)


def compiled(method: Any) -> Any:
    """A method as one graph for each shape of what it is given.

    Before each call torch asks whether all is still as it was compiled: of a small network, some 700 questions, a sixth of a step.
    Only those stay (`worth_asking`) whose answer may change while a run goes on. So that no other run's graph is taken for this
    one's, the function is a copy with a code of its own, where torch keeps the graphs. Random numbers are drawn by torch's own kernels,
    not by generated code: the same draws as in the step as it is written, and faster on a CPU."""
    function = method.__func__
    own = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    run = torch.compile(own, dynamic=False, options={"guard_filter_fn": worth_asking, "fallback_random": True})
    return functools.partial(run, method.__self__)


def worth_asking(guards: Sequence[Any]) -> list[bool]:
    """Numbers, switches and texts, which a callback may set; the batch; and torch's own switches.

    Not: what modules, functions and classes are made of, and the shapes of weights, which stay while a run goes on."""
    plain = (bool, int, float, str, tuple, type(None))
    return [not g.has_value or g.name in ("x", "condition") or isinstance(g.value, plain) for g in guards]


Compute = Eager | Compiled  # each called with (x, share, last, condition=None)


def build_compute(
    model: BaseAE, weights: Sequence[nn.Parameter], l1: float, hardware: Hardware, world: Processes,
    shards: Shards | None = None, update: Update | None = None,
) -> Compute:  # fmt: skip
    """`update`: of a run in which each step is one batch."""
    if hardware.compile and world.size == 1:
        return Compiled(model, weights, l1, hardware, update)
    return Eager(model, weights, l1, hardware, world, shards)
