"""Loggers beside metrics.jsonl: TensorBoard and Weights & Biases, each an extra that is installed by whoever wants it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from ..randomness import forked_rng, mix_seed, set_seed
from ..registry import choice
from ..storage import read_json, write_json
from .hooks import Callback

IMAGES = 2**41  # stands for the step in the seed of what pictures draw, far from any real step
LOGGERS = ("tensorboard", "wandb")


def build_loggers(names: str | Sequence[str]) -> list[Callback]:
    """Raises ValueError for an unknown name, ImportError with the line that installs one that is missing."""
    listed = [names] if isinstance(names, str) else list(names)
    kinds: dict[str, type[Callback]] = {"tensorboard": TensorBoard, "wandb": WandB}
    return [kinds[choice("logger", name, LOGGERS)]() for name in listed if name != "none"]


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if isinstance(v, Real) and k not in ("step", "epoch")}


IMAGES_EVERY = 5.0  # seconds between pictures of a run that is under way


class TensorBoard(Callback):
    """Every row's figures, and pictures, in RUN/tensorboard (runs/tensorboard without a run folder).

    At points of evaluation, where a row has validation figures (each row without validation), and at most every 5 seconds:
    "held-out/reconstructions", images above what the model makes of them, and "held-out/samples" where there is a prior, both of the
    same samples and draws every time, by the weights that are validated. At the end the pictures of the run folder."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("logger='tensorboard' needs TensorBoard: pip install 'aezoo[tensorboard]'") from None
        self.kind: Any = SummaryWriter
        self.writer: Any = None
        self.drawn = -IMAGES_EVERY  # when pictures were made last
        self.failed = False

    def on_start(self, run: Any) -> None:
        if run.world.main:
            folder = run.run.path if run.run is not None else Path("runs")
            self.writer = self.kind(str(folder / "tensorboard"), purge_step=run.step + 1)

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        if self.writer is not None:
            for name, value in _numbers(row).items():
                self.writer.add_scalar(name, value, row["step"])
            now = time.monotonic()
            judged = run.val is None or "val_loss" in row
            if judged and not self.failed and run.shards is None and now - self.drawn >= IMAGES_EVERY:
                self.drawn = now
                try:
                    self.draw(run, row["step"])
                except Exception as error:  # a picture must not end a training
                    self.failed = True
                    run.bar.warn(f"no pictures in TensorBoard: {type(error).__name__}: {' '.join(str(error).split())}")

    def draw(self, run: Any, step: int) -> None:
        """Reconstructions and samples, as they are at this step."""
        import torch

        from ..pictures import as_images, grid, is_image, to_unit

        model, source = run.model, run.val if run.val is not None else run.source
        if not is_image(model.input_shape):
            return
        device = next(model.parameters()).device
        averaged = run.average.applied() if run.average is not None else contextlib.nullcontext()
        with forked_rng(device), averaged, model.evaluating(), torch.no_grad():
            set_seed(mix_seed(run.seed, IMAGES), device)
            batch = source.peek(8, device, run.dtype)
            told = {"condition": batch.y} if model.takes_condition and batch.y is not None else {}
            shown = {"reconstructions": [batch.x, model.reconstruct(batch.x, **told)]}
            if model.prior is not None:
                shown["samples"] = list(model.sample(16).split(8))
        for name, rows in shown.items():
            picture = grid([to_unit(as_images(x), as_images(batch.x)) for x in rows])
            self.writer.add_image(f"held-out/{name}", np_of(picture), step, dataformats="HWC")

    def on_end(self, run: Any, result: Any) -> None:
        if self.writer is None:
            return
        from PIL import Image

        for picture in sorted((result.out / "pictures").glob("*.png")) if result.out is not None else []:
            with Image.open(picture) as image:
                self.writer.add_image(picture.stem, np_of(image.convert("RGB")), run.step, dataformats="HWC")
        self.writer.close()


def np_of(image: Any) -> Any:
    """A PIL image as an array (H, W, C)."""
    import numpy as np

    return np.asarray(image)


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
