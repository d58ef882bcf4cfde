"""Everything that the next step of a run depends on: collected for a checkpoint, put back when the run goes on.

Seeds are functions of the step, so no state of a random generator is kept. The names of the tensors are those of the bare model,
whatever wraps or compiles it, so a run may go on on another device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..registry import plain
from ..storage import FINGERPRINT, fingerprint
from .optim import load_optimizer_tensors, optimizer_tensors
from .run import bare

if TYPE_CHECKING:
    from .loop import _Trainer
    from .setup import Setup

# what may not change between the parts of one run, since its steps would no longer be those of one run
FIXED = ("optimizer", "lr", "weight_decay", "l1", "schedule", "warmup", "accumulate", "clip", "ema", "seed", "val",
         "groups", "freeze", "nonfinite", "overfit_batches", "log_every")  # fmt: skip


def config(t: _Trainer) -> dict[str, Any]:
    """What config.yaml holds: enough to build the run again where the data came by name or path."""
    saved = t.model.saved_config()
    train = {k: str(v) if isinstance(v, (Path, torch.device)) else v for k, v in t.written.items()}
    data = t.replay or {"source": None, "note": f"given in Python: {t.description}, {len(t.original)} samples"}
    return plain({"model": {"name": saved["model"], **saved["args"]}, "data": data, "train": train})


def fixed(t: Setup) -> dict[str, Any]:
    torch.default_generator.manual_seed(0)  # for data that is drawn at every visit; each step seeds it anew
    data = fingerprint(t.original.peek(FINGERPRINT, torch.device("cpu")).x) if t.original.ordered else None
    more = {"batch_size": t.batch_size, "samples": len(t.source), "dtype": str(t.dtype), "data": data}
    return plain({**{k: t.written[k] for k in FIXED}, **more})


def collect(t: _Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, the rest)."""
    tensors = {f"model.{k}": v for k, v in t.held.state_dict().items()}
    optimizer, rest = optimizer_tensors(t.optimizer)
    tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
    sums = t.interval.state()
    tensors |= {f"sums.{k}": v for k, v in sums.items()}
    if t.average is not None:
        tensors |= {f"average.{k}": v for k, v in t.average.state().items()}
    if t.best_weights is not None:
        tensors |= {f"best.{k}": v for k, v in t.best_weights.items()}
    if t.guard.snapshot is not None:
        tensors |= {f"snapshot.{k}": v for k, v in t.guard.snapshot.items()}
    tensors = t.whole(tensors)
    state: dict[str, Any] = {
        "step": t.step,
        "total": t.total,
        "stage": t.model.stage,
        "row_due": t.row_due,
        "used_lr": t.used_lr,
        "fixed": t.fixed,
        "precision": t.hardware.precision,
        "hardware": t.hardware.kept(),
        "model": t.model.saved_config(),
        "optimizer": rest,
        "rows": [bare(row) for row in t.rows],
        "best_row": bare(t.best_row),
        "top": t.top,
        "stale": t.stale,
        "patience_best": t.patience_best if math.isfinite(t.patience_best) else None,
        "plateau": [t.plateau, t.plateau_stale],
        "interval": [t.interval.samples, list(sums)],
        "guard": t.guard.state(),
    }
    return tensors, state


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def check(t: _Trainer, state: dict[str, Any]) -> None:
    """Raises ValueError if the run in the folder is of another model, other data or other settings."""
    assert t.run is not None
    there, now = state["model"], t.model.saved_config()
    if there["model"] != now["model"] or there["args"] != now["args"]:
        changed = [k for k in now["args"] if there["args"].get(k) != now["args"][k]]
        what = ", ".join(f"{k}={there['args'].get(k)!r} there, {now['args'][k]!r} here" for k in changed)
        names = f"a {there['model']!r} there, a {now['model']!r} here"
        raise ValueError(
            f"{t.run.path} cannot go on with another model: {what if changed and there['model'] == now['model'] else names}"
        )
    old, new = state["fixed"], t.fixed
    changed = [f"{k}={old.get(k)!r} there, {new[k]!r} here" for k in new if old.get(k) != new[k] and k != "data"]
    if old.get("data") != new["data"] and not changed:
        changed = ["the data: its first samples are others"]
    if changed:
        raise ValueError(
            f"{t.run.path} cannot go on with other settings: {'; '.join(changed)}. Give the same; or start a new run from its "
            f"weights: aezoo.from_pretrained({str(t.run.path)!r}), and another out="
        )
    if state["precision"] != t.hardware.precision:
        t.bar.say(f"note: so far in {state['precision']}, from here on in {t.hardware.precision}")
    planned = state.get("total", t.total)
    if planned != t.total and t.asked["schedule"] in ("cosine", "linear"):
        t.bar.say(
            f"note: schedule={t.asked['schedule']!r} was over {planned:,} steps so far and is over {t.total:,} from here on: the "
            "learning rate jumps, and the end is not that of one run of this length"
        )


def with_prior(t: _Trainer, state: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A prior is never trained: the model's own stays, and one that only the checkpoint has is put into the model."""
    from ..priors import PRIORS

    given = state["model"].get("prior")
    if getattr(t.model.prior, "fitted", False):
        own = {k: v for k, v in t.model.state_dict().items() if k.startswith("prior.")}
        for name in ("model", "best", "snapshot"):
            if part(tensors, name):
                kept = {k: v for k, v in tensors.items() if not k.startswith(f"{name}.prior.")}
                tensors = {**kept, **{f"{name}.{k}": v for k, v in own.items()}}
    elif given is not None:
        t.model.prior = PRIORS.build(given).settled().to(t.device, t.dtype)
    return tensors


def put_back(t: _Trainer, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors = with_prior(t, state, tensors)
    if t.shards is not None:
        tensors = t.shards.rows(tensors, t.optimizer)
    t.held.load_state_dict(part(tensors, "model"))
    load_optimizer_tensors(t.optimizer, part(tensors, "optimizer"), state["optimizer"])
    if t.average is not None:
        t.average.load(part(tensors, "average") or dict(t.held.named_parameters()))
    best = part(tensors, "best")
    t.best_weights = {k: v.to(t.hardware.device) for k, v in best.items()} if best else None
    t.rows, t.best_row, t.stale = state["rows"], state["best_row"], state["stale"]
    t.top = [(loss, step) for loss, step in state["top"]]
    t.patience_best = math.inf if state["patience_best"] is None else state["patience_best"]
    t.plateau, t.plateau_stale = state["plateau"]
    samples, names = state["interval"]
    sums = part(tensors, "sums")
    t.interval.load({name: sums[name] for name in names}, samples)  # in the order of the loss's terms
    t.row_due, t.used_lr = state["row_due"], state["used_lr"]
    t.guard.load(state["guard"], part(tensors, "snapshot"))


def size(t: _Trainer) -> int:
    """Bytes of a checkpoint, about: weights, two moments, an average, the best and the snapshot, where there are such."""
    one = sum(v.numel() * v.element_size() for v in t.model.state_dict().values())
    return one * (3 + (t.average is not None) + (t.val is not None) + 4 * (t.asked["nonfinite"] == "rollback"))
