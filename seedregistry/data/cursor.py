"""Where a loader stands: the epoch that comes next, and a loaded position in it."""

from __future__ import annotations

from typing import Any

import torch

from seedregistry.errors import InvalidOptionError


def check_count(value: Any, name: str) -> int:
    """Return a count as an int >= 0, or refuse it with an ``InvalidOptionError``."""
    if (
        isinstance(value, (bool, torch.Tensor))
        or not hasattr(value, "__index__")
        or value.__index__() < 0
    ):
        message = f"{name} must be an int >= 0; got {value!r} ({type(value).__name__})."
        raise InvalidOptionError(message)
    return int(value.__index__())


class Cursor:
    """The part of a sampler, or of an iterable dataset, that says what comes next.

    It is there, and not in the loader, because frameworks take loaders apart and keep these. Not
    thread-safe.

    Attributes:
        advances: the epoch goes up by one after each pass; else it stays until told otherwise.
        start_step: the step at which the epoch goes on, 0 unless a state was loaded.
        moves: how often it was moved; shows a loader that it was moved by somebody else.
    """

    advances = True
    start_step = 0
    moves = 0
    _epoch = 0

    @property
    def epoch(self) -> int:
        """The epoch that comes next: int >= 0, assignable.

        Another epoch than before forgets a loaded position.
        """
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        epoch = check_count(value, "epoch")
        if epoch != self._epoch:
            self.move_to(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next: int >= 0; a loaded position of that epoch stays."""
        self.epoch = epoch

    def move_to(self, epoch: int, start_step: int = 0) -> None:
        """Go on at a step of an epoch."""
        self._epoch = epoch
        self.start_step = start_step
        self.moves += 1

    def finish(self, epoch: int) -> None:
        """Take notice that the last batch of an epoch has been handed out."""
        if self._epoch == epoch:
            self.move_to(epoch + 1 if self.advances else epoch)
