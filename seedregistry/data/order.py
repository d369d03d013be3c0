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
    Iterable,
    List,
    NamedTuple,
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
from seedregistry.data.content import digest_sampler
from seedregistry.data.permutation import IndexedPermutation
from seedregistry.data.walk import find_generators
from seedregistry.errors import InvalidOptionError, UnrepeatableSamplerError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

Indices = Union[np.ndarray, List[Any]]
"""int64, or a list where a sampler yields keys that are no ints."""

SAMPLER_DIGEST = "sampler_digest"
"""What a state dict calls the digest of a sampler's content."""

_ORDER = "order"
_LARGEST_WHOLE = 10**8
_LARGEST_DIGESTED = 10**6


def documented_order(size: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the documented order: ``torch.randperm`` of a generator seeded with ``seed + epoch``.

    The epoch is added to the seed, so the orders of (seed, epoch 1) and (seed + 1, epoch 0) are
    equal. Component seeds are hashed, which keeps trainings apart; the rule stays for the sake of
    results that exist.

    Returns:
        int64 tensor of shape (size,), values from 0 to size - 1.
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
        """Return the indices at the positions ``start <= position < stop <= size``.

        Returns:
            int64 array of shape (stop - start,), or a list where the keys are no ints.
        """

    def occurrences(self, epoch: int, start: int, stop: int) -> Optional[Sequence[int]]:  # noqa: ARG002
        """Return how often the index at each position has come up before it in the epoch.

        None where no index comes up twice in an epoch.
        """
        return None

    def count(self, epoch: int, index: Any) -> int:  # noqa: ARG002
        """Return how often an index comes up in an epoch."""
        return 1

    def batches(self, epoch: int) -> Optional[Sequence[int]]:  # noqa: ARG002
        """Return the position after each batch, or None where the order does not decide batches."""
        return None

    def definition(self) -> Dict[str, Any]:
        """Return what decides the order, for the ledger and for state dicts."""
        return {"order": self.name, "samples": self.size}

    def identity(self) -> Dict[str, Any]:
        """Return what a state dict must match: the definition, and what the order is drawn from."""
        return self.definition()

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
        """Return SHA-256 over an epoch's indices: 64 hexadecimal digits, or None beyond 10**6."""
        if self.size > _LARGEST_DIGESTED:
            return None
        pieces = digest.PiecesDigest("seedregistry.epoch/1")
        indices = self.take(epoch, 0, self.size)
        pieces.add(
            indices.astype("<i8")
            if isinstance(indices, np.ndarray)
            else repr(list(indices)).encode()
        )
        return pieces.hexdigest()


@final
class SequentialOrder(Order):
    """0, 1, 2, ..."""

    name = "sequential"

    def take(self, epoch: int, start: int, stop: int) -> np.ndarray:  # noqa: ARG002
        """Return the positions themselves."""
        return np.arange(start, stop, dtype=np.int64)


class _EpochwiseOrder(Order):
    """An order that is computed an epoch at a time.

    The last two epochs stay in memory, for random access beside an iteration.
    """

    _cache: Tuple[Tuple[int, np.ndarray], ...] = ()

    @abc.abstractmethod
    def _permutation(self, epoch: int) -> np.ndarray:
        """Return all indices of an epoch, int64."""

    def take(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return a slice of the epoch's permutation."""
        # One assignment replaces the cache whole, so that another thread sees it before or after.
        for cached_epoch, permutation in self._cache:
            if cached_epoch == epoch:
                return permutation[start:stop]
        permutation = self._permutation(epoch)
        self._cache = ((epoch, permutation), *self._cache[:1])
        return permutation[start:stop]

    def __getstate__(self) -> Dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_cache"}


@final
class DocumentedOrder(_EpochwiseOrder):
    """``torch.randperm`` with a generator seeded with ``seed + epoch``."""

    name = "documented"

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size)
        self.seed = seed

    def _permutation(self, epoch: int) -> np.ndarray:
        return documented_order(self.size, self.seed, epoch).numpy()


@final
class HashedOrder(_EpochwiseOrder):
    """``torch.randperm`` with the generator of the position (epoch,) of a stream.

    No two pairs of seed and epoch share a generator.
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
    """A keyed permutation: any position of an epoch in constant time and memory."""

    name = "indexed"

    def __init__(self, size: int, stream: Stream) -> None:
        super().__init__(size)
        self.stream = stream
        self._cache: Optional[Tuple[int, IndexedPermutation]] = None

    def take(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return the indices at these positions, in time and memory that go with their number."""
        cache = self._cache
        if cache is None or cache[0] != epoch:
            permutation = IndexedPermutation(self.stream.at(_ORDER, epoch).key, self.size)
            cache = self._cache = (epoch, permutation)
        return cache[1].slice(start, stop)

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_cache": None}


class _Draw(NamedTuple):
    """What a sampler drew for an epoch.

    Attributes:
        epoch: the epoch.
        indices: what it drew, batches one after the other.
        earlier: how often each index has come up before; None where none comes up twice.
        counts: how often each index comes up in all; None where none comes up twice.
        ends: the position after each batch; None where the sampler makes no batches.
    """

    epoch: int
    indices: Indices
    earlier: Optional[List[int]]
    counts: Optional[Dict[Any, int]]
    ends: Optional[List[int]]


@final
class DrawnOrder(Order):
    """What a user's sampler, or batch sampler, draws at the position (epoch,) of a stream.

    For each epoch the sampler is copied as it was given, its ``generator`` is replaced by the
    position's and its ``set_epoch`` is called, where it has them. Then it draws in the position's
    scope. That is a function of (stream, epoch), unless the sampler reads something that changes
    outside of it.

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
        self._digest = digest_sampler(sampler)
        self._cache: Optional[_Draw] = None

    def _draw(self, epoch: int) -> _Draw:
        """Return what the sampler draws for an epoch; the last epoch stays in memory."""
        cache = self._cache
        if cache is not None and cache.epoch == epoch:
            return cache

        position = self.stream.at(epoch)
        sampler = _copy_with_generator(self.sampler, position)
        # Samplers of torch's draw on the default device, and the generator is the CPU's, so that
        # the order is the same wherever a model is trained.
        with position.scope(), torch.device("cpu"):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            items: List[Any] = list(sampler)

        ends: Optional[List[int]] = None
        if self._makes_batches:
            batches, items, ends = items, [], []
            for batch in batches:  # any iterable, of a length that only its end may tell
                items.extend(batch)
                ends.append(len(items))
        elif len(items) != self.size:
            message = (
                f"{type(sampler).__name__} said it has {self.size} indices and drew "
                f"{len(items)} in epoch {epoch}."
            )
            raise UnrepeatableSamplerError(message)

        # Tensors and NumPy's integers count as ints, so that an index is one key whatever drew it.
        indices: Indices = [
            item.__index__() if hasattr(item, "__index__") else item for item in items
        ]
        earlier, counts = _count(indices)
        repeats = len(counts) < len(indices)
        if all(type(index) is int for index in indices):
            indices = np.asarray(indices, dtype=np.int64)
        draw = _Draw(
            epoch, indices, earlier if repeats else None, counts if repeats else None, ends
        )
        self._cache = draw
        return draw

    def identity(self) -> Dict[str, Any]:
        """Return the definition, and a digest of what one of torch's samplers draws from."""
        return {**self.definition(), SAMPLER_DIGEST: self._digest}

    def take(self, epoch: int, start: int, stop: int) -> Indices:
        """Return a slice of what was drawn for the epoch."""
        return self._draw(epoch).indices[start:stop]

    def occurrences(self, epoch: int, start: int, stop: int) -> Optional[Sequence[int]]:
        """Return how often each index has come up before, or None where none comes up twice."""
        earlier = self._draw(epoch).earlier
        return None if earlier is None else earlier[start:stop]

    def count(self, epoch: int, index: Any) -> int:
        """Return how often an index was drawn."""
        counts = self._draw(epoch).counts
        return 1 if counts is None else counts.get(index, 0)

    def batches(self, epoch: int) -> Optional[Sequence[int]]:
        """Return the position after each batch of a batch sampler; None for a sampler."""
        return self._draw(epoch).ends

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_cache": None}


def _count(indices: Iterable[Any]) -> Tuple[List[int], Dict[Any, int]]:
    """Return how often each index has come up before, and how often it comes up in all.

    Keys that cannot be hashed, such as lists of indices, are told apart by their position alone.
    """
    counts: Dict[Any, int] = {}
    earlier = []
    for position, index in enumerate(indices):
        key = index if isinstance(index, Hashable) else (_UNHASHABLE, position)
        earlier.append(counts.get(key, 0))
        counts[key] = earlier[-1] + 1
    return earlier, counts


_GENERATOR = "generator"
_UNHASHABLE = object()


def _copy_with_generator(sampler: Any, position: Any) -> Any:
    """Return a copy of a sampler, and of the samplers in it, that draws from the position."""
    # Its attributes are copied too, so that an epoch changes no list or dict of the user's sampler.
    # Tensors and datasets stay shared: they may be large, and samplers read them.
    fresh = copy.copy(sampler)
    for name, value in list(getattr(fresh, "__dict__", {}).items()):
        if name == _GENERATOR:
            setattr(fresh, name, position.generator())
        elif isinstance(value, torch.utils.data.Sampler):
            setattr(fresh, name, _copy_with_generator(value, position))
        elif isinstance(value, torch.Tensor):
            # Weights made under a default device lie on it, and the generator is the CPU's.
            if type(sampler) is WeightedRandomSampler:
                setattr(fresh, name, value.cpu())
        elif not isinstance(value, torch.utils.data.Dataset):
            setattr(fresh, name, copy.copy(value))
    return fresh


def _length_of(sampler: Any) -> int:
    """Return the length of a sampler, or refuse one that has none."""
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


def _refuse_other_generators(sampler: Any) -> None:
    """Refuse a sampler with generators that are no attribute named ``generator``.

    The copy of each epoch would draw the same from them.
    """
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
    """Return the order of a user's sampler.

    Args:
        sampler: a sampler: torch's own, or any iterable of indices with a length.
        stream: the stream.
        size: samples in the dataset.
        plain: ``plain(shuffle=...)`` returns the order of a loader without a sampler, for the
            samplers that mean just that.

    Raises:
        UnrepeatableSamplerError: its draw cannot be made a function of (stream, epoch).
    """
    kind = type(sampler)
    if kind is SequentialSampler and _length_of(sampler) == size:
        return plain()
    if kind is RandomSampler and not sampler.replacement and sampler.num_samples == size:
        return plain(shuffle=True)
    if kind not in (RandomSampler, SubsetRandomSampler, WeightedRandomSampler):
        _refuse_other_generators(sampler)
    return DrawnOrder(sampler, stream, size=_length_of(sampler))


def order_of_batches(batch_sampler: Any, stream: Stream) -> Order:
    """Return the order of a user's batch sampler, which decides the batches too.

    Raises:
        UnrepeatableSamplerError: its draw cannot be made a function of (stream, epoch).
    """
    _length_of(batch_sampler)
    _refuse_other_generators(batch_sampler)

    # How many samples an epoch has is known only once it is drawn.
    order = DrawnOrder(batch_sampler, stream, size=0, makes_batches=True)
    ends = order.batches(0)
    order.size = ends[-1] if ends else 0
    return order
