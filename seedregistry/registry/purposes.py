"""Purposes: the closed set of a registry, and names that look like a slip of the finger."""

from __future__ import annotations

from typing import FrozenSet, Iterable, Optional

from seedregistry import derivation
from seedregistry.common.options import did_you_mean, join_choices
from seedregistry.errors import InvalidOptionError, UnknownPurposeError

LIBRARY_PURPOSES: FrozenSet[str] = frozenset({"global", "split"})
"""Purposes of the library itself; they are in every closed set."""


def close_set(purposes: object) -> FrozenSet[str]:
    """Return the closed set that a user gave.

    Raises:
        InvalidOptionError: not a collection of names.
        InvalidNameError: a member is not a purpose.
    """
    if isinstance(purposes, str) or not isinstance(purposes, Iterable):
        message = (
            "purposes must be a collection of names, such as {'model', 'dropout'}; got "
            f"{purposes!r}."
        )
        raise InvalidOptionError(message)
    return frozenset(map(derivation.validate_purpose, purposes)) | LIBRARY_PURPOSES


def require_member(purpose: str, closed: FrozenSet[str]) -> None:
    """Refuse a purpose outside the closed set.

    Raises:
        UnknownPurposeError: names the set and the nearest member.
    """
    if purpose not in closed:
        message = (
            f"Purpose {purpose!r} is not in the closed set of this registry: "
            f"{join_choices(sorted(closed - LIBRARY_PURPOSES))}.{did_you_mean(purpose, closed)}"
        )
        raise UnknownPurposeError(message)


def is_single_edit(first: str, second: str) -> bool:
    """Return whether one edit turns one name into the other.

    An edit inserts, deletes or substitutes a letter, or swaps two neighbours.
    """
    if first == second or abs(len(first) - len(second)) > 1:
        return False
    shorter, longer = sorted((first, second), key=len)

    start = 0
    while start < len(shorter) and shorter[start] == longer[start]:
        start += 1

    if len(shorter) != len(longer):
        return shorter[start:] == longer[start + 1 :]
    if shorter[start + 1 :] == longer[start + 1 :]:
        return True
    swapped = shorter[start : start + 2] == longer[start : start + 2][::-1]
    return swapped and shorter[start + 2 :] == longer[start + 2 :]


def similar(purpose: str, candidates: Iterable[str]) -> Optional[str]:
    """Return the first candidate, in the order of the alphabet, that is one edit away, or None."""
    return next(
        (candidate for candidate in sorted(candidates) if is_single_edit(purpose, candidate)),
        None,
    )
