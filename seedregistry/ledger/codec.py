"""How records are written: an explicit table of kinds, and canonical JSON.

Canonical: UTF-8, keys sorted, no white space, only the escapes that JSON demands, no NaN, floats as
``repr`` writes them. Integers of a record's own fields that can pass 2**53 (seeds, master seeds)
are strings; instance ids are tagged, ``null``, ``{"i": "7"}`` or ``{"s": "7"}``, because ``7`` and
``"7"`` are two ids.

``decode`` is the inverse of ``encode``, and strict: what it takes is written back byte for byte.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Optional, Tuple, Type

import attrs

from seedregistry.errors import LedgerError, LedgerFormatError
from seedregistry.ledger import chain, records

if TYPE_CHECKING:
    from seedregistry.ledger.records import Record

KINDS: Dict[str, Type[records.Record]] = {
    "audit": records.Audited,
    "built": records.Built,
    "derivation": records.Derivation,
    "determinism": records.Determinism,
    "environment": records.EnvironmentSeen,
    "epoch": records.EpochStarted,
    "handed-out": records.HandedOut,
    "late-seed": records.LateSeeded,
    "note": records.Note,
    "run": records.Run,
    "scope": records.Scoped,
    "split": records.Split,
    "state-loaded": records.StateLoaded,
    "state-saved": records.StateSaved,
    "warning": records.Warned,
}
"""The kinds that this version knows."""

FACTS = frozenset({"derivation", "determinism", "epoch", "note", "run", "scope", "split"})
"""Kinds that state a fact, which two processes that state it make no more true.

All other kinds are events, which are added up. The set is part of the format and never grows within
it: a reader takes a kind that it does not know for an event.
"""

_DEEPEST = 64

_ROOM_FOR_NAMES = 4096
_LONGEST_ESCAPE = 6
_LONGEST_NUMBER = 32
_SHOWN_NAME = 40

_KIND_OF = {cls: kind for kind, cls in KINDS.items()}

_DIGITS = re.compile(r"0|-?[1-9][0-9]{0,4299}")
"""A decimal integer in its one form, as long as ``sys.set_int_max_str_digits`` allows by default.

