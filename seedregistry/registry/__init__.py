"""The registry: the one object of an experiment, and what serves it alone."""

from seedregistry.registry.global_state import GlobalState
from seedregistry.registry.registry import SeedRegistry

__all__ = ["GlobalState", "SeedRegistry"]
