"""NumPy's legacy global state, swapped instead of copied.

``np.random.get_bit_generator`` and ``set_bit_generator`` (NumPy 1.24) exchange the bit generator
under the global ``RandomState`` in 0.2 us, where reading its state takes 30 us. A swap loses one
thing: the second half of the last pair of legacy normals, which the ``RandomState`` itself keeps
(``has_gauss``, ``gauss``). It is read before and put back after.

The generators swapped in are ``MT19937`` and nothing else: ``np.random.seed`` and ``set_state``
refuse any other.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, List, Tuple

import numpy as np

Cached = Tuple[Any, int, float]
"""The bit generator that was under the global state, and its cached normal.

(bit generator, has_gauss, gauss).
"""


class Pooled:
    """An MT19937 of ours, and the ``RandomState`` that seeds it through public API."""

    __slots__ = ("bit_generator", "state")

    def __init__(self) -> None:
        self.bit_generator = np.random.MT19937(0)
        self.state = np.random.RandomState(self.bit_generator)


class _CachedNormalOnly(np.random.MT19937):
    """A bit generator without a state, to read and write the cached normal alone.

    ``RandomState.get_state`` asks its bit generator for ``state`` and adds ``has_gauss`` and
    ``gauss``; ``set_state`` hands ``state`` on and keeps these two. With this in place of the bit
    generator both cost under a microsecond. It stands there for a moment only; what other threads
    ask of it in that moment goes on to the one that it stands for, and drawing does not ask at all.
    Source: ``numpy/random/mtrand.pyx``, ``RandomState.get_state``, ``set_state`` and ``seed``.
    """

    def stand_for(self, actual: Any) -> None:
        """Remember the bit generator in whose place this is about to be put, by this thread."""
        self._actual = actual
        self._owner = threading.get_ident()

    @property
    def state(self) -> Any:
        if threading.get_ident() != self._owner:
            return self._actual.state
        return {"bit_generator": "MT19937", "state": {}}

    @state.setter
    def state(self, value: Any) -> None:
        if threading.get_ident() != self._owner:
            self._actual.state = value

    def _legacy_seeding(self, seed: Any) -> None:
        self._actual._legacy_seeding(seed)


class _Probes(threading.local):
    """A probe for each thread."""

    def __init__(self) -> None:
        self.probe = _CachedNormalOnly(0)


_pool: List[Pooled] = []
_probes = _Probes()
_global: Any = np.random.mtrand._rand  # type: ignore[attr-defined]


def _current() -> Any:
    """Return the bit generator under the global state, or under a probe left there."""
    actual = np.random.get_bit_generator()  # type: ignore[attr-defined]
    return actual._actual if isinstance(actual, _CachedNormalOnly) else actual


def _probing(actual: Any, call: Callable[[], Any]) -> Any:
    """Call with a probe in the place of the bit generator.

    Raises:
        AttributeError: this NumPy hides the attribute; nothing was called.
    """
    probe = _probes.probe
    probe.stand_for(actual)
    try:
        _global._bit_generator = probe
        return call()
    finally:
        if not isinstance(_global, np.random.RandomState) or np.random.get_bit_generator() is probe:  # type: ignore[attr-defined]
            _global._bit_generator = actual


def borrow(depth: int) -> Pooled:
    """Return the pooled generator for a nesting depth.

    Only the holder of the scope lock may call this.
    """
    while len(_pool) <= depth:
        _pool.append(Pooled())
    return _pool[depth]


def fresh() -> Pooled:
    """Return a generator outside the pool, for a state that outlives every scope."""
    return Pooled()


def read_cached() -> Cached:
    """Return the global bit generator and the cached normal; moves nothing."""
    actual = _current()
    try:
        state = _probing(actual, lambda: np.random.get_state(legacy=False))
    except AttributeError:  # the public way, 30 us
        state = np.random.get_state(legacy=False)
    return actual, int(state["has_gauss"]), float(state["gauss"])


def swap_in(bit_generator: Any) -> None:
    """Put a bit generator under the global state; this drops the cached normal."""
    np.random.set_bit_generator(bit_generator)  # type: ignore[attr-defined]


def swap_out(cached: Cached) -> None:
    """Put back what :func:`read_cached` returned.

    The same bit generator, untouched, and the cached normal.
    """
    actual, has_gauss, gauss = cached
    np.random.set_bit_generator(actual)  # type: ignore[attr-defined]
    if not has_gauss:
        return
    cached_normal = {
        "bit_generator": "MT19937",
        "state": {},
        "has_gauss": has_gauss,
        "gauss": gauss,
    }
    try:
        _probing(actual, lambda: np.random.set_state(cached_normal))
    except AttributeError:
        np.random.set_state({**actual.state, "has_gauss": has_gauss, "gauss": gauss})
