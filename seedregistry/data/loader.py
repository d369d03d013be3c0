"""The loader: a ``DataLoader`` whose order, samples and batches are functions of (stream, epoch)."""

from __future__ import annotations

import collections.abc
import functools
import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional, Tuple, Union

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from seedregistry.common.callsite import stack_level
from seedregistry.data.sampler import EpochBatchSampler, EpochSampler
from seedregistry.data.samples import SeededIterable
from seedregistry.errors import EpochRepeatedWarning, InvalidOptionError, LoaderStateError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

STATE_FORMAT = "seedregistry.loader/1"
_EPOCH = "epoch"
_YIELDED = "batches_yielded"
_DATASET = "dataset"
_WORKERS = "workers"
_KEY_DIGITS = 16


class SeededDataLoader(DataLoader):  # type: ignore[type-arg]
    """A ``DataLoader`` whose order, samples and batches are functions of (stream, epoch), with generators of its own.

    Batches are equal, bit for bit, for every number of workers, start method, prefetch factor and
    restart point. Building, iterating and abandoning it moves no default generator of this process
    and changes no other loader.

    Made by ``registry.dataloader``. It takes ``DataLoader``'s arguments, with the sampler (or batch
    sampler) and the dataset of such a loader, so that frameworks can make it again from its
    attributes. Not thread-safe. Not pickled.

    Attributes:
        epoch: the epoch that comes next, assignable. Plain iteration runs it, and it goes up by one
            when the epoch's last batch has been handed out; an iterator left early changes nothing.

    Raises:
        InvalidOptionError: neither the sampler nor the dataset is that of such a loader.
    """

    @functools.wraps(DataLoader.__init__)  # type: ignore[misc]  # frameworks read the signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A framework may have put a batch sampler of its own around ours; it then still has our
        # sampler.
        inner = getattr(self.batch_sampler, "sampler", None)
        sampler = inner if isinstance(inner, EpochSampler) else self.sampler
        if isinstance(sampler, EpochSampler) and type(self.batch_sampler) is BatchSampler:
            ours = EpochBatchSampler(
                sampler, self.batch_sampler.batch_size, self.batch_sampler.drop_last
            )
            object.__setattr__(
                self, "batch_sampler", ours
            )  # DataLoader's own attribute may be set once only
        cursor = self.dataset if isinstance(self.dataset, SeededIterable) else sampler
        if not isinstance(cursor, (EpochSampler, SeededIterable)):
            message = (
                "A SeededDataLoader is made by registry.dataloader; its sampler was a "
                f"{type(sampler).__name__} over a {type(self.dataset).__name__}."
            )
            raise InvalidOptionError(message)
        self._cursor: Union[EpochSampler, SeededIterable] = cursor
        self._progress: Optional[_Progress] = None

    # --- epochs -----------------------------------------------------------------------------------

    @property
    def stream(self) -> Stream:
        """The stream that everything comes from."""
        return self._cursor.stream

    @property
    def sampler_of_epochs(self) -> Optional[EpochSampler]:
        """The sampler that holds the order and the position; None for an iterable dataset."""
        return self._cursor if isinstance(self._cursor, EpochSampler) else None

    @property
    def _deterministic_sampler(self) -> Optional[EpochSampler]:
        """The same, under the name that older code uses."""
        return self.sampler_of_epochs

    @property
    def epoch(self) -> int:
        """The epoch that comes next: int >= 0."""
        return self._cursor.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._cursor.epoch = value

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next: int >= 0.

        A loaded position of that epoch stays; another epoch begins at 0.
        """
        self._cursor.set_epoch(epoch)

    def __len__(self) -> int:
        sampler = self.sampler_of_epochs
        return super().__len__() if sampler is None else sampler.steps_in(sampler.epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        last = self._progress
        if last is not None and last.was_left_in(self._cursor) and self._cursor.advances:
            message = (
                f"Epoch {self.epoch} of stream '{self.stream.label}' was left after "
                f"{last.yielded} batches and is run again from its beginning. If that is meant, "
                "say so: loader.steps(epoch); to go on with the next one, loader.set_epoch(epoch "
                "+ 1) first."
            )
            host = self.stream.host
            if host is None:
                warnings.warn(message, EpochRepeatedWarning, stacklevel=stack_level())
            else:
                host.warn(self.stream, EpochRepeatedWarning, message)
        return self.follow(self._fetch)

    def _fetch(self) -> Iterator[Any]:
        cursor = self._cursor
        if isinstance(cursor, SeededIterable):
            cursor.begin(cursor.start_step * (self.batch_size or 1))
        if self.generator is not None:
            # It gives the seed of the workers alone, which no sample depends on.
            self.generator.manual_seed(self.stream.at(_WORKERS, cursor.epoch, cursor.rank).seed)
        return super().__iter__()

    def follow(self, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Return an iterator over the batches of the epoch that comes next, counted as this loader's own.

        For frameworks that fetch batches from this loader's parts.

        Args:
            fetch: begins to fetch; called once, at once.
        """
        cursor = self._cursor
        batches = fetch()
        self._progress = _Progress(
            cursor, cursor.steps_in(cursor.epoch) if isinstance(cursor, EpochSampler) else None
        )
        return _Epoch(batches, self._progress)

    def count_steps(self, fetch: Callable[[], Iterator[Any]]) -> Iterator[Tuple[int, Any]]:
        """Return an iterator over (step, batch), otherwise as :meth:`follow`."""
        batches = self.follow(fetch)
        return enumerate(batches, self._cursor.start_step)

    def steps(self, epoch: int) -> Iterator[Tuple[int, Any]]:
        """Yield (step, batch) of an epoch; step is the position in the epoch, also after a resume.

        Raises:
            InvalidOptionError: the epoch is not an int >= 0.
            ShardingError: there are several ranks and no ``shard``.
        """
        self.set_epoch(epoch)
        return self.count_steps(self._fetch)

    # --- random access ----------------------------------------------------------------------------

    def _require_sampler(self, what: str) -> EpochSampler:
        sampler = self.sampler_of_epochs
        if sampler is None:
            message = (
                f"An iterable dataset has no {what}; iterate it, or give it __getitem__ and "
                "__len__."
            )
            raise InvalidOptionError(message)
        return sampler

    def batch(self, epoch: int, step: int) -> Any:
        """Return any batch, fetched in this process and not pinned. Moves nothing.

        Raises:
            InvalidOptionError: the epoch has no such step, or the dataset is iterable.
        """
        sampler = self._require_sampler("batches at random access")
        addresses = sampler.addresses(epoch, step)
        dataset: Any = self.dataset
        samples = (
            dataset[addresses[0]] if self.batch_sampler is None else dataset.__getitems__(addresses)
        )
        return self.collate_fn(samples)

    def indices(self, epoch: int, step: Optional[int] = None) -> torch.Tensor:
        """Return the dataset indices of a step, or of all of this rank's epoch, without fetching a sample.

        Returns:
            int64 of shape (samples,); a list for the keys of a sampler that yields no ints.

        Raises:
            InvalidOptionError: the epoch has no such step, it has more than 10**8 samples, or the
                dataset is iterable.
        """
        indices = self._require_sampler("indices").indices(epoch, step)
        if isinstance(indices, list) and not all(type(index) is int for index in indices):
            return indices  # type: ignore[return-value]
        return torch.from_numpy(np.array(indices, dtype=np.int64))

    # --- state ------------------------------------------------------------------------------------

    def _identity(self) -> Dict[str, Any]:
        """Return what must match for a position to mean the same samples.

        Ints, strings and bools.
        """
        stream = self.stream
        definition = (
            self._cursor.identity()
            if isinstance(self._cursor, EpochSampler)
            else {"order": "iterable", "batch_size": self.batch_size}
        )
        return {
            "master_seed": str(stream.master_seed),
            "scheme": stream.scheme,
            "stream": stream.label,
            "seed": stream.seed,
            "key": stream.key.hex()[:_KEY_DIGITS],
            **definition,
        }

    def state_dict(self) -> Dict[str, Any]:
        """Return where the newest iterator stands.

        In the body of batch k, ``batches_yielded`` is k + 1.

        Format ``seedregistry.loader/1``: ints, strings, bools and None, which JSON and
        ``torch.load(weights_only=True)`` read. With workers and prefetching too, it counts the
        batches that were handed out.

        Raises:
            LoaderStateError: an iterable dataset in mid-epoch, unless it has a ``state_dict`` of
                its own and no workers; or workers with ``in_order=False``.
        """
        if self.num_workers and not getattr(self, "in_order", True):
            message = (
                "With in_order=False batches come as they are ready, and no number says "
                "which of them are left."
            )
            raise LoaderStateError(message)
        progress = self._progress
        if progress is not None and progress.is_current(self._cursor):
            epoch, yielded = progress.epoch, progress.yielded
        else:
            epoch, yielded = self._cursor.epoch, self._cursor.start_step
        state = {"format": STATE_FORMAT, _EPOCH: epoch, _YIELDED: yielded, **self._identity()}
        if isinstance(self._cursor, SeededIterable) and yielded:
            if self.num_workers or not hasattr(self._cursor.dataset, "state_dict"):
                message = (
                    f"{type(self._cursor.dataset).__name__} is iterable: it can be resumed at the "
                    "beginning of an epoch, or anywhere with state_dict and load_state_dict of "
                    "its own and num_workers=0."
                )
                raise LoaderStateError(message)
            state[_DATASET] = self._cursor.dataset.state_dict()
        return state

    def load_state_dict(self, state: Any) -> None:
        """Go on where a state was taken, with whatever number of workers.

        The next iteration, or ``steps``, continues there.

        Raises:
            LoaderStateError: another format, seed, scheme, length, batch size, order or world size,
                or a position that the epoch does not have; the message shows both values and
                nothing was changed.
        """
        if not isinstance(state, collections.abc.Mapping):
            message = (
                f"A loader's state is a dict; got {type(state).__name__}. Nothing was changed."
            )
            raise LoaderStateError(message)
        expected = {"format": STATE_FORMAT, **self._identity()}
        missing = object()
        wrong = [
            f"{name} is {state.get(name, 'missing')!r} in the state and {value!r} here"
            for name, value in expected.items()
            if not _same(state.get(name, missing), value)
        ]
        foreign = sorted(map(str, {*state} - {*expected, _EPOCH, _YIELDED, _DATASET}))
        if foreign:
            wrong.append(f"it has {', '.join(foreign)}, which no such state has")
        for name in (_EPOCH, _YIELDED):
            value = state.get(name)
            if type(value) is not int or value < 0:
                wrong.append(f"{name} is {value!r}, and an int >= 0 was expected")
        if wrong:
            message = (
                f"The state does not belong to this loader: {'; '.join(wrong)}. Nothing was "
                "changed."
            )
            raise LoaderStateError(message)
        epoch, yielded = state[_EPOCH], state[_YIELDED]
        cursor = self._cursor
        if isinstance(cursor, EpochSampler):
            steps = cursor.steps_in(epoch)
            if yielded > steps:
                message = (
                    f"The state is after batch {yielded} of epoch {epoch}, which has "
                    f"{steps}. Nothing was changed."
                )
                raise LoaderStateError(message)
        elif yielded:
            cursor.dataset.load_state_dict(state[_DATASET])
        cursor.move_to(epoch, yielded)
        self._progress = None

    def describe(self) -> Dict[str, Any]:
        """Return what the ledger keeps: content only, so neither worker counts nor pinning."""
        dataset: Any = (
            self._cursor.dataset if isinstance(self._cursor, SeededIterable) else self.dataset
        )
        inner = getattr(dataset, "dataset", dataset) if dataset is self.dataset else dataset
        description: Dict[str, Any] = {
            "class": f"{type(inner).__module__}.{type(inner).__qualname__}"
        }
        if isinstance(self._cursor, EpochSampler):
            return {**description, **self._cursor.describe()}
        resumable = hasattr(inner, "state_dict") and hasattr(inner, "load_state_dict")
        note = {} if resumable else {"warning": "not exactly resumable"}
        return {
            **description,
            "order": "iterable",
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            **note,
        }


