"""Where a loader stands: the epoch that comes next, and a loaded position in it."""

from __future__ import annotations

from seedregistry.common.options import check_count


class Cursor:
    """What a sampler, or an iterable dataset, knows of where its loader stands.

    It is kept there, and not in the loader, because frameworks take loaders apart and keep the
    sampler and the dataset. Not thread-safe.

    Attributes:
        advances: the epoch goes up by one after each pass; else it stays until told otherwise.
        start_step: the step at which the epoch goes on, 0 unless a state was loaded.
        moves: how often it was moved, by which a loader sees that somebody else moved it.
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
        """Set the epoch that comes next, an int >= 0; a loaded position in that epoch stays."""
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
