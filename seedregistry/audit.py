"""The audit: finds draws outside every stream.

Torch's operators are watched with a dispatch mode: every operator tagged
``nondeterministic_seeded`` that got no generator, ran outside a scope and moved a default
generator. Python's and NumPy's generators (and torch's, for draws of other threads) are compared at
the end with what they were at the start. Where there is no audit, nothing of this costs anything.

Source: ``torch.Tag.nondeterministic_seeded`` in ``aten/src/ATen/native/tags.yaml``;
``torch.utils._python_dispatch``.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Set, Tuple, Type

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seedregistry import rng
from seedregistry.common.callsite import user_line
from seedregistry.common.options import check_choice
from seedregistry.errors import (
    ScopeError,
    UndeclaredRandomnessError,
    UndeclaredRandomnessWarning,
)
from seedregistry.ledger.records import Audited

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Audit"]

_MODES = ("error", "warn")
_WAY_OUT = "Run it inside stream.scope(...), or give it generator=stream.at(...).generator(device)."


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports the random operators that run outside every stream."""

    def __init__(self, report: Callable[[str, str, rng.Captured], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._report = report

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Mapping[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if (
            torch.Tag.nondeterministic_seeded not in func.tags
            or _has_generator(args, kwargs)
            or rng.scoped_libraries()
        ):
            return func(*args, **kwargs)

        # The tag does not say whether this call draws: filling an empty tensor takes nothing.
        before = rng.Captured(torch_only=True)
        result = func(*args, **kwargs)
        for device in before.moved_devices():
            self._report(func._schema.name, device, before)
        return result


def _has_generator(args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if kwargs.get("generator") is not None:
        return True
    return any(isinstance(argument, torch.Generator) for argument in args)


class Audit:
    """A block in which every draw comes from a stream, or is reported.

    Made by ``registry.audit()``. An audit is one block: make another for the next.

    In mode ``"error"`` the first torch operator that draws outside every stream raises, with the
    operator, the device and your line; python's and NumPy's draws are seen at the end of the
    block. In mode ``"warn"`` each is a warning, once per operator and line, and the block runs on.
    Draws in other processes (loader workers) are not seen.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> registry = SeedRegistry(42)
        >>> with registry.audit() as audit:
        ...     with registry.stream("noise").scope(0):
        ...         noise = torch.rand(3)  # from the stream
        >>> audit.undeclared
        0
        >>> with registry.audit():
        ...     noise = torch.rand(3)
        Traceback (most recent call last):
            ...
        seedregistry.errors.UndeclaredRandomnessError: aten::rand drew from the default ...

    Attributes:
        undeclared: draws seen so far outside every stream. Of python, NumPy and other threads only
            whether they drew is seen, which counts as one draw each.
    """

    def __init__(self, mode: str, record: Callable[[Audited], None]) -> None:
        check_choice(mode, "The mode of an audit", _MODES)
        self._mode = mode
        self._record = record
        self._watcher = _Watcher(self._seen_operator)
        self._fingerprint: Dict[str, object] = {}
        self._explained: List[str] = []
        self._warned: Set[Tuple[str, str]] = set()
        self._is_used = False
        self._first: Optional[UndeclaredRandomnessError] = None
        self.undeclared = 0

    def __enter__(self) -> Self:
        if self._is_used:
            message = "An audit is one block; make another with registry.audit()."
            raise ScopeError(message)

        self._is_used = True
        covered = rng.scoped_libraries()  # inside a scope what is drawn is the scope's
        fingerprint = rng.fingerprint()
        self._fingerprint = {
            name: state
            for name, state in fingerprint.items()
            if name.partition(":")[0] not in covered
        }
        self._watcher.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]] = None,
        error: Optional[BaseException] = None,
        trace: Optional[TracebackType] = None,
    ) -> None:
        self._watcher.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        try:
            if error is None:
                self._compare()
                self._raise_again()
        except UndeclaredRandomnessError:
            self._record(Audited(mode=self._mode, undeclared=self.undeclared, completed=True))
            raise
        self._record(Audited(mode=self._mode, undeclared=self.undeclared, completed=error is None))

    def _seen_operator(self, name: str, device: str, before: rng.Captured) -> None:
        path, number = user_line()
        if self._mode == "error":
            before.restore()  # the draw is taken back
        self._explained.append(f"torch:{device}")
        self._report(
            f"{name} drew from the default generator of '{device}' outside every stream, at "
            f"{path}:{number}. {_WAY_OUT}",
            source=name,
            device=device,
            place=(path, number),
        )

    def _raise_again(self) -> None:
        """Raise at the end of the block if an error of the audit was caught inside it."""
        if self._mode == "error" and self._first is not None:
            raise self._first

    def _compare(self) -> None:
        now = rng.fingerprint()
        for source, before in self._fingerprint.items():
            # A device that an operator was reported for has moved, and its draw is not told twice.
            if now.get(source) == before or source in self._explained:
                continue

            library = {"python": "random", "numpy": "numpy.random"}.get(source, source)
            where = (
                "by another thread or by compiled code"
                if source.startswith("torch:")
                else "in the audited block"
            )
            self._report(
                f"The default generator of {library} was drawn from {where}, outside every "
                f"stream. {_WAY_OUT}",
                source=library,
                device=source[6:] if source.startswith("torch:") else "",
                place=user_line(),
                is_exact=False,
            )

    def _report(
        self,
        message: str,
        *,
        source: str,
        device: str,
        place: Tuple[str, int],
        is_exact: bool = True,
    ) -> None:
        """Raise or warn; ``place`` is the line that drew, or else the end of the block."""
        self.undeclared += 1
        line = f"{place[0]}:{place[1]}" if is_exact else ""
        if self._mode == "error":
            error = UndeclaredRandomnessError(message, source=source, device=device, line=line)
            self._first = self._first or error
            raise error

        if (source, line) not in self._warned:
            self._warned.add((source, line))
            warnings.warn_explicit(message, UndeclaredRandomnessWarning, *place)
