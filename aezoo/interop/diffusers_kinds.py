"""Which of diffusers' classes is which model here, and how the sizes in a config and a model's keywords say the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..backbones import Resnet, Tiny
from ..registry import choice

VERSION = "0.42.1"  # of diffusers, whose defaults these are
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")  # without and with attention after every block
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


class Kind(NamedTuple):
    """One of diffusers' classes."""

    model: str
    """The name that it has here."""
    sizes: dict[str, Any]
    """Keys of its config that say what the network computes, with its defaults."""
    use: dict[str, Any]
    """Keys about the use of the code and of the network, with its defaults."""
    read: Callable[[dict[str, Any]], dict[str, Any]]
    """`sizes` -> keywords of the model here. Raises ValueError for what has no counterpart."""
    write: Callable[[Any], dict[str, Any]]
    """Model -> `sizes`. Raises ValueError for what has no counterpart."""
    defaults: dict[str, Any]
    """Keywords of the model here that a file says nothing about, for one that is read."""


def check_size(key: str, value: Any, default: Any) -> None:
    """Raises ValueError unless `value` is of the kind that `default` is."""

    def like(v: Any, d: Any) -> bool:
        return type(v) is type(d) and (not isinstance(v, int) or isinstance(v, bool) or v >= 1)

    if isinstance(default, list):
        fine = isinstance(value, list) and len(value) > 0 and all(like(v, default[0]) for v in value)
    elif key == "sample_size":
        fine = like(value, 1) or (isinstance(value, list) and len(value) == 2 and all(like(v, 1) for v in value))
    else:
        fine = like(value, 1 if default is None else default) or (value is None and default is None)
    if not fine:
        raise ValueError(f"{key}={value!r} makes no sense; it is something like {default!r}")


def check_use(key: str, value: Any, latent_dim: int) -> None:
    """Raises ValueError unless `value` can be that of a key about the code's use."""

    def finite(v: Any) -> bool:
        return isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)

    if key in ("latents_mean", "latents_std"):
        fine = value is None or (
            isinstance(value, (list, tuple)) and len(value) == latent_dim and all(map(finite, value))
        )
        allowed = f"None or {latent_dim} numbers, one for each channel of the code"
    elif key in ("force_upcast", "lookup_from_codebook"):
        fine, allowed = isinstance(value, bool), "True or False"
    else:
        fine = finite(value) or (value is None and key == "shift_factor")
        allowed = "a number"
    if not fine:
        raise ValueError(f"{key}={value!r} must be {allowed}")


def _read_resnet(sizes: dict[str, Any]) -> dict[str, Any]:
    """`sizes` of the network of AutoencoderKL and VQModel -> keywords here."""
    widths, groups = sizes["block_out_channels"], sizes["norm_num_groups"]
    down, up = sizes["down_block_types"], sizes["up_block_types"]
    if sizes["in_channels"] != sizes["out_channels"]:
        raise ValueError(
            f"in_channels={sizes['in_channels']!r} and out_channels={sizes['out_channels']!r} differ; models here return what they take"
        )
    choice("act_fn", sizes["act_fn"], ["silu", "swish"])
    choice("norm_type", sizes.get("norm_type", "group"), ["group"])
    if not len(widths) == len(down) == len(up):
        raise ValueError(
            f"block_out_channels={widths!r}, down_block_types={down!r} and up_block_types={up!r} must be as many"
        )
    for key, types, known in (("down_block_types", down, DOWN), ("up_block_types", up, UP)):
        for t in types:
            choice(key, t, known)
    attention = [i for i, t in enumerate(down) if t == DOWN[1]]
    if attention != sorted(len(up) - 1 - i for i, t in enumerate(up) if t == UP[1]):
        raise ValueError(f"down_block_types={down!r} and up_block_types={up!r} have attention on different levels")
    for width in widths:
        if width % groups:
            raise ValueError(f"norm_num_groups={groups!r} must divide the channels of every level, {width} too")
    backbone = {
        "name": "resnet",
        "widths": list(widths),
        "blocks": sizes["layers_per_block"],
        "groups": groups,
        "attention": bool(sizes["mid_block_add_attention"]),
        "attention_levels": attention,
    }
    return {"channels": sizes["in_channels"], "latent_dim": sizes["latent_channels"], "backbone": backbone}


def _write_resnet(model: Any) -> dict[str, Any]:
    backbone = model.backbone
    if type(backbone) is not Resnet:
        raise ValueError(
            f"backbone={backbone.name!r} has no counterpart in diffusers; {model.name} needs 'resnet(widths=..., blocks=..., groups=...)'"
        )
    groups = {
        m.num_groups for part in (model.encoder, model.decoder) for m in part.modules() if isinstance(m, nn.GroupNorm)
    }
    if len(groups) > 1:
        common = max(g for g in range(1, 33) if math.gcd(*backbone.widths) % g == 0)
        raise ValueError(
            f"the norms of this model have {' and '.join(map(str, sorted(groups)))} groups, and diffusers knows one norm_num_groups for "
            f"all; with widths={backbone.widths} a model of backbone='resnet(..., groups={common})' can be written"
        )
    levels, attention = range(len(backbone.widths)), backbone.options["attention_levels"]
    return {
        "block_out_channels": list(backbone.widths),
        "down_block_types": [DOWN[i in attention] for i in levels],
        "up_block_types": [UP[i in attention] for i in reversed(levels)],
        "layers_per_block": backbone.options["blocks"],
        "norm_num_groups": groups.pop(),
        "mid_block_add_attention": backbone.options["attention"],
        "latent_channels": model.inner_dim or model.latent_dim,
    }


