"""The indexed order: a keyed permutation of range(size) that is computed position by position.

Where ``randperm`` draws a whole epoch to know a batch, this computes any slice of the order from
the key alone. Up to 4,096 elements it is a table, sorted by random words, which favours no
permutation. Above, it is a generalised Feistel network with cycle walking, so that 10**12 samples
take the memory of ten.

Every rule here is frozen, as in :mod:`seedregistry.derivation`: the vectors in
``tests/data/permutation.json`` and in ``docs/orders.md`` hold them. Only integers are used, each of
a stated width, and words are little-endian on every machine.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, section 4
("Cycle-Walking Cipher": values outside the domain are enciphered again) and section 5
("Generalized-Feistel Cipher": halves of a and b values with modular sums); Luby and Rackoff, "How
to construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 17(2), 1988
(why rounds of unrelated functions make a permutation that looks random); FIPS 202 (SHAKE-128).
"""

from __future__ import annotations

import hashlib
from typing import Tuple, Union

import numpy as np
import numpy.typing as npt

from seedregistry.errors import InvalidOptionError, OutOfRangeError

_TAG = b"seedregistry/1/permutation"
_KEY_BYTES = 32
_SIZE_BITS = 62
# A network over so few values would be visibly biased, and a table of 32 KiB costs less than 1 ms.
_TABLE_SIZE = 4096
_ROUNDS = 10
# Each step of a round is one pass of NumPy over a chunk. The values and the work space of a chunk,
# 32 bytes an element, stay in the L2 cache of a core between passes.
_CHUNK = 1 << 15

_U32 = np.uint32
_U64 = np.uint64
_HALF_BITS = 32

Words = npt.NDArray[np.uint32]
Values = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


class IndexedPermutation:
    """A permutation of ``range(size)`` that is a function of a key and of the size.

    Keys that differ in one bit, and sizes that differ by one, give unrelated permutations. Not for
    secrets: the round function mixes well, and no cryptographic strength is claimed for it.

    Immutable, so instances may be shared between threads. Pickles as its key and its size. Memory:
    at most 64 KiB, and what the results take.

    Example:
        >>> from seedregistry.data import IndexedPermutation
        >>> order = IndexedPermutation(bytes(range(32)), 10**12)
        >>> indices = order.slice(5 * 10**11, 5 * 10**11 + 3)
        >>> indices.tolist()
        [931532171662, 666682055659, 959137377749]
        >>> order.position(indices).tolist()
        [500000000000, 500000000001, 500000000002]

    Args:
        key: 32 bytes, such as the ``key`` of a position of a stream.
        size: number of elements, int, ``0 <= size <= 2**62``.

    Raises:
        InvalidOptionError: the key or the size is not such a value.
    """

    __slots__ = ("_key", "_rule", "_size")

    def __init__(self, key: bytes, size: int) -> None:
        if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
            came = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise InvalidOptionError(
                f"The key of a permutation must be {_KEY_BYTES} bytes; got {came}."
            )
        number = _integer(size, "size of a permutation")
        if not 0 <= number <= 1 << _SIZE_BITS:
            message = (
                f"The size of a permutation must be in 0 <= size <= 2**{_SIZE_BITS}; got {size!r}."
            )
            raise InvalidOptionError(message)
        self._key = key
        self._size = number
        self._rule: Union[_Table, _Network] = (
            _Table(key, number) if number <= _TABLE_SIZE else _Network(key, number)
        )

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._size

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"IndexedPermutation(key={self._key[:4].hex()}..., size={self._size})"

    def __reduce__(self) -> Tuple[type, Tuple[bytes, int]]:
        return IndexedPermutation, (self._key, self._size)

    def take(self, positions: npt.ArrayLike) -> Indices:
        """Return the indices that stand at some positions.

        Args:
            positions: integers of any shape and integer dtype, ``0 <= position < size``; repeats
                are allowed.

        Returns:
            A new int64 array of their shape, values from 0 to size - 1.

        Raises:
            OutOfRangeError: a position lies outside the permutation, as -1 does: none is counted
                from the end.
            InvalidOptionError: the positions are not integers.
        """
        return self._map(self._check(positions, "position"), inverse=False)

    def slice(self, start: int, stop: int) -> Indices:
        """Return the indices at the positions ``start`` to ``stop - 1``, as :meth:`take` would.

        Args:
            start: first position, int, ``0 <= start <= stop``.
            stop: first position that is left out, int, ``stop <= size``.

        Returns:
            int64 array of shape (stop - start,). Time and memory are proportional to its length,
            wherever it starts.

        Raises:
            OutOfRangeError: not ``0 <= start <= stop <= size``.
            InvalidOptionError: ``start`` or ``stop`` is not an integer.
        """
        first, last = _integer(start, "start of a slice"), _integer(stop, "stop of a slice")
        if not 0 <= first <= last <= self._size:
            message = (
                f"A slice must have 0 <= start <= stop <= {self._size}; got start={first}, "
                f"stop={last}."
            )
            raise OutOfRangeError(message, value=f"{first}:{last}")
        return self._map(np.arange(first, last, dtype=np.int64), inverse=False)

    def position(self, indices: npt.ArrayLike) -> Indices:
        """Return the positions at which some indices stand: the inverse of :meth:`take`.

        Args:
            indices: integers of any shape and integer dtype, ``0 <= index < size``.

        Returns:
            A new int64 array of their shape, values from 0 to size - 1.

        Raises:
            OutOfRangeError: an index lies outside the permutation.
            InvalidOptionError: the indices are not integers.
        """
        return self._map(self._check(indices, "index"), inverse=True)

    def _check(self, values: npt.ArrayLike, name: str) -> Indices:
        """Return the values as a new int64 array in C order, or refuse them."""
        given = np.asarray(values)
        if given.size == 0:
            return np.empty(given.shape, np.int64)
        if given.dtype.kind not in "iu":
            message = (
                f"Each {name} of a permutation must be an integer; got an array of {given.dtype}."
            )
            raise InvalidOptionError(message)
        # Before the conversion, in which a large uint64 would wrap to a negative number.
        for extreme in (int(given.min()), int(given.max())):
            if not 0 <= extreme < self._size:
                message = (
                    f"Each {name} must be in 0 <= {name} < {self._size}, the size of the "
                    f"permutation; got {extreme}."
                )
                raise OutOfRangeError(message, value=str(extreme))
        return np.array(given, dtype=np.int64, order="C")

    def _map(self, values: Indices, *, inverse: bool) -> Indices:
        """Map an array that nobody else holds, in place and chunk by chunk, and return it."""
        flat = values.reshape(-1).view(_U64)  # no value is negative, so the bits mean the same
        chunk = max(1, min(_CHUNK, flat.size))
        space = _WorkSpace(chunk)
        for start in range(0, flat.size, chunk):
            self._rule.map(flat[start : start + chunk], space, inverse=inverse)
        return values


