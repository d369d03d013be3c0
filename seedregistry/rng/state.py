"""The default generators of every library: captured, seeded from a source, put back.

What counts as state: ``random``'s hidden instance, NumPy's legacy global state, torch's default CPU
generator, the default generators of every initialised accelerator, and the seeds that wait for an
accelerator that has not started.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch

from seedregistry import derivation
from seedregistry.rng import accelerators, numpy_state
from seedregistry.rng.generators import FullState, make_generator, seed_generator

if TYPE_CHECKING:
    from seedregistry.rng.accelerators import Accelerator, LazyQueue
    from seedregistry.rng.generators import SeedSource

_HEAD_BYTES = 64

# random.seed is a method of a hidden instance, and most of its own time is spent on looking at the
# type of the seed.
_python: Any = getattr(random, "_inst", None)
_SEED_PYTHON: Any = random.Random.__base__.seed if _python is not None else None  # type: ignore[union-attr]

GLOBAL_SEED_BITS = 32
"""Width of an integer that seeds every library: NumPy's legacy generator takes no more."""

_States = List[Tuple[torch.Generator, torch.Tensor]]

LateSeed = Callable[[str], int]
"""Called with a device kind that started inside a scope with no seed waiting.

Returns a 64-bit seed for after it.
"""


def _bytes_of(generator: torch.Generator) -> bytes:
    """Return the state of a torch generator as bytes.

    Half the price of ``torch.equal`` on two states.
    """
    return generator.get_state().numpy().tobytes()


def _head_of(generator: torch.Generator) -> bytes:
    """Return the first bytes of a generator's state, which change with every draw."""
    return generator.get_state().numpy()[:_HEAD_BYTES].tobytes()


