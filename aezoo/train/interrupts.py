"""Ctrl-C and SIGTERM wait for the end of the step, so that what is saved is never half a step."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupts:
    """Inside the block the first signal is only noted, in `signal`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def leave(self) -> None:
        """Raises KeyboardInterrupt for Ctrl-C, SystemExit(143) for SIGTERM."""
        if self.signal == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
