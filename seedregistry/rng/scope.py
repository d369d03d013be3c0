"""Scopes: blocks in which the default generators come from a stream; after it they are as before.

Default generators belong to the process, so one thread at a time holds the scopes; it may nest
them. A scope that another thread holds is waited for, for a limited time.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import threading
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    FrozenSet,
    List,
    Optional,
    Tuple,
    Type,
    TypeVar,
)

from seedregistry.errors import ScopeError
from seedregistry.rng.state import Captured, Movement

if TYPE_CHECKING:
    from types import CodeType, FrameType, TracebackType

    from typing_extensions import Self

    from seedregistry.rng.generators import SeedSource
    from seedregistry.rng.state import LateSeed

DEFAULT_TIMEOUT_S = 60.0
"""How long a scope waits for another thread's, in seconds."""

_log = logging.getLogger(__name__)

_NOTHING: FrozenSet[str] = frozenset()
_TORCH = frozenset({"torch"})
_EVERYTHING = frozenset({"torch", "python", "numpy"})
_POLL_S = 0.05

_F = TypeVar("_F", bound=Callable[..., Any])


class _Stack:
    """The open scopes of the process, and the thread that holds them.

    The holder is entered with ``dict.setdefault``, which takes the place and says who has it in one
    step: an interrupt between two bytecodes can then not leave the scopes held by nobody.
    """

    __slots__ = ("_holder", "_released", "_waiting", "open")

    def __init__(self) -> None:
        self.open: List[Scope] = []
        self._holder: Dict[str, threading.Thread] = {}
        self._released = threading.Condition(threading.Lock())
        self._waiting = 0

    @property
    def holder(self) -> Optional[threading.Thread]:
        """Return the thread that holds the scopes, or None."""
        return self._holder.get("thread")

    def acquire(self, timeout_s: float) -> None:
        me = threading.current_thread()
        if self._holder.setdefault("thread", me) is not me:
            self._wait(me, timeout_s)

    def _wait(self, me: threading.Thread, timeout_s: float) -> None:
        give_up_at = time.monotonic() + timeout_s
        with self._released:
            self._waiting += 1
            try:
                while True:
                    holder = self._holder.setdefault("thread", me)
                    if holder is me:
                        return
                    if (
                        not holder.is_alive()
                    ):  # it ended inside a scope: put its state back and take its place
                        self._bury(holder)
                        continue
                    remaining_s = give_up_at - time.monotonic()
                    if remaining_s <= 0:
                        self._give_up(timeout_s)
                    self._released.wait(min(remaining_s, _POLL_S))
            finally:
                self._waiting -= 1

    def _bury(self, holder: threading.Thread) -> None:
        try:
            if self.open:
                self.unwind()
        finally:
            if self.holder is holder:
                self._holder.clear()

    def _give_up(self, timeout_s: float) -> None:
        holder = self.describe_holder()
        message = (
            f"Waited {timeout_s:g} s for a scope that {holder} holds. Default generators belong "
            "to the whole process, so one thread at a time can set them. Let the threads draw "
            "from stream.at(...).generator(device), or give the scope a longer timeout_s."
        )
        raise ScopeError(message, holder=holder)

    def release(self) -> None:
        self._holder.clear()
        if self._waiting:
            with self._released:
                self._released.notify_all()

    def describe_holder(self) -> str:
        """Return the holding thread's name and the line where its innermost scope was opened."""
        name = "unknown" if self.holder is None else self.holder.name
        innermost = self.open[-1] if self.open else None
        line = f" at {innermost.line} ('{innermost.label}')" if innermost is not None else ""
        return f"thread '{name}'{line}"

    def unwind(self) -> None:
        """Put the outermost state back and close every scope."""
        outermost = self.open[0]
        closed, self.open = self.open, []
        for scope in closed:
            scope._is_open = False
        outermost._restore()

    def free_after_fork(self) -> None:
        """Run in a forked child, which has the forking thread alone.

        A scope of the forking thread stays open in the child. One of another thread can never be
        left there: its state is put back and the place is freed.
        """
        self._released = threading.Condition(threading.Lock())
        self._waiting = 0
        if self.holder not in (None, threading.current_thread()):
            try:
                if self.open:
                    self.unwind()
            finally:
                self._holder.clear()


_stack = _Stack()

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_stack.free_after_fork)


def in_scope() -> bool:
    """Return whether the calling thread is inside a scope."""
    return bool(_stack.open) and _stack.holder is threading.current_thread()


def scoped_libraries() -> FrozenSet[str]:
    """Return what open scopes, of any thread, have set.

    ``"torch"``, and ``"python"`` and ``"numpy"`` unless torch-only.

    Default generators belong to the process: while a scope is open, every thread that draws from
    them draws from it.
    """
    scopes = tuple(_stack.open)
    if not scopes:
        return _NOTHING
    return _TORCH if all(scope._torch_only for scope in scopes) else _EVERYTHING


def _runs_later(function: Any) -> bool:
    """Return whether the body of a function runs after its call, as a generator's does."""
    if isinstance(function, (staticmethod, classmethod)):
        return True
    bodies = (function, getattr(type(function), "__call__", None))  # noqa: B004 - its body, not whether it is callable
    checks = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(check(body) for check in checks for body in bodies)


