"""What a codec is in files, and which model it belongs to: checksums of weights and tables, and tables that were read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import BaseAE
from ..registry import plain
from .aez import HASH, Container
from .ans import TOTAL, UNIFORM
from .exact import CURVES
from .latent_tables import groups_of, indexed


def model_hash(model: BaseAE) -> bytes:
    """sha256 of a model's name, keywords and weights; a prior that was fitted to its codes does not count."""
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("prior.")}
    try:
        keywords = plain(model.config)
    except TypeError:
        keywords = {}  # modules of the user's own; their weights count
    return digest_of(kept, {"model": model.name, "args": keywords})


def digest_of(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def check_tensors(tensors: dict[str, Tensor], settings: dict[str, Any], model: BaseAE, path: Path) -> None:
    """Raises ValueError unless they are those of a codec of this model."""
    lossless = settings.get("lossless")
    wanted = {*CURVES, "edges"} if lossless else {"lows", "counts", "ends"} | (set() if indexed(model) else {"steps"})
    if not isinstance(lossless, bool) or set(tensors) != wanted:
        raise ValueError(
            f"{path} and its tables do not make a codec of {model.name}: tables {sorted(tensors)}, wanted {sorted(wanted)}"
        )
    if lossless:
        sound = tensors["edges"].shape == (UNIFORM + 1,) and len({tensors[k].shape for k in CURVES}) == 1
    else:
        ends, groups = tensors["ends"].tolist(), int(groups_of(model).max()) + 1
        sizes = [b - a for a, b in zip([0, *ends], ends)]
        same = {len(tensors[k]) for k in wanted - {"counts"}} == {groups}
        sound = same and min(sizes) >= 2 and sum(sizes) == len(tensors["counts"]) and int(tensors["counts"].min()) >= 1
        sound = sound and all(int(part.long().sum()) == TOTAL for part in tensors["counts"].split(sizes))
    if not sound:
        raise ValueError(f"{path} is damaged: its tables do not fit together, or not to this {model.name}")


def check_own(c: Container, codec: Any, what: str) -> None:
    """Raises ValueError, naming `what`, unless a file was written by this codec, and holds what its model makes."""
    model = codec.model
    if c.model != model_hash(model)[:HASH]:
        raise ValueError(
            f"{what}: written with another model's weights ({c.model.hex()}) than this {model.name}'s "
            f"({model_hash(model)[:HASH].hex()})"
        )
    if c.lossless != codec.lossless:
        kind = "lossless" if c.lossless else "lossy"
        raise ValueError(
            f"{what}: written by a {kind} codec, and this is none: Codec.load(folder, lossless={c.lossless})"
        )
    if c.codec != codec.hash[:HASH]:
        raise ValueError(
            f"{what}: written with another codec of this model (tables {c.codec.hex()}, here {codec.hash[:HASH].hex()}); it needs "
            "the codec.json and codec.safetensors it was written with"
        )
    mine = tuple(model.input_shape)
    fits = c.shape == mine or (
        c.picture is not None and not codec.lossless and len(c.shape) == 3 and c.shape[0] == mine[0]
    )
    if not fits or c.samples < 1 or (c.lossless and c.together < 1):
        raise ValueError(f"{what}: {c.samples} samples of shape {c.shape}, but this model takes {mine}")
    if c.picture and c.samples != -(-c.picture[0] // c.shape[-2]) * -(-c.picture[1] // c.shape[-1]):
        raise ValueError(f"{what}: {c.samples} tiles of {c.shape} do not make a picture of {c.picture}")
