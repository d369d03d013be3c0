"""Putting ledgers together: what is new, what must go along with it, and what does not fit."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Sequence, Set, Tuple

from seedregistry import derivation
from seedregistry.errors import LedgerIntegrityError, SeedCollisionError
from seedregistry.ledger import codec, records
from seedregistry.ledger.parts import Part, Place
from seedregistry.ledger.verification import Families, Words, source_of, words_of

Overlap = Tuple[Part, Part]


def missing(own: Iterable[Part], others: Iterable[Part]) -> Tuple[List[Part], List[Overlap]]:
    """Return what of the others is not among our own parts, and the pairs of parts that overlap.

    The result does not depend on the order of the others.
    """
    known: Dict[Place, List[Part]] = {}
    for part in own:
        known.setdefault(part.place, []).append(part)
    found: List[Part] = []
    overlaps: List[Overlap] = []
    for part in sorted(others, key=lambda part: (part.place, part.start, -part.end)):
        at = part.start
        present_parts = known.setdefault(part.place, [])
        for present in sorted(present_parts, key=lambda part: part.start):
            if present.end <= part.start or present.start >= part.end:
                continue
            overlaps.append((present, part))
            if at < present.start:
                found.append(part.cut(at, present.start))
            at = max(at, present.end)
        if at < part.end:
            found.append(part.cut(at, part.end))
        present_parts.append(part)
    return found, overlaps


def context_of(inherited: Sequence[Part], own: Iterable[Part]) -> Iterator[Part]:
    """Return the inherited entries without which our own cannot be checked.

    These are the runs, and the derivations of streams that our own or the runs use.
    """
    used = {
        words_of(record)
        for part in own
        for record in part.entries
        if isinstance(record, records.USES)
    }
    for part in (*inherited, *own):
        for record in part.entries:
            if (
                isinstance(record, records.Run)
                and record.parent is not None
                and record.purpose is not None
            ):
                used.add(source_of(record))
    for part in inherited:
        for serial, record in enumerate(part.entries, part.start):
            if isinstance(record, records.Run) or (
                isinstance(record, records.Derivation) and words_of(record) in used
            ):
                yield part.cut(serial, serial + 1)


def refuse_contradictions(
    overlaps: Iterable[Overlap], own: Iterable[Part], fresh: Iterable[Part]
) -> None:
    """Refuse two different entries at one place, and splits of one stream with two sets of indices.

    Raises:
        LedgerIntegrityError: says which.
    """
    for present, other in overlaps:
        start, end = max(present.start, other.start), min(present.end, other.end)
        pairs = zip(
            present.entries[start - present.start : end - present.start],
            other.entries[start - other.start :],
        )
        for serial, (one, two) in enumerate(pairs, start):
            if one is not two and codec.written(one) != codec.written(
                two
            ):  # NaN is not itself, and 1 is True
                message = (
                    f"Entry {serial} of origin {present.origin}, session {present.session}, is "
                    f"{one!r} in one ledger and {two!r} in the other: one of the two was changed. "
                    "Verify both."
                )
                raise LedgerIntegrityError(message)
    _refuse_other_indices([*own, *fresh])


def _refuse_other_indices(parts: Iterable[Part]) -> None:
    known: Dict[Tuple[Any, ...], str] = {}
    splits = (
        record for part in parts for record in part.entries if isinstance(record, records.Split)
    )
    for split in splits:
        before = known.setdefault((*words_of(split), split.lengths), split.indices_digest)
        if before != split.indices_digest:
            name = f"({split.purpose!r}, {split.instance_id!r}) into {split.lengths}"
            message = (
                f"Split {name} has indices {split.indices_digest[:12]} in one ledger and "
                f"{before[:12]} in another: the datasets or the versions of torch differ. Nothing "
                "was merged."
            )
            raise LedgerIntegrityError(message)


def families_of(parts: Iterable[Part]) -> Families:
    """Return which registries of the parts belong together."""
    families = Families()
    for part in parts:
        for record in part.entries:
            if isinstance(record, records.Run) and record.parent is not None:
                families.add(record.master_seed, record.parent)
    return families


def refuse_collisions(own: Sequence[Part], fresh: Sequence[Part], families: Families) -> None:
    """Refuse two streams of one family that have one seed, under a scheme whose seeds can meet.

    Raises:
        SeedCollisionError: names both.
    """
    owners: Dict[Tuple[int, int], Words] = {}
    seeds: Set[int] = set()
    for record in _derivations(fresh):
        seeds.add(record.seed)
        _claim(owners, families, record)
    if seeds:
        for record in _derivations(own):
            if record.seed in seeds:
                _claim(owners, families, record)


def own_derivations(
    own: Sequence[Part], fresh: Sequence[Part], families: Families
) -> List[records.Derivation]:
    """Return what is fresh and of a family that our own has.

    Those whose seeds must not be given away again.
    """
    roots = {
        families.root(record.master_seed)
        for part in own
        for record in part.entries
        if isinstance(record, records.Run)
    }
    return [record for record in _derivations(fresh) if families.root(record.master_seed) in roots]


def _derivations(parts: Iterable[Part]) -> Iterator[records.Derivation]:
    refusing = {name for name, scheme in derivation.SCHEMES.items() if scheme.refuses_shared_seeds}
    for part in parts:
        for record in part.entries:
            if isinstance(record, records.Derivation) and record.scheme in refusing:
                yield record


def _claim(
    owners: Dict[Tuple[int, int], Words], families: Families, record: records.Derivation
) -> None:
    words = words_of(record)
    owner = owners.setdefault((families.root(record.master_seed), record.seed), words)
    if owner != words:
        first, second = owner[1:3], words[1:3]
        message = (
            f"Streams {first!r} (master seed {owner[0]}) and {second!r} (master seed {words[0]}) "
            f"have one seed, {record.seed}, under scheme {record.scheme!r}: in one experiment "
            "they draw the same numbers. Nothing was merged. Rename one and run it again, or use "
            "scheme='sha256-256'."
        )
        raise SeedCollisionError(message, seed=record.seed, first=first, second=second)
