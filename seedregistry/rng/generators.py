"""Torch generators: made on any device, and set from a seed or from a key."""

from __future__ import annotations

import functools
import random
import struct
import threading
from typing import TYPE_CHECKING, Any, Optional, Protocol, Union

import numpy as np
import torch

from seedregistry import derivation
from seedregistry.errors import DeviceError, RngStateError
from seedregistry.rng import accelerators

if TYPE_CHECKING:

    class SeedSource(Protocol):
        """What generators are set from: a stream, a position, or a plain seed."""

        @property
        def seed(self) -> int:
            """Return the 31-bit seed."""

        @property
        def key(self) -> bytes:
            """Return the 32-byte key."""

        @property
        def full_width(self) -> bool:
            """Return whether generators take more of the key than the seed."""


# The state of torch's CPU generator is 5,056 bytes: seed u64, left i32, seeded i32, next u64, 624
# words of 32 bits held as u64, and the cached normals. Source: aten/src/ATen/CPUGeneratorImpl.cpp
# (CPUGeneratorImplStateLegacy).
_STATE_BYTES = 5056
_WORDS_START, _WORDS_END = 24, 24 + 624 * 8
_HEADER = struct.Struct("<QiiQ")


@functools.lru_cache(maxsize=None)
def _check_cpu_layout() -> None:
    """Compare the layout above with a generator that torch seeded, once, before relying on it."""
    seed = 5489
    state = torch.Generator().manual_seed(seed).get_state().numpy()
    is_expected = state.size == _STATE_BYTES and _HEADER.unpack(state[:_WORDS_START].tobytes()) == (
        seed,
        1,
        1,
        0,
    )
    if is_expected:
        legacy: Any = np.random.RandomState(seed).get_state()
        words = legacy[1]  # MT19937 init_genrand, as torch seeds it
        is_expected = bool(np.array_equal(state[_WORDS_START:_WORDS_END].view("<u8"), words))
    if not is_expected:
        message = (
            f"torch {torch.__version__} keeps the state of its CPU generator in a layout that "
            "this version does not know, so scheme 'sha256-256' cannot set it. Use scheme "
            "'sha256-31' or a torch release that is supported."
        )
        raise RngStateError(message)


class FullState:
    """A state of torch's CPU generator with all 624 words from a key.

    It may be filled again: a generator copies the state that it is given.

    Raises:
        RngStateError: this torch keeps the state in a layout that is not known.
    """

    __slots__ = ("_bytes", "_tensor", "_words")

    def __init__(self) -> None:
        _check_cpu_layout()
        state = np.zeros(_STATE_BYTES, dtype=np.uint8)
        self._bytes: Any = memoryview(state)  # type: ignore[arg-type]  # NumPy 2's stubs for Python 3.12 only
        self._words = state[_WORDS_START:_WORDS_END].view("<u8")
        self._tensor = torch.from_numpy(state)

    def fill(self, key: bytes, seed: int) -> torch.Tensor:
        """Return the state of a key, for ``Generator.set_state``.

        The generator's ``initial_seed`` will say ``seed``. The tensor is the same object at each
        call, and the next call fills it anew.
        """
        # left = 1 and next = 0: torch mixes the words before it hands out the first, as it does
        # after manual_seed. So no word of the key's hash is ever a draw.
        _HEADER.pack_into(self._bytes, 0, seed, 1, 1, 0)
        self._words[:] = np.frombuffer(derivation.mt19937_words(key), dtype="<u4")
        return self._tensor


class _Scratch(threading.local):
    """A state for each thread to fill: making one takes as long as filling it."""

    _full_state: Optional[FullState] = None

    def full_state(self) -> FullState:
        if self._full_state is None:
            self._full_state = FullState()
        return self._full_state


_scratch = _Scratch()


def seed_generator(generator: torch.Generator, source: SeedSource) -> None:
    """Set a torch generator to the start of a stream or position, on whatever device it lives.

    Under a 31-bit scheme that is ``manual_seed(seed)``. Under a full-width scheme the CPU's MT19937
    state is filled from the key (an integer seed would count with its low 32 bits only), and a
    Philox generator takes 64 bits of the key.
    """
    if not source.full_width:
        generator.manual_seed(source.seed)
    elif generator.device.type == "cpu":
        generator.set_state(_scratch.full_state().fill(source.key, source.seed))
    else:
        generator.manual_seed(derivation.philox_seed(source.key))


