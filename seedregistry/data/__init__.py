"""Data: orders, samplers, samples and the loader."""

from seedregistry.data.loader import SeededDataLoader
from seedregistry.data.permutation import IndexedPermutation
from seedregistry.data.sampler import DeterministicSampler
from seedregistry.data.samples import draws_nothing
from seedregistry.data.walk import find_generators

__all__ = [
    "DeterministicSampler",
    "IndexedPermutation",
    "SeededDataLoader",
    "draws_nothing",
    "find_generators",
]
