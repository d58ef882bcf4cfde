"""The commands that move through a model's codes: interpolate, traverse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..flags import command_parser, parse, run_file
from ..registry import nearest

ENDINGS = (".gif", ".png", ".npy")
SAMPLE = "an image, a file of arrays or a data set; FILE:3 or digits:3 says which of several samples"


def command_interpolate(argv: Sequence[str]) -> None:
    """From one sample to another: aezoo interpolate RUN A.png B.png [--steps 16 --path slerp --out x.gif]"""
    from ..hub import from_pretrained
    from ..tasks.generate import PATHS, interpolate

    parser = command_parser(
        "interpolate",
        "Goes from sample A to sample B through the space of a run's codes, and writes the way as an animation (.gif), as a row of "
        "pictures (.png) or as an array (.npy).",
    )
    parser.add_argument("run")
    parser.add_argument("a", help=SAMPLE)
    parser.add_argument("b", help="likewise")
    parser.add_argument("--steps", type=int, default=16, help="both ends included")
    parser.add_argument("--path", type=str, default="linear", help=f"one of {', '.join(PATHS)}")
    parser.add_argument("--condition", type=int | None, default=None, help="label, on models that take one")
    parser.add_argument("--seconds", type=float, default=2.0, help="that the animation takes from A to B")
    parser.add_argument("--out", type=str | None, default=None, help="by default RUN/interpolation.gif")
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    out = _out(o.out, Path(o.run) / "interpolation.gif", ENDINGS)
    model = from_pretrained(o.run)
    a, b = (sample_of(model, text) for text in (o.a, o.b))
    x = interpolate(model, a, b, o.steps, o.path, condition=o.condition)
    _write(x[None], out, [], o.seconds, model)
    print(f"{out}: {len(x)} steps from {o.a} to {o.b} through the codes of {model.name}, path {o.path}")


def command_traverse(argv: Sequence[str]) -> None:
    """What each latent does: aezoo traverse RUN [SAMPLE] [--dims 0,1,2 --scale prior|posterior|data --out x.png]"""
    from ..data import data_for
    from ..hub import from_pretrained
    from ..tasks.generate import traversed
    from ..tasks.ranges import MOST, SCALES

    parser = command_parser(
        "traverse",
        "Moves one latent after the other while the rest of the code stands still, and writes a row of pictures for each (.png), an "
        "animation of each (.gif: all rows at once) or an array (.npy).",
    )
    parser.add_argument("run")
    parser.add_argument("sample", nargs="?", default=None, help=f"{SAMPLE}; by default the mean code")
    parser.add_argument(
        "--dims", type=str | None, default=None, help=f"as in 0,1,2; by default the {MOST} that vary most"
    )
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument(
        "--scale", type=str | None, default=None, help=f"{', '.join(SCALES)}; data if --data is given, else prior"
    )
    parser.add_argument("--span", type=float, default=3.0, help="standard deviations to either side (prior, posterior)")
    parser.add_argument(
        "--data", type=str | None, default=None, help="source whose 1 % and 99 % quantiles are the range"
    )
    parser.add_argument("--condition", type=int | None, default=None, help="label, on models that take one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=str | None, default=None, help="by default RUN/traversal.png")
    o = parse(parser, argv)
    run_file(o.run, "config.json")
    out = _out(o.out, Path(o.run) / "traversal.png", ENDINGS)
    model = from_pretrained(o.run)
    dims = None if o.dims is None else _dims(o.dims)
    sample = None if o.sample is None else sample_of(model, o.sample)
    data = None if o.data is None else data_for(model.input_shape, o.data)
    x, dims = traversed(
        model, sample, dims, steps=o.steps, scale=o.scale, span=o.span, data=data, quantiles=(0.01, 0.99),
        condition=o.condition, seed=o.seed,
    )  # fmt: skip
    _write(x, out, [f"latent {d}" for d in dims], 2.0, model)
    print(f"{out}: latent{'s' * (len(dims) > 1)} {', '.join(map(str, dims))} of {model.name}, {x.shape[1]} steps each")


def _dims(text: str) -> list[int]:
    if not re.fullmatch(r"\s*\[?\s*-?\d+(\s*,\s*-?\d+)*\s*\]?\s*", text):
        raise ValueError(f"--dims {text} must be integers with commas between, as in 0,1,2")
    return [int(d) for d in re.findall(r"-?\d+", text)]


def _out(text: str | None, default: Path, endings: Sequence[str]) -> Path:
    out = default if text is None else Path(text).expanduser()
    out = out if out.suffix else out.with_suffix(default.suffix)
    if out.suffix.lower() not in endings:
        raise ValueError(f"--out {text} must end in {', '.join(endings)}")
    return out


def sample_of(model: Any, text: str) -> Any:
    """One sample (*input_shape) in the model's dtype, from an image, a file of arrays, or a data set; "NAME:3" is the sample at position 3.

    Raises FileNotFoundError or ValueError for what is none, or more than one."""
    import torch

    from ..data import DATASETS, load_data
    from ..data.files import IMAGE_ENDINGS, read_image
    from ..pictures import is_image

    shape, dtype = model.input_shape, next(model.parameters()).dtype
    name, _, index = text.rpartition(":")
    numbered = name != "" and re.fullmatch(r"\d+", index) is not None and not Path(text).exists()
    name = name if numbered else text
    path = Path(name).expanduser()
    if not path.exists() and name not in DATASETS:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no file or data set {name!r}.{nearest(path.name, beside) or nearest(name, DATASETS)}")
    if path.is_file() and path.suffix.lower() in IMAGE_ENDINGS:
        channels = shape[0] if len(shape) == 3 else 1
        if len(shape) not in (2, 3) or not is_image(shape) or channels not in (1, 3):
            raise ValueError(f"{name} is an image, but {model.name} takes samples of shape {shape}")
        return read_image(path, (shape[-2], shape[-1]), channels).to(dtype).div(255).view(shape)
    named: dict[str, Any] = {"split": "test"} if name in DATASETS and not path.exists() else {}
    source = load_data(name, **named).reshaped(shape)
    if not numbered and len(source) > 1:
        raise ValueError(f"{name} holds {len(source):,} samples; say which one: {name}:0 to {name}:{len(source) - 1}")
    at = int(index) if numbered else 0
    if at >= len(source):
        raise ValueError(f"{text}: {name} holds {len(source):,} samples, 0 to {len(source) - 1}")
    return source.subset(torch.tensor([at])).peek(1, torch.device("cpu"), dtype).x[0]


def _write(x: Any, out: Path, names: Sequence[str], seconds: float, model: Any) -> None:
    """Rows (R, T, *shape) by the ending of `out`."""
    import numpy as np
    import torch

    from ..pictures import as_images, is_image, near_unit
    from ..tasks.frames import save_gif, save_grid

    x = x.detach().cpu().float()
    out.parent.mkdir(parents=True, exist_ok=True)
    like = (
        torch.tensor([0.0, 1.0]).view(2, *[1] * len(model.input_shape))
        if model.likelihood.support or near_unit(x)
        else None
    )
    like = like if is_image(x.shape[2:]) else None
    if out.suffix.lower() == ".npy":
        np.save(out, (x if len(x) > 1 else x[0]).numpy())
    elif out.suffix.lower() == ".gif":
        rows = as_images(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if is_image(x.shape[2:]) and len(x) > 1 else x
        side_by_side = torch.cat(list(rows), -1) if len(x) > 1 else x[0]
        save_gif(side_by_side, out, seconds=seconds, like=like)
    else:
        save_grid(x, out, names, like)
