"""The loop: set up, then per step *schedule, loss, backward, clip, step, after_step*, then once in a while *log, validate, save*.

The host waits for the device once per row of the history and never in between. The order of the data is f(seed, epoch), every random
draw of a step f(seed, step), so a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..randomness import batches_of, mix_seed, set_seed
from . import state as run_state
from .arguments import seconds_of
from .average import Average
from .ending import finish, too_large
from .freezing import train_mode
from .graph import Block, Graphed
from .hardware import out_of_memory, settle
from .interrupts import Interrupts, Stopped
from .interval import Interval
from .optim import lr_factor, set_lr
from .recompute import recomputing
from .result import FitResult
from .setup import Setup
from .sharding import Shards
from .step import Eager, condition_of
from .taped import Taped
from .update import summary
from .validate import VALIDATION, mean_loss

SAVE_SECONDS = 30.0  # without checkpoint_every, the state is saved at the first row this long after the last time


class Piece(NamedTuple):
    """One batch, or this process's part of it."""

    x: Tensor
    total: int
    """Samples of the whole batch."""
    condition: Tensor | None = None
    """What the model is told beside x, where it takes that."""


class _Trainer(Setup):
    """The steps of one run in the order in which they happen."""

    # ---------------------------------------------------------------------------------------------------------- set up

    def prepare(self, resume: bool) -> None:
        """Optimiser, averages, and, when resuming, everything that was saved."""
        saved = None
        for turn in (self.world.main, not self.world.main):  # the first process puts aside what is damaged
            with self.world.together():
                if turn and self.run is not None and resume:
                    saved = self.run.checkpoints.newest()
                if turn and saved is not None:
                    for damaged in saved[2]:
                        self.bar.warn(damaged)
                    run_state.check(self, saved[0])
                    self.step = saved[0]["step"]
                    self.saved_at = (self.step, saved[0]["row_due"])
        if self.run is not None and self.world.differ(self.step if saved is not None else -1):
            raise ValueError(
                f"out={str(self.run.path)!r} is not the same folder for all processes; it must lie on a shared disk"
            )
        earlier = saved[0]["hardware"] if saved is not None else {}
        earlier = earlier if earlier.get("device") == self.device.type else None
        settle(self.hardware, self.model, self.asked["compile"], self.batch_size, self.total, self.world.size, earlier)
        if self.hardware.channels_last and not self.asked["shard"]:
            self.model.to(memory_format=torch.channels_last)
        self.world.same(self.model)
        if self.asked["shard"]:
            self.held = self.shards = Shards(self.model, self.world)
            self.loss = self.shards.module
            self.stages = self.model.stages()  # of the parameters that there are now
        tensors = self.held.state_dict().items()
        trained = dict(self.held.named_parameters())
        self.unbounded = {
            k for k, v in tensors if k not in trained and v.is_floating_point() and not bool(v.isfinite().all())
        }
        self.enter_stage(saved[0]["stage"] if saved is not None else self.stage_at(0))
        self.start_interval()
        self.used_lr = self.lr()  # of the newest step
        self.average = Average(self.held, self.asked["ema"]) if self.asked["ema"] else None
        if saved is not None:
            run_state.put_back(self, saved[0], saved[1])
            self.update.forget()
        self.record_steps()
        self.guard.looked = self.step
        if self.guard.snapshot is None:
            self.guard.begin(self)
        self.began_at = self.step
        needed = (self.asked["keep"] + 1) * run_state.size(self)
        with self.world.together():
            if self.run is not None and self.world.main and (saved is None or self.step < self.total):
                self.run.check_space(needed)
                self.run.write_config(run_state.config(self))
                self.run.write_hardware(self.hardware.told(self.world.size))
                self.run.write_rows(self.rows)
        if self.run is not None and saved is None:
            self.save(must=True)  # a folder that cannot hold a checkpoint is found out here

    def record_steps(self) -> None:
        """Decides whether this stage's steps are replayed, as a CUDA graph or from a tape."""
        if self.hardware.tape and isinstance(self.compute, Eager):
            why = Taped.why_not(self)
            self.compute = self.compute if why else Taped(self.compute, self.model)
            self.hardware.reasons["tape"] = f"replay {'off' if why else 'on'}" + (f" ({why})" if why else "")
        if self.hardware.graph:
            why = Graphed.why_not(self)
            self.graph = None if why else Graphed(self)
            self.hardware.reasons["graph"] = f"CUDA graph {'off' if why else 'on'}" + (f" ({why})" if why else "")

    def at_epoch_end(self) -> bool:
        """The end of an epoch, of a stage or of the run."""
        return (
            self.step >= self.total or self.step % self.per_epoch == 0 or self.stage_at(self.step) != self.model.stage
        )

    def at_row(self) -> bool:
        every = self.asked["log_every"]
        return self.at_epoch_end() or (bool(every) and self.step % every == 0)

    # ------------------------------------------------------------------------------------------------------------ train

    def train(self) -> FitResult:
        began = time.perf_counter()
        limit = seconds_of(self.asked["max_time"])
        self.deadline = began + limit if limit else math.inf
        self.last_save = began
        if self.world.main:
            self.bar.start(self)
        recompute = recomputing(self.model) if self.asked["recompute"] else contextlib.nullcontext()
        with contextlib.closing(self.bar), Interrupts(self.world.size > 1) as self.interrupts:
            with self.hardware.applied(), self.model.reporting_parts(), recompute:
                self.steps()
            if self.stopped == "signal":
                self.bar.interrupted(self)
                self.interrupts.leave(self.signal)
            if self.stopped == "finished" and self.step < self.total:
                self.stopped = "converged"
            self.bar.close()
            try:
                return finish(self, time.perf_counter() - began)
            except (KeyboardInterrupt, SystemExit):
                if not self.interrupts.waits:
                    self.bar.interrupted(self)
                raise

    def steps(self) -> None:
        """All steps that are left. Stopped early, the run is saved; `stopped` says why."""
        self.hooks.call("on_start", self)
        try:
            while self.stopped == "finished" and self.step < self.total and not self.converged():
                self.epoch()
        except Stopped:
            if self.run is not None:
                self.save(must=True)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.model.zero_grad(set_to_none=True)
            raise MemoryError(too_large(self)) from None

    def epoch(self) -> None:
        """The steps up to the end of the epoch or of the stage, and the rows that fall due."""
        if self.row_due:  # the run was stopped between a row's last step and the row
            self.end_row()
            return
        if self.stage_at(self.step) != self.model.stage:
            self.enter_stage(self.stage_at(self.step))
            self.start_interval()
            self.record_steps()
            self.guard.begin(self)
        every = self.asked["checkpoint_every"]
        reached, epoch = self.step, self.step // self.per_epoch
        self.train_mode()
        for window in self.windows(epoch, self.step % self.per_epoch):
            self.one_step(window)
            if self.hooks.step:
                self.hooks.call("on_step", self)
            self.bar.step(self)
            due = bool(every) and self.step % every == 0
            if self.at_row():
                self.row_due = True
                behind = self.end_row(due)
                if behind or self.at_epoch_end() or self.stopped != "finished":
                    return
                self.train_mode()
            else:
                self.stop_if_asked()
                if due and not self.save():
                    return
                if due and isinstance(self.compute, Taped):
                    self.compute.look()
        if self.step == reached:
            raise ValueError(f"{self.description} yielded no batch in epoch {epoch + 1}")

    def train_mode(self) -> None:
        train_mode(self.model, self.frozen)
        if isinstance(self.compute, Taped) and self.hooks.callbacks:
            self.compute.look()

    def end_row(self, due: bool = False) -> bool:
        """Log, validate, judge, save. True if the run went back behind a bad step instead."""
        epoch = max(0, self.step - 1) // self.per_epoch
        if not self.guard.look(self) and not self.at_row():
            self.row_due = False
            return True
        row = self.log(epoch)
        self.row_due = False
        self.rows.append(row)
        self.start_interval()
        if "val_loss" in row or self.val is None:
            self.judge(row)
        self.guard.begin(self)
        if self.run is not None and self.world.main:
            try:
                self.run.append(row)
            except OSError as error:
                self.bar.warn(
                    f"the row of step {self.step:,} could not be written in {self.run.path}: {error.strerror or error}; it is "
                    "written with the next one"
                )
        every, now = self.asked["checkpoint_every"], time.perf_counter()
        late = not every and self.world.agree(now - self.last_save > SAVE_SECONDS)
        if self.run is not None and (due or late):
            self.save()
        self.bar.row(self, row)
        ends = any([answer is False for answer in self.hooks.call("on_row", self, row)])  # every callback sees the row
        if self.world.agree(ends):
            self.stopped = "callback"
        self.stop_if_asked()
        return False

    def stop_if_asked(self) -> None:
        """Ctrl-C, SIGTERM, or the end of the time: leaves through `Stopped`, to be saved as it is after the last step."""
        wanted = self.world.agree_soon(self.interrupts.signal or int(time.perf_counter() > self.deadline))
        if not wanted:
            return
        self.stopped, self.signal = ("time", 0) if wanted == 1 else ("signal", wanted)
        self.interrupts.signal = self.signal  # also where another process had it
        raise Stopped

    def converged(self) -> bool:
        """`patience` epochs of the last stage without progress."""
        patience = self.asked["patience"]
        return patience is not None and self.model.stage == len(self.stages) - 1 and self.stale >= patience

    def windows(self, epoch: int, done: int, at: int | None = None) -> Iterator[list[Piece]]:
        """The epoch's batches in groups of `accumulate`, from window number `done` on. Order = f(seed, epoch)."""
        accumulate, source = self.asked["accumulate"], self.source
        plan: Sequence[Tensor] = ()
        if source.ordered:
            order = source.order(mix_seed(self.seed, 0 if self.asked["overfit_batches"] else epoch))
            if isinstance(getattr(source, "x", None), Tensor):
                order = order.to(source.x.device)  # type: ignore[attr-defined]
            plan = batches_of(order, self.batch_size)[done * accumulate :]
        if self.graph is not None and at is None:
            yield from self.graph.windows(plan, done)
            return
        totals = iter([len(index) for index in plan])
        batches = iter(source.batches(self.world.share(plan), self.device, self.dtype, mix_seed(self.seed, epoch, 3)))
        if not source.ordered:  # a loader of the user's own: what was seen is drawn again, and passed over
            for earlier in range(done):
                self.seed_step(epoch * self.per_epoch + earlier)
                for _ in range(accumulate):
                    next(batches, None)
        while True:
            if self.profile and at is None:
                self.profile.clock("host")
            self.seed_step(self.step if at is None else at)
            window = []
            for _ in range(accumulate):
                total = next(totals, 0)
                with self.world.spread(total):
                    batch = next(batches, None)
                if batch is None:
                    break
                window.append(Piece(batch.x, total or len(batch.x), condition_of(self.model, batch)))
            if not window:
                return
            yield window

    def seed_step(self, step: int) -> None:
        set_seed(mix_seed(self.seed, step, 1), self.device)

    def one_step(self, window: Any) -> None:
        """schedule, loss, backward, clip, step, after_step."""
        if isinstance(window, Block):
            assert self.graph is not None
            self.graph.run(window)
            return
        clock = self.profile.clock if self.profile else None
        if clock:
            clock("data")
            self.compute.clock = clock
        self.used_lr = self.lr()
        set_lr(self.optimizer, self.used_lr / self.asked["lr"])
        samples = sum(piece.total for piece in window)
        if not self.compute.whole:
            self.kept.keep()
        seen = []
        for i, piece in enumerate(window):
            rows = self.world.rows(piece.total)
            share = rows * self.world.size / samples
            with self.world.spread(piece.total):
                values = self.compute(self.hardware.place(piece.x), share, i == len(window) - 1, piece.condition)
            seen.append((values, rows))
        total = seen[-1][0].total if len(seen) == 1 else torch.stack([v.total for v, _ in seen]).sum()
        self.update.step(total, gradients=seen[-1][0].gradients)
        for values, n in seen:
            self.interval.count(values.named, n, self.update.bad)
        if not self.compute.whole:
            self.kept.put_back(self.update.bad)
        self.interval.samples += samples
        self.interval.timed += samples
        self.model.after_step()
        self.step += 1
        self.update.sweep(self.step)
        if self.average is not None:
            self.average.update(self.step)
        if clock:
            clock("optimiser")

    def lr(self) -> float:
        """The schedule runs over each stage anew."""
        stage = self.model.stage
        first = self.stage_ends[stage - 1] if stage else 0
        factor = lr_factor(
            self.asked["schedule"], self.step - first, self.stage_ends[stage] - first, self.asked["warmup"]
        )
        return self.asked["lr"] * self.plateau * factor

    # ------------------------------------------------------------------------------------------------- log and validate

    def start_interval(self) -> None:
        if self.graph is not None:
            self.interval.begin_again()
            return
        self.interval = Interval(self.device, self.world, skip=self.asked["nonfinite"] != "raise")

    def check_finite(self, means: dict[str, float]) -> None:
        """Raises FloatingPointError if a mean, a weight or a buffer (that was finite at the start) is not finite. Waits for the device."""
        kept = {k: v for k, v in self.held.state_dict().items() if v.is_floating_point() and k not in self.unbounded}
        sound = torch.stack([summary(v).isfinite() for v in kept.values()])
        if not bool(sound.all()):  # or so large that their squares are not
            sound = torch.stack([v.isfinite().all() for v in kept.values()])
        if not self.world.agree(not (all(math.isfinite(v) for v in means.values()) and bool(sound.all()))):
            return
        values = ", ".join(f"{k} {v:g}" for k, v in means.items() if not math.isfinite(v))
        if not values:
            names = [k for k, fine in zip(kept, sound.tolist()) if not fine]
            values = f"the weights ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        raise FloatingPointError(
            f"not finite in epoch {max(0, self.step - 1) // self.per_epoch + 1} (up to step {self.step}): {values}. "
            f"Lower lr={self.asked['lr']:g}, set clip=1.0, or scale the data; what was saved before stays"
        )

    def log(self, epoch: int) -> dict[str, Any]:
        means = self.interval.means()
        seconds = time.perf_counter() - self.interval.began
        if not means:
            raise FloatingPointError(
                f"no step up to step {self.step} was finite since the last row; lower lr={self.asked['lr']:g}, set clip=1.0, or scale the data"
            )
        self.check_finite(means)
        row: dict[str, Any] = {"epoch": epoch + 1, "step": self.step}
        if len(self.stages) > 1:
            row["stage"] = self.stages[self.model.stage].name
        row |= {"lr": self.used_lr, **means}
        if self.asked["nonfinite"] != "raise":
            row["skipped"] = self.guard.skipped
        if self.val is not None and self.at_epoch_end():
            held_out = {f"val_{k}": v for k, v in self.validate().items()}
            self.check_finite(held_out)
            row |= held_out
        return {
            **row,
            "samples_per_s": round(self.interval.timed / max(seconds, 1e-9), 1),
            "seconds": round(seconds, 3),
        }

    def validate(self) -> dict[str, float]:
        """Mean loss, terms and metrics over the validation data, each sample counted once; the draws are the same every time."""
        assert self.val is not None
        set_seed(mix_seed(self.seed, VALIDATION), self.device)
        with self.average.applied() if self.average else contextlib.nullcontext():
            return mean_loss(
                self.model, self.val, self.hardware, 2 * self.batch_size, self.world, self.stop_if_asked, self.loss
            )

    def judge(self, row: dict[str, Any]) -> None:
        """Is this the best epoch of the stage? Keeps its weights if so."""
        if self.val is None:
            self.best_row = row
            return
        loss, best = row["val_loss"], self.best_row.get("val_loss", math.inf)
        better = loss < best
        progress = loss < self.patience_best - self.asked["min_change"]
        self.stale = 0 if progress else self.stale + 1
        self.patience_best = loss if progress else self.patience_best
        self.plateau_stale = 0 if better else self.plateau_stale + 1
        if self.asked["schedule"] == "plateau" and self.plateau_stale >= 5:
            self.plateau, self.plateau_stale = self.plateau * 0.3, 0
        if better:
            self.best_row = row
            now = self.weights_now()
            if self.best_weights is None:
                self.best_weights = {k: v.clone() for k, v in now.items()}
            else:
                for k, v in now.items():
                    self.best_weights[k].copy_(v)
            self.hooks.call("on_best", self, row)
        most = self.asked["top_k"]
        if self.run is not None and most > 1:
            top = sorted([*self.top, (loss, self.step)])[:most]
            if any(step == self.step for _, step in top) and self._keep_top(top):
                self.top = top

    def _keep_top(self, top: list[tuple[float, int]]) -> bool:
        """Saves the model of this step as one of the best; False, and the others stay, if there is no room."""
        assert self.run is not None
        weights, full = self.whole(self.weights_now()), 0
        if self.world.main:
            try:
                self.run.keep_top(top, self.model.saved_config(), weights)
            except OSError as error:
                full = 1
                self.bar.warn(
                    f"the model of step {self.step:,} could not be saved in {self.run.path / 'top'}: "
                    f"{error.strerror or error}; those before it stay, and the run goes on"
                )
        return not self.world.agree(full)

    def weights_now(self) -> dict[str, Tensor]:
        """The state dict, with the averaged weights where there is an average; this process's rows where weights are cut."""
        return {**self.held.state_dict(), **(self.average.state() if self.average else {})}

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is saved of tensors of the run's state, on the first process; all must call it."""
        return tensors if self.shards is None else self.shards.whole(tensors, self.optimizer)

    # ------------------------------------------------------------------------------------------------------ save and end

    def save(self, must: bool = False) -> bool:
        """A checkpoint, and the best weights so far. A disk that is full is told, and tried again later; with `must` it raises.

        Returns False if the run went back behind a bad step, so that the next step is another one. Raises FloatingPointError,
        and writes nothing, if the loss or a weight is not finite."""
        assert self.run is not None
        good = self.guard.look(self)
        self.check_finite(self.interval.means())
        tensors, state = run_state.collect(self)
        best = self.whole(self.best_weights or self.weights_now())
        self.last_save = time.perf_counter()
        with self.world.together() if must else contextlib.nullcontext():
            if self.world.main and self.saved_at != (self.step, self.row_due):
                self._write(tensors, state, best, must)
        return good

    def _write(self, tensors: dict[str, Tensor], state: dict[str, Any], best: dict[str, Tensor], must: bool) -> None:
        assert self.run is not None
        try:
            path = self.run.checkpoints.write(self.step, tensors, state)
            if self.step:
                self.run.save_model(state["model"], best)
        except OSError as error:
            why = f"step {self.step:,} could not be saved in {self.run.path}: {error.strerror or error}"
            if must:
                raise OSError(f"{why}; the checkpoints before it are untouched") from error
            self.bar.warn(f"{why}; the checkpoints before it are untouched, and the run goes on")
            return
        self.saved_at = (self.step, self.row_due)
        self.hooks.call("on_save", self, path)
