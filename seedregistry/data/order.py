"""Orders: the indices of an epoch as a function of (stream, epoch), whole or by position."""

from __future__ import annotations

import abc
import copy
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Hashable,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
    final,
)

import numpy as np
import torch
from torch.utils.data import (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from seedregistry.common import digest
from seedregistry.data.permutation import IndexedPermutation
from seedregistry.errors import InvalidOptionError, UnrepeatableSamplerError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

Indices = Union[np.ndarray, List[Any]]
"""int64, or a list where a sampler yields keys that are no ints."""

_ORDER = "order"
_LARGEST_WHOLE = 10**8
_LARGEST_DIGESTED = 10**6


def documented_order(size: int, seed: int, epoch: int) -> torch.Tensor:
    """Return ``torch.randperm(size, generator=manual_seed(seed + epoch))``.

    Int64, shape (size,), values 0 to size - 1.

    The epoch is added to the seed, so the orders of (seed, epoch 1) and (seed + 1, epoch 0) are
    equal. Component seeds are hashed, which keeps runs apart; the rule stays for the sake of
    results that exist.
    """
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed + epoch), device="cpu")


class Order(abc.ABC):
    """The indices of an epoch.

    An immutable value apart from a cache of one epoch; thread-safe; pickles.

    Attributes:
        name: what the ledger and state dicts call the rule.
        size: positions in an epoch, int >= 0.
    """

    name: str

    def __init__(self, size: int) -> None:
        self.size = size

    @abc.abstractmethod
    def take(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the indices at positions ``start <= position < stop <= size``.

        An int64 array, or a list of other keys.
        """

    def occurrences(self, epoch: int, start: int, stop: int) -> Optional[Sequence[int]]:  # noqa: ARG002
        """Return how often each of them has come up before in the epoch.

        None where no index comes up twice.
        """
        return None

    def count(self, epoch: int, index: Any) -> int:  # noqa: ARG002
        """Return how often an index comes up in an epoch."""
        return 1

    def batches(self, epoch: int) -> Optional[Sequence[int]]:  # noqa: ARG002
        """Return the position after each batch, where the order decides the batches too.

        Else None.
        """
        return None

    def definition(self) -> Dict[str, Any]:
        """Return what decides the order, for the ledger and for state dicts."""
        return {"order": self.name, "samples": self.size}

    def whole(self, epoch: int) -> Indices:
        """Return all indices of an epoch.

        Raises:
            InvalidOptionError: there are more than 10**8.
        """
        if self.size > _LARGEST_WHOLE:
            message = (
                f"An epoch of {self.size} indices is too much at once; ask for one step: "
                "loader.indices(epoch, step)."
            )
            raise InvalidOptionError(message)
        return self.take(epoch, 0, self.size)

    def digest(self, epoch: int) -> Optional[str]:
        """Return SHA-256 over an epoch's indices, 64 hexadecimal digits.

        None for more than 10**6 of them.
        """
        if self.size > _LARGEST_DIGESTED:
            return None
        parts = digest.PiecesDigest("seedregistry.epoch/1")
        indices = self.take(epoch, 0, self.size)
        parts.add(
            indices.astype("<i8")
            if isinstance(indices, np.ndarray)
            else repr(list(indices)).encode()
        )
        return parts.hexdigest()


@final
class SequentialOrder(Order):
    """0, 1, 2, ..."""

    name = "sequential"

    def take(self, epoch: int, start: int, stop: int) -> np.ndarray:  # noqa: ARG002
        """Return the positions themselves."""
        return np.arange(start, stop, dtype=np.int64)


class _Cached(Order):
    """An order that is computed an epoch at a time.

    The last two are kept, for random access beside an iteration.
    """

    _kept: Tuple[Tuple[int, np.ndarray], ...] = ()

    @abc.abstractmethod
    def _permutation(self, epoch: int) -> np.ndarray:
        """Return all indices of an epoch, int64."""

    def take(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return a slice of the epoch's permutation."""
        for known, permutation in self._kept:
            if known == epoch:
                return permutation[start:stop]
        permutation = self._permutation(epoch)
        self._kept = ((epoch, permutation), *self._kept[:1])
        return permutation[start:stop]

    def __getstate__(self) -> Dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}


