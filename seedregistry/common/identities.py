"""What things go by: streams by their names, saved states by what must match."""

from __future__ import annotations

from typing import Any, Iterable, List, Mapping, NamedTuple, Protocol, Union

InstanceId = Union[None, int, str]


class StreamId(NamedTuple):
    """A stream of one registry: its purpose and its instance id.

    A dict key that holds nothing else alive, and equal to the plain pair. ``7`` and ``"7"`` are two
    ids and never equal; a bool, which would equal an int, is no instance id and is refused before
    one of these is made.
    """

    purpose: str
    instance_id: InstanceId


class _Named(Protocol):
    """A stream, or a record of the ledger that is about one."""

    @property
    def master_seed(self) -> int: ...

    @property
    def purpose(self) -> str: ...

    @property
    def instance_id(self) -> InstanceId: ...


class QualifiedId(NamedTuple):
    """A stream among those of several registries, such as a registry and its children.

    It adds the registry's master seed to the purpose and the instance id.
    """

    master_seed: int
    purpose: str
    instance_id: InstanceId

    @classmethod
    def of(cls, named: _Named) -> QualifiedId:
        """Return the identity of a stream, or of the stream that a record is about."""
        return cls(named.master_seed, named.purpose, named.instance_id)

    @property
    def stream_id(self) -> StreamId:
        """The stream in its own registry."""
        return StreamId(self.purpose, self.instance_id)


_MISSING = object()


def mismatches(actual: Mapping[Any, Any], expected: Mapping[str, Any]) -> List[str]:
    """Return the names under which a state does not have what is expected of it.

    A bool is not the int that it equals, and a name that is missing is a mismatch. What else the
    state has does not matter.

    Args:
        actual: the state that came.
        expected: what it must have.

    Returns:
        Names of ``expected``, in its order; empty where everything matches.
    """
    return [
        name for name, value in expected.items() if not _is_same(actual.get(name, _MISSING), value)
    ]


def _is_same(actual: object, expected: object) -> bool:
    return bool(actual == expected) and isinstance(actual, bool) == isinstance(expected, bool)


def show_mismatches(
    names: Iterable[str],
    actual: Mapping[Any, Any],
    expected: Mapping[str, Any],
    *,
    there: str = "",
    here: str,
    longest: int = 0,
) -> str:
    """Return a piece of a message that shows both values for each name.

    It reads ``batch_size is 4 in the state and 8 here``, and goes on so for the other names.

    Args:
        names: what :func:`mismatches` returned.
        actual: the state that came.
        expected: what it must have.
        there: where the actual value is, such as ``"in the state"``; ``""`` leaves it unsaid.
        here: where the expected one is, such as ``"here"``.
        longest: cut values after so many characters, as digests may be; 0 does not.
    """

    def show(values: Mapping[Any, Any], name: str) -> str:
        if name not in values:
            return "missing"
        return str(values[name])[:longest] if longest else repr(values[name])

    place = f" {there}" if there else ""
    return "; ".join(
        f"{name} is {show(actual, name)}{place} and {show(expected, name)} {here}" for name in names
    )
