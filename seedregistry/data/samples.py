"""What a dataset and a collate function draw, as a function of the address of what they fetch."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    get_worker_info,
)

from seedregistry import rng
from seedregistry.data.address import AddressedList, AddressedSample, check_addresses
from seedregistry.data.content import digest_dataset
from seedregistry.data.cursor import Cursor
from seedregistry.data.shards import refuse_missing_shard, resolve_shard
from seedregistry.errors import SampleAddressError, UndeclaredRandomnessError

if TYPE_CHECKING:
    from seedregistry.data.address import Address
    from seedregistry.data.shards import Shard
    from seedregistry.stream import KeyedSource, PositionPrefix, Stream

SAMPLE = "sample"
COLLATE = "collate"
ITEM = "item"
_START = "start"
_LATER = "later"
_DECLARED = "draws_random_numbers"
_index_of = itemgetter(3)
_PLAIN = (list, tuple, range, torch.Tensor, np.ndarray)


def draws_nothing(dataset: Any) -> bool:
    """Return whether fetching from a dataset is certain to draw no random number.

    So it is for ``TensorDataset``, lists, tuples, ranges, tensors and arrays, for ``Subset`` and
    ``ConcatDataset`` of such, and for a dataset whose attribute ``draws_random_numbers`` is False.
    Such a dataset is fetched without setting a generator for each sample, which is faster.

    Args:
        dataset: any dataset; nothing is fetched from it.

    Example:
        >>> from seedregistry.data import draws_nothing
        >>> class Squares:
        ...     draws_random_numbers = False
        ...
        ...     def __getitem__(self, index):
        ...         return index**2
        >>> draws_nothing([1, 2, 3]), draws_nothing(Squares())
        (True, True)
    """
    declared = getattr(dataset, _DECLARED, None)
    if declared is not None:
        return declared is False
    kind = type(dataset)
    if kind is Subset:
        return draws_nothing(dataset.dataset)
    if kind is ConcatDataset:
        return all(map(draws_nothing, dataset.datasets))
    return kind is TensorDataset or kind in _PLAIN


class _Wrapper:
    """Stands for a dataset: an attribute that it does not have itself is the dataset's.

    Attributes:
        dataset: the dataset.
        content_digest: by which a state knows its data, or None. It is of the dataset as it was
            given: a dataset may change lists of its own while it is used.
    """

    dataset: Any
    content_digest: Optional[str]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # While this is unpickled there is no dataset yet, and asking it would recur for ever. Names
        # such as __getstate__ belong to Python's protocols and are this object's to answer.
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededDataset(_Wrapper, Dataset):  # type: ignore[type-arg]
    """A dataset that is asked with addresses, and draws as a function of (stream, epoch, index).

    While sample *i* is fetched in epoch *e*, the default generators of python, NumPy and torch
    stand at the position ("sample", e, i) of the loader's stream, and where the index comes up
    again in the epoch, for the k-th repetition, at ("sample", e, i, k). After a batch they are as
    before. So ``with stream.at("sample", e, i).scope(): dataset[i]`` gives that sample. An index
    that is neither int nor str counts by its position in the epoch, ("sample", e, "position", p).

    Pickles, for workers. Thread-safe as far as scopes are: one thread draws at a time.

    Args:
        dataset: the dataset; it stays reachable as ``.dataset``.
        stream: the loader's.
        keeps_addresses: hand the (epoch, step) on, to a ``SeededCollate``.
    """

    def __init__(self, dataset: Any, stream: Stream, *, keeps_addresses: bool) -> None:
        self.dataset = dataset
        # It changes nothing while it is used, so its digest waits until somebody asks.
        is_plain = type(dataset) is TensorDataset
        self._content_digest = _LATER if is_plain else digest_dataset(dataset)
        self._stream = stream
        self._keeps_addresses = keeps_addresses
        self._draws = not draws_nothing(dataset)
        self._is_unproven = not self._draws and getattr(dataset, _DECLARED, None) is False

    @property
    def content_digest(self) -> Optional[str]:  # type: ignore[override]
        """The digest of what the dataset held when it was given, or None."""
        if self._content_digest == _LATER:
            self._content_digest = digest_dataset(self.dataset)
        return self._content_digest

    def _fetch(self, indices: List[Any]) -> Sequence[Any]:
        """Fetch samples as torch's own fetcher does, without a scope."""
        fetch = getattr(self.dataset, "__getitems__", None)
        if callable(fetch):
            samples: Sequence[Any] = fetch(indices)
            return samples
        dataset = self.dataset
        return [dataset[index] for index in indices]

    def _fetch_and_watch(self, indices: List[Any]) -> Sequence[Any]:
        """Fetch the first samples of a dataset that says it draws nothing, and see whether it does.

        Raises:
            UndeclaredRandomnessError: it drew.
        """
        scope = rng.Scope(
            self._stream.at(SAMPLE),
            self._stream.label,
            watch=True,
            late_seed=self._stream.late_seed,
        )
        with scope:
            samples = self._fetch(indices)

        drew = scope.movement.drew() if scope.movement is not None else ()
        if drew:
            message = (
                f"{type(self.dataset).__name__} says draws_random_numbers = False and drew from "
                f"{', '.join(drew)}. Take the attribute away: its draws are then made a function "
                "of the epoch and the index."
            )
            raise UndeclaredRandomnessError(message)
        self._is_unproven = False
        return samples

    def _sources(self, addresses: Sequence[Address]) -> Iterator[KeyedSource]:
        """Yield the source of each sample's draws."""
        # The hash of ("sample", epoch) is begun once for all samples of a batch, which nearly
        # always belong to an epoch; each sample adds its index to a copy.
        prefix: Optional[PositionPrefix] = None
        prefix_epoch: Optional[int] = None
        for epoch, _, position, index, occurrence in addresses:
            if prefix is None or epoch != prefix_epoch:
                prefix, prefix_epoch = self._stream.prefix(SAMPLE, epoch), epoch
            kind = type(index)
            if kind is not int and kind is not str:
                yield prefix.source("position", position)
            elif occurrence:
                yield prefix.source(index, occurrence)
            else:
                yield prefix.source(index)

    def _fetch_in_scope(self, addresses: Sequence[Address]) -> List[Any]:
        """Fetch samples, each with the default generators at its position."""
        if not addresses:
            return []

        # A dataset that fetches batches is asked for batches of a sample: what a sample draws must
        # not depend on which samples are fetched with it.
        fetch_batch = getattr(self.dataset, "__getitems__", None)
        fetch = (
            (lambda index: fetch_batch([index])[0])
            if callable(fetch_batch)
            else self.dataset.__getitem__
        )

        # One scope for the batch, whose generators are set anew for each sample: saving and putting
        # back the state of every library for each sample would cost several times as much.
        sources = self._sources(addresses)
        with rng.Scope(
            next(sources), self._stream.label, late_seed=self._stream.late_seed
        ) as scope:
            samples = [fetch(addresses[0][3])]
            reseed = scope.reseed
            for source, address in zip(sources, addresses[1:]):
                reseed(source)
                samples.append(fetch(address[3]))
        return samples

    def __getitems__(self, addresses: Sequence[Address]) -> Sequence[Any]:
        check_addresses(addresses)
        if self._draws:
            samples: Sequence[Any] = self._fetch_in_scope(addresses)
        else:
            indices = list(map(_index_of, addresses))
            fetch = self._fetch_and_watch if self._is_unproven else self._fetch
            samples = fetch(indices)
        if not self._keeps_addresses or not addresses:
            return samples
        addressed = AddressedList(samples)
        addressed.epoch, addressed.step = addresses[0][:2]
        return addressed

    def __getitem__(self, address: Any) -> Any:
        check_addresses((address,))
        if self._draws:
            sample = self._fetch_in_scope((address,))[0]
        else:
            index = address[3]
            sample = self._fetch_and_watch([index])[0] if self._is_unproven else self.dataset[index]
        return AddressedSample(sample, *address[:2]) if self._keeps_addresses else sample


