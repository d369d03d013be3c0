"""Splits of a dataset, with a digest of their indices."""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple, Union

import numpy as np
import torch
from torch.utils.data import Subset, random_split

from seedregistry.common.digest import PiecesDigest
from seedregistry.errors import ComponentCreationError


def indices_digest(subsets: Sequence[Sequence[int]]) -> str:
    """Return SHA-256 over the indices of subsets: 64 hexadecimal digits.

    Args:
        subsets: the indices of each, which are hashed as little-endian int64.
    """
    digest = PiecesDigest("seedregistry.split/1")
    for indices in subsets:
        digest.add(np.asarray(indices, dtype="<i8"))
    return digest.hexdigest()


def split_dataset(
    dataset: Any,
    lengths: Sequence[Union[int, float]],
    generator: torch.Generator,
) -> Tuple[List[Subset[Any]], str]:
    """Return what ``random_split`` returns with the generator, and the digest of the indices.

    Args:
        dataset: a dataset with a length.
        lengths: sample counts that add up to the dataset's, or fractions that add up to 1.
        generator: on the CPU.

    Raises:
        ComponentCreationError: ``random_split`` refuses the lengths, or the dataset has none.
    """
    try:
        lengths = list(lengths)
        if any(length < 0 for length in lengths):
            # random_split takes it and returns nonsense.
            raise ValueError("A length is negative.")  # noqa: TRY301
        # random_split draws on the default device, and the generator is the CPU's.
        with torch.device("cpu"):
            subsets = random_split(dataset, lengths, generator=generator)
    except (TypeError, ValueError) as error:
        size = len(dataset) if hasattr(dataset, "__len__") else "no length"
        message = (
            f"The dataset ({size}) cannot be split into {lengths!r}: {error} Lengths are sample "
            "counts that add up to the dataset's, or fractions that add up to 1."
        )
        raise ComponentCreationError(message, purpose="split") from error
    return subsets, indices_digest([subset.indices for subset in subsets])
