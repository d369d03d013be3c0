"""Samplers: the documented one, which yields indices, and the loader's, which yield addresses."""

from __future__ import annotations

from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple, cast

import numpy as np
from torch.utils.data import BatchSampler, DistributedSampler

from seedregistry import derivation
from seedregistry.common.options import check_count
from seedregistry.data.cursor import Cursor
from seedregistry.data.order import SequentialOrder, documented_order
from seedregistry.data.shards import Shards, refuse_missing_shard, resolve_shard
from seedregistry.errors import InvalidOptionError, ShardingError

if TYPE_CHECKING:
    from seedregistry.data.address import Address
    from seedregistry.data.order import Order
    from seedregistry.data.shards import Shard
    from seedregistry.stream import Stream

_SEED_BITS = 64
_CHUNK = 1 << 16


class DeterministicSampler(DistributedSampler):  # type: ignore[type-arg]
    """Yields the indices of an epoch, shuffled by the documented order or in sequence.

    Every iteration of an epoch is the same, and no iteration changes the epoch. Not thread-safe.
    Pickles. It is a ``DistributedSampler`` by class alone, so that frameworks leave it in its
    place.

    Example:
        >>> from seedregistry import DeterministicSampler
        >>> sampler = DeterministicSampler(5, seed=42)
        >>> list(sampler)
        [2, 4, 3, 0, 1]
        >>> sampler.set_epoch(1)
        >>> list(sampler)
        [3, 1, 4, 2, 0]

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

    rank = 0
    num_replicas = 1
    drop_last = False

    def __init__(
        self,
        dataset_size: int,
        shuffle: bool = True,  # noqa: FBT001, FBT002 - the documented signature
        seed: int = 42,
        epoch: int = 0,
    ) -> None:
        self.dataset_size = check_count(dataset_size, "dataset_size")
        self.shuffle = bool(shuffle)
        self.seed = derivation.validate_master_seed(seed, bits=_SEED_BITS, name="seed of a sampler")
        self.epoch = check_count(epoch, "epoch")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration: an int >= 0."""
        self.epoch = check_count(epoch, "epoch")

    def __iter__(self) -> Iterator[Any]:
        if not self.shuffle:
            return iter(range(self.dataset_size))
        return iter(documented_order(self.dataset_size, self.seed, self.epoch).tolist())

    def __len__(self) -> int:
        return self.dataset_size


