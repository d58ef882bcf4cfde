"""Doors to other libraries: their models become models of the zoo, and ours are written as theirs, without the library itself.

    model = aezoo.load_foreign("gemma/layer_5", format="auto")    # an ordinary model: fit, evaluate, save_pretrained
    aezoo.save_foreign(model, "out", "saelens")                   # what SAELens loads

Each format is a module of this package with

    FILES                     what it is made of, in words
    recognise(path) -> bool   by the names of files and keys alone; reads no weights, raises nothing
    load(path) -> BaseAE      in evaluation mode. Raises ValueError for what is damaged or has no counterpart here
    save(model, path) -> Path the folder. Raises ValueError for a model that the format cannot hold, before anything is written

and a line in `FORMATS`. `load` and `save` may take keywords of their own. What a file says beside sizes and weights is kept in
`model.origin`, {"format": name, "config": {...}}, and written again.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base import BaseAE
from ..registry import choice, nearest

FORMATS = {  # name: module
    "saelens": "saelens",
    "dictionary_learning": "dictionary_learning",
    "sparsify": "sparsify",
    "diffusers": "diffusers",
}


def module(name: str) -> Any:
    """The module of a format. Raises ValueError for an unknown name."""
    return importlib.import_module(f".{FORMATS[choice('format', name, FORMATS)]}", __name__)


def recognised(path: str | Path) -> list[str]:
    """The formats that a file or folder looks like."""
    return [name for name in FORMATS if module(name).recognise(Path(path))]


def load_foreign(path: str | Path, format: str = "auto", **options: Any) -> BaseAE:
    """Reads a model of another library as one of the zoo, in evaluation mode on the CPU: the same codes, the same reconstructions.

    Args:
        path: the folder that the library wrote, or the file of weights in it.
        format: "saelens", "dictionary_learning", "sparsify", "diffusers"; "auto" looks at the files.
        options: of the format, e.g. diffusers' input_shape, see `help(aezoo.interop.diffusers.load)`.
    Raises FileNotFoundError; TypeError for an option that the format does not have; ValueError, saying what the files are and what was expected, for another format, for what is damaged,
    and for options that have no counterpart here. No code of the files' is run."""
    if format != "auto":
        choice("format", format, ["auto", *FORMATS])
    path = Path(path).expanduser()
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no file or folder {str(path)!r} (a model on a hub is downloaded first).{nearest(path.name, beside)}"
        )
    found = recognised(path)
    if format == "auto":
        if len(found) > 1:
            raise ValueError(f"{path} looks like {' and '.join(found)} at once; pass format= to say which is meant")
        if not found:
            raise ValueError(f"{path} is of no known format: {_what(path)}. {_expected()}")
        format = found[0]
    elif format not in found:
        raise ValueError(f"{path} is no {format}: {_what(path)}. {_expected(format)}")
    reader = module(format).load
    _check_options(reader, options, f"format {format!r} reads")
    return reader(path, **options)


def save_foreign(model: BaseAE, path: str | Path, format: str, **options: Any) -> Path:
    """Writes a model as another library's, in a folder; returns the folder. What that library loads gives the same codes and the
    same reconstructions.

    Args: `options`: of the format, e.g. diffusers' scaling_factor, see `help(aezoo.interop.diffusers.save)`.
    Raises TypeError if `model` is none of ours, or for an option that the format does not have; ValueError for a model or an option that the format cannot hold, and for a folder
    that holds a model of another format."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be one of the zoo, a BaseAE; got {type(model).__name__}")
    writer = module(format)
    _check_options(writer.save, options, f"format {format!r} writes")
    path = Path(path).expanduser()
    if path.is_file():
        raise ValueError(f"{path} is a file; {format} is written into a folder ({writer.FILES})")
    others = [name for name in recognised(path) if name != format] if path.is_dir() else []
    others += ["aezoo's own"] if _is_ours(path) else []
    if others:
        raise ValueError(f"{path} holds a model of {' and '.join(others)}; choose another folder")
    return writer.save(model, path, **options)


def _check_options(function: Any, options: Mapping[str, Any], what: str) -> None:
    """Raises TypeError for a keyword that `function` does not take."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for key in options:
        if key not in allowed:
            raise TypeError(
                f"{what} with no option {key!r}; allowed: {', '.join(allowed) or 'none'}.{nearest(key, allowed)}"
            )


def _expected(format: str | None = None) -> str:
    names = [format] if format else list(FORMATS)
    return "Expected: " + "; ".join(f"{name}: {module(name).FILES}" for name in names)


def _what(path: Path) -> str:
    """What a file or folder is, or what it holds."""
    found = recognised(path)
    if found:
        return f"it is {' and '.join(found)} (pass format={found[0]!r} or 'auto')"
    folder = path if path.is_dir() else path.parent
    if _is_ours(folder):
        return "it is a model of aezoo's own (use aezoo.from_pretrained)"
    if path.is_file():
        return f"it is a file {path.name!r}" + _keys(path)
    names = sorted(p.name for p in path.iterdir())
    inner = [p.name for p in sorted(path.iterdir()) if p.is_dir() and recognised(p)]
    if inner:
        kind = recognised(path / inner[0])[0]
        return f"it is a folder of models, the first of them {inner[0]!r} ({kind}): pass one of them"
    return "it is a folder that holds " + (", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing")


def _is_ours(folder: Path) -> bool:
    from ..storage import read_json

    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        return False
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        return False
    return isinstance(config, dict) and {"format", "model", "args"} <= set(config)


def _keys(path: Path) -> str:
    """with the keys 'a', 'b', where a file is safetensors."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(str(path), framework="pt") as f:
            names = [repr(k) for k in f.keys()]  # noqa: SIM118
    except (SafetensorError, OSError):
        return ", damaged or no safetensors"
    return f" with the keys {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
