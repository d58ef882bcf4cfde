"""The autoencoders of latent diffusion and taming-transformers, as files of weights in their layout; read only.

    encoder.down.LEVEL.block.I, .attn.I, .downsample.conv   decoder.up.LEVEL.block.I, .attn.I, .upsample.conv   0: the largest map
    encoder.mid.block_1, .attn_1, .block_2                  the same in the decoder; q, k, v, proj_out are 1x1 convolutions
    quant_conv, post_quant_conv, quantize.embedding         the last in vector-quantised ones only

alone, or behind "first_stage_model." within a whole latent diffusion model. Sizes are those of the weights; the norms have 32 groups.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..storage import read_tensors

GROUPS = 32  # of every norm, in all of their models
PREFIXES = ("first_stage_model.", "vae.", "")
SCALE = "scale_factor"  # of the code, for the diffusion model; noted only where it was measured on data
FIRST = "encoder.down.0.block.0.conv1.weight"  # what every one has
PARTS = (
    "encoder.",
    "decoder.",
    "quant_conv.",
    "post_quant_conv.",
    "quantize.embedding.weight",
)  # the rest belongs to training
RENAMED = (
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


class Found(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    """By the names of diffusers."""
    args: dict[str, Any]
    """Keywords of the model here, and the pictures' "channels"."""
    quantised: bool
    absent: list[str]
    """Layers that it lacks, which then are the identity."""
    scale: float | None
    """What the code is multiplied by for the diffusion model, where the file says it."""


def recognise(path: Path) -> bool:
    """Whether the weights in a .safetensors file are such. Reads the names only."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as f:
            return _prefix(f.keys()) is not None
    except Exception:  # a damaged file is none of them
        return False


def read(path: Path) -> Found:
    """Raises ValueError if the file holds no such autoencoder."""
    first, _ = read_tensors(path, lambda name: name.endswith(FIRST))
    prefix = _prefix(first)
    if prefix is None:
        raise ValueError(
            f"{path} is no autoencoder of latent diffusion: it holds no {FIRST}, nor one behind {PREFIXES[0]!r}"
        )
    parts = tuple(prefix + part for part in PARTS)
    found, _ = read_tensors(path, lambda name: name.startswith(parts) or name == SCALE)
    scale = found.pop(SCALE, None)
    held = {name.removeprefix(prefix): value for name, value in found.items()}
    levels = _count(held, "encoder.down.{}.block.0.conv1.weight")
    tensors = {}
    for key, value in held.items():
        name = rename(key, levels)
        linear = ".attentions." in name and value.dim() > 2
        tensors[name] = value.reshape(value.shape[:2]) if linear else value
    return Found(tensors, *_sizes(held, levels, path), None if scale is None or scale.numel() != 1 else float(scale))


def rename(key: str, levels: int) -> str:
    """A name of theirs, without a prefix -> diffusers' name."""
    key = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", key)
    key = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.", key)
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    return key


def _sizes(held: Mapping[str, Tensor], levels: int, path: Path) -> tuple[dict[str, Any], bool, list[str]]:
    """Keywords of the model here, whether it is quantised, and which layers are absent."""
    quantised = "quantize.embedding.weight" in held
    absent = [layer for layer in ("quant_conv", "post_quant_conv") if f"{layer}.weight" not in held]
    params = 1 if quantised else 2
    try:
        inner = len(held["encoder.conv_out.weight"]) // params
        channels = held["encoder.conv_in.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"{path} is no whole autoencoder: {error.args[0]} is missing") from None
    dim = inner if "quant_conv" in absent else len(held["quant_conv.weight"]) // params
    args = {
        "channels": channels,
        "latent_dim": dim,
        "backbone": {
            "name": "resnet",
            "widths": [len(held[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)],
            "blocks": _count(held, "encoder.down.0.block.{}.conv1.weight"),
            "groups": GROUPS,
            "attention": "encoder.mid.attn_1.q.weight" in held,
            "attention_levels": [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in held],
        },
        **({"inner_dim": inner} if inner != dim else {}),
        **({"num_codes": len(held["quantize.embedding.weight"])} if quantised else {}),
    }
    return args, quantised, absent


def _prefix(keys: Collection[str]) -> str | None:
    """What stands before the names of the autoencoder's weights."""
    return next((p for p in PREFIXES if p + FIRST in keys), None)


def _count(held: Collection[str], name: str) -> int:
    """How many of the names "...{}..." are there, from 0 on."""
    n = 0
    while name.format(n) in held:
        n += 1
    return n
