"""What things are known by: streams by their names, states by what must match."""

from __future__ import annotations

from typing import Any, Iterable, List, Mapping, NamedTuple, Union

InstanceId = Union[None, int, str]


class StreamId(NamedTuple):
    """A stream of one registry: its purpose and its instance id.

    A dict key that holds nothing else alive. ``7`` and ``"7"`` are two ids and never equal; a bool,
    which would equal an int, is no instance id and is refused before one of these is made.
    """

    purpose: str
    instance_id: InstanceId


class QualifiedId(NamedTuple):
    """A stream among those of several registries, such as a registry and its children.

    Master seed, purpose, instance id.
    """

    master_seed: int
    purpose: str
    instance_id: InstanceId

    @property
    def stream_id(self) -> StreamId:
        """The stream in its own registry."""
        return StreamId(self.purpose, self.instance_id)


_MISSING = object()


def mismatches(found: Mapping[Any, Any], expected: Mapping[str, Any]) -> List[str]:
    """Return the names under which a state that was found does not have what was expected, in the order of the latter.

    A bool is not the int that it equals, and a name that is missing is a mismatch.
    """
    return [
        name for name, value in expected.items() if not _is_same(found.get(name, _MISSING), value)
    ]


def _is_same(found: object, expected: object) -> bool:
    return bool(found == expected) and isinstance(found, bool) == isinstance(expected, bool)


def show_mismatches(
    names: Iterable[str],
    found: Mapping[Any, Any],
    expected: Mapping[str, Any],
    *,
    there: str,
    here: str,
    longest: int = 0,
) -> str:
    """Return a part of a message that shows both values for each name.

    ``batch_size is 4 in the state and 8 here``.

    Args:
        names: what :func:`mismatches` returned.
        found: the state that came.
        expected: what was expected of it.
        there: where the found value is, such as ``"in the state"``.
        here: where the expected one is, such as ``"here"``.
        longest: cut values after so many characters, as digests may be; 0 does not.
    """

    def show(values: Mapping[Any, Any], name: str) -> str:
        text = repr(values[name]) if name in values else "missing"
        return str(values.get(name))[:longest] if longest else text

    return "; ".join(
        f"{name} is {show(found, name)} {there} and {show(expected, name)} {here}" for name in names
    )
