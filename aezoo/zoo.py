"""Trains every model of the zoo by its recipe and tells what each one learned."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import recipes
from .registry import MODELS, list_models
from .train.hardware import decide, processor

SHOWN = 2000  # held-out samples that a model is judged on, at most


class Check(NamedTuple):
    """What training one model by its recipe came to. Losses and metric are of samples that it was not trained on."""

    name: str
    data: str
    parameters: int
    steps: int
    samples_per_s: float
    """Median over the epochs, training only."""
    loss: tuple[float, float]
    """Mean loss before and after training."""
    recon: tuple[float, float]
    """Mean reconstruction term before and after training."""
    metric: str
    """Name of the model's main figure."""
    value: tuple[float, float]
    """The main figure before and after training."""
    seconds: float
    """All of it: data, training, both evaluations."""
    error: str = ""
    """Why there are no figures, if there are none."""

    @property
    def learned(self) -> bool:
        """Is what it was not trained on reconstructed better than before?"""
        return not self.error and self.recon[1] < self.recon[0] and math.isfinite(self.loss[1])


def recipe_of(name: str) -> str:
    """The recipe that trains a model: the one of its name, else the first that names it and needs no download.

    Raises FileNotFoundError if there is none."""
    if name in recipes.names():
        return name
    for recipe in recipes.names():
        if recipes.read(recipe).get("model", {}).get("name") == name and not recipe.endswith("_mnist"):
            return recipe
    raise FileNotFoundError(f"no recipe in configs/ trains {name!r}; write configs/{name}.yaml")


def check(names: Iterable[str], device: str = "auto", seed: int = 0) -> Iterator[Check]:
    """Trains each model by its recipe, one after the other, and judges it before and after on samples that were held out.

    An error in one model is reported in its line and does not end the others."""
    for name in names:
        began = time.perf_counter()
        try:
            yield _check_one(name, device, seed, began)
        except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, MemoryError) as error:
            nothing = (math.nan, math.nan)
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield Check(name, "", 0, 0, 0.0, nothing, nothing, "", nothing, time.perf_counter() - began, why)


def _check_one(name: str, device: str, seed: int, began: float) -> Check:
    from .commands.find import built
    from .data import DATASETS, load_data
    from .evaluation import evaluate
    from .flags import train_config
    from .train import fit

    config, _, _ = train_config([recipe_of(name), "--train.seed", str(seed)])
    model, source = built(config)
    train = {**config["train"], "device": device, "out": None, "progress": False, "val": None}
    train |= {"patience": None, "top_k": 1}
    if train["schedule"] == "plateau":
        train["schedule"] = "constant"
    data = dict(config["data"])
    if data["source"] in DATASETS:
        data |= {"split": "test", "limit": SHOWN}
        held_out = load_data(data)
    else:
        source, held_out = source.split(min(0.2, SHOWN / len(source)), seed)
    metric = model.main_metric
    how: dict[str, Any] = {"metrics": ["loss", metric], "device": device, "seed": seed, "progress": False}
    before = evaluate(model, held_out, **how)
    result = fit(model, source, **train)
    after = evaluate(result.model, held_out, **how)
    pairs = [(before[k]["mean"], after[k]["mean"]) for k in ("loss", "recon", metric)]
    return Check(
        name, str(config["data"]["source"]), model.num_parameters, int(result.history[-1]["step"]), result.samples_per_s,
        pairs[0], pairs[1], metric, pairs[2], time.perf_counter() - began,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- as a table

HEAD = ("model", "data", "parameters", "steps", "samples/s", "loss", "main metric", "s")


def cells(row: Check) -> tuple[str, ...]:
    """One line of the table as text, in the order of `HEAD`."""
    if row.error:
        return (row.name, row.data, "", "", "", row.error, "", f"{row.seconds:.0f}")
    loss, value = (f"{_short(a)} → {_short(b)}" for a, b in (row.loss, row.value))
    return (
        row.name, row.data, f"{row.parameters:,}", f"{row.steps:,}", f"{row.samples_per_s:,.0f}", loss,
        f"{row.metric} {value}", f"{row.seconds:.0f}",
    )  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def as_markdown(rows: Sequence[Check], hardware: str) -> str:
    """The table as README shows it, with where it was measured."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join((f"`{row.name}`", *cells(row)[1:])) + " |" for row in rows]
    return "\n".join([*lines, "", f"*{hardware}*"])


def write_into(path: Path, table: str) -> None:
    """Puts the table between the markers `<!-- zoo: begin -->` and `<!-- zoo: end -->` of a file. Raises ValueError without them."""
    text = path.read_text(encoding="utf-8")
    begin, end = "<!-- zoo: begin -->", "<!-- zoo: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must hold the lines {begin} and {end} once, where the table goes between")
    head, rest = text.split(begin)
    path.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def hardware_line(seed: int, seconds: float, device: str) -> str:
    """Where and how the figures were taken."""
    place = decide(device, "fp32", False).device
    what = (
        torch.cuda.get_device_name(place)
        if place.type == "cuda"
        else f"{processor()}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}"
    )
    return (
        f"{what}, torch {torch.__version__}, seed {seed}, one run each, {seconds / 60:.0f} minutes in all. Loss and main metric "
        f"before → after training, on at most {SHOWN:,} samples that were not trained on."
    )


def models_fitting(patterns: Sequence[str]) -> list[str]:
    """The zoo's models whose names fit any of the patterns; all without one. Raises ValueError if none does."""
    from .registry import nearest

    found = sorted({name for pattern in patterns or ["*"] for name in list_models(pattern)})
    if not found:
        raise ValueError(f"no model fits {patterns[0]!r}; models: {', '.join(MODELS)}.{nearest(patterns[0], MODELS)}")
    return found
