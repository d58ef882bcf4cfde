"""One step of the optimiser, taken only if loss and gradient are finite. Nothing here waits for the device.

Whether a step was good is a number on the device, `bad` (0 or 1). The fused kernels of torch take it as `found_inf` and leave
everything as it was if it is 1; for other optimisers the step is taken on the side and selected afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .optim import optimizer_tensors

Exchange = Callable[[Tensor], Tensor]

SKIPS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)  # fused, these honour `found_inf`

LARGE = 2**14  # numbers from which reading and writing them takes longer than calling a kernel that only reads
SWEEP = 64  # steps between two looks for numbers that have decayed to nothing
TINY = 1e-30  # float32 is normal down to 1.2e-38, which 0.9^t reaches from here in 175 steps


class Update:
    """Checks, clips, steps.

    `sticky=True`: after a bad step no other is taken, so that the weights stay what they were before it until the host looks;
    `sticky=False`: a bad step is passed over, and counted. `exchange`: sums over the processes, where each has other weights."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip: float | None, sticky: bool, exchange: Exchange | None = None
    ):
        self.optimizer, self.clip, self.sticky, self.exchange = optimizer, clip, sticky, exchange
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        first = self.parameters[0]
        self.device = first.device
        self.bad = torch.zeros((), dtype=torch.float32, device=self.device)  # the kernels want this type
        self.one = torch.ones_like(self.bad)
        self.num_bad = torch.zeros_like(self.bad)
        self.bare = _BareAdam.of(optimizer, sticky)
        self.native = bool(optimizer.defaults.get("fused")) and type(optimizer) in SKIPS
        if self.native and self.bare is None:
            optimizer.found_inf = self.bad  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]

    def step(self, loss: Tensor, factor: Tensor | None = None, gradients: list[Tensor] | None = None) -> None:
        """Steps on the gradients that the parameters hold, and takes them away. `factor`: of the learning rates, where it is
        on the device (bare kernels only). `gradients`: of all parameters, where they come from a graph that has checked and
        clipped them."""
        held, grads = self.parameters, gradients
        if grads is None:
            held = [p for p in self.parameters if p.grad is not None]
            grads = [p.grad for p in held]  # type: ignore[misc]
            self.check([*grads, loss.detach()])
            if self.clip:
                clip_(grads, self.clip, self.exchange)
        elif self.bare is None:
            for p, g in zip(held, grads):
                p.grad = g
        if self.bare is not None:
            self.bare.step(held, grads, self.bad, factor)
        elif self.native:
            self.optimizer.step()
        else:
            self._select()
        if gradients is None or self.bare is None:
            for p in held:
                p.grad = None

    def check(self, values: list[Tensor]) -> None:
        """bad <- 1 if any value is not finite."""
        if not self.sticky:
            self.bad.zero_()
        if self.device.type == "mps":
            total = torch.stack([v.sum().float() for v in values])
            torch.maximum(self.bad, 1 - total.isfinite().all().float(), out=self.bad)
        else:  # one call for all of them, which writes them again, too
            by_dtype: dict[torch.dtype, list[Tensor]] = {}
            for v in values:
                if v.device.type == "cpu" and v.numel() >= LARGE:
                    v = summary(v, squares=self.bare is not None)
                by_dtype.setdefault(v.dtype, []).append(v)
            for same in by_dtype.values():
                torch._amp_foreach_non_finite_check_and_unscale_(same, self.bad, self.one)
        if self.exchange is not None:
            self.bad.copy_(self.exchange(self.bad).clamp_(max=1))
        self.num_bad.add_(self.bad)

    @torch.no_grad()
    def _select(self) -> None:
        """The step of an optimiser that knows no `found_inf`: taken, and undone on the device if it was bad."""
        before = optimizer_tensors(self.optimizer)[0]
        before = {k: v.clone() for k, v in before.items()}
        weights = [p.detach().clone() for p in self.parameters]
        self.optimizer.step()
        for p, w in zip(self.parameters, weights):
            p.copy_(torch.where(self.bad > 0, w, p))
        for k, v in optimizer_tensors(self.optimizer)[0].items():
            was = before[k] if k in before else torch.zeros_like(v)
            v.copy_(torch.where(self.bad.to(v.device) > 0, was, v))

    def sweep(self, step: int) -> None:
        """Every `SWEEP` steps, on the CPU: what has decayed below `TINY` in the optimiser's state becomes 0.

        The momentum of a weight that no longer gets a gradient (a unit that is dead, a pixel that is always black) shrinks by beta1 a
        step and is a subnormal number some 800 steps later, with which the CPU computes so slowly that all training takes a
        third longer. Nothing that matters is lost: an update of lr * TINY / eps changes no weight."""
        if step % SWEEP or self.device.type != "cpu" or self.optimizer.defaults.get("eps", 1.0) < 1e-12:
            return
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor) and value.dim() and value.dtype == torch.float32:
                    torch.hardshrink(value, TINY, out=value)

    def forget(self) -> None:
        """The optimiser's state was replaced: look at it again before the next step."""
        if self.bare is not None:
            self.bare.lists = None

    def reset(self) -> None:
        """The host has looked."""
        self.bad.zero_()
        self.num_bad.zero_()


