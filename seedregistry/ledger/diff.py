"""What two ledgers differ in: the first stream, then purpose by purpose, then circumstance."""

from __future__ import annotations

from collections import Counter
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    TypeVar,
)

import attrs

from seedregistry.common import digest
from seedregistry.common.identities import QualifiedId, StreamId
from seedregistry.ledger import codec, records
from seedregistry.ledger.stretches import count
from seedregistry.ledger.tables import show_id

if TYPE_CHECKING:
    from seedregistry.ledger.records import InstanceId
    from seedregistry.ledger.stretches import Stretch

_R = TypeVar("_R", bound=records.Record)

_SHOWN_IDS = 3
_SHOWN_VALUES = 120

_SHOWN_OTHERWISE = frozenset({"built", "derivation", "determinism", "note", "run"})

Path = Tuple[str, ...]
"""The way to a registry: its root, then the streams of the children down to it.

The root is a master seed; ``""`` where the ledger has one root, so that two trainings that differ
in the master seed alone have streams of equal names.
"""

Name = Tuple[Path, StreamId]
"""A stream by the path of its registry, so that those of two master seeds can be compared."""


@attrs.frozen(kw_only=True)
class StreamDiff:
    """A stream that one ledger lacks, or that has another seed in the other.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> first, second = SeedRegistry(42), SeedRegistry(43)
        >>> seeds = first.seed("model", "training"), second.seed("model", "training")
        >>> change = first.ledger.diff(second.ledger).first
        >>> change.change, change.seed, change.other_seed == seeds[1]
        ('reseeded', 1958051794, True)

    Attributes:
        change: ``"added"`` (only the other has it), ``"removed"`` (the other lacks it) or
            ``"reseeded"``.
        purpose: its purpose.
        instance_id: its instance id.
        seed: its seed in this ledger, or None.
        other_seed: its seed in the other, or None.
    """

    change: str
    purpose: str
    instance_id: InstanceId
    seed: Optional[int]
    other_seed: Optional[int]

    def __str__(self) -> str:
        name = self.purpose if self.instance_id is None else f"{self.purpose} {self.instance_id!r}"
        if self.change == "reseeded":
            return f"{name}: seed {self.seed} and {self.other_seed}"
        return f"{name}: {self.change}, seed {self.other_seed if self.seed is None else self.seed}"


@attrs.frozen(kw_only=True)
class PurposeDiff:
    """What differs among the streams of one purpose.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> first, second = SeedRegistry(42), SeedRegistry(42)
        >>> models = [
        ...     registry.model(torch.nn.Linear, 3, size, instance_id="training")
        ...     for registry, size in ((first, 2), (second, 4))
        ... ]
        >>> [purpose] = first.ledger.diff(second.ledger).purposes
        >>> print(purpose)
        model: 1 rebuilt with other weights, parameters (training)

    Attributes:
        purpose: the purpose.
        added: number of streams that only the other ledger has.
        removed: number of streams that the other ledger lacks.
        reseeded: number of streams with another seed.
        rebuilt: number of streams of both from which something else was built, or not as often.
        rebuilt_in: what differs in what was built: ``"digest"`` for a model with other weights,
            ``"times"``, ...
        instance_ids: of all these streams, as text.
    """

    purpose: str
    added: int
    removed: int
    reseeded: int
    rebuilt: int
    rebuilt_in: Tuple[str, ...]
    instance_ids: Tuple[str, ...]

    def __str__(self) -> str:
        counts = [
            f"{getattr(self, name)} {name}"
            for name in ("added", "removed", "reseeded")
            if getattr(self, name)
        ]
        if self.rebuilt:
            what = [
                "weights" if name == "digest" and self.purpose == "model" else name
                for name in self.rebuilt_in
            ]
            counts.append(f"{self.rebuilt} rebuilt with other {', '.join(what)}")
        shown = ", ".join(self.instance_ids[:_SHOWN_IDS])
        rest = len(self.instance_ids) - _SHOWN_IDS
        return (
            f"{self.purpose}: {', '.join(counts)} "
            f"({shown}{f' and {rest} more' if rest > 0 else ''})"
        )


