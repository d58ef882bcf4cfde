"""sparsify (package eai-sparsify): TopK sparse autoencoders and transcoders.

A folder with cfg.json and sae.safetensors: encoder.weight (K, D), encoder.bias (K,), W_dec (K, D), b_dec (D,), with a skip W_skip (D, D).

    transcode=False                  topk_sae; b_dec is taken from x
    transcode=True                   transcoder; it is not
    skip_connection=True             transcoder(skip=True); what transcode=False takes from x is folded into the bias

`activation="groupmax"` is refused, and so is `multi_topk=True`, with which their encode keeps k latents, but their forward
reconstructs from 4 k.

Legend: D data dims, K latents, k of which are kept; W_dec decoder, b_dec its bias.
"""

from __future__ import annotations

from pathlib import Path

from ..base import BaseAE
from ..storage import read_tensors, write_json, write_tensors
from .parts import Parts, assemble, checked, common_dtype, configuration, disassemble, option

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES = f"a folder with {CONFIG} and {WEIGHTS}"
KEYS = {"encoder.weight": "n d", "encoder.bias": "n", "W_dec": "n d", "b_dec": "d"}


def recognise(path: Path) -> bool:
    return path.name == WEIGHTS if path.is_file() else (path / WEIGHTS).is_file()


def load(path: Path) -> BaseAE:
    """See the module. Raises ValueError."""
    folder = path if path.is_dir() else path.parent
    where = folder / CONFIG
    config = configuration(where, "sparsify")
    activation = option(config, "activation", str, where, "topk")
    if activation != "topk":
        raise ValueError(f"{where}: activation={activation!r} has no counterpart here; supported: 'topk'")
    if option(config, "multi_topk", bool, where, False):
        raise ValueError(
            f"{where}: multi_topk=True has no counterpart here: sparsify then encodes with k latents, but reconstructs from 4 k; supported: "
            "False, which written there gives the code of k latents and its reconstruction"
        )
    dims = option(config, "d_in", int, where)
    latents = option(config, "num_latents", int, where, 0) or dims * option(config, "expansion_factor", int, where, 32)
    transcode = option(config, "transcode", bool, where, False)
    skip = option(config, "skip_connection", bool, where, False)
    k = option(config, "k", int, where, 32)
    keys = {**KEYS, "W_skip": "d d"} if skip else KEYS
    found = checked(
        read_tensors(folder / WEIGHTS)[0], keys, {"d": dims, "n": latents}, "sparsify model", folder / WEIGHTS
    )
    dtype = common_dtype(list(found.values()), folder / WEIGHTS)
    found = {name: v.to(dtype) for name, v in found.items()}
    name = "transcoder" if transcode or skip else "topk_sae"
    weights = (found["encoder.weight"], found["W_dec"], found["encoder.bias"], found["b_dec"])
    return assemble(Parts(name, *weights, centred=not transcode, k=k, skip=found.get("W_skip")), where)


def save(model: BaseAE, path: Path) -> Path:
    """See the module. Raises ValueError for models other than topk_sae and transcoder."""
    parts = disassemble(model, "sparsify")
    if parts.model not in ("topk_sae", "transcoder"):
        raise ValueError(
            f"{parts.model} has no counterpart in sparsify, which keeps the k largest; supported: topk_sae, transcoder"
        )
    found = {
        "encoder.weight": parts.encoder,
        "encoder.bias": parts.bias,
        "W_dec": parts.decoder,
        "b_dec": parts.offset,
    }
    if parts.skip is not None:
        found["W_skip"] = parts.skip
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, parts.latents // parts.dims),  # theirs where num_latents is 0
        "normalize_decoder": parts.unit_rows(1e-3),
        "num_latents": parts.latents,
        "k": parts.k,
        "multi_topk": False,
        "skip_connection": parts.skip is not None,
        "transcode": not parts.centred,
        "d_in": parts.dims,
    }
    write_tensors(path / WEIGHTS, found)
    write_json(path / CONFIG, config)
    return path
