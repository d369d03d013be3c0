"""NumPy's legacy global state, swapped instead of copied.

``np.random.get_bit_generator`` and ``set_bit_generator`` (NumPy 1.24) exchange the bit generator under the global
``RandomState`` in 0.2 us, where reading its state takes 30 us. A swap loses one thing: the second half of the last pair
of legacy normals, which the ``RandomState`` itself keeps (``has_gauss``, ``gauss``). It is read before and put back after.

The generators swapped in are ``MT19937`` and nothing else: ``np.random.seed`` and ``set_state`` refuse any other.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import numpy as np

__all__ = ["Cached", "Pooled", "borrow", "fresh", "read_cached", "swap_in", "swap_out"]

Cached = Tuple[Any, int, float]
"""The bit generator that was under the global state, and its cached normal: (bit generator, has_gauss, gauss)."""


class Pooled:
    """An MT19937 of ours, and the ``RandomState`` that seeds it through public API."""

    __slots__ = ("bit_generator", "state")

    def __init__(self) -> None:
        self.bit_generator = np.random.MT19937(0)
        self.state = np.random.RandomState(self.bit_generator)


class _CachedNormalOnly(np.random.MT19937):
    """A bit generator without a state, to read and write the cached normal alone.

    ``RandomState.get_state`` asks its bit generator for ``state`` and adds ``has_gauss`` and ``gauss``; ``set_state``
    hands ``state`` on and keeps these two. With this in place of the bit generator both cost under a microsecond.
    Source: ``numpy/random/mtrand.pyx``, ``RandomState.get_state`` and ``set_state``.
    """

    @property
    def state(self) -> Any:
        return {"bit_generator": "MT19937", "state": {}}

    @state.setter
    def state(self, value: Any) -> None:
        pass


_pool: List[Pooled] = []
_global: Any = np.random.mtrand._rand  # type: ignore[attr-defined]
_probe = _CachedNormalOnly(0)


def borrow(depth: int) -> Pooled:
    """Return the pooled generator for a nesting depth. Only the holder of the scope lock may call this."""
    while len(_pool) <= depth:
        _pool.append(Pooled())
    return _pool[depth]


def fresh() -> Pooled:
    """Return a generator outside the pool, for a state that outlives every scope."""
    return Pooled()


def read_cached() -> Cached:
    """Return the global bit generator and the cached normal; moves nothing."""
    actual = np.random.get_bit_generator()  # type: ignore[attr-defined]
    try:
        _global._bit_generator = _probe
    except AttributeError:  # a NumPy that hides the attribute: the public way, 30 us
        state = np.random.get_state(legacy=False)
    else:
        try:
            state = np.random.get_state(legacy=False)
        finally:
            _global._bit_generator = actual
    return actual, int(state["has_gauss"]), float(state["gauss"])  # type: ignore[call-overload]


def swap_in(bit_generator: Any) -> None:
    """Put a bit generator under the global state; this drops the cached normal."""
    np.random.set_bit_generator(bit_generator)  # type: ignore[attr-defined]


def swap_out(cached: Cached) -> None:
    """Put back what :func:`read_cached` returned: the same bit generator, untouched, and the cached normal."""
    actual, has_gauss, gauss = cached
    np.random.set_bit_generator(actual)  # type: ignore[attr-defined]
    if not has_gauss:
        return
    try:
        _global._bit_generator = _probe
    except AttributeError:
        state: Dict[str, Any] = dict(actual.state)
        state.update(has_gauss=has_gauss, gauss=gauss)
        np.random.set_state(state)
        return
    try:
        np.random.set_state({"bit_generator": "MT19937", "state": {}, "has_gauss": has_gauss, "gauss": gauss})
    finally:
        _global._bit_generator = actual