def _write_kl(model: Any) -> dict[str, Any]:
    if model.inner_dim not in (None, model.latent_dim):
        raise ValueError(
            f"inner_dim={model.inner_dim} and latent_dim={model.latent_dim} differ; AutoencoderKL has one latent_channels for both"
        )
    sizes = _write_resnet(model)
    return {**sizes, **{f"use_{n}": not _identity(getattr(model, n)) for n in ("quant_conv", "post_quant_conv")}}


def _identity(conv: nn.Module) -> bool:
    weight: Any = conv.weight
    bias: Any = conv.bias
    return not bias.any() and torch.equal(weight, nn.init.dirac_(torch.empty_like(weight)))


def _read_vq(sizes: dict[str, Any]) -> dict[str, Any]:
    args = _read_resnet(sizes)
    dim = sizes["latent_channels"] if sizes["vq_embed_dim"] is None else sizes["vq_embed_dim"]
    inner = {"inner_dim": args["latent_dim"]} if dim != args["latent_dim"] else {}
    return {**args, **inner, "latent_dim": dim, "num_codes": sizes["num_vq_embeddings"]}


def _write_vq(model: Any) -> dict[str, Any]:
    return {**_write_resnet(model), "num_vq_embeddings": model.num_codes, "vq_embed_dim": model.latent_dim}


def _read_tiny(sizes: dict[str, Any]) -> dict[str, Any]:
    down, up = sizes["num_encoder_blocks"], sizes["num_decoder_blocks"]
    widths = {*sizes["encoder_block_out_channels"], *sizes["decoder_block_out_channels"]}
    blocks, levels = down[-1], len(down) - 1
    if len(widths) != 1 or levels < 1 or down != [1, *[blocks] * levels] or up != [*[blocks] * levels, 1]:
        shown = {k: sizes[k] for k in TINY if k.endswith(("blocks", "channels")) and "block" in k}
        raise ValueError(
            f"{shown} has no counterpart here: it needs one width everywhere, num_encoder_blocks=(1, b, b, ...) and "
            "num_decoder_blocks=(b, ..., b, 1)"
        )
    if sizes["in_channels"] != sizes["out_channels"]:
        raise ValueError(
            f"in_channels={sizes['in_channels']!r} and out_channels={sizes['out_channels']!r} differ; models here return what they take"
        )
    choice("act_fn", sizes["act_fn"], ["relu"])
    choice("upsample_fn", sizes["upsample_fn"], ["nearest"])
    if sizes["upsampling_scaling_factor"] != 2:
        raise ValueError(f"upsampling_scaling_factor={sizes['upsampling_scaling_factor']!r} must be 2")
    backbone = {"name": "tiny", "width": widths.pop(), "levels": levels, "blocks": blocks, "signed": True}
    return {"channels": sizes["in_channels"], "latent_dim": sizes["latent_channels"], "backbone": backbone}


def _write_tiny(model: Any) -> dict[str, Any]:
    backbone = model.backbone
    if type(backbone) is not Tiny:
        raise ValueError(
            f"backbone={backbone.name!r} has no counterpart in diffusers; {model.name} needs 'tiny(signed=True)'"
        )
    blocks, widths = [backbone.blocks] * backbone.levels, [backbone.width] * (backbone.levels + 1)
    return {
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "num_encoder_blocks": [1, *blocks],
        "num_decoder_blocks": [*blocks, 1],
        "latent_channels": model.latent_dim,
    }


RESNET = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": [DOWN[0]],
    "up_block_types": [UP[0]],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "mid_block_add_attention": True,
}
TINY = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": [64] * 4,
    "decoder_block_out_channels": [64] * 4,
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "latent_channels": 4,
    "upsampling_scaling_factor": 2,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
}
KINDS = {
    "AutoencoderKL": Kind(
        "autoencoder_kl",
        {**RESNET, "use_quant_conv": True, "use_post_quant_conv": True},
        {
            "scaling_factor": 0.18215,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
            "force_upcast": True,
        },
        _read_resnet,
        _write_kl,
        {"logvar": "cut"},
    ),
    "VQModel": Kind(
        "vqgan",
        {**RESNET, "latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None, "norm_type": "group"},
        {"scaling_factor": 0.18215, "lookup_from_codebook": False, "force_upcast": False},
        _read_vq,
        _write_vq,
        {"codebook": "gradient", "init": "random", "revive": 0.0, "gan_weight": 0.0, "feature_weight": 0.0},
    ),
    "AutoencoderTiny": Kind(
        "tiny_ae",
        TINY,
        {
            "latent_magnitude": 3,
            "latent_shift": 0.5,
            "force_upcast": False,
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
        },
        _read_tiny,
        _write_tiny,
        {},
    ),
}
