"""Datasets and collate functions that draw from every library; a module of their own, which
spawned workers can import."""

from __future__ import annotations

import os
import random
import time

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset


class Augmented(Dataset):
    """Item i is (i, a draw of python, of NumPy, of torch), float64."""

    def __init__(self, size: int = 23) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        draws = [random.random(), np.random.rand(), torch.rand((), dtype=torch.float64).item()]
        return torch.tensor([index, *draws], dtype=torch.float64)


class InBatches(Augmented):
    """The same items, fetched a list at a time."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Dicts(Augmented):
    """The same items as dicts with a tuple inside."""

    def __getitem__(self, index: int):
        row = super().__getitem__(index)
        return {"x": (row, row * 2), "i": index}


class Items(IterableDataset):
    """Iterable; draws when the iteration begins and in every item."""

    shard_by_worker = False

    def __init__(self, size: int = 11) -> None:
        self.size = size

    def __iter__(self):
        offset = random.random()
        for index in range(self.size):
            yield torch.tensor(
                [index, offset, np.random.rand(), torch.rand(()).item()], dtype=torch.float64
            )


class DividedItems(Items):
    """The same, of which each worker keeps its own."""

    shard_by_worker = True


class Broken(Augmented):
    """Raises at one index, after drawing."""

    def __getitem__(self, index: int):
        super().__getitem__(index)
        if index == 3:
            raise ValueError("broken sample")
        return super().__getitem__(index)


class Dies(Augmented):
    """Ends its worker."""

    def __getitem__(self, index: int):
        os._exit(7)


class Slow(Augmented):
    """Takes a minute at one index."""

    def __getitem__(self, index: int):
        if index == 3:
            time.sleep(60)
        return super().__getitem__(index)


def draw(samples):
    """Return a draw in the place of a batch."""
    return random.random()


def mixup(samples):
    """Mix a batch with a permutation of itself, with a draw of each library."""
    batch = torch.stack(list(samples))
    share = random.random() * np.random.rand()
    return share * batch + (1 - share) * batch[torch.randperm(len(batch))]