A longer one would be an error in some versions of Python and take quadratic time in the others.
"""

# What JSONEncoder itself calls for a string with ensure_ascii=False; in C where there is C. It
# escapes what JSON demands and nothing else: the escapes are part of the format.
_quote: Callable[[str], str] = json.encoder.encode_basestring  # type: ignore[attr-defined]
_write_json = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


# --- values ---------------------------------------------------------------------------------------


def tag_id(instance_id: records.InstanceId) -> Optional[Dict[str, str]]:
    """Return an instance id as it is written: null, ``{"i": digits}`` or ``{"s": text}``."""
    if instance_id is None:
        return None
    return {"s": instance_id} if isinstance(instance_id, str) else {"i": str(instance_id)}


def _untag_id(data: Any) -> records.InstanceId:
    if data is None:
        return None
    if type(data) is dict and len(data) == 1:
        if type(data.get("s")) is str:
            text: str = data["s"]
            return text
        if "i" in data:
            return _parse_decimal(data["i"])
    raise LedgerFormatError('an instance id is null, {"i": digits} or {"s": text}')


def _decimal(value: Optional[int]) -> Optional[str]:
    return None if value is None else str(value)


def _parse_decimal(data: Any) -> int:
    if type(data) is not str or not _DIGITS.fullmatch(data):
        raise LedgerFormatError("a seed or an integer id is a string of decimal digits")
    return int(data)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: a list for a tuple, an object for what is not finite."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"f": repr(value)}
    return value


_INFINITIES = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _value(data: Any) -> records.Value:
    """Return the value that JSON stands for, or refuse what ``_plain`` never returns."""
    cls = type(data)
    if cls is list:
        return tuple([_value(item) for item in data])
    if cls is dict:
        if len(data) == 1 and type(data.get("f")) is str and data["f"] in _INFINITIES:
            return _INFINITIES[data["f"]]
        raise LedgerFormatError(
            'an object inside a value is {"f": "inf"}, {"f": "-inf"} or {"f": "nan"}'
        )
    return data  # type: ignore[no-any-return]


def _pairs(data: Any) -> records.Pairs:
    pairs = _value(data)
    if type(pairs) is not tuple or not all(
        type(pair) is tuple and len(pair) == 2 and type(pair[0]) is str  # noqa: PLR2004 - a pair
        for pair in pairs
    ):
        raise LedgerFormatError("a description is a list of [name, value]")
    return pairs


def _exactly(cls: type, name: str) -> Callable[[Any], Any]:
    def check(data: Any) -> Any:
        # Not isinstance: True is an int, and would be written back as true.
        if type(data) is not cls:
            raise LedgerFormatError(f"expected {name}")
        return data

    return check


def _optional(decoder: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda data: None if data is None else decoder(data)


def _each(decoder: Callable[[Any], Any]) -> Callable[[Any], Tuple[Any, ...]]:
    def decode_each(data: Any) -> Tuple[Any, ...]:
        if type(data) is not list:
            raise LedgerFormatError("expected a list")
        return tuple([decoder(item) for item in data])

    return decode_each


# --- fields ---------------------------------------------------------------------------------------

_text, _number, _fact = (
    _exactly(str, "a string"),
    _exactly(int, "an integer"),
    _exactly(bool, "true or false"),
)


def _write_plain(value: Any) -> str:
    return _write_json(_plain(value))


def _write_decimal(value: Optional[int]) -> str:
    return "null" if value is None else f'"{value}"'


def _write_id(value: records.InstanceId) -> str:
    if value is None:
        return "null"
    return f'{{"s":{_quote(value)}}}' if isinstance(value, str) else f'{{"i":"{value}"}}'


# For each field the data that stands for a value, its JSON, and the way back. By name where an int
# is written as a string, since readers of JSON in other languages lose integers past 2**53; else by
# the annotation in the record class.
_Wire = Tuple[Callable[[Any], Any], Callable[[Any], str], Callable[[Any], Any]]

_BY_NAME: Dict[str, _Wire] = {
    "instance_id": (tag_id, _write_id, _untag_id),
    "master_seed": (_decimal, _write_decimal, _parse_decimal),
    "parent": (_decimal, _write_decimal, _optional(_parse_decimal)),
    "seed": (_decimal, _write_decimal, _parse_decimal),
}
_BY_TYPE: Dict[str, _Wire] = {
    "str": (_plain, _quote, _text),
    "int": (_plain, str, _number),
    "bool": (_plain, _write_plain, _fact),
    "Optional[str]": (_plain, _write_plain, _optional(_text)),
    "Tuple[str, ...]": (_plain, _write_plain, _each(_text)),
    "Tuple[int, ...]": (_plain, _write_plain, _each(_number)),
    "Pairs": (_plain, _write_plain, _pairs),
    "Value": (_plain, _write_plain, _value),
}

_Field = Tuple[str, str, Callable[[Any], Any], Callable[[Any], str], Callable[[Any], Any]]
_Table = Tuple[Tuple[_Field, ...], Tuple[_Field, ...]]


def _field_table(cls: Type[Record]) -> _Table:
    """Return the fields of circumstance and those of content, in the order of the file."""
    # By name, since a line is in canonical form: records may declare their fields in any order.
    halves: Tuple[list[_Field], list[_Field]] = ([], [])
    for field in sorted(attrs.fields(cls), key=lambda field: field.name):
        wire = _BY_NAME.get(field.name) or _BY_TYPE[str(field.type)]
        is_content = cls.IS_CONTENT and not field.metadata.get("circumstance")
        halves[is_content].append((field.name, f"{_quote(field.name)}:", *wire))
    return tuple(halves[0]), tuple(halves[1])


_TABLES = {cls: _field_table(cls) for cls in KINDS.values()}


# --- records --------------------------------------------------------------------------------------


def kind_of(record: Record) -> str:
    """Return the name under which a record's class is written."""
    return record.kind if isinstance(record, records.Unknown) else _KIND_OF[type(record)]


