"""Shards: who divides an epoch among ranks, and which positions a rank sees in which step."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Tuple, Union

import attrs

from seedregistry.common import ranks
from seedregistry.common.options import check_count
from seedregistry.errors import InvalidOptionError, ShardingError

if TYPE_CHECKING:
    from seedregistry.stream import Stream

Shard = Union[None, bool, Tuple[int, int]]
"""How an epoch is divided among ranks.

True: by rank and world size from ``torch.distributed``, read when an epoch begins. A pair: by this
rank and world size. False: somebody else divides, or nobody does. None: not said, which is an error
with more than one rank.
"""

_PAIR = 2


def check_shard(shard: Any) -> Shard:
    """Return what was passed as ``shard=``, a pair as two ints.

    Raises:
        InvalidOptionError: it is none of the forms of :data:`Shard`.
    """
    if shard is None or isinstance(shard, bool):
        return shard
    if isinstance(shard, (tuple, list)) and len(shard) == _PAIR:
        with contextlib.suppress(InvalidOptionError):  # the message below says more
            rank, world_size = check_count(shard[0], "rank"), check_count(shard[1], "world size")
            if rank < world_size:
                return rank, world_size
    message = (
        "shard must be True, False, None or (rank, world size) with 0 <= rank < world "
        f"size; got {shard!r}."
    )
    raise InvalidOptionError(message)


def resolve_shard(shard: Shard) -> Tuple[int, int]:
    """Return (rank, world size) at this moment: (0, 1) where nobody is to be told apart."""
    if shard is True:
        return ranks.rank(), ranks.world_size()
    return shard if isinstance(shard, tuple) else (0, 1)


def refuse_missing_shard(shard: Shard, stream: Stream) -> None:
    """Refuse an epoch of which each of several ranks would see everything, unless that is meant.

    Raises:
        ShardingError: names both ways out.
    """
    if shard is None and ranks.world_size() > 1:
        message = (
            f"There are {ranks.world_size()} ranks and the loader of stream '{stream.label}' was "
            "not told how they share the samples: each would see all of them. Pass shard=True "
            "(each rank its share; batch_size is per rank), or shard=False where a framework "
            "divides the batches or every rank is to see everything."
        )
        raise ShardingError(message)


@attrs.frozen(kw_only=True)
class Shards:
    """How the positions of an epoch fall on steps and ranks. An immutable value.

    Step *k* of all ranks together is positions ``[k * global_batch_size, (k + 1) *
    global_batch_size)``, whatever the number of ranks; rank *r* has the *r*-th of equal blocks of
    it. Positions past the end of the epoch stand for its beginning.

    Attributes:
        samples: positions in an epoch, int >= 0.
        global_batch_size: samples a step, of all ranks together; a multiple of ``world_size``.
        tail: what becomes of a last step that is not full: ``"keep"`` (it is smaller, padded to a
            multiple of the ranks), ``"pad"`` (padded to a full one) or ``"drop"``.
        rank: int, ``0 <= rank < world_size``.
        world_size: int >= 1.
    """

    samples: int
    global_batch_size: int
    tail: str = "keep"
    rank: int = 0
    world_size: int = 1

    @property
    def batch_size(self) -> int:
        """Samples of this rank in a full step."""
        return self.global_batch_size // self.world_size

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        full, rest = divmod(self.samples, self.global_batch_size)
        return full + (1 if rest and self.tail != "drop" else 0)

    @property
    def full_steps(self) -> int:
        """Steps of ``global_batch_size`` samples, the padded one among them."""
        return self.steps if self.tail == "pad" else self.samples // self.global_batch_size

    def positions(self, step: int) -> Tuple[int, int]:
        """Return (start, stop) of this rank's positions in a step: ``start <= position < stop``.

        A position that is not below ``samples`` stands for its remainder by it.
        """
        start = step * self.global_batch_size
        size = self.batch_size
        if step >= self.full_steps:
            # ceil((samples - start) / world_size) in integers: -(-n // d) rounds up.
            size = -((start - self.samples) // self.world_size)
        start += self.rank * size
        return start, start + size

    @property
    def length(self) -> int:
        """Samples of this rank in an epoch."""
        last = self.steps - 1
        if last < 0:
            return 0
        start, stop = self.positions(last)
        return last * self.batch_size + stop - start
