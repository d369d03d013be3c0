"""NumPy's legacy global state, copied and put back where it lies.

It is the state of the bit generator under the global ``RandomState``, and the second half of the
last pair of legacy normals, which the ``RandomState`` keeps itself. Whoever holds that bit
generator, or a bound method of it, draws in a scope what the scope says, and finds it afterwards as
it was.

``np.random.get_state`` takes 30 us, most of it for 624 words as Python objects. The bytes alone
take under a microsecond: a bit generator says where its state lies (``ctypes.state_address``), and
where a ``RandomState`` keeps the cached normal is found out once, on one of our own. Each copy is
one call of C, so that an interrupt comes before it or after it. Where the bytes are not where they
are expected the public way is taken.

Source: ``numpy/random/src/mt19937/mt19937.h`` (``mt19937_state``), ``numpy/random/_common.pxd`` and
``numpy/random/src/distributions`` (``aug_bitgen_t``), NumPy 1.24 to 2.4.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

import numpy as np

from seedregistry.errors import RngStateError

_WORDS = 624
_ENGINE_BYTES = 4 * _WORDS + 4
"""The words, and an int that says which comes next."""

_NORMAL = struct.Struct("@id")
"""Whether there is a cached normal, and its value."""

_global: Any = np.random.mtrand._rand  # type: ignore[attr-defined]


class Saved(NamedTuple):
    """NumPy's global state at one moment.

    Attributes:
        bit_generator: the object under the global ``RandomState``.
        engine: its state: bytes, or what its ``state`` property returned.
        normal: the cached normal as bytes; None where ``engine`` has it too.
    """

    bit_generator: Any
    engine: Union[bytes, Dict[str, Any]]
    normal: Optional[bytes]


@functools.lru_cache(maxsize=None)
def _normal_offset() -> Optional[int]:
    """Return where a ``RandomState`` keeps its cached normal: bytes from its address.

    Returns:
        None where the bytes are not as they are expected, which is tried out and not assumed.
    """
    try:
        engine = np.random.MT19937(5489)
        state = np.random.RandomState(engine)
        plain: Any = engine.state["state"]
        words = plain["key"].astype("=u4").tobytes() + struct.pack("@i", plain["pos"])
        if _view(engine.ctypes.state_address, _ENGINE_BYTES) != words:
            return None

        first, second = 0.7310585786300049, -1.4402901842336917
        state.set_state({**engine.state, "has_gauss": 1, "gauss": first})  # type: ignore[arg-type]
        content = _view(id(state), type(state).__basicsize__).tobytes()
        offset = content.find(_NORMAL.pack(1, first))
        if offset < 0 or content.count(struct.pack("@d", first)) != 1:
            return None
        _view(id(state) + offset, _NORMAL.size)[:] = _NORMAL.pack(1, second)
        if state.standard_normal() != second or state.get_state(legacy=False)["has_gauss"]:  # type: ignore[call-overload,index]
            return None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return offset


def _view(address: int, size: int) -> memoryview:
    """Return the bytes at an address, to read and to write; whoever asks keeps what lies there."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


@functools.lru_cache(maxsize=1)
def _normal_view() -> memoryview:
    return _view(id(_global) + (_normal_offset() or 0), _NORMAL.size)


class _Views:
    """The bytes of the bit generator that was looked at last, which is nearly always the same."""

    def __init__(self) -> None:
        self._last: Tuple[Any, Any] = (None, None)

    def of(self, bit_generator: Any) -> memoryview:
        last, view = self._last
        if last is not bit_generator:
            view = _view(bit_generator.ctypes.state_address, _ENGINE_BYTES)
            self._last = bit_generator, view
        return view  # type: ignore[no-any-return]


_engine_view = _Views().of


def capture() -> Saved:
    """Return the global state; moves nothing.

    Raises:
        RngStateError: a cached normal beside a bit generator of another kind, which this NumPy does
            not let be put back.
    """
    bit_generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
    offset = _normal_offset()
    if offset is not None:
        normal = _normal_view().tobytes()
        if type(bit_generator) is np.random.MT19937:
            return Saved(bit_generator, _engine_view(bit_generator).tobytes(), normal)
        return Saved(bit_generator, bit_generator.state, normal)

    state: Any = np.random.get_state(legacy=False)
    if state["has_gauss"] and type(bit_generator) is not np.random.MT19937:
        message = (
            f"NumPy's global state is a {type(bit_generator).__name__} with a cached normal, which "
            f"NumPy {np.__version__} does not let be put back. Draw one more normal, or call "
            "np.random.set_bit_generator(np.random.MT19937(seed)) first."
        )
        raise RngStateError(message)
    return Saved(bit_generator, state, None)


def restore(saved: Saved) -> None:
    """Put back what :func:`capture` returned; it may be done again after an interrupt."""
    bit_generator, engine, normal = saved
    np.random.set_bit_generator(bit_generator)  # type: ignore[attr-defined]
    if isinstance(engine, bytes):
        _engine_view(bit_generator)[:] = engine
    elif type(bit_generator) is np.random.MT19937:
        np.random.set_state(engine)
    else:
        bit_generator.state = engine
    if normal is not None:
        _normal_view()[:] = normal


def has_strayed(saved: Saved) -> bool:
    """Return whether a bit generator that no scope can seed was drawn from since the capture.

    One of another kind than MT19937 is taken from under the global state for the time of a scope.
    Who holds it can draw from it all the same.
    """
    bit_generator, engine, _ = saved
    if isinstance(engine, bytes) or type(bit_generator) is np.random.MT19937:
        return False
    return comparable(bit_generator.state) != comparable(
        {name: engine[name] for name in bit_generator.state}
    )


def claim() -> Any:
    """Return the MT19937 under the global state, which a scope may seed; put one there if needed.

    ``np.random.seed`` and ``set_state`` refuse any other kind, and what a scope draws must not
    depend on the kind that the caller has.
    """
    bit_generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if type(bit_generator) is not np.random.MT19937:
        bit_generator = np.random.MT19937(0)
        np.random.set_bit_generator(bit_generator)  # type: ignore[attr-defined]
    return bit_generator


def comparable(state: Any) -> object:
    """Return the state of a bit generator as nested tuples, arrays as bytes."""
    if isinstance(state, dict):
        return tuple((name, comparable(value)) for name, value in sorted(state.items()))
    if isinstance(state, np.ndarray):
        return str(state.dtype), state.shape, state.tobytes()
    return state
