"""Splits of a dataset, with a digest of their indices."""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple, Union

import numpy as np
import torch
from torch.utils.data import Subset, random_split

from seedregistry.common.digest import PiecesDigest
from seedregistry.errors import ComponentCreationError


def indices_digest(parts: Sequence[Sequence[int]]) -> str:
    """Return SHA-256 over the indices of each part: 64 hexadecimal digits.

    Indices as int64, little-endian.
    """
    digest = PiecesDigest("seedregistry.split/1")
    for part in parts:
        digest.add(np.asarray(part, dtype="<i8"))
    return digest.hexdigest()


def split_dataset(
    dataset: Any,
    lengths: Sequence[Union[int, float]],
    generator: torch.Generator,
) -> Tuple[List[Subset[Any]], str]:
    """Return what ``random_split`` returns with the generator, and the digest of the indices.

    Raises:
        ComponentCreationError: ``random_split`` refuses the lengths, or the dataset has none.
    """
    try:
        lengths = list(lengths)
        if any(length < 0 for length in lengths):
            raise ValueError("A length is negative.")  # noqa: TRY301 - random_split takes it and returns nonsense
        with torch.device(
            "cpu"
        ):  # random_split draws on the default device, and the generator is the CPU's
            parts = random_split(dataset, lengths, generator=generator)
    except (TypeError, ValueError) as error:
        size = len(dataset) if hasattr(dataset, "__len__") else "no length"
        message = (
            f"The dataset ({size}) cannot be split into {lengths!r}: {error} Lengths are sample "
            "counts that add up to the dataset's, or fractions that add up to 1."
        )
        raise ComponentCreationError(message, purpose="split") from error
    return parts, indices_digest([part.indices for part in parts])
