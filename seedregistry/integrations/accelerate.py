"""Hugging Face accelerate.

Loaders that keep their order, samples and resume under an ``Accelerator``.

``accelerator.prepare(loader)`` keeps a loader's sampler, dataset and collate function and drops its
class: order and draws stay exact, the epoch is accelerate's own count from 0, and a state cannot be
saved in mid-epoch. :func:`prepare` keeps all.

Source: ``accelerate/data_loader.py``, ``prepare_data_loader`` and ``DataLoaderShard.__iter__``,
read at 1.15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Tuple

try:
    from accelerate.data_loader import DataLoaderShard
except ImportError as error:
    message = "seedregistry.integrations.accelerate needs accelerate: pip install accelerate"
    raise ImportError(message) from error

from seedregistry.data.loader import SeededDataLoader
from seedregistry.data.sampler import EpochSampler
from seedregistry.errors import InvalidOptionError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["SeededDataLoaderShard", "prepare"]

_KEPT = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


class SeededDataLoaderShard(DataLoaderShard):  # type: ignore[misc]
    """accelerate's loader over the parts of one of ours, which goes on counting its epochs and batches.

    It is a ``DataLoader`` with ``epoch``, ``set_epoch``, ``steps``, ``state_dict`` and
    ``load_state_dict`` as ours; ``accelerator.register_for_checkpointing`` takes it. Batches are on
    the accelerator's device.

    Args:
        loader: the loader; it must not be iterated itself meanwhile.
        **kwargs: for accelerate's class.
    """

    def __init__(self, loader: SeededDataLoader, **kwargs: Any) -> None:
        super().__init__(loader.dataset, **kwargs)
        self.seeded = loader

    @property
    def epoch(self) -> int:
        """The epoch that comes next: int >= 0, assignable."""
        return self.seeded.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.seeded.epoch = value

    def __iter__(self) -> Iterator[Any]:
        return self.seeded.follow(self._fetch)

    def _fetch(self) -> Iterator[Any]:
        self.iteration = (
            self.seeded.epoch
        )  # accelerate hands this to the sampler's set_epoch when it begins
        batches: Iterator[Any] = super().__iter__()
        return batches

    def steps(self, epoch: int) -> Iterator[Tuple[int, Any]]:
        """Yield (step, batch) of an epoch, as the loader's own ``steps``."""
        self.seeded.set_epoch(epoch)
        return self.seeded.count_steps(self._fetch)

    def state_dict(self) -> Dict[str, Any]:
        """Return where the newest iterator stands, as the loader's own ``state_dict``."""
        return self.seeded.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, as the loader's own ``load_state_dict``."""
        self.seeded.load_state_dict(state)


def prepare(accelerator: Accelerator, loader: SeededDataLoader) -> SeededDataLoaderShard:
    """Return a loader of ours as an accelerator's.

    Batches on its device, divided among its processes, resumable.

    With several processes and neither ``shard=True`` nor a pair given, the epoch is divided by our
    rule (``batch_size`` is per process), so that no sample comes twice but for the padding of the
    last step.

    Args:
        accelerator: the ``accelerate.Accelerator``.
        loader: from ``registry.dataloader``; it is taken over.

    Raises:
        InvalidOptionError: not such a loader, one over an iterable dataset, or one whose own batch
            sampler cannot be divided.
    """
    if not isinstance(loader, SeededDataLoader) or not isinstance(
        loader.sampler_of_epochs, EpochSampler
    ):
        message = (
            "prepare takes a loader from registry.dataloader over a dataset with __getitem__; "
            f"got a {type(loader).__name__}. For an iterable dataset use accelerator.prepare."
        )
        raise InvalidOptionError(message)
    sampler = loader.sampler_of_epochs
    if accelerator.num_processes > 1 and sampler.shard in (None, False):
        if loader.batch_size is None:
            message = (
                "A loader without a batch size, or with a batch sampler of its own, cannot be "
                f"divided among {accelerator.num_processes} processes by prepare. Give each a "
                "part of the samples and pass shard=(rank, world size)."
            )
            raise InvalidOptionError(message)
        sampler.shard = (accelerator.process_index, accelerator.num_processes)
    own: Dict[str, Any] = {name: getattr(loader, name) for name in _KEPT}
    if not loader.num_workers:
        del own["prefetch_factor"]
    if loader.batch_sampler is None:
        own.update(sampler=sampler, batch_size=None)
    else:
        own["batch_sampler"] = loader.batch_sampler
    prepared = SeededDataLoaderShard(
        loader, device=accelerator.device, _drop_last=loader.drop_last, **own
    )
    prepared._is_accelerate_prepared = True  # accelerate's own mark: it then only notes the loader
    noted: SeededDataLoaderShard = accelerator.prepare_data_loader(prepared)
    return noted
