"""The run folder: what a run leaves behind, and what it needs to go on.

config.yaml                     what was asked for: model, data, train
metrics.jsonl                   one row per epoch (or every `log_every` steps): a function of the configuration alone
speed.jsonl                     the same rows' times
hardware.json                   on what they were taken
config.json, model.safetensors  the best weights by validation loss (the last ones without validation), with their sha256 in
                                checksums.json
last/, top/                     the last weights, and the `top_k` best
checkpoints/                    from which the run goes on
pictures/                       reconstructions, samples, curves, latent map

Nothing in it knows where it lies: it can be moved.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage import write_bytes, write_json, write_model
from .checkpoints import Checkpoints

TIMES = ("samples_per_s", "seconds")  # of a row: what differs between two runs of the same configuration


def lock(folder: Path) -> int | None:
    """One process a folder; the lock goes with the process, however it ends, or with the handle that this returns.

    Raises ValueError if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(handle, 32).decode(errors="replace").strip()
        os.close(handle)
        raise ValueError(
            f"out={str(folder)!r} is in use by another process{f' ({pid})' if pid else ''}; wait for it, or choose another folder"
        ) from None
    os.truncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


class RunFolder:
    """Raises ValueError, before any training, if the folder cannot be written, is in use or holds another run."""

    def __init__(self, path: str | Path, resume: bool, keep: int = 2, main: bool = True):
        self.path = Path(path).expanduser()
        self.last = self.path / "last"
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)
        self.lock: int | None = None
        self.waiting: list[dict[str, Any]] = []  # rows for which there was no room yet
        if not main:  # of several processes, one writes
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"cannot write to out={str(path)!r}: {error.strerror or error}; choose another folder"
            ) from None
        self.lock = lock(self.path)
        try:
            links = [p.name for p in self.path.iterdir() if p.is_symlink()]
            if links:
                raise ValueError(
                    f"out={str(path)!r} holds a symbolic link ({links[0]}); a run does not write through one"
                )
            if not self.has_state and any((self.path / name).exists() for name in ("config.json", "model.safetensors")):
                raise ValueError(
                    f"out={str(path)!r} holds a saved model, which the run would overwrite; choose another folder"
                )
            if self.has_state and not resume:
                step = self.checkpoints.newest_step()
                raise ValueError(
                    f"out={str(path)!r} already holds a run (at step {step}); pass resume=True (aezoo train --resume {path}) to go on with it, or choose another folder"
                )
        except ValueError:
            self.close()
            raise

    def close(self) -> None:
        """Gives the lock back."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    @property
    def has_state(self) -> bool:
        return bool(self.checkpoints.paths())

    def check_space(self, needed: int) -> None:
        """Raises ValueError if the disk has less than `needed` bytes left."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ValueError(
                f"out={str(self.path)!r}: {free / 2**20:,.0f} MiB are free on that disk, and the run needs about "
                f"{needed / 2**20:,.0f} MiB for its checkpoints; free some, lower keep=, or choose another folder"
            )

    def write_config(self, config: dict[str, Any]) -> None:
        import yaml

        write_bytes(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())

    def write_hardware(self, told: dict[str, Any]) -> None:
        """On what the run, or its newest part, is computed."""
        write_json(self.path / "hardware.json", told)

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """The whole history: used once at the start, so that rows after the resumed step disappear."""
        write_bytes(self.path / "metrics.jsonl", "".join(json.dumps(bare(row)) + "\n" for row in rows).encode())

    def append(self, *rows: dict[str, Any]) -> None:
        """Writes rows, after those that wait. Raises OSError if there is no room: then all wait, and no line is half-written."""
        self.waiting += rows
        lines = {
            "metrics.jsonl": [bare(row) for row in self.waiting],
            "speed.jsonl": [{k: row[k] for k in ("step", *TIMES) if k in row} for row in self.waiting],
        }
        sizes = {name: file.stat().st_size for name in lines if (file := self.path / name).exists()}
        try:
            for name, written in lines.items():
                with open(self.path / name, "a", encoding="utf-8") as f:
                    f.write("".join(json.dumps(line) + "\n" for line in written))
        except OSError:
            for name in lines:
                with contextlib.suppress(OSError):
                    os.truncate(self.path / name, sizes.get(name, 0))
            raise
        self.waiting = []

    def save_model(self, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path | None = None) -> None:
        write_model(folder or self.path, config, tensors)

    def keep_top(self, best: list[tuple[float, int]], config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """`top/` holds the models of `best` ((validation loss, step), the best first); `tensors` are those of the newest.

        Raises OSError if there is no room; what was listed before is there still."""
        names = [f"step-{step:09d}" for _, step in best]
        newest = f"step-{max(step for _, step in best):09d}"
        self.save_model(config, tensors, self.path / "top" / newest)
        listed = [{"folder": name, "step": step, "val_loss": loss} for name, (loss, step) in zip(names, best)]
        write_json(self.path / "top" / "top.json", listed)
        for old in (self.path / "top").iterdir():
            if old.is_dir() and old.name not in names:
                shutil.rmtree(old, ignore_errors=True)


def bare(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its times."""
    return {k: v for k, v in row.items() if k not in TIMES}