class SeededIterable(_Wrapper, Cursor, IterableDataset):  # type: ignore[type-arg]
    """An iterable dataset whose draws are a function of (stream, epoch, worker, item).

    While item *c* is fetched in epoch *e* the default generators stand at the position ("item", e,
    p, c), p being the number of the worker over all ranks; while the iteration is made, at ("item",
    e, p, "start"). A dataset whose attribute ``shard_by_worker`` is True is iterated whole in every
    worker, which yields its share of the items: then the positions are ("item", e, c) and ("item",
    e, "start"), alike for every number of workers.

    Pickles. The epoch lies in shared memory, so that persistent workers see it.

    Args:
        dataset: the dataset; it stays reachable as ``.dataset``.
        stream: the loader's.
        keeps_addresses: hand the (epoch, item) on, to a ``SeededCollate``.
        advances: the epoch goes up by one after each pass.
        shard: whose rank counts the workers: True, (rank, world size), False or None, as for
            ``registry.dataloader``.
    """

    def __init__(
        self, dataset: Any, stream: Stream, *, keeps_addresses: bool, advances: bool, shard: Shard
    ) -> None:
        self.dataset = dataset
        self.content_digest = digest_dataset(dataset)
        self.stream = stream
        self.advances = advances
        self.shard = shard
        self._keeps_addresses = keeps_addresses
        # Epoch, rank, world size and first item. Persistent workers hold a copy of this object from
        # the first epoch; what they share with this process is this tensor's memory.
        announced: Any = torch.tensor([0, 0, 1, 0], device="cpu")
        self._announced: torch.Tensor = announced.share_memory_()

    @property
    def is_divided(self) -> bool:
        """Whether every worker iterates all items and yields its share of them."""
        return getattr(self.dataset, "shard_by_worker", False) is True

    @property
    def rank(self) -> int:
        """The rank whose items it yields."""
        return resolve_shard(self.shard)[0]

    def begin(self, first: int) -> None:
        """Show workers the epoch that begins, the rank, and the number of the first item.

        Raises:
            ShardingError: there are several ranks and no ``shard``.
        """
        refuse_missing_shard(self.shard, self.stream)
        rank, world_size = resolve_shard(self.shard)
        self._announced.copy_(torch.tensor([self.epoch, rank, world_size, first], device="cpu"))

    def __iter__(self) -> Iterator[Any]:
        epoch, rank, world_size, first = self._announced.tolist()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        share, shares = rank * workers + worker, world_size * workers
        if self.is_divided:
            return self._items(self.stream.prefix(ITEM, epoch), epoch, first, share, shares)
        return self._items(self.stream.prefix(ITEM, epoch, share), epoch, first, share, shares)

    def _items(
        self, prefix: PositionPrefix, epoch: int, number: int, share: int, shares: int
    ) -> Iterator[Any]:
        """Yield the items of a share from a number on, each fetched in its scope."""
        is_divided = self.is_divided
        with self._scope(prefix.source(_START)):
            items = iter(self.dataset)
        while True:
            with self._scope(prefix.source(number)):
                try:
                    item = next(items)
                except StopIteration:
                    return
            if not is_divided or number % shares == share:
                # Workers that do not share the items count the same numbers: the number of the
                # worker keeps what their batches draw apart.
                step = number if is_divided else number * shares + share
                yield AddressedSample(item, epoch, step) if self._keeps_addresses else item
            number += 1

    def _scope(self, source: KeyedSource) -> rng.Scope:
        return rng.Scope(source, self.stream.label, late_seed=self.stream.late_seed)