@attrs.frozen(kw_only=True)
class LedgerDiff:
    """What two ledgers differ in: the result of :meth:`seedregistry.Ledger.diff`.

    False when the contents are equal, whatever the circumstances.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> first, second = SeedRegistry(42), SeedRegistry(42)
        >>> bool(first.ledger.diff(second.ledger))
        False
        >>> first.note(lr=0.1)
        >>> second.note(lr=0.2)
        >>> difference = first.ledger.diff(second.ledger)
        >>> bool(difference), difference.settings
        (True, ('note lr: 0.1 and 0.2',))

    Attributes:
        first: the first stream, in this ledger's order and then in the other's, that differs; or
            None.
        purposes: what differs, by purpose.
        settings: master seeds, schemes, notes and determinism that differ, a line each.
        entries: entries of other kinds that only one of the two has, a line for each kind.
        circumstance: versions and environment that differ, a line each.
        digests: of this ledger's content and of the other's.
    """

    first: Optional[StreamDiff]
    purposes: Tuple[PurposeDiff, ...]
    settings: Tuple[str, ...]
    entries: Tuple[str, ...]
    circumstance: Tuple[str, ...]
    digests: Tuple[str, str]

    def __bool__(self) -> bool:
        return self.digests[0] != self.digests[1]

    def __str__(self) -> str:
        short = [value[: digest.SHORT_LENGTH] for value in self.digests]
        lines = [
            f"contents differ: digests {short[0]} and {short[1]}"
            if self
            else f"contents are equal: digest {short[0]}"
        ]
        if self.first is not None:
            lines.append(f"first: {self.first}")
        lines.extend([*self.settings, *map(str, self.purposes), *self.entries])
        lines.extend(f"circumstance: {line}" for line in self.circumstance)
        return "\n".join(lines)


def compare(ours: Sequence[Stretch], theirs: Sequence[Stretch]) -> LedgerDiff:
    """Return what two ledgers differ in, each given as its stretches."""
    sides = (_Side(ours), _Side(theirs))
    changes = list(_changes(*sides))
    rebuilt = dict(_compare_builds(*sides))
    return LedgerDiff(
        first=changes[0][1] if changes else None,
        purposes=tuple(_sum_by_purpose(changes, rebuilt)),
        settings=tuple(_compare_sets(sides[0].settings(), sides[1].settings())),
        entries=tuple(_other_entries(*sides)),
        circumstance=tuple(_compare_sets(sides[0].circumstance(), sides[1].circumstance())),
        digests=(sides[0].digest, sides[1].digest),
    )


