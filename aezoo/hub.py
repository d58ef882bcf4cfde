"""Models from folders and from the Hugging Face hub: config.json + model.safetensors, nothing that can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import FORMAT, BaseAE
from .priors import PRIORS
from .registry import MODELS, choice, create_model
from .storage import read_json, read_tensors


def from_pretrained(source: str | Path, device: str | torch.device = "cpu") -> BaseAE:
    """Reads a model that `save_pretrained` or a training run wrote; it is returned in evaluation mode on `device`.

    Args: `source`: a folder with config.json and model.safetensors, or "user/name" on the Hugging Face hub ("hf://user/name"
    says so explicitly).
    Raises FileNotFoundError if nothing is there, ValueError if a file is damaged, of another format or of another model."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _download(str(source))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is no saved model; it holds: {_listing(folder)}")
    return load_weights(
        build(read_json(folder / "config.json"), folder / "config.json"), folder / "model.safetensors"
    ).to(device)


def build(config: Any, where: str | Path) -> BaseAE:
    """The model that a config.json describes, with fresh weights, in evaluation mode. Raises ValueError naming what is off."""
    if not isinstance(config, dict) or not {"format", "model", "args"} <= set(config):
        raise ValueError(f"{where} is no aezoo model: it needs the keys 'format', 'model' and 'args'")
    if config["format"] != FORMAT:
        raise ValueError(f"{where} has format {config['format']!r}; this version of aezoo reads format {FORMAT}")
    if config["model"] not in MODELS:
        raise ValueError(
            f"{where} describes the model {config['model']!r}, which is not registered; import the module that defines it first"
        )
    try:
        dtype = choice("dtype", config.get("dtype", "float32"), ["float64", "float32", "bfloat16", "float16"])
        model = create_model(config["model"], **config["args"])
        if config.get("prior") is not None:  # one that `fit_prior` gave it
            model.prior = PRIORS.build(config["prior"]).settled()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    model.origin = config.get("origin")
    if not isinstance(model.origin, (dict, type(None))):
        raise ValueError(f"{where}: origin={model.origin!r} must be an object with keys")
    return model.to(getattr(torch, dtype)).eval()


def load_weights(model: BaseAE, path: str | Path) -> BaseAE:
    """Loads a safetensors file into a model of the same architecture; strict. Returns the model."""
    tensors, metadata = read_tensors(path)
    if metadata.get("model", model.name) != model.name:
        raise ValueError(
            f"{path} holds the weights of a {metadata['model']!r}, but config.json describes a {model.name!r}"
        )
    if wrong := misfits(tensors, model.state_dict()):
        raise ValueError(f"{path} does not fit the {model.name!r} in config.json: {wrong}")
    model.load_state_dict(tensors)
    return model


def misfits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What keeps `tensors` from being `wanted`, by names and shapes; an empty string if nothing does."""
    wrong = [f"{k} is missing" for k in wanted if k not in tensors]
    wrong += [f"{k} is not in the model" for k in tensors if k not in wanted]
    wrong += [
        f"{k} has shape {tuple(tensors[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def _download(source: str) -> Path:
    """Fetches the two files of a hub repository. Raises FileNotFoundError with both readings of `source`."""
    name = source.removeprefix("hf://")
    if source.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"no folder {source!r} (and it is no hub name, which is like 'user/name')")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"no folder {source!r} here, and the hub gave no model {name!r}: {first}") from None


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