class EpochSampler(Cursor, DeterministicSampler):
    """Yields the addresses of an epoch's samples: index, and epoch, step and position to draw at.

    It holds all that decides what comes next, the epoch and a loaded position, because frameworks
    take loaders apart and keep the sampler. Lives as long as its loader; not thread-safe; pickles.

    Args:
        stream: the stream of the loader.
        order: the indices of an epoch.
        batch_size: samples of this rank in a step; None for a loader without batches, whose steps
            are samples.
        drop_last: drop a last step that is not full.
        shard: True (rank and world size from ``torch.distributed``, read when an epoch begins),
            (rank, world size), False (somebody else divides the samples, or nobody) or None (an
            error with more than one rank).
        global_batch_size: samples in a step of all ranks together, instead of ``batch_size``; a
            last step that is not full is padded from the beginning of the epoch, or dropped.
        advances: the epoch goes up by one after each pass.
    """

    def __init__(
        self,
        stream: Stream,
        order: Order,
        *,
        batch_size: Optional[int],
        drop_last: bool = False,
        shard: Shard = None,
        global_batch_size: Optional[int] = None,
        advances: bool = True,
    ) -> None:
        self.advances = advances
        self.stream = stream
        self.order = order
        self.seed = stream.seed
        self.shuffle = not isinstance(order, SequentialOrder)
        self.dataset_size = order.size
        self.drop_last = drop_last
        self.shard = shard
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size
        self._shards: Optional[Shards] = None

    # --- ranks ------------------------------------------------------------------------------------

    @property
    def shards(self) -> Shards:
        """How an epoch is divided: with ``shard=True``, by rank and world size of this moment.

        Raises:
            ShardingError: there are several ranks and no ``shard``, or the global batch cannot be
                divided by them.
        """
        rank, world_size = resolve_shard(self.shard)
        shards = self._shards
        if shards is not None and (shards.rank, shards.world_size) == (rank, world_size):
            return shards

        total = self.global_batch_size
        if total is None:
            total = (self.batch_size or 1) * world_size
        elif total % world_size:
            message = f"global_batch_size={total} cannot be divided by {world_size} ranks."
            raise ShardingError(message)
        self._shards = Shards(
            samples=self.order.size,
            global_batch_size=total,
            tail=self.tail,
            rank=rank,
            world_size=world_size,
        )
        return self._shards

    @property
    def tail(self) -> str:
        """What becomes of a last step that is not full: ``"keep"``, ``"pad"`` or ``"drop"``."""
        return "drop" if self.drop_last else "pad" if self.global_batch_size is not None else "keep"

    @property
    def rank(self) -> int:  # type: ignore[override]
        """The rank whose samples it yields."""
        return self.shards.rank

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """The number of ranks that share an epoch."""
        return self.shards.world_size

    # --- addresses --------------------------------------------------------------------------------

    def steps_in(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        ends = self.order.batches(epoch)
        return self.shards.steps if ends is None else len(ends)

    def __len__(self) -> int:
        return self.shards.length

    def _look_up(self, epoch: int, start: int, stop: int) -> Tuple[List[Any], Iterator[int]]:
        """Return the indices at positions, and how often each has come up before in the epoch.

        Positions past the end of the epoch stand for its beginning, as the padding of a last step.
        """
        size = self.order.size
        if stop <= size:
            occurrences = self.order.occurrences(epoch, start, stop)
            return _as_list(self.order.take(epoch, start, stop)), iter(occurrences or repeat(0))

        # Several laps, where the epoch is shorter than a step. In each lap an index has come up as
        # often as in all laps before and so far in this one.
        indices: List[Any] = []
        earlier: List[int] = []
        while start < stop:
            lap, first = divmod(start, size)
            last = min(size, first + stop - start)
            lap_indices = _as_list(self.order.take(epoch, first, last))
            counts = self.order.occurrences(epoch, first, last) or repeat(0)
            earlier.extend(
                count + (lap * self.order.count(epoch, index) if lap else 0)
                for count, index in zip(counts, lap_indices)
            )
            indices.extend(lap_indices)
            start += last - first
        return indices, iter(earlier)

    def _addresses(self, epoch: int, step: int, start: int, stop: int) -> Iterator[Address]:
        indices, occurrences = self._look_up(epoch, start, stop)
        return zip(repeat(epoch), repeat(step), range(start, stop), indices, occurrences)

    def addresses(self, epoch: int, step: int) -> List[Address]:
        """Return the addresses of one step of this rank.

        Raises:
            InvalidOptionError: the epoch has no such step.
        """
        steps = self.steps_in(epoch)
        if not 0 <= check_count(step, "step") < steps:
            message = f"Epoch {epoch} has steps 0 to {steps - 1}; got step {step}."
            raise InvalidOptionError(message)
        return list(self._addresses(epoch, step, *self._positions(epoch, step)))

    def _positions(self, epoch: int, step: int) -> Tuple[int, int]:
        ends = self.order.batches(epoch)
        if ends is None:
            return self.shards.positions(step)
        return (ends[step - 1] if step else 0), ends[step]

    def _chunks(self, epoch: int, first: int) -> Iterator[Iterator[Address]]:
        """Yield the addresses from a step on in chunks of whole steps, each chunk an iterator."""
        # An epoch may have 10**9 samples. It is looked up in chunks, for the sake of memory, and
        # inside a chunk every iterator is one of C, so that no Python code runs for each sample.
        # Full steps are looked up together where their positions follow each other. With several
        # ranks they do not, and a padded step wraps around the end of the epoch: there, and for a
        # last step that is not full, each step is a chunk.
        shards = self.shards
        full = shards.full_steps
        size = shards.batch_size
        if shards.world_size == 1 and shards.tail != "pad":
            chunk = max(1, _CHUNK // size)
            for begin in range(first, full, chunk):
                end = min(full, begin + chunk)
                start, stop = begin * size, end * size
                indices, occurrences = self._look_up(epoch, start, stop)
                steps = chain.from_iterable(map(repeat, range(begin, end), repeat(size)))
                yield zip(repeat(epoch), steps, range(start, stop), indices, occurrences)
            first = max(first, full)
        for step in range(first, shards.steps):
            yield self._addresses(epoch, step, *shards.positions(step))

    def flat(self, epoch: int, first: int) -> Iterator[Address]:
        """Yield the addresses of an epoch from a step on."""
        if self.order.batches(epoch) is not None:
            return chain.from_iterable(
                self.addresses(epoch, step) for step in range(first, self.steps_in(epoch))
            )
        return chain.from_iterable(self._chunks(epoch, first))

    def in_batches(self, epoch: int, first: int) -> Iterator[List[Address]]:
        """Yield the addresses of an epoch from a step on, a list a step."""
        if self.order.batches(epoch) is not None:
            return (self.addresses(epoch, step) for step in range(first, self.steps_in(epoch)))
        return self._cut(epoch, first)

    def _cut(self, epoch: int, first: int) -> Iterator[List[Address]]:
        """Yield the chunks' addresses, a list a step; chunks end where steps do."""
        size = self.shards.batch_size
        for chunk in self._chunks(epoch, first):
            while batch := list(islice(chunk, size)):
                yield batch

    def begin(self) -> Tuple[int, int]:
        """Return (epoch, step) at which an iteration that begins now starts.

        The ledger keeps the digest of the epoch's indices.

        Raises:
            ShardingError: there are several ranks and no ``shard``.
        """
        refuse_missing_shard(self.shard, self.stream)
        epoch = self._epoch
        host = self.stream.host
        if host is not None:
            host.note_epoch(self.stream, epoch, self.order.digest)
        return epoch, self.start_step

    def __iter__(self) -> Iterator[Address]:
        return self.flat(*self.begin())

    def indices(self, epoch: int, step: Optional[int] = None) -> Any:
        """Return this rank's indices of a step, or of the whole epoch.

        Returns:
            int64 array, or a list.

        Raises:
            InvalidOptionError: the epoch has no such step, or more than 10**8 samples.
        """
        if step is None:
            shards = self.shards
            if (
                self.order.batches(epoch) is None
                and shards.world_size == 1
                and shards.tail == "keep"
            ):
                return self.order.whole(epoch)
            self.order.whole(epoch)  # refuses too many
            return [address[3] for address in self.flat(epoch, 0)]
        return [address[3] for address in self.addresses(epoch, step)]

    def describe(self) -> Dict[str, Any]:
        """Return what the ledger keeps: what defines the order and the steps.

        It is alike on every rank and for every world size.
        """
        if self.global_batch_size is not None:
            return {
                **self.order.definition(),
                "global_batch_size": self.global_batch_size,
                "tail": self.tail,
            }
        return {**self.order.definition(), "batch_size": self.batch_size, "tail": self.tail}

    def identity(self) -> Dict[str, Any]:
        """Return what a state dict must match for a step to be the same samples.

        Those of this rank; with ``global_batch_size`` those of all ranks together, whose number may
        be another then.
        """
        shards = self.shards
        divided = {} if self.global_batch_size is not None else {"world_size": shards.world_size}
        return {
            **self.order.identity(),
            "batch_size": self.batch_size,
            "global_batch_size": shards.global_batch_size,
            "tail": shards.tail,
            **divided,
        }


class EpochBatchSampler(BatchSampler):
    """Yields the addresses of a step as a list.

    It decides where to begin when iteration begins, not at the first batch.

    Args:
        sampler: the loader's.
        batch_size: int >= 1, for frameworks to read; the sampler decides.
        drop_last: for frameworks to read; the sampler decides.

    Raises:
        InvalidOptionError: the sampler is not a loader's.
    """

    sampler: EpochSampler

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False) -> None:  # noqa: FBT001, FBT002 - BatchSampler's signature
        if not isinstance(sampler, EpochSampler):
            message = (
                "An EpochBatchSampler takes the sampler of a seeded loader; got a "
                f"{type(sampler).__name__}."
            )
            raise InvalidOptionError(message)
        super().__init__(sampler, batch_size, drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[List[Any]]:  # type: ignore[override]
        return self.sampler.in_batches(*self.sampler.begin())

    def __len__(self) -> int:
        return self.sampler.steps_in(self.sampler.epoch)


def _as_list(indices: Any) -> List[Any]:
    # Python's ints: the datasets of users are asked for these.
    return cast("List[Any]", indices.tolist() if isinstance(indices, np.ndarray) else list(indices))
