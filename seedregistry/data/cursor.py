"""Where a loader stands: the epoch that comes next, and a loaded position in it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Optional

from seedregistry.common.callsite import stack_level
from seedregistry.common.options import check_count
from seedregistry.errors import EpochRepeatedWarning, InvalidOptionError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

LARGEST_EPOCH = 2**62
"""A generator is seeded with the sum of a seed and the epoch, which must stay below 2**64."""


def check_epoch(epoch: object) -> int:
    """Return an epoch as an int, or refuse it.

    Raises:
        InvalidOptionError: it is not an int from 0 to 2**62.
    """
    number = check_count(epoch, "epoch")
    if number > LARGEST_EPOCH:
        raise InvalidOptionError(f"epoch must be an int from 0 to 2**62; got {number}.")
    return number


class Cursor:
    """What a sampler, or an iterable dataset, knows of where its loader stands.

    It is kept there, and not in the loader, because frameworks take loaders apart and keep the
    sampler and the dataset. Not thread-safe.

    Attributes:
        advances: the epoch goes up by one after each pass; else it stays until told otherwise.
        is_validation: every pass is of one epoch, whatever :meth:`set_epoch` is told.
        start_step: the step at which the epoch goes on, 0 unless a state was loaded.
        moves: how often it was moved, by which a loader sees that somebody else moved it.
    """

    stream: Stream

    advances = True
    is_validation = False
    start_step = 0
    moves = 0
    _epoch = 0
    _told: Optional[int] = None
    """The epoch that ``set_epoch`` named last; None where the loader was moved otherwise since."""
    _begun = -1
    """The epoch of the pass that was begun last."""

    @property
    def epoch(self) -> int:
        """The epoch that comes next: int >= 0, assignable.

        Another epoch than before forgets a loaded position.
        """
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        epoch = check_epoch(value)
        if epoch != self._epoch:
            self.move_to(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next, an int >= 0; a loaded position in that epoch stays.

        Frameworks call it. There is a warning where passes that nobody named are in the way: after
        ``set_epoch(0)`` and two passes, of epochs 0 and 1, ``set_epoch(1)`` repeats the second.
        """
        epoch = check_epoch(epoch)
        if self.is_validation:
            return
        told = self._told
        if told is not None and told < epoch <= self._begun:
            warn_of_repetition(
                self.stream,
                f"set_epoch({epoch}) repeats what has been seen: after set_epoch({told}) the "
                f"loader of stream '{self.stream.label}' was iterated more than once, and epoch "
                f"{epoch} was among these passes. Iterate it once for each set_epoch, or leave "
                "set_epoch out and let the epoch go up by itself. Lightning does both with the "
                "shorter of two loaders: make them equally long, or combine them with "
                "CombinedLoader(..., 'min_size').",
            )
        self.epoch = epoch
        self._told = epoch

    def move_to(self, epoch: int, start_step: int = 0) -> None:
        """Go on at a step of an epoch."""
        self._epoch = epoch
        self.start_step = start_step
        self.moves += 1
        self._told = None
        self._begun = -1

    def begin_pass(self) -> None:
        """Take notice that the epoch that comes next is begun."""
        self._begun = max(self._begun, self._epoch)

    def finish(self, epoch: int) -> None:
        """Take notice that the last batch of an epoch has been handed out."""
        if self._epoch == epoch:
            told, begun = self._told, self._begun
            self.move_to(epoch + 1 if self.advances else epoch)
            self._told, self._begun = told, begun


def warn_of_repetition(stream: Stream, message: str) -> None:
    """Warn that an epoch is run again, by the registry's rule where the stream has one."""
    if stream.host is None:
        warnings.warn(message, EpochRepeatedWarning, stacklevel=stack_level())
    else:
        stream.host.warn(stream, EpochRepeatedWarning, message)
