"""Addresses: what a sampler sends to the dataset in the place of an index."""

from __future__ import annotations

from typing import Any, List, Tuple

from seedregistry.errors import SampleAddressError

Address = Tuple[int, int, int, Any, int]
"""(epoch, step, position, index, occurrence).

Position counts the samples of the epoch over all ranks. Occurrence is 0 where the index comes up
for the first time in the epoch, 1 for the second. Plain tuples, because ``zip`` makes ten million
of them in half a second.
"""

_LENGTH = 5


class AddressedList(List[Any]):
    """Samples of a batch on the way to the collate function, with their (epoch, step)."""

    __slots__ = ("epoch", "step")

    epoch: int
    step: int


class AddressedSample:
    """A sample that goes alone to where batches are collated, with its (epoch, step)."""

    __slots__ = ("epoch", "sample", "step")

    def __init__(self, sample: Any, epoch: int, step: int) -> None:
        self.sample = sample
        self.epoch = epoch
        self.step = step


def check_addresses(addresses: Any) -> None:
    """Refuse what did not come from the sampler of a seeded loader.

    Raises:
        SampleAddressError: a plain index is among them, or something unlike an address.
    """
    # Without a Python loop over a batch in which all is well.
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
