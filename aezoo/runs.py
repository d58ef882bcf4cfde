"""What a run folder tells afterwards: its model, its rows, its speed, the data that it was judged on. Nothing in here writes.

Folders of runs that were killed, that are still training, or that hold nothing but a saved model are read as far as they go.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from . import recipes
from .base import BaseAE
from .data.sources import Source
from .storage import CONFIG, WEIGHTS, read_json

HARDWARE = "hardware.json"


class Read(NamedTuple):
    """A run's model."""

    model: BaseAE
    """In evaluation mode, on the CPU."""
    weights: str
    """Which weights these are, in words."""


def read_model(folder: Path) -> Read:
    """The best weights of a run folder or saved model; of a run that did not live to save any, those of its newest intact checkpoint.

    Raises FileNotFoundError if there are none, ValueError if all that there are cannot be read."""
    from .hub import build, from_pretrained
    from .train.checkpoints import Checkpoints, read

    said = []
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        try:
            best = "the best weights" if (folder / "config.yaml").is_file() else "the saved weights"
            return Read(from_pretrained(folder), best)
        except ValueError as error:
            said.append(str(error))
    for path in reversed(Checkpoints(folder / "checkpoints").paths()):
        try:
            state, tensors = read(path)
            model = build(state["model"], path)
            held = {name: value for name, value in tensors.items() if name.startswith("best.")}
            kind = "best" if held else "model"
            model.load_state_dict(
                {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}
            )
        except (ValueError, OSError, RuntimeError) as error:
            said.append(f"{path.name}: {error}")
            continue
        which = "the best weights" if held else "the weights"
        return Read(
            model, f"{which} up to step {state['step']:,}, from a checkpoint" if state["step"] else "untrained weights"
        )
    if said:
        raise ValueError(f"{folder} holds no weights that can be read: {'; '.join(said)}")
    raise FileNotFoundError(f"{folder} holds neither {WEIGHTS} nor a checkpoint")


def read_config(folder: Path) -> dict[str, dict[str, Any]]:
    """config.yaml, empty if there is none."""
    return recipes.read(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl or speed.jsonl; where a step occurs twice, as it does after a run went on, the later line.

    A line that was half-written when the process was killed is passed over."""
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing or damaged."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Progress(NamedTuple):
    """How far a run came."""

    step: int
    total: int | None
    """Planned steps, where a checkpoint says so."""
    state: str
    """"complete", "ended early" (patience, max_time, a callback) or "stopped" (killed, or still training)."""


def progress(folder: Path, rows: list[dict[str, Any]]) -> Progress:
    """How far a run came, by its newest checkpoint and its rows."""
    from .train.checkpoints import FILES, Checkpoints

    paths = Checkpoints(folder / "checkpoints").paths()
    state = read_object(paths[-1] / FILES[1]) if paths else {}
    step = max([row["step"] for row in rows] + [int(state.get("step") or 0)])
    total = state.get("total") if isinstance(state.get("total"), int) else None
    ending = folder / "last" / WEIGHTS
    ended = ending.is_file() and (not paths or ending.stat().st_mtime >= paths[-1].stat().st_mtime)
    if not ended:
        return Progress(step, total, "stopped")
    return Progress(step, total, "complete" if total is None or step >= total else "ended early")


# ---------------------------------------------------------------------------------------------------------------- data


def held_out(config: dict[str, dict[str, Any]]) -> tuple[Source, str]:
    """What a run is judged on, and that in words: the test split of a registered data set; else what the run held out for validation;
    else, saying so, all of its data.

    Raises ValueError if the data was given in Python, FileNotFoundError if it is not where it was."""
    from .data import DATASETS, load_data

    data, train = config.get("data", {}), config.get("train", {})
    if data.get("source") is None:
        raise ValueError("the run's data was given in Python; pass --data")
    if data["source"] in DATASETS and not Path(data["source"]).exists():
        return load_data({**data, "split": "test", "limit": None}), f"the test split of {data['source']}"
    if isinstance(train.get("val"), dict):
        return load_data(train["val"]), f"{train['val'].get('source')}, its validation data"
    source = load_data(data)
    if isinstance(train.get("val"), float):
        return source.split(train["val"], train.get("seed", 0))[1], f"the part of {data['source']} held out in training"
    return source, f"all of {data['source']}, which it was trained on"


def training_split(config: dict[str, dict[str, Any]]) -> Any:
    """What a run was trained on, as `load_data` takes it, where it is judged on the test split of that data set."""
    from .data import DATASETS

    data = config.get("data", {})
    if data.get("source") not in DATASETS or Path(data["source"]).exists():
        return None
    return data


def other_data(model: BaseAE, data: str, options: dict[str, Any]) -> tuple[Source, str]:
    """Data that the command line names in place of a run's own, pictures of folders fitted to the model, and that in words."""
    from .data import load_data

    shape = model.input_shape
    if Path(data).is_dir() and len(shape) == 3 and shape[0] in (1, 3):
        options = {"size": tuple(shape[1:]), "channels": shape[0], **options}
    return load_data(data, **options), f"all of {data}"