class Captured:
    """The default generators at one moment.

    Made by one thread, restored at most once by each holder.

    Example:
        >>> import random
        >>> from seedregistry import rng
        >>> captured = rng.Captured()
        >>> first = random.random()
        >>> captured.restore()
        >>> random.random() == first
        True
        >>> captured.restore()

    Attributes:
        torch_only: python's and NumPy's generators were left out.
    """

    __slots__ = ("_cpu", "_late_seeds", "_lazy", "_numpy", "_python", "_running", "torch_only")

    def __init__(self, *, torch_only: bool = False) -> None:
        self.torch_only = torch_only
        self._python: Optional[Tuple[Any, ...]] = None
        self._numpy: Optional[numpy_state.Saved] = None
        self._running: List[Tuple[Accelerator, _States]] = []
        self._lazy: List[Tuple[Accelerator, LazyQueue]] = []
        self._late_seeds: Dict[str, int] = {}
        for accelerator in accelerators.ACCELERATORS:
            if accelerator.is_initialized():
                accelerator.refuse_capture()
                states = [(each, each.get_state()) for each in accelerator.default_generators()]
                self._running.append((accelerator, states))
            elif accelerator.is_lazy:
                self._lazy.append((accelerator, accelerators.LazyQueue(accelerator.module)))
        self._cpu = torch.default_generator.get_state()
        if not torch_only:
            self._python = random.getstate()
            self._numpy = numpy_state.capture()

    def seed_from(self, source: SeedSource) -> None:
        """Set everything that was captured to the start of a stream or position."""
        seed_generator(torch.default_generator, source)
        self._seed_accelerators(source)
        if not self.torch_only:
            random.seed(derivation.python_seed(source.key))
            numpy_state.claim()
            np.random.seed(_numpy_seed(source))

    def _seed_accelerators(self, source: SeedSource) -> None:
        for accelerator, states in self._running:
            if accelerator.kind == "cuda":
                accelerators.warn_of_graph_generators()
            for generator, _ in states:
                seed_generator(generator, source)
        for accelerator, queue in self._lazy:
            # One that has started since, as in the first sample of a batch, listens no more.
            if accelerator.is_initialized():
                for generator in accelerator.default_generators():
                    seed_generator(generator, source)
            else:
                queue.replace(_SeedDefaults(accelerator, source))

    def seeder(self, *, full_width: bool) -> Callable[[SeedSource], None]:
        """Return a quicker :meth:`seed_from`: what sets everything captured to a position.

        For one capture under which many positions are drawn from.

        Args:
            full_width: whether generators take more of the positions' keys than their seed.
        """
        if self.torch_only or _python is None:
            return self.seed_from
        has_accelerators = bool(self._running or self._lazy)
        generator = torch.default_generator
        manual_seed, set_state = generator.manual_seed, generator.set_state
        seed_python, instance = _SEED_PYTHON, _python
        swap_in: Any = np.random.set_bit_generator  # type: ignore[attr-defined]
        seed_of_key, python_seed = derivation.seed_of_key, derivation.python_seed
        numpy_seed, numpy_words = derivation.numpy_seed, derivation.numpy_word_bytes
        full = FullState() if full_width else None

        def seed(source: SeedSource) -> None:
            key = source.key
            bit_generator = numpy_state.claim()
            if full is None:
                manual_seed(seed_of_key(key))
                bit_generator._legacy_seeding(numpy_seed(key))
            else:
                set_state(full.fill(key, seed_of_key(key)))
                words = np.frombuffer(numpy_words(key), dtype=">u4").astype(np.int64)
                bit_generator._legacy_seeding(words)
            swap_in(bit_generator)  # drops the cached normal
            seed_python(instance, python_seed(key))
            instance.gauss_next = None
            if has_accelerators:
                self._seed_accelerators(source)

        return seed

    def accelerator_generators(self) -> Iterator[torch.Generator]:
        """Yield the default generators of every accelerator that was captured and runs now."""
        for accelerator, _ in (*self._running, *self._lazy):
            if accelerator.is_initialized():
                yield from accelerator.default_generators()

    def moved_devices(self) -> List[str]:
        """Return the devices whose default torch generator is not as it was at the capture."""
        moved = []
        if _bytes_of(torch.default_generator) != self._cpu.numpy().tobytes():
            moved.append("cpu")
        for _, states in self._running:
            moved += [
                str(generator.device)
                for generator, state in states
                if _bytes_of(generator) != state.numpy().tobytes()
            ]
        return moved

    def refuse_capture(self) -> None:
        """Raise while a CUDA graph is being captured, before anything is put back.

        Raises:
            ScopeError: a capture is under way on the current stream.
        """
        for accelerator, _ in self._running:
            accelerator.refuse_capture()
        for accelerator, _ in self._lazy:
            accelerator.refuse_capture()

    @property
    def can_stray(self) -> bool:
        """Whether NumPy's bit generator is of a kind that no scope can seed."""
        return self._numpy is not None and not isinstance(self._numpy.engine, bytes)

    def has_strayed(self) -> bool:
        """Return whether NumPy's bit generator was drawn from where no scope can seed it."""
        return self._numpy is not None and numpy_state.has_strayed(self._numpy)

    def restore(self, late_seed: Optional[LateSeed] = None) -> None:
        """Put everything back. After an interrupt half-way it may be run again.

        Args:
            late_seed: gives the seed of an accelerator that started since the capture while no seed
                was waiting for all its devices.
        """
        torch.default_generator.set_state(self._cpu)
        if self._numpy is not None:
            numpy_state.restore(self._numpy)
        if self._python is not None:
            random.setstate(self._python)
        for accelerator, states in self._running:
            # In a forked child it runs no more, and its generators cannot be used.
            if accelerator.is_initialized():
                for generator, state in states:
                    generator.set_state(state)
        for accelerator, queue in self._lazy:
            queue.restore()
            if accelerator.is_initialized():
                if late_seed is not None and not queue.seeds_all:
                    self._seed_late(accelerator, late_seed)
                queue.replay()

    def _seed_late(self, accelerator: Accelerator, late_seed: LateSeed) -> None:
        kind = accelerator.kind
        if kind not in self._late_seeds:  # asked once: the ledger keeps the answer
            self._late_seeds[kind] = late_seed(kind)
        for generator in accelerator.default_generators():
            generator.manual_seed(self._late_seeds[kind])


