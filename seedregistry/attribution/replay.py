"""Walking the states of a training backwards with few of them kept.

With s states kept, the first one among them, and each step run at most r times, a run of up to C(s + r, s) steps can be
walked: the binomial schedule, which needs the fewest steps for a number of states.

Source: A. Griewank and A. Walther, Algorithm 799: revolve, ACM Transactions on Mathematical Software 26(1), 2000.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Optional, Tuple, Union

import torch

if TYPE_CHECKING:
    import os

    from seedregistry.attribution.states import State

__all__ = ["Kept", "Slots", "best_cut", "default_slots", "replayed_steps", "walk_back"]


def default_slots(steps: int) -> int:
    """Return the number of states kept unless told otherwise: twice the binary logarithm of the number of steps."""
    return max(2, 2 * math.ceil(math.log2(steps + 1)))


def best_cut(steps: int, slots: int) -> int:
    """Return after how many of the steps the next state is kept, for the fewest steps in all; ``steps`` > 1, ``slots`` > 0."""
    kept = slots + 1  # and the first
    repeats = 1
    while math.comb(kept + repeats, kept) < steps:
        repeats += 1
    longest_left = math.comb(kept + repeats - 1, kept)
    shortest_right = math.comb(kept + repeats - 2, kept - 1)
    return max(1, min(longest_left, steps - shortest_right))


def replayed_steps(steps: int, slots: int) -> int:
    """Return how many steps walking back runs, without the one at each state that is differentiated."""
    known: Dict[Tuple[int, int], int] = {}

    def count(length: int, free: int) -> int:
        if length <= 1:
            return 0
        if free == 0:
            return length * (length - 1) // 2
        if (length, free) not in known:
            cut = best_cut(length, free)
            known[length, free] = cut + count(length - cut, free - 1) + count(cut, free)
        return known[length, free]

    return count(steps, slots)


class Slots:
    """States that are kept: in memory, or in files of a folder.

    Args:
        folder: where to write them; None keeps them in memory. The files are in a folder of their own in it, which ``close``
            removes.

    Attributes:
        most: how many were kept at one time, at most.
    """

    def __init__(self, folder: Union[str, os.PathLike[str], None] = None) -> None:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._folder = None if folder is None else tempfile.TemporaryDirectory(prefix="states-", dir=folder)
        self._count = 0
        self._number = 0
        self.most = 0

    def keep(self, state: State) -> Kept:
        """Keep a state until its ``release``."""
        self._count += 1
        self._number += 1
        self.most = max(self.most, self._count)
        if self._folder is None:
            return Kept(self, state, None)
        path = Path(self._folder.name) / f"{self._number}.pt"
        torch.save([tensor.detach() for tensor in state.tensors()], path)
        return Kept(self, state.with_tensors([torch.empty(0, device="cpu")] * len(state.tensors())), path)

    def forget(self) -> None:
        """Count one state less."""
        self._count -= 1

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()


class Kept:
    """A state in a slot."""

    def __init__(self, slots: Optional[Slots], state: State, path: Optional[Path]) -> None:
        self._slots = slots
        self._state = state
        self._path = path

    def state(self) -> State:
        """Return the state."""
        return self._state if self._path is None else self._state.with_tensors(torch.load(self._path, weights_only=True))

    def release(self) -> None:
        """Free the slot; the state is not asked for again."""
        if self._slots is not None:
            self._slots.forget()
        if self._path is not None:
            self._path.unlink()


def walk_back(
    first: State, stop: int, advance: Callable[[State, int], State], *, slots: int, store: Optional[Slots] = None
) -> Iterator[State]:
    """Yield the states before the steps ``stop`` - 1, ``stop`` - 2, ..., that of ``first``, in this order.

    Args:
        first: the state to start from, which is held besides the slots.
        stop: the step after the last one.
        advance: ``advance(state, step)`` returns the state before that step.
        slots: int >= 0, how many states may be kept at a time.
        store: where they are kept; memory by default.
    """
    store = Slots() if store is None else store
    # Pieces of the run that are yet to be walked, the last of them on top: the state before each, its end, the slots for it.
    pieces: List[Tuple[Kept, int, int]] = [(Kept(None, first, None), stop, slots)]
    while pieces:
        kept, end, free = pieces.pop()
        state = kept.state()
        length = end - state.step
        if length > 1 and free > 0:
            cut = state.step + best_cut(length, free)
            pieces.append((kept, cut, free))
            pieces.append((store.keep(advance(state, cut)), end, free - 1))
            continue
        for step in range(end - 1, state.step - 1, -1):
            yield advance(state, step)
        kept.release()
