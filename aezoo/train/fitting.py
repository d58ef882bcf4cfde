"""`fit`: the arguments, their meaning, and the order in which a run is put together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..base import BaseAE
from ..data import data_for
from ..randomness import forked_rng
from .arguments import check_arguments, check_shard
from .freezing import listed, without_gradient
from .hardware import decide
from .hooks import Callback
from .loop import _Trainer
from .optim import spelled_out
from .processes import Processes
from .progress import Progress
from .result import FitResult
from .run import RunFolder

RowCallback = Callable[[dict[str, Any]], Any]


def fit(
    model: BaseAE,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | str | None = None,
    lr: float = 1e-3,
    optimizer: Any = "adam",
    weight_decay: float = 0.0,
    groups: dict[str, Any] | None = None,
    freeze: str | Sequence[str] | None = None,
    l1: float = 0.0,
    schedule: str = "constant",
    warmup: int = 0,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compile: bool | str = "auto",
    deterministic: bool = False,
    allocator: str = "auto",
    val: Any = None,
    patience: int | None = None,
    min_change: float = 0.0,
    accumulate: int = 1,
    clip: float | None = None,
    ema: float | None = None,
    recompute: bool = False,
    shard: bool = False,
    nonfinite: str = "raise",
    checkpoint_every: int | None = None,
    keep: int = 2,
    top_k: int = 1,
    log_every: int | None = None,
    logger: str | Sequence[str] = (),
    max_time: float | str | None = None,
    overfit_batches: int | None = None,
    dry_run: bool = False,
    profile: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    callbacks: RowCallback | Callback | Sequence[RowCallback | Callback] = (),
    progress: bool = True,
) -> FitResult:
    """Trains a model, in place, and returns a `FitResult`.

    Args:
        model: any `BaseAE`.
        data: whatever `load_data` takes: a tensor, array, Dataset, DataLoader, folder, file or registered name. A folder of pictures is
            fitted to the model's size and channels.
        epochs, steps: when to stop; one of the two, 10 epochs if neither. A step is one step of the optimiser.
        batch_size: samples per forward pass, of all processes together; 128 by default, or all if there are fewer; "auto": the
            largest power of two that fits into memory with room to spare (`find_batch_size`).
        lr: learning rate. optimizer: "sgd" (momentum 0.9), "adam", "adamw", any class of torch.optim: "rmsprop(alpha=0.9)".
        weight_decay: on weights, not on biases and norms; the L2 penalty weight_decay/2 * ||w||^2 with sgd and adam, decoupled
            with adamw. l1: adds l1 * sum |w| over the same weights.
        groups: learning rates of their own for some modules or parameters, by names or patterns of names: {"encoder": 1e-4,
            "decoder.0*": 3e-4}, or {"encoder": {"lr": 1e-4, "weight_decay": 0}}; the first that fits counts, and `lr` for the rest.
        freeze: modules or parameters that are not trained, by names or patterns: "encoder", ["encoder", "decoder.0*"]. They get no
            gradient, and frozen modules are in evaluation mode: no dropout, batch norms stay as they are.
        schedule: of the learning rates: "constant", "cosine", "linear" (both to 0), or "plateau" (times 0.3 when the validation
            loss has not improved for 5 epochs). warmup: steps of linear rise before it.
        seed: of the order of the data, of every draw in training, and of the validation split. The global RNG is left as it was.
        device: "auto" (cuda, mps, cpu), or one of them. precision: "auto", "fp32", "bf16" (autocast; losses in float32).
        compile: True, False (every step runs as it is written), or "auto", which decides by the size of a step and their number, and
            says why. Where it does not compile, steps are recorded and replayed: as a CUDA graph, or kernel by kernel on a CPU.
        deterministic: only kernels that give the same bits at every run (on a GPU; the CPU's always do).
        allocator: how freed memory is treated on the CPU: "auto", "prime", "keep", "system" (see the README on speed).
        val: fraction to hold out, or data of its own. Its loss is the best-weights criterion.
        patience: stop when the validation loss has not fallen by more than min_change for that many epochs.
        accumulate: batches per optimiser step, weighted by their sizes. clip: largest norm of the gradient.
        ema: decay of an exponential moving average of the weights, which validation, saving and the result then use.
        recompute: gradient checkpointing: no activations of the encoder's and decoder's blocks are kept, but computed again in the
            backward pass.
        shard: cut weights, gradients and optimiser state into one part for each process, for models that do not fit on one
            device (`fully_shard`); needs several processes. The model itself stays where it is, and has the weights at the end.
        nonfinite: what follows a loss or gradient that is not finite, with which no step is ever taken: "raise", "skip" (pass over
            that step), "rollback" (back to the weights of the last row, on behind that batch).
        checkpoint_every: steps between checkpoints; by default at rows of the history, at most every 30 s, and at the end.
        keep: newest checkpoints that stay, at least 2. top_k: best models by validation loss that stay in top/ (1: the best, at the top).
        log_every: steps between rows of the history, beside those at epoch ends.
        logger: "tensorboard", "wandb", or both; metrics.jsonl is always written.
        max_time: stop after that long, saved and ready to go on: seconds, or "1h30m", "45s".
        overfit_batches: train on the first that many batches only, the same ones every epoch: a model that cannot is broken.
        dry_run: two steps of a copy of the model, a validation and a save to a temporary folder: does it all go through?
        profile: after the first steps, say where their time goes.
        out: run folder: config.yaml, metrics.jsonl, best and last weights, checkpoints, pictures. resume: go on with the run
            that is there.
        callbacks: functions (or one) of the newest row of the history, one that returns False ends the training; or instances of
            `aezoo.Callback`.
        progress: bar, decisions and summary on the terminal.

    Raises ValueError or TypeError before the first step for arguments, data or folders that do not fit; FloatingPointError if
    the loss is not finite (nothing of it is saved or stepped on); MemoryError if a batch does not fit; OSError if the disk is
    full at the end (the checkpoints before stay)."""
    asked = {k: v for k, v in locals().items() if k not in ("model", "data", "callbacks", "progress", "resume", "out")}
    check_arguments(asked, model)
    asked |= {"freeze": listed(freeze), "groups": spelled_out(groups)}
    hardware = decide(device, precision, compile, allocator, deterministic)
    if resume and out is None:
        raise ValueError("resume=True needs out=, the folder of the run to go on with")
    if dry_run:
        return _dry_run(model, data, {**asked, "callbacks": callbacks, "progress": progress})
    world = Processes(hardware.device)
    run = None
    try:
        with forked_rng(hardware.device), without_gradient(model, freeze):
            with world.together():
                check_shard(asked, world)
                source = data_for(model.input_shape, data)
                if out is not None:
                    model.saved_config()  # a model that cannot be saved is found out before the folder is made
                    run = RunFolder(out, resume, keep, world.main)
                bar = Progress(progress and world.main)
                trainer = _Trainer(model, source, asked, hardware, world, run, bar, callbacks)
            trainer.prepare(resume)
            return trainer.train()
    finally:
        if run is not None:
            run.close()
        world.close()


def _dry_run(model: BaseAE, data: Any, arguments: dict[str, Any]) -> FitResult:
    """Everything that a run does, in two steps of a copy of the model, and a folder that disappears."""
    import tempfile

    shorter = {**arguments, "epochs": None, "steps": 2, "dry_run": False, "logger": ()}
    with tempfile.TemporaryDirectory() as folder:
        result = fit(copy.deepcopy(model), data, out=Path(folder) / "run", **shorter)
        result.out = None
    if arguments["progress"]:
        print("dry run: two steps, validation, saving and pictures went through; nothing is kept")
    return result
