"""What must be unique in a ledger: the owner of a seed, and the cut of a split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterable, Iterator, Optional, Set, Tuple, TypeVar

from seedregistry import derivation
from seedregistry.common.identities import QualifiedId
from seedregistry.ledger import records

if TYPE_CHECKING:
    from seedregistry.derivation import InstanceId
    from seedregistry.ledger.records import Record
    from seedregistry.ledger.stretches import Stretch

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Claims(Dict[_K, _V]):
    """A dict in which a key keeps the value that it was first claimed for. Pickles."""

    def claim(self, key: _K, value: _V) -> Optional[_V]:
        """Take a key for a value, where nothing else has it.

        Returns:
            The other value that has the key; None where it is the claimed one.
        """
        holder = self.setdefault(key, value)
        # Equal where one thing is claimed again: by another session of a journal, or after an
        # interrupt between claiming and recording.
        return None if holder is value or holder == value else holder

    def copy(self) -> _Claims[_K, _V]:
        """Return an independent copy, in one step: another thread may be claiming."""
        return type(self)(self)


class Owners(_Claims[int, Tuple[int, str, "InstanceId"]]):
    """The stream that owns each seed, among a registry and its children.

    Two streams of them with one seed would draw the same numbers. A stream is a
    :class:`QualifiedId`, or the plain tuple that it equals. The seeds are those of schemes that
    refuse shared ones; see :func:`claims_of`.
    """


class Schemes:
    """Under which scheme each origin derives the streams of a master seed.

    The record of a use does not say so, and one ledger may hold a master seed under two schemes:
    after a merge, where each origin has its scheme.
    """

    def __init__(self) -> None:
        self._at: Dict[Tuple[str, int], Set[str]] = {}
        self._of: Dict[int, Set[str]] = {}

    def add(self, origin: str, master_seed: int, scheme: str) -> None:
        """Say that an origin has a run, or a stream, of a master seed under a scheme."""
        self._at.setdefault((origin, master_seed), set()).add(scheme)
        self._of.setdefault(master_seed, set()).add(scheme)

    def find(self, origin: str, master_seed: int) -> Optional[str]:
        """Return the scheme of a use: ``""`` where none is recorded, None where two may be it."""
        here = self._at.get((origin, master_seed), set())
        # A worker may use streams that the process which it was copied from has derived.
        schemes = here if len(here) == 1 else self._of.get(master_seed, {""})
        return next(iter(schemes)) if len(schemes) == 1 else None


def schemes_of(stretches: Iterable[Stretch]) -> Schemes:
    """Return the schemes of the origins of a ledger."""
    schemes = Schemes()
    for stretch in stretches:
        of_origin = {
            (record.master_seed, record.scheme)
            for record in stretch.entries
            if isinstance(record, (records.Derivation, records.Run))
        }
        for master_seed, scheme in of_origin:
            schemes.add(stretch.origin, master_seed, scheme)
    return schemes


class Splits(_Claims[Tuple[QualifiedId, Tuple[int, ...], str], str]):
    """The digest of the indices of each split, by its stream, its lengths and its scheme.

    A stream cuts a dataset into the same lengths in one way. Another digest comes from another
    dataset, or from a torch that draws otherwise.
    """

    def claim_split(self, scheme: Optional[str], split: records.Split) -> Optional[str]:
        """Claim the indices of a recorded split; of two schemes each may have its cut.

        Args:
            scheme: the split's; None where it cannot be told, and nothing is claimed.
            split: the record.

        Returns:
            The other digest that is here; None where there is none.
        """
        if scheme is None:
            return None
        return self.claim((QualifiedId.of(split), split.lengths, scheme), split.indices_digest)


class Families:
    """Which registries belong together: each with its children."""

    def __init__(self) -> None:
        self._parents: Dict[int, int] = {}
        self._roots: Dict[int, int] = {}

    def add(self, master_seed: int, parent: int) -> None:
        """Say of a registry what its parent is."""
        self._parents.setdefault(master_seed, parent)
        self._roots.clear()

    def root(self, master_seed: int) -> int:
        """Return the master seed that the family of a registry began with."""
        root = self._roots.get(master_seed)
        if root is None:
            # A forged file may say that two registries are each other's parents.
            root, seen = master_seed, {master_seed}
            while root in self._parents and self._parents[root] not in seen:
                root = self._parents[root]
                seen.add(root)
            self._roots[master_seed] = root
        return root


def claims_of(entries: Iterable[Record]) -> Iterator[records.Derivation]:
    """Yield the derivations whose seed no other stream may have.

    Those are the ones under a scheme whose seeds can meet and whose streams with one seed would be
    one stream.
    """
    refusing = {name for name, scheme in derivation.SCHEMES.items() if scheme.refuses_shared_seeds}
    for record in entries:
        if isinstance(record, records.Derivation) and record.scheme in refusing:
            yield record
