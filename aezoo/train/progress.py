"""What the terminal shows: a bar where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Protocol

from ..base import BaseAE
from ..data import Source
from .hardware import Hardware
from .interval import Interval
from .result import FitResult
from .run import RunFolder

LINES = 5.0  # seconds between plain lines
LONG_EPOCH = 15.0  # seconds after which a plain line comes in the middle of an epoch


class Watched(Protocol):
    """What is looked at of a run."""

    model: BaseAE
    hardware: Hardware
    source: Source
    val: Source | None
    run: RunFolder | None
    asked: dict[str, Any]
    description: str
    replay: dict[str, Any] | None
    step: int
    began_at: int
    written: dict[str, Any]
    defaults: dict[str, Any]
    total: int
    per_epoch: int
    batch_size: int

    interval: Interval


class Progress:
    """The loss that it shows is the newest row's: looking at a newer one would make the host wait for the device."""

    def __init__(self, on: bool):
        self.on = on
        self.bar: Any = None
        self.printed = time.perf_counter()
        self.newest = ""  # the loss of the newest row, and its step

    def say(self, text: str) -> None:
        if self.on:
            if self.bar is not None:
                self.bar.write(text)
            else:
                print(text, flush=True)

    def warn(self, text: str) -> None:
        """What must not go unseen: a note, or, where nothing is shown, a warning of Python's."""
        if self.on:
            self.say(f"note: {text}")
        else:
            warnings.warn(text, stacklevel=2)

    def start(self, trainer: Watched) -> None:
        if not self.on:
            return
        model = trainer.model
        self.say(trainer.hardware.reason)
        held = f" + {len(trainer.val):,} to validate" if trainer.val is not None else ""
        still = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        self.say(
            f"{model.name} {tuple(model.input_shape)} -> {model.latent_dim}, {model.num_parameters:,} parameters"
            f"{f', {still:,} of them frozen' if still else ''} | "
            f"{len(trainer.source):,} samples of {trainer.description}{held} | {trainer.total:,} steps of "
            f"{trainer.batch_size * trainer.asked['accumulate']}"
        )
        if settings := _settings(trainer):
            self.say(settings)
        if trainer.step >= trainer.total:
            self.say(
                f"nothing left to do: the run is at step {trainer.step:,} of {trainer.total:,}; raise epochs or steps to go on"
            )
        elif trainer.step:
            self.say(f"resuming at step {trainer.step:,}")
        if sys.stderr.isatty():
            from tqdm import tqdm

            size = trainer.batch_size * trainer.asked["accumulate"]
            self.bar = tqdm(
                total=trainer.total * size,
                initial=trainer.step * size,
                unit="img",
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
            )

    def step(self, trainer: Watched) -> None:
        if not self.on:
            return
        if self.bar is not None:
            self.bar.update(trainer.batch_size * trainer.asked["accumulate"])
            return
        now = time.perf_counter()
        if now - self.printed > LONG_EPOCH:
            self.printed = now
            shown = self.newest or "no row of losses yet (log_every= makes more of them)"
            self.say(f"step {trainer.step:,}/{trainer.total:,}  {shown}")

    def row(self, trainer: Watched, row: dict[str, Any]) -> None:
        """One line per epoch, but not more often than every few seconds."""
        self.newest = f"loss {row['loss']:.5g} at step {row['step']:,}"
        if self.bar is not None:
            self.bar.set_postfix_str(self.newest, refresh=False)
        now = time.perf_counter()
        done = trainer.step >= trainer.total
        if not self.on or (now - self.printed < LINES and not done and trainer.step > trainer.per_epoch):
            return
        self.printed = now
        seen = row["samples_per_s"]
        size = trainer.batch_size * trainer.asked["accumulate"]
        left = (trainer.total - trainer.step) * size / max(seen, 1e-9)
        skip = ("epoch", "step", "lr", "samples_per_s", "seconds", "stage")
        values = "  ".join(f"{k} {v:.5g}" for k, v in row.items() if k not in skip)
        stage = f" {row['stage']}" if "stage" in row else ""
        epochs = -(-trainer.total // trainer.per_epoch)
        self.say(
            f"epoch {row['epoch']}/{epochs}{stage}  {values}  {seen:,.0f} img/s"
            + (f"  {left:.0f} s left" if not done else "")
        )

    def interrupted(self, trainer: Watched) -> None:
        self.close()
        if trainer.run is None:
            self.say(f"stopped at step {trainer.step}; pass out= to have a run that can go on")
            return
        self.say(f"stopped at step {trainer.step}; everything is saved. To go on: {resume_line(trainer)}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def summary(self, trainer: Watched, result: FitResult, pictures: list[Path]) -> None:
        if not self.on:
            return
        best = result.best
        what = "val_loss" if "val_loss" in best else "loss"
        units = result.model.units
        if best:
            self.say(
                f"{result.stopped}: best {what} {best[what]:.5g} ({units}) in epoch {best['epoch']}"
                + (
                    f"; {result.seconds:.1f} s, {result.samples_per_s:,.0f} images/s"
                    if trainer.step > trainer.began_at
                    else ""
                )
            )
        if result.out is not None:
            if pictures:
                self.say(f"pictures: {result.out / 'pictures'}: {', '.join(p.name for p in pictures)}")
            self.say(f"load:     model = aezoo.from_pretrained({str(result.out)!r})")
            done = result.history[-1]["epoch"] if result.history else 0
            self.say(f"resume:   {resume_line(trainer, done + 10)}")


def _settings(trainer: Watched) -> str:
    """Every keyword of the model and of `fit` that is not its default."""
    signature = inspect.signature(type(trainer.model)).parameters
    parts = []
    for title, given, defaults in (
        (trainer.model.name, trainer.model.config, {k: p.default for k, p in signature.items()}),
        ("train", trainer.written, trainer.defaults),
    ):
        changed = [
            f"{k}={v!r}" for k, v in given.items() if k not in ("input_shape", "latent_dim") and v != defaults[k]
        ]
        if changed:
            parts.append(f"{title}: {', '.join(changed)}")
    return " | ".join(parts)


def resume_line(trainer: Watched, epochs: int | None = None) -> str:
    """The line that goes on with a run: a command where the data came by name or path, else the call in Python."""
    assert trainer.run is not None
    if trainer.replay is not None:
        return f"aezoo train --resume {trainer.run.path}" + (f" --train.epochs {epochs}" if epochs else "")
    return (
        f"aezoo.fit(model, data, {f'epochs={epochs}' if epochs else '...'}, out={str(trainer.run.path)!r}, resume=True)"
    )
