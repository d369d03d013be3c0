"""How records are written: an explicit table of kinds, and canonical JSON.

Canonical: UTF-8, keys sorted, no white space, no NaN. Integers of a record's own fields that can pass 2**53 (seeds, master
seeds) are strings; instance ids are tagged, ``null``, ``{"i": "7"}`` or ``{"s": "7"}``, because ``7`` and ``"7"`` are two ids.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple, Type

import attrs

from seedregistry.ledger import records

if TYPE_CHECKING:
    from seedregistry.ledger.records import Record

__all__ = ["KINDS", "canonical", "content", "encode", "kind_of", "tag_id"]

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

_KIND_OF = {cls: kind for kind, cls in KINDS.items()}


def tag_id(instance_id: records.InstanceId) -> Optional[Dict[str, str]]:
    """Return an instance id as it is written: null, ``{"i": digits}`` or ``{"s": text}``."""
    if instance_id is None:
        return None
    return {"s": instance_id} if isinstance(instance_id, str) else {"i": str(instance_id)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"f": repr(value)}
    return value


def _decimal(value: Optional[int]) -> Optional[str]:
    return None if value is None else str(value)


_SPECIAL: Dict[str, Callable[[Any], Any]] = {
    "instance_id": tag_id,
    "master_seed": _decimal,
    "parent": _decimal,
    "seed": _decimal,
}


def _field_table(cls: Type[Record]) -> Tuple[Tuple[str, Callable[[Any], Any], bool], ...]:
    return tuple(
        (field.name, _SPECIAL.get(field.name, _plain), bool(field.metadata.get("circumstance"))) for field in attrs.fields(cls)
    )


_FIELDS = {cls: _field_table(cls) for cls in KINDS.values()}


def kind_of(record: Record) -> str:
    """Return the name under which a record's class is written."""
    return _KIND_OF[type(record)]


def encode(record: Record) -> Dict[str, Any]:
    """Return a record as plain data: its kind, its content and, apart from it, its circumstance."""
    fields = _FIELDS[type(record)]
    encoded: Dict[str, Any] = {"kind": _KIND_OF[type(record)]}
    parts: Tuple[Dict[str, Any], Dict[str, Any]] = ({}, {})
    for name, encoder, is_circumstance in fields:
        parts[is_circumstance or not record.IS_CONTENT][name] = encoder(getattr(record, name))
    if parts[0]:
        encoded["content"] = parts[0]
    if parts[1]:
        encoded["circumstance"] = parts[1]
    return encoded


def content(record: Record) -> Optional[bytes]:
    """Return the canonical bytes of what the digest covers, or None for a record that is circumstance as a whole."""
    if not record.IS_CONTENT:
        return None
    own = {
        name: encoder(getattr(record, name)) for name, encoder, is_circumstance in _FIELDS[type(record)] if not is_circumstance
    }
    return canonical({"content": own, "kind": _KIND_OF[type(record)]})


def canonical(data: object) -> bytes:
    """Return data as canonical JSON: sorted keys, no white space, UTF-8."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
