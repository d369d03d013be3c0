"""RNG state: the only package that touches the generators of the process.

Everything that reads, sets or swaps a default generator of python, NumPy or torch is here, and so
is whatever differs between versions of torch. The linter holds the rest of the library to it.
"""

from typing import TYPE_CHECKING

from seedregistry.common.lazy import lazy_door

if TYPE_CHECKING:
    from seedregistry.rng.checkpoint import Handouts, load_state, save_state
    from seedregistry.rng.generators import (
        make_generator,
        make_numpy,
        make_plain_generator,
        make_python,
        resolve_device,
        seed_generator,
    )
    from seedregistry.rng.scope import DEFAULT_TIMEOUT_S, Scope, in_scope, scoped_libraries
    from seedregistry.rng.state import (
        GLOBAL_SEED_BITS,
        Captured,
        Movement,
        fingerprint,
        seed_global,
        shared_generators,
    )

__getattr__, __dir__ = lazy_door(
    __name__,
    {
        "seedregistry.rng.checkpoint": ("Handouts", "load_state", "save_state"),
        "seedregistry.rng.generators": (
            "make_generator",
            "make_numpy",
            "make_plain_generator",
            "make_python",
            "resolve_device",
            "seed_generator",
        ),
        "seedregistry.rng.scope": ("DEFAULT_TIMEOUT_S", "Scope", "in_scope", "scoped_libraries"),
        "seedregistry.rng.state": (
            "GLOBAL_SEED_BITS",
            "Captured",
            "Movement",
            "fingerprint",
            "seed_global",
            "shared_generators",
        ),
    },
)

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "GLOBAL_SEED_BITS",
    "Captured",
    "Handouts",
    "Movement",
    "Scope",
    "fingerprint",
    "in_scope",
    "load_state",
    "make_generator",
    "make_numpy",
    "make_plain_generator",
    "make_python",
    "resolve_device",
    "save_state",
    "scoped_libraries",
    "seed_generator",
    "seed_global",
    "shared_generators",
]
