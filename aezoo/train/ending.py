"""How a run ends: saved, its best weights in the model, its pictures drawn; or for want of memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..randomness import mix_seed, set_seed
from .hardware import peak_memory
from .result import FitResult
from .validate import VALIDATION

if TYPE_CHECKING:
    from .loop import _Trainer


def too_large(t: _Trainer) -> str:
    peak = peak_memory(t.device) / 2**30
    half = max(1, t.batch_size // 2)
    return (
        f"out of memory on {t.device} at step {t.step + 1} with batch_size={t.batch_size} (peak {peak:.1f} GiB). "
        f"Set batch_size={half} and accumulate={2 * t.asked['accumulate']}, which take the same steps; recompute=True "
        f"needs less for activations; aezoo.find_batch_size(model, data) finds what fits. The weights are those of step {t.step}"
    )


def finish(t: _Trainer, seconds: float) -> FitResult:
    """Saves, puts the best weights into the model, draws the pictures, says what was reached."""
    failed: OSError | None = None
    if t.run is not None:
        try:
            t.save(must=True)
            last, best = t.whole(t.weights_now()), t.whole(t.best_weights or t.weights_now())
            with t.world.together():
                if t.world.main:
                    t.run.append()  # what waits
                    t.run.save_model(t.model.saved_config(), last, t.run.last)
                    t.run.save_model(t.model.saved_config(), best)
        except OSError as error:
            failed = error  # first the best weights go into the model, so that they are not lost
    best = t.best_weights or t.weights_now()
    if t.shards is not None:
        best, t.model = t.shards.whole(best, t.optimizer, everywhere=True), t.given
    t.model.load_state_dict(best)
    if t.hardware.channels_last:
        t.model.to(memory_format=torch.contiguous_format)
    t.model.stage = len(t.stages) - 1
    t.model.eval()
    if failed is not None:
        raise failed
    t.interrupts.at_once()
    speeds = sorted(row["samples_per_s"] for row in t.rows if "samples_per_s" in row) or [0.0]
    result = FitResult(
        t.model,
        t.rows,
        t.best_row,
        t.stopped,
        seconds,
        speeds[len(speeds) // 2],
        t.run.path if t.run is not None else None,
    )
    pictures: list[Path] = []
    if t.run is not None and t.world.main:
        from ..pictures import draw_run

        shown = t.val if t.val is not None else t.source
        set_seed(mix_seed(t.seed, VALIDATION, 2), t.device)
        folder = t.run.path / "pictures"
        pictures, left_out = draw_run(folder, t.model, shown, t.rows, t.original.class_names, t.batch_size)
        for why in left_out:
            t.bar.say(f"left out: {why}")
    t.hooks.call("on_end", t, result)
    if t.world.main:
        t.bar.summary(t, result, pictures)
    return result
