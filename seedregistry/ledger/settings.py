"""Settings of the user's own, as a note takes them: containers become lists and dicts."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, List, Mapping, Optional, Sequence

from seedregistry.errors import InvalidOptionError
from seedregistry.ledger import records

_DEEPEST = 20
_SEQUENCE = "list"
_NO_LISTS = (str, bytes, bytearray, memoryview, range)
_LIST_METHODS = ("__len__", "__getitem__", "__iter__", "index", "count")


def freeze_setting(name: str, value: object) -> records.Value:
    """Return a setting as a note holds it.

    Mappings, namespaces and instances of dataclasses become sorted pairs, and sequences tuples; by
    what they can do, so that those of configuration libraries are among them. A sequence of pairs
    begins with the text ``"list"``, which tells it from the mapping with these pairs. An empty
    sequence and an empty mapping are one value.

    Args:
        name: of the setting, for messages.
        value: str, int, float, bool, None, and containers of them.

    Raises:
        InvalidOptionError: a value of another type, or a container that cannot be read.
    """
    try:
        plain = _plain(value, 0)
    except Exception as error:
        message = (
            f"note({name}=...) got a {type(value).__name__} that cannot be read: "
            f"{type(error).__name__}: {error}"
        )
        raise InvalidOptionError(message) from error
    if not records.is_plain(plain):
        message = (
            f"note({name}=...) takes str, int, float, bool, None, and sequences, mappings, "
            f"namespaces and dataclasses of them; got {type(value).__name__}. Pass what "
            "identifies it, such as its name."
        )
        raise InvalidOptionError(message)
    return records.freeze(plain)


def _plain(value: Any, depth: int) -> Any:
    """Return containers as lists and dicts, and everything else as it is."""
    # What is deeper than a record may be, or in itself, is refused for that afterwards.
    if depth > _DEEPEST or isinstance(value, (str, int, float, type(None))):
        return value
    mapping = _mapping(value)
    if mapping is not None:
        return {key: _plain(mapping[key], depth + 1) for key in mapping.keys()}  # noqa: SIM118 - all that is asked of it
    if _is_sequence(value):
        return _tell_apart([_plain(item, depth + 1) for item in value])
    return value


def _mapping(value: Any) -> Optional[Mapping[Any, Any]]:
    cls = type(value)
    if isinstance(value, Mapping) or (hasattr(cls, "keys") and hasattr(cls, "__getitem__")):
        return value  # type: ignore[no-any-return]
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if dataclasses.is_dataclass(cls):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _is_sequence(value: Any) -> bool:
    if isinstance(value, _NO_LISTS) or hasattr(value, "ndim"):  # arrays and tensors are data
        return False
    return isinstance(value, Sequence) or all(hasattr(type(value), m) for m in _LIST_METHODS)


def _tell_apart(items: List[Any]) -> List[Any]:
    """Return the items of a sequence so that no mapping has the same record."""
    # As often as it takes: a sequence may itself begin with the text.
    rest = next((i for i, item in enumerate(items) if item != _SEQUENCE), len(items))
    is_pairs = all(
        isinstance(item, list) and len(item[1:]) == 1 and isinstance(item[0], str)
        for item in items[rest:]
    )
    return [_SEQUENCE, *items] if is_pairs and items[rest:] else items
