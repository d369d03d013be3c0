"""Building loaders: from a dataset, or from what a factory returns, with every argument kept."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple, Union

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
from seedregistry.data.shards import check_shard
from seedregistry.data.walk import find_generators
from seedregistry.errors import (
    DatasetGeneratorWarning,
    FactorySignatureError,
    InvalidOptionError,
    ShuffleIgnoredWarning,
)

if TYPE_CHECKING:
    from seedregistry.data.shards import Shard
    from seedregistry.stream import Stream

_EPOCH_RULES = ("advance", "repeat")
_ORDERS = ("documented", "hashed", "indexed")
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
_SAMPLERS = ("sampler", "batch_sampler")
_DREW_NOTHING = (default_collate, default_convert)


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
    /,
    *args: Any,
    order: Optional[str] = None,
    shard: Shard = None,
    global_batch_size: Optional[int] = None,
    epochs: str = "advance",
    **kwargs: Any,
) -> SeededDataLoader:
    """Build a loader from a dataset, or from what a factory returns with every argument kept.

    Args:
        stream: what everything comes from.
        source: a dataset, or a class or function that returns a ``DataLoader``.
        *args: for the factory.
        order: ``"documented"``, ``"hashed"`` or ``"indexed"``; None is the scheme's own.
        shard: as for an :class:`EpochSampler`.
        global_batch_size: likewise.
        epochs: ``"advance"`` (the epoch goes up after each pass) or ``"repeat"`` (the same until
            told otherwise).
        **kwargs: for ``DataLoader`` or the factory.

    Raises:
        InvalidOptionError: an option is not one of its values, or a keyword is one that the loader
            sets itself.
        FactorySignatureError: the source is neither a dataset nor a factory.
        UnrepeatableSamplerError: a sampler's draws cannot be made a function of (stream, epoch).
    """
    if epochs not in _EPOCH_RULES:
        message = f"epochs must be 'advance' or 'repeat'; got {epochs!r}."
        raise InvalidOptionError(message)
    if order is not None and order not in _ORDERS:
        message = (
            f"order must be one of {', '.join(map(repr, _ORDERS))}, or None for the "
            f"scheme's own; got {order!r}."
        )
        raise InvalidOptionError(message)
    shard = check_shard(shard)
    if isinstance(source, DataLoader):
        message = (
            "A built DataLoader cannot be taken over. Pass its dataset, or the function "
            "that builds it."
        )
        raise FactorySignatureError(message)
    if is_dataset(source):
        settings = _dataset_settings(source, args, kwargs)
        shuffle = bool(settings.pop("shuffle", False))
        own = {name: settings.pop(name, None) for name in _SAMPLERS}
    else:
        loader = _call_factory(source, args, kwargs)
        settings = _settings_of(loader)
        shuffle, own = _read_order(loader)
    if global_batch_size is not None:
        _check_global_batch_size(global_batch_size, kwargs, own["batch_sampler"])
    plan = _Plan(
        shuffle=shuffle,
        order=order,
        shard=shard,
        global_batch_size=global_batch_size,
        advances=epochs == "advance",
        **own,
    )
    return _assemble(stream, settings, plan)


def build_documented_loader(
    stream: Stream, source: Any, args: Tuple[Any, ...], kwargs: Mapping[str, Any], *, shuffle: bool
) -> SeededDataLoader:
    """Rebuild a factory's loader as ``create_deterministic_dataloader`` promises.

    ``shuffle=`` alone decides, epochs repeat.

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
    return _assemble(
        stream, _settings_of(loader), _Plan(shuffle=shuffle, is_documented=True, advances=False)
    )


