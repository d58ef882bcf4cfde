"""WebDataset shards: `.tar` files in which the members of a sample share a name up to the first dot.

    000017.png 000017.cls   000018.png 000018.cls   ...

The samples are images or `.npy`; labels come from `.cls`, or from "label" in `.json`. Archives are indexed by their headers and
read by position; nothing is ever unpacked to disk, and names that would lead out of a folder are refused all the same.
"""

from __future__ import annotations

import io
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .images import IMAGE_ENDINGS, look, read_image
from .shards import Rows, read_into
from .sources import as_numbers

BLOCK = 512  # of the tar format
NAME_BYTES = 2**16  # for the long name of a member
LABEL_BYTES = 2**20  # for the .json of a sample
PROBED = 64  # samples, spread over the shards, that are looked at before training


class Member(NamedTuple):
    name: str
    offset: int
    """Of its bytes in the archive."""
    size: int


def _number(field: bytes) -> int:
    """A number of a tar header: octal digits, or big-endian after a first byte of 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _extended(data: bytes) -> dict[str, str]:
    """The records "length key=value" of a pax header."""
    records = {}
    while data.strip(b"\0"):
        length = int(data[: data.index(b" ")])
        if not 0 < length <= len(data):
            raise ValueError("a record of its extended header has no proper length")
        key, _, value = data[data.index(b" ") + 1 : length - 1].partition(b"=")
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


def members(path: Path, f: BinaryIO) -> Iterator[Member]:
    """The regular files of an uncompressed tar archive, from the headers alone.

    Raises ValueError, naming archive and member, for links, devices, sparse files, absolute names, names with '..', and for an
    archive that is damaged or truncated."""
    size, position = os.fstat(f.fileno()).st_size, 0
    long_name: str | None = None
    extended: dict[str, str] = {}
    while True:
        f.seek(position)
        header = f.read(BLOCK)
        if len(header) < BLOCK:
            raise ValueError(f"{path} is truncated: it has no end-of-archive mark after {position} bytes")
        if not any(header):
            return
        try:
            if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
                raise ValueError("a header's checksum is wrong")
            length, kind = _number(header[124:136]), header[156:157]
            if kind in b"LKxg" and length > NAME_BYTES:
                raise ValueError(f"a name of {length} bytes")
            if kind in b"Lx":
                data = f.read(length)
                long_name = _text(data) if kind == b"L" else long_name
                extended = _extended(data) if kind == b"x" else extended
            elif "size" in extended:
                length = int(extended["size"])
            if length < 0:
                raise ValueError("a negative size")
        except ValueError as error:
            packed = header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:4] == b"\x28\xb5\x2f\xfd"
            hint = "; it is compressed, unpack it first (gunzip, bunzip2, unzstd)" if packed else ""
            raise ValueError(f"{path} is damaged or not a tar archive: {error}, at byte {position}{hint}") from None
        offset = position + BLOCK
        position = offset + -(-length // BLOCK) * BLOCK
        if kind in b"LKxg":
            continue
        prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
        name = extended.get("path") or long_name or (f"{prefix}/" if prefix else "") + _text(header[:100])
        sparse = any(key.startswith("GNU.sparse") for key in extended)
        long_name, extended = None, {}
        if name.startswith(("/", "\\")) or name[1:2] == ":" or ".." in name.replace("\\", "/").split("/"):
            raise ValueError(f"{path} holds a member {name!r}, whose name leads out of the folder; it is refused")
        if kind == b"5" or (kind in b"0\0" and name.endswith("/")):
            position = offset if kind == b"5" else position
            continue
        if kind not in b"0\0" + b"7" or sparse:
            what = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
            raise ValueError(f"{path} holds {name!r}, {what.get(kind, 'no plain file')}; only plain files are read")
        if offset + length > size:
            raise ValueError(f"{path} is truncated: {name!r} ends beyond its {size} bytes")
        yield Member(name, offset, length)


def _label(path: Path, f: BinaryIO, member: Member, ending: str) -> int | None:
    """The integer in a `.cls` member, or under "label" in a `.json` member; None if there is none."""
    if member.size > LABEL_BYTES:
        raise ValueError(f"{path}: {member.name!r} of {member.size:,} bytes is too large for a label")
    f.seek(member.offset)
    text = f.read(member.size)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: {member.name!r} is no {'number' if ending == 'cls' else 'JSON'}") from None
    value = value.get("label") if ending == "json" and isinstance(value, dict) else value
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


class TarRows(Rows):
    """The samples of WebDataset shards, decoded as they are read by `workers` threads.

    Args:
        size: (height, width) to which images are resized (covering it, cropped at the centre). channels: 1 or 3; by default 3
            if any of 64 samples spread over the shards has colour.

    Labels are kept where every sample has an integer one. Raises ValueError, naming shard and member, for archives that
    `members` refuses, samples without (or with several) images or arrays, images of mixed sizes without `size`."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int] | None, channels: int | None, workers: int | None):
        self.paths, self.size = list(paths), size
        self.workers = min(8, os.cpu_count() or 1) if workers is None else max(1, workers)
        self._index()
        probed = sorted({i * (len(self) - 1) // (PROBED - 1) for i in range(PROBED)}) if len(self) else []
        if not probed:
            raise ValueError(f"{paths[0]} holds no sample: {', '.join(IMAGE_ENDINGS)} or .npy")
        if self.arrays[0]:
            first = self._array(0)
            self.shape, self.dtype, self.channels = tuple(first.shape), first.dtype, 0
            return
        looks = {i: self._look(i) for i in probed}
        sizes = {hw: i for i, (hw, _) in looks.items()}
        if size is None and len(sizes) > 1:
            (one, i), (other, j) = list(sizes.items())[:2]
            raise ValueError(
                f"{self.name_of(i)} is {one[0]}x{one[1]} (height x width), but {self.name_of(j)} is {other[0]}x{other[1]}; "
                f"pass size=, e.g. size={min(map(min, sizes))}"
            )
        self.channels = channels or (3 if any(colour for _, colour in looks.values()) else 1)
        self.shape, self.dtype = (self.channels, *(size or looks[0][0])), torch.uint8

    def __len__(self) -> int:
        return len(self.offsets)

    def _index(self) -> None:
        """Where each sample lies: file, offset, bytes, and whether it is a `.npy`. One pass over the headers."""
        from tqdm import tqdm

        files, offsets, sizes, arrays, labels = array("i"), array("q"), array("q"), array("b"), array("q")
        labelled = True
        total = sum(os.path.getsize(path) for path in self.paths)
        with tqdm(total=total, desc="indexing", unit="B", unit_scale=True, leave=False, delay=1.0) as bar:
            for number, path in enumerate(self.paths):
                with open(path, "rb") as f:
                    for key, sample, label in _samples(path, f):
                        if sample is None:
                            raise ValueError(
                                f"{path}: the sample {key!r} holds neither an image ({', '.join(IMAGE_ENDINGS)}) nor a .npy"
                            )
                        files.append(number)
                        offsets.append(sample.offset)
                        sizes.append(sample.size)
                        arrays.append(sample.name.lower().endswith(".npy"))
                        if label is None:
                            labelled = False
                        else:
                            labels.append(label)
                        bar.update(sample.size)
        self.files, self.offsets = np.array(files, np.int32), np.array(offsets, np.int64)
        self.sizes, self.arrays = np.array(sizes, np.int64), np.array(arrays, np.bool_)
        if labelled and labels:
            self.labels = torch.tensor(labels)

    def name_of(self, i: int) -> str:
        """Archive and member of sample i, for messages."""
        path = self.paths[self.files[i]]
        with open(path, "rb") as f:
            f.seek(int(self.offsets[i]) - BLOCK)
            return f"{path}: {_text(f.read(100))!r}"

    def _bytes(self, i: int) -> bytes:
        out = torch.empty(int(self.sizes[i]), dtype=torch.uint8)
        path = self.paths[self.files[i]]
        with open(path, "rb", buffering=0) as f:
            read_into(f, int(self.offsets[i]), out, path)
        return out.numpy().tobytes()

    def _look(self, i: int) -> tuple[tuple[int, int], bool]:
        if self.arrays[i]:
            raise ValueError(f"{self.name_of(i)} is an array, but {self.name_of(0)} an image; shards must agree")
        seen = look(io.BytesIO(self._bytes(i)))
        if isinstance(seen, str):
            raise ValueError(f"{self.name_of(i)} cannot be read as an image: {seen}")
        return seen

    def _array(self, i: int) -> Tensor:
        try:
            found = np.load(io.BytesIO(self._bytes(i)), allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError, OverflowError) as error:
            raise ValueError(f"{self.name_of(i)} is damaged: {error}") from None
        x = as_numbers(found, self.name_of(i))
        if x.dim() == 0 or x.numel() == 0:
            raise ValueError(f"{self.name_of(i)} has shape {tuple(x.shape)}; a sample needs at least one axis")
        return x

    def _sample(self, i: int) -> Tensor:
        """Sample i, decoded and checked against the others."""
        if bool(self.arrays[i]) != bool(self.arrays[0]):
            kinds = ("an array", "an image") if self.arrays[i] else ("an image", "an array")
            raise ValueError(f"{self.name_of(i)} is {kinds[0]}, but the first sample {kinds[1]}")
        if self.arrays[i]:
            x = self._array(i)
        else:
            x = read_image(io.BytesIO(self._bytes(i)), self.size, self.channels, lambda: self.name_of(i))
        if tuple(x.shape) != self.shape or x.dtype != self.dtype:
            hint = "" if self.arrays[i] else "; pass size="
            raise ValueError(
                f"{self.name_of(i)} has shape {tuple(x.shape)} and {x.dtype}, but the first sample {self.shape} and "
                f"{self.dtype}{hint}"
            )
        return x

    def read(self, start: int, stop: int, out: Tensor) -> None:
        def decode(i: int) -> None:
            out[i - start] = self._sample(i).reshape(-1).view(torch.uint8)

        with ThreadPoolExecutor(self.workers) as pool:
            for _ in pool.map(decode, range(start, stop)):
                pass  # to raise what a thread raised


def _samples(path: Path, f: BinaryIO) -> Iterator[tuple[str, Member | None, int | None]]:
    """(key, image or array, label) of each run of members that share a key. Hidden members are passed over."""
    current: str | None = None
    found: Member | None = None
    label: int | None = None
    for member in members(path, f):
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not stem:
            continue
        key = f"{folder}/{stem}".lstrip("/")
        if key != current:
            if current is not None:
                yield current, found, label
            current, found, label = key, None, None
        ending = ending.lower().rpartition(".")[2]
        if ending == "npy" or f".{ending}" in IMAGE_ENDINGS:
            if found is not None:
                raise ValueError(f"{path}: the sample {key!r} holds two candidates, {found.name!r} and {member.name!r}")
            found = member
        elif ending == "cls" or (ending == "json" and label is None):
            label = _label(path, f, member, ending)
    if current is not None:
        yield current, found, label
