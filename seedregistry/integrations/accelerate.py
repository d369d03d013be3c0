"""Hugging Face accelerate: loaders that keep their order, samples and resume.

``accelerator.prepare(loader)`` keeps a loader's sampler, dataset and collate function and drops its
class. Order and draws stay exact, but the epoch is accelerate's count from 0, and a state cannot be
saved in mid-epoch. :func:`prepare` keeps all of it.

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
from seedregistry.data.options import fetching_arguments
from seedregistry.data.sampler import EpochSampler
from seedregistry.errors import InvalidOptionError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["SeededDataLoaderShard", "prepare"]


class SeededDataLoaderShard(DataLoaderShard):  # type: ignore[misc]
    """accelerate's loader over the sampler, dataset and collate function of a seeded loader.

    :func:`prepare` makes it. The seeded loader goes on counting epochs and batches, so that this
    one has its ``epoch``, ``set_epoch``, ``steps``, ``state_dict`` and ``load_state_dict``, and
    ``accelerator.register_for_checkpointing`` takes it. Batches are on the accelerator's device.
    Lives as long as that loader; not thread-safe.

    Args:
        loader: from ``registry.dataloader``; it must not be iterated itself meanwhile.
        **kwargs: for ``accelerate.data_loader.DataLoaderShard``.

    Attributes:
        seeded: the loader.
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
        # accelerate hands this to the sampler's set_epoch when it begins; a count of its own would
        # take the sampler back to epoch 0.
        self.iteration = self.seeded.epoch
        batches: Iterator[Any] = super().__iter__()
        return batches

    def steps(self, epoch: int) -> Iterator[Tuple[int, Any]]:
        """Yield (step, batch) of an epoch; step is the position in it, also after a resume.

        Raises:
            InvalidOptionError: the epoch is not an int >= 0.
        """
        return self.seeded.count_steps(epoch, self._fetch)

    def state_dict(self) -> Dict[str, Any]:
        """Return where the newest iterator stands, in format ``seedregistry.loader/1``.

        Raises:
            LoaderStateError: it has workers and ``in_order=False``.
        """
        return self.seeded.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, of this loader or of the seeded one without accelerate.

        Raises:
            LoaderStateError: it does not belong to this loader; nothing was changed.
        """
        self.seeded.load_state_dict(state)


def prepare(accelerator: Accelerator, loader: SeededDataLoader) -> SeededDataLoaderShard:
    """Return a loader from ``registry.dataloader`` as an accelerator's.

    Its batches are on the accelerator's device and divided among its processes, and it can be
    resumed in mid-epoch. With several processes and neither ``shard=True`` nor a pair given, the
    loader divides the epoch as ``shard=True`` does (``batch_size`` is per process), so that no
    sample comes twice but for the padding of the last step.

    Args:
        accelerator: the ``accelerate.Accelerator``.
        loader: from ``registry.dataloader``; it is taken over.

    Raises:
        InvalidOptionError: not such a loader, one over an iterable dataset, or one with a batch
            sampler of the user's, which cannot be divided.
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
                "share of the samples and pass shard=(rank, world size)."
            )
            raise InvalidOptionError(message)
        sampler.shard = (accelerator.process_index, accelerator.num_processes)

    arguments = {**fetching_arguments(loader), "generator": loader.generator}
    if loader.batch_sampler is None:
        arguments.update(sampler=sampler, batch_size=None)
    else:
        arguments["batch_sampler"] = loader.batch_sampler
    prepared = SeededDataLoaderShard(
        loader, device=accelerator.device, _drop_last=loader.drop_last, **arguments
    )
    # accelerate's mark of a loader that it has prepared: it notes the loader and changes nothing.
    prepared._is_accelerate_prepared = True
    registered: SeededDataLoaderShard = accelerator.prepare_data_loader(prepared)
    return registered
