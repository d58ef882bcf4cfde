"""SAELens (package sae-lens, the layout of its version 6; files of older versions are read, too).

A folder with cfg.json and sae_weights.safetensors: W_enc (D, K), b_enc (K,), W_dec (K, D), b_dec (D,); gated ones have b_gate, b_mag and
r_mag for b_enc, jumprelu ones threshold (K,), transcoders with a skip W_skip (D, D).

    architecture               here
    standard                   l1_sae
    topk                       topk_sae; rescale_acts_by_decoder_norm is folded into the weights
    jumprelu                   jump_relu_sae; batch_topk_sae or matryoshka_sae where `metadata` says that it was trained as one
    batchtopk, matryoshka_*    batch_topk_sae, matryoshka_sae (checkpoints of training; SAELens saves them as jumprelu for use)
    gated                      gated_sae
    transcoder, skip_*         transcoder with k = K, which is relu; of equal width on both sides

`apply_b_dec_to_input=False` is folded into the bias. With `reshape_activations="hook_z"` SAELens flattens heads; here x comes flat.
The metadata (names of model and hook, ...) is kept in `model.origin` and written again.
`normalize_activations` other than "none" is refused: it depends on each sample, or on a factor that the files do not hold.

Legend: D data dims, K latents; W_enc and W_dec encoder and decoder, b_enc and b_dec their biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import BaseAE
from ..registry import choice, nearest
from ..storage import read_tensors, write_json, write_tensors
from .parts import (
    DTYPES,
    Parts,
    assemble,
    checked,
    common_dtype,
    configuration,
    disassemble,
    dtype_name,
    kept,
    listing,
    option,
)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FILES = f"a folder with {CONFIG} and {WEIGHTS}"
VERSION = "6.54.12"  # of the layout that is written

PLAIN = {"W_enc": "d n", "b_enc": "n", "W_dec": "n d", "b_dec": "d"}
KEYS = {
    "standard": PLAIN,
    "topk": PLAIN,
    "jumprelu": {**PLAIN, "threshold": "n"},
    "batchtopk": {**PLAIN, "topk_threshold": ""},
    "matryoshka_batchtopk": {**PLAIN, "topk_threshold": ""},
    "gated": {"W_enc": "d n", "b_gate": "n", "b_mag": "n", "r_mag": "n", "W_dec": "n d", "b_dec": "d"},
    "transcoder": PLAIN,
    "skip_transcoder": {**PLAIN, "W_skip": "d d"},
}
OF_VERSION_5 = (
    "model_name",
    "hook_name",
    "hook_head_index",
    "prepend_bos",
    "context_size",
    "dataset_path",
    "neuronpedia_id",
)
BY_BATCH = ("batchtopk", "matryoshka_batchtopk")
REFUSED = {
    "abstopk": "its codes may be negative",
    "temporal": "it looks at several positions at once",
    "matching_pursuit": "it encodes by an iteration",
    "jumprelu_transcoder": "aezoo's transcoder has no thresholds",
    "jumprelu_skip_transcoder": "aezoo's transcoder has no thresholds",
}


def recognise(path: Path) -> bool:
    return path.name == WEIGHTS if path.is_file() else (path / WEIGHTS).is_file()


def load(path: Path) -> BaseAE:
    """See the module. Raises ValueError."""
    folder = path if path.is_dir() else path.parent
    where = folder / CONFIG
    config = _of_version_6(configuration(where, "SAELens"), where)
    architecture = option(config, "architecture", str, where)
    if architecture in REFUSED:
        raise ValueError(
            f"{where} describes architecture={architecture!r}, which has no counterpart here ({REFUSED[architecture]}); "
            f"supported: {', '.join(KEYS)}"
        )
    if architecture not in KEYS:
        raise ValueError(
            f"{where} describes architecture={architecture!r}, which is not known; supported: {', '.join(KEYS)}."
            f"{nearest(architecture, KEYS)}"
        )
    _check_options(config, where)
    dims = option(config, "d_in", int, where)
    out = option(config, "d_out", int, where, dims)
    if out != dims:
        raise ValueError(
            f"{where} describes a {architecture} from d_in={dims} to d_out={out}; aezoo's transcoder has the same width on both sides"
        )
    sizes = {"d": dims, "n": option(config, "d_sae", int, where)}
    kind = f"SAELens model of architecture {architecture!r}"
    found = checked(_tensors(folder / WEIGHTS), KEYS[architecture], sizes, kind, folder / WEIGHTS)
    dtype = _dtype(found, config, where)
    found = {k: v if k == "topk_threshold" else v.to(dtype) for k, v in found.items()}
    model = assemble(_parts(found, config, architecture, where), where)
    metadata = config.get("metadata")
    if isinstance(metadata, dict) and metadata:
        model.origin = {"format": "saelens", "config": {"metadata": metadata}}
    return model


def _of_version_6(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """The configuration in the words of version 6: older ones name the activation, and may leave out what version 6 always writes."""
    metadata = config.get("metadata")
    version = config.get("sae_lens_version") or (
        metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    )
    if version and int(re.match(r"\d*", str(version))[0] or 0) >= 6:  # type: ignore[index]
        return config
    config = {"architecture": "standard", "dtype": "float32", **config}
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if activation == "topk":
        more = option(config, "activation_fn_kwargs", dict, where)
        config |= {"architecture": "topk", "k": option(more, "k", int, where)}
    elif activation != "relu":
        raise ValueError(f"{where}: activation_fn={activation!r} has no counterpart here; supported: relu, topk")
    config["metadata"] = {k: config[k] for k in OF_VERSION_5 if k in config}
    scaled = config.get("normalize_activations")
    if isinstance(scaled, bool) or scaled is None:
        config["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    return config


def _check_options(config: Mapping[str, Any], where: Path) -> None:
    scaling = config.get("normalize_activations", "none")
    if scaling != "none":
        why = {
            "expected_average_only_in": "its factor is not in these files: fold it in SAELens, by fold_activation_norm_scaling_factor",
            "covariance_whitening": "its matrix is not in these files: fold it in SAELens, by fold_activation_whitening",
        }.get(scaling, "it scales each sample by itself")
        raise ValueError(
            f"{where}: normalize_activations={scaling!r} has no counterpart here ({why}); supported: 'none'"
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors under the names of version 6."""
    found = read_tensors(path)[0]
    if "log_threshold" in found and "threshold" not in found:
        logarithm = found.pop("log_threshold")
        found["threshold"] = logarithm.double().exp().to(logarithm.dtype)
    factor = found.get("scaling_factor")
    if factor is not None:
        if not torch.allclose(factor.float(), torch.ones(())):
            raise ValueError(
                f"{path}: scaling_factor is not 1 everywhere (finetuning_scaling_factor); that is not supported"
            )
        del found["scaling_factor"]
    return found


