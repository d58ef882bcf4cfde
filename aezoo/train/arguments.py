"""The arguments of `fit`, checked before anything is touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..base import BaseAE, positive
from ..randomness import checked_seed
from ..registry import choice
from .optim import SCHEDULES


def check_arguments(asked: dict[str, Any], model: BaseAE) -> None:
    """Raises ValueError or TypeError for arguments out of range."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    for name in ("epochs", "steps", "batch_size", "patience", "accumulate", "checkpoint_every"):
        if asked[name] is not None:
            positive(name, asked[name])
    if asked["epochs"] is not None and asked["steps"] is not None:
        raise ValueError(f"epochs={asked['epochs']} and steps={asked['steps']} were both given; pass one of them")
    choice("schedule", asked["schedule"], SCHEDULES)

    def number(name: str, allowed: str, fine: Callable[[float], bool]) -> None:
        value = asked[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not fine(value)):
            raise ValueError(f"{name}={value!r} must be {allowed}")

    number("lr", "a number above 0", lambda v: 0 < v < math.inf)
    for name in ("weight_decay", "l1", "min_change"):
        number(name, "a number of at least 0", lambda v: 0 <= v < math.inf)
    number("warmup", "a number of steps, at least 0", lambda v: v >= 0 and v == int(v))
    number("clip", "a number above 0", lambda v: v > 0)
    number("ema", "a number between 0 and 1", lambda v: 0 < v < 1)
    checked_seed(asked["seed"])
    if isinstance(asked["val"], (int, float)) and not 0 < asked["val"] < 1:
        raise ValueError(f"val={asked['val']!r} must be a fraction between 0 and 1, or data of its own")
    for name in ("patience", "schedule"):
        if asked["val"] is None and (asked[name] == "plateau" if name == "schedule" else asked[name] is not None):
            raise ValueError(
                f"{name}={asked[name]!r} watches the validation loss; pass val=, a fraction such as 0.1 or data of its own"
            )
