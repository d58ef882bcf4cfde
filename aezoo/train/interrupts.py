"""Ctrl-C and SIGTERM wait for the end of the step, so that what is saved is never half a step."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any


class Stopped(Exception):
    """The run was asked to stop, and is saved."""


class Interrupts:
    """Inside the block the first signal is only noted, in `signal`, until `at_once`; a second Ctrl-C interrupts at once.

    `several`: processes under torchrun, which passes every signal on: each comes twice, and once more when the first process has
    left. There a Ctrl-C within 2 seconds is the same one, and after a signal the handlers stay, so that none cuts the end short."""

    def __init__(self, several: bool = False) -> None:
        self.several = several
        self.signal = 0
        self.waits = True
        self.since = 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.signal == number == signal.SIGINT and not (self.several and now < self.since + 2):
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.since = number, now
            if not self.waits:
                self.leave(number)

    def at_once(self) -> None:
        """Everything is saved: the signal that came, or the first that comes, ends the run where it is."""
        self.waits = False
        if self.signal:
            self.leave(self.signal)

    def leave(self, number: int) -> None:
        """Raises KeyboardInterrupt for Ctrl-C, SystemExit(143) for SIGTERM."""
        if number == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt

    def __exit__(self, *error: Any) -> None:
        if not (self.several and self.signal):
            for number, handler in self.before.items():
                signal.signal(number, handler)
