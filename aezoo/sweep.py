"""`aezoo sweep`: every combination of some values, each with several seeds, in one table and one picture.

Runs that differ only in seed, learning rate, weight decay or the weights of their terms are computed together (`fit_many`).

A sweep that was stopped goes on when it is started again with its --out: DIR/sweep.json says what it is, and each run that is done
has a result.json in its folder; a run that is not begins anew.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import re
import shutil
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .flags import command_parser, parse, train_config
from .randomness import checked_seed
from .registry import create_model, plain
from .storage import read_json, write_json

NOT_VARIED = ("train.seed", "train.out", "train.progress", "model.name", "data.source")
PLAN, DONE = "sweep.json", "result.json"
NO_FIGURES = ("epoch", "step", "lr", "samples_per_s", "seconds", "stage")


class Run(NamedTuple):
    values: tuple[str, ...]
    """Of the varied keys, as they were written."""
    seed: int
    config: dict[str, dict[str, Any]]


class Line(NamedTuple):
    """One line of the table: a combination of values, over its seeds."""

    values: tuple[str, ...]
    figures: dict[str, list[float]]
    """By name, one number for each seed whose run ended well."""
    failed: int
    """Seeds whose loss was not finite."""


def command_sweep(argv: Sequence[str]) -> None:
    """Several trainings, one table: aezoo sweep [RECIPE|FILE.yaml] --vary model.beta=1,2,4 [--vary KEY=...] [--seeds 4]"""
    parser = command_parser(
        "sweep",
        "Trains every combination of the values with every seed and writes DIR/table.csv, DIR/table.md, DIR/sweep.png and a "
        "folder for each run. Takes aezoo train's flags, too. Stopped and started again with the same flags and --out, it does what "
        "is left.",
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        help="a key of the model, data or training, and its values: model.beta=1,2,4",
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from train.seed")
    parser.add_argument("--out", default=None, help="folder, by default runs/sweep-NAME")
    if {"-h", "--help"} & set(argv):
        print(parser.format_help())
        return
    own, rest = _own_flags(argv, ("--vary", "--seeds", "--out"))
    options = parse(parser, own)
    keys, runs, name = plan(rest, options.vary, options.seeds)
    folder = _folder(options.out, name)
    try:
        lines = train(keys, runs, folder)
    except (KeyboardInterrupt, SystemExit):
        done = sum(1 for _ in folder.glob(f"*/{DONE}"))
        print(
            f"stopped: {done} of {len(runs)} runs are done. To go on, give the same command with --out {folder}",
            flush=True,
        )
        raise
    write(folder, keys, lines)
    print((folder / "table.md").read_text(encoding="utf-8").rstrip())
    print(f"table:   {folder / 'table.csv'}, {folder / 'table.md'}\npicture: {folder / 'sweep.png'}")


def _own_flags(argv: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the command's own flags as --flag=value, all else)."""
    mine, rest, left = [], [], list(argv)
    while left:
        item = left.pop(0)
        if item.partition("=")[0] not in own:
            rest.append(item)
        elif item in own and (not left or left[0].startswith("--")):
            raise ValueError(f"{item} needs a value")
        else:
            mine.append(item if "=" in item else f"{item}={left.pop(0)}")
    return mine, rest


def _values(text: str) -> list[str]:
    """The parts between commas that lie outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        depth += (c in "([{") - (c in ")]}") if not quote else 0
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts]


def plan(argv: Sequence[str], vary: Sequence[str], seeds: int) -> tuple[list[str], list[Run], str]:
    """(the varied keys, the runs, a name). Every configuration is checked before the first step.

    Raises ValueError for a key or value that is not allowed, naming the nearest right spelling."""
    axes: dict[str, list[str]] = {}
    for text in vary:
        key, equals, values = text.partition("=")
        chosen = _values(values)
        if not equals or "" in chosen:
            raise ValueError(f"--vary {text} cannot be read; write it like --vary model.beta=1,2,4,8")
        if key in NOT_VARIED:
            why = "pass --seeds N" if key == "train.seed" else "make one sweep for each"
            raise ValueError(f"--vary {key} is not possible: {why}")
        if key in axes or len(set(chosen)) < len(chosen):
            raise ValueError(f"--vary {text} names {'a key' if key in axes else 'a value'} twice")
        axes[key] = chosen
    if seeds < 1:
        raise ValueError(f"--seeds={seeds} must be an integer of at least 1")
    if not axes and seeds == 1:
        raise ValueError(
            "nothing to sweep: pass --vary KEY=VALUE,VALUE,... such as --vary model.beta=1,2,4, or --seeds N"
        )
    runs, name = [], ""
    for combination in itertools.product(*axes.values()):
        flags = [f"--{key}={value}" for key, value in zip(axes, combination)]
        config, name, resume = train_config([*argv, *flags])
        if resume:
            raise ValueError("a sweep cannot be resumed; leave --resume out")
        first = checked_seed(config["train"]["seed"])
        for seed in range(first, first + seeds):
            runs.append(Run(combination, seed, {**config, "train": {**config["train"], "seed": seed}}))
    return list(axes), runs, name


def _folder(out: str | None, name: str) -> Path:
    folder = Path(out if out is not None else Path("runs") / f"sweep-{name}")
    number, fresh = 1, folder
    while out is None and fresh.exists():
        number += 1
        fresh = folder.with_name(f"{folder.name}-{number}")
    if fresh.exists() and not (fresh / PLAN).is_file() and (not fresh.is_dir() or any(fresh.iterdir())):
        raise ValueError(f"--out {out} is there already and not empty; choose another folder")
    return fresh


def run_name(keys: Sequence[str], run: Run, number: int, count: int) -> str:
    """What a run's folder is called: "07-beta=4-seed=3"."""
    said = "-".join(f"{key.partition('.')[2]}={value}" for key, value in zip(keys, run.values))
    said = re.sub(r"[^\w.=+-]+", "_", f"{said}-seed={run.seed}".lstrip("-"))[:100]
    return f"{number:0{len(str(count - 1))}d}-{said}"


