"""What every peer is asked to train: data that draws from every library, and a model that writes
down what it saw."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, List, Optional, Tuple

import attrs
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

Step = Tuple[List[int], List[List[float]], List[float]]
"""The indices of a batch, what each sample drew from (random, numpy, torch), and the dropout
mask."""


@attrs.frozen(kw_only=True)
class Work:
    """A training that is asked for.

    Attributes:
        seed: of the experiment.
        size: samples of an epoch.
        batch_size: for each rank.
        epochs: to run.
        shuffle: whether the order is random.
        workers: of the loader.
        persistent: whether the workers live on from epoch to epoch.
        resumable: whether the run may be stopped and go on, for peers that have a loader for that.
        stop_after: save everything after that many batches, and return.
        resume: go on from what was saved.
        folder: where it was.
        disturb: take a batch and leave the iterator, build a model and a loader that nobody uses,
            before the training.
        validate: run over other data after each epoch.
    """

    seed: int = 5
    size: int = 24
    batch_size: int = 4
    epochs: int = 2
    shuffle: bool = True
    workers: int = 0
    persistent: bool = False
    resumable: bool = False
    stop_after: Optional[int] = None
    resume: bool = False
    folder: Path = Path()
    disturb: bool = False
    validate: bool = False


class Drawing(Dataset):
    """Samples that say their index and what they drew."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(
            [index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64
        )


class Net(nn.Module):
    """One parameter and dropout. In training mode it adds each step to ``trace``."""

    def __init__(self, trace: List[Step]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(0.5)
        self.trace = trace

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        mask = self.dropout(torch.ones(16))
        if self.training:
            self.trace.append((batch[:, 0].int().tolist(), batch[:, 1:].tolist(), mask.tolist()))
        return self.weight * mask.sum()


def disturb(loader: Any) -> None:
    """Do what must change no number: peek at a batch, build a model, build and peek at another
    loader."""
    next(iter(loader))
    nn.Linear(4, 4)
    next(iter(torch.utils.data.DataLoader(Drawing(8), shuffle=True)))
