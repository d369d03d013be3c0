"""The loader: a ``DataLoader`` whose order is a function of (stream, epoch), built from a dataset or rebuilt from a loader."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Optional, Tuple

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from seedregistry.callsite import stack_level
from seedregistry.data.sampler import DeterministicSampler, HashedSampler, check_count
from seedregistry.errors import FactorySignatureError, InvalidOptionError, ShuffleIgnoredWarning

if TYPE_CHECKING:
    from seedregistry.stream import Stream

__all__ = ["SeededDataLoader", "build_documented_loader", "build_loader", "is_dataset"]

_WORKERS = "workers"
_EPOCH_RULES = ("advance", "repeat")
_KEPT = (
    "dataset",
    "batch_size",
    "drop_last",
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
)
_TAKES = frozenset(inspect.signature(DataLoader.__init__).parameters) - {"self"}


class SeededDataLoader(DataLoader):  # type: ignore[type-arg]
    """A ``DataLoader`` whose order is a function of (stream, epoch), with generators of its own.

    The order of epoch *e* is, under ``sha256-31``, the documented ``torch.randperm(n, generator=manual_seed(seed + e))``, and
    under ``sha256-256`` the same function with the generator of ``stream.at(e)``. Worker processes
    are seeded from the position ("workers", e) of the stream, persistent ones once, when they start. Building, iterating
    and abandoning it moves no global generator of this process; what a dataset draws in this process (``num_workers=0``)
    comes from the global ones.

    Made by ``registry.dataloader``. Not thread-safe. Not pickled.

    Attributes:
        epoch: the epoch that comes next, assignable. Plain iteration runs it, and it goes up by one when the epoch's last
            batch has been handed out.
    """

    _stream: Stream
    _epochs: str

    @property
    def _deterministic_sampler(self) -> Optional[DeterministicSampler]:
        """The sampler, under the name that older code uses; None for an iterable dataset."""
        return self.sampler if isinstance(self.sampler, DeterministicSampler) else None

    @property
    def epoch(self) -> int:
        """The epoch that comes next: int >= 0."""
        sampler = self._deterministic_sampler
        return self._iterable_epoch if sampler is None else sampler.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        sampler = self._deterministic_sampler
        if sampler is None:
            self._iterable_epoch = check_count(value, "epoch")
        else:
            sampler.set_epoch(value)

    _iterable_epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next: int >= 0."""
        self.epoch = epoch

    def steps(self, epoch: int) -> Iterator[Tuple[int, Any]]:
        """Yield (step, batch) of an epoch; step counts from 0."""
        self.epoch = epoch
        return enumerate(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # The generator gives the seed of the workers alone; the order has its own.
        self.generator.manual_seed(self._stream.at(_WORKERS, self.epoch).seed)
        return _Epoch(self, super().__iter__())

    def _finish(self, epoch: int) -> None:
        if self._epochs == "advance" and self.epoch == epoch:
            self.epoch = epoch + 1

    def describe(self) -> Dict[str, Any]:
        """Return what the ledger keeps: content only, so neither worker counts nor pinning."""
        sampler = self._deterministic_sampler
        description: Dict[str, Any] = {
            "class": f"{type(self.dataset).__module__}.{type(self.dataset).__qualname__}",
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
        }
        if sampler is None:
            return {**description, "order": "iterable", "warning": "not exactly resumable"}
        order = "hashed" if isinstance(sampler, HashedSampler) else "documented"
        return {**description, "samples": len(sampler), "order": order if sampler.shuffle else "sequential"}


class _Epoch:
    """One iteration of a loader; tells it when the last batch has been handed out."""

    def __init__(self, loader: SeededDataLoader, batches: Any) -> None:
        self._loader = loader
        self._batches = batches
        self._epoch = loader.epoch
        self._left = len(loader) if loader._deterministic_sampler is not None else None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __len__(self) -> int:
        return len(self._batches)

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except StopIteration:
            if self._left is None or self._left == 0:
                self._left = -1
                self._loader._finish(self._epoch)
            raise
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._loader._finish(self._epoch)
        return batch


def is_dataset(source: object) -> bool:
    """Return whether a source is a dataset: an object with ``__getitem__`` or ``__iter__``, and no class or function."""
    if inspect.isclass(source) or inspect.isroutine(source):
        return False
    return hasattr(source, "__getitem__") or hasattr(source, "__iter__")


def _read_shuffle(loader: DataLoader) -> bool:  # type: ignore[type-arg]
    """Return whether a factory's loader shuffles.

    Raises:
        FactorySignatureError: its order is not one that can be rebuilt.
    """
    sampler: Any = loader.sampler
    batch_sampler = loader.batch_sampler
    if isinstance(sampler, DeterministicSampler):
        return sampler.shuffle
    known_batches = batch_sampler is None or type(batch_sampler) is BatchSampler
    if known_batches and type(sampler) is SequentialSampler:
        return False
    plain_shuffle = known_batches and type(sampler) is RandomSampler and not sampler.replacement
    if plain_shuffle and sampler.num_samples == len(loader.dataset):  # type: ignore[union-attr, arg-type]
        return True
    message = (
        f"The factory's loader has a {type(sampler).__name__} under a {type(batch_sampler).__name__}, whose draws cannot be "
        "made a function of (stream, epoch). Pass shuffle=True or shuffle=False in the factory; or draw the indices of an "
        "epoch yourself, with generator=stream.at(epoch).generator(), and pass torch.utils.data.Subset(dataset, indices)."
    )
    raise FactorySignatureError(message)


def build_loader(
    stream: Stream,
    source: Any,
    /,
    *args: Any,
    epochs: str = "advance",
    **kwargs: Any,
) -> SeededDataLoader:
    """Build a loader from a dataset, or from what a factory returns with every argument kept.

    Args:
        stream: what the order comes from.
        source: a dataset, or a class or function that returns a ``DataLoader``.
        *args: for the factory.
        epochs: ``"advance"`` (the epoch goes up after each pass) or ``"repeat"`` (the same until told otherwise).
        **kwargs: for ``DataLoader`` or the factory.

    Raises:
        InvalidOptionError: ``epochs`` is neither, or a keyword is one that the loader sets itself.
        FactorySignatureError: the source is neither a dataset nor a factory, or its loader cannot be rebuilt.
    """
    if epochs not in _EPOCH_RULES:
        message = f"epochs must be 'advance' or 'repeat'; got {epochs!r}."
        raise InvalidOptionError(message)
    if isinstance(source, DataLoader):
        message = "A built DataLoader cannot be taken over. Pass its dataset, or the function that builds it."
        raise FactorySignatureError(message)
    if is_dataset(source):
        settings = _dataset_settings(source, args, kwargs)
        shuffle = bool(settings.pop("shuffle", False))
    else:
        loader = _call_factory(source, args, kwargs)
        shuffle = not isinstance(loader.dataset, IterableDataset) and _read_shuffle(loader)
        settings = _settings_of(loader)
    return _assemble(stream, settings, shuffle=shuffle, epochs=epochs)


def build_documented_loader(
    stream: Stream, source: Any, args: Tuple[Any, ...], kwargs: Mapping[str, Any], *, shuffle: bool
) -> SeededDataLoader:
    """Rebuild a factory's loader as ``create_deterministic_dataloader`` promises: ``shuffle=`` alone decides, epochs repeat.

    Raises:
        FactorySignatureError: the factory returned no loader.
    """
    loader = _call_factory(source, args, kwargs)
    if not shuffle and isinstance(loader.sampler, RandomSampler):
        message = (
            "The factory's loader shuffles, and create_deterministic_dataloader was not asked to: the samples will come in "
            "sequence. Pass shuffle=True, or use registry.dataloader, which reads the factory's setting."
        )
        warnings.warn(message, ShuffleIgnoredWarning, stacklevel=stack_level())
    return _assemble(stream, _settings_of(loader), shuffle=shuffle, epochs="repeat", is_documented=True)


def _call_factory(source: Any, args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> DataLoader[Any]:
    loader = source(*args, **kwargs)
    if not isinstance(loader, DataLoader):
        message = f"The factory returned a {type(loader).__name__}; a DataLoader was expected."
        raise FactorySignatureError(message)
    return loader


def _settings_of(loader: DataLoader[Any]) -> Dict[str, Any]:
    """Return the arguments that a loader was built with, but those that decide its order."""
    settings = {name: getattr(loader, name) for name in _KEPT if name in _TAKES and hasattr(loader, name)}
    if not settings["num_workers"]:
        settings.pop("prefetch_factor", None)
    return settings


def _dataset_settings(dataset: object, args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> Dict[str, Any]:
    if args:
        message = "With a dataset, everything after it is a keyword: registry.dataloader(dataset, batch_size=32)."
        raise FactorySignatureError(message)
    own = {
        "generator": "the order and the workers have generators of their own, from the stream",
        "sampler": "the order comes from the stream",
        "batch_sampler": "the order comes from the stream",
    }
    for name, reason in own.items():
        if kwargs.get(name) is not None:
            message = f"registry.dataloader does not take {name}=: {reason}."
            raise InvalidOptionError(message)
    unknown = sorted(set(kwargs) - _TAKES)
    if unknown:
        message = f"DataLoader has no parameter {', '.join(unknown)}. It takes: {', '.join(sorted(_TAKES - {'dataset'}))}."
        raise FactorySignatureError(message)
    return {"dataset": dataset, **{name: value for name, value in kwargs.items() if name not in own}}


def _assemble(
    stream: Stream, settings: Dict[str, Any], *, shuffle: bool, epochs: str, is_documented: bool = False
) -> SeededDataLoader:
    dataset = settings["dataset"]
    if not isinstance(dataset, IterableDataset):
        size = len(dataset)
        if stream.full_width and not is_documented:
            settings["sampler"] = HashedSampler(stream, size, shuffle=shuffle)
        else:
            settings["sampler"] = DeterministicSampler(size, shuffle=shuffle, seed=stream.seed)
    elif shuffle:
        message = "An iterable dataset has no order that a loader could shuffle; shuffle inside the dataset."
        raise InvalidOptionError(message)
    loader = SeededDataLoader(generator=torch.Generator(), **settings)
    loader._stream = stream
    loader._epochs = epochs
    return loader
