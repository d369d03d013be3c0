"""The questions that a test may ask a peer. What a peer has nothing for stays unanswered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from peers.work import Step, Work


class Failed(Exception):  # noqa: N818 - a finding, not a fault of this program
    """A test failed; the text says what was seen."""


class NotOffered(Exception):  # noqa: N818 - likewise
    """The peer has nothing of the kind; the text says what is missing."""


class Peer:
    """What is asked of a peer; each answer is what its documentation tells a user to write."""

    name = ""
    """Of its module among the adapters."""

    title = ""
    """As the table shows it."""

    packages: Tuple[str, ...] = ()
    """Distributions whose versions the table names."""

    def _nothing(self, what: str) -> NoReturn:
        raise NotOffered(what)

    def train(self, work: Work) -> List[Step]:
        """Train, and return what each step saw. Refuses to resume what does not match."""
        del work
        self._nothing("no training loop")

    def seed(self, value: Any) -> Any:
        """Start an experiment with a seed."""
        del value
        self._nothing("no seeding")

    def in_scope(self, seed: int, function: Callable[[], Any]) -> Any:
        """Call a function whose draws must not leak, and return its value."""
        del seed, function
        self._nothing("no scope")

    def build(self, names: Sequence[Tuple[str, Any]]) -> Dict[Tuple[str, Any], List[float]]:
        """Build one thing for each name, in this order, and return what each was initialised
        with."""
        del names
        self._nothing("no components")

    def named_stream(self, purpose: str, instance_id: Any) -> List[float]:
        """Return the first draws of a stream that has a name."""
        del purpose, instance_id
        self._nothing("no streams with names")

    def equal_streams(self) -> Tuple[List[float], List[float]]:
        """Return draws of two streams of different names or seeds that are one on the device, if
        that can be had."""
        self._nothing("one global stream")

    def set_switches(self) -> Tuple[str, Optional[Callable[[], None]]]:
        """Ask for deterministic algorithms; return what was reported, and how to give the
        caller's values back."""
        self._nothing("no switches")

    def rng_state(self) -> Any:
        """Return the state of the generators as a checkpoint has it."""
        self._nothing("no generators in its checkpoints")

    def set_rng_state(self, state: Any) -> None:
        """Put it back."""
        del state
        self._nothing("no generators in its checkpoints")

    def without_numpy(self, state: Any) -> Any:
        """Return such a state with NumPy's entry missing."""
        del state
        self._nothing("no generators in its checkpoints")

    def with_short_torch(self, state: Any) -> Any:
        """Return such a state with torch's entry cut short."""
        del state
        self._nothing("no generators in its checkpoints")
