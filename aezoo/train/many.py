"""`fit_many`: models of one shape that differ in seed, learning rate or the weights of their terms, trained as one computation.

Each model gets what its own `fit` would give it: its order of the data, its random draws, its schedule, its validation split. So the
results are those of single runs, up to the order of float additions. What cannot be computed together is trained one after the other.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..base import BaseAE
from ..data import Source, data_for
from ..data.sources import TensorSource
from ..randomness import forked_rng
from ..registry import choice, nearest, plain
from .arguments import check_arguments
from .fitting import fit
from .hardware import decide
from .progress import Progress
from .result import FitResult
from .stack import Unbatchable
from .together import Together

PER_MODEL = ("lr", "weight_decay", "seed")  # may be given as a list with a value for each model
SHARED = ("epochs", "steps", "batch_size", "optimizer", "schedule", "warmup", "device", "precision", "allocator", "deterministic",
          "val", "patience", "min_change", "clip", "ema", "log_every", "keep", "resume", "dry_run")  # fmt: skip
REFUSED = ("resume", "dry_run")


def fit_many(
    models: Sequence[BaseAE],
    data: Any,
    *,
    diverged: str = "raise",
    out: str | Path | Sequence[str | Path] | None = None,
    progress: bool = True,
    on_row: Callable[[int, dict[str, Any]], Any] | None = None,
    on_end: Callable[[int, FitResult], Any] | None = None,
    **settings: Any,
) -> list[FitResult]:
    """Trains several models, in place, and returns a `FitResult` for each: what `fit` would return, to float tolerance.

    Models are computed together if they are of one class, with the same shapes and the same keywords but for those that only
    weigh the terms of the loss (`weight_keywords` of the class, e.g. a VAE's beta). Others form groups of their own, and what
    cannot be computed together at all (other settings than those below, data that is no tensor in memory, draws that depend on
    data, ...) is trained one after the other, with a note that says why. Before the first step the group's loss and gradients
    are compared with those of each model alone.

    Args:
        models: each a model of its own.
        data: as for `fit`.
        settings: the keywords of `fit`; `lr`, `weight_decay` and `seed` also as a list with a value for each model. Computed
            together are runs that set no others than epochs, steps, batch_size, optimizer ("adam", "adamw", "sgd"), schedule,
            warmup, val, patience, min_change, clip, ema, log_every, device, precision, deterministic. There is no resume.
        diverged: what follows a loss that is not finite: "raise", or "leave": that model keeps the weights of its last row (its
            `stopped` is "not finite"), and the others go on. Of runs computed together this is looked at when a row falls due:
            until then that model's steps go on, and are all undone; `log_every` brings rows, and so the look, closer.
        out: a folder, in which each run gets one (0, 1, ...), or one folder for each model. A run folder holds config.yaml,
            metrics.jsonl and the best weights for `from_pretrained`; no checkpoints and no pictures of runs computed together.
        progress: notes, and a bar over all steps. on_row: called with (number of the model, newest row of its history). on_end:
            called with (number of the model, its result) as soon as it is there.

    Raises ValueError or TypeError for what does not fit, before the first step; FloatingPointError with diverged="raise"."""
    models = list(models)
    choice("diverged", diverged, ("raise", "leave"))
    each = _settings_of_each(models, settings)
    folders = _folders(out, len(models))
    bar = Progress(progress)
    results: list[FitResult | None] = [None] * len(models)
    for group in _groups(models):
        chosen = [models[i] for i in group]
        why = "" if len(group) > 1 else "alone"
        if not why:
            hardware = decide(
                *(each[group[0]][k] for k in ("device", "precision", "compile", "allocator", "deterministic"))
            )
            try:
                why = _why_not(chosen, each[group[0]])
                if not why:
                    with forked_rng(hardware.device):
                        source = _tensor_source(data, chosen[0])
                        run = Together(
                            chosen,
                            source,
                            [each[i] for i in group],
                            hardware,
                            bar,
                            [folders[i] for i in group],
                            diverged,
                        )
                        for i, result in zip(group, run.train(_numbered(on_row, group))):
                            results[i] = result
                            if on_end is not None:
                                on_end(i, result)
            except Unbatchable as error:
                why = str(error)
            if why:
                bar.say(f"note: {len(group)} models {chosen[0].name} are trained one after the other: {why}")
        if why:
            for i in group:
                results[i] = result = _alone(models[i], data, each[i], folders[i], diverged, on_row, i)
                if on_end is not None:
                    on_end(i, result)
    return [r for r in results if r is not None]


def _settings_of_each(models: list[BaseAE], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """All keywords of `fit` for each model, checked."""
    if not models:
        raise ValueError("models is empty; pass a list of models, e.g. [aezoo.create_model(...) for seed in range(4)]")
    if len({id(m) for m in models}) < len(models):
        raise ValueError("models holds one model twice; each needs weights of its own, e.g. copy.deepcopy(model)")
    own = ("model", "data", "out", "progress")
    defaults = {k: p.default for k, p in inspect.signature(fit).parameters.items() if k not in own}
    for key in settings:
        if key not in defaults or (key in REFUSED and settings[key] is not False):
            allowed = [k for k in defaults if k not in REFUSED]
            why = "is not possible for several models at once" if key in REFUSED else "is no keyword of fit_many"
            raise TypeError(f"{key!r} {why}; allowed: {', '.join(allowed)}.{nearest(key, allowed)}")
    each = []
    for i, model in enumerate(models):
        chosen = {**defaults, **settings}
        for key in PER_MODEL:
            if isinstance(chosen[key], (list, tuple)):
                if len(chosen[key]) != len(models):
                    raise ValueError(
                        f"{key} has {len(chosen[key])} values for {len(models)} models; give one each, or a single one"
                    )
                chosen[key] = chosen[key][i]
        check_arguments({k: v for k, v in chosen.items() if k not in ("callbacks", "resume")}, model)
        each.append(chosen)
    return each


def _folders(out: Any, count: int) -> list[Path | None]:
    if out is None:
        return [None] * count
    if isinstance(out, (str, Path)):
        return [Path(out).expanduser() / f"{i:0{len(str(count - 1))}d}" for i in range(count)]
    folders: list[Path | None] = [Path(o).expanduser() for o in out]
    if len(folders) != count or len(set(folders)) != count:
        raise ValueError(
            f"out has {len(set(folders))} different folders for {count} models; give one each, or a single one for all"
        )
    return folders


def _groups(models: list[BaseAE]) -> list[list[int]]:
    """Numbers of the models that may be computed together."""
    groups: dict[Any, list[int]] = {}
    for i, model in enumerate(models):
        try:
            config = {k: v for k, v in plain(model.config).items() if k not in model.weight_keywords}
            said = json.dumps(config, sort_keys=True)
        except TypeError:  # a piece that cannot be written down is like no other
            said = f"model {i}"
        shapes = tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters())
        buffers = tuple((n, b.shape, b.dtype) for n, b in model.named_buffers())
        groups.setdefault((type(model), said, shapes, buffers), []).append(i)
    return list(groups.values())


def _why_not(models: list[BaseAE], settings: dict[str, Any]) -> str:
    """What speaks against computing these together; empty if nothing does."""
    defaults = {k: p.default for k, p in inspect.signature(fit).parameters.items()}
    other = [
        k for k, v in settings.items() if k not in (*PER_MODEL, *SHARED) and v is not defaults[k] and v != defaults[k]
    ]
    other = [k for k in other if not (k == "compile" and settings[k] is False)]
    if other:
        return f"{', '.join(other)} {'is' if len(other) == 1 else 'are'} set"
    if settings["batch_size"] == "auto":
        return "batch_size='auto' is set"
    if len(models[0].stages()) > 1:
        return f"{models[0].name} is trained in stages"
    if models[0].takes_condition or models[0].accepts_missing or models[0].rates():
        return f"{models[0].name} takes more than plain samples, or has rates of its own"
    if models[0].game or getattr(models[0], "index_prior", False):
        return f"{models[0].name} plays a game or picks codes, and a last digit may decide what it picks"
    if len({p.dtype for p in models[0].parameters()}) > 1:
        return "its parameters have several dtypes"
    return ""


def _tensor_source(data: Any, model: BaseAE) -> TensorSource:
    source: Source = data_for(model.input_shape, data)
    if not isinstance(source, TensorSource):
        raise Unbatchable(f"{source.description} is not one tensor in memory")
    return source


def _numbered(on_row: Any, group: list[int]) -> Callable[[int, dict[str, Any]], Any]:
    return (lambda i, row: on_row(group[i], row)) if on_row is not None else lambda i, row: None


def _alone(
    model: BaseAE, data: Any, settings: dict[str, Any], out: Path | None, diverged: str, on_row: Any, number: int
) -> FitResult:
    """One model by `fit` itself."""
    settings = dict(settings)
    callbacks = settings.pop("callbacks")
    callbacks = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    rows: list[dict[str, Any]] = []
    callbacks.append(lambda row: rows.append(row))
    if on_row is not None:
        callbacks.append(lambda row: on_row(number, row))
    began = time.perf_counter()
    before = {k: v.detach().clone() for k, v in model.state_dict().items()} if diverged == "leave" else {}
    try:
        return fit(model, copy.copy(data), out=out, progress=False, callbacks=callbacks, **settings)
    except FloatingPointError:
        if diverged == "raise":
            raise
        if not rows:
            model.load_state_dict(before)
        model.eval()
        best = (
            min(rows, key=lambda r: r.get("val_loss", math.inf))
            if rows and settings["val"] is not None
            else (rows or [{}])[-1]
        )
        return FitResult(model, rows, best, "not finite", time.perf_counter() - began, 0.0, out)