class _Side:
    """One of the two ledgers, by what can be compared."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self.records, self.digest = count(stretches)
        runs = self.of(records.Run)
        # By the master seed of each child: that of its parent, and what the child is called there.
        self._children = {
            run.master_seed: (run.parent, f"{run.purpose} {show_id(run.instance_id)}")
            for run in runs
            if run.parent is not None
        }
        self._roots = list(dict.fromkeys(run.master_seed for run in runs if run.parent is None))
        self._paths: Dict[int, Path] = {}

    def of(self, cls: Type[_R]) -> List[_R]:
        """Return the records of a class that count."""
        return records.select(self.records, cls)

    def path(self, master_seed: int) -> Path:
        """Return the way to the registry of a master seed."""
        path = self._paths.get(master_seed)
        if path is None:
            down: List[str] = []
            at, seen = master_seed, {master_seed}
            # A forged file may say that two registries are each other's parents.
            while at in self._children and self._children[at][0] not in seen:
                at, step = self._children[at]
                down.append(step)
                seen.add(at)
            root = "" if [at] == self._roots else str(at)
            path = self._paths[master_seed] = (root, *reversed(down))
        return path

    def name(self, record: Any) -> Name:
        """Return the stream that a record is about."""
        return self.path(record.master_seed), QualifiedId.of(record).stream_id

    def streams(self) -> Dict[Name, records.Derivation]:
        """Return the first derivation of each stream."""
        streams: Dict[Name, records.Derivation] = {}
        for record in self.of(records.Derivation):
            streams.setdefault(self.name(record), record)
        return streams

    def settings(self) -> Dict[str, Set[str]]:
        """Return the values of each setting, as text: seeds, schemes, notes, determinism."""
        settings: Dict[str, Set[str]] = {"master seed": {str(seed) for seed in self._roots}}
        settings["scheme"] = {run.scheme for run in self.of(records.Run)}
        for note in self.of(records.Note):
            settings.setdefault(f"note {note.name}", set()).add(repr(note.value))
        for record in self.of(records.Determinism):
            filled = ", memory filled" if record.fill_uninitialized_memory else ""
            settings.setdefault("determinism", set()).add(f"{record.mode}{filled}")
        return settings

    def circumstance(self) -> Dict[str, Set[str]]:
        """Return the values of each fact outside the digest, as text."""
        facts: Dict[str, Set[str]] = {}
        for built in self.of(records.Built):
            if built.distribution:
                facts.setdefault(f"version of {built.distribution}", set()).add(built.version)
        for seen in self.of(records.EnvironmentSeen):
            for name, value in seen.values:
                facts.setdefault(name, set()).add(str(value))
        for generator in self.of(records.HandedOut):
            facts.setdefault("devices of generators", set()).add(generator.device)
        for setting in self.of(records.Determinism):
            for name, value in setting.switches:
                facts.setdefault(f"switch {name}", set()).add(str(value))
        for warning in self.of(records.Warned):
            facts.setdefault("warnings", set()).add(warning.category)
        return facts

    def others(self) -> Dict[str, Counter[str]]:
        """Return how often each content occurs that is in no other comparison, by kind.

        Paths stand in the place of master seeds.
        """
        contents: Dict[str, Counter[str]] = {}
        for record in self.records:
            kind = codec.kind_of(record)
            if kind in _SHOWN_OTHERWISE or codec.content(record) is None:
                continue
            data = dict(codec.encode(record)["content"])
            if "master_seed" in data and not isinstance(record, records.Unknown):
                data["master_seed"] = self.path(int(data["master_seed"]))
            contents.setdefault(kind, Counter())[repr(sorted(data.items()))] += 1
        return contents


def _changes(ours: _Side, theirs: _Side) -> Iterator[Tuple[Name, StreamDiff]]:
    """Yield the streams that differ, in our order and then in theirs."""
    mine, others = ours.streams(), theirs.streams()
    for name in dict.fromkeys([*mine, *others]):
        first, second = mine.get(name), others.get(name)
        if first is not None and second is not None:
            if first.seed == second.seed and first.scheme == second.scheme:
                continue
            change = "reseeded"
        else:
            change = "added" if first is None else "removed"
        yield (
            name,
            StreamDiff(
                change=change,
                **name[1]._asdict(),
                seed=None if first is None else first.seed,
                other_seed=None if second is None else second.seed,
            ),
        )


def _compare_builds(ours: _Side, theirs: _Side) -> Iterator[Tuple[Name, Set[str]]]:
    """Yield the streams from which both built, but other things, with the fields that differ."""
    products: Dict[Name, Tuple[List[Dict[str, str]], List[Dict[str, str]]]] = {}
    for index, side in enumerate((ours, theirs)):
        for built in side.of(records.Built):
            products.setdefault(side.name(built), ([], []))[index].append(_facts(built))

    streams = ours.streams().keys() & theirs.streams().keys()
    for name, (mine, others) in products.items():
        if name not in streams:
            continue
        # The order in which things are built counts for nothing.
        mine.sort(key=repr)
        others.sort(key=repr)
        pairs = zip(mine, others)
        fields = {
            key
            for first, second in pairs
            for key in {*first, *second}
            if first.get(key) != second.get(key)
        }
        if len(mine) != len(others):
            fields.add("times")
        if fields:
            yield name, fields


def _facts(built: records.Built) -> Dict[str, str]:
    facts = {"factory": built.factory, "drew": repr(built.drew), "distribution": built.distribution}
    return {**{name: repr(value) for name, value in built.description}, **facts}


def _sum_by_purpose(
    changes: Iterable[Tuple[Name, StreamDiff]], rebuilt: Dict[Name, Set[str]]
) -> Iterator[PurposeDiff]:
    by_purpose: Dict[str, Dict[Name, Optional[str]]] = {}
    for name, change in changes:
        by_purpose.setdefault(change.purpose, {})[name] = change.change
    for name in rebuilt:
        by_purpose.setdefault(name[1].purpose, {}).setdefault(name, None)
    for purpose, names in by_purpose.items():
        counts = Counter(names.values())
        built = [fields for name, fields in rebuilt.items() if name[1].purpose == purpose]
        yield PurposeDiff(
            purpose=purpose,
            added=counts["added"],
            removed=counts["removed"],
            reseeded=counts["reseeded"],
            rebuilt=len(built),
            rebuilt_in=tuple(sorted(set().union(*built))),
            instance_ids=tuple(_label(name) for name in names),
        )


def _label(name: Name) -> str:
    path, stream = name
    return "/".join([*(step for step in path if step), show_id(stream.instance_id)])


def _other_entries(ours: _Side, theirs: _Side) -> Iterator[str]:
    mine, others = ours.others(), theirs.others()
    for kind in sorted({*mine, *others}):
        first, second = mine.get(kind, Counter()), others.get(kind, Counter())
        only = sum((first - second).values()), sum((second - first).values())
        if any(only):
            yield f"{kind}: {only[0]} only in the first, {only[1]} only in the second"


def _compare_sets(mine: Dict[str, Set[str]], others: Dict[str, Set[str]]) -> Iterator[str]:
    for name in dict.fromkeys([*mine, *others]):
        first, second = mine.get(name, set()), others.get(name, set())
        if first != second:
            yield f"{name}: {_join(first)} and {_join(second)}"


def _join(values: Set[str]) -> str:
    text = ", ".join(sorted(values)) if values else "none"
    return text if len(text) <= _SHOWN_VALUES else f"{text[:_SHOWN_VALUES]}..."
