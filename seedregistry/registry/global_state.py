"""The state of the whole process, set once from a registry, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Optional, Union

from seedregistry import determinism, rng
from seedregistry.errors import ScopeError

if TYPE_CHECKING:
    from typing_extensions import Self

    from seedregistry.determinism import DeterminismReport, Switches
    from seedregistry.stream import Stream


def refuse_in_scope(what: str) -> None:
    """Raise while a scope is open, in this thread or in another.

    Args:
        what: how the message begins.

    Raises:
        ScopeError: a scope is open.
    """
    if rng.scoped_libraries():
        where = "inside a scope" if rng.in_scope() else "while another thread is inside a scope"
        message = (
            f"{what} {where}, where the default generators are the scope's and its end "
            "puts back the caller's."
        )
        raise ScopeError(message + " Call it outside.")


class GlobalState:
    """What ``SeedRegistry.set_global_state`` did, and the way back.

    As a context manager it reverts at the end of the block, also when the body raises. Reverted, it
    is of no more use; never reverted, the state of the process stays as it was set.

    Attributes:
        report: what was asked of the determinism switches, what took effect, and what could not.

    Example:
        >>> import random
        >>> from seedregistry import SeedRegistry
        >>> with SeedRegistry(42).set_global_state() as handle:
        ...     print(random.random())
        0.6394267984578837
        >>> handle.report.mode
        'off'
    """

    def __init__(
        self, captured: rng.Captured, switches: Switches, late_seed: Callable[[str], int]
    ) -> None:
        self._captured: Optional[rng.Captured] = captured
        self._switches = switches
        self._late_seed = late_seed

    @property
    def report(self) -> DeterminismReport:
        """The report on the determinism switches."""
        return self._switches.report

    def revert(self) -> None:
        """Put the default generators and the switches back as they were before the call.

        A second call does nothing.

        Raises:
            ScopeError: inside a scope.
        """
        if self._captured is None:
            return
        refuse_in_scope("The global state was reverted")
        try:
            self._captured.restore(self._late_seed)
        finally:
            self._switches.revert()
        self._captured = None  # last: what an interrupt has kept from happening can be done again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.revert()


def set_global_state(
    source: Union[int, Stream],
    *,
    deterministic: str,
    fill_uninitialized_memory: bool,
    late_seed: Callable[[str], int],
) -> GlobalState:
    """Set the determinism switches, then the default generators: both, or neither.

    Not while a scope is open: its end would undo it.

    Args:
        source: an int below 2**32, which seeds every library, as documented, or a stream.
        deterministic: mode of the switches.
        fill_uninitialized_memory: for the switches.
        late_seed: gives the seed of an accelerator that starts before the state is reverted.

    Raises:
        InvalidOptionError: not values of the switches; nothing was changed.
    """
    switches = determinism.apply(deterministic, fill_uninitialized_memory=fill_uninitialized_memory)

    captured = None
    try:
        captured = rng.Captured()
        if isinstance(source, int):
            rng.seed_global(source)
        else:
            captured.seed_from(source)
    except BaseException:
        if captured is not None:
            captured.restore(late_seed)
        switches.revert()
        raise

    return GlobalState(captured, switches, late_seed)