def _dtype(found: Mapping[str, Tensor], config: Mapping[str, Any], where: Path) -> torch.dtype:
    """That of the configuration, to which SAELens casts what it reads."""
    held = common_dtype([v for k, v in found.items() if k != "topk_threshold"], where.parent / WEIGHTS)
    name = option(config, "dtype", str, where, dtype_name(held)).removeprefix("torch.")
    return getattr(torch, choice("dtype", name, [dtype_name(d) for d in DTYPES]))


def _parts(found: Mapping[str, Tensor], config: Mapping[str, Any], architecture: str, where: Path) -> Parts:
    transcodes = "transcoder" in architecture
    centred = bool(option(config, "apply_b_dec_to_input", bool, where, not transcodes))
    if transcodes and centred:
        raise ValueError(f"{where}: apply_b_dec_to_input=True, but a {architecture} takes no b_dec from its input")
    bias = found["b_gate" if architecture == "gated" else "b_enc"]
    parts = Parts("l1_sae", found["W_enc"].T, found["W_dec"], bias, found["b_dec"], centred)
    if architecture == "gated":
        return replace(parts, model="gated_sae", log_scale=found["r_mag"], magnitude_bias=found["b_mag"])
    if transcodes:
        return replace(parts, model="transcoder", k=parts.latents, skip=found.get("W_skip"))
    if architecture == "topk":
        parts = replace(parts, model="topk_sae", k=option(config, "k", int, where))
        return parts.by_norms() if option(config, "rescale_acts_by_decoder_norm", bool, where, False) else parts
    if architecture in BY_BATCH:
        parts = replace(parts, threshold=found["topk_threshold"])
        rescaled = option(config, "rescale_acts_by_decoder_norm", bool, where, True)
        return _by_batch(parts.by_norms() if rescaled else parts, architecture, config, where)
    if architecture == "jumprelu":
        return _jump_relu(replace(parts, model="jump_relu_sae", threshold=found["threshold"]), config, where)
    return parts


def _jump_relu(parts: Parts, config: Mapping[str, Any], where: Path) -> Parts:
    """As it was trained, if the file says so: one threshold for all latents and a whole k."""
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    trained, details = metadata.get("training_architecture"), metadata.get("training_architecture_details")
    theta = parts.threshold
    assert theta is not None
    if trained not in BY_BATCH or not isinstance(details, dict) or not bool((theta == theta[0]).all()):
        return parts
    k = details.get("k")
    if isinstance(k, bool) or not isinstance(k, (int, float)) or not 1 <= k <= parts.latents or k != int(k):
        return parts
    return _by_batch(replace(parts, threshold=theta[0]), trained, details, where)


