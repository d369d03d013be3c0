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
_DECLARED = "draws_random_numbers"
_index_of = itemgetter(3)
_PLAIN = (list, tuple, range, torch.Tensor, np.ndarray)


def draws_nothing(dataset: Any) -> bool:
    """Return whether fetching from a dataset is known to draw no random number.

    So it is for ``TensorDataset``, lists, tuples, tensors and arrays, for ``Subset`` and
    ``ConcatDataset`` of such, and for a dataset whose attribute ``draws_random_numbers`` is False.
    """
    declared = getattr(dataset, _DECLARED, None)
    if declared is not None:
        return declared is False
    kind = type(dataset)
    if kind is Subset:
        return draws_nothing(dataset.dataset)
    if kind is ConcatDataset:
        return all(draws_nothing(part) for part in dataset.datasets)
    return kind is TensorDataset or kind in _PLAIN


class _Wrapper:
    """Stands for a dataset: what it does not have itself, it asks the dataset for."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededDataset(_Wrapper, Dataset):  # type: ignore[type-arg]
    """A dataset that is asked with addresses, and whose draws are a function of (stream, epoch, index).

    While sample *i* is fetched in epoch *e*, the default generators of python, NumPy and torch
    stand at the position ("sample", e, i) of the loader's stream, for the k-th repetition in an
    epoch at ("sample", e, i, k); after a batch they are as before. So ``with stream.at("sample", e,
    i).scope(): dataset[i]`` gives the same sample. An index that is neither int nor str counts by
    its position in the epoch, ("sample", e, "position", p).

    Pickles, for workers. Thread-safe as far as scopes are: one thread draws at a time.

    Args:
        dataset: the dataset; it stays reachable as ``.dataset``.
        stream: the loader's.
        keeps_addresses: hand the (epoch, step) on, to a ``SeededCollate``.
    """

    def __init__(self, dataset: Any, stream: Stream, *, keeps_addresses: bool) -> None:
        self.dataset = dataset
        self._stream = stream
        self._keeps_addresses = keeps_addresses
        self._draws = not draws_nothing(dataset)
        self._must_show = not self._draws and getattr(dataset, _DECLARED, None) is False

    def _fetch(self, indices: List[Any]) -> Sequence[Any]:
        fetch = getattr(self.dataset, "__getitems__", None)
        if callable(fetch):
            samples: Sequence[Any] = fetch(indices)
            return samples
        dataset = self.dataset
        return [dataset[index] for index in indices]

    def _fetch_shown(self, indices: List[Any]) -> Sequence[Any]:
        """Fetch the first batch of a dataset that says it draws nothing, and look whether that is true."""
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
        self._must_show = False
        return samples

    def _sources(self, addresses: Sequence[Address]) -> Iterator[KeyedSource]:
        prefix: Optional[PositionPrefix] = None
        of_epoch: Optional[int] = None
        for epoch, _, position, index, occurrence in addresses:
            if prefix is None or epoch != of_epoch:
                prefix, of_epoch = self._stream.prefix(SAMPLE, epoch), epoch
            kind = type(index)
            if kind is not int and kind is not str:
                yield prefix.source("position", position)
            elif occurrence:
                yield prefix.source(index, occurrence)
            else:
                yield prefix.source(index)

    def _fetch_seeded(self, addresses: Sequence[Address]) -> List[Any]:
        if not addresses:
            return []
        fetch = getattr(self.dataset, "__getitems__", None)
        one_by_one = (
            self.dataset.__getitem__ if not callable(fetch) else lambda index: fetch([index])[0]
        )
        sources = self._sources(addresses)
        with rng.Scope(
            next(sources), self._stream.label, late_seed=self._stream.late_seed
        ) as scope:
            samples = [one_by_one(addresses[0][3])]
            reseed = scope.reseed
            for source, address in zip(sources, addresses[1:]):
                reseed(source)
                samples.append(one_by_one(address[3]))
        return samples

    def __getitems__(self, addresses: Sequence[Address]) -> Sequence[Any]:
        check_addresses(addresses)
        if self._draws:
            samples: Sequence[Any] = self._fetch_seeded(addresses)
        else:
            indices = list(map(_index_of, addresses))
            samples = self._fetch_shown(indices) if self._must_show else self._fetch(indices)
        if not self._keeps_addresses or not addresses:
            return samples
        addressed = AddressedList(samples)
        addressed.epoch, addressed.step = addresses[0][:2]
        return addressed

    def __getitem__(self, address: Any) -> Any:
        check_addresses((address,))
        if self._draws:
            sample = self._fetch_seeded((address,))[0]
        else:
            sample = (
                self._fetch_shown([address[3]])[0] if self._must_show else self.dataset[address[3]]
            )
        return AddressedSample(sample, *address[:2]) if self._keeps_addresses else sample


class SeededIterable(_Wrapper, Cursor, IterableDataset):  # type: ignore[type-arg]
    """An iterable dataset whose draws are a function of (stream, epoch, worker, item).

    While item *c* is fetched the default generators stand at the position ("item", e, p, c), p
    being the number of the worker over all ranks; while the iteration is made, at ("item", e, p,
    "start"). A dataset whose attribute ``shard_by_worker`` is True is iterated whole in every
    worker, which keeps each p-th item: its positions are ("item", e, c), alike for every number of
    workers.

    Pickles. The epoch lies in shared memory, so that persistent workers see it.

    Args:
        dataset: the dataset; it stays reachable as ``.dataset``.
        stream: the loader's.
        keeps_addresses: hand the (epoch, item) on, to a ``SeededCollate``.
        advances: the epoch goes up by one after each pass.
        shard: as for an ``EpochSampler``.
    """

    def __init__(
        self, dataset: Any, stream: Stream, *, keeps_addresses: bool, advances: bool, shard: Shard
    ) -> None:
        self.dataset = dataset
        self.stream = stream
        self.advances = advances
        self.shard = shard
        self._keeps_addresses = keeps_addresses
        self._announced = torch.tensor([0, 0, 1, 0], device="cpu").share_memory_()  # type: ignore[no-untyped-call]  # epoch, rank, world size, first item

    @property
    def is_divided(self) -> bool:
        """Whether each worker keeps its own items of what all of them iterate."""
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
        rank, world = resolve_shard(self.shard)
        self._announced.copy_(torch.tensor([self.epoch, rank, world, first], device="cpu"))

    def __iter__(self) -> Iterator[Any]:
        epoch, rank, world, first = self._announced.tolist()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        part, parts = rank * workers + worker, world * workers
        if self.is_divided:
            return self._items(self.stream.prefix(ITEM, epoch), epoch, first, part, parts)
        return self._items(self.stream.prefix(ITEM, epoch, part), epoch, first, part, parts)

    def _items(
        self, prefix: PositionPrefix, epoch: int, number: int, part: int, parts: int
    ) -> Iterator[Any]:
        is_divided = self.is_divided
        with self._scope(prefix.source(_START)):
            items = iter(self.dataset)
        while True:
            with self._scope(prefix.source(number)):
                try:
                    item = next(items)
                except StopIteration:
                    return
            if not is_divided or number % parts == part:
                # Workers that do not share the items count the same numbers; their batches are told
                # apart.
                step = number if is_divided else number * parts + part
                yield AddressedSample(item, epoch, step) if self._keeps_addresses else item
            number += 1

    def _scope(self, source: KeyedSource) -> rng.Scope:
        return rng.Scope(source, self.stream.label, late_seed=self.stream.late_seed)


class SeededCollate:
    """A collate function whose draws are a function of (stream, epoch, step, rank): mixup, cut-mix.

    While a batch is put together the default generators stand at the position ("collate", e, step,
    rank) of the loader's stream; for an iterable dataset the number of the batch's first item
    (times the workers over all ranks, plus the worker, unless they share the items) stands in the
    place of the step. Pickles.

    Args:
        collate_fn: the function; it stays reachable as ``.collate_fn``.
        stream: the loader's.
        rank: whose batches they are; called when a batch is put together in this process, kept when
            it is pickled.
    """

    def __init__(self, collate_fn: Any, stream: Stream, rank: Any) -> None:
        self.collate_fn = collate_fn
        self._stream = stream
        self._rank = rank

    def __call__(self, samples: Any) -> Any:
        """Call the function inside the scope of the batch that the samples belong to."""
        address, plain = self._take_apart(samples)
        position = self._stream.at(
            COLLATE, *address, self._rank() if callable(self._rank) else self._rank
        )
        with rng.Scope(position, self._stream.label, late_seed=self._stream.late_seed):
            return self.collate_fn(plain)

    @staticmethod
    def _take_apart(samples: Any) -> Tuple[Tuple[int, int], Any]:
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
        return (self.collate_fn, self._stream, self._rank() if callable(self._rank) else self._rank)

    def __setstate__(self, state: Any) -> None:
        self.collate_fn, self._stream, self._rank = state
