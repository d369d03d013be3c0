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
    """Return a value as records hold it.

    Scalars as they are, sequences as tuples, mappings as sorted pairs.

    Numbers of NumPy and torch become python's. Functions and classes are kept by their qualified
    name and other objects by the name of their type, never by an address; so is what is nested more
    than 16 deep, or in itself. Text that UTF-8 cannot encode is escaped, and an int past 2**1024 is
    written in hexadecimal. Never raises.
    """
    cls = type(value)
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
    """A registry began. A child names its parent's master seed and the stream it came from.

    Attributes:
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
    """A stream was derived: its words and its 31-bit seed."""

    master_seed: int
    scheme: str
    purpose: str
    instance_id: InstanceId
    seed: int
    call_site: str = attrs.field(default="", metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class HandedOut(Record):
    """A generator at a stream's start was handed out.

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
    """A scope was opened at a stream's start, for the first time."""

    master_seed: int
    purpose: str
    instance_id: InstanceId
    call_site: str = attrs.field(default="", metadata=CIRCUMSTANCE)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Built(Record):
    """A component was built from a stream.

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

    Attributes:
        lengths: lengths of the parts, in samples.
        indices_digest: SHA-256 over the indices of each part, int64 little-endian.
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
    """A setting of the user's own, such as a learning rate."""

    name: str
    value: Value


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Determinism(Record):
    """The determinism switches were set.

    Attributes:
        mode: ``"off"``, ``"warn"`` or ``"strict"``, as asked for.
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
    """The environment of the process, from an allow-list."""

    IS_CONTENT: ClassVar[bool] = False

    values: Pairs


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Warned(Record):
    """A warning that concerns what repeats was issued: a reused stream, a mistyped purpose, ..."""

    IS_CONTENT: ClassVar[bool] = False

    category: str
    purpose: str = ""
    instance_id: InstanceId = None
    message: str = ""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Audited(Record):
    """An audit ended.

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

    After it, this seed was given to it.
    """

    IS_CONTENT: ClassVar[bool] = False

    kind: str
    seed: int


@attrs.frozen(kw_only=True, eq=False, repr=False)
class StateSaved(Record):
    """Generator states were saved.

    Attributes:
        entries: names of the generators.
    """

    IS_CONTENT: ClassVar[bool] = False

    entries: Tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class StateLoaded(Record):
    """Generator states were loaded.

    Attributes:
        entries: names of the generators.
    """

    IS_CONTENT: ClassVar[bool] = False

    entries: Tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Unknown(Record):
    """A record of a kind that this version does not know, as it stands in its file.

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
