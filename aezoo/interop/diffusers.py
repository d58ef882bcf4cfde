"""Image tokenizers in the layout of diffusers: `autoencoder_kl` as AutoencoderKL, `vqgan` as VQModel, `tiny_ae` as AutoencoderTiny.

A folder with config.json and diffusion_pytorch_model.safetensors; only these files are read and written, and the package itself is
never imported. Checked against diffusers 0.42.1, both ways: the same numbers in give the same numbers out, `encode` for `encode` (the
mean; of a VQModel, whose own returns what is not quantised yet, the quantised code) and `decode` for `decode`. AutoencoderTiny's
`forward` rounds the code to 8 bits on its way, which `reconstruct` does not.

What a config says about the *use* of a code (`Kind.use`: scaling_factor, shift_factor, latents_mean, latents_std, ...) changes neither
`encode` nor `decode`, in diffusers as here. It is kept in `model.origin["config"]`, survives `save_pretrained` and training runs, and
is written again. Keys that diffusers would ignore are kept in the same place.

Also read, not written: the autoencoders of latent diffusion and taming-transformers, alone or within a whole model (`latent_diffusion`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbones import Tiny
from ..base import BaseAE, checked_shape
from ..hub import misfits
from ..likelihoods import LIKELIHOODS, Likelihood
from ..registry import MODELS, choice, create_model, nearest, plain
from ..storage import read_json, read_tensors, write_json, write_tensors
from . import latent_diffusion
from .diffusers_kinds import KINDS, VERSION, check_size, check_use

FILES = "config.json with a '_class_name' and diffusion_pytorch_model.safetensors, or latent diffusion's autoencoder in one .safetensors"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SHAPE = "input_shape"  # in the weights' metadata: a config knows one side at most
AGAIN = ("block_out_channels",)  # which diffusers writes into an AutoencoderTiny's config beside what it repeats
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of the first releases


# ---------------------------------------------------------------------------------------------------------------- read


def recognise(path: Path) -> bool:
    """Whether `path` is a folder of diffusers' (of any class), or an autoencoder in latent diffusion's layout."""
    if path.is_file():
        return path.suffix == ".safetensors" and (_is_theirs(path.parent) or latent_diffusion.recognise(path))
    return _is_theirs(path)


def _is_theirs(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "_class_name" in config


def load(path: str | Path, *, input_shape: Sequence[int] | None = None, **keywords: Any) -> BaseAE:
    """Reads a folder that diffusers' `save_pretrained` wrote (or the file of weights in it), or a .safetensors file in latent
    diffusion's layout; the model is returned in evaluation mode.

    Args:
        input_shape: (channels, height, width); by default the config's square of `sample_size`, or what `save` noted. Needed where the
            file says nothing (AutoencoderTiny, latent diffusion). Both sides must be divisible as often as the network halves them.
        keywords: of the model here, for further training: likelihood, beta, gan_weight, ... By default a VQModel's codebook has a
            gradient and there is no critic; an AutoencoderKL's log-variance is cut as theirs is (logvar="cut"), so that the posterior
            is the same, too.

    Raises FileNotFoundError; ValueError for another class, for options that have no counterpart here, and for weights that are
    missing, left over or of another shape."""
    path = Path(path).expanduser()
    weights = None
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{path} is no .safetensors file; a pickled one becomes one by aezoo.convert_pt({path.name!r}, "
                f"{path.with_suffix('.safetensors').name!r}), which runs nothing that it holds"
            )
        if not _is_theirs(path.parent):
            return _load_file(path, input_shape, keywords)
        path, weights = path.parent, path
    name, config = _config(path)
    kind = KINDS[name]
    sizes = {key: config.get(key, default) for key, default in kind.sizes.items()}
    use = {**kind.use, **{k: v for k, v in config.items() if k not in (*sizes, *AGAIN) and not k.startswith("_")}}
    tensors, metadata = read_tensors(weights or _weights(path))
    try:
        for key, value in sizes.items():
            check_size(key, value, kind.sizes[key])
        if input_shape is None:
            input_shape = _noted_shape(metadata) or _square(sizes)
        model = _build(name, kind.read(sizes), input_shape, keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path / CONFIG}: {error}") from None
    absent = [layer for layer in ("quant_conv", "post_quant_conv") if sizes.get(f"use_{layer}") is False]
    model.origin = {"format": "diffusers", "config": use}
    return _fill(model, names(model, absent), _renamed(tensors), path)


def _load_file(path: Path, input_shape: Sequence[int] | None, keywords: dict[str, Any]) -> BaseAE:
    found = latent_diffusion.read(path)
    try:
        model = _build("VQModel" if found.quantised else "AutoencoderKL", found.args, input_shape, keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if found.scale is not None:
        model.origin = {"format": "diffusers", "config": {"scaling_factor": found.scale}}
    return _fill(model, names(model, found.absent), found.tensors, path)


def _build(name: str, args: dict[str, Any], input_shape: Any, keywords: dict[str, Any]) -> BaseAE:
    kind = KINDS[name]
    if input_shape is None:
        raise ValueError("nothing says what size of pictures it is for; pass input_shape=(channels, height, width)")
    args = dict(args)
    channels = args.pop("channels")
    shape = checked_shape(input_shape)
    if said := sorted(args.keys() & keywords.keys()):
        raise ValueError(f"{said[0]}={keywords[said[0]]!r} cannot be chosen: the file says {args[said[0]]!r}")
    model = create_model(kind.model, input_shape, **{**kind.defaults, **keywords, **args})
    _check_shape(shape, name, halvings(model))
    if shape[0] != channels:
        raise ValueError(f"input_shape={shape} has {shape[0]} channels, but the network takes {channels}")
    return model


def _fill(model: BaseAE, named: dict[str, str], tensors: dict[str, Tensor], path: Path) -> BaseAE:
    """Puts the file's `tensors` in place, named: {name here: name there}."""
    state = model.state_dict()
    if wrong := misfits(tensors, {there: state[here] for here, there in named.items()}):
        raise ValueError(f"{path} does not fit the {model.name!r} that it describes: {wrong}")
    kinds = {v.dtype for v in tensors.values()}
    if len(kinds) == 1 and (dtype := kinds.pop()).is_floating_point:
        model.to(dtype)
    model.load_state_dict({here: tensors[there] for here, there in named.items()}, strict=False)
    if "quantizer.cluster_sum" in state:  # a codebook of moving averages starts from sums that say the same
        model.get_buffer("quantizer.cluster_sum").copy_(model.get_buffer("quantizer.codebook"))
    return model.eval()


