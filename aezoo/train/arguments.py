"""The arguments of `fit`, checked before anything is touched, and what is allowed but probably not meant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..base import BaseAE, count, number, positive
from ..data import Source
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

    ranges: dict[str, tuple[str, Callable[[float], bool]]] = {
        "lr": ("a number above 0", lambda v: 0 < v < math.inf),
        "weight_decay": ("a number of at least 0", lambda v: 0 <= v < math.inf),
        "l1": ("a number of at least 0", lambda v: 0 <= v < math.inf),
        "min_change": ("a number of at least 0", lambda v: 0 <= v < math.inf),
        "clip": ("a number above 0", lambda v: v > 0),
        "ema": ("a number between 0 and 1", lambda v: 0 < v < 1),
    }
    for name, (allowed, fine) in ranges.items():
        if asked[name] is not None:
            number(name, asked[name], allowed, fine)
    count("warmup", asked["warmup"])
    checked_seed(asked["seed"])
    if isinstance(asked["val"], (int, float)) and not 0 < asked["val"] < 1:
        raise ValueError(f"val={asked['val']!r} must be a fraction between 0 and 1, or data of its own")
    for name in ("patience", "schedule"):
        if asked["val"] is None and (asked[name] == "plateau" if name == "schedule" else asked[name] is not None):
            raise ValueError(
                f"{name}={asked[name]!r} watches the validation loss; pass val=, a fraction such as 0.1 or data of its own"
            )


def notes(model: BaseAE, source: Source, asked: dict[str, Any]) -> list[str]:
    """What is worth telling before the first step."""
    said, shape = [], model.input_shape
    if model.likelihood.name == "bernoulli" and source.binarize == "none":
        grey = source.peek(16, torch.device("cpu")).x
        if bool(((grey > 0) & (grey < 1)).any()):
            said.append(
                "likelihood 'bernoulli' on grey values is no density; for a true likelihood load the data with "
                "binarize='dynamic', or take 'continuous_bernoulli'"
            )
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] > 4 and shape[1] > 4:
        said.append(
            f"samples of shape {shape} are read as {shape[0]} channels of {shape[1]}x{shape[2]}; if they are images with the "
            "channels last, pass x.permute(0, 3, 1, 2)"
        )
    if len(shape) == 2 and min(shape) >= 8 and model.backbone.name == "conv":
        said.append(
            f"samples of shape {shape} are read as {shape[0]} channels of {shape[1]} steps; if they are images, pass "
            f"input_shape=(1, {shape[0]}, {shape[1]})"
        )
    if not source.ordered and asked["batch_size"] is not None:
        said.append(f"batch_size={asked['batch_size']} is not used: a DataLoader brings its own batches")
    return said
