"""Losses and gradients that are not finite: found on the device, judged when the host looks.

A bad step is never taken (`Update`), whatever the policy:
    raise      no later step is taken either; at the next look the run ends, naming step, terms and the largest activations
    skip       later steps go on; the row says how many were passed over
    rollback   no later step is taken; at the next look the weights go back to the last row's, and the run goes on behind the bad
               batch; the fourth time from one row to the next it ends as with `raise`
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .optim import load_optimizer_tensors, optimizer_tensors
from .step import told

if TYPE_CHECKING:
    from .loop import _Trainer

POLICIES = ("raise", "skip", "rollback")
MOST_ROLLBACKS = 3  # in one interval


class Guard:
    """What the host knows of bad steps. `looked`: the step at which it last looked."""

    def __init__(self, policy: str):
        self.policy = policy
        self.looked = 0
        self.from_step = 0  # that the snapshot is of
        self.skipped = 0  # bad steps of this interval that the host knows of
        self.rollbacks = 0  # of this interval
        self.snapshot: dict[str, Tensor] | None = None

    def state(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("looked", "from_step", "skipped", "rollbacks")}

    def load(self, state: dict[str, Any], snapshot: dict[str, Tensor]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
        self.snapshot = snapshot or None

    def begin(self, t: _Trainer) -> None:
        """A new interval."""
        self.looked, self.from_step, self.skipped, self.rollbacks = t.step, t.step, 0, 0
        if self.policy == "rollback":
            self.snapshot = {k: v.detach().clone() for k, v in _everything(t).items()}

    def look(self, t: _Trainer) -> bool:
        """Waits for the device; True if the steps since the last look were good, or passed over. False after a rollback.

        Raises FloatingPointError as the policy says."""
        bad = int(t.update.num_bad)
        first = t.step - bad + 1  # with a sticky flag, every step from the first bad one on is counted
        if not bad:
            self.looked = t.step
            return True
        if self.policy == "skip":
            self.skipped += bad
            t.update.reset()
            self.looked = t.step
            return True
        if self.policy == "raise" or self.rollbacks == MOST_ROLLBACKS or self.snapshot is None:
            raise FloatingPointError(explain(t, first))
        self.rollbacks += 1
        self.skipped += 1
        t.update.reset()
        t.held.load_state_dict({k[6:]: v for k, v in self.snapshot.items() if k.startswith("model.")})
        state = {k[10:]: v for k, v in self.snapshot.items() if k.startswith("optimizer.")}
        load_optimizer_tensors(t.optimizer, state, {})
        if not state:
            t.optimizer.state.clear()
        t.update.forget()
        if t.average is not None:
            t.average.load({k[8:]: v for k, v in self.snapshot.items() if k.startswith("average.")})
        t.bar.say(
            f"step {first:,} was not finite: back to the weights of step {self.from_step:,}, on behind that batch"
        )
        t.step = self.looked = first
        return False


class Kept:
    """A model's buffers as they were before a step: put back, on the device, if the step was bad.

    One that no forward pass changes costs no kernel. Whether one was changed says its version, which torch counts, but not for
    running means: batch norm moves these without a word. All that move are copied to one block of bytes, so that few calls keep
    and choose for all of them: a step of a small net has none to spare. On the CPU the host looks whether there is anything to
    do (`looks`), since nothing makes it wait there."""

    def __init__(self, model: nn.Module):
        self.buffers = dict(model.named_buffers())
        self.moved = {name for name in self.buffers if name.rpartition(".")[2].startswith("running_")}
        self.copies: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}
        self.looks = all(b.device.type == "cpu" for b in self.buffers.values())
        self._gather()

    def _gather(self) -> None:
        """The block, and the buffers that are not in it: those that have not moved yet, or lie in memory with gaps."""
        block = [name for name, b in self.buffers.items() if name in self.moved and b.is_contiguous()]
        self.apart = [name for name in self.buffers if name not in block]
        self.bytes = [self.buffers[name].view(-1).view(torch.uint8) for name in block]
        if block:
            self.before, self.now = (torch.cat(self.bytes) for _ in range(2))
            self.parts = list(self.now.split([len(b) for b in self.bytes]))

    def keep(self) -> None:
        """Before the step."""
        for name in self.apart:
            b = self.buffers[name]
            if name in self.moved or self.versions.get(name) != b._version:
                self.copies[name], self.versions[name] = b.clone(), b._version
        if self.bytes:
            torch.cat(self.bytes, out=self.before)

    def put_back(self, bad: Tensor) -> None:
        """After the step: what was kept, where `bad` is 1."""
        changed = [k for k in self.apart if k in self.moved or self.versions[k] != self.buffers[k]._version]
        if not self.looks or torch.is_nonzero(bad):
            for name in changed:
                b = self.buffers[name]
                torch.where(bad > 0, self.copies[name], b, out=b)
            if self.bytes:
                torch.cat(self.bytes, out=self.now)
                torch.where(bad > 0, self.before, self.now, out=self.now)
                torch._foreach_copy_(self.bytes, self.parts)
        if not self.moved.issuperset(changed):
            self.moved.update(changed)
            self._gather()


def _everything(t: _Trainer) -> dict[str, Tensor]:
    tensors = {f"model.{k}": v for k, v in t.held.state_dict().items()}
    tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(t.optimizer)[0].items()}
    return tensors | ({f"average.{k}": v for k, v in t.average.state().items()} if t.average else {})


def explain(t: _Trainer, bad: int) -> str:
    """Which step, which term, which activations. The weights are still those before the step, so it is computed again."""
    values, largest = _again(t, bad)
    wrong = [k for k, v in values.items() if not math.isfinite(v) and k != "loss"] or ["the gradient"]
    shown = ", ".join(f"{k} {v:g}" for k, v in values.items())
    seen = "; ".join(f"{name} {value:.3g}" for name, value in largest)
    kept = f"; the last checkpoint is {paths[-1]}" if t.run and (paths := t.run.checkpoints.paths()) else ""
    return (
        f"the loss is not finite at step {bad} (epoch {(bad - 1) // t.per_epoch + 1}): {', '.join(wrong)} ({shown}). "
        f"Largest activations there: {seen}. The step was not taken: the weights are those of step {bad - 1}{kept}. "
        f"Lower lr={t.asked['lr']:g}, set clip=1.0, scale the data, or pass nonfinite='skip' or 'rollback'"
    )


def _again(t: _Trainer, bad: int) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """The bad step's forward pass once more: (its values, the three layers with the largest outputs)."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                top = output.detach().abs().max().float()
                seen[name] = torch.maximum(seen[name], top) if name in seen else top

        return hook

    layers = [(n, m) for n, m in t.model.named_modules() if n and not list(m.children())]
    kept = [(b, b.clone()) for b in t.model.buffers()]  # running means, which this pass must not spoil
    hooks = [m.register_forward_hook(watch(n)) for n, m in layers]
    try:
        window = next(t.windows((bad - 1) // t.per_epoch, (bad - 1) % t.per_epoch, at=bad - 1), [])
        values: dict[str, float] = {}
        for batch in window:
            with torch.no_grad(), t.hardware.autocast(), t.world.spread(batch.total):
                loss = t.loss(t.hardware.place(batch.x), **told(batch.condition))
            named = {"loss": loss.total, **loss.terms}
            means = (
                torch.stack([v.detach().double().cpu() for v in named.values()])
                * t.world.rows(batch.total)
                / batch.total
            )
            found = dict(zip(named, t.world.sum(means).tolist()))
            if not values or not all(math.isfinite(v) for v in found.values()):
                values = found
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for b, before in kept:
                b.copy_(before)
    order = sorted(seen.items(), key=lambda kv: -math.inf if torch.isnan(kv[1]) else -float(kv[1]))
    return values, [(name, float(value)) for name, value in order[:3]]
