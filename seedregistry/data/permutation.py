"""A keyed permutation of ``range(size)`` that is computed position by position, in constant memory.

Above 4,096 it is a Feistel network over the smallest power of two that holds the size, with cycle walking: a value that
falls outside is sent through again until it falls inside, which keeps it a bijection. Up to 4,096, where a network of few
bits would favour some permutations, it is a Fisher-Yates table drawn without bias.

Sources: M. Luby and C. Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 17
(1988), the network; J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, section 3, the table, and
section 4, cycle walking; A. Appleby, MurmurHash3 (``fmix32``), the mixing of a round. It spreads; it keeps no secrets.
"""

from __future__ import annotations

import hashlib
from typing import List, Tuple

import numpy as np

from seedregistry.errors import InvalidOptionError

__all__ = ["IndexedPermutation"]

_TAG = b"seedregistry/1/permutation"
_LARGEST = 1 << 62
_LARGEST_TABLE = 1 << 12
_ROUNDS = 8
_CHUNK = 1 << 14
_WORD_BYTES = 4
_KEY_BYTES = 32
_U32 = np.uint32
_FIRST, _SECOND = _U32(0x85EBCA6B), _U32(0xC2B2AE35)
_BY_16, _BY_13 = _U32(16), _U32(13)


def _words(material: bytes, count: int) -> List[int]:
    """Return 32-bit words of SHAKE-128, little-endian."""
    stream = hashlib.shake_128(material).digest(count * _WORD_BYTES)
    return [int.from_bytes(stream[i : i + _WORD_BYTES], "little") for i in range(0, len(stream), _WORD_BYTES)]


def _table(material: bytes, size: int) -> np.ndarray:
    """Return a permutation by Fisher and Yates: for i from size - 1 down to 1, swap i with a uniform j <= i.

    j is a 32-bit word modulo i + 1; words in the incomplete last run of i + 1 values are passed over, so that no j is
    favoured.
    """
    count = size + 64
    words = _words(material, count)
    used = 0
    values = list(range(size))
    for i in range(size - 1, 0, -1):
        limit = (1 << 32) - (1 << 32) % (i + 1)
        while True:
            if used == count:
                count *= 2
                words = _words(material, count)
            word = words[used]
            used += 1
            if word < limit:
                break
        j = word % (i + 1)
        values[i], values[j] = values[j], values[i]
    return np.array(values, dtype=np.int64)


class IndexedPermutation:
    """A permutation of ``range(size)`` decided by a key. An immutable value; thread-safe.

    Args:
        key: 32 bytes.
        size: int, ``0 <= size <= 2**62``.

    Raises:
        InvalidOptionError: another size or key.
    """

    def __init__(self, key: bytes, size: int) -> None:
        if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
            message = f"A permutation takes a key of 32 bytes; got {key!r}."
            raise InvalidOptionError(message)
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _LARGEST:
            message = f"A permutation takes a size from 0 to 2**62; got {size!r}."
            raise InvalidOptionError(message)
        self.size = size
        material = _TAG + key + size.to_bytes(8, "big")
        self._map: Tuple[np.ndarray, ...] = ()
        if size <= _LARGEST_TABLE:
            table = _table(material, size)
            inverse = np.empty_like(table)
            inverse[table] = np.arange(size, dtype=np.int64)
            self._map = (table, inverse)
            return
        bits = (size - 1).bit_length()
        self._low_bits = bits // 2
        self._low_mask = _U32((1 << self._low_bits) - 1)
        self._high_mask = _U32((1 << (bits - self._low_bits)) - 1)
        words = [_U32(word) for word in _words(material, 2 * _ROUNDS)]
        self._keys = list(zip(words[::2], words[1::2]))

    def __len__(self) -> int:
        return self.size

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Return the indices at positions ``start <= position < stop``: int64, in memory that goes with their number."""
        if self._map:
            part: np.ndarray = self._map[0][start:stop].copy()
            return part
        self._check(start, max(start, stop - 1), start < stop)
        found = np.empty(max(0, stop - start), dtype=np.int64)
        for begin in range(start, stop, _CHUNK):
            end = min(stop, begin + _CHUNK)
            found[begin - start : end - start] = self._walk(np.arange(begin, end, dtype=np.uint64), inverse=False)
        return found

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the indices at positions: int64, of the same shape.

        Raises:
            InvalidOptionError: a position is outside ``0 <= position < size``.
        """
        return self._take(positions, inverse=False)

    def position(self, indices: np.ndarray) -> np.ndarray:
        """Return the positions of indices: the inverse of :meth:`take`."""
        return self._take(indices, inverse=True)

    def _check(self, low: int, high: int, is_any: bool) -> None:  # noqa: FBT001
        if is_any and not 0 <= low <= high < self.size:
            message = f"Positions of a permutation of {self.size} are 0 to {self.size - 1}; got {low} to {high}."
            raise InvalidOptionError(message)

    def _take(self, values: np.ndarray, *, inverse: bool) -> np.ndarray:
        values = np.asarray(values, dtype=np.int64)
        if values.size:
            self._check(int(values.min()), int(values.max()), is_any=True)
        if self._map:
            mapped: np.ndarray = self._map[inverse][values]
            return mapped
        flat = values.ravel().astype(np.uint64)
        found = np.empty(flat.shape, dtype=np.int64)
        for begin in range(0, len(flat), _CHUNK):
            found[begin : begin + _CHUNK] = self._walk(flat[begin : begin + _CHUNK], inverse=inverse)
        return found.reshape(values.shape)

    def _walk(self, values: np.ndarray, *, inverse: bool) -> np.ndarray:
        """Send values through the network until all are below the size."""
        values = self._network(values, inverse=inverse)
        outside = np.flatnonzero(values >= self.size)
        while len(outside):
            again = self._network(values[outside], inverse=inverse)
            values[outside] = again
            outside = outside[again >= self.size]
        return values.view(np.int64)

    def _network(self, values: np.ndarray, *, inverse: bool) -> np.ndarray:
        """Send values once through the rounds, from the last to the first for the inverse."""
        low_bits = np.uint64(self._low_bits)
        high = (values >> low_bits).astype(_U32)
        low = values.astype(_U32) & self._low_mask
        mixed, shifted = np.empty_like(low), np.empty_like(low)
        rounds = range(_ROUNDS)
        for number in reversed(rounds) if inverse else rounds:
            # The halves take turns, so that they may differ by a bit; each round is its own inverse.
            source, target, mask = (low, high, self._high_mask) if number % 2 == 0 else (high, low, self._low_mask)
            first, second = self._keys[number]
            np.add(source, first, out=mixed)
            np.right_shift(mixed, _BY_16, out=shifted)
            np.bitwise_xor(mixed, shifted, out=mixed)
            np.multiply(mixed, _FIRST, out=mixed)
            np.right_shift(mixed, _BY_13, out=shifted)
            np.bitwise_xor(mixed, shifted, out=mixed)
            np.add(mixed, second, out=mixed)
            np.multiply(mixed, _SECOND, out=mixed)
            np.right_shift(mixed, _BY_16, out=shifted)
            np.bitwise_xor(mixed, shifted, out=mixed)
            np.bitwise_and(mixed, mask, out=mixed)
            np.bitwise_xor(target, mixed, out=target)
        wide: np.ndarray = high.astype(np.uint64)
        np.left_shift(wide, low_bits, out=wide)
        np.bitwise_or(wide, low, out=wide)
        return wide
