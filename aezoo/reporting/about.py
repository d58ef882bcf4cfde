"""Sections of what a run is rather than what it sees: figures, speed, configuration, how to load it."""

from __future__ import annotations

import math
from typing import Any

from ..cards import without_paths
from ..flags import summary
from ..storage import WEIGHTS, sha256
from .general import Section
from .material import Material
from .pieces import code, facts, number, say, subtitle, table


def evaluation(m: Material) -> Section | None:
    """evaluation.json, if `aezoo evaluate` wrote one for these weights."""
    metrics = m.evaluation.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return None
    rows = []
    for name, value in metrics.items():
        if name != "samples" and isinstance(value, dict):
            error = value.get("stderr")
            spread = f"± {error:.2g}" if isinstance(error, (int, float)) and math.isfinite(error) else ""
            rows.append((name, value.get("mean"), spread, value.get("samples"), value.get("unit", "")))
    file = m.folder / WEIGHTS
    other = file.is_file() and m.evaluation.get("weights") not in (None, sha256(file))
    warning = (
        " These are figures of other weights: the run went on since. aezoo evaluate takes them anew." if other else ""
    )
    said = f"By aezoo evaluate, on {m.evaluation.get('data', 'data that was not recorded')}.{warning}"
    return Section(
        "evaluation", "Evaluation", said, table(("metric", "mean", "± standard error", "samples", "unit"), rows)
    )


def wall_time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} minutes" if seconds < 5400 else f"{seconds / 3600:.3g} hours"


def speed_of(m: Material) -> tuple[float, float]:
    """(samples per second, median over the rows; seconds in all), 0 where they are not known."""
    speeds = sorted(row["samples_per_s"] for row in m.speed if isinstance(row.get("samples_per_s"), (int, float)))
    seconds = sum(row["seconds"] for row in m.speed if isinstance(row.get("seconds"), (int, float)))
    return (speeds[len(speeds) // 2] if speeds else 0.0), seconds


def speed(m: Material) -> Section | None:
    """Samples per second, wall time, and on what."""
    rate, seconds = speed_of(m)
    known = m.hardware
    if not m.speed and not known:
        return None
    unit = "images per second" if m.has_model and m.images else "samples per second"
    said = facts([
        (unit, f"{rate:,.0f} (median over {len(m.speed):,} rows)" if rate else ""),
        ("wall time", wall_time(seconds) if seconds else ""),
        ("hardware", f"{known.get('name', '')} ({known.get('device', '')})" if known else "not recorded"),
        ("cores", known.get("cores")), ("threads in training", known.get("threads")),
        ("processes", known.get("processes") if known.get("processes", 1) > 1 else None),
        ("precision", known.get("precision")), ("compiled", "yes" if known.get("compile") else ""), ("torch", known.get("torch")),
    ])  # fmt: skip
    return Section(
        "speed", "Speed", "Training only: evaluation, saving and pictures are not counted." if rate else "", said
    )


def configuration(m: Material) -> Section | None:
    """config.yaml."""
    if not m.config:
        return None
    import yaml

    text = yaml.safe_dump(without_paths(m.config), sort_keys=False, allow_unicode=True)
    again = "As a file, aezoo train FILE.yaml trains this run again." if m.config.get("data", {}).get("source") else ""
    return Section("configuration", "Configuration", again, code(text, "yaml"))


def loading(m: Material) -> Section | None:
    """How to load the model, go on with the run, evaluate it."""
    path = str(m.folder)
    body = ""
    if m.has_model and (m.folder / WEIGHTS).is_file():
        model = m.model
        shape = ", ".join(map(str, model.input_shape))
        told = ", condition=labels" if model.takes_condition else ""
        lines = [
            "import aezoo",
            "",
            f"model = aezoo.from_pretrained({path!r})",
            f"z = model.encode(x{told})  # x: (batch, {shape})",
        ]
        lines += [f"back = model.decode(z{told})"]
        lines += [f"new = model.sample(16)  # (16, {shape})"] if model.prior is not None else []
        body += code("\n".join(lines), "python")
    elif m.has_model:
        body += say(
            "The run was stopped before it saved a model; its checkpoint goes on, and the end of the run saves one."
        )
    where = f'"{path}"' if " " in path else path
    commands = [f"aezoo evaluate {where}"] if body and m.config else []
    if m.config.get("data", {}).get("source") and (m.folder / "checkpoints").is_dir():
        commands.insert(0, f"aezoo train --resume {where}")
    commands += [f"aezoo play {where}"] if m.has_model else []
    if commands:
        body += subtitle("On the command line") + code("\n".join(commands), "bash")
    return Section("load", "Load it", "", body) if body else None


def tiles_of(m: Material) -> list[tuple[str, str]]:
    """The figures at the top of the page: (value, what it is)."""
    found: list[tuple[str, str]] = []
    best = m.best
    if m.has_model:
        model = m.model
        found.append((f"{model.num_parameters:,}", "parameters"))
        found.append((" × ".join(map(str, model.latent_shape)), "numbers in a code"))
    if best:
        key = "val_loss" if "val_loss" in best else "loss"
        found.append(
            (
                number(best[key]),
                f"{'validation ' if key == 'val_loss' else ''}loss, {m.model.units}" if m.has_model else key,
            )
        )
    if m.has_model and m.source is not None:
        found.append(
            (number(float(m.errors.nanmean())), "squared error per entry" + (", standardised" if m.table else ""))
        )
    rate, seconds = speed_of(m)
    if rate:
        found.append((f"{rate:,.0f}", "images per second" if m.has_model and m.images else "samples per second"))
    if seconds:
        found.append((wall_time(seconds), "of training"))
    return found


def sentence(m: Material) -> tuple[str, str]:
    """(what the model is, its paper)."""
    if not m.has_model:
        return "There are no weights in this folder yet.", ""
    text = summary(type(m.model))
    return (text if text.endswith(".") else text + "."), type(m.model).paper


def chips(m: Material) -> list[tuple[str, str]]:
    """(class, text) of what is said beside the title: how far the run came, its data, its weights."""
    found = []
    if m.rows or m.progress.total is not None:
        step, total, state = m.progress
        of = f" of {total:,}" if total is not None and state != "complete" else ""
        words = {"complete": "finished at step", "ended early": "ended early at step", "stopped": "stopped at step"}
        found.append((state.split()[0], f"{words[state]} {step:,}{of}"))
    source: Any = m.config.get("data", {}).get("source")
    if source:
        found.append(("", f"trained on {without_paths(source)}"))
    if m.has_model:
        found.append(("", m.weights))
    return found