def _by_batch(parts: Parts, architecture: str, config: Mapping[str, Any], where: Path) -> Parts:
    """Adds k and groups."""
    k = option(config, "k", (int, float), where)
    if k != int(k):
        raise ValueError(f"{where}: k={k!r} is no whole number, which aezoo's batch_topk_sae needs")
    parts = replace(parts, model="batch_topk_sae", k=int(k))
    if architecture != "matryoshka_batchtopk":
        return parts
    ends = option(config, "matryoshka_widths", list, where)
    ends = ends if ends and ends[-1] == parts.latents else [*ends, parts.latents]
    if not all(isinstance(e, int) and not isinstance(e, bool) for e in ends):
        raise ValueError(f"{where}: matryoshka_widths={ends!r} must be whole numbers")
    return replace(parts, model="matryoshka_sae", groups=tuple(b - a for a, b in zip([0, *ends], ends)))


# ------------------------------------------------------------------------------------------------------------------ write


def save(model: BaseAE, path: Path) -> Path:
    """See the module: batch_topk_sae and matryoshka_sae as jumprelu, as SAELens itself saves them; a transcoder with k < K as topk that takes
    no b_dec from its input. Raises ValueError for what SAELens has no architecture for."""
    parts = disassemble(model, "SAELens")
    architecture, more, trained = _architecture(parts)
    found = {"W_enc": parts.encoder.T, "W_dec": parts.decoder, "b_dec": parts.offset}
    if architecture == "gated":
        assert parts.magnitude_bias is not None and parts.log_scale is not None
        found |= {"b_gate": parts.bias, "b_mag": parts.magnitude_bias, "r_mag": parts.log_scale}
    else:
        found["b_enc"] = parts.bias
    if architecture == "jumprelu":
        assert parts.threshold is not None
        found["threshold"] = parts.threshold.clamp(min=0).to(parts.bias).expand(parts.latents)
    if parts.skip is not None:
        found["W_skip"] = parts.skip
    assert found.keys() == KEYS[architecture].keys(), listing(found)
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "d_in": parts.dims,
        "d_sae": parts.latents,
        "dtype": dtype_name(parts.encoder.dtype),
        "device": "cpu",
        "apply_b_dec_to_input": parts.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **more,
        "metadata": _metadata(model, trained),
        "architecture": architecture,
    }
    write_tensors(path / WEIGHTS, found)
    write_json(path / CONFIG, config)
    return path


def _architecture(parts: Parts) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(architecture, its own keys of cfg.json, what it was trained as)."""
    if parts.model == "transcoder":
        if parts.k == parts.latents:
            return ("transcoder" if parts.skip is None else "skip_transcoder"), {"d_out": parts.dims}, {}
        if parts.skip is not None:
            raise ValueError(
                f"transcoder with skip=True and k={parts.k}: SAELens's transcoders with a skip keep all positive latents; supported: "
                f"k={parts.latents} (all), skip=False, or the format 'sparsify'"
            )
    if parts.model in ("topk_sae", "transcoder"):
        return "topk", {"k": parts.k, "rescale_acts_by_decoder_norm": False}, {}
    if parts.model == "batch_topk_sae":
        return "jumprelu", {}, _trained("batchtopk", {"k": parts.k})
    if parts.model == "matryoshka_sae":
        assert parts.groups is not None
        ends = [sum(parts.groups[: i + 1]) for i in range(len(parts.groups))]
        return "jumprelu", {}, _trained("matryoshka_batchtopk", {"k": parts.k, "matryoshka_widths": ends})
    return {"l1_sae": "standard", "jump_relu_sae": "jumprelu", "gated_sae": "gated"}[parts.model], {}, {}


def _trained(architecture: str, details: dict[str, Any]) -> dict[str, Any]:
    return {"training_architecture": architecture, "training_architecture_details": details}


def _metadata(model: BaseAE, trained: dict[str, Any]) -> dict[str, Any]:
    """What the file said that the model came from, and what it is trained as now."""
    known = kept(model, "saelens").get("metadata", {})
    metadata = {"sae_lens_training_version": None, **known, "sae_lens_version": VERSION}
    details = metadata.get("training_architecture_details")
    same = bool(trained) and metadata.get("training_architecture") == trained["training_architecture"]
    if same and isinstance(details, dict):
        return {
            **metadata,
            **_trained(trained["training_architecture"], details | trained["training_architecture_details"]),
        }
    if not trained and metadata.get("training_architecture") in BY_BATCH:  # it is another now
        return {k: v for k, v in metadata.items() if not k.startswith("training_architecture")}
    return {**metadata, **trained}
