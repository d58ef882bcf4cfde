"""The noise that a model was trained against, at levels of one's choice: what shows denoisers at work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from .base import BaseAE
from .corruptions import CORRUPTIONS, Corruption

LEVELS = (0.25, 0.5, 1.0, 1.5)  # shares of what the model was trained against
WORDS = {"gaussian": "sigma", "speckle": "sigma", "masking": "p", "salt_and_pepper": "p", "poisson": "peak"}


def input_noise(model: BaseAE) -> Corruption | None:
    """The first corruption on a model's input that has a level; None if there is none."""
    found = [c for c in model.corruptions if c.where == "input" and c.name in WORDS]
    return found[0] if found else None


def at_level(noise: Corruption, level: float) -> Corruption:
    """The same noise at one level, in evaluation mode, too."""
    return CORRUPTIONS.build({**noise.config, "name": noise.name, WORDS[noise.name]: float(level), "when": "always"})


def noise_levels(noise: Corruption) -> list[float]:
    """From little noise to more than the model was trained against. Of "poisson" these are counts: the fewer, the noisier."""
    low, high = noise.level  # type: ignore[attr-defined]
    if noise.name == "poisson":
        return [low / share for share in LEVELS]
    top = 1.0 if WORDS[noise.name] == "p" else math.inf
    return sorted({min(top, round(share * high, 4)) for share in LEVELS})


@contextmanager
def corrupted_by(model: BaseAE, noise: Corruption) -> Iterator[None]:
    """Inside the block `model.corrupt` applies this noise and nothing else."""
    before, model.corruptions = model.corruptions, [noise]
    try:
        yield
    finally:
        model.corruptions = before
