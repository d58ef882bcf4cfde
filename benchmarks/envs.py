"""Environments of the benchmark: torch once, and one small environment per peer that sees it.

`base` holds torch and torchvision. Every other environment has a .pth file that puts base's site-packages behind its own, so all
sides run the same torch, and what its folder weighs is what installing that package adds to torch. A peer that asks for a torch
that base does not have gets its own, in its own folder; the versions of every side are recorded in its results.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

BASE = ["torch", "torchvision"]
PACKAGES = {
    "aezoo": [str(ROOT)],
    "pythae": ["pythae==0.1.2"],
    "lightning": ["pytorch-lightning==2.6.6"],
    "keras-torch": ["keras==3.15.1"],
    "keras-jax": ["keras==3.15.1", "jax"],
    "pyod": ["pyod==3.6.7", "tqdm"],
    "sparsify": ["eai-sparsify==1.3.3"],
    "saelens": ["sae-lens==6.54.12"],
    "dictionary_learning": ["dictionary-learning==0.1.0"],
    "bm3d": ["bm3d==4.0.3"],
}
ALONE = ("base", "bm3d")  # environments that see no other's torch


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages(folder: Path) -> Path:
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(
        subprocess.run([python_of(folder), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    )


def size_of(folder: Path) -> float:
    """MB of the files below a folder, compiled Python left out (pip writes it, and it depends on what was imported)."""
    return sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc") / 1e6


def pip(folder: Path, *arguments: str) -> None:
    command = [str(python_of(folder)), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise RuntimeError(f"pip install {' '.join(arguments)}: {' '.join(lines[:2])[:300]}")


def version_of(folder: Path, package: str) -> str:
    """With its local label: 2.13.0+cpu."""
    ask = f"import {package}; print({package}.__version__)"
    return subprocess.run([python_of(folder), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def new_venv(folder: Path) -> float:
    """Makes an environment; returns its size before anything is installed (pip itself)."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    return size_of(site_packages(folder))


def make(name: str, envs: Path, torch: list[str] | None = None) -> dict[str, Any]:
    """Makes the environment `name` below `envs` unless it is there; returns {"python", "mb", "packages"}.

    `torch`: what to give pip for base, where it is not to be the newest; the others are held to base's torch. aezoo's own is installed anew each time, without its dependencies, so that it is the checkout of now. Raises RuntimeError
    with pip's message."""
    folder, note = envs / name, envs / name / "made.json"
    made: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else {}
    wanted = (torch or made.get("packages") or BASE) if name == "base" else PACKAGES[name]
    if made.get("packages") != wanted:
        print(f"environment {folder}: {' '.join(wanted)}", flush=True)
        empty = new_venv(folder)
        if name not in ALONE:
            behind = site_packages(envs / "base")
            (site_packages(folder) / "torch_of_base.pth").write_text(f"{behind}\n")
        same_torch = []
        if name not in ALONE:
            same_torch = ["-c", str(envs / "constraints.txt")]
            (envs / "constraints.txt").write_text(f"torch=={version_of(envs / 'base', 'torch')}\n")
        newest = [w.split("==")[0] for w in wanted]
        for attempt in ([*wanted, *same_torch], wanted, newest):
            try:
                pip(folder, *attempt)
                break
            except RuntimeError as error:
                if attempt == newest:
                    raise
                print(
                    f"  {error}\n  trying without what it was held to: base's torch, then the pinned release",
                    flush=True,
                )
        made = {"packages": wanted, "mb": round(size_of(site_packages(folder)) - empty, 1)}
        note.write_text(json.dumps(made))
    elif name == "aezoo":
        pip(folder, "--no-deps", "--force-reinstall", *wanted)
    return {**made, "python": str(python_of(folder))}
