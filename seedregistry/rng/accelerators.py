"""Accelerators: one path to the default generators of every device kind that torch was built with.

CUDA, XPU and MTIA start late: until then torch keeps the seeds that it was given in a queue
(``_LazySeedTracker``) and applies them when the device is first used. A scope must therefore know
both states, *initialised* (generators exist and are captured like the CPU's) and *not yet* (the
queue is what is captured).

Source: ``torch/cuda/__init__.py`` (``_lazy_call``, ``_lazy_init``), ``torch/xpu/__init__.py``,
``torch/mps/__init__.py`` and ``torch/_utils.py`` (``_LazySeedTracker``), read at torch 2.2.2 and
2.13.0.
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import Any, Callable, List, Sequence, Tuple

import torch

from seedregistry.common.callsite import stack_level
from seedregistry.errors import ScopeError, UndeclaredRandomnessWarning

_SeedCall = Callable[[], Any]


class LazyQueue:
    """The seeds that wait for an accelerator to start, captured so that they can be put back.

    Torch runs the ordinary queued calls first and the tracked seeds after them; so does
    :meth:`replay`. Of the ordinary calls only those of the device's ``random`` module
    (``set_rng_state``) concern generators.
    """

    __slots__ = ("_calls", "_length", "_module", "_order", "_seed", "_seed_all")

    def __init__(self, module: Any) -> None:
        tracker = module._lazy_seed_tracker
        self._module = module
        self._seed_all = tracker.manual_seed_all_cb
        self._seed = tracker.manual_seed_cb
        self._order = tracker.call_order
        self._calls = module._queued_calls
        self._length = len(self._calls)

    def _is_rng_call(self, call: _SeedCall) -> bool:
        return bool(getattr(call, "__module__", "") == self._module.__name__ + ".random")

    def replace(self, call: _SeedCall) -> None:
        """Make ``call`` the only seed that waits.

        No stack trace is taken: torch's own queueing spends 100 us on it.
        """
        entry: Tuple[_SeedCall, List[str]] = (call, [])
        tracker = self._module._lazy_seed_tracker
        tracker.manual_seed_all_cb = entry
        tracker.manual_seed_cb = None
        tracker.call_order = [entry]

    def restore(self) -> None:
        """Put the queue back as it was.

        Generator states queued in between are dropped, other calls stay.
        """
        tracker = self._module._lazy_seed_tracker
        tracker.manual_seed_all_cb = self._seed_all
        tracker.manual_seed_cb = self._seed
        tracker.call_order = self._order
        if len(self._calls) > self._length:
            self._calls[self._length :] = [
                e for e in self._calls[self._length :] if not self._is_rng_call(e[0])
            ]

    @property
    def seeds_all(self) -> bool:
        """Whether what waited at capture seeds every device's default generator."""
        return self._seed_all is not None

    def replay(self) -> None:
        """Run what waited at capture, now that the device has started."""
        calls = [entry[0] for entry in self._calls[: self._length] if self._is_rng_call(entry[0])]
        calls += [entry[0] for entry in self._order if entry]
        for call in calls:
            call()


class Accelerator:
    """One kind of accelerator: its module in torch and its default generators.

    Stateless; safe to share between threads.
    """

    __slots__ = ("kind", "module")

    def __init__(self, kind: str, module: Any) -> None:
        self.kind = kind
        self.module = module

    @property
    def is_lazy(self) -> bool:
        """Whether the kind starts at first use. MPS does not: its one generator always exists."""
        return hasattr(self.module, "_lazy_seed_tracker")

    def device_count(self) -> int:
        """Return how many devices of this kind are usable here; starts none of them."""
        count = getattr(self.module, "device_count", None)  # torch 2.2 has none for MPS
        return int(torch.backends.mps.is_available() if count is None else count())

    def is_initialized(self) -> bool:
        """Return whether the default generators exist."""
        if self.is_lazy:
            return bool(self.module.is_initialized())
        return self.device_count() > 0

    def initialize(self) -> None:
        """Start the accelerator, so that its default generators exist."""
        if self.is_lazy:
            self.module.init()

    def default_generators(self) -> Sequence[torch.Generator]:
        """Return the default generator of every device, in device order. Only when initialised."""
        if self.kind == "mps":
            return (self.module._get_default_mps_generator(),)
        return tuple(self.module.default_generators)

    def refuse_capture(self, what: str = "A scope cannot be entered or left") -> None:
        """Raise while a CUDA graph is being captured: generator states cannot be read or set then.

        Args:
            what: the beginning of the message.

        Raises:
            ScopeError: a capture is under way on the current stream.
        """
        is_capturing = getattr(self.module, "is_current_stream_capturing", None)
        if is_capturing is not None and self.is_initialized() and is_capturing():
            # torch 2.2 has no way to register a generator.
            registers = hasattr(torch.cuda.CUDAGraph, "register_generator_state")
            generator = (
                "Capture a step that uses stream.at(...).generator(device), made before the "
                "capture and registered with graph.register_generator_state, or open the scope"
                if registers
                else "Open the scope"
            )
            message = (
                f"{what} while a CUDA graph is being captured: torch refuses to read or set "
                f"generator states then. {generator} around the whole capture."
            )
            raise ScopeError(message)


@functools.lru_cache(maxsize=None)
def _warn_of_graph_generators() -> None:
    message = (
        "torch.compile gives a graph with activation checkpointing generators of its own on CUDA, "
        "which no scope reaches: its dropout repeats neither at a position nor after a resume. "
        "Call registry.set_global_state(deterministic='warn') before the model is compiled, or set "
        "torch._functorch.config.graphsafe_rng_functionalization = False."
    )
    warnings.warn(message, UndeclaredRandomnessWarning, stacklevel=stack_level())


def warn_of_graph_generators() -> None:
    """Warn, once a process, where compiled code may draw from generators that no scope sets.

    That is where something was compiled while functorch's ``graphsafe_rng_functionalization`` is
    on, which is torch's default.
    """
    config = sys.modules.get("torch._functorch.config")
    if config is None or not getattr(config, "graphsafe_rng_functionalization", False):
        return
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    if counters.get("frames"):
        _warn_of_graph_generators()


def _discover() -> Tuple[Accelerator, ...]:
    """Return the kinds that this torch was built with.

    CPU-only builds have none, and their scopes pay nothing.
    """
    accelerators = []
    for kind in ("cuda", "xpu", "mtia"):
        module = getattr(torch, kind, None)
        is_compiled = getattr(module, "_is_compiled", None)
        if is_compiled is not None and is_compiled() and hasattr(module, "_lazy_seed_tracker"):
            accelerators.append(Accelerator(kind, module))
    if getattr(torch._C, "_has_mps", False):
        accelerators.append(Accelerator("mps", torch.mps))
    return tuple(accelerators)


ACCELERATORS: Tuple[Accelerator, ...] = _discover()
"""The accelerator kinds of this build of torch."""