def encode(record: Record) -> Dict[str, Any]:
    """Return a record as plain data: its kind, its content and, apart from it, its circumstance."""
    if isinstance(record, records.Unknown):
        data: Dict[str, Any] = parse(record.body.encode())
        return data
    encoded: Dict[str, Any] = {"kind": _KIND_OF[type(record)]}
    circumstance, content = _TABLES[type(record)]
    if content:
        encoded["content"] = {
            name: encoder(getattr(record, name)) for name, _, encoder, _, _ in content
        }
    if circumstance:
        encoded["circumstance"] = {
            name: encoder(getattr(record, name)) for name, _, encoder, _, _ in circumstance
        }
    return encoded


def encode_line(record: Record) -> Tuple[bytes, Optional[bytes]]:
    """Return a record as canonical JSON, and the part of it that the digest covers.

    Returns:
        The bytes of ``canonical(encode(record))``, and those without the circumstance; None in
        their place for a record that is circumstance as a whole.
    """
    if isinstance(record, records.Unknown):
        return record.body.encode(), _content_of(record)

    # Put together from texts: by way of dicts it would take more than twice as long.
    circumstance, content = _TABLES[type(record)]
    before = content_text = ""
    if circumstance:
        fields = ",".join(
            [key + write(getattr(record, name)) for name, key, _, write, _ in circumstance]
        )
        before = f'"circumstance":{{{fields}}},'
    if content:
        fields = ",".join(
            [key + write(getattr(record, name)) for name, key, _, write, _ in content]
        )
        content_text = f'"content":{{{fields}}},'
    tail = f'{content_text}"kind":"{_KIND_OF[type(record)]}"}}'
    return _encode_text("{" + before + tail), _encode_text("{" + tail) if content else None


def may_be_long(values: Iterable[Any]) -> bool:
    """Return whether a record of these values may be longer than a line may be; seldom wrongly."""
    room = chain.LONGEST_LINE - _ROOM_FOR_NAMES
    rest = list(values)
    while rest and room >= 0:
        value = rest.pop()
        if isinstance(value, str):
            room -= _LONGEST_ESCAPE * len(value)
        elif isinstance(value, tuple):
            rest.extend(value)
        elif isinstance(value, int):
            room -= value.bit_length() // 3
        room -= _LONGEST_NUMBER
    return room < 0


def refuse_long(record: Record) -> None:
    """Refuse a record that would be longer than a line of a ledger may be.

    Raises:
        LedgerError: says what it is about.
    """
    if isinstance(record, records.Unknown):
        values: Iterable[Any] = (record.body,)
    else:
        values = [getattr(record, row[0]) for half in _TABLES[type(record)] for row in half]
    if not may_be_long(values):
        return

    size = len(chain.join(chain.START, encode_line(record)[0]))
    if size > chain.LONGEST_LINE:
        about = [
            repr(text if len(text) <= _SHOWN_NAME else f"{text[:_SHOWN_NAME]}…")
            for text in (getattr(record, name, None) for name in ("name", "purpose", "instance_id"))
            if isinstance(text, str)
        ]
        message = (
            f"The record {' '.join([kind_of(record), *about])} has {size} bytes, which is longer "
            f"than the {chain.LONGEST_LINE} that a line of a ledger may have. Note what "
            "identifies the data, such as its digest, instead of the data."
        )
        raise LedgerError(message)


def content(record: Record) -> Optional[bytes]:
    """Return the canonical bytes that the digest covers; None for circumstance as a whole."""
    return encode_line(record)[1]


