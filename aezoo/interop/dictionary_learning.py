"""dictionary_learning (package dictionary-learning).

A folder with ae.pt, the state of one of its classes, and config.json, whose "trainer" names the class:

    AutoEncoder               l1_sae, with unit rows: `load_dictionary` moves the rows' norms into the encoder, and so is it done here
    AutoEncoderNew            l1_sae(recipe="april2024")
    GatedAutoEncoder          gated_sae
    JumpReluAutoEncoder       jump_relu_sae; it takes no b_dec from x, which is folded into the bias
    AutoEncoderTopK           topk_sae
    BatchTopKSAE              batch_topk_sae
    MatryoshkaBatchTopKSAE    matryoshka_sae

Without config.json the keys say which; those of AutoEncoderTopK and BatchTopKSAE are the same, though. Checkpoints of training,
checkpoints/ae_1000.pt, are read, too. The .pt file is read by a restricted unpickler (`aezoo.convert`) that runs no code.

Legend: D data dims, K latents, k of which are kept, G groups.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import BaseAE
from ..convert import tensors_of
from ..registry import nearest
from ..storage import write_bytes, write_json
from .parts import Parts, assemble, checked, common_dtype, configuration, disassemble, kept, listing, option

CONFIG, WEIGHTS = "config.json", "ae.pt"
FILES = f"a folder with {CONFIG} and {WEIGHTS}"

LAYERS = {"encoder.weight": "n d", "decoder.weight": "d n"}
MATRICES = {"W_enc": "d n", "b_enc": "n", "W_dec": "n d", "b_dec": "d"}
TOP_K = {**LAYERS, "encoder.bias": "n", "b_dec": "d", "k": "", "threshold": ""}
KEYS = {
    "AutoEncoder": {**LAYERS, "encoder.bias": "n", "bias": "d"},
    "AutoEncoderNew": {**LAYERS, "encoder.bias": "n", "decoder.bias": "d"},
    "GatedAutoEncoder": {**LAYERS, "decoder_bias": "d", "r_mag": "n", "gate_bias": "n", "mag_bias": "n"},
    "JumpReluAutoEncoder": {**MATRICES, "threshold": "n"},
    "AutoEncoderTopK": TOP_K,
    "BatchTopKSAE": TOP_K,
    "MatryoshkaBatchTopKSAE": {**MATRICES, "k": "", "threshold": "", "group_sizes": "g"},
}
NOT_WEIGHTS = ("k", "threshold", "group_sizes")
NAMES = ("layer", "lm_name", "submodule_name")  # of what it was trained on; kept in `model.origin`
TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
    "GatedAutoEncoder": "GatedSAETrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
}


def recognise(path: Path) -> bool:
    return path.name.startswith("ae") and path.suffix == ".pt" if path.is_file() else (path / WEIGHTS).is_file()


def load(path: Path) -> BaseAE:
    """See the module. Raises ValueError."""
    file = path / WEIGHTS if path.is_dir() else path
    where = file.parent / CONFIG
    if file.parent.name == "checkpoints" and not where.is_file():
        where = file.parent.parent / CONFIG
    found = tensors_of(file)[0]
    trainer = option(configuration(where, "dictionary_learning"), "trainer", dict, where) if where.is_file() else {}
    kind = option(trainer, "dict_class", str, where) if trainer else _by_keys(found, file)
    if kind not in KEYS:
        raise ValueError(
            f"{where}: dict_class={kind!r} has no counterpart here; supported: {', '.join(KEYS)}.{nearest(kind, KEYS)}"
        )
    size = {"d": option(trainer, "activation_dim", (int, type(None)), where, None)}
    size |= {"n": option(trainer, "dict_size", (int, type(None)), where, None)}
    found = checked(found, KEYS[kind], size, f"dictionary_learning {kind}", file)
    dtype = common_dtype([v for name, v in found.items() if name not in NOT_WEIGHTS], file)
    found = {
        name: v.clone() if name in NOT_WEIGHTS else v.to(dtype, copy=True) for name, v in found.items()
    }  # the file may go
    parts = _parts(found, kind)
    if parts.k is not None and option(trainer, "k", int, where, parts.k) != parts.k:
        raise ValueError(f"{where}: k={trainer['k']!r}, but {file} holds k={parts.k}")
    model = assemble(parts, file)
    names = {key: trainer[key] for key in NAMES if key in trainer}
    if names:
        model.origin = {"format": "dictionary_learning", "config": names}
    return model


def _by_keys(found: Mapping[str, Tensor], file: Path) -> str:
    """The class whose keys these are. Raises ValueError where it is none, or one of two."""
    kinds = [kind for kind, keys in KEYS.items() if keys.keys() == found.keys()]
    if len(kinds) > 1:
        raise ValueError(
            f"{file} is {' or '.join(kinds)}, which have the same keys; the {CONFIG} that says which is missing"
        )
    if not kinds:
        raise ValueError(
            f"{file} holds the keys {listing(found)}, which are those of no class of dictionary_learning; supported: {', '.join(KEYS)}"
        )
    return kinds[0]


def _parts(found: Mapping[str, Tensor], kind: str) -> Parts:
    if "W_enc" in found:
        parts = Parts("jump_relu_sae", found["W_enc"].T, found["W_dec"], found["b_enc"], found["b_dec"], False)
    else:
        bias = found["gate_bias" if kind == "GatedAutoEncoder" else "encoder.bias"]
        offset = next(found[name] for name in ("bias", "decoder.bias", "decoder_bias", "b_dec") if name in found)
        parts = Parts("l1_sae", found["encoder.weight"], found["decoder.weight"].T, bias, offset, True)
    if kind == "AutoEncoder":
        return parts if parts.unit_rows(1e-5) else parts.by_norms()
    if kind == "AutoEncoderNew":
        return replace(parts, centred=False)
    if kind == "GatedAutoEncoder":
        return replace(parts, model="gated_sae", log_scale=found["r_mag"], magnitude_bias=found["mag_bias"])
    if kind == "JumpReluAutoEncoder":
        return replace(parts, threshold=found["threshold"])
    parts = replace(parts, k=int(found["k"]), centred=True)
    if kind == "AutoEncoderTopK":
        return replace(parts, model="topk_sae")  # its threshold is for a use of its own
    if kind == "BatchTopKSAE":
        return replace(parts, model="batch_topk_sae", threshold=found["threshold"])
    groups = tuple(found["group_sizes"].tolist())
    return replace(parts, model="matryoshka_sae", threshold=found["threshold"], groups=groups)


# ------------------------------------------------------------------------------------------------------------------ write


def save(model: BaseAE, path: Path) -> Path:
    """See the module: an l1_sae whose rows are not unit vectors as AutoEncoderNew, so that `load_dictionary` leaves its code alone; a
    transcoder without a skip as AutoEncoderTopK. Raises ValueError for a transcoder with a skip."""
    parts = disassemble(model, "dictionary_learning")
    if parts.skip is not None:
        raise ValueError("transcoder with skip=True: dictionary_learning has no skip; supported: skip=False")
    kind, found = _state(parts)
    assert found.keys() == KEYS[kind].keys(), listing(found)
    trainer: dict[str, Any] = {
        "dict_class": kind,
        "trainer_class": TRAINERS[kind],
        "activation_dim": parts.dims,
        "dict_size": parts.latents,
        **({} if parts.k is None else {"k": parts.k}),
        **({} if parts.groups is None else {"group_sizes": list(parts.groups)}),
        **dict.fromkeys(NAMES),
        **kept(model, "dictionary_learning"),
    }
    path.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({name: v.detach().contiguous().clone() for name, v in found.items()}, buffer)
    write_bytes(path / WEIGHTS, buffer.getvalue())
    write_json(path / CONFIG, {"trainer": trainer})
    return path


def _state(parts: Parts) -> tuple[str, dict[str, Tensor]]:
    """(class, its state)."""
    if parts.model == "l1_sae":
        kind = "AutoEncoder" if parts.centred and parts.unit_rows(1e-5) else "AutoEncoderNew"
        parts = parts.centre(kind == "AutoEncoder")
    else:
        kind = {
            "gated_sae": "GatedAutoEncoder",
            "jump_relu_sae": "JumpReluAutoEncoder",
            "topk_sae": "AutoEncoderTopK",
            "transcoder": "AutoEncoderTopK",
            "batch_topk_sae": "BatchTopKSAE",
            "matryoshka_sae": "MatryoshkaBatchTopKSAE",
        }[parts.model]
        parts = parts.centre(kind != "JumpReluAutoEncoder")
    if "W_enc" in KEYS[kind]:
        found = {"W_enc": parts.encoder.T, "b_enc": parts.bias, "W_dec": parts.decoder, "b_dec": parts.offset}
    else:
        found = {"encoder.weight": parts.encoder, "decoder.weight": parts.decoder.T}
        found["gate_bias" if kind == "GatedAutoEncoder" else "encoder.bias"] = parts.bias
        name = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
        found[name.get(kind, "b_dec")] = parts.offset
    if kind == "GatedAutoEncoder":
        assert parts.log_scale is not None and parts.magnitude_bias is not None
        found |= {"r_mag": parts.log_scale, "mag_bias": parts.magnitude_bias}
    if kind == "JumpReluAutoEncoder":
        assert parts.threshold is not None
        found["threshold"] = parts.threshold
    if parts.k is not None:
        found["k"] = torch.tensor(parts.k, dtype=torch.int32)
        found["threshold"] = torch.tensor(-1.0) if parts.threshold is None else parts.threshold.float()
    if parts.groups is not None:
        found["group_sizes"] = torch.tensor(parts.groups)
    return kind, found
