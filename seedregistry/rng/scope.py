"""Scopes: blocks in which the default generators come from a stream; after it they are as before.

Default generators belong to the process, so one thread at a time holds the scopes; it may nest
them. A scope that another thread holds is waited for, for a limited time.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import sys
import threading
import time
import weakref
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    FrozenSet,
    List,
    Optional,
    Set,
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
_MOST_ATTEMPTS = 100

_SUSPENDABLE = (
    inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)
_CONTEXTLIB = contextlib.contextmanager.__code__.co_filename
_FIXTURES = os.path.join("_pytest", "fixtures.py")

_F = TypeVar("_F", bound=Callable[..., Any])


class _Entry:
    """An open scope, as the process knows it: what it takes to close it without the scope.

    Attributes:
        scope: the scope, weakly. One that nobody holds can never be left.
        captured: the state before it; None while it is being entered.
        place: the code and the line that entered it.
        opener: the generator or coroutine whose body the block is in, which may be suspended inside
            of it; None for a block in a function.
        was_refused: the block has ended and the scope could not be left then.
    """

    __slots__ = (
        "captured",
        "label",
        "late_seed",
        "opener",
        "place",
        "scope",
        "torch_only",
        "was_refused",
    )

    def __init__(self, scope: Scope, caller: FrameType) -> None:
        code = caller.f_code
        self.place: Tuple[CodeType, int] = code, caller.f_lineno
        self.opener: Optional[FrameType] = None
        if code.co_flags & _SUSPENDABLE or code.co_filename == _CONTEXTLIB:
            self.opener = _find_opener(caller)
        self.captured: Optional[Captured] = None
        self.was_refused = False
        self.scope = weakref.ref(scope)
        self.label = scope.label
        self.torch_only = scope._torch_only
        self.late_seed = scope._late_seed

    @property
    def line(self) -> str:
        return f"{self.place[0].co_filename}:{self.place[1]}"

    def is_suspended(self) -> bool:
        """Return whether the block is in a generator or coroutine that does not run now."""
        opener = self.opener
        if opener is None:
            return False
        frame: Optional[FrameType] = sys._getframe(1)
        while frame is not None:
            if frame is opener:
                return False
            frame = frame.f_back
        return True

    def is_lost(self, error: Optional[BaseException]) -> bool:
        """Return whether the scope can never be left: nobody holds it, or leaving was interrupted.

        Args:
            error: what is being handled. Ctrl-C at the first step of ``__exit__``, which nothing
                can protect, or at the last of ``__enter__``, leaves the scope open and is seen in
                the traceback.
        """
        scope = self.scope()
        if scope is None or self.was_refused:
            return True
        codes = (Scope.__enter__.__code__, Scope.__exit__.__code__)
        seen: Set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            trace = error.__traceback__
            while trace is not None:
                frame = trace.tb_frame
                if frame.f_code in codes and frame.f_locals["self"] is scope:
                    return True
                trace = trace.tb_next
            error = error.__context__
        return False


def _find_opener(frame: FrameType) -> Optional[FrameType]:
    """Return the generator or coroutine whose body a block is in, or None.

    A block in a ``@contextmanager``, or in a fixture of pytest, belongs to whoever uses these.
    """
    current: Optional[FrameType] = frame
    while current is not None:
        if current.f_code.co_filename == _CONTEXTLIB:
            current = current.f_back  # ExitStack.enter_context, _GeneratorContextManager.__enter__
            continue
        if not current.f_code.co_flags & _SUSPENDABLE:
            return None
        driver = current.f_back
        if driver is None or driver.f_code.co_filename != _CONTEXTLIB:
            is_fixture = driver is not None and driver.f_code.co_filename.endswith(_FIXTURES)
            return None if is_fixture else current
        current = driver
    return None


class _Stack:
    """The open scopes of the process, and the thread that holds them.

    An exception may come between any two steps, from Ctrl-C or another signal. So every step is one
    operation that is done or not, and closing can be done again from its beginning. The holder is
    entered with ``dict.setdefault``, which takes the place and says who has it in one step.
    """

    __slots__ = ("_holder", "_released", "_waiting", "open")

    def __init__(self) -> None:
        self.open: List[_Entry] = []
        self._holder: Dict[str, threading.Thread] = {}
        self._released = threading.Condition(threading.Lock())
        self._waiting = 0

    @property
    def holder(self) -> Optional[threading.Thread]:
        """Return the thread that holds the scopes, or None."""
        return self._holder.get("thread")

    def acquire(self, entry: _Entry, timeout_s: float) -> None:
        """Take the place for a scope of this thread, in none of another one's.

        Raises:
            ScopeError: another thread holds the scopes for too long, or the innermost scope is of
                another task or generator, which could go on before this one is left.
        """
        me = threading.current_thread()
        if self._holder.setdefault("thread", me) is me:
            if not self.open:
                return
            self.heal(sys.exc_info()[1])
        if self._holder.setdefault("thread", me) is not me:
            self._wait(me, timeout_s)
        if self.open and entry.opener is not None and self.open[-1].is_suspended():
            innermost = self.open[-1]
            message = (
                f"Scope '{entry.label}' was entered by a task or generator while another one is "
                f"suspended inside '{innermost.label}' (opened at {innermost.line}). When that one "
                "goes on it would draw from this scope. Default generators belong to the whole "
                "process: let tasks and generators draw from stream.at(...).generator(device), "
                "or leave a scope before every await and yield."
            )
            raise ScopeError(message)

    def _wait(self, me: threading.Thread, timeout_s: float) -> None:
        give_up_at = time.monotonic() + timeout_s
        with self._released:
            self._waiting += 1
            try:
                while True:
                    holder = self._holder.setdefault("thread", me)
                    if holder is me:
                        return
                    # It ended inside a scope, or can leave none of them any more: put the state
                    # back and take its place.
                    if not holder.is_alive() or (
                        self.open and all(entry.scope() is None for entry in self.open)
                    ):
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

    def heal(self, error: Optional[BaseException]) -> None:
        """Close the innermost scopes that can never be left."""
        while self.open and self.open[-1].is_lost(error):
            self.close(self.open[-1])

    def close(self, entry: _Entry) -> None:
        """Put the state back, close a scope and free the place if it was the last.

        Also half-way through entering. An interrupt on the way is raised when all is done.
        """
        failure: Optional[BaseException] = None
        for _ in range(_MOST_ATTEMPTS):
            try:
                if entry.captured is not None:
                    entry.captured.restore(entry.late_seed)
                self._drop(entry)
                break
            except BaseException as error:  # noqa: BLE001 - raised below
                failure = failure or error
        else:
            self._drop(entry)
        if failure is not None:
            raise failure

    def _drop(self, entry: _Entry) -> None:
        if entry in self.open:
            self.open.remove(entry)
        entry.opener = None  # it would keep alive what the generator's body holds
        if not self.open and self._holder.get("thread") is threading.current_thread():
            self.release()

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
        if outermost.captured is not None:
            outermost.captured.restore(outermost.late_seed)
        self.open.clear()

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
    entries = tuple(_stack.open)
    if not entries:
        return _NOTHING
    return _TORCH if all(entry.torch_only for entry in entries) else _EVERYTHING


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
    ``timeout_s``. Tasks and generators that take turns are refused. Fork: a child begins with a
    free lock.

    An interrupt may come at any moment. A scope that nobody can leave any more is closed by the
    next that is entered.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry, rng
        >>> before = torch.get_rng_state()
        >>> with rng.Scope(SeedRegistry(42).stream("noise").at(3), "noise"):
        ...     draw = torch.rand(1)
        >>> torch.equal(torch.get_rng_state(), before)
        True

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
        "__weakref__",
        "_entry",
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
        self._entry: Optional[_Entry] = None
        self._seeder: Optional[Callable[[SeedSource], None]] = None
        self.movement: Optional[Movement] = None

    def __enter__(self) -> Self:
        if self._entry is not None:
            message = (
                f"Scope '{self.label}' was entered a second time. A scope is one block: make a "
                "new one with stream.scope(...) for the next."
            )
            raise ScopeError(message)
        entry = _Entry(self, sys._getframe(1))
        try:
            _stack.acquire(entry, self._timeout_s)
            entry.captured = captured = Captured(torch_only=self._torch_only)
            self._entry = entry
            depth = len(_stack.open)
            _stack.open.append(entry)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug(
                    "scope of %s opened at depth %d",
                    self.label,
                    depth,
                    extra={"label": self.label, "depth": depth},
                )
            captured.seed_from(self._source)
        except BaseException:
            if _stack.holder is threading.current_thread():
                _stack.close(entry)
            raise
        return self

    def reseed(self, source: SeedSource) -> None:
        """Set the generators from another position of the same scheme, inside the block.

        Many short draws, one capture.

        Raises:
            ScopeError: this is not the innermost open scope.
        """
        entry = self._entry
        if not _stack.open or _stack.open[-1] is not entry or entry.captured is None:
            message = (
                f"Scope '{self.label}' is not the innermost open scope, and cannot be seeded again."
            )
            raise ScopeError(message)
        seeder = self._seeder
        if seeder is None:
            seeder = self._seeder = entry.captured.seeder(full_width=source.full_width)
        seeder(source)

    def __exit__(
        self,
        kind: Optional[Type[BaseException]] = None,
        error: Optional[BaseException] = None,
        trace: Optional[TracebackType] = None,
    ) -> None:
        try:
            self._leave(error)
        except ScopeError:
            if self._entry is not None:
                self._entry.was_refused = True
            raise
        except BaseException:
            # An interrupt, wherever it came: what it kept from happening is done here.
            if self._entry is not None and self._entry in _stack.open:
                _stack.close(self._entry)
            raise

    def _leave(self, error: Optional[BaseException]) -> None:
        entry, scopes = self._entry, _stack.open
        # Not open: closed by a scope that was left out of order, which has said so.
        if entry is None or entry.captured is None or entry not in scopes:
            return
        if scopes[-1] is not entry:
            _stack.heal(error)
        if scopes[-1] is not entry or _stack.holder is not threading.current_thread():
            self._refuse_out_of_order(entry)
        captured = entry.captured
        captured.refuse_capture()
        has_strayed = False
        try:
            if self._watch:
                self.movement = Movement(captured, self._source)
            has_strayed = captured.can_stray and captured.has_strayed()
        finally:
            _stack.close(entry)
        if has_strayed:
            message = (
                f"In scope '{self.label}' something drew from the bit generator under NumPy's "
                "global state that it had got hold of before. It is no MT19937, so that the scope "
                "could not set it, and what was drawn is no function of the position. Call "
                "np.random.set_bit_generator(np.random.MT19937(seed)) before, or draw from "
                "np.random in the scope. The generator is as it was before the scope."
            )
            raise ScopeError(message)

    def _refuse_out_of_order(self, entry: _Entry) -> None:
        innermost = _stack.open[-1]
        holder = _stack.describe_holder()
        try:
            _stack.unwind()
        finally:
            _stack.release()
        message = (
            f"Scope '{self.label}' (opened at {entry.line}) was left while '{innermost.label}' "
            f"(opened at {innermost.line}) was the innermost, held by {holder}. Scopes are left in "
            "the reverse order of entering, by the thread that entered them. All of them are "
            "closed now and the generators are as before the outermost."
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