def _content_of(record: records.Unknown) -> Optional[bytes]:
    data = parse(record.body.encode())
    data.pop("circumstance", None)
    return canonical(data) if "content" in data else None


def decode(data: Any) -> Record:
    """Return the record that plain data stand for; ``Unknown`` for a kind of another version.

    Raises:
        LedgerFormatError: not what ``encode`` returns.
    """
    if type(data) is not dict or type(data.get("kind")) is not str:
        raise LedgerFormatError("a record is an object with a kind")
    strange = sorted(map(str, data.keys() - {"circumstance", "content", "kind"}))
    if strange:
        raise LedgerFormatError(
            "a record has a circumstance, a content and a kind, and here also "
            f"{', '.join(strange)[:80]}"
        )
    for half in ("circumstance", "content"):
        if type(data.get(half, {})) is not dict:
            raise LedgerFormatError(f"the {half} of a record is an object")

    kind = data["kind"]
    cls = KINDS.get(kind)
    if cls is None:
        return records.Unknown(kind=kind, body=canonical(data).decode())

    fields: Dict[str, Any] = {}
    for half, table in zip(("circumstance", "content"), _TABLES[cls]):
        encoded = data.get(half, {})
        if (
            type(encoded) is not dict
            or encoded.keys() != {field[0] for field in table}
            or (half in data) != bool(table)
        ):
            names = ", ".join(field[0] for field in table) or "nothing"
            raise LedgerFormatError(f"the {half} of kind {kind!r} holds {names}")
        for name, _, _, _, decoder in table:
            fields[name] = _decode_field(decoder, encoded[name], f"{half}.{name} of kind {kind!r}")
    return cls(**fields)


def _decode_field(decoder: Callable[[Any], Any], data: Any, what: str) -> Any:
    try:
        return decoder(data)
    except LedgerFormatError as error:
        raise LedgerFormatError(f"{what}: {error}") from None


# --- JSON -----------------------------------------------------------------------------------------


def canonical(data: object) -> bytes:
    """Return data as canonical JSON: sorted keys, no white space, UTF-8.

    Raises:
        LedgerFormatError: it holds what canonical JSON has no form for.
    """
    try:
        return _write_json(data).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerFormatError(f"no canonical JSON: {type(error).__name__}") from None


def _encode_text(text: str) -> bytes:
    """Return text as UTF-8, with a question mark for what cannot be encoded.

    A call site may hold such, where the name of a script is no UTF-8. No record is lost for it.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace")


def _parse_int(digits: str) -> int:
    # 2**1024, the largest that a record holds, has 309 digits; a long one takes quadratic time.
    if len(digits) > 400:  # noqa: PLR2004 - the limit of the format
        raise LedgerFormatError(f"an integer of {len(digits)} digits")
    return int(digits)


def _refuse_depth(data: Any) -> None:
    """Refuse what is nested deeper than any record.

    Level by level, without recursion: what passes is safe for the functions that recur.
    """
    level = [data] if type(data) in (dict, list) else []
    for _ in range(_DEEPEST):
        level = [
            item
            for member in level
            for item in (member.values() if type(member) is dict else member)
            if type(item) in (dict, list)
        ]
        if not level:
            return
    raise LedgerFormatError("nested too deeply")


def _refuse_constant(name: str) -> None:
    raise LedgerFormatError(f"{name} is not JSON")


_read_json = json.JSONDecoder(parse_int=_parse_int, parse_constant=_refuse_constant).decode


def parse(text: bytes) -> Any:
    """Return the data of a JSON text. Whether it is canonical is seen by writing it again.

    Raises:
        LedgerFormatError: not UTF-8, not JSON, nested too deeply, or with a number that no record
            holds.
    """
    try:
        data = _read_json(text.decode())
        _refuse_depth(data)
        return data
    except UnicodeDecodeError as error:
        raise LedgerFormatError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise LedgerFormatError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise LedgerFormatError(f"not JSON: {error.msg} at character {error.pos}") from None