class _SeedDefaults:
    """A queued seed: sets every default generator of an accelerator when it starts."""

    __slots__ = ("_accelerator", "_source")

    def __init__(self, accelerator: Accelerator, source: SeedSource) -> None:
        self._accelerator = accelerator
        self._source = source

    def __call__(self) -> None:
        for generator in self._accelerator.default_generators():
            seed_generator(generator, self._source)


class Movement:
    """What shows, after a scope's body, which libraries drew in it.

    For the ledger: most optimizers draw nothing.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry, rng
        >>> stream = SeedRegistry(42).stream("noise")
        >>> with rng.Scope(stream, "noise", watch=True) as scope:
        ...     draw = torch.rand(1)
        >>> scope.movement.drew()
        ('torch',)

    Taken before the state is restored, from the next word of python's and NumPy's generators and
    the state of torch's (1 us); compared only when somebody asks, with new generators set from the
    same source. Of a torch state its head is kept, in which every draw shows: the position in the
    words on the CPU, the offset of Philox. A generator that moved shows the same word with a chance
    of 2**-32.
    """

    __slots__ = ("_moved_kinds", "_numpy_word", "_python_word", "_source", "_torch_head")

    def __init__(self, captured: Captured, source: SeedSource) -> None:
        self._source = source
        self._torch_head = _head_of(torch.default_generator)
        # Compared at once: in a forked child, which may read the ledger too, torch makes no
        # generator of an accelerator.
        self._moved_kinds = {
            generator.device.type
            for generator in captured.accelerator_generators()
            if _head_of(generator) != _head_of(make_generator(generator.device, source))
        }
        self._python_word: Optional[int] = None
        self._numpy_word: Optional[int] = None
        if not captured.torch_only:
            self._python_word = random.getrandbits(32)
            self._numpy_word = np.random.get_bit_generator().random_raw()  # type: ignore[attr-defined]

    def drew(self) -> Tuple[str, ...]:
        """Return the libraries and device kinds whose generator moved, sorted.

        ``"numpy"``, ``"python"``, ``"torch"``, ...
        """
        source = self._source
        moved = set(self._moved_kinds)
        if self._torch_head != _head_of(make_generator("cpu", source)):
            moved.add("torch")
        if self._python_word is not None:
            if self._python_word != random.Random(derivation.python_seed(source.key)).getrandbits(
                32
            ):
                moved.add("python")
            engine: Any = np.random.MT19937(0)
            np.random.RandomState(engine).seed(_numpy_seed(source))
            if self._numpy_word != engine.random_raw():
                moved.add("numpy")
        return tuple(sorted(moved))


def _numpy_seed(source: SeedSource) -> Any:
    """Return what ``np.random.seed`` takes for a source: an int, or eight words."""
    key = source.key
    return derivation.numpy_words(key) if source.full_width else derivation.numpy_seed(key)


def fingerprint() -> Dict[str, object]:
    """Return something comparable for every default generator: equal exactly when it has not moved.

    Reads only, 40 us.
    """
    states: Dict[str, object] = {
        "python": random.getstate(),
        "numpy": numpy_state.comparable(np.random.get_state(legacy=False)),
        "torch:cpu": _bytes_of(torch.default_generator),
    }
    for accelerator in accelerators.ACCELERATORS:
        if accelerator.is_initialized():
            for generator in accelerator.default_generators():
                states[f"torch:{generator.device}"] = _bytes_of(generator)
    return states


def shared_generators() -> Tuple[object, ...]:
    """Return the objects behind the default generators of python, NumPy and torch on the CPU."""
    return (getattr(random, "_inst", None), np.random.mtrand._rand, torch.default_generator)  # type: ignore[attr-defined]


def seed_global(seed: int) -> None:
    """Seed python, NumPy's legacy generator and torch on every device with one integer.

    A generator of another kind that was put under NumPy's global state (``set_bit_generator``),
    which ``np.random.seed`` refuses, is replaced by an MT19937.

    Args:
        seed: int, ``0 <= seed < 2**32``.
    """
    numpy_state.claim()
    np.random.seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)
