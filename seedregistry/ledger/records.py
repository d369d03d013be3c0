"""The records of a ledger: one frozen class per event.

Fields hold str, int, bool, float, None, tuples and other records only. A field with
``circumstance`` in its metadata says where and under what conditions something happened; it is kept
and shown, and it is outside the digest. All other fields are content. A class with ``IS_CONTENT =
False`` is circumstance as a whole.

How a record is written is in ``seedregistry.ledger.codec``.
"""

from __future__ import annotations

from typing import (
    Any,
    ClassVar,
    Iterable,
    List,
    Mapping,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import attrs

InstanceId = Union[None, int, str]
Scalar = Union[None, bool, int, float, str]
Value = Union[Scalar, Tuple[Any, ...]]
"""A value in a record: a scalar, or a tuple of values."""

Pairs = Tuple[Tuple[str, Value], ...]

CIRCUMSTANCE = {"circumstance": True}

_EXACT = (str, bool, int, float)
_AS_THEY_ARE = frozenset({type(None), bool, float})
_LARGEST_INT = 1 << 1024
_DEEPEST = 16


def is_plain(value: object, depth: int = 0) -> bool:  # noqa: PLR0911 - one return a kind
    """Return whether a value is a scalar that can be written, or holds such alone."""
    if isinstance(value, str):
        return _is_encodable(value)
    if isinstance(value, int):
        return abs(value) < _LARGEST_INT
    if value is None or isinstance(value, float):
        return True
    if depth > _DEEPEST:
        return False
    if isinstance(value, (list, tuple)):
        return all(is_plain(item, depth + 1) for item in value)
    if isinstance(value, Mapping):
        return all(
            isinstance(key, str) and is_plain(key) and is_plain(item, depth + 1)
            for key, item in value.items()
        )
    return getattr(value, "ndim", None) == 0 and type(_item(value)) in _EXACT


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _item(value: object) -> object:
    """Return the python number of a scalar of NumPy or torch, and None where there is none."""
    try:
        return value.item()  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a tensor on device meta, or an object that only looks like a scalar
        return None


def freeze(value: object, depth: int = 0) -> Value:  # noqa: PLR0911 - one return a kind
    """Return a value as records hold it. Never raises.

    Scalars stay as they are, sequences become tuples, and mappings sorted pairs. Numbers of NumPy
    and torch become python's. Functions and classes are kept by their qualified name, other objects
    by the name of their type and never by an address, which no second run repeats. What is nested
    more than 16 deep, or in itself, is kept by its type too. Text that UTF-8 cannot encode is
    escaped, and an int past 2**1024 is written in hexadecimal.
    """
    cls = type(value)
    # Exact types first: a subclass may have a repr or an equality of its own.
    if cls in _AS_THEY_ARE or (cls is str and value.isascii()):  # type: ignore[attr-defined]
        return value  # type: ignore[return-value]
    if isinstance(value, str):
        text = str.__str__(value)
        return text if _is_encodable(text) else text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int):
        return int(value) if abs(value) < _LARGEST_INT else hex(value)
    if isinstance(value, float):  # a subclass, such as numpy.float64
        return float(value)
    if depth <= _DEEPEST:
        frozen = _freeze_container(value, depth + 1)
        if frozen is not None:
            return frozen
    if getattr(value, "ndim", None) == 0 and type(_item(value)) in _EXACT:
        return freeze(_item(value))
    if callable(value) and not isinstance(value, Mapping):
        return (
            f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', cls.__qualname__)}"
        )
    return f"<{cls.__module__}.{cls.__qualname__}>"


def _freeze_container(value: object, depth: int) -> Optional[Tuple[Any, ...]]:
    if isinstance(value, (list, tuple)):
        return tuple([freeze(item, depth) for item in value])
    if isinstance(value, dict) or (not callable(value) and isinstance(value, Mapping)):
        if all(type(key) is str for key in value):
            return tuple([(freeze(key), freeze(value[key], depth)) for key in sorted(value)])
        # The type takes part in the sorting: as text, the keys 1 and "1" are equal.
        pairs = [
            (freeze(str(key)), type(key).__name__, freeze(item, depth))
            for key, item in value.items()
        ]
        return tuple([(key, item) for key, _, item in sorted(pairs, key=_by_key)])
    if isinstance(value, (set, frozenset)):
        return tuple(sorted((freeze(item, depth) for item in value), key=repr))
    return None


