"""The .aez file: a header, the coded bits, checksums.

    "AEZ" | version, 1 byte | kind, 1 byte | model, 4 bytes | codec, 4 bytes | numbers | payload | CRC-32 of all before, 4 bytes

`model` and `codec` are the first bytes of their sha256: of the weights, and of the tables and settings. The numbers are varints (7 bits a
byte, the lowest first): samples, axes of a sample, its shape, height and width of the picture (0, 0: no picture), words of the
coder's seed, samples coded together, CRC-32 of the decoded integers (lossless), bytes of payload. `kind`: bit 0 lossless, bit 1 the data
was 8-bit.
"""

from __future__ import annotations

from typing import NamedTuple

from .ans import checksum

MAGIC, VERSION = b"AEZ", 1
FIXED = len(MAGIC) + 2 + 8
HASH = 4  # bytes of a sha256 that a file carries
LOSSLESS, BYTES = 1, 2


class Container(NamedTuple):
    """What a file holds."""

    lossless: bool
    bytes_in: bool
    """Whether the data was 8-bit integers, and not floating point."""
    model: bytes
    codec: bytes
    samples: int
    """Or tiles of a picture."""
    shape: tuple[int, ...]
    """Of a sample or tile."""
    picture: tuple[int, int] | None
    """(height, width) where the samples are tiles of one."""
    used: int
    together: int
    decoded: int
    payload: bytes


def write(c: Container) -> bytes:
    height, width = c.picture or (0, 0)
    numbers = [c.samples, len(c.shape), *c.shape, height, width, c.used, c.together, c.decoded, len(c.payload)]
    kind = LOSSLESS * c.lossless + BYTES * c.bytes_in
    head = MAGIC + bytes([VERSION, kind]) + c.model[:HASH] + c.codec[:HASH] + b"".join(map(_varint, numbers))
    whole = head + c.payload
    return whole + checksum(whole).to_bytes(4, "little")


def read(data: bytes, what: str = "these bytes") -> Container:
    """Raises TypeError for what are no bytes, ValueError, naming `what`, for a foreign, truncated or damaged file and one of another
    version."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"compressed data must be bytes, as `compress` returns them; got {type(data).__name__}")
    data = bytes(data)
    if not data:
        raise ValueError(f"{what}: empty, 0 bytes")
    if not data.startswith(MAGIC[: len(data)]):
        raise ValueError(f"{what}: not an .aez file, which begins with {MAGIC!r}; this begins with {data[:4]!r}")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise ValueError(
            f"{what}: format version {data[len(MAGIC)]}, but this version of aezoo reads version {VERSION}; update aezoo, or the file is damaged"
        )
    if len(data) < FIXED + 4:
        raise ValueError(f"{what}: truncated after {len(data)} bytes, within the header")
    if checksum(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError(
            f"{what}: damaged or truncated: the CRC-32 of its {len(data):,} bytes is not the one at its end; fetch or write it again"
        )
    try:
        return _parsed(data)
    except (IndexError, OverflowError):
        raise ValueError(f"{what}: damaged: its header contradicts itself") from None


def _parsed(data: bytes) -> Container:
    at = FIXED

    def number() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise OverflowError

    samples, axes = number(), number()
    if axes > 8:
        raise OverflowError
    shape = tuple(number() for _ in range(axes))
    height, width, used, together, decoded, size = (number() for _ in range(6))
    if at + size + 4 != len(data) or used > 8 * len(data) + 2**24:
        raise OverflowError
    kind, names = data[len(MAGIC) + 1], data[len(MAGIC) + 2 : FIXED]
    if kind > LOSSLESS + BYTES:
        raise OverflowError
    return Container(
        bool(kind & LOSSLESS), bool(kind & BYTES), names[:HASH], names[HASH:], samples, shape,
        (height, width) if height else None, used, together, decoded, data[at : at + size],
    )  # fmt: skip


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