class SeededCollate:
    """A collate function that draws as a function of (stream, epoch, step, rank): mixup, cut-mix.

    While a batch is put together in epoch *e* the default generators stand at the position
    ("collate", e, step, rank) of the loader's stream. For an iterable dataset the number of the
    batch's first item (times the workers over all ranks, plus the worker, unless they share the
    items) stands in the place of the step. Pickles.

    Args:
        collate_fn: the function; it stays reachable as ``.collate_fn``.
        stream: the loader's.
        rank: whose batches they are: an int, or a function that returns it. The function is called
            for each batch in this process, and once when this is pickled for a worker.
    """

    def __init__(self, collate_fn: Any, stream: Stream, rank: Any) -> None:
        self.collate_fn = collate_fn
        self._stream = stream
        self._rank = rank

    def __call__(self, samples: Any) -> Any:
        """Call the function inside the scope of the batch that the samples belong to."""
        (epoch, step), plain = self._take_apart(samples)
        position = self._stream.at(COLLATE, epoch, step, self._current_rank())
        with rng.Scope(position, self._stream.label, late_seed=self._stream.late_seed):
            return self.collate_fn(plain)

    def _current_rank(self) -> int:
        return int(self._rank() if callable(self._rank) else self._rank)

    @staticmethod
    def _take_apart(samples: Any) -> Tuple[Tuple[int, int], Any]:
        """Return (epoch, step) of a batch, and its samples without it."""
        if isinstance(samples, AddressedSample):
            return (samples.epoch, samples.step), samples.sample
        if isinstance(samples, AddressedList):
            return (samples.epoch, samples.step), list(samples)
        if (
            isinstance(samples, list)
            and samples
            and all(isinstance(sample, AddressedSample) for sample in samples)
        ):
            return (samples[0].epoch, samples[0].step), [sample.sample for sample in samples]
        message = (
            "The collate function of a seeded loader got samples without the epoch and step that "
            "its random numbers come from. Use loader.collate_fn.collate_fn for the function "
            "itself, and loader.batch(epoch, step) for a batch as training sees it."
        )
        raise SampleAddressError(message)

    def __getstate__(self) -> Any:
        return (self.collate_fn, self._stream, self._current_rank())

    def __setstate__(self, state: Any) -> None:
        self.collate_fn, self._stream, self._rank = state
