"""Entropy coding by asymmetric numeral systems (Duda 2009, arXiv:0902.0271), with integer tables alone.

The coder is that of the package `constriction`. It takes tables of floating point; the ones that it gets here are integers divided by
2^20, which are exact, so that what it makes of them is a function of the integers.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from ..randomness import mix_seed

PRECISION = 20  # every table sums to 2^20
TOTAL = 1 << PRECISION
WORD = 32  # bits
UNIFORM = 1 << 16  # most values of a uniform distribution
Array = np.ndarray


def coder() -> Any:
    """constriction's coders and models. Raises ImportError saying how to install them."""
    try:
        import constriction
    except ImportError:
        raise ImportError('compression needs the package constriction: pip install "aezoo[compress]"') from None
    return constriction.stream


def table(counts: Array) -> Array:
    """Frequencies (..., S) -> integers (..., S), int64, that sum to 2^20 and are at least 1, in integer arithmetic.

    Each is 1 + floor(count (2^20 - S) / total); the most frequent takes what is left over. Counts must be below 2^42. A row of
    zeros becomes a uniform distribution."""
    counts = counts.astype(np.int64)
    size = counts.shape[-1]
    total = counts.sum(-1, keepdims=True)
    counts = np.where(total == 0, 1, counts)
    made = 1 + counts * (TOTAL - size) // np.where(total == 0, size, total)
    most = counts.argmax(-1)[..., None]
    left = TOTAL - made.sum(-1, keepdims=True)
    np.put_along_axis(made, most, np.take_along_axis(made, most, -1) + left, -1)
    return made


class Stack:
    """A stack of bits: symbols are pushed and come out in the opposite order; any bits can be popped as symbols of any table.

    `seeded`: it lies on endless pseudo-random words that both sides know, for coders that pop before they push. `payload` leaves out those
    that were never touched."""

    def __init__(self, words: Array | None = None, seeded: bool = False, used: int = 0):
        stream = coder()
        self.coder_of, self.models, self.seeded = stream.stack.AnsCoder, stream.model, seeded
        self.family = self.models.Categorical(perfect=False)
        self.depth = used  # seed words that are part of the stack
        words = np.zeros(0, np.uint32) if words is None else words
        self.coder = self.coder_of(words) if len(words) else self.coder_of()
        if seeded:
            self._deepen(4)

    def _deepen(self, words: int) -> None:
        """Puts that many more of the seed's words under the stack."""
        held = self.coder.get_compressed()
        self.coder = self.coder_of(np.concatenate([_seed(self.depth, self.depth + words), held]))
        self.depth += words

    def push(self, symbols: Array, tables: Array) -> None:
        """Symbols (n,), each by its own table (n, S), or all by one (S,)."""
        symbols = np.ascontiguousarray(symbols, np.int32)
        p = (tables / TOTAL).astype(np.float32)
        if tables.ndim == 1:
            self.coder.encode_reverse(symbols, self.models.Categorical(p, perfect=False))
        else:
            self.coder.encode_reverse(symbols, self.family, p)

    def pop(self, tables: Array, n: int | None = None) -> Array:
        """n symbols by one table (S,), or one by each of (n, S); int64, in the order in which `push` was given them."""
        count = len(tables) if n is None else n
        self._provide(count * (PRECISION + 5))
        p = (tables / TOTAL).astype(np.float32)
        if n is None:
            found = self.coder.decode(self.family, p)
        else:
            found = self.coder.decode(self.models.Categorical(p, perfect=False), n)
        return np.asarray(found).astype(np.int64)

    def push_uniform(self, values: Array, size: int) -> None:
        """Integers (n,) of range(size), size <= 2^16."""
        self.coder.encode_reverse(np.ascontiguousarray(values, np.int32), self.models.Uniform(size))

    def pop_uniform(self, n: int, size: int) -> Array:
        self._provide(n * (WORD + 1))
        return np.asarray(self.coder.decode(self.models.Uniform(size), n)).astype(np.int64)

    def _provide(self, bits: int) -> None:
        if self.seeded and self.coder.num_bits() < bits + 3 * WORD:
            self._deepen(bits // WORD + 4)

    def payload(self) -> tuple[bytes, int]:
        """(the bits, how many words of the seed are among them or were popped)."""
        words = np.asarray(self.coder.get_compressed())
        seed, untouched = _seed(0, self.depth), 0
        if self.seeded:
            n = min(len(words), self.depth)
            differ = np.nonzero(words[:n] != seed[:n])[0]
            untouched = min(int(differ[0]) if len(differ) else n, max(0, len(words) - 2))
        data = words[untouched:].astype("<u4").tobytes()
        return data.rstrip(b"\0"), self.depth - untouched

    def is_fresh(self) -> bool:
        """Whether all that was pushed has been popped."""
        if not self.seeded:
            return bool(self.coder.is_empty())
        return bool(np.array_equal(self.coder.get_compressed(), _seed(0, self.depth)))


def opened(data: bytes, seeded: bool = False, used: int = 0) -> Stack:
    """The stack whose `payload` these are."""
    words = np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4").astype(np.uint32)
    return Stack(words, seeded, used)


def _seed(begin: int, end: int) -> Array:
    """Words `begin` to `end` of the seed, the first on top, i.e. last. The highest bit is set, so that any of them can be the top."""
    return np.array([mix_seed(i, 0xAE) & 0x7FFFFFFF | 0x80000000 for i in range(begin, end)][::-1], np.uint32)


def checksum(data: bytes) -> int:
    """CRC-32."""
    return zlib.crc32(data) & 0xFFFFFFFF
