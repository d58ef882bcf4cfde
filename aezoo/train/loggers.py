"""Loggers beside metrics.jsonl: TensorBoard and Weights & Biases, each an extra that is installed by whoever wants it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from ..registry import choice
from ..storage import read_json, write_json
from .hooks import Callback

LOGGERS = ("tensorboard", "wandb")


def build_loggers(names: str | Sequence[str]) -> list[Callback]:
    """Raises ValueError for an unknown name, ImportError with the line that installs one that is missing."""
    listed = [names] if isinstance(names, str) else list(names)
    kinds: dict[str, type[Callback]] = {"tensorboard": TensorBoard, "wandb": WandB}
    return [kinds[choice("logger", name, LOGGERS)]() for name in listed if name != "none"]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if isinstance(v, Real) and k not in ("step", "epoch")}


class TensorBoard(Callback):
    """Every row's figures, and the run's pictures, in RUN/tensorboard (runs/tensorboard without a run folder)."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("logger='tensorboard' needs TensorBoard: pip install 'aezoo[tensorboard]'") from None
        self.kind: Any = SummaryWriter
        self.writer: Any = None

    def on_start(self, run: Any) -> None:
        if run.world.main:
            folder = run.run.path if run.run is not None else Path("runs")
            self.writer = self.kind(str(folder / "tensorboard"), purge_step=run.step + 1)

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        if self.writer is not None:
            for name, value in _numbers(row).items():
                self.writer.add_scalar(name, value, row["step"])

    def on_end(self, run: Any, result: Any) -> None:
        if self.writer is None:
            return
        import numpy as np
        from PIL import Image

        for picture in sorted((result.out / "pictures").glob("*.png")) if result.out is not None else []:
            with Image.open(picture) as image:
                self.writer.add_image(picture.stem, np.asarray(image.convert("RGB")), run.step, dataformats="HWC")
        self.writer.close()


class WandB(Callback):
    """Every row's figures to Weights & Biases (or whatever answers to `import wandb`), under the run folder's name."""

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError:
            raise ImportError("logger='wandb' needs its package: pip install 'aezoo[wandb]'") from None
        self.wandb: Any = wandb
        self.session: Any = None

    def on_start(self, run: Any) -> None:
        if run.world.main:
            name = run.run.path.name if run.run is not None else run.model.name
            config = {"model": run.model.name, **run.model.config, **run.written}
            known, file = None, run.run.path / "wandb.json" if run.run is not None else None
            if file is not None and file.is_file() and run.step:
                known = read_json(file)["id"]
            self.session = self.wandb.init(project="aezoo", name=name, id=known, resume="allow", config=config)
            if file is not None:
                write_json(file, {"id": self.session.id})

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        if self.session is not None:
            self.session.log({"epoch": row["epoch"], **_numbers(row)}, step=row["step"])

    def on_end(self, run: Any, result: Any) -> None:
        if self.session is not None:
            self.session.finish()