class _WorkSpace:
    """Arrays for a chunk, made once for each call, so that calls in two threads share none."""

    __slots__ = ("left", "product", "right", "shifted", "word")

    def __init__(self, count: int) -> None:
        self.left, self.right, self.word, self.shifted = (np.empty(count, _U32) for _ in range(4))
        self.product = np.empty(count, _U64)


class _Table:
    """The permutation that sorts ``size`` random 64-bit words.

    It is uniform but for ties among the words, which come with a probability of at most ``size**2 /
    2**65``.
    """

    __slots__ = ("_indices", "_positions")

    def __init__(self, key: bytes, size: int) -> None:
        words = np.frombuffer(_digest(key, size, 8 * size), "<u8").astype(_U64)
        # Stable: of equal words the lower index comes first, on every machine.
        order = np.argsort(words, kind="stable")
        self._indices = order.astype(_U64)
        self._positions = np.empty(size, _U64)
        self._positions[order] = np.arange(size, dtype=_U64)

    def map(self, values: Values, space: _WorkSpace, *, inverse: bool) -> None:
        """Map values below the size in place."""
        del space
        values[:] = (self._positions if inverse else self._indices)[values.view(np.int64)]


class _Network:
    """A generalised Feistel network over ``a * b >= size`` values, with cycle walking.

    A value is ``right * a + left`` with ``left < a = 2**k`` and ``right < b``. Even rounds, from 0,
    add a function of the left half to the right one modulo b. Odd rounds add a function of the
    right half to the left one modulo a.
    """

    __slots__ = ("_b", "_left_bits", "_size", "_words")

    def __init__(self, key: bytes, size: int) -> None:
        self._size = size
        # The left half has the low bits, in which neighbouring positions differ: the first round
        # is a function of it, so that it already parts them. It is a power of two, so that only the
        # right half needs a modulus that is none. Both halves are near the square root of the size,
        # so that they fit 31 bits for every size up to 2**62.
        self._left_bits = ((size - 1).bit_length() + 1) // 2
        self._b = -(-size >> self._left_bits)  # ceil(size / a)
        words = np.frombuffer(_digest(key, size, 8 * _ROUNDS), "<u4").astype(_U32)
        self._words = words.reshape(_ROUNDS, 2)

    def map(self, values: Values, space: _WorkSpace, *, inverse: bool) -> None:
        """Map values below the size in place.

        Source: Black and Rogaway 2002, section 4.
        """
        self._walk(values, space, inverse=inverse)
        if self._b << self._left_bits == self._size:
            return

        # A value that lands outside is sent through again. It ends, since the rounds permute a * b
        # values and the cycle of a value below the size leads back to it at the latest. It is a
        # permutation, since each value goes to the next one of its cycle that is below the size;
        # backwards the same walk finds the one before. Fewer than a of the a * b values lie
        # outside, so that a second walk is as rare as 1 in b.
        outside = np.flatnonzero(values >= _U64(self._size))
        while outside.size:
            again = values[outside]
            self._walk(again, space, inverse=inverse)
            values[outside] = again
            outside = outside[again >= _U64(self._size)]

    def _walk(self, values: Values, space: _WorkSpace, *, inverse: bool) -> None:
        """Send values below ``a * b`` through all rounds once, in place.

        Source: Black and Rogaway 2002, section 5.
        """
        # Every operation writes into work space that is there: fresh arrays for each of some ten
        # passes a round would cost more time than the arithmetic.
        count, bits = values.size, _U64(self._left_bits)
        left, right, word, product = (
            space.left[:count],
            space.right[:count],
            space.word[:count],
            space.product[:count],
        )
        mask, b = _U32((1 << self._left_bits) - 1), _U32(self._b)
        np.copyto(left, values, casting="unsafe")  # the low 32 bits
        np.bitwise_and(left, mask, out=left)
        np.right_shift(values, bits, out=product)
        np.copyto(right, product, casting="unsafe")

        # Sums, not exclusive or: a round of those is an even permutation for every key, and so
        # would all rounds together be.
        for number in range(_ROUNDS - 1, -1, -1) if inverse else range(_ROUNDS):
            words = self._words[number]
            if number % 2:
                _mix(right, words, word, space.shifted[:count])
                np.right_shift(word, _U32(_HALF_BITS - self._left_bits), out=word)
                (np.subtract if inverse else np.add)(left, word, out=left)
                np.bitwise_and(left, mask, out=left)
                continue

            # word * b / 2**32 is below b; a remainder would take a division for each element.
            _mix(left, words, word, space.shifted[:count])
            np.copyto(product, word)
            np.multiply(product, _U64(self._b), out=product)
            np.right_shift(product, _U64(_HALF_BITS), out=product)
            np.copyto(word, product, casting="unsafe")
            # Of the sum and the sum less b (or the difference and the difference plus b), modulo
            # 2**32, the smaller is the remainder by b, since b is at most 2**31.
            (np.subtract if inverse else np.add)(right, word, out=right)
            (np.add if inverse else np.subtract)(right, b, out=word)
            np.minimum(right, word, out=right)

        np.copyto(values, right)
        np.left_shift(values, bits, out=values)
        np.copyto(product, left)
        np.bitwise_or(values, product, out=values)


def _mix(half: Words, words: Words, word: Words, shifted: Words) -> None:
    """Write a 32-bit word for each half into ``word``; its high bits are the well mixed ones.

    Source: fmix32 of MurmurHash3 (Appleby, 2011; public domain), a key word added before it and one
    inside, without the last shift, which would only change low bits.
    """
    np.add(half, words[0], out=word)
    np.right_shift(word, _U32(16), out=shifted)
    np.bitwise_xor(word, shifted, out=word)
    np.multiply(word, _U32(0x85EBCA6B), out=word)
    np.right_shift(word, _U32(13), out=shifted)
    np.bitwise_xor(word, shifted, out=word)
    np.add(word, words[1], out=word)
    np.multiply(word, _U32(0xC2B2AE35), out=word)


def _digest(key: bytes, size: int, count: int) -> bytes:
    """Return ``count`` bytes that are a function of a key and a size."""
    return hashlib.shake_128(_TAG + key + size.to_bytes(8, "big")).digest(count)


def _integer(value: object, name: str) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise InvalidOptionError(f"The {name} must be an int; got {value!r} ({type(value).__name__}).")
