"""Loss and gradients of one batch, in two ways: as written, or compiled into one graph.

Both leave the gradients in `p.grad` (added to what is there) and return the values as tensors on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..base import AELoss, BaseAE
from ..data.sources import Batch
from .hardware import Hardware
from .processes import Loss, Processes
from .sharding import Shards


class Values(NamedTuple):
    """Scalars of one batch, detached: the total that was minimised, and by name everything that is logged."""

    total: Tensor
    named: dict[str, Tensor]


Compute = Callable[..., Values]  # (x, share, last, condition=None)
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
    """The same as one graph, from the batch to the gradients: no Python and no autograd engine between two kernels.

    The model's buffers go in and come out as values, since a graph of a gradient may not change what it did not make."""

    def __init__(self, model: BaseAE, weights: Sequence[nn.Parameter], l1: float, hardware: Hardware):
        self.module, self.hardware, self.l1 = Loss(model), hardware, l1
        self.parameters = {k: p for k, p in self.module.named_parameters() if p.requires_grad}
        self.buffers = dict(self.module.named_buffers())
        self.penalised = [k for k, p in self.parameters.items() if any(p is w for w in weights)]
        self.names: list[str] = []
        self.run: Any = torch.compile(self._values_and_gradients, dynamic=False)
        self.clock: Clock | None = None

    def _values_and_gradients(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        share: Tensor,
        condition: Tensor | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        def total_of(p: dict[str, Tensor]) -> tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]:
            own = {k: v.clone() for k, v in buffers.items()}
            with self.hardware.autocast():
                loss: AELoss = torch.func.functional_call(self.module, (p, own), (x,), told(condition))
            total, named = loss.total, {**loss.terms, **loss.metrics}
            if self.l1:
                named["l1"] = penalty([p[k] for k in self.penalised])
                total = total + self.l1 * named["l1"]
            return total * share, ({"loss": total, **named}, own)

        gradients, (_, (named, own)) = torch.func.grad_and_value(total_of, has_aux=True)(parameters)
        return gradients, named, own

    def __call__(self, x: Tensor, share: float, last: bool, condition: Tensor | None = None) -> Values:
        parameters = {k: p.detach() for k, p in self.parameters.items()}
        gradients, named, own = self.run(parameters, self.buffers, x, torch.as_tensor(share), condition)
        if self.clock:
            self.clock("forward + backward")
        with torch.no_grad():
            for k, p in self.parameters.items():
                p.grad = gradients[k] if p.grad is None else p.grad.add_(gradients[k])
            for k, b in self.buffers.items():
                b.copy_(own[k])
        return Values(named["loss"].detach(), {k: v.detach() for k, v in named.items()})


def build_compute(
    model: BaseAE, weights: Sequence[nn.Parameter], l1: float, hardware: Hardware, world: Processes,
    shards: Shards | None = None,
) -> Compute:  # fmt: skip
    if hardware.compile and world.size == 1:
        return Compiled(model, weights, l1, hardware)
    return Eager(model, weights, l1, hardware, world, shards)