@contextlib.contextmanager
def begun(
    keys: Sequence[str], runs: Sequence[Run], folder: Path, folders: Sequence[Path]
) -> Iterator[dict[int, dict[str, Any]]]:
    """The sweep's folder, for this process alone inside the block: {number of a run that is done: its `stopped` and `best`}.

    Raises ValueError for another sweep's folder, or one that another process is at."""
    from .train.run import lock

    said = plain([list(keys), [[run.values, run.seed, run.config] for run in runs]])
    planned = json.loads(json.dumps(said, default=str))
    if (folder / PLAN).exists() and read_json(folder / PLAN) != planned:
        raise ValueError(f"--out {folder} holds a sweep of other runs; give its flags again, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    handle = lock(folder)
    try:
        write_json(folder / PLAN, planned)
        for path in folders:
            if path.is_dir() and not (path / DONE).is_file():
                shutil.rmtree(path)
        yield {i: read_json(path / DONE) for i, path in enumerate(folders) if path.is_dir()}
    finally:
        if handle is not None:
            os.close(handle)


def train(keys: Sequence[str], runs: Sequence[Run], folder: Path) -> list[Line]:
    """Trains those that are not done yet, as many together as possible; one line for each combination."""
    import torch

    from .data import load_data

    models: list[Any] = []
    sources: dict[str, Any] = {}
    for run in runs:
        data = run.config["data"]
        if data.get("source") is None:
            raise ValueError("no data: pass --data with a folder, a file or a registered name")
        key = json.dumps(data, default=str, sort_keys=True)
        source = sources[key] if key in sources else load_data(data)
        sources[key] = source
        torch.manual_seed(run.seed)
        model = dict(run.config["model"])
        kind, shape = model.pop("name"), model.pop("input_shape", None) or source.shape
        models.append(create_model(kind, input_shape=shape, **model))
    folders = [folder / run_name(keys, run, i, len(runs)) for i, run in enumerate(runs)]
    with begun(keys, runs, folder, folders) as done:
        if done:
            print(f"{len(done)} of {len(runs)} runs are done already", flush=True)
        _train(runs, models, sources, folders, done)
    lines: dict[tuple[str, ...], Line] = {}
    for i, run in enumerate(runs):
        line = lines.setdefault(run.values, Line(run.values, {}, 0))
        best = done[i]["best"]
        if done[i]["stopped"] == "not finite" or not best:
            lines[run.values] = line._replace(failed=line.failed + 1)
            continue
        held_out = any(k.startswith("val_") for k in best)
        for name, value in best.items():
            if name not in NO_FIGURES and (name.startswith("val_") or not held_out):
                line.figures.setdefault(name, []).append(value)
    return list(lines.values())


def _train(
    runs: Sequence[Run], models: Sequence[Any], sources: dict[str, Any], folders: Sequence[Path],
    done: dict[int, dict[str, Any]],
) -> None:  # fmt: skip
    """Those that are not in `done`, and puts them there."""
    from .train.many import PER_MODEL, fit_many

    def end(chosen: Sequence[int], number: int, result: Any) -> None:
        i = chosen[number]
        folders[i].mkdir(exist_ok=True)
        done[i] = {"stopped": result.stopped, "best": plain(result.best)}
        write_json(folders[i] / DONE, done[i])

    together: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        if i not in done:
            shared = {k: v for k, v in run.config["train"].items() if k not in PER_MODEL}
            key = json.dumps([run.config["data"], shared], default=str, sort_keys=True)
            together.setdefault(key, []).append(i)
    for chosen in together.values():
        settings = dict(runs[chosen[0]].config["train"])
        show = settings.pop("progress", True)
        settings.pop("out", None)
        settings |= {key: [runs[i].config["train"][key] for i in chosen] for key in PER_MODEL}
        fit_many(
            [models[i] for i in chosen],
            sources[json.dumps(runs[chosen[0]].config["data"], default=str, sort_keys=True)],
            diverged="leave",
            out=[folders[i] for i in chosen],
            progress=show,
            on_end=partial(end, chosen),
            **settings,
        )


# ------------------------------------------------------------------------------------------------------- table, picture


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over the seeds; None of a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


def write(folder: Path, keys: Sequence[str], lines: Sequence[Line]) -> None:
    """table.csv, table.md, sweep.png."""
    names = list(dict.fromkeys(name for line in lines for name in line.figures))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow([*keys, "seeds", "not_finite", *(f"{n}_{what}" for n in names for what in ("mean", "std"))])
        for line in lines:
            seeds = max([len(v) for v in line.figures.values()], default=0) + line.failed
            cells: list[Any] = [*line.values, seeds, line.failed]
            for name in names:
                values = line.figures.get(name, [])
                cells += [statistics.fmean(values) if values else "", spread(values) if len(values) > 1 else ""]
            rows.writerow(cells)
    failed = any(line.failed for line in lines)
    head = [*keys, *names, *(["not finite"] if failed else [])]
    table = [head, ["---"] * len(head)]
    for line in lines:
        shown = [_shown(line.figures.get(name, [])) for name in names]
        table.append([*line.values, *shown, *([str(line.failed)] if failed else [])])
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    text = "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |" for row in table)
    most = max((len(v) for line in lines for v in line.figures.values()), default=0)
    note = (
        f"Best epoch of each run; mean ± standard deviation over {most} seeds."
        if most > 1
        else "Best epoch of each run."
    )
    (folder / "table.md").write_text(f"{text}\n\n{note}\n", encoding="utf-8")
    draw(folder / "sweep.png", keys, lines, names)


