"""What a dataset or a sampler holds, in 16 digits: by these a loader's state knows its own data.

It is read from tensors, arrays and lists of numbers alone, wherever attributes lead to them. No
sample is fetched and no code of the user's runs: a dataset may open files when it is asked for a
sample, which must not happen in the process that starts the workers.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, List, Optional

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from seedregistry.common.digest import PiecesDigest
from seedregistry.common.tensors import tensor_bytes

_DIGITS = 16
_MOST_BYTES = 2**20
_ROWS = 64
_MOST_ELEMENTS = 10_000
_DEPTH = 4
_NUMBERS = (bool, int, float, np.generic)

_SAMPLERS = (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
"""Samplers whose attributes are known to decide what they draw, and to be alike on every rank."""


def digest_dataset(dataset: Any) -> Optional[str]:
    """Return 16 hexadecimal digits over what a dataset holds, or None where nothing is to be seen.

    Tensors and arrays of more than 1 MiB, and lists of more than 10,000 numbers, count by 64 of
    their rows. Text counts where it is a sample itself; as an attribute it may be a path, which is
    another on another machine.
    """
    content = _Content("seedregistry.dataset/1")
    content.add(dataset, texts=True)
    return content.hexdigest()


def digest_sampler(sampler: Any) -> Optional[str]:
    """Return 16 hexadecimal digits over what one of torch's samplers draws from, whole.

    Returns:
        None for a sampler of the user's: what it holds may be another thing on every rank.
    """
    if type(sampler) not in _SAMPLERS:
        return None
    content = _Content("seedregistry.sampler/1", is_whole=True)
    content.add(sampler)
    return content.hexdigest()


class _Content:
    """A digest over the numbers that can be reached from an object.

    Args:
        tag: what the digest is of.
        is_whole: read every number, and the plain ones among the attributes too.
    """

    def __init__(self, tag: str, *, is_whole: bool = False) -> None:
        self._pieces = PiecesDigest(tag)
        self._is_whole = is_whole
        self._is_empty = True

    def hexdigest(self) -> Optional[str]:
        """Return the digest so far; None where nothing was added that counts."""
        return None if self._is_empty else self._pieces.hexdigest()[:_DIGITS]

    def add(self, value: Any, depth: int = _DEPTH, *, texts: bool = False) -> None:
        """Add a value and what it holds, as far as it is of a kind that counts."""
        if type(value) in (torch.Tensor, torch.nn.Parameter) or isinstance(value, np.ndarray):
            with contextlib.suppress(Exception):  # a file that is closed, a device that is gone
                self._add_array(value)
        elif isinstance(value, range):
            self._add_piece(repr(value).encode())
        elif isinstance(value, (list, tuple)):
            self._add_elements(value, depth, texts=texts)
        elif isinstance(value, _NUMBERS):
            self._add_piece(repr(value.item() if isinstance(value, np.generic) else value).encode())
        elif texts and isinstance(value, (str, bytes)):
            self._add_piece(value.encode() if isinstance(value, str) else value)
        elif isinstance(value, (Dataset, Sampler)) and depth:
            for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
                self._add_attribute(name, attribute, depth - 1)

    def _add_attribute(self, name: str, value: Any, depth: int) -> None:
        # A dataset may count in a plain number what it has done. Of a sampler's dataset the length
        # counts, which the order has.
        if isinstance(value, Dataset if self._is_whole else _NUMBERS):
            return
        self._pieces.add(name.encode())
        self.add(value, depth)

    def _add_elements(self, values: Any, depth: int, *, texts: bool) -> None:
        self._pieces.add(str(len(values)).encode())
        if self._is_whole and all(type(value) is int for value in values):
            self._add_array(np.asarray(values, dtype=np.int64))
            return
        rows = _spread(len(values)) if len(values) > _MOST_ELEMENTS else range(len(values))
        for row in rows if depth else ():
            self.add(values[row], depth - 1, texts=texts)

    def _add_array(self, array: Any) -> None:
        if not array.shape:
            return  # a plain number
        pieces = [f"{array.dtype} {tuple(array.shape)}".encode()]
        item_size = array.itemsize
        if self._is_whole or item_size * math.prod(array.shape) <= _MOST_BYTES:
            pieces.append(_bytes_of(array))
        else:
            # The beginning of each row, where rows are long.
            most = _MOST_BYTES // _ROWS // item_size
            pieces += [_bytes_of(array[row].reshape(-1)[:most]) for row in _spread(array.shape[0])]
        for piece in pieces:
            self._add_piece(piece)

    def _add_piece(self, piece: bytes) -> None:
        self._is_empty = False
        self._pieces.add(piece)


def _bytes_of(array: Any) -> bytes:
    return tensor_bytes(array).tobytes() if isinstance(array, torch.Tensor) else array.tobytes()


def _spread(length: int) -> List[int]:
    """Return up to 64 positions of a sequence, from the first to the last."""
    last = length - 1
    return sorted({last * number // (_ROWS - 1) for number in range(_ROWS)})
