"""The loader: a ``DataLoader`` whose batches are functions of (stream, epoch), and its state."""

from __future__ import annotations

import collections.abc
import functools
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Mapping, Optional, Tuple, Union

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from seedregistry.common.identities import mismatches, show_mismatches
from seedregistry.data.cursor import LARGEST_EPOCH, warn_of_repetition
from seedregistry.data.order import SAMPLER_DIGEST
from seedregistry.data.sampler import EpochBatchSampler, EpochSampler
from seedregistry.data.samples import SeededIterable
from seedregistry.data.shards import refuse_missing_shard
from seedregistry.errors import InvalidOptionError, LoaderStateError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

STATE_FORMAT = "seedregistry.loader/2"
_FIRST_FORMAT = "seedregistry.loader/1"
"""It knew nothing of what the data hold, and had the world size of a global batch too."""
_EPOCH = "epoch"
_YIELDED = "batches_yielded"
_DATASET = "dataset"
_DATASET_DIGEST = "dataset_digest"
_WORLD_SIZE = "world_size"
_WORKERS = "workers"
_KEY_DIGITS = 16


class SeededDataLoader(DataLoader):  # type: ignore[type-arg]
    """A ``DataLoader`` whose order, samples and batches are functions of (stream, epoch).

    Batches are equal, bit for bit, for every number of workers, start method, prefetch factor and
    restart point. Building, iterating and abandoning it moves no default generator of this process
    and changes no other loader.

    ``registry.dataloader`` makes it. It takes ``DataLoader``'s arguments, with the sampler (or
    batch sampler) and the dataset of such a loader, so that frameworks can make it again from its
    attributes. Not thread-safe. Not pickled.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> loader = registry.dataloader(range(6), instance_id="a", shuffle=True, batch_size=3)
        >>> [(step, batch.tolist()) for step, batch in loader.steps(epoch=7)]
        [(0, [0, 5, 3]), (1, [4, 1, 2])]
        >>> loader.batch(epoch=7, step=1).tolist()
        [4, 1, 2]
        >>> loader.epoch
        8

    Attributes:
        epoch: the epoch that comes next, assignable. Plain iteration yields it, and it goes up by
            one when the epoch's last batch has been handed out; an iterator left early changes
            nothing.

    Raises:
        InvalidOptionError: neither the sampler nor the dataset is that of such a loader.
    """

    @functools.wraps(DataLoader.__init__)  # type: ignore[misc]  # frameworks read the signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A framework may have put a batch sampler around the sampler, which then is not this
        # loader's sampler any more.
        inner = getattr(self.batch_sampler, "sampler", None)
        sampler = inner if isinstance(inner, EpochSampler) else self.sampler
        if isinstance(sampler, EpochSampler) and type(self.batch_sampler) is BatchSampler:
            batch_sampler = EpochBatchSampler(
                sampler, self.batch_sampler.batch_size, self.batch_sampler.drop_last
            )
            # DataLoader refuses to have this attribute assigned after its constructor.
            object.__setattr__(self, "batch_sampler", batch_sampler)

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
        """The sampler of epochs, under the name that older code uses."""
        return self.sampler_of_epochs

    @property
    def epoch(self) -> int:
        """The epoch that comes next: int >= 0, assignable."""
        return self._cursor.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._cursor.epoch = value

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next, an int >= 0.

        A loaded position in that epoch stays; another epoch begins at step 0. Frameworks call it,
        so a loader with ``validation=True`` does not listen.

        Raises:
            InvalidOptionError: the epoch is not such an int.
        """
        self._cursor.set_epoch(epoch)

    def __len__(self) -> int:
        sampler = self.sampler_of_epochs
        return super().__len__() if sampler is None else sampler.steps_in(sampler.epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Return an iterator over an epoch: the one that comes next when it is asked for a batch.

        Raises:
            ShardingError: there are several ranks and no ``shard``.
        """
        return self.follow(self._fetch_again)

    def _fetch_again(self) -> Iterator[Any]:
        """Begin to fetch, and say so where that repeats an epoch that was left early."""
        last = self._progress
        if last is not None and last.was_left_in(self._cursor) and self._cursor.advances:
            message = (
                f"Epoch {self.epoch} of stream '{self.stream.label}' was left after "
                f"{last.yielded} batches and is run again from its beginning. If that is meant, "
                "say so: loader.steps(epoch); to go on with the next one, loader.set_epoch(epoch "
                "+ 1) first."
            )
            warn_of_repetition(self.stream, message)
        return self._fetch()

    def _fetch(self) -> Iterator[Any]:
        """Begin to fetch where the cursor stands: an iterator of torch's."""
        cursor = self._cursor
        if isinstance(cursor, SeededIterable):
            cursor.begin(cursor.start_step * (self.batch_size or 1))
        if self.generator is not None:
            # torch draws the base seed of the workers from it, in this process, on the default
            # device of that moment. No sample depends on that seed, but a generator that went on
            # from epoch to epoch would make what code in a worker_init_fn draws depend on how often
            # the loader was iterated before.
            device = torch.empty(0).device
            if device.type != self.generator.device.type:
                self.generator = torch.Generator(device)
            self.generator.manual_seed(self.stream.at(_WORKERS, cursor.epoch, cursor.rank).seed)
        return super().__iter__()

    def follow(self, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Return an iterator over the batches of the epoch that comes next, and count them.

        For frameworks that fetch batches from this loader's sampler and dataset. They count as
        batches of this loader, for its epoch and its state.

        Args:
            fetch: begins to fetch; called once, when the first batch is asked for.

        Raises:
            ShardingError: there are several ranks and no ``shard``.
        """
        refuse_missing_shard(self._cursor.shard, self.stream)
        return _Epoch(self, fetch)

    def _begin(self, fetch: Callable[[], Iterator[Any]]) -> Tuple[Iterator[Any], _Progress]:
        """Begin the epoch that comes next: return its batches, and the count of them."""
        cursor = self._cursor
        # First: where it raises, the loader still stands where it stood.
        batches = fetch()
        cursor.begin_pass()
        steps = cursor.steps_in(cursor.epoch) if isinstance(cursor, EpochSampler) else None
        self._progress = _Progress(cursor, steps)
        return batches, self._progress

    def count_steps(
        self, epoch: int, fetch: Callable[[], Iterator[Any]]
    ) -> Iterator[Tuple[int, Any]]:
        """Return an iterator over (step, batch) of an epoch, which comes next from now on.

        Args:
            epoch: int >= 0. Whoever moves the loader before the first batch is asked for does not
                change which epoch it is.
            fetch: begins to fetch; called once, when the first batch is asked for.

        Raises:
            InvalidOptionError: the epoch is not an int >= 0.
            ShardingError: there are several ranks and no ``shard``.
        """
        self.epoch = epoch
        batches = self.follow(fetch)

        def number() -> Iterator[Tuple[int, Any]]:
            self.epoch = epoch
            yield from enumerate(batches, self._cursor.start_step)

        return number()

    def steps(self, epoch: int) -> Iterator[Tuple[int, Any]]:
        """Yield (step, batch) of an epoch; step is the position in the epoch, also after a resume.

        Raises:
            InvalidOptionError: the epoch is not an int >= 0.
            ShardingError: there are several ranks and no ``shard``.
        """
        return self.count_steps(epoch, self._fetch)

    # --- random access ----------------------------------------------------------------------------

    def _require_sampler(self, what: str) -> EpochSampler:
        """Return the sampler, or refuse what an iterable dataset cannot give."""
        sampler = self.sampler_of_epochs
        if sampler is None:
            message = (
                f"An iterable dataset has no {what}; iterate it, or give it __getitem__ and "
                "__len__."
            )
            raise InvalidOptionError(message)
        return sampler

    def batch(self, epoch: int, step: int) -> Any:
        """Return any batch, fetched in this process and not pinned; moves nothing.

        Args:
            epoch: int >= 0.
            step: int, from 0 to the number of steps less 1.

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
        """Return the dataset indices of a step, or of a whole epoch of this rank; fetches nothing.

        Args:
            epoch: int >= 0.
            step: int, from 0 to the number of steps less 1; None is the whole epoch.

        Returns:
            int64 tensor of shape (samples,); a list for the keys of a sampler that yields no ints.

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
        """Return what must match for a position to mean the same samples: plain data by name."""
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
            _DATASET_DIGEST: getattr(self.dataset, "content_digest", None),
            **definition,
        }

    def state_dict(self) -> Dict[str, Any]:
        """Return where the newest iterator stands: after the batch that it handed out last.

        While batch k of an epoch is used, ``batches_yielded`` is k + 1, also with workers that have
        fetched more. Format ``seedregistry.loader/2``: ints, strings, bools and None, which JSON
        and ``torch.load(weights_only=True)`` read.

        It knows its data by ``dataset_digest``, over the tensors, arrays and lists of numbers that
        the dataset holds (large ones by some of their rows), and its sampler, where that is one of
        torch's, by ``sampler_digest``. None says that nothing is known, as of files on a disk, or
        of a sampler of yours.

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

        The next iteration, or :meth:`steps` of that epoch, continues there.

        Args:
            state: what :meth:`state_dict` returned, here or in another process.

        Raises:
            LoaderStateError: another format, seed, scheme, length, content of the data, batch size,
                order or world size (which may change with ``global_batch_size``), or a position
                that the epoch does not have; the message shows both values and nothing was changed.
        """
        if not isinstance(state, collections.abc.Mapping):
            message = (
                f"A loader's state is a dict; got {type(state).__name__}. Nothing was changed."
            )
            raise LoaderStateError(message)
        self._check_state(state)

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

    def _check_state(self, state: Mapping[Any, Any]) -> None:
        """Refuse a state of another loader, or with an entry that no state has or lacks.

        Raises:
            LoaderStateError: names all that is wrong.
        """
        expected = {"format": STATE_FORMAT, **self._identity()}
        allowed = {*expected, _EPOCH, _YIELDED, _DATASET}
        if state.get("format") == _FIRST_FORMAT:
            expected = {**expected, "format": _FIRST_FORMAT}
            for name in (_DATASET_DIGEST, SAMPLER_DIGEST):
                expected.pop(name, None)
            allowed.add(_WORLD_SIZE)

        names = mismatches(state, expected)
        problems = []
        if names:
            actual = {name: state.get(name, "missing") for name in names}
            problems.append(
                show_mismatches(names, actual, expected, there="in the state", here="here")
            )
        foreign = sorted(map(str, {*state} - allowed))
        if foreign:
            problems.append(f"it has {', '.join(foreign)}, which no such state has")
        for name in (_EPOCH, _YIELDED):
            value = state.get(name)
            if type(value) is not int or not 0 <= value <= LARGEST_EPOCH:
                problems.append(f"{name} is {value!r}, and an int from 0 to 2**62 was expected")

        if problems:
            message = (
                f"The state does not belong to this loader: {'; '.join(problems)}. Nothing was "
                "changed."
            )
            raise LoaderStateError(message)

    def describe(self) -> Dict[str, Any]:
        """Return what the ledger keeps: content only, so neither workers nor pinning."""
        dataset: Any = (
            self._cursor.dataset if isinstance(self._cursor, SeededIterable) else self.dataset
        )
        inner = getattr(dataset, "dataset", dataset) if dataset is self.dataset else dataset
        description: Dict[str, Any] = {
            "class": f"{type(inner).__module__}.{type(inner).__qualname__}"
        }
        if self._cursor.is_validation:
            description["validation"] = True
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


class _Progress:
    """How far an iteration of a loader has come. That of the newest iteration is the loader's."""

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

        It does as long as it is not over and nobody has moved the loader since.
        """
        return not self._is_over and self._moves == cursor.moves

    def was_left_in(self, cursor: Union[EpochSampler, SeededIterable]) -> bool:
        """Return whether it was left early, in the epoch that comes next.

        After more than a batch: who takes a single batch looks at the shapes.
        """
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
        # The last batch has finished the epoch already, unless nobody knew that it was the last:
        # the dataset is iterable, fewer batches came than the order has, or there was none left.
        if self._steps is None or self.yielded != self._steps or self._first == self._steps:
            self._finish()
        self._is_over = True

    def _finish(self) -> None:
        # An iterator that is used up after the loader was moved must not move it again.
        if self._moves == self._cursor.moves:
            self._cursor.finish(self.epoch)
            self._moves = self._cursor.moves


class _Epoch:
    """An iteration of a loader.

    It counts a batch before the caller has it. So a state that is taken while a batch is used has
    counted that batch, and the epoch is over while its last batch is used, even by a loop that
    never asks for another. A loop that is left early leaves nothing to be closed.

    Which epoch it is, and where in it the iteration begins, is read when the first batch is asked
    for.
    """

    def __init__(self, loader: SeededDataLoader, fetch: Callable[[], Iterator[Any]]) -> None:
        self._loader = loader
        self._fetch = fetch
        self._batches: Any = None
        self._progress: Any = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __len__(self) -> int:
        return len(self._loader if self._batches is None else self._batches)

    def __next__(self) -> Any:
        if self._batches is None:
            # Not before: Lightning makes the iterator first, and says which epoch it is then.
            self._batches, self._progress = self._loader._begin(self._fetch)
        try:
            batch = next(self._batches)
        except StopIteration:
            self._progress.end()
            raise
        self._progress.step()
        return batch