def _shown(values: Sequence[float]) -> str:
    if not values:
        return "-"
    wide = spread(values)
    return f"{statistics.fmean(values):.5g}" + (f" ± {wide:.2g}" if wide is not None else "")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def draw(path: Path, keys: Sequence[str], lines: Sequence[Line], names: Sequence[str]) -> Path:
    """A panel for each figure: dots are runs, the line their mean. The first varied key goes along the axis (to scale if its values
    are numbers), the others make lines of different colours."""
    from matplotlib import colormaps

    from .pictures import figure, plain_axes

    names = list(names)[:6] or ["no run ended well"]
    across = 2 if len(names) == 4 else min(3, len(names))
    down = -(-len(names) // across)
    fig = figure(max(5.6, 4.4 * across), 3.4 * down + 0.3)
    ticks = list(dict.fromkeys(line.values[0] for line in lines)) if keys else [""]
    numbers = [_number(t) for t in ticks]
    scaled = all(n is not None for n in numbers) and len(ticks) > 1
    places: dict[str, float] = {
        t: float(n) if scaled and n is not None else float(i) for i, (t, n) in enumerate(zip(ticks, numbers))
    }
    low, high = min(places.values()), max(places.values())
    logarithmic = scaled and low > 0 and high / low >= 8
    rest = list(dict.fromkeys(line.values[1:] for line in lines))
    palette = colormaps["tab10" if len(rest) <= 10 else "viridis"]
    for n, name in enumerate(names):
        ax = fig.add_subplot(down, across, n + 1)
        for j, other in enumerate(rest):
            colour = palette(j) if len(rest) <= 10 else palette(j / (len(rest) - 1))
            mine = [
                (places[line.values[0] if keys else ""], line.figures[name])
                for line in lines
                if line.values[1:] == other and line.figures.get(name)
            ]
            mine.sort(key=lambda pair: pair[0])
            for x, values in mine:
                ax.plot([x] * len(values), values, ".", color=colour, alpha=0.45, markersize=6, markeredgewidth=0)
            label = ", ".join(f"{k.partition('.')[2]} {v}" for k, v in zip(keys[1:], other))
            if mine:
                ax.plot(
                    [x for x, _ in mine],
                    [statistics.fmean(v) for _, v in mine],
                    "-o" if scaled else "o",
                    color=colour,
                    markersize=4,
                    label=label or None,
                )
        plain_axes(ax, name, keys[0] if keys else "")
        if logarithmic:
            ax.set_xscale("log")
        if not scaled or len(ticks) <= 8:
            ax.set_xticks([places[t] for t in ticks], ticks)
            ax.minorticks_off()
        if not scaled:
            ax.margins(x=0.15)
        if len(rest) > 1 and n == 0:
            ax.legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120, facecolor="white")
    return path
