"""What code of the user's own may do during a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HOOKS = ("on_start", "on_step", "on_row", "on_best", "on_save", "on_end")


class Callback:
    """Base of callbacks: override what is needed; a hook that is not overridden costs nothing.

    `run` is the running trainer: `run.step`, `run.total`, `run.model`, `run.optimizer`, `run.rows`, `run.source`, `run.val`,
    `run.device`, and `run.run.path`, the run folder, where there is one. What a hook draws at random does not touch the
    run's own draws."""

    def on_start(self, run: Any) -> None:
        """Before the first step, after resuming."""

    def on_step(self, run: Any) -> Any:
        """After each step of the optimiser. Looking at a tensor's value here makes the host wait for the device."""

    def on_row(self, run: Any, row: dict[str, Any]) -> Any:
        """A new row of the history; returning False ends the training."""

    def on_best(self, run: Any, row: dict[str, Any]) -> None:
        """The validation loss is the lowest so far."""

    def on_save(self, run: Any, path: Path) -> None:
        """A checkpoint lies on the disk."""

    def on_end(self, run: Any, result: Any) -> None:
        """After the last step; the result is what `fit` returns."""


class _Rows(Callback):
    """A plain function of the newest row."""

    def __init__(self, function: Callable[[dict[str, Any]], Any]):
        self.function = function

    def on_row(self, run: Any, row: dict[str, Any]) -> Any:
        return self.function(row)


class Hooks:
    """The overridden hooks of all callbacks, by name."""

    def __init__(self, callbacks: Any):
        several = callbacks if isinstance(callbacks, Sequence) else [callbacks]
        self.callbacks: list[Callback] = []
        for c in several:
            if isinstance(c, Callback):
                self.callbacks.append(c)
            elif callable(c) and not isinstance(c, type):
                self.callbacks.append(_Rows(c))
            else:
                raise TypeError(f"callbacks holds {c!r}; it takes functions of a row, and instances of aezoo.Callback")
        self.by_name = {
            name: [getattr(c, name) for c in self.callbacks if getattr(type(c), name) is not getattr(Callback, name)]
            for name in HOOKS
        }
        self.step = self.by_name["on_step"]

    def call(self, name: str, *arguments: Any) -> list[Any]:
        return [hook(*arguments) for hook in self.by_name[name]]
