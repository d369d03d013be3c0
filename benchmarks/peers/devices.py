"""Stand-ins for accelerators that this machine lacks.

What ``torch.xpu`` and ``torch.mps`` have to seed, save and restore.

The generators behind them are the CPU's; what is tested is which functions a peer calls, and those
are the real ones' names.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Dict, Iterator, List
from unittest import mock

import torch

if TYPE_CHECKING:
    from peers.peer import Peer


class Kind:
    """One kind of device, with one device."""

    def __init__(self) -> None:
        self.default_generators = (torch.Generator(),)

    def states(self) -> List[List[int]]:
        return [generator.get_state().tolist() for generator in self.default_generators]

    def manual_seed_all(self, seed: int) -> None:
        for generator in self.default_generators:
            generator.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        del device
        return self.default_generators[0].get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        del device
        self.default_generators[0].set_state(state)

    def functions(self, kind: str) -> Dict[str, Any]:
        """Return what the module of this kind of device has for generators, by its name there."""
        names: Dict[str, Any] = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "manual_seed": self.manual_seed_all,
            "seed": lambda: self.manual_seed_all(0),
            "get_rng_state": self.get_rng_state,
            "set_rng_state": self.set_rng_state,
            "_is_in_bad_fork": lambda: False,
        }
        if kind == "mps":
            return {**names, "_get_default_mps_generator": lambda: self.default_generators[0]}
        return {
            **names,
            "is_initialized": lambda: True,
            "init": lambda: None,
            "manual_seed_all": self.manual_seed_all,
            "get_rng_state_all": lambda: [self.get_rng_state()],
            "set_rng_state_all": lambda states: self.set_rng_state(states[0]),
            "default_generators": self.default_generators,
            "is_current_stream_capturing": lambda: False,
        }


@contextlib.contextmanager
def standing_in(peer: Peer) -> Iterator[Dict[str, Kind]]:
    """Make torch and a peer believe in an XPU and an MPS device."""
    kinds = {"xpu": Kind(), "mps": Kind()}
    with contextlib.ExitStack() as stack:
        for name, kind in kinds.items():
            for function, stand_in in kind.functions(name).items():
                stack.enter_context(
                    mock.patch.object(getattr(torch, name), function, stand_in, create=True)
                )
        discover = getattr(
            peer, "discover", None
        )  # a peer that looks for devices when it is imported looks again
        if discover is not None:
            stack.enter_context(discover())
        yield kinds