class Scope:
    """A block in which the default generators are set from a source, and after it restored.

    Restored on return, on any exception (``KeyboardInterrupt`` and ``GeneratorExit`` too), nested
    to any depth, to the byte. One object is one block: it cannot be entered twice, but as a
    decorator it opens a new block at every call. Threads: one thread at a time; another waits up to
    ``timeout_s``. Fork: a child begins with a free lock.

    Args:
        source: the stream, position or plain seed that the generators are set from.
        label: what messages call the scope.
        torch_only: leave python's and NumPy's generators alone.
        watch: keep what shows which generators moved, for ``movement``.
        timeout_s: how long to wait for another thread's scope, in seconds.
        late_seed: gives the seed of an accelerator that starts inside while no seed was waiting for
            it.

    Attributes:
        movement: after the block, with ``watch``: says which generators moved; else None.
        label: as given.
    """

    __slots__ = (
        "_captured",
        "_frame",
        "_is_open",
        "_late_seed",
        "_seeder",
        "_source",
        "_timeout_s",
        "_torch_only",
        "_watch",
        "label",
        "movement",
    )

    def __init__(
        self,
        source: SeedSource,
        label: str,
        *,
        torch_only: bool = False,
        watch: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        late_seed: Optional[LateSeed] = None,
    ) -> None:
        self._source = source
        self.label = label
        self._torch_only = torch_only
        self._watch = watch
        self._timeout_s = timeout_s
        self._late_seed = late_seed
        self._is_open = False
        self._captured: Optional[Captured] = None
        self._seeder: Optional[Callable[[SeedSource], None]] = None
        self._frame: Optional[Tuple[CodeType, int]] = None
        self.movement: Optional[Movement] = None

    @property
    def line(self) -> str:
        """Return ``file:line`` where the block was entered, or ``""``."""
        return "" if self._frame is None else f"{self._frame[0].co_filename}:{self._frame[1]}"

    def __enter__(self) -> Self:
        if self._captured is not None:
            message = (
                f"Scope '{self.label}' was entered a second time. A scope is one block: make a "
                "new one with stream.scope(...) for the next."
            )
            raise ScopeError(message)
        caller: FrameType = sys._getframe(1)
        self._frame = (caller.f_code, caller.f_lineno)
        try:
            _stack.acquire(self._timeout_s)
            captured = Captured(torch_only=self._torch_only)
            self._captured = captured
            depth = len(_stack.open)
            _stack.open.append(self)
            self._is_open = True
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug(
                    "scope of %s opened at depth %d",
                    self.label,
                    depth,
                    extra={"label": self.label, "depth": depth},
                )
            captured.seed_from(self._source, depth)
        except BaseException:
            if _stack.holder is threading.current_thread():
                self._leave()
            raise
        return self

    def reseed(self, source: SeedSource) -> None:
        """Set the generators from another position of the same scheme, inside the block.

        Many short draws, one capture.

        Raises:
            ScopeError: this is not the innermost open scope.
        """
        if not self._is_open or _stack.open[-1] is not self or self._captured is None:
            message = (
                f"Scope '{self.label}' is not the innermost open scope, and cannot be seeded again."
            )
            raise ScopeError(message)
        seeder = self._seeder
        if seeder is None:
            depth = len(_stack.open) - 1
            seeder = self._seeder = self._captured.seeder(full_width=source.full_width, depth=depth)
        seeder(source)

    def __exit__(
        self,
        kind: Optional[Type[BaseException]] = None,
        error: Optional[BaseException] = None,
        trace: Optional[TracebackType] = None,
    ) -> None:
        if not self._is_open:  # closed by a scope that was left out of order, which has said so
            return
        if _stack.open[-1] is not self or _stack.holder is not threading.current_thread():
            self._refuse_out_of_order()
        try:
            if self._watch and self._captured is not None:
                self.movement = Movement(self._captured, self._source)
        finally:
            self._leave()

    def _leave(self) -> None:
        """Put the state back, close this scope and free the place if it was the last.

        Also half-way through entering.

        An interrupt on the way waits until this is done: every step can be repeated.
        """
        interrupt: Optional[KeyboardInterrupt] = None
        while True:
            try:
                try:
                    if self._captured is not None:
                        self._captured.restore(self._late_seed)
                except KeyboardInterrupt:
                    raise
                except BaseException:
                    self._close()
                    raise
                self._close()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _close(self) -> None:
        if self in _stack.open:
            _stack.open.remove(self)
        self._is_open = False
        if not _stack.open and _stack.holder is threading.current_thread():
            _stack.release()

    def _restore(self) -> None:
        captured = self._captured
        assert captured is not None  # noqa: S101 - a scope on the stack has captured
        captured.restore(self._late_seed)

    def _refuse_out_of_order(self) -> None:
        innermost = _stack.open[-1]
        holder = _stack.describe_holder()
        mine = self.line
        try:
            _stack.unwind()
        finally:
            _stack.release()
        message = (
            f"Scope '{self.label}' (opened at {mine}) was left while '{innermost.label}' (opened "
            f"at {innermost.line}) was the innermost, held by {holder}. Scopes are left in the "
            "reverse order of entering, by the thread that entered them. All of them are closed "
            "now and the generators are as before the outermost."
        )
        raise ScopeError(message, holder=holder)

    def __call__(self, function: _F) -> _F:
        """Return the function with every call in a new block of this scope; its value is returned.

        Raises:
            ScopeError: for a class, a generator or an async function: their bodies run after the
                call has returned.
        """
        if not callable(function) or inspect.isclass(function) or _runs_later(function):
            message = (
                f"A scope cannot decorate {function!r}: it wraps the call of a plain function, "
                "and the body of a generator, an async function or a class's methods runs after "
                "that. Open the scope with `with` inside the body."
            )
            raise ScopeError(message)

        @functools.wraps(function)
        def in_new_scope(*args: Any, **kwargs: Any) -> Any:
            scope = Scope(
                self._source,
                self.label,
                torch_only=self._torch_only,
                timeout_s=self._timeout_s,
                late_seed=self._late_seed,
            )
            with scope:
                return function(*args, **kwargs)

        return in_new_scope  # type: ignore[return-value]
