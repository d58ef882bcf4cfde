"""Checkpoints that survive a crash at any moment.

    RUN/checkpoints/step-000000120/state.safetensors   every tensor that the next step depends on
                                   state.json          the rest
                                   manifest.json       size and sha256 of the other two, written last

A checkpoint is made in a folder with a temporary name, each file synchronised to the disk, and then renamed: it is there whole or
not at all. The newest `keep` stay; one that is damaged nevertheless is passed over for the one before.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage import read_json, read_tensors, sha256, sync, write_json, write_tensors

FORMAT = 2
FILES = ("state.safetensors", "state.json")
NAME = re.compile(r"step-(\d+)(-again)*")
KEYS = ("step", "stage", "row_due", "used_lr", "fixed", "precision", "hardware", "model", "optimizer", "rows", "best_row", "top",
        "stale", "patience_best", "plateau", "interval", "guard")  # fmt: skip


class Checkpoints:
    """Those of one run folder, oldest first in `paths`."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        there = (p for p in self.folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink())
        return sorted(there, key=lambda p: (int(NAME.fullmatch(p.name)[1]), p.name))  # type: ignore[index]

    def newest_step(self) -> int:
        """The step that the newest checkpoint's name says; -1 if there is none."""
        paths = self.paths()
        return int(NAME.fullmatch(paths[-1].name)[1]) if paths else -1  # type: ignore[index]

    def write(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Raises OSError if the disk is full or gone; what was there before is untouched then."""
        if not self.folder.is_dir():
            self.folder.mkdir()
            sync(self.folder.parent)
        for left in self.folder.glob(".*"):  # of a process that was killed while writing
            shutil.rmtree(left, ignore_errors=True)
        path = self.folder / f"step-{step:09d}"
        while (
            path.exists()
        ):  # the same step again, with its row done: beside the old one, which stays until this is whole
            path = path.with_name(f"{path.name}-again")
        making = self.folder / f".{path.name}.{os.getpid()}"
        try:
            making.mkdir()
            write_tensors(making / FILES[0], tensors)
            write_json(making / FILES[1], state)
            listed = {
                name: {"bytes": (making / name).stat().st_size, "sha256": sha256(making / name)} for name in FILES
            }
            write_json(making / "manifest.json", {"format": FORMAT, "step": step, "files": listed})
            os.rename(making, path)
            sync(self.folder)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def newest(self) -> tuple[dict[str, Any], dict[str, Tensor], list[str]] | None:
        """(state, tensors, what was passed over) of the newest intact checkpoint; None if there is none at all.

        Raises ValueError if there are some and all are damaged."""
        said: list[str] = []
        for path in reversed(self.paths()):
            try:
                state, tensors = read(path)
            except (ValueError, OSError) as error:
                said.append(f"checkpoint {path.name} is passed over: {error}")
                continue
            for damaged in said:
                name = damaged.split()[1]
                aside = self.folder / f"damaged-{name}"
                while aside.exists():
                    aside = aside.with_name(f"{aside.name}-again")
                os.rename(self.folder / name, aside)
            return state, tensors, said
        if said:
            raise ValueError(f"no intact checkpoint in {self.folder}: {'; '.join(said)}")
        return None


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One checkpoint, checked against its manifest. Raises ValueError for what is missing, damaged, foreign or a link."""
    if path.is_symlink():
        raise ValueError("it is a symbolic link")
    for name in (*FILES, "manifest.json"):
        if (path / name).is_symlink():
            raise ValueError(f"{name} is a symbolic link")
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
    manifest = read_json(path / "manifest.json")
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(f"manifest.json has format {found!r}; this version reads {FORMAT}")
    for name in FILES:
        listed, file = manifest["files"].get(name), path / name
        if (
            not isinstance(listed, dict)
            or type(listed.get("bytes")) is not int
            or not isinstance(listed.get("sha256"), str)
        ):
            raise ValueError(f"manifest.json does not list {name} with its bytes and its sha256")
        if file.stat().st_size != listed["bytes"]:
            raise ValueError(f"{name} has {file.stat().st_size:,} bytes instead of {listed['bytes']:,}")
        if sha256(file) != listed["sha256"]:
            raise ValueError(f"{name} is not what was written: its sha256 differs")
    state = read_json(path / FILES[1])
    missing = [k for k in KEYS if k not in state] if isinstance(state, dict) else list(KEYS)
    if missing:
        raise ValueError(f"{FILES[1]} lacks {', '.join(missing)}")
    if state["step"] != manifest.get("step"):
        raise ValueError(f"manifest.json is of step {manifest.get('step')!r}, {FILES[1]} of step {state['step']!r}")
    return state, read_tensors(path / FILES[0])[0]
