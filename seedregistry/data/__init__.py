"""Data: orders, samplers and the loader."""

from seedregistry.data.loader import SeededDataLoader
from seedregistry.data.sampler import DeterministicSampler

__all__ = ["DeterministicSampler", "SeededDataLoader"]