@final
class DocumentedOrder(_Cached):
    """``torch.randperm`` with a generator seeded with ``seed + epoch``."""

    name = "documented"

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size)
        self.seed = seed

    def _permutation(self, epoch: int) -> np.ndarray:
        return documented_order(self.size, self.seed, epoch).numpy()


@final
class HashedOrder(_Cached):
    """``torch.randperm`` with the generator of the position (epoch,) of a stream.

    No two (seed, epoch) share one.
    """

    name = "hashed"

    def __init__(self, size: int, stream: Stream) -> None:
        super().__init__(size)
        self.stream = stream

    def _permutation(self, epoch: int) -> np.ndarray:
        return torch.randperm(
            self.size, generator=self.stream.at(epoch).generator(), device="cpu"
        ).numpy()


@final
class IndexedOrder(Order):
    """A keyed permutation that is computed position by position.

    Constant memory, constant time to any position.
    """

    name = "indexed"

    def __init__(self, size: int, stream: Stream) -> None:
        super().__init__(size)
        self.stream = stream
        self._kept: Optional[Tuple[int, IndexedPermutation]] = None

    def take(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return the indices at these positions, in time and memory that go with their number."""
        kept = self._kept
        if kept is None or kept[0] != epoch:
            kept = self._kept = (
                epoch,
                IndexedPermutation(self.stream.at(_ORDER, epoch).key, self.size),
            )
        return kept[1].slice(start, stop)

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_kept": None}


_Drawn = Tuple[int, Indices, Optional[List[int]], Optional[Dict[Any, int]], Optional[List[int]]]


@final
class DrawnOrder(Order):
    """What a sampler, or a batch sampler, of the user's draws in the scope of the position (epoch,) of a stream.

    The sampler is copied for each epoch as it was given, its ``generator`` replaced by the
    position's and its ``set_epoch`` called where it has them: a function of (stream, epoch), unless
    it reads something that changes outside of it.

    Attributes:
        sampler: as given.
        kind: ``"sampler"`` or ``"batch_sampler"``.

    Args:
        sampler: the sampler; for batches, the batch sampler.
        stream: the stream.
        size: positions in an epoch.
        makes_batches: the sampler yields lists of indices.
    """

    def __init__(
        self, sampler: Any, stream: Stream, *, size: int, makes_batches: bool = False
    ) -> None:
        super().__init__(size)
        self.name = f"drawn by {type(sampler).__module__}.{type(sampler).__qualname__}"
        self.stream = stream
        self.sampler = sampler
        self.kind = "batch_sampler" if makes_batches else "sampler"
        self._makes_batches = makes_batches
        self._kept: Optional[_Drawn] = None

    def _draw(self, epoch: int) -> _Drawn:
        kept = self._kept
        if kept is not None and kept[0] == epoch:
            return kept
        position = self.stream.at(epoch)
        sampler = _reseeded(self.sampler, position)
        with position.scope():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            drawn: List[Any] = list(sampler)
        ends: Optional[List[int]] = None
        if self._makes_batches:
            ends, flat = [], []
            for batch in drawn:
                flat.extend(batch)
                ends.append(len(flat))
            drawn = flat
        if not self._makes_batches and len(drawn) != self.size:
            message = (
                f"{type(sampler).__name__} said it has {self.size} indices and drew "
                f"{len(drawn)} in epoch {epoch}."
            )
            raise UnrepeatableSamplerError(message)
        indices: List[Any] = [
            index.__index__() if hasattr(index, "__index__") else index for index in drawn
        ]
        before, counts = _count(indices)
        repeats = len(counts) < len(indices)
        taken: Indices = (
            np.asarray(indices, dtype=np.int64) if all(type(i) is int for i in indices) else indices
        )
        kept = (epoch, taken, before if repeats else None, counts if repeats else None, ends)
        self._kept = kept
        return kept

    def take(self, epoch: int, start: int, stop: int) -> Indices:
        """Return a slice of what was drawn for the epoch."""
        return self._draw(epoch)[1][start:stop]

    def occurrences(self, epoch: int, start: int, stop: int) -> Optional[Sequence[int]]:
        """Return how often each index has come up before."""
        before = self._draw(epoch)[2]
        return None if before is None else before[start:stop]

    def count(self, epoch: int, index: Any) -> int:
        """Return how often an index was drawn."""
        counts = self._draw(epoch)[3]
        return 1 if counts is None else counts.get(index, 0)

    def batches(self, epoch: int) -> Optional[Sequence[int]]:
        """Return the position after each batch, for a batch sampler."""
        return self._draw(epoch)[4]

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_kept": None}


def _count(indices: List[Any]) -> Tuple[List[int], Dict[Any, int]]:
    """Return how often each index has come up before, and how often it comes up in all.

    Keys that cannot be hashed, such as lists of indices, are told apart by their position alone.
    """
    counts: Dict[Any, int] = {}
    before = []
    for position, index in enumerate(indices):
        key = index if isinstance(index, Hashable) else (_UNHASHED, position)
        earlier = counts.get(key, 0)
        before.append(earlier)
        counts[key] = earlier + 1
    return before, counts


_GENERATOR = "generator"
_UNHASHED = object()


def _reseeded(sampler: Any, position: Any) -> Any:
    """Return a copy of a sampler, and of the samplers in it, with the position's generator in the place of its own."""
    fresh = copy.copy(sampler)
    for name, value in list(getattr(fresh, "__dict__", {}).items()):
        if name == _GENERATOR:
            setattr(fresh, name, position.generator())
        elif isinstance(value, torch.utils.data.Sampler):
            setattr(fresh, name, _reseeded(value, position))
        elif not isinstance(value, (torch.Tensor, torch.utils.data.Dataset)):
            setattr(fresh, name, copy.copy(value))
    return fresh


def _sized(sampler: Any) -> int:
    try:
        return len(sampler)
    except TypeError:
        message = (
            f"{type(sampler).__name__} has no length, so that an epoch has no end that could be "
            "resumed. Give it __len__, or draw the indices of an epoch yourself, with "
            "generator=stream.at(epoch).generator(), and pass torch.utils.data.Subset(dataset, "
            "indices)."
        )
        raise UnrepeatableSamplerError(message) from None


def _refuse_own_generators(sampler: Any) -> None:
    """Refuse a sampler with generators other than ``generator``.

    A copy would repeat the same draws in every epoch.
    """
    from seedregistry.data.walk import find_generators  # noqa: PLC0415 - walk is of no use before a custom sampler comes

    if hasattr(sampler, "set_epoch"):
        return
    held = [
        path
        for path, kind in find_generators(sampler, "sampler")
        if not path.endswith(f".{_GENERATOR}")
    ]
    if held:
        message = (
            f"{type(sampler).__name__} holds random number generators of its own "
            f"({', '.join(held)}): what they draw depends on what was drawn before. Let it draw "
            "from an attribute named generator (a torch.Generator, replaced for each epoch) or "
            "from the default generators (set for each epoch), or give it set_epoch(epoch)."
        )
        raise UnrepeatableSamplerError(message)


def order_of_sampler(
    sampler: Any, stream: Stream, size: int, *, plain: Callable[..., Order]
) -> Order:
    """Return the order of a sampler of the user's.

    Args:
        sampler: a sampler: torch's own, or any iterable of indices with a length.
        stream: the stream.
        size: samples in the dataset.
        plain: ``plain(shuffle=...)`` returns the loader's own order, for the samplers that mean
            just that.

    Raises:
        UnrepeatableSamplerError: its draw cannot be made a function of (stream, epoch).
    """
    kind = type(sampler)
    if kind is SequentialSampler and _sized(sampler) == size:
        return plain()
    if kind is RandomSampler and not sampler.replacement and sampler.num_samples == size:
        return plain(shuffle=True)
    if kind not in (RandomSampler, SubsetRandomSampler, WeightedRandomSampler):
        _refuse_own_generators(sampler)
    return DrawnOrder(sampler, stream, size=_sized(sampler))


def order_of_batches(batch_sampler: Any, stream: Stream) -> Order:
    """Return the order of a batch sampler of the user's, which decides the batches too.

    Raises:
        UnrepeatableSamplerError: its draw cannot be made a function of (stream, epoch).
    """
    _sized(batch_sampler)
    _refuse_own_generators(batch_sampler)
    order = DrawnOrder(batch_sampler, stream, size=0, makes_batches=True)
    first = order.batches(0)
    assert first is not None  # noqa: S101 - it makes batches
    order.size = first[-1] if first else 0
    return order
