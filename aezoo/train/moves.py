"""The optimiser's step of several models at once, each with its own rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .optim import build_optimizer
from .stack import Stack, Unbatchable
from .update import Update


class Moves:
    """One flat step for all models of a stack.

    A step of Adam or SGD is rate times a direction that does not depend on the rate. Where rates differ, the optimiser takes a step
    of rate 1 from 0, which leaves minus the direction, and each model's weights move by its own rate along it."""

    def __init__(self, stack: Stack, each: Sequence[dict[str, Any]], unused: Sequence[str]):
        self.stack = stack
        self.lrs = [float(s["lr"]) for s in each]
        self.alike = len(set(self.lrs)) == 1 and each[0]["schedule"] != "plateau"
        self.moved = nn.Parameter(stack.flat if self.alike else torch.zeros_like(stack.flat))
        self.optimizer = build_optimizer(each[0]["optimizer"], [("all", self.moved)], 1.0, 0.0)
        options = self.optimizer.defaults
        if type(self.optimizer) not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD) or options["maximize"]:
            raise Unbatchable(f"optimizer={each[0]['optimizer']!r} is none of adam, adamw and sgd")
        self.decoupled = type(self.optimizer) is torch.optim.AdamW or bool(options.get("decoupled_weight_decay"))
        self.bare = Update(self.optimizer, None, sticky=True).bare  # its kernel, without the Python around it
        self.none_bad = torch.zeros((), device=stack.flat.device, dtype=torch.float32)
        self.clip = each[0]["clip"]
        self.rates = self._spread(self.lrs)
        self.decays: Tensor | None = None
        if any(s["weight_decay"] for s in each):  # on weights, not on biases and norms, nor on what has no gradient
            self.decays = self._spread(
                [float(s["weight_decay"]) for s in each], lambda n, t: t.dim() > 2 and n not in unused
            )

    def _spread(self, per_model: Sequence[float], where: Callable[[str, Tensor], bool] = lambda n, t: True) -> Tensor:
        """A number of each model's at each of its parameters, flat."""
        flat = torch.zeros_like(self.stack.flat)
        numbers = torch.tensor(per_model, dtype=flat.dtype, device=flat.device)
        for (name, t), part in zip(
            self.stack.trained.items(), flat.split([t.numel() for t in self.stack.trained.values()])
        ):
            if where(name, t):
                part.view(len(per_model), -1).copy_(numbers[:, None])
        return flat

    def scale(self, factors: Sequence[float]) -> None:
        """Each model's rate times a factor of its own (what a plateau of its validation loss decided)."""
        self.rates = self._spread([lr * f for lr, f in zip(self.lrs, factors)])

    @torch.no_grad()
    def step(self, factor: float) -> None:
        flat, grad = self.stack.flat, self.stack.grad
        if self.clip:
            self._clip()
        if self.decays is not None and self.decoupled:
            flat.addcmul_(flat * self.decays, self.rates, value=-factor)
        elif self.decays is not None:
            grad.addcmul_(flat, self.decays)
        self.optimizer.param_groups[0]["lr"] = self.lrs[0] * factor if self.alike else 1.0
        if not self.alike:
            self.moved.zero_()
        if self.bare is not None:
            self.bare.step([self.moved], [grad], self.none_bad)
        else:
            self.moved.grad = grad
            self.optimizer.step()
        if not self.alike:
            flat.addcmul_(self.moved, self.rates, value=factor)

    def _clip(self) -> None:
        """Each model's own gradient to its largest norm."""
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in self.stack.grads.values()])
        scale = (self.clip / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)  # (M,)
        for g in self.stack.grads.values():
            g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))