def _call_factory(source: Any, args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> DataLoader[Any]:
    loader = source(*args, **kwargs)
    if not isinstance(loader, DataLoader):
        message = f"The factory returned a {type(loader).__name__}; a DataLoader was expected."
        raise FactorySignatureError(message)
    return loader


def _settings_of(loader: DataLoader[Any]) -> Dict[str, Any]:
    """Return the arguments that a loader was built with, but those that decide its order.

    A loader of ours is unwrapped.
    """
    settings = {
        name: getattr(loader, name) for name in _KEPT if name in _TAKES and hasattr(loader, name)
    }
    if not settings["num_workers"]:
        settings.pop("prefetch_factor", None)
    for name, wrapper in (
        ("dataset", SeededDataset),
        ("dataset", SeededIterable),
        ("collate_fn", SeededCollate),
    ):
        if isinstance(settings[name], wrapper):
            settings[name] = getattr(settings[name], name)
    return settings


def _read_order(loader: DataLoader[Any]) -> Tuple[bool, Dict[str, Any]]:
    """Return whether a factory's loader shuffles, and its own sampler or batch sampler where it is more than that."""
    own: Dict[str, Any] = dict.fromkeys(_SAMPLERS)
    sampler: Any = loader.sampler
    batch_sampler = loader.batch_sampler
    shuffle = False
    if isinstance(batch_sampler, EpochBatchSampler):
        sampler = batch_sampler.sampler
    if isinstance(loader.dataset, IterableDataset):
        pass
    elif isinstance(sampler, EpochSampler) and isinstance(sampler.order, DrawnOrder):
        own[sampler.order.kind] = sampler.order.sampler
    elif isinstance(sampler, DeterministicSampler):
        shuffle = sampler.shuffle
    elif batch_sampler is not None and (
        loader.batch_size is None or type(batch_sampler) is not BatchSampler
    ):
        own["batch_sampler"] = batch_sampler
    elif (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    ):
        shuffle = True
    elif type(sampler) is not SequentialSampler:
        own["sampler"] = sampler
    return shuffle, own


def _dataset_settings(
    dataset: object, args: Tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Dict[str, Any]:
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
    unknown = sorted(set(kwargs) - _TAKES)
    if unknown:
        message = (
            f"DataLoader has no parameter {', '.join(unknown)}. It takes: "
            f"{', '.join(sorted(_TAKES - {'dataset'}))}."
        )
        raise FactorySignatureError(message)
    if isinstance(dataset, (SeededDataset, SeededIterable)):
        dataset = dataset.dataset
    return {
        "dataset": dataset,
        **{name: value for name, value in kwargs.items() if name != "generator"},
    }


def _check_global_batch_size(
    size: object, kwargs: Mapping[str, Any], batch_sampler: object
) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        message = f"global_batch_size must be an int >= 1; got {size!r}."
        raise InvalidOptionError(message)
    if kwargs.get("batch_size") is not None or batch_sampler is not None:
        message = (
            "Pass global_batch_size (of all ranks together), or batch_size (of each rank) "
            "or a batch_sampler, not two."
        )
        raise InvalidOptionError(message)


@attrs.frozen(kw_only=True)
class _Plan:
    """What decides the order of a loader, and who sees which part of it.

    Attributes:
        shuffle: shuffle by ``order``.
        order: as for :func:`build_loader`.
        is_documented: the documented order under every scheme.
        sampler: the user's, or None.
        batch_sampler: the user's, or None.
        shard, global_batch_size, advances: as for an :class:`EpochSampler`.
    """

    shuffle: bool
    order: Optional[str] = None
    is_documented: bool = False
    sampler: Any = None
    batch_sampler: Any = None
    shard: Shard = None
    global_batch_size: Optional[int] = None
    advances: bool = True

    def check(self, dataset: object) -> None:
        """Refuse what excludes each other.

        Raises:
            InvalidOptionError: names what to leave out.
        """
        given = [name for name in _SAMPLERS if getattr(self, name) is not None]
        if isinstance(dataset, IterableDataset):
            if (
                self.shuffle
                or given
                or self.order is not None
                or self.global_batch_size is not None
            ):
                message = (
                    "An iterable dataset has no order that a loader could decide: shuffle=, "
                    "order=, sampler= and global_batch_size= need one with __getitem__ and "
                    "__len__."
                )
                raise InvalidOptionError(message)
        elif len(given) > 1 or (given and (self.shuffle or self.order is not None)):
            message = (
                f"Pass one of {', '.join(given)}, shuffle= and order=: each decides the order."
            )
            raise InvalidOptionError(message)
        if self.batch_sampler is not None and self.shard not in (None, False):
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
            if self.is_documented or (self.order or _default_order(stream)) == "documented":
                return DocumentedOrder(size, stream.seed)
            return (
                IndexedOrder(size, stream) if self.order == "indexed" else HashedOrder(size, stream)
            )

        if self.batch_sampler is not None:
            return order_of_batches(self.batch_sampler, stream)
        if self.sampler is not None:
            return order_of_sampler(self.sampler, stream, size, plain=plain)
        return plain(shuffle=self.shuffle)


def _default_order(stream: Stream) -> str:
    return "hashed" if stream.full_width else "documented"


def _assemble(stream: Stream, settings: Dict[str, Any], plan: _Plan) -> SeededDataLoader:
    """Put a loader together from a sampler, a dataset and a collate function that hold all the state."""
    dataset = settings.pop("dataset")
    plan.check(dataset)
    _report_generators(dataset, stream, settings.get("collate_fn"))
    makes_no_batches = settings.get("batch_size", 1) is None and plan.batch_sampler is None
    collate = settings.get("collate_fn") or (
        default_convert if makes_no_batches else default_collate
    )
    keeps_addresses = collate not in _DREW_NOTHING
    cursor: Union[EpochSampler, SeededIterable]
    if isinstance(dataset, IterableDataset):
        cursor = SeededIterable(
            dataset,
            stream,
            keeps_addresses=keeps_addresses,
            advances=plan.advances,
            shard=plan.shard,
        )
        settings["dataset"] = cursor
    else:
        settings["dataset"] = SeededDataset(dataset, stream, keeps_addresses=keeps_addresses)
        cursor = EpochSampler(
            stream,
            plan.choose_order(stream, len(dataset)),
            batch_size=None if plan.batch_sampler is not None else settings.get("batch_size", 1),
            drop_last=bool(settings.get("drop_last", False)),
            shard=plan.shard,
            global_batch_size=plan.global_batch_size,
            advances=plan.advances,
        )
        if plan.batch_sampler is not None:
            settings = {
                name: value
                for name, value in settings.items()
                if name not in ("batch_size", "drop_last")
            }
            settings["batch_sampler"] = EpochBatchSampler(cursor, 1)
        else:
            settings["sampler"] = cursor
            if plan.global_batch_size is not None:
                settings["batch_size"] = cursor.shards.batch_size
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
    held = (
        []
        if type(dataset) is torch.utils.data.TensorDataset
        else find_generators(dataset, "dataset")
    )
    if collate_fn is not None and collate_fn not in _DREW_NOTHING:
        held += find_generators(collate_fn, "collate_fn")
    if not held:
        return
    listed = ", ".join(f"{path} ({kind})" for path, kind in held)
    message = (
        f"What stream '{stream.label}' loads holds generators of its own: {listed}. Each worker "
        "has a copy that starts at the same state in every epoch, and a resumed run starts it "
        "anew. Draw from the default generators instead, which stand at a position of their own "
        "for every sample: random.random(), np.random.rand(), torch.rand(1)."
    )
    host = stream.host
    if host is None:
        warnings.warn(message, DatasetGeneratorWarning, stacklevel=stack_level())
    else:
        host.warn(stream, DatasetGeneratorWarning, message)
