"""The options of a loader: ours, and those of torch that stay when a loader is built again."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Dict, FrozenSet, Optional

import attrs
from torch.utils.data import DataLoader

from seedregistry.common.options import check_choice, check_count
from seedregistry.data.shards import check_shard
from seedregistry.errors import InvalidOptionError

if TYPE_CHECKING:
    from seedregistry.data.shards import Shard

_ORDERS = ("documented", "hashed", "indexed")
_EPOCH_RULES = ("advance", "repeat")


def _check_order(order: Optional[str]) -> Optional[str]:
    if order is not None:
        check_choice(order, "order", _ORDERS, hint=", or None for the scheme's own")
    return order


def _check_global_batch_size(size: Optional[int]) -> Optional[int]:
    return None if size is None else check_count(size, "global_batch_size", least=1)


def _check_epochs(epochs: str) -> str:
    check_choice(epochs, "epochs", _EPOCH_RULES)
    return epochs


def _check_validation(validation: bool) -> bool:  # noqa: FBT001 - what the user passed
    if not isinstance(validation, bool):
        raise InvalidOptionError(f"validation must be True or False; got {validation!r}.")
    return validation


@attrs.frozen(kw_only=True)
class LoaderOptions:
    """The options of a loader that ``DataLoader`` does not have. An immutable value.

    Attributes:
        order: how an epoch is shuffled: ``"documented"``, ``"hashed"`` or ``"indexed"``; None is
            the scheme's own.
        shard: True (rank and world size from ``torch.distributed``, read when an epoch begins),
            (rank, world size), False (somebody else divides the samples, or nobody) or None (an
            error with more than one rank).
        global_batch_size: samples in a step of all ranks together, int >= 1; None where
            ``batch_size`` says how many each rank has.
        epochs: ``"advance"`` (the epoch goes up by one after each pass) or ``"repeat"`` (it stays
            until told otherwise).
        validation: every pass is of one epoch, epoch 0 unless ``loader.epoch`` is assigned, also
            when a framework calls ``set_epoch``.

    Raises:
        InvalidOptionError: one of them is not such a value.
    """

    order: Optional[str] = attrs.field(default=None, converter=_check_order)
    shard: Shard = attrs.field(default=None, converter=check_shard)
    global_batch_size: Optional[int] = attrs.field(default=None, converter=_check_global_batch_size)
    epochs: str = attrs.field(default="advance", converter=_check_epochs)
    validation: bool = attrs.field(default=False, converter=_check_validation)

    @property
    def advances(self) -> bool:
        """Whether the epoch goes up by one after each pass."""
        return self.epochs == "advance" and not self.validation

    def keywords(self) -> Dict[str, Any]:
        """Return the options as the keyword arguments that a component is handed."""
        return attrs.asdict(self, recurse=False)


OPTION_NAMES: FrozenSet[str] = frozenset(field.name for field in attrs.fields(LoaderOptions))
"""The names of :class:`LoaderOptions`, which are keywords of ``registry.dataloader``."""

PARAMETERS: FrozenSet[str] = frozenset(inspect.signature(DataLoader.__init__).parameters) - {"self"}
"""The parameters of ``DataLoader`` in this version of torch."""

_FETCHING = (
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


def fetching_arguments(loader: DataLoader[Any]) -> Dict[str, Any]:
    """Return the arguments of a loader that say how it fetches.

    What it fetches, and in which order, is for the caller to say: the dataset, the samplers, the
    batch size, the generator.

    Returns:
        Keyword arguments for another ``DataLoader`` of this version of torch.
    """
    # in_order came with torch 2.6, and pin_memory_device is deprecated in 2.13 and may go. A
    # subclass that does not call DataLoader's constructor may lack what its torch has.
    arguments = {
        name: getattr(loader, name)
        for name in _FETCHING
        if name in PARAMETERS and hasattr(loader, name)
    }
    if not loader.num_workers:
        # A loader whose workers were taken away by assignment still has the factor, and DataLoader
        # refuses one without workers.
        arguments.pop("prefetch_factor", None)
    return arguments
