"""The arguments of `fit`, checked before anything is touched, and what is allowed but probably not meant."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import torch

from ..base import BaseAE, count, number, positive
from ..data import Source
from ..randomness import checked_seed
from ..registry import choice, parse_spec
from .finite import POLICIES
from .freezing import check_freeze
from .loggers import build_loggers
from .optim import SCHEDULES
from .processes import Processes
from .sharding import WHOLE_ROWS


def check_arguments(asked: dict[str, Any], model: BaseAE) -> None:
    """Raises ValueError or TypeError for arguments out of range."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a BaseAE, e.g. from aezoo.create_model; got {type(model).__name__}")
    for name in ("epochs", "steps", "batch_size", "patience", "accumulate", "checkpoint_every", "keep", "top_k",
                 "log_every", "overfit_batches"):  # fmt: skip
        if asked[name] is not None and not (name == "batch_size" and asked[name] == "auto"):
            positive(name, asked[name])
    if asked["keep"] < 2:
        raise ValueError(
            f"keep={asked['keep']} must be at least 2: should the newest checkpoint be damaged, the one before it counts"
        )
    if asked["epochs"] is not None and asked["steps"] is not None:
        raise ValueError(f"epochs={asked['epochs']} and steps={asked['steps']} were both given; pass one of them")
    choice("schedule", asked["schedule"], SCHEDULES)
    choice("nonfinite", asked["nonfinite"], POLICIES)
    for name in ("deterministic", "recompute", "shard", "dry_run", "profile"):
        if not isinstance(asked[name], bool):
            raise ValueError(f"{name}={asked[name]!r} must be True or False")
    seconds_of(asked["max_time"])
    build_loggers(asked["logger"])  # one that is unknown or not installed is found here

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
    check_freeze(model, asked["freeze"], asked["groups"])
    if isinstance(asked["val"], (int, float)) and not 0 < asked["val"] < 1:
        raise ValueError(f"val={asked['val']!r} must be a fraction between 0 and 1, or data of its own")
    if asked["top_k"] > 1 and asked["val"] is None:
        raise ValueError(
            f"top_k={asked['top_k']} ranks by the validation loss; pass val=, a fraction such as 0.1 or data of its own"
        )
    for name in ("patience", "schedule"):
        if asked["val"] is None and (asked[name] == "plateau" if name == "schedule" else asked[name] is not None):
            raise ValueError(
                f"{name}={asked[name]!r} watches the validation loss; pass val=, a fraction such as 0.1 or data of its own"
            )


def check_shard(asked: dict[str, Any], world: Processes) -> None:
    """Raises ValueError where weights cannot be cut."""
    if not asked["shard"]:
        return
    if world.size == 1:
        raise ValueError(
            "shard=True cuts the weights into one part for each process, and there is one process: start several, "
            "torchrun --nproc-per-node N -m aezoo train ..., or leave shard out"
        )
    name = (
        asked["optimizer"].__name__
        if inspect.isclass(asked["optimizer"])
        else str(parse_spec("optimizer", asked["optimizer"])[0])
    )
    if name.lower() in (n.lower() for n in WHOLE_ROWS):
        raise ValueError(f"optimizer={name!r} looks at whole weights, which shard=True cuts; take adam, adamw or sgd")
    for word in ("profile",):
        if asked[word]:
            raise ValueError(f"{word}={asked[word]!r} does not work with shard=True; leave one of them out")
    if asked["batch_size"] == "auto":
        raise ValueError("batch_size='auto' does not work with shard=True; pass a number")


def seconds_of(text: Any) -> float | None:
    """Seconds of a number, or of "1h30m", "45s", "2d"; None for None. Raises ValueError for anything else."""
    if text is None:
        return None
    if isinstance(text, str):
        units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
        if parts and "".join(a + b for a, b in parts) == text:
            text = sum(float(n) * units[u] for n, u in parts)
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            text = float(text)
    return number("max_time", text, "seconds above 0, or a time such as '1h30m' or '45s'", lambda v: 0 < v < math.inf)


def batches_for(source: Source, batch_size: int | None, world: Processes) -> int:
    """Samples per batch. Raises ValueError if there are fewer samples, or fewer in a batch than processes."""
    count = len(source)
    if not source.ordered and world.size > 1:
        raise ValueError(
            f"{world.size} processes cannot share a DataLoader of your own; pass its Dataset, and batch_size="
        )
    if source.ordered and batch_size is not None and batch_size > count:
        raise ValueError(
            f"batch_size={batch_size} is larger than the {count} samples to train on; allowed: 1 to {count}"
        )
    size = min(batch_size or 128, count)
    if size < world.size:
        raise ValueError(
            f"batch_size={size} is for all of the {world.size} processes together: it must be at least {world.size}"
        )
    return size


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
