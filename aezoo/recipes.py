"""Recipes: the YAML files of `configs/`, found in the repository and in the installed package alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .registry import nearest

SECTIONS = ("model", "data", "train")
SHORT = {"model": "name", "data": "source"}  # `model: vae` means `model: {name: vae}`


def folder() -> Path:
    """Where the recipes lie: inside the installed package, or at the top of the repository."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    return sorted(p.stem for p in folder().glob("*.yaml"))


def read(text: str | Path) -> dict[str, dict[str, Any]]:
    """A recipe by name, or a YAML file by path: {"model": {...}, "data": {...}, "train": {...}}.

    Raises FileNotFoundError for neither, ValueError for text that is no YAML or has other sections."""
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        if str(text) not in names():
            raise FileNotFoundError(
                f"no recipe {str(text)!r}; recipes: {', '.join(names())}; or a .yaml file.{nearest(str(text), names())}"
            )
        path = folder() / f"{text}.yaml"
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no file {str(path)!r}.{nearest(path.name, [*beside, *(f'{n}.yaml' for n in names())])}"
        )
    import yaml

    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{path} is no valid YAML: nested too deeply") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} must hold the sections {', '.join(SECTIONS)}; it holds {type(loaded).__name__}")
    config: dict[str, dict[str, Any]] = {}
    for section, value in loaded.items():
        if section not in SECTIONS:
            raise ValueError(
                f"{path}: no section {section!r}; allowed: {', '.join(SECTIONS)}.{nearest(str(section), SECTIONS)}"
            )
        if isinstance(value, str) and section in SHORT:
            value = {SHORT[section]: value}
        if not isinstance(value, dict):
            raise ValueError(f"{path}: section {section!r} must hold 'key: value' lines; it holds {value!r}")
        config[section] = value
    return config


def _loader() -> Any:
    """YAML without objects; 1e-4 is a number, which YAML 1.1 reads as text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    exponent = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    return Loader
