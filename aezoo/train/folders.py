"""The run folders of several models that are trained as one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..data import load_data
from . import state
from .run import RunFolder

if TYPE_CHECKING:
    from .together import Together


def open_folders(t: Together) -> list[RunFolder]:
    """One for each model, with config.yaml in it; none where none was asked for."""
    runs: list[RunFolder] = []
    try:
        for model, folder, settings in zip(t.models, t.folders, t.each):
            if folder is None:
                continue
            model.saved_config()  # a model that cannot be saved is found out before the folder is made
            runs.append(RunFolder(folder, False))
            val = settings["val"]
            if val is not None and not isinstance(val, float):
                held = load_data(val)
                val = held.replay or f"given in Python: {held.description}, {len(held)} samples"
            asked = {k: v for k, v in settings.items() if k not in ("callbacks", "resume")}
            written = {**asked, "val": val, "optimizer": getattr(asked["optimizer"], "__name__", asked["optimizer"])}
            told: Any = SimpleNamespace(
                model=model,
                written=written,
                replay=t.given.replay,
                description=t.given.description,
                original=t.sources[0],
            )
            runs[-1].write_config(state.config(told))
            runs[-1].write_rows([])
    except BaseException:
        for run in runs:
            run.close()
        raise
    return runs