def _by_key(entry: Tuple[Any, ...]) -> Tuple[str, str]:
    return entry[0], entry[1]


# Comparison and display are written once, in the base: generated for each class they double the
# time of the import.


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Record:
    """Base of every record.

    Immutable; two records are equal when they are of one class and all their fields are equal.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Note, Record
        >>> registry = SeedRegistry(42)
        >>> registry.note(lr=0.1)
        >>> [type(record).__name__ for record in registry.ledger.find(Record)]
        ['Run', 'Note']
        >>> Note(name="lr", value=0.1) in registry.ledger
        True
    """

    IS_CONTENT: ClassVar[bool] = True

    def _values(self) -> Tuple[Any, ...]:
        return tuple([getattr(self, field.name) for field in attrs.fields(type(self))])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        shown = zip((field.name for field in attrs.fields(type(self))), self._values())
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Run(Record):
    """A registry began.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Run
        >>> registry = SeedRegistry(42)
        >>> fold = registry.child("fold", 0)
        >>> [(run.parent, run.purpose, run.instance_id) for run in registry.ledger.find(Run)]
        [(None, None, None), (42, 'fold', 0)]

    Attributes:
        master_seed: the registry's.
        scheme: the name of its scheme.
        parent: of a child, the master seed of its parent.
        purpose: of a child, that of the stream it came from.
        instance_id: of a child, that of the stream it came from.
        began: when, in UTC, as in ``"2026-01-31T12:00:00Z"``.
    """

    master_seed: int
    scheme: str
    parent: Optional[int] = None
    purpose: Optional[str] = None
    instance_id: InstanceId = None
    began: str = attrs.field(default="", metadata=CIRCUMSTANCE)
    call_site: str = attrs.field(default="", metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Derivation(Record):
    """A stream was derived: its names and its 31-bit seed.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Derivation
        >>> registry = SeedRegistry(42)
        >>> stream = registry.stream("model", "training")
        >>> [derived] = registry.ledger.find(Derivation)
        >>> derived.purpose, derived.instance_id, derived.seed
        ('model', 'training', 1958051794)
    """

    master_seed: int
    scheme: str
    purpose: str
    instance_id: InstanceId
    seed: int
    call_site: str = attrs.field(default="", metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class HandedOut(Record):
    """A generator at a stream's start was handed out.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import HandedOut
        >>> registry = SeedRegistry(42)
        >>> generator = registry.generator("noise", "training")
        >>> [handed_out] = registry.ledger.find(HandedOut)
        >>> handed_out.purpose, handed_out.kind
        ('noise', 'torch:cpu')

    Attributes:
        kind: ``"torch:cpu"``, ``"torch:cuda"``, ..., ``"numpy"`` or ``"python"``.
        device: the device with its index, for torch's.
    """

    master_seed: int
    purpose: str
    instance_id: InstanceId
    kind: str
    device: str = attrs.field(default="", metadata=CIRCUMSTANCE)
    call_site: str = attrs.field(default="", metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Scoped(Record):
    """A scope was opened at a stream's start, for the first time.

    A scope of a position leaves no record: the position itself says what it draws.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Scoped
        >>> registry = SeedRegistry(42)
        >>> dropout = registry.stream("dropout", "training")
        >>> with dropout.scope():
        ...     pass
        >>> with dropout.scope(3, 4):  # epoch 3, step 4
        ...     pass
        >>> [(scope.purpose, scope.instance_id) for scope in registry.ledger.find(Scoped)]
        [('dropout', 'training')]
    """

    master_seed: int
    purpose: str
    instance_id: InstanceId
    call_site: str = attrs.field(default="", metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Built(Record):
    """A component was built from a stream.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Built
        >>> registry = SeedRegistry(42)
        >>> model = registry.model(torch.nn.Linear, 3, 2, instance_id="training")
        >>> [built] = registry.ledger.find(Built)
        >>> built.factory, built.drew, dict(built.description)["parameters"]
        ('torch.nn.modules.linear.Linear', ('torch',), 8)

    Attributes:
        factory: qualified name of what built it.
        description: what the component says about the product, as sorted pairs.
        drew: the libraries whose generators moved while it was built; empty when it drew nothing.
        distribution: the installed distribution that the factory came from, or ``""``.
        version: its version.
    """

    master_seed: int
    purpose: str
    instance_id: InstanceId
    factory: str
    description: Pairs
    drew: Tuple[str, ...]
    distribution: str = ""
    version: str = attrs.field(default="", metadata=CIRCUMSTANCE)
    call_site: str = attrs.field(default="", metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Split(Record):
    """A dataset was split.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Split
        >>> registry = SeedRegistry(42)
        >>> train, test = registry.split(range(10), [0.8, 0.2])
        >>> [split.lengths for split in registry.ledger.find(Split)]
        [(8, 2)]

    Attributes:
        lengths: lengths of the subsets, in samples.
        indices_digest: SHA-256 over the indices of each subset, int64 little-endian.
    """

    master_seed: int
    purpose: str
    instance_id: InstanceId
    lengths: Tuple[int, ...]
    indices_digest: str
    call_site: str = attrs.field(default="", metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class EpochStarted(Record):
    """An epoch of a loader began, for the first time.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import EpochStarted
        >>> registry = SeedRegistry(42)
        >>> loader = registry.dataloader(range(4), instance_id="training", batch_size=2)
        >>> for epoch in range(2):
        ...     batches = list(loader)
        >>> [started.epoch for started in registry.ledger.find(EpochStarted)]
        [0, 1]

    Attributes:
        epoch: which one.
        indices_digest: SHA-256 over the dataset indices of the epoch in order, int64 little-endian.
    """

    master_seed: int
    purpose: str
    instance_id: InstanceId
    epoch: int
    indices_digest: str


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Note(Record):
    """A setting of the user's own, such as a learning rate.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Note
        >>> registry = SeedRegistry(42)
        >>> registry.note(lr=0.1, betas=[0.9, 0.999])
        >>> registry.ledger.find(Note)
        (Note(name='lr', value=0.1), Note(name='betas', value=(0.9, 0.999)))

    Attributes:
        name: of the setting.
        value: a scalar, or a tuple of values; a mapping is a tuple of sorted pairs.
    """

    name: str
    value: Value


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Determinism(Record):
    """The determinism switches were set.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Determinism
        >>> registry = SeedRegistry(42)
        >>> with registry.set_global_state(deterministic="off"):
        ...     pass
        >>> [setting] = registry.ledger.find(Determinism)
        >>> setting.mode, dict(setting.switches)["torch.deterministic_algorithms"]
        ('off', 'off')

    Attributes:
        mode: ``"off"``, ``"fast"``, ``"warn"`` or ``"strict"``, as asked for.
        fill_uninitialized_memory: as asked for.
        ineffective: what could not take effect, one line each.
        switches: what was read back, as pairs.
    """

    mode: str
    fill_uninitialized_memory: bool
    ineffective: Tuple[str, ...] = attrs.field(default=(), metadata=CIRCUMSTANCE)
    switches: Pairs = attrs.field(default=(), metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class EnvironmentSeen(Record):
    """The environment of the process, from an allow-list.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import EnvironmentSeen
        >>> registry = SeedRegistry(42)
        >>> registry.record_environment()
        >>> [seen] = registry.ledger.find(EnvironmentSeen)
        >>> sorted({"numpy", "python", "torch"} & dict(seen.values).keys())
        ['numpy', 'python', 'torch']

    Attributes:
        values: name and value of each fact, as pairs.
    """

    IS_CONTENT: ClassVar[bool] = False

    values: Pairs


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Warned(Record):
    """A warning that concerns what repeats was issued: a reused stream, a mistyped purpose, ...

    Example:
        >>> import warnings
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Warned
        >>> registry = SeedRegistry(42)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     first, second = registry.generator("noise"), registry.generator("noise")
        >>> [(warned.category, warned.purpose) for warned in registry.ledger.find(Warned)]
        [('StreamReuseWarning', 'noise')]

    Attributes:
        category: name of the warning's class; ``"TornLine"`` for a torn line that a journal cut
            off when it went on.
        purpose: of the stream that it is about, or ``""``.
        instance_id: of the stream that it is about.
        message: its text.
    """

    IS_CONTENT: ClassVar[bool] = False

    category: str
    purpose: str = ""
    instance_id: InstanceId = None
    message: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Audited(Record):
    """An audit ended.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import Audited
        >>> registry = SeedRegistry(42)
        >>> with registry.audit():
        ...     noise = torch.rand(2, generator=registry.generator("noise", "training"))
        >>> registry.ledger.find(Audited)
        (Audited(mode='error', undeclared=0, completed=True),)

    Attributes:
        mode: ``"error"`` or ``"warn"``.
        undeclared: draws that it saw outside every stream.
        completed: the block ran to its end; False when an exception ended it.
    """

    IS_CONTENT: ClassVar[bool] = False

    mode: str
    undeclared: int
    completed: bool


@attrs.frozen(kw_only=True, eq=False, repr=False)
class LateSeeded(Record):
    """An accelerator started inside a scope while no seed waited for it.

    When the scope ended, the accelerator got this seed. It follows from the master seed and the
    kind, so that a verification can derive it again.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.derivation import late_seed
        >>> from seedregistry.ledger import LateSeeded
        >>> registry = SeedRegistry(42)
        >>> registry.ledger.append(LateSeeded(kind="cuda", seed=late_seed(42, "cuda")))
        >>> str(registry.ledger.verify())
        'verified: 2 entries, 1 seed derived again, digest ..., not sealed'

    Attributes:
        kind: of the accelerator, such as ``"cuda"``.
        seed: int, ``0 <= seed < 2**64``.
    """

    IS_CONTENT: ClassVar[bool] = False

    kind: str
    seed: int


@attrs.frozen(kw_only=True, eq=False, repr=False)
class StateSaved(Record):
    """Generator states were saved.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import StateSaved
        >>> registry = SeedRegistry(42)
        >>> state = registry.state_dict()
        >>> [saved] = registry.ledger.find(StateSaved)
        >>> saved.entries[:2]
        ('numpy', 'python')

    Attributes:
        entries: names of the generators: the default ones, and those handed out and still held.
    """

    IS_CONTENT: ClassVar[bool] = False

    entries: Tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class StateLoaded(Record):
    """Generator states were loaded.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.ledger import StateLoaded
        >>> saved, resumed = SeedRegistry(42), SeedRegistry(42)
        >>> resumed.load_state_dict(saved.state_dict())
        >>> [len(resumed.ledger.find(StateLoaded)), len(saved.ledger.find(StateLoaded))]
        [1, 0]

    Attributes:
        entries: names of the generators whose states were set.
    """

    IS_CONTENT: ClassVar[bool] = False

    entries: Tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Unknown(Record):
    """A record of a kind that this version does not know, as it stands in its file.

    Example:
        >>> from seedregistry import Ledger
        >>> from seedregistry.ledger import Unknown
        >>> ledger = Ledger()
        >>> ledger.append(Unknown(kind="later", body='{"content":{"a":1},"kind":"later"}'))
        >>> ledger.save("ledger.jsonl")
        >>> Ledger.load("ledger.jsonl").find(Unknown)
        (Unknown(kind='later', body='{"content":{"a":1},"kind":"later"}'),)

    Attributes:
        kind: its kind.
        body: its canonical JSON, without the chain value. What stands under ``"content"`` in it
            counts as content.
    """

    kind: str
    body: str


_R = TypeVar("_R", bound=Record)


def select(entries: Iterable[Record], cls: Type[_R]) -> List[_R]:
    """Return the records of a class, in their order."""
    return [record for record in entries if isinstance(record, cls)]


USES = (Built, HandedOut, Scoped, Split)
"""Which records are a use of a stream? Those of what began at its start."""

FROM_STREAMS = (*USES, EpochStarted)
"""Which records need the derivation of their stream beside them? Uses, and epochs that began."""
