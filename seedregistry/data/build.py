"""Building loaders: from a dataset, or from what a factory returns with every argument kept."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Dict, Mapping, Tuple, Union

import attrs
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from torch.utils.data.dataloader import default_collate, default_convert

from seedregistry.common.callsite import stack_level
from seedregistry.data.loader import SeededDataLoader
from seedregistry.data.options import PARAMETERS, LoaderOptions, fetching_arguments
from seedregistry.data.order import (
    DocumentedOrder,
    DrawnOrder,
    HashedOrder,
    IndexedOrder,
    Order,
    SequentialOrder,
    order_of_batches,
    order_of_sampler,
)
from seedregistry.data.sampler import DeterministicSampler, EpochBatchSampler, EpochSampler
from seedregistry.data.samples import SeededCollate, SeededDataset, SeededIterable
from seedregistry.data.walk import find_generators
from seedregistry.errors import (
    DatasetGeneratorWarning,
    FactorySignatureError,
    InvalidOptionError,
    ShuffleIgnoredWarning,
)

if TYPE_CHECKING:
    from seedregistry.stream import Stream

_SAMPLERS = ("sampler", "batch_sampler")
_DRAW_NOTHING = (default_collate, default_convert)


def is_dataset(source: object) -> bool:
    """Return whether a source is a dataset.

    An object with ``__getitem__`` or ``__iter__``, and no class or function.
    """
    if inspect.isclass(source) or inspect.isroutine(source):
        return False
    return hasattr(source, "__getitem__") or hasattr(source, "__iter__")


def build_loader(
    stream: Stream,
    source: Any,
    args: Tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: LoaderOptions,
) -> SeededDataLoader:
    """Build a loader from a dataset, or from what a factory returns with every argument kept.

    Args:
        stream: what everything comes from.
        source: a dataset, or a class or function that returns a ``DataLoader``.
        args: for the factory.
        kwargs: for ``DataLoader`` or the factory.
        options: those that ``DataLoader`` does not have.

    Raises:
        InvalidOptionError: options exclude each other, or a keyword is one that the loader sets
            itself.
        FactorySignatureError: the source is neither a dataset nor a factory.
        UnrepeatableSamplerError: a sampler's draws cannot be made a function of (stream, epoch).
    """
    if isinstance(source, DataLoader):
        message = (
            "A built DataLoader cannot be taken over. Pass its dataset, or the function "
            "that builds it."
        )
        raise FactorySignatureError(message)

    if is_dataset(source):
        settings = _dataset_settings(source, args, kwargs)
        shuffle = bool(settings.pop("shuffle", False))
        samplers = {name: settings.pop(name, None) for name in _SAMPLERS}
    else:
        loader = _call_factory(source, args, kwargs)
        settings = _loader_settings(loader)
        shuffle, samplers = _read_order(loader)

    if options.global_batch_size is not None and (
        kwargs.get("batch_size") is not None or samplers["batch_sampler"] is not None
    ):
        message = (
            "Pass global_batch_size (of all ranks together), or batch_size (of each rank) "
            "or a batch_sampler, not two."
        )
        raise InvalidOptionError(message)
    return _assemble(stream, settings, _Plan(options=options, shuffle=shuffle, **samplers))


def build_documented_loader(
    stream: Stream, source: Any, args: Tuple[Any, ...], kwargs: Mapping[str, Any], *, shuffle: bool
) -> SeededDataLoader:
    """Rebuild a factory's loader as ``create_deterministic_dataloader`` promises.

    ``shuffle=`` alone decides whether it shuffles, by the documented order under every scheme, and
    epochs repeat.

    Raises:
        FactorySignatureError: the factory returned no loader.
    """
    loader = _call_factory(source, args, kwargs)
    if not shuffle and isinstance(loader.sampler, RandomSampler):
        message = (
            "The factory's loader shuffles, and create_deterministic_dataloader was not asked "
            "to: the samples will come in sequence. Pass shuffle=True, or use "
            "registry.dataloader, which reads the factory's setting."
        )
        warnings.warn(message, ShuffleIgnoredWarning, stacklevel=stack_level())

    options = LoaderOptions(order="documented" if shuffle else None, epochs="repeat")
    return _assemble(stream, _loader_settings(loader), _Plan(options=options, shuffle=shuffle))


def _call_factory(source: Any, args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> DataLoader[Any]:
    loader = source(*args, **kwargs)
    if not isinstance(loader, DataLoader):
        message = f"The factory returned a {type(loader).__name__}; a DataLoader was expected."
        raise FactorySignatureError(message)
    return loader


def _loader_settings(loader: DataLoader[Any]) -> Dict[str, Any]:
    """Return the arguments that a loader was built with, but those that decide its order.

    Where a loader of ours is rebuilt, the user's dataset and collate function.
    """
    settings = {
        "dataset": loader.dataset,
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        **fetching_arguments(loader),
    }
    for name, wrapper in (
        ("dataset", SeededDataset),
        ("dataset", SeededIterable),
        ("collate_fn", SeededCollate),
    ):
        if isinstance(settings[name], wrapper):
            settings[name] = getattr(settings[name], name)
    return settings


def _read_order(loader: DataLoader[Any]) -> Tuple[bool, Dict[str, Any]]:
    """Return whether a loader shuffles, and its sampler or batch sampler where it is the user's.

    A sampler that torch puts in by itself is not returned: the order of a loader of ours stands for
    it.
    """
    samplers: Dict[str, Any] = dict.fromkeys(_SAMPLERS)
    sampler: Any = loader.sampler
    batch_sampler = loader.batch_sampler
    shuffle = False

    # A loader with a batch sampler has a sequential sampler beside it, which decides nothing.
    if isinstance(batch_sampler, EpochBatchSampler):
        sampler = batch_sampler.sampler

    if isinstance(loader.dataset, IterableDataset):
        pass
    elif isinstance(sampler, EpochSampler) and isinstance(sampler.order, DrawnOrder):
        samplers[sampler.order.kind] = sampler.order.sampler
    elif isinstance(sampler, DeterministicSampler):
        shuffle = sampler.shuffle
    elif batch_sampler is not None and (
        loader.batch_size is None or type(batch_sampler) is not BatchSampler
    ):
        samplers["batch_sampler"] = batch_sampler
    elif (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    ):
        shuffle = True
    elif type(sampler) is not SequentialSampler:
        samplers["sampler"] = sampler
    return shuffle, samplers


def _dataset_settings(
    dataset: object, args: Tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Dict[str, Any]:
    """Return the arguments of the loader of a dataset, or refuse what a loader cannot take."""
    if args:
        message = (
            "With a dataset, everything after it is a keyword: registry.dataloader(dataset, "
            "batch_size=32)."
        )
        raise FactorySignatureError(message)
    if kwargs.get("generator") is not None:
        message = (
            "registry.dataloader does not take generator=: the order and the workers have "
            "generators from the stream."
        )
        raise InvalidOptionError(message)

    unknown = sorted(set(kwargs) - PARAMETERS)
    if unknown:
        message = (
            f"DataLoader has no parameter {', '.join(unknown)}. It takes: "
            f"{', '.join(sorted(PARAMETERS - {'dataset'}))}."
        )
        raise FactorySignatureError(message)

    if isinstance(dataset, (SeededDataset, SeededIterable)):
        dataset = dataset.dataset
    return {
        "dataset": dataset,
        **{name: value for name, value in kwargs.items() if name != "generator"},
    }


@attrs.frozen(kw_only=True)
class _Plan:
    """What decides the order of a loader, and who sees which share of it.

    Attributes:
        options: those that ``DataLoader`` does not have.
        shuffle: shuffle by ``options.order``.
        sampler: the user's, or None.
        batch_sampler: the user's, or None.
    """

    options: LoaderOptions
    shuffle: bool
    sampler: Any = None
    batch_sampler: Any = None

    def check(self, dataset: object) -> None:
        """Refuse what excludes each other.

        Raises:
            InvalidOptionError: names what to leave out.
        """
        options = self.options
        given = [name for name in _SAMPLERS if getattr(self, name) is not None]
        is_ordered = self.shuffle or options.order is not None
        if isinstance(dataset, IterableDataset):
            if is_ordered or given or options.global_batch_size is not None:
                message = (
                    "An iterable dataset has no order that a loader could decide: shuffle=, "
                    "order=, sampler= and global_batch_size= need one with __getitem__ and "
                    "__len__."
                )
                raise InvalidOptionError(message)
        elif len(given) > 1 or (given and is_ordered):
            message = (
                f"Pass one of {', '.join(given)}, shuffle= and order=: each decides the order."
            )
            raise InvalidOptionError(message)

        if self.batch_sampler is not None and options.shard not in (None, False):
            message = (
                "A batch sampler decides the batches of this rank by itself and cannot be "
                "divided: give each rank a batch sampler of its own and pass shard=False."
            )
            raise InvalidOptionError(message)

    def choose_order(self, stream: Stream, size: int) -> Order:
        """Return the order of a dataset of ``size`` samples.

        Raises:
            UnrepeatableSamplerError: the user's sampler cannot be made a function of (stream,
                epoch).
        """

        def plain(*, shuffle: bool = False) -> Order:
            if not shuffle:
                return SequentialOrder(size)
            rule = self.options.order or ("hashed" if stream.full_width else "documented")
            if rule == "documented":
                return DocumentedOrder(size, stream.seed)
            return IndexedOrder(size, stream) if rule == "indexed" else HashedOrder(size, stream)

        if self.batch_sampler is not None:
            return order_of_batches(self.batch_sampler, stream)
        if self.sampler is not None:
            return order_of_sampler(self.sampler, stream, size, plain=plain)
        return plain(shuffle=self.shuffle)


def _assemble(stream: Stream, settings: Dict[str, Any], plan: _Plan) -> SeededDataLoader:
    """Put a loader together from a sampler, a dataset and a collate function that hold its state.

    Args:
        stream: what everything comes from.
        settings: arguments of ``DataLoader``; changed.
        plan: what decides the order.
    """
    dataset, batch_size = settings.pop("dataset"), settings.get("batch_size", 1)
    options, has_batch_sampler = plan.options, plan.batch_sampler is not None
    plan.check(dataset)
    _report_generators(dataset, stream, settings.get("collate_fn"))

    collate = settings.get("collate_fn") or (
        default_convert if batch_size is None and not has_batch_sampler else default_collate
    )
    # Torch's own collate functions draw nothing, so that no batch needs to say where it belongs.
    keeps_addresses = collate not in _DRAW_NOTHING

    cursor: Union[EpochSampler, SeededIterable]
    if isinstance(dataset, IterableDataset):
        cursor = SeededIterable(
            dataset,
            stream,
            keeps_addresses=keeps_addresses,
            advances=options.advances,
            shard=options.shard,
        )
        settings["dataset"] = cursor
    else:
        settings["dataset"] = SeededDataset(dataset, stream, keeps_addresses=keeps_addresses)
        cursor = EpochSampler(
            stream,
            plan.choose_order(stream, len(dataset)),
            batch_size=None if has_batch_sampler else batch_size,
            drop_last=bool(settings.get("drop_last", False)),
            shard=options.shard,
            global_batch_size=options.global_batch_size,
            advances=options.advances,
        )
        if has_batch_sampler:
            # DataLoader refuses these beside a batch sampler, whatever they are.
            settings.pop("batch_size", None)
            settings.pop("drop_last", None)
            settings["batch_sampler"] = EpochBatchSampler(cursor, 1)
        else:
            settings["sampler"] = cursor
            if options.global_batch_size is not None:
                settings["batch_size"] = cursor.shards.batch_size
    cursor.is_validation = options.validation
    if keeps_addresses:
        settings["collate_fn"] = SeededCollate(collate, stream, _RankOf(cursor))

    loader: SeededDataLoader = SeededDataLoader(generator=torch.Generator(), **settings)
    return loader


class _RankOf:
    """Asks a sampler for its rank when it is called."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __call__(self) -> int:
        return int(self._cursor.rank)


def _report_generators(dataset: Any, stream: Stream, collate_fn: Any) -> None:
    """Warn about generators that a dataset or a collate function holds.

    Their copies repeat in every worker and epoch.
    """
    generators = (
        []
        if type(dataset) is torch.utils.data.TensorDataset
        else find_generators(dataset, "dataset")
    )
    if collate_fn is not None and collate_fn not in _DRAW_NOTHING:
        generators += find_generators(collate_fn, "collate_fn")
    if not generators:
        return

    listed = ", ".join(f"{path} ({kind})" for path, kind in generators)
    message = (
        f"What stream '{stream.label}' loads holds generators of its own: {listed}. Each worker "
        "has a copy that starts at the same state in every epoch, and a resumed training starts "
        "it anew. Draw from the default generators instead, which stand at a position of their "
        "own for every sample: random.random(), np.random.rand(), torch.rand(1)."
    )
    host = stream.host
    if host is None:
        warnings.warn(message, DatasetGeneratorWarning, stacklevel=stack_level())
    else:
        host.warn(stream, DatasetGeneratorWarning, message)
