"""Files that are never half-written and never executed: JSON and safetensors.

Each is written to a temporary file, which is synchronised to the disk and renamed; then the folder is synchronised, so that the
name survives a loss of power, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

LARGEST_JSON = 64 * 2**20  # bytes; what is larger is no configuration
CONFIG, WEIGHTS, CHECKSUMS = "config.json", "model.safetensors", "checksums.json"  # what a saved model consists of


def _replace(path: Path, fill: Callable[[Path], None]) -> None:
    """Writes `path` whole or not at all: `fill` writes a temporary file beside it."""
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link; it is not written through")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fill(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders; a rename is in its journal
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `path` whole or not at all."""

    def fill(temporary: Path) -> None:
        temporary.write_bytes(data)

    _replace(Path(path), fill)


def sha256(path: str | Path) -> str:
    """Checksum of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**20):
            digest.update(block)
    return digest.hexdigest()


FINGERPRINT = 8  # samples that a fingerprint of the data looks at


def fingerprint(x: Tensor) -> str:
    """Short checksum of a tensor's values."""
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def write_json(path: str | Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Raises FileNotFoundError, or ValueError for a damaged file."""
    if Path(path).stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has {Path(path).stat().st_size:,} bytes, too many for a configuration")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{path} is damaged: nested too deeply") from None


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file; tensors that share memory are written each for itself."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def fill(temporary: Path) -> None:
        try:
            save_file(kept, temporary, {"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 5, str(error)) from None

    kept: dict[str, Tensor] = {}
    memory = set()
    for name, v in tensors.items():
        v = v.detach().to("cpu").contiguous()
        whole = v.untyped_storage()
        if whole.data_ptr() in memory or whole.nbytes() != v.nbytes:
            v = v.clone()
        memory.add(v.untyped_storage().data_ptr())
        kept[name] = v
    _replace(Path(path), fill)


def read_tensors(
    path: str | Path, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors (on the CPU), those whose name is `wanted`, and the metadata of a safetensors file.

    Raises FileNotFoundError, or ValueError for a truncated, damaged or foreign file."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(str(path), framework="pt") as f:
            names = [name for name in f.keys() if wanted(name)]  # noqa: SIM118
            return {name: f.get_tensor(name) for name in names}, dict(f.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated, damaged or not a safetensors file ({error})") from None


def write_model(folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes the weights, config.json, and the weights' sha256 into checksums.json.

    The old checksum goes first and the new one comes last: a folder without one can be read, so whenever the process is
    killed, no intact weights are taken for damaged ones."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUMS).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, tensors, {"model": config["model"]})
    write_json(folder / CONFIG, config)
    write_json(folder / CHECKSUMS, {"sha256": {WEIGHTS: sha256(folder / WEIGHTS)}})


def check_weights(folder: str | Path) -> None:
    """Raises ValueError if checksums.json is there (models of older versions have none) and says another sha256 of the weights."""
    path = Path(folder) / CHECKSUMS
    if not path.is_file():
        return
    sums = read_json(path)
    sums = sums.get("sha256") if isinstance(sums, dict) else None
    want = sums.get(WEIGHTS) if isinstance(sums, dict) else None
    if not isinstance(want, str) or not re.fullmatch(r"[0-9a-f]{64}", want):
        raise ValueError(f"{path} is damaged: it holds no sha256 of {WEIGHTS}, which is 64 hexadecimal digits")
    got = sha256(path.with_name(WEIGHTS))
    if got != want:
        raise ValueError(
            f"{path.with_name(WEIGHTS)} is not the file that was saved: its sha256 is {got}, and {CHECKSUMS} says {want}. "
            f"Fetch or save the model again; if you changed the weights yourself, delete {CHECKSUMS}"
        )
