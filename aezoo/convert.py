"""Foreign `.pt` files to safetensors, without running what they hold.

A `.pt` file is a pickle, which may call any function while it is read. It is read here by torch's restricted unpickler, which
knows tensors and plain containers only; nothing else in this package opens such a file at all.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .registry import nearest
from .storage import write_tensors

OBVIOUS = ("state_dict", "model_state_dict", "model")  # where training scripts keep their weights
PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put in front of names
MOST_COPIES = 16  # bytes written for a byte read: tensors may share memory, but not without end


class Converted(NamedTuple):
    path: Path
    tensors: dict[str, Tensor]
    left_out: list[str]
    """Names of what was no tensor."""


def convert_pt(path: str | Path, out: str | Path, key: str | None = None, *, overwrite: bool = False) -> Path:
    """Writes the tensors of a file of `torch.save` as safetensors; returns the path. No code of the file's is run.

    Args: `key`: where in the file the tensors lie ("state_dict", "ema.model"); by default "state_dict", "model_state_dict" or
    "model" if one of them is there, else the whole file. Nested dicts become dotted names; "module." and "_orig_mod." in front of all
    names are dropped. `out`: a file that ends in .safetensors; with `overwrite=True` it may be there already.
    Raises FileNotFoundError; ValueError for files that need code, are damaged, compressed or unpack to far more than they hold."""
    return convert(path, out, key, overwrite).path


def convert(path: str | Path, out: str | Path, key: str | None = None, overwrite: bool = False) -> Converted:
    """`convert_pt`, with what it found."""
    path, out = Path(path).expanduser(), Path(out).expanduser()
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no file {str(path)!r}.{nearest(path.name, beside)}")
    if out.suffix != ".safetensors":
        raise ValueError(f"out={str(out)!r} must end in .safetensors, e.g. {str(out.with_suffix('.safetensors'))!r}")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already; pass overwrite=True (--overwrite), or choose another name")
    if out.exists() and out.samefile(path):
        raise ValueError(f"{out} is the file to convert itself; choose another name")
    found, left_out = tensors_of(path, key)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_tensors(out, found)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} cannot be written as safetensors: {_one_line(error)}") from None
    return Converted(out, found, left_out)


def tensors_of(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file of `torch.save` by their dotted names, mapped from the file, and the names of what is none. Raises ValueError."""
    held = _read(path)
    chosen = _at(held, key, path)
    found: dict[str, Tensor] = {}
    left_out: list[str] = []
    try:
        for name, value in _leaves(chosen, ""):
            if not isinstance(value, Tensor):
                left_out.append(name)
            elif name in found:
                raise ValueError(f"{path} holds two tensors of the name {name!r}; pass key= to take one part of it")
            else:
                found[name] = value
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to hold the weights of a model") from None
    if not found:
        raise ValueError(f"{path} holds no tensors{f' at key={key!r}' if key else ''}; it holds {_listing(chosen)}")
    _check_sizes(path, found)
    return _bare_names(found), left_out


def _read(path: Path) -> Any:
    """The file's content by the restricted unpickler. Raises ValueError."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|class|function)[: ]+`?([\w.]+\.[\w.]+)", str(error))
        what = f"wants to call {wanted[1]}" if wanted else "is no plain file of tensors"
        raise ValueError(
            f"{path} {what}, and reading a file must not run code: nothing was run, nothing is written. If you trust its maker, save "
            "its weights there anew: torch.save(model.state_dict(), ...)"
        ) from None
    except Exception as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript program, not a file of tensors; save its state_dict() instead"
            ) from None
        raise ValueError(f"{path} is damaged or no file of torch.save: {_one_line(error)}") from None


def _check_archive(path: Path) -> None:
    """torch.save stores its parts one after the other, uncompressed: what claims to be larger than the file is a bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {_one_line(error)}") from None
    if any(m.filename.endswith("/constants.pkl") for m in members):
        raise ValueError(f"{path} is a TorchScript program, not a file of tensors; save its state_dict() instead")
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise ValueError(f"{path} is compressed, which torch.save never does; it is not unpacked")
    claimed = sum(m.file_size for m in members)
    if claimed > path.stat().st_size:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes and claims to hold {claimed:,}; it is not unpacked")


def _at(held: Any, key: str | None, path: Path) -> Any:
    """The part of a file at a dotted key; or where weights obviously lie."""
    if key is None:
        there = [k for k in OBVIOUS if isinstance(held, Mapping) and isinstance(held.get(k), Mapping)]
        if len(there) > 1:
            raise ValueError(f"{path} holds weights at {' and '.join(map(repr, there))}; pass key= to say which")
        return held[there[0]] if there else held
    part, rest = held, key
    while True:
        names = [str(k) for k in part] if isinstance(part, Mapping) else []
        fits = [n for n in names if rest == n or rest.startswith(f"{n}.")]
        if not fits:
            raise ValueError(f"{path} holds nothing at key={key!r}; it holds {_listing(part)}.{nearest(rest, names)}")
        name = max(fits, key=len)
        part = next(v for k, v in part.items() if str(k) == name)
        if rest == name:
            return part
        rest = rest[len(name) + 1 :]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested dicts; a single tensor is called "tensor"."""
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from _leaves(v, f"{name}.{k}" if name else str(k))
    else:
        yield name or "tensor", value


def _check_sizes(path: Path, tensors: Mapping[str, Tensor]) -> None:
    total = 0
    for name, v in tensors.items():
        if v.layout is not torch.strided or v.device.type != "cpu" or v.is_quantized:
            raise ValueError(f"{path}: {name} is no plain dense tensor ({v.layout}, {v.device.type}, {v.dtype})")
        total += v.numel() * v.element_size()
    size = path.stat().st_size
    if total > MOST_COPIES * size:
        raise ValueError(f"{path} has {size:,} bytes and its tensors would take {total:,}; they are not written")


def _bare_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) and n != p for n in tensors)), None):
        tensors = {n.removeprefix(prefix): v for n, v in tensors.items()}
    return tensors


def _listing(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    names = [repr(str(k)) for k in value]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty dict"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}..."
