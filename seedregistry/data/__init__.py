"""Data: orders, samplers, samples and the loader."""

from typing import TYPE_CHECKING

from seedregistry.common.lazy import lazy_door

if TYPE_CHECKING:
    from seedregistry.data.loader import SeededDataLoader
    from seedregistry.data.permutation import IndexedPermutation
    from seedregistry.data.sampler import DeterministicSampler
    from seedregistry.data.samples import draws_nothing
    from seedregistry.data.walk import find_generators

__getattr__, __dir__ = lazy_door(
    __name__,
    {
        "seedregistry.data.loader": ("SeededDataLoader",),
        "seedregistry.data.permutation": ("IndexedPermutation",),
        "seedregistry.data.sampler": ("DeterministicSampler",),
        "seedregistry.data.samples": ("draws_nothing",),
        "seedregistry.data.walk": ("find_generators",),
    },
)

__all__ = [
    "DeterministicSampler",
    "IndexedPermutation",
    "SeededDataLoader",
    "draws_nothing",
    "find_generators",
]