def _same(found: object, expected: object) -> bool:
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)


class _Progress:
    """How far one iteration of a loader has come. The newest one is the loader's."""

    def __init__(self, cursor: Union[EpochSampler, SeededIterable], steps: Optional[int]) -> None:
        self._cursor = cursor
        self.epoch = cursor.epoch
        self.yielded = cursor.start_step
        self._first = cursor.start_step
        self._steps = steps
        self._moves = cursor.moves
        self._is_over = False

    def is_current(self, cursor: Union[EpochSampler, SeededIterable]) -> bool:
        """Return whether it says where the loader stands.

        Not over, and nobody has moved the loader since.
        """
        return not self._is_over and self._moves == cursor.moves

    def was_left_in(self, cursor: Union[EpochSampler, SeededIterable]) -> bool:
        """Return whether it was left early, after more than one batch, in the epoch that comes next."""
        return (
            self.is_current(cursor)
            and self.epoch == cursor.epoch
            and self.yielded - self._first > 1
        )

    def step(self) -> None:
        """Take notice of a batch that is handed out."""
        self.yielded += 1
        if self.yielded == self._steps:
            self._finish()

    def end(self) -> None:
        """Take notice that there are no more batches."""
        if self._is_over:
            return
        if self._steps is None or self.yielded != self._steps or self._first == self._steps:
            self._finish()
        self._is_over = True

    def _finish(self) -> None:
        if self._moves == self._cursor.moves:
            self._cursor.finish(self.epoch)
            self._moves = self._cursor.moves


class _Epoch:
    """One iteration of a loader."""

    def __init__(self, batches: Any, progress: _Progress) -> None:
        self._batches = batches
        self._progress = progress

    def __iter__(self) -> Iterator[Any]:
        return self

    def __len__(self) -> int:
        return len(self._batches)

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except StopIteration:
            self._progress.end()
            raise
        self._progress.step()
        return batch
