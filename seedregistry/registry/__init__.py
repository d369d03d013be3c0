"""The registry: the one object of an experiment, and what serves it alone."""

from typing import TYPE_CHECKING

from seedregistry.common.lazy import lazy_door

if TYPE_CHECKING:
    from seedregistry.registry.global_state import GlobalState
    from seedregistry.registry.registry import SeedRegistry

__getattr__, __dir__ = lazy_door(
    __name__,
    {
        "seedregistry.registry.global_state": ("GlobalState",),
        "seedregistry.registry.registry": ("SeedRegistry",),
    },
)

__all__ = [
    "GlobalState",
    "SeedRegistry",
]
