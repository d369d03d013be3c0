"""Addresses: what a sampler sends to the dataset in the place of an index."""

from __future__ import annotations

from typing import Any, List, Tuple

from seedregistry.errors import SampleAddressError

Address = Tuple[int, int, int, Any, int]
"""(epoch, step, position, index, occurrence).

Plain tuples, because ``zip`` makes ten million of them in half a second.

Position counts the samples of the epoch over all ranks; occurrence is 0 where the index comes up
for the first time in the epoch, 1 for the second, ...
"""

_LENGTH = 5


class AddressedList(List[Any]):
    """Samples on the way from the dataset to the collate function, with the (epoch, step) that they belong to."""

    __slots__ = ("epoch", "step")

    epoch: int
    step: int


class AddressedSample:
    """One sample on the way to a collate function, where the loader makes no batches (``batch_size=None``)."""

    __slots__ = ("epoch", "sample", "step")

    def __init__(self, sample: Any, epoch: int, step: int) -> None:
        self.sample = sample
        self.epoch = epoch
        self.step = step


def check_addresses(addresses: Any) -> None:
    """Refuse what did not come from a sampler of ours.

    Raises:
        SampleAddressError: one of them is a plain index, or nothing like an address.
    """
    if set(map(type, addresses)) == {tuple} and set(map(len, addresses)) == {_LENGTH}:
        return
    for address in addresses:
        if type(address) is not tuple or len(address) != _LENGTH:
            message = (
                f"The dataset of a seeded loader was asked for {address!r} "
                f"({type(address).__name__}), without the epoch and step that its random numbers "
                "come from. Use loader.dataset.dataset[i] for the dataset itself, and "
                "loader.batch(epoch, step) for a batch as training sees it; a loader that is put "
                "together from these parts needs the sampler of the same loader."
            )
            raise SampleAddressError(message)