def summary(v: Tensor, squares: bool = True) -> Tensor:
    """A number that is finite where all of `v` is, but for numbers so large that their sum, or that of their `squares`, which Adam
    takes, is not."""
    if squares and v.dtype == torch.float32 and v.is_contiguous():
        return torch.dot(v.view(-1), v.view(-1))  # faster than a sum of what fits into the cache
    return v.sum()


@torch.no_grad()
def clip_(grads: Sequence[Tensor], largest: float, exchange: Exchange | None = None) -> None:
    """Scales the gradient to a norm of at most `largest`: g <- g * min(1, largest / (||g|| + 1e-6))."""
    if exchange is None:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(grads))))
    else:  # single numbers are not spread: every process has them
        cut, same = [g for g in grads if g.dim()], [g for g in grads if not g.dim()]
        squares = exchange(torch.stack([g.square().sum() for g in cut]).sum())
        norm = torch.stack([squares, *(g.square() for g in same)]).sum().sqrt()
    torch._foreach_mul_(list(grads), (largest / (norm + 1e-6)).clamp(max=1.0))


class _BareAdam:
    """Adam and AdamW by their kernel, without the optimiser's own Python around it (a fifth of a step of a small net).

    The state stays in the optimiser, in its own format, so that saving and loading know nothing of this; only `step` is one
    tensor, which all parameters share."""

    def __init__(self, optimizer: torch.optim.Optimizer, kernel: Any, sticky: bool):
        self.optimizer, self.kernel, self.sticky = optimizer, kernel, sticky
        self.lists: list[tuple[list[nn.Parameter], list[Tensor], list[Tensor], Tensor]] | None = None

    @staticmethod
    def of(optimizer: torch.optim.Optimizer, sticky: bool) -> _BareAdam | None:
        """None where the kernel is missing, takes other arguments, or the options are not the plain ones."""
        kernel = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}.get(type(optimizer))
        o = optimizer.defaults
        plain = o.get("fused") and not o.get("amsgrad") and not o.get("capturable") and not o.get("differentiable")
        devices = {(p.device, p.dtype) for g in optimizer.param_groups for p in g["params"]}
        if kernel is None or not plain or not hasattr(torch, kernel) or len(devices) != 1:
            return None
        function = getattr(torch, kernel)
        if o.get("decoupled_weight_decay") and type(optimizer) is torch.optim.Adam:
            function = getattr(torch, "_fused_adamw_", None)
        place, dtype = devices.pop()
        if place.type not in ("cpu", "cuda") or function is None:
            return None
        w, g, m, v, s = (torch.zeros(1, dtype=dtype, device=place) for _ in range(5))
        try:
            function([w], [g], [m], [v], [], [s.float() + 1], lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0, eps=1e-8,
                     amsgrad=False, maximize=False, grad_scale=None, found_inf=s.float())  # fmt: skip
        except (TypeError, RuntimeError):
            return None  # another torch has another signature: the optimiser's own step is taken
        return _BareAdam(optimizer, function, sticky)

    def _gather(self) -> None:
        self.lists = []
        for group in self.optimizer.param_groups:
            steps = [s["step"] for p in group["params"] if (s := self.optimizer.state.get(p)) and "step" in s]
            step = (
                steps[0].detach().clone()
                if steps
                else torch.zeros((), dtype=torch.float32, device=group["params"][0].device)
            )
            m, v = [], []
            for p in group["params"]:
                state = self.optimizer.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["step"] = step
                m.append(state["exp_avg"])
                v.append(state["exp_avg_sq"])
            self.lists.append((list(group["params"]), m, v, step))

    @torch.no_grad()
    def step(
        self, held: Sequence[nn.Parameter], grads: list[Tensor], bad: Tensor, factor: Tensor | None = None
    ) -> None:
        if self.lists is None:
            self._gather()
        assert self.lists is not None
        everything = len(held) == sum(len(x[0]) for x in self.lists)
        taken = 0
        for group, (params, m, v, step) in zip(self.optimizer.param_groups, self.lists):
            if everything:
                g = grads[taken : taken + len(params)]
                taken += len(params)
            else:  # a parameter without a gradient is left alone, as torch does
                by = {id(p): x for p, x in zip(held, grads)}
                chosen = [i for i, p in enumerate(params) if id(p) in by]
                if not chosen:
                    continue
                g = [by[id(params[i])] for i in chosen]
                params, m, v = ([x[i] for i in chosen] for x in (params, m, v))  # type: ignore[assignment]
            step.add_(1)
            if not self.sticky:  # else the run ends or goes back, and the counter with it
                step.sub_(bad)
            steps = [step] * len(params)
            beta1, beta2 = group["betas"]
            lr = group["lr"] if factor is None else factor * group["base_lr"]
            self.kernel(params, g, m, v, [], steps, lr=lr, beta1=beta1, beta2=beta2,
                        weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=group["maximize"],
                        grad_scale=None, found_inf=bad)  # fmt: skip
