"""Putting ledgers together: what is new, what must go along with it, and what does not fit."""

from __future__ import annotations

from collections import defaultdict
from typing import DefaultDict, Dict, Iterable, Iterator, List, Sequence, Tuple

from seedregistry.common.identities import QualifiedId
from seedregistry.errors import LedgerIntegrityError, SeedCollisionError
from seedregistry.ledger import codec, records
from seedregistry.ledger.claims import Families, Owners, Splits, claims_of, schemes_of
from seedregistry.ledger.stretches import Place, Stretch, entries_of

Overlap = Tuple[Stretch, Stretch]


def missing(
    ours: Iterable[Stretch], others: Iterable[Stretch]
) -> Tuple[List[Stretch], List[Overlap]]:
    """Return what of the others is not among ours, and the pairs of stretches that overlap.

    The result does not depend on the order of the others.

    Args:
        ours: the stretches of the ledger that takes.
        others: those of all ledgers that give.

    Returns:
        The stretches to take, cut to what is missing; and each pair of a stretch that is here, or
        that was taken before, with one from the others that has entries of equal numbers.
    """
    stretches_at: Dict[Place, List[Stretch]] = {}
    for stretch in ours:
        stretches_at.setdefault(stretch.place, []).append(stretch)

    fresh: List[Stretch] = []
    overlaps: List[Overlap] = []
    # By what an entry is known by for ever, and not as the others come: so every order of merging
    # gives one result. Of stretches with one start the longest comes first, and is taken whole.
    for stretch in sorted(others, key=lambda stretch: (stretch.place, stretch.start, -stretch.end)):
        at = stretch.start  # the first entry that nothing here has yet
        present_stretches = stretches_at.setdefault(stretch.place, [])
        for present in sorted(present_stretches, key=lambda stretch: stretch.start):
            if present.end <= stretch.start or present.start >= stretch.end:
                continue
            overlaps.append((present, stretch))
            # A part that a worker hands over may lack what it did not use: gaps are filled.
            if at < present.start:
                fresh.append(stretch.cut(at, present.start))
            at = max(at, present.end)
        if at < stretch.end:
            fresh.append(stretch.cut(at, stretch.end))
        # From now on what is taken counts as here: two others may bring one entry.
        present_stretches.append(stretch)
    return fresh, overlaps


def context_of(inherited: Sequence[Stretch], added: Iterable[Stretch]) -> Iterator[Stretch]:
    """Yield the inherited entries without which those that were added cannot be checked.

    These are the runs, and the derivations of the streams that a child came from or that the added
    entries use. Each keeps its place and its number, so that whoever has it already takes it once.
    """
    used = {
        QualifiedId.of(record)
        for record in entries_of(added)
        if isinstance(record, records.FROM_STREAMS)
    }
    used.update(
        QualifiedId(record.parent, record.purpose, record.instance_id)
        for record in records.select(entries_of([*inherited, *added]), records.Run)
        if record.parent is not None and record.purpose is not None
    )

    for stretch in inherited:
        for serial, record in enumerate(stretch.entries, stretch.start):
            if isinstance(record, records.Run) or (
                isinstance(record, records.Derivation) and QualifiedId.of(record) in used
            ):
                yield stretch.cut(serial, serial + 1)


def refuse_contradictions(
    overlaps: Iterable[Overlap], ours: Iterable[Stretch], fresh: Iterable[Stretch]
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
        for serial, (here, there) in enumerate(pairs, start):
            # By their lines: NaN does not equal itself, and 1 equals True.
            if here is not there and codec.encode_line(here) != codec.encode_line(there):
                message = (
                    f"Entry {serial} of origin {present.origin}, session {present.session}, is "
                    f"{here!r} in one ledger and {there!r} in the other: one of the two was "
                    "changed. Verify both."
                )
                raise LedgerIntegrityError(message)
    _refuse_other_indices([*ours, *fresh])


def _refuse_other_indices(stretches: Sequence[Stretch]) -> None:
    """Refuse two splits of one stream into equal lengths that have different indices."""
    splits, schemes = Splits(), schemes_of(stretches)
    entries = ((stretch.origin, entry) for stretch in stretches for entry in stretch.entries)
    for origin, split in entries:
        if not isinstance(split, records.Split):
            continue
        earlier = splits.claim_split(schemes.find(origin, split.master_seed), split)
        if earlier is not None:
            name = f"({split.purpose!r}, {split.instance_id!r}) into {split.lengths}"
            message = (
                f"Split {name} has indices {split.indices_digest[:12]} in one ledger and "
                f"{earlier[:12]} in another: the datasets or the versions of torch differ. Nothing "
                "was merged."
            )
            raise LedgerIntegrityError(message)


def families_of(stretches: Iterable[Stretch]) -> Families:
    """Return which registries of the stretches belong together."""
    families = Families()
    for run in records.select(entries_of(stretches), records.Run):
        if run.parent is not None:
            families.add(run.master_seed, run.parent)
    return families


def refuse_collisions(
    ours: Sequence[Stretch], fresh: Sequence[Stretch], families: Families
) -> None:
    """Refuse two streams of one family that have one seed, under a scheme whose seeds can meet.

    Raises:
        SeedCollisionError: names both.
    """
    owners: DefaultDict[int, Owners] = defaultdict(Owners)  # by family
    arrivals = list(claims_of(entries_of(fresh)))
    for record in arrivals:
        _claim(owners, families, record)

    # Ours were checked when they were derived: only a seed that arrives can meet one of them.
    seeds = {record.seed for record in arrivals}
    if seeds:
        for record in claims_of(entries_of(ours)):
            if record.seed in seeds:
                _claim(owners, families, record)


def related_derivations(
    ours: Sequence[Stretch], fresh: Sequence[Stretch], families: Families
) -> List[records.Derivation]:
    """Return the fresh derivations in our families: their seeds must not be given away again."""
    roots = {
        families.root(run.master_seed) for run in records.select(entries_of(ours), records.Run)
    }
    return [
        record
        for record in claims_of(entries_of(fresh))
        if families.root(record.master_seed) in roots
    ]


def _claim(
    owners: DefaultDict[int, Owners], families: Families, record: records.Derivation
) -> None:
    stream = QualifiedId.of(record)
    owner = owners[families.root(record.master_seed)].claim(record.seed, stream)
    if owner is not None:
        first, second = owner[1:], stream[1:]
        message = (
            f"Streams {first!r} (master seed {owner[0]}) and {second!r} (master seed {stream[0]}) "
            f"have one seed, {record.seed}, under scheme {record.scheme!r}: in one experiment "
            "they draw the same numbers. Nothing was merged. Rename one and run it again, or use "
            "scheme='sha256-256'."
        )
        raise SeedCollisionError(message, seed=record.seed, first=first, second=second)
