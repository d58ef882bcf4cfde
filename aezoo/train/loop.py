"""The loop: set up, then per step *schedule, loss, backward, clip, step, after_step*, then once in a while *log, validate, save*.

The host waits for the device once per logging point and never in between. The order of the data is f(seed, epoch), every random
draw of a step f(seed, step), so a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import AELoss, BaseAE
from ..data import Source, load_data
from ..randomness import batches_of, forked_rng, mix_seed, set_seed
from ..registry import plain
from .arguments import check_arguments, notes
from .average import Average
from .hardware import Hardware, decide
from .interrupts import Interrupts
from .optim import build_optimizer, load_optimizer_tensors, lr_factor, optimizer_tensors, set_lr
from .progress import Progress
from .result import FitResult
from .run import RunFolder
from .validate import mean_loss

SAVE_SECONDS = 30.0  # without checkpoint_every, the state is saved at the first epoch end this long after the last time
VALIDATION = 2**40  # stands for the step in the seed of validation draws, far from any real step


def fit(
    model: BaseAE,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float = 1e-3,
    optimizer: Any = "adam",
    weight_decay: float = 0.0,
    l1: float = 0.0,
    schedule: str = "constant",
    warmup: int = 0,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    val: Any = None,
    patience: int | None = None,
    min_change: float = 0.0,
    accumulate: int = 1,
    clip: float | None = None,
    ema: float | None = None,
    checkpoint_every: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    callbacks: Callable[[dict[str, Any]], Any] | Sequence[Callable[[dict[str, Any]], Any]] = (),
    progress: bool = True,
) -> FitResult:
    """Trains a model, in place, and returns a `FitResult`.

    Args:
        model: any `BaseAE`.
        data: whatever `load_data` takes: a tensor, array, Dataset, DataLoader, folder, file or registered name.
        epochs, steps: when to stop; one of the two, 10 epochs if neither. A step is one step of the optimiser.
        batch_size: samples per forward pass; 128 by default, or all if there are fewer.
        lr: learning rate. optimizer: "sgd" (momentum 0.9), "adam", "adamw", any class of torch.optim: "rmsprop(alpha=0.9)".
        weight_decay: on weights, not on biases and norms; the L2 penalty weight_decay/2 * ||w||^2 with sgd and adam, decoupled
            with adamw. l1: adds l1 * sum |w| over the same weights.
        schedule: of the learning rate: "constant", "cosine", "linear" (both to 0), or "plateau" (times 0.3 when the validation
            loss has not improved for 5 epochs). warmup: steps of linear rise before it.
        seed: of the order of the data, of every draw in training, and of the validation split. The global RNG is left as it was.
        device: "auto" (cuda, mps, cpu), or one of them. precision: "auto", "fp32", "bf16" (autocast; losses in float32).
        compile: True, False, "auto".
        val: fraction to hold out, or data of its own. Its loss is the best-weights criterion.
        patience: stop when the validation loss has not fallen by more than min_change for that many epochs.
        accumulate: batches per optimiser step, weighted by their sizes. clip: largest norm of the gradient.
        ema: decay of an exponential moving average of the weights, which validation, saving and the result then use.
        checkpoint_every: steps between saved states; by default at epoch ends, at most every 30 s, and at the end.
        out: run folder: config.yaml, metrics.jsonl, best and last weights, pictures. resume: go on with the run that is there.
        callbacks: functions (or one) of the newest row of the history; one that returns False ends the training.
        progress: bar, decisions and summary on the terminal.

    Raises ValueError or TypeError before the first step for arguments, data or folders that do not fit; FloatingPointError if
    the loss is not finite (nothing of it is saved)."""
    asked = {k: v for k, v in locals().items() if k not in ("model", "data", "callbacks", "progress", "resume", "out")}
    check_arguments(asked, model)
    hardware = decide(device, precision, compile)
    callbacks = [callbacks] if callable(callbacks) else list(callbacks)
    if resume and out is None:
        raise ValueError("resume=True needs out=, the folder of the run to go on with")
    with forked_rng(hardware.device):
        source = load_data(data).reshaped(model.input_shape)
        if out is not None:
            model.saved_config()  # a model that cannot be saved is found out before the folder is made
        run = RunFolder(out, resume) if out is not None else None
        trainer = _Trainer(model, source, asked, hardware, run, Progress(progress))
        trainer.prepare(resume)
        return trainer.train(callbacks)


class _Trainer:
    """The state of one run, and its steps in the order in which they happen."""

    def __init__(
        self,
        model: BaseAE,
        source: Source,
        asked: dict[str, Any],
        hardware: Hardware,
        run: RunFolder | None,
        bar: Progress,
    ):
        self.asked, self.hardware, self.run, self.bar = asked, hardware, run, bar
        self.model = model.to(hardware.device)
        self.dtype = next(model.parameters()).dtype
        self.seed: int = asked["seed"]
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best_row: dict[str, Any] = {}
        self.best_weights: dict[str, Tensor] | None = None
        self.stale = 0  # epochs without improvement, for patience
        self.plateau = 1.0  # factor on the learning rate
        self.plateau_stale = 0
        self.patience_best = math.inf  # what the validation loss must fall below, by min_change, to count as progress
        self.stopped = "finished"

        low, high = source.check(model.likelihood.support)
        model.likelihood.check(low, high)
        val = asked["val"]
        self.replay = source.replay
        self.val: Source | None = None
        if isinstance(val, float):
            source, self.val = source.split(val, self.seed)
        elif val is not None:
            self.val = load_data(val).reshaped(model.input_shape)
            model.likelihood.check(*self.val.check(model.likelihood.support))
            val = self.val.replay or f"given in Python: {self.val.description}, {len(self.val)} samples"
            self.replay = self.replay if self.val.replay else None
        if inspect.isclass(asked["optimizer"]):
            known = getattr(torch.optim, asked["optimizer"].__name__, None) is asked["optimizer"]
            self.replay = self.replay if known else None
        self.written = {**asked, "val": val, "optimizer": getattr(asked["optimizer"], "__name__", asked["optimizer"])}
        self.defaults = {k: p.default for k, p in inspect.signature(fit).parameters.items()}
        self.description = source.description
        self.original = source
        self.source = source.to(hardware.device)
        for note in notes(model, source, asked):
            bar.say(f"note: {note}")
        self.val = self.val.to(hardware.device) if self.val is not None else None
        count = len(self.source)
        if self.source.ordered and asked["batch_size"] is not None and asked["batch_size"] > count:
            raise ValueError(
                f"batch_size={asked['batch_size']} is larger than the {count} samples to train on; allowed: 1 to {count}"
            )
        self.batch_size = min(asked["batch_size"] or 128, count)
        batches = getattr(self.source, "num_batches", None) or len(batches_of(torch.arange(count), self.batch_size))
        self.per_epoch = math.ceil(batches / asked["accumulate"])
        epochs, steps = asked["epochs"], asked["steps"]
        self.total = steps if steps is not None else (10 if epochs is None else epochs) * self.per_epoch
        self.stages = model.stages()
        ends, reached = [], 0.0
        for stage in self.stages:
            reached += stage.share
            ends.append(round(reached * self.total))
        self.stage_ends = [*ends[:-1], self.total]

    # ---------------------------------------------------------------------------------------------------------- set up

    def prepare(self, resume: bool) -> None:
        """Optimiser, averages, and, when resuming, everything that was saved."""
        saved = self.run.read_state() if self.run is not None and resume and self.run.has_state else None
        if saved is not None:
            self.step = saved[0]["step"]
        self.enter_stage(saved[0]["stage"] if saved is not None else self.stage_at(0))
        self.start_interval()
        self.average = Average(self.model, self.asked["ema"]) if self.asked["ema"] else None
        if saved is not None:
            self.restore(*saved)
        loss = torch.compile(self.model.loss) if self.hardware.compile else self.model.loss
        self.loss: Callable[[Tensor], AELoss] = loss
        self.began_at = self.step
        if self.run is not None and (saved is None or self.step < self.total):
            self.run.write_config(self.config())
            self.run.write_rows(self.rows)

    def stage_at(self, step: int) -> int:
        return next((i for i, end in enumerate(self.stage_ends) if step < end), len(self.stages) - 1)

    def at_boundary(self) -> bool:
        """The end of an epoch, of a stage or of the run: a row is written here."""
        return (
            self.step >= self.total or self.step % self.per_epoch == 0 or self.stage_at(self.step) != self.model.stage
        )

    def enter_stage(self, number: int) -> None:
        """A stage has parameters, and so an optimiser, of its own; what was best in the one before means nothing here."""
        self.model.stage = number
        self.model.zero_grad(set_to_none=True)
        self.weights = [p for p in self.stages[number].parameters if p.dim() > 1]
        self.optimizer = build_optimizer(
            self.asked["optimizer"], self.stages[number].parameters, self.asked["lr"], self.asked["weight_decay"]
        )
        self.best_row, self.best_weights, self.stale, self.plateau, self.plateau_stale = {}, None, 0, 1.0, 0
        self.patience_best = math.inf

    # ------------------------------------------------------------------------------------------------------------ train

    def train(self, callbacks: Sequence[Callable[[dict[str, Any]], Any]]) -> FitResult:
        self.bar.start(self)
        began = time.perf_counter()
        saved_at = began
        every = self.asked["checkpoint_every"]
        with contextlib.closing(self.bar), Interrupts() as interrupts:
            while self.step < self.total and not self.converged():
                epoch = self.step // self.per_epoch
                self.model.train()
                if self.stage_at(self.step) != self.model.stage:
                    self.enter_stage(self.stage_at(self.step))
                due, reached = False, self.step
                for window in self.windows(epoch, self.step % self.per_epoch):
                    self.one_step(window)
                    self.bar.step(self)
                    due = bool(every) and self.step % every == 0
                    if self.at_boundary():
                        break  # what is saved or stopped here is so after the row below
                    if interrupts.signal:
                        self.stop_at_once(interrupts)
                    if due:
                        self.save()
                if self.step == reached:
                    raise ValueError(f"{self.description} yielded no batch in epoch {epoch + 1}")
                row = self.log(epoch)
                self.start_interval()
                self.judge(row)
                self.rows.append(row)
                if self.run is not None:
                    self.run.append(row)
                    if due or (not every and time.perf_counter() - saved_at > SAVE_SECONDS):
                        self.save()
                        saved_at = time.perf_counter()
                self.bar.row(self, row)
                if interrupts.signal:
                    self.stop_at_once(interrupts)
                if any([callback(row) is False for callback in callbacks]):  # every callback sees the row
                    self.stopped = "callback"
                    break
        if self.stopped == "finished" and self.step < self.total:
            self.stopped = "converged"
        return self.finish(time.perf_counter() - began)

    def converged(self) -> bool:
        """`patience` epochs of the last stage without progress."""
        patience = self.asked["patience"]
        return patience is not None and self.model.stage == len(self.stages) - 1 and self.stale >= patience

    def stop_at_once(self, interrupts: Interrupts) -> None:
        """Ctrl-C or SIGTERM came during the step that has just ended: save, say how to go on, leave."""
        if self.run is not None:
            self.save()
            self.bar.interrupted(self)
        interrupts.leave()

    def windows(self, epoch: int, done: int) -> Iterator[list[Any]]:
        """The epoch's batches in groups of `accumulate`, from window number `done` on. Order = f(seed, epoch)."""
        accumulate = self.asked["accumulate"]
        plan: Sequence[Tensor] = ()
        if self.source.ordered:
            order = torch.randperm(
                len(self.source), generator=torch.Generator().manual_seed(mix_seed(self.seed, epoch))
            )
            if isinstance(getattr(self.source, "x", None), Tensor):
                order = order.to(self.source.x.device)  # type: ignore[attr-defined]
            plan = batches_of(order, self.batch_size)[done * accumulate :]
        batches = iter(self.source.batches(plan, self.hardware.device, self.dtype, mix_seed(self.seed, epoch, 3)))
        if not self.source.ordered:  # a loader of the user's own: what was seen is drawn again, and passed over
            for earlier in range(done):
                self.seed_step(epoch * self.per_epoch + earlier)
                for _ in range(accumulate):
                    next(batches, None)
        self.seed_step(self.step)
        while window := [b for _, b in zip(range(accumulate), batches)]:
            yield window
            self.seed_step(self.step)

    def seed_step(self, step: int) -> None:
        set_seed(mix_seed(self.seed, step, 1), self.hardware.device)

    def one_step(self, window: list[Any]) -> None:
        """schedule, loss, backward, clip, step, after_step."""
        self.used_lr = self.lr()
        set_lr(self.optimizer, self.used_lr)
        samples = sum(len(b.x) for b in window)
        for batch in window:
            with self.hardware.autocast():
                loss = self.loss(batch.x)
            share = len(batch.x) / samples
            total = loss.total
            if self.asked["l1"]:
                penalty = torch.stack([w.abs().sum() for w in self.weights]).sum()
                total = total + self.asked["l1"] * penalty
                loss.terms["l1"] = penalty
            (total * share if share != 1 else total).backward()
            self.count(loss, total, len(batch.x))
        if self.asked["clip"]:
            torch.nn.utils.clip_grad_norm_(self.stages[self.model.stage].parameters, self.asked["clip"])
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.model.after_step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)

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
        self.sums: dict[str, Tensor] = {}
        self.interval_samples = self.timed_samples = 0
        self.interval_began = time.perf_counter()

    def count(self, loss: AELoss, total: Tensor, samples: int) -> None:
        """Adds to the interval's sums, on the device."""
        for name, value in {"loss": total, **loss.terms, **loss.metrics}.items():
            value = value.detach() * samples
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.interval_samples += samples
        self.timed_samples += samples

    def means(self) -> dict[str, float]:
        """The interval's means: the one place where the host waits for the device."""
        if not self.sums:
            return {}
        values = (
            torch.stack([v.double() if v.device.type != "mps" else v for v in self.sums.values()])
            / self.interval_samples
        ).tolist()
        return dict(zip(self.sums, values))

    def check_finite(self, means: dict[str, float]) -> None:
        """Raises FloatingPointError if a mean of the interval or a weight is not finite. Waits for the device."""
        weights = torch.stack([p.detach().isfinite().all() for p in self.model.parameters()]).all()
        if all(math.isfinite(v) for v in means.values()) and bool(weights):
            return
        values = ", ".join(f"{k} {v:g}" for k, v in means.items()) or "the weights"
        raise FloatingPointError(
            f"the loss is not finite in epoch {self.step // self.per_epoch + (self.step % self.per_epoch > 0)} (up to step "
            f"{self.step}): {values}. Lower lr={self.asked['lr']:g}, set clip=1.0, or scale the data; what was saved before stays"
        )

    def log(self, epoch: int) -> dict[str, Any]:
        means = self.means()
        seconds = time.perf_counter() - self.interval_began
        self.check_finite(means)
        row: dict[str, Any] = {"epoch": epoch + 1, "step": self.step}
        if len(self.stages) > 1:
            row["stage"] = self.stages[self.model.stage].name
        row |= {"lr": self.used_lr, **means, "samples_per_s": round(self.timed_samples / seconds, 1)}
        if self.val is not None:
            held_out = {f"val_{k}": v for k, v in self.validate().items()}
            self.check_finite(held_out)
            row |= held_out
        return row

    def validate(self) -> dict[str, float]:
        """Mean loss, terms and metrics over the validation data, each sample counted once; the draws are the same every time."""
        assert self.val is not None
        set_seed(mix_seed(self.seed, VALIDATION), self.hardware.device)
        with self.average.applied() if self.average else contextlib.nullcontext():
            return mean_loss(self.model, self.val, self.hardware, 2 * self.batch_size)

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

    def weights_now(self) -> dict[str, Tensor]:
        """The state dict, with the averaged weights where there is an average."""
        return {**self.model.state_dict(), **(self.average.state() if self.average else {})}

    # ------------------------------------------------------------------------------------------------- save and restore

    def config(self) -> dict[str, Any]:
        """What config.yaml holds: enough to build the run again where the data came by name or path."""
        saved = self.model.saved_config()
        train = {k: str(v) if isinstance(v, (Path, torch.device)) else v for k, v in self.written.items()}
        data = self.replay or {
            "source": None,
            "note": f"given in Python: {self.description}, {len(self.original)} samples",
        }
        return plain({"model": {"name": saved["model"], **saved["args"]}, "data": data, "train": train})

    def fixed(self) -> dict[str, Any]:
        """What may not change between the parts of one run, since the steps would no longer be those of one run."""
        written = self.written
        return plain(
            {
                **{k: written[k] for k in ("optimizer", "accumulate", "seed", "val", "ema")},
                "batch_size": self.batch_size,
                "samples": len(self.source),
                "dtype": str(self.dtype),
            }
        )

    def save(self) -> None:
        """Everything that the next step depends on, in one file; and the best weights so far.

        Raises FloatingPointError, and writes nothing, if the loss or a weight is not finite."""
        assert self.run is not None
        self.check_finite(self.means())
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        optimizer, rest = optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        tensors |= {f"sums.{k}": v for k, v in self.sums.items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state().items()}
        if self.best_weights is not None:
            tensors |= {f"best.{k}": v for k, v in self.best_weights.items()}
        state: dict[str, Any] = {
            "step": self.step,
            "stage": self.model.stage,
            "fixed": self.fixed(),
            "model": self.model.saved_config(),
            "optimizer": rest,
            "rows": self.rows,
            "best_row": self.best_row,
            "stale": self.stale,
            "patience_best": self.patience_best if math.isfinite(self.patience_best) else None,
            "plateau": [self.plateau, self.plateau_stale],
            "interval_samples": self.interval_samples,
        }
        self.run.save_state(tensors, state)
        self.run.save_model(state["model"], self.best_weights or self.weights_now())

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        assert self.run is not None
        now = self.model.saved_config()
        if state["model"]["model"] != now["model"] or state["model"]["args"] != now["args"]:
            changed = [k for k in now["args"] if state["model"]["args"].get(k) != now["args"][k]]
            what = ", ".join(f"{k}={state['model']['args'].get(k)!r} there, {now['args'][k]!r} here" for k in changed)
            names = f"a {state['model']['model']!r} there, a {now['model']!r} here"
            raise ValueError(
                f"{self.run.path} cannot go on with another model: {what if changed and state['model']['model'] == now['model'] else names}"
            )

        there, here = state["fixed"], self.fixed()
        changed = [f"{k}={there.get(k)!r} there, {here[k]!r} here" for k in here if there.get(k) != here[k]]
        if changed:
            raise ValueError(
                f"{self.run.path} cannot go on with other settings: {'; '.join(changed)}. Give the same, or another out= for a new run"
            )

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        self.model.load_state_dict(part("model"))
        load_optimizer_tensors(self.optimizer, part("optimizer"), state["optimizer"])
        if self.average is not None:
            self.average.load(part("average") or dict(self.model.named_parameters()))
        best = part("best")
        self.best_weights = {k: v.to(self.hardware.device) for k, v in best.items()} if best else None
        self.rows, self.best_row, self.stale = state["rows"], state["best_row"], state["stale"]
        self.patience_best = math.inf if state["patience_best"] is None else state["patience_best"]
        self.plateau, self.plateau_stale = state["plateau"]
        self.sums = {k: v.to(self.hardware.device) for k, v in part("sums").items()}
        self.interval_samples = state["interval_samples"]

    # ------------------------------------------------------------------------------------------------------------- end

    def finish(self, seconds: float) -> FitResult:
        """Saves, puts the best weights into the model, draws the pictures, says what was reached."""
        if self.run is not None:
            self.save()
            self.run.save_model(self.model.saved_config(), self.weights_now(), self.run.last)
        self.model.load_state_dict(self.best_weights or self.weights_now())
        self.model.stage = len(self.stages) - 1
        self.model.eval()
        speeds = sorted(row["samples_per_s"] for row in self.rows) or [0.0]
        result = FitResult(
            self.model,
            self.rows,
            self.best_row,
            self.stopped,
            seconds,
            speeds[len(speeds) // 2],
            self.run.path if self.run is not None else None,
        )
        pictures: list[Path] = []
        if self.run is not None:
            from ..pictures import draw_run

            shown = self.val if self.val is not None else self.source
            set_seed(mix_seed(self.seed, VALIDATION, 2), self.hardware.device)
            folder = self.run.path / "pictures"
            pictures, left_out = draw_run(
                folder, self.model, shown, self.rows, self.original.class_names, self.batch_size
            )
            for why in left_out:
                self.bar.say(f"left out: {why}")
        self.bar.summary(self, result, pictures)
        return result