def resolve_device(device: Union[str, torch.device]) -> torch.device:
    """Return the device, if it can have a generator here.

    Raises:
        DeviceError: not a device, a kind without random numbers (``meta``), or not available on
            this machine.
    """
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        message = f"{device!r} is not a torch device. Use 'cpu', 'cuda', 'cuda:1', 'mps' or 'xpu'."
        raise DeviceError(message) from error
    if resolved.type == "cpu":
        return resolved
    if resolved.type == "meta":
        message = (
            "Device 'meta' holds no data and has no generator. Use a generator of the device "
            "that the tensors will live on, or a CPU one: factory functions accept it with "
            "device='meta'."
        )
        raise DeviceError(message)
    for accelerator in accelerators.ACCELERATORS:
        if accelerator.kind != resolved.type:
            continue
        count = accelerator.device_count()
        if (resolved.index or 0) < count:
            return resolved
        message = (
            f"Device '{resolved}' is not available: torch sees {count} device(s) of kind "
            f"'{resolved.type}' here."
        )
        raise DeviceError(message)
    built = ", ".join(
        ["'cpu'", *(f"'{accelerator.kind}'" for accelerator in accelerators.ACCELERATORS)]
    )
    message = (
        f"Device '{resolved}' is not available: this build of torch has generators for "
        f"{built} only."
    )
    raise DeviceError(message)


# From which release on torch.Generator can be referenced weakly is not documented; 2.2 cannot, 2.13
# can.
if torch.Generator.__weakrefoffset__:
    _Generator = torch.Generator
else:

    class _Generator(torch.Generator):  # type: ignore[no-redef]
        """A generator that can be referenced weakly."""

        __slots__ = ("__weakref__",)


class _NumpyGenerator(np.random.Generator):
    """A generator that can be referenced weakly.

    Its copies and pickles are plain ``numpy.random.Generator``s.
    """

    __slots__ = ("__weakref__",)


_NumpyGenerator.__name__ = _NumpyGenerator.__qualname__ = "Generator"  # its repr names the class


def make_numpy(source: SeedSource) -> np.random.Generator:
    """Return a new ``numpy.random.Generator``: PCG64 seeded with the key as a 256-bit int."""
    return _NumpyGenerator(np.random.PCG64(int.from_bytes(source.key, "big")))


def make_python(source: SeedSource) -> random.Random:
    """Return a new ``random.Random``, seeded with a tagged hash of the key."""
    return random.Random(derivation.python_seed(source.key))


def _make_empty(device: Union[str, torch.device]) -> torch.Generator:
    resolved = resolve_device(device)
    for accelerator in accelerators.ACCELERATORS:
        if accelerator.kind == resolved.type:
            accelerator.refuse_capture(f"A generator on '{resolved}' cannot be made")
    try:
        generator: torch.Generator = _Generator(device=resolved)
    except RuntimeError as error:
        message = f"torch has no generator for device '{resolved}': {error}"
        raise DeviceError(message) from error
    return generator


def make_plain_generator(device: Union[str, torch.device], seed: int) -> torch.Generator:
    """Return a new generator on a device after ``manual_seed(seed)``, ``0 <= seed < 2**64``.

    Raises:
        DeviceError: the device is unknown, unavailable or has no generators.
        ScopeError: a CUDA graph is being captured.
    """
    return _make_empty(device).manual_seed(seed)


def make_generator(device: Union[str, torch.device], source: SeedSource) -> torch.Generator:
    """Return a new generator on a device, set to the start of a stream or position.

    Example:
        >>> from seedregistry import SeedRegistry, rng
        >>> stream = SeedRegistry(42).stream("noise")
        >>> rng.make_generator("cpu", stream).initial_seed() == stream.seed
        True

    Args:
        device: a torch device or its name; ``"cuda"`` without an index is the current device.
        source: what to seed it from.

    Raises:
        DeviceError: the device is unknown, unavailable or has no generators.
        ScopeError: a CUDA graph is being captured.
    """
    generator = _make_empty(device)
    seed_generator(generator, source)
    return generator
