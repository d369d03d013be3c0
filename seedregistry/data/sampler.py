"""Samplers: the order of an epoch, documented (``seed + epoch``) or hashed (a position of the stream)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator

import torch

from seedregistry import derivation
from seedregistry.errors import InvalidOptionError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

__all__ = ["DeterministicSampler", "HashedSampler", "check_count", "documented_order"]

_SEED_BITS = 64


def documented_order(size: int, seed: int, epoch: int) -> torch.Tensor:
    """Return ``torch.randperm(size, generator=manual_seed(seed + epoch))``: int64, shape (size,), values 0 to size - 1.

    The epoch is added to the seed, so the orders of (seed, epoch 1) and (seed + 1, epoch 0) are equal. Component seeds are
    hashed, which keeps runs apart; the rule stays for the sake of results that exist.
    """
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed + epoch), device="cpu")


class DeterministicSampler(torch.utils.data.Sampler):  # type: ignore[type-arg]
    """Yields the indices of an epoch, shuffled by ``documented_order`` or in sequence.

    Every iteration of one epoch is the same; the epoch changes only by :meth:`set_epoch`. Not thread-safe. Pickles.

    Args:
        dataset_size: number of samples, int >= 0.
        shuffle: permute the indices.
        seed: int, ``0 <= seed < 2**64``.
        epoch: int >= 0.

    Attributes:
        epoch: the epoch that iteration yields; assignable.

    Raises:
        InvalidSeedError: the seed is not such an int.
        InvalidOptionError: the size or the epoch is not an int >= 0.
    """

    def __init__(self, dataset_size: int, shuffle: bool = True, seed: int = 42, epoch: int = 0) -> None:  # noqa: FBT001, FBT002 - the documented signature
        self.dataset_size = check_count(dataset_size, "dataset_size")
        self.shuffle = bool(shuffle)
        self.seed = derivation.validate_master_seed(seed, bits=_SEED_BITS, name="seed of a sampler")
        self.epoch = check_count(epoch, "epoch")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration: an int >= 0."""
        self.epoch = check_count(epoch, "epoch")

    def order(self, epoch: int) -> torch.Tensor:
        """Return the permutation of an epoch: int64, shape (dataset_size,)."""
        return documented_order(self.dataset_size, self.seed, epoch)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.dataset_size))
        indices: Iterator[int] = iter(self.order(self.epoch).tolist())
        return indices

    def __len__(self) -> int:
        return self.dataset_size


class HashedSampler(DeterministicSampler):
    """Yields the indices of an epoch, shuffled by ``randperm`` with the generator of the position (epoch,) of a stream.

    The order of scheme ``sha256-256``: no two of (seed, epoch) share one, and the generator takes the whole key.

    Args:
        stream: the stream.
        dataset_size: number of samples, int >= 0.
        shuffle: permute the indices.
    """

    def __init__(self, stream: Stream, dataset_size: int, *, shuffle: bool) -> None:
        super().__init__(dataset_size, shuffle=shuffle, seed=stream.seed)
        self._stream = stream

    def order(self, epoch: int) -> torch.Tensor:
        """Return the permutation of an epoch: int64, shape (dataset_size,)."""
        return torch.randperm(self.dataset_size, generator=self._stream.at(epoch).generator(), device="cpu")


def check_count(value: int, name: str) -> int:
    """Return a count as an int >= 0, or refuse it with an ``InvalidOptionError``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 0:
        message = f"{name} must be an int >= 0; got {value!r} ({type(value).__name__})."
        raise InvalidOptionError(message)
    return value.__index__()
