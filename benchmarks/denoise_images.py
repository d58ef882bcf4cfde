"""Noisy images of `benchmarks/denoise.py`, written once and read by every side, and how what a side made of them is scored."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aezoo.data.images import read_image
from aezoo.randomness import mix_seed

SIGMAS = (15, 25, 50)


class Shot(NamedTuple):
    """One noisy image."""

    group: str
    sigma: int
    name: str
    clean: Tensor
    """(H, W) in [0, 1]."""

    @property
    def place(self) -> Path:
        """Below the folder of a side."""
        return Path(self.group, str(self.sigma), f"{self.name}.npy")


def shots(groups: dict[str, list[Path]]) -> list[Shot]:
    """Every image of every group at every sigma."""
    clean = {p: read_image(p, channels=1)[0].float() / 255 for paths in groups.values() for p in paths}
    return [Shot(g, sigma, p.stem, clean[p]) for g, paths in groups.items() for sigma in SIGMAS for p in paths]


def noisy(shot: Shot, seed: int) -> Tensor:
    """clean + sigma/255 eps, (H, W) float32, neither clipped nor rounded; eps is a function of seed, set, name and sigma alone."""
    name = int.from_bytes(f"{shot.group}/{shot.name}".encode(), "big")
    draw = torch.Generator().manual_seed(mix_seed(seed, shot.sigma, name))
    return shot.clean + shot.sigma / 255 * torch.randn(shot.clean.shape, generator=draw)


def write_noisy(work: Path, all_shots: list[Shot], seed: int) -> None:
    """Writes WORK/noisy. Raises ValueError if other noise lies there, whose results would be taken for these."""
    for shot in all_shots:
        path, y = work / "noisy" / shot.place, noisy(shot, seed).numpy()
        if path.is_file():
            if not np.array_equal(np.load(path), y):
                raise ValueError(f"{path} holds other noise (another seed or another image?); take another --work")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, y)


def pictured(paths: list[Path], edge: int = 256, sigma: int = 25) -> list[Shot]:
    """The middles of photographs, for the picture."""
    found = []
    for path in paths:
        whole = read_image(path, channels=1)[0].float() / 255
        top, left = ((s - min(edge, s)) // 2 for s in whole.shape)
        found.append(Shot("picture", sigma, path.stem, whole[top : top + edge, left : left + edge].clone()))
    return found
