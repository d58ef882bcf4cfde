"""What a sparse autoencoder is made of, whichever library wrote it: the middle between their files and the zoo's models.

    h = W_enc (x - b_dec) + b_enc   if `centred`, else W_enc x + b_enc
    f = the activation of h
    x^ = f W_dec + b_dec (+ W_skip x)

Whether b_dec is taken from x differs between libraries, and it makes no difference: W_enc (x - b_dec) + b_enc = W_enc x + (b_enc -
W_enc b_dec), so either form becomes the other, with a bias computed in float64 and rounded once.

Legend: D data dims, K latents; x data, f code, W_enc and W_dec (K, D) one row per latent, b_enc (K,), b_dec (D,); theta thresholds, r the
logarithm of a gated latent's scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import BaseAE
from ..likelihoods import Likelihood
from ..models.sae_dictionary import RowDecoder, RowEncoder
from ..registry import MODELS, create_model
from ..storage import read_json

CENTRED = {"topk_sae", "batch_topk_sae", "matryoshka_sae", "jump_relu_sae", "gated_sae"}  # take b_dec from x
KINDS = ("l1_sae", *sorted(CENTRED), "transcoder")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Parts:
    """One sparse autoencoder, in the layout of this package."""

    model: str
    """Name in the zoo: it says what the activation is."""
    encoder: Tensor
    """W_enc, (K, D)."""
    decoder: Tensor
    """W_dec, (K, D)."""
    bias: Tensor
    """b_enc, (K,); of a gated one that of the gate."""
    offset: Tensor
    """b_dec, (D,)."""
    centred: bool
    """Is b_dec taken from x?"""
    k: int | None = None
    threshold: Tensor | None = None
    """theta (K,) of `jump_relu_sae`; tau () of `batch_topk_sae` and `matryoshka_sae`, below 0 before it was learned."""
    log_scale: Tensor | None = None
    """r, (K,), of `gated_sae`."""
    magnitude_bias: Tensor | None = None
    """b_mag, (K,), of `gated_sae`."""
    groups: tuple[int, ...] | None = None
    """Of `matryoshka_sae`."""
    skip: Tensor | None = None
    """W_skip, (D, D), of `transcoder`."""

    @property
    def latents(self) -> int:
        return self.encoder.shape[0]

    @property
    def dims(self) -> int:
        return self.encoder.shape[1]

    @property
    def norms(self) -> Tensor:
        """||W_dec,i||, (K,), in float64."""
        return torch.linalg.vector_norm(self.decoder.double(), dim=1)

    def unit_rows(self, within: float) -> bool:
        """Are all decoder rows unit vectors, up to `within`?"""
        return bool(((self.norms - 1).abs() <= within).all())

    def centre(self, centred: bool) -> Parts:
        """The same function, with b_dec taken from x or not."""
        if centred == self.centred:
            return self
        shift = self.encoder.double() @ self.offset.double() * (1 if centred else -1)
        bias = (self.bias.double() + shift).to(self.bias.dtype)
        if self.magnitude_bias is None or self.log_scale is None:
            return replace(self, centred=centred, bias=bias)
        magnitude = self.magnitude_bias.double() + self.log_scale.double().exp() * shift
        return replace(self, centred=centred, bias=bias, magnitude_bias=magnitude.to(self.magnitude_bias.dtype))

    def by_norms(self) -> Parts:
        """Latents in units of their rows: f_i ||W_dec,i||, and unit rows, so that x^ stays; where h is multiplied before the activation,
        which then picks by it. Rows of 0 are left as they are. Of parts whose only parameters are weights and biases."""
        norms = torch.where(self.norms > 0, self.norms, 1.0)
        dtype = self.encoder.dtype
        return replace(
            self,
            encoder=(self.encoder.double() * norms[:, None]).to(dtype),
            bias=(self.bias.double() * norms).to(dtype),
            decoder=(self.decoder.double() / norms[:, None]).to(dtype),
        )


# ------------------------------------------------------------------------------------------------------ to and from the zoo


def assemble(parts: Parts, where: str | Path) -> BaseAE:
    """The model that `parts` describe, in evaluation mode; its dtype is that of W_enc. Raises ValueError beginning with `where`.

    A model that is trained on keeps unit rows (`normalize_decoder`, `recipe="2023"`) only where its rows are unit vectors."""
    unit = parts.unit_rows(1e-3)
    options: dict[str, Any] = {"input_shape": (parts.dims,), "latent_dim": parts.latents}
    if parts.model == "l1_sae":
        options["recipe"] = "2023" if parts.centred and unit else "april2024"
        parts = parts.centre(options["recipe"] == "2023")
    else:
        options["normalize_decoder"] = unit
        parts = parts.centre(parts.model in CENTRED)
    if parts.model == "transcoder":
        options["skip"] = parts.skip is not None
    if parts.k is not None:
        options["k"] = parts.k
    if parts.groups is not None:
        options["groups"] = parts.groups
    try:
        with torch.device("meta"):  # nothing is drawn, and nothing is allocated twice
            model = create_model(parts.model, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    model.load_state_dict(_state(parts, model), assign=True)
    return model.eval()


def _state(parts: Parts, model: BaseAE) -> dict[str, Tensor]:
    """What `model`, which has no values yet, loads."""
    values: dict[str, Tensor | None] = {
        "encoder.weight": parts.encoder,
        "encoder.bias": parts.bias,
        "decoder.weight": parts.decoder,
        "decoder.bias": parts.offset,
        "log_scale": parts.log_scale,
        "magnitude_bias": parts.magnitude_bias,
        "skip": parts.skip,
    }
    if parts.model == "jump_relu_sae":
        assert parts.threshold is not None
        values["threshold"] = parts.threshold.clamp(min=0)  # relu(h) 1[h > theta]: below 0 theta changes nothing
    elif parts.threshold is not None:
        values["tau"] = parts.threshold.clamp(min=0)
        values["tau_weight"] = (parts.threshold > 0).float()  # 0: none learned yet
    state = {}
    for name, place in model.state_dict().items():
        value = values.get(name)
        if value is None:  # counts of training: it begins anew
            value = torch.zeros(place.shape, dtype=place.dtype)
        dtype = parts.encoder.dtype if place.dtype.is_floating_point else place.dtype
        state[name] = value.detach().to(dtype).contiguous()
    return state


def disassemble(model: BaseAE, format: str) -> Parts:
    """What a model of the zoo is made of, on the CPU. Raises ValueError for one that is no dictionary with the identity at its end."""
    if MODELS.entries.get(model.name) is not type(model) or model.name not in KINDS:
        raise ValueError(
            f"{model.name or type(model).__name__!r} has no counterpart in {format}; models that have one: {', '.join(KINDS)}"
        )
    if not isinstance(model.encoder, RowEncoder) or not isinstance(model.decoder, RowDecoder):
        raise ValueError(
            f"{model.name} with backbone={model.backbone.name!r} is no dictionary of rows, which {format} holds; it takes models with "
            "backbone='linear' (and not tied)"
        )
    if type(model.likelihood).mean is not Likelihood.mean:
        raise ValueError(
            f"likelihood={model.likelihood.name!r} puts a function behind the decoder, and {format} has none; it takes models with "
            "likelihood='mse', 'gaussian' and others whose mean is the decoder's output"
        )
    dims = math.prod(model.decoder.shape[1:])  # of several numbers per element the first is the mean

    def cpu(value: Tensor) -> Tensor:
        return value.detach().to("cpu")

    parts = Parts(
        model.name,
        cpu(model.encoder.weight),
        cpu(model.decoder.weight)[:, :dims].contiguous(),
        cpu(model.encoder.bias),
        cpu(model.decoder.bias)[:dims].contiguous(),
        model.encoder.centred,
    )
    more: dict[str, Any] = {}
    for name, attribute in (("k", "k"), ("log_scale", "log_scale"), ("magnitude_bias", "magnitude_bias")):
        value = getattr(model, attribute, None)
        more[name] = cpu(value) if isinstance(value, Tensor) else value
    if model.name == "transcoder" and isinstance(model.skip, Tensor):
        more["skip"] = cpu(model.skip)[:dims]
    if model.name == "matryoshka_sae":
        more["groups"] = model.groups
    if model.name in ("batch_topk_sae", "matryoshka_sae"):
        learned = bool(model.tau_weight > 0)  # type: ignore[operator]
        more["threshold"] = cpu(model.threshold) if learned else torch.tensor(-1.0, dtype=parts.encoder.dtype)  # type: ignore[arg-type]
    if model.name == "jump_relu_sae":
        more["threshold"] = cpu(model.threshold)  # type: ignore[arg-type]
        if bool((more["threshold"] < 0).any()):
            raise ValueError(
                "jump_relu_sae with a threshold below 0 lets negative values through, other libraries do not"
            )
    return replace(parts, **more)


def kept(model: BaseAE, format: str) -> dict[str, Any]:
    """What the file that a model came from said beside sizes and weights, if it was one of this format."""
    origin = model.origin or {}
    config = origin.get("config")
    return dict(config) if origin.get("format") == format and isinstance(config, dict) else {}


# --------------------------------------------------------------------------------------------------------- files and keys


def configuration(path: Path, kind: str) -> dict[str, Any]:
    """A foreign JSON file that must hold an object. Raises ValueError."""
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise ValueError(f"{kind} needs a {path.name} beside the weights; {path.parent} holds {listing(beside)}")
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no configuration of {kind}: it holds a {type(value).__name__}, not an object")
    return value


def option(config: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: Path, default: Any = ...) -> Any:
    """A value of a configuration if it is of the right type. Raises ValueError naming key, value and type."""
    value = config.get(key, default)
    if value is ...:
        raise ValueError(f"{where} has no {key!r}; it has {listing(config)}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: {key}={value!r} must be of type {names}")
    return value


def checked(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, str], sizes: Mapping[str, int | None], what: str, where: Path
) -> dict[str, Tensor]:
    """The tensors `shapes` names, if each is there, is of that shape, and nothing else is there.

    Args: `shapes`: {"W_enc": "d n", "b_dec": "d", "k": ""}: the letters stand for sizes. `sizes`: what letters are known to be; those
    that are not (None) are found from the first tensor that has them.
    Raises ValueError naming all of missing, surplus and misshapen keys."""
    missing = [k for k in shapes if k not in tensors]
    surplus = [k for k in tensors if k not in shapes]
    if missing or surplus:
        wrong = [f"{listing(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
        wrong += [f"{listing(surplus)} {'is' if len(surplus) == 1 else 'are'} not part of it"] if surplus else []
        raise ValueError(f"{where} is no {what}: {', and '.join(wrong)} (it holds {listing(tensors)})")
    known = {letter: size for letter, size in sizes.items() if size is not None}
    for key, letters in shapes.items():
        got, names = tuple(tensors[key].shape), letters.split()
        if len(got) == len(names):
            for letter, size in zip(names, got):
                known.setdefault(letter, size)
        want = tuple(known.get(letter, -1) for letter in names)
        if got != want:
            meant = [f"{letter}={known[letter]}" for letter in dict.fromkeys(names) if letter in known]
            raise ValueError(
                f"{where}: {key} has shape {got}, but that of a {what} is ({', '.join(names)})"
                + (f", here {', '.join(meant)}" if meant else "")
            )
    return dict(tensors)


def common_dtype(tensors: Sequence[Tensor], where: Path) -> torch.dtype:
    """The dtype that holds all of them. Raises ValueError if one is not float64, float32, bfloat16 or float16."""
    dtype = tensors[0].dtype
    for v in tensors:
        if v.dtype not in DTYPES:
            raise ValueError(f"{where} holds weights of dtype {v.dtype}; allowed: {', '.join(map(str, DTYPES))}")
        dtype = torch.promote_types(dtype, v.dtype)
    return dtype


def listing(names: Any) -> str:
    """'a', 'b', ...: at most ten of them."""
    texts = [repr(str(n)) for n in names]
    return ", ".join(texts[:10]) + (", ..." if len(texts) > 10 else "") if texts else "nothing"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