def _config(folder: Path) -> tuple[str, dict[str, Any]]:
    """The class's name and the config. Raises FileNotFoundError or ValueError saying what is there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist")
    file = folder / CONFIG
    if not file.is_file():
        whole = (folder / "model_index.json").is_file()
        parts = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}") if whole)
        inside = f"; it is a pipeline, whose parts lie in {', '.join(parts)}" if parts else ""
        raise FileNotFoundError(f"{folder} holds no {CONFIG}{inside}")
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"{file} is no config of diffusers: it has no '_class_name'")
    name = config["_class_name"]
    if name not in KINDS:
        raise ValueError(f"{file} describes a {name!r}; expected is one of {', '.join(KINDS)}.{nearest(name, KINDS)}")
    return name, config


def _weights(folder: Path) -> Path:
    """The file of weights; where there is none of the usual name, the only one (diffusion_pytorch_model.fp16.safetensors)."""
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    stem = WEIGHTS.partition(".")[0]
    found = sorted(folder.glob(f"{stem}*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{folder} holds {' and '.join(p.name for p in found)}; rename the one to read to {WEIGHTS}")
    pickled = sorted(folder.glob(f"{stem}*.bin"))
    hints = [
        f"; aezoo.convert_pt({p.name!r}, {WEIGHTS!r}) makes it of the pickled one, running nothing" for p in pickled
    ]
    raise FileNotFoundError(f"{folder} holds no {WEIGHTS}{''.join(hints[:1])}")


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention in files of old has other names, and weights that may be those of 1x1 convolutions."""
    out = {}
    for name, value in tensors.items():
        before, dot, last = name.rpartition(".attentions.")
        parts = last.split(".")  # index, layer, "weight"
        if dot and len(parts) == 3 and parts[1] in OLD_ATTENTION:
            name = f"{before}{dot}{parts[0]}.{OLD_ATTENTION[parts[1]]}.{parts[2]}"
            value = value.reshape(value.shape[:2]) if value.dim() > 2 else value
        out[name] = value
    return out


def _noted_shape(metadata: Mapping[str, str]) -> tuple[int, ...] | None:
    parts = metadata.get(SHAPE, "").split(",")
    return tuple(map(int, parts)) if all(p.isdecimal() for p in parts) else None


def _square(sizes: Mapping[str, Any]) -> tuple[int, ...] | None:
    size = sizes.get("sample_size")
    return None if size is None else (sizes["in_channels"], *(size if isinstance(size, list) else (size, size)))


# --------------------------------------------------------------------------------------------------------------- write


