"""Walking the states of a training backwards with few of them kept.

A training of up to C(s + r, s) steps can be walked with s states kept, the first state among them,
and each step computed at most r times. This is the binomial schedule, which needs the fewest steps
for a number of states.

Source: A. Griewank and A. Walther, Algorithm 799: revolve, ACM Transactions on Mathematical
Software 26(1), 2000.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Optional, Tuple, Union

import torch

from seedregistry.errors import ReplayError

if TYPE_CHECKING:
    import os

    from seedregistry.attribution.states import State


def default_keep(steps: int) -> int:
    """Return how many states are kept by default: twice the binary logarithm of the steps."""
    return max(2, 2 * math.ceil(math.log2(steps + 1)))


def best_cut(steps: int, keep: int) -> int:
    """Return after how many of the steps the next state is kept, for the fewest steps in all.

    Args:
        steps: int > 1, length of the stretch that is to be walked.
        keep: int > 0, how many states may be kept besides the stretch's first.
    """
    kept = keep + 1  # and the first
    repeats = 1
    while math.comb(kept + repeats, kept) < steps:
        repeats += 1

    # `repeats` is the r of the schedule: r - 1 computations a step would be too few for the
    # stretch. The steps left of the cut are computed once on the way to it and then have r - 1
    # computations left, with all of the states: at most C(s + r - 1, s) steps. The steps right of
    # it have all r, with a state less. Any cut within the bounds of both sides is optimal (Griewank
    # and Walther); this is the latest of them. A test tries every cut.
    longest_left = math.comb(kept + repeats - 1, kept)
    shortest_right = math.comb(kept + repeats - 2, kept - 1)
    return max(1, min(longest_left, steps - shortest_right))


def replayed_steps(steps: int, keep: int) -> int:
    """Return how many steps a walk back computes, besides the differentiated one at each state."""
    counts: Dict[Tuple[int, int], int] = {}

    def count(length: int, free: int) -> int:
        if length <= 1:
            return 0
        if free == 0:
            return length * (length - 1) // 2  # every state is reached from the first
        if (length, free) not in counts:
            cut = best_cut(length, free)
            counts[length, free] = cut + count(length - cut, free - 1) + count(cut, free)
        return counts[length, free]

    return count(steps, keep)


class KeptStates:
    """States that are kept: in memory, or in files of a folder.

    Args:
        folder: where to write them; None keeps them in memory. The files are in a new folder inside
            it, which ``close`` removes.

    Attributes:
        most: the largest number of states that were kept at the same time.
    """

    def __init__(self, folder: Union[str, os.PathLike[str], None] = None) -> None:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._folder = (
            None if folder is None else tempfile.TemporaryDirectory(prefix="states-", dir=folder)
        )
        self._count = 0
        self._number = 0
        self.most = 0

    def keep(self, state: State) -> KeptState:
        """Keep a state until its ``release``."""
        self._count += 1
        self._number += 1
        self.most = max(self.most, self._count)
        if self._folder is None:
            return KeptState(self, state)

        path = Path(self._folder.name) / f"{self._number}.pt"
        torch.save([tensor.detach() for tensor in state.tensors()], path)
        # The tensors are in the file. What stays in memory is the shape of the state: its step, its
        # updates and how many tensors belong to each parameter.
        empty = state.with_tensors([torch.empty(0, device="cpu")] * len(state.tensors()))
        return KeptState(self, empty, path, state.fingerprint())

    def forget(self) -> None:
        """Count one state less."""
        self._count -= 1

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()


class KeptState:
    """A state that is kept until its release.

    Args:
        states: those that count it; None for the first state of a walk, which is not counted.
        state: the state, with empty tensors where ``path`` has them.
        path: the file of the tensors; None where they are in memory.
        fingerprint: of the state that was written to the file.
    """

    def __init__(
        self,
        states: Optional[KeptStates],
        state: State,
        path: Optional[Path] = None,
        fingerprint: str = "",
    ) -> None:
        self._states = states
        self._state = state
        self._path = path
        self._fingerprint = fingerprint

    def state(self) -> State:
        """Return the state, read from its file where it has one.

        Raises:
            ReplayError: the file holds another state than the one that was written.
        """
        if self._path is None:
            return self._state
        try:
            state = self._state.with_tensors(torch.load(self._path, weights_only=True))
            is_whole = state.fingerprint() == self._fingerprint
        except Exception as error:
            raise ReplayError(f"{self._problem()}: {error}.") from error
        if not is_whole:
            raise ReplayError(f"{self._problem()}: it holds another state than was written.")
        return state

    def _problem(self) -> str:
        return f"The file of a kept state, {str(self._path)!r}, is damaged"

    def release(self) -> None:
        """Give the state up, so that another can be kept."""
        if self._states is not None:
            self._states.forget()
        if self._path is not None:
            self._path.unlink()


def walk_back(
    first: State,
    stop: int,
    advance: Callable[[State, int], State],
    *,
    keep: int,
    store: Optional[KeptStates] = None,
) -> Iterator[State]:
    """Yield the states before the steps ``stop`` - 1, ``stop`` - 2, ..., down to ``first``.

    Args:
        first: the state to start from, which is held besides those that are kept.
        stop: the step after the last one.
        advance: ``advance(state, step)`` returns the state before that step.
        keep: int >= 0, how many states may be kept at a time.
        store: where they are kept; memory by default.
    """
    store = KeptStates() if store is None else store

    # Stretches that are yet to be walked, the last on top: the state before each, its end, how many
    # states it may keep.
    stretches: List[Tuple[KeptState, int, int]] = [(KeptState(None, first), stop, keep)]
    while stretches:
        kept, end, free = stretches.pop()
        state = kept.state()
        length = end - state.step

        if length > 1 and free > 0:
            # The left side goes first into the stack and is walked last. By then the state at the
            # cut is released, so the left side has all of the states to keep again.
            cut = state.step + best_cut(length, free)
            stretches.append((kept, cut, free))
            stretches.append((store.keep(advance(state, cut)), end, free - 1))
            continue

        for step in range(end - 1, state.step - 1, -1):
            yield advance(state, step)
        kept.release()