def save(model: BaseAE, path: str | Path, *, unit_range: bool = False, **use: Any) -> Path:
    """Writes `model` as a folder that `from_pretrained` of diffusers' class reads; returns the folder.

    Args:
        unit_range: of a `tiny_ae` whose backbone is not signed=True. AutoencoderTiny takes and returns pictures in [-1, 1] and its
            layers see [0, 1]; with unit_range=True the layers are written as they are, and diffusers gives 2 x^ - 1 for 2 x - 1.
        use: keys of the config about the code's use (`Kind.use`): scaling_factor, shift_factor, latents_mean, ... By default those of
            the file that the model came from, or what leaves the code as it is: scaling_factor=1.

    What training alone needs (critic, moving averages, corruption, prior) has no place there. An `autoencoder_kl` with logvar="soft"
    has the same mean and reconstruction there, but not the same spread of the posterior, since theirs is cut and not bounded softly.
    `quant_conv` and `post_quant_conv` of an `autoencoder_kl` are left out where they are exactly the identity.

    Raises TypeError if it is no model, ValueError if diffusers has no counterpart, saying what it would need."""
    if not isinstance(model, BaseAE):
        raise TypeError(f"model must be a model of aezoo; got {type(model).__name__}")
    name = next((n for n, kind in KINDS.items() if MODELS[kind.model] is type(model)), None)
    if name is None:
        able = ", ".join(f"{k.model} ({n})" for n, k in KINDS.items())
        raise ValueError(f"{model.name} has no counterpart in diffusers; models that have one: {able}")
    kind = KINDS[name]
    for key, value in use.items():
        check_use(choice(f"config of {name}", key, kind.use), value, model.latent_dim)
    _check_likelihood(model, name)
    if len(model.input_shape) != 3:
        raise ValueError(
            f"{name} takes pictures, input_shape=(channels, height, width); this model's is {model.input_shape}"
        )
    if name == "AutoencoderTiny" and not unit_range and not getattr(model.backbone, "signed", True):
        raise ValueError(
            "AutoencoderTiny takes pictures in [-1, 1], so its counterpart has the backbone tiny(signed=True); pass unit_range=True if "
            "this model's pictures are in [0, 1]: diffusers then gives 2 x^ - 1 for 2 x - 1"
        )
    sizes = {**kind.sizes, **kind.write(model)}
    _check_shape(model.input_shape, name, halvings(model))
    origin = model.origin or {}
    known = origin["config"] if origin.get("format") == "diffusers" else {"scaling_factor": 1.0}
    if "sample_size" in sizes:
        sizes["sample_size"] = max(model.input_shape[1:])
    sizes["in_channels"] = sizes["out_channels"] = model.input_shape[0]
    config = {"_class_name": name, "_diffusers_version": VERSION, **sizes, **kind.use, **known, **use}
    absent = [layer for layer in ("quant_conv", "post_quant_conv") if sizes.get(f"use_{layer}") is False]
    state = model.state_dict()

    folder = Path(path).expanduser()
    if (folder / CONFIG).is_file() and "_class_name" not in (read_json(folder / CONFIG) or {}):
        raise ValueError(f"{folder} holds another model's {CONFIG}; choose a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, plain(config))
    tensors = {there: state[here] for here, there in names(model, absent).items()}
    write_tensors(folder / WEIGHTS, tensors, {SHAPE: ",".join(map(str, model.input_shape))})
    return folder


def _check_likelihood(model: BaseAE, name: str) -> None:
    own = type(model.likelihood)
    if own.mean is not Likelihood.mean or model.likelihood.num_params != 1:
        able = [n for n in LIKELIHOODS if LIKELIHOODS[n].mean is Likelihood.mean]
        raise ValueError(
            f"{name} returns what its decoder does, which is not the reconstruction with likelihood={own.name!r}, "
            f"{model.likelihood.num_params} number(s) per element; it is with {', '.join(able)}, none of them with a predicted scale"
        )


# ---------------------------------------------------------------------------------------------------------- both ways


def names(model: BaseAE, absent: Sequence[str] = ()) -> dict[str, str]:
    """{name here: name there} of everything that a file holds; `absent`: layers that it lacks."""
    found = {}
    for key in model.state_dict():
        part, _, rest = key.partition(".")
        if part in absent:
            continue
        if key == "quantizer.codebook":
            found[key] = "quantize.embedding.weight"
        elif isinstance(model.backbone, Tiny):
            index, _, layer = rest.partition(".")
            if part in ("encoder", "decoder"):  # the decoder's first layer here, without weights, is none of theirs
                found[key] = f"{part}.layers.{int(index) - (part == 'decoder')}.{layer}"
        elif part in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
            found[key] = key
    return found


def halvings(model: BaseAE) -> int:
    """How often the network halves both sides."""
    backbone: Any = model.backbone
    return backbone.levels if isinstance(backbone, Tiny) else len(backbone.widths) - 1


def _check_shape(shape: tuple[int, ...], name: str, times: int) -> None:
    if len(shape) != 3 or any(s % 2**times for s in shape[1:]):
        raise ValueError(
            f"input_shape={shape} does not fit {name}, which halves both sides {times} times and gives back a picture of the same size "
            f"only if they are divisible by {2**times}"
        )
