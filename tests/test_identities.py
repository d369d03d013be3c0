"""What things go by: streams by their names, and saved states by what must match."""

from __future__ import annotations

import pickle

import pytest

from seedregistry import SeedRegistry
from seedregistry.common.identities import QualifiedId, StreamId, mismatches, show_mismatches


def test_a_number_and_its_text_are_two_streams():
    """7 and "7" are two ids, in a dict too, and each equals the plain pair."""
    number, text = StreamId("model", 7), StreamId("model", "7")
    assert len({number, text, StreamId("model", None)}) == 3
    assert number == ("model", 7)
    assert {("model", 7): 1}[number] == 1


def test_a_stream_and_its_record_have_one_identity():
    """A stream, and the record of its derivation, go by master seed, purpose and instance id."""
    registry = SeedRegistry(42)
    stream = registry.stream("model", "training")
    record = list(registry.ledger)[-1]
    assert QualifiedId.of(stream) == QualifiedId.of(record) == (42, "model", "training")
    assert QualifiedId.of(stream).stream_id == StreamId("model", "training")
    assert pickle.loads(pickle.dumps(QualifiedId.of(stream))) == QualifiedId.of(stream)


@pytest.mark.parametrize(
    ("actual", "names"),
    [
        ({"epoch": 1, "size": 4, "drop": False}, []),
        ({"epoch": 1, "size": 4, "drop": False, "more": 9}, []),
        ({"epoch": 2, "size": 4, "drop": True}, ["epoch", "drop"]),
        ({"epoch": True, "size": 4, "drop": 0}, ["epoch", "drop"]),
        ({"epoch": 1}, ["size", "drop"]),
        ({}, ["epoch", "size", "drop"]),
    ],
)
def test_mismatches(actual, names):
    """A name is named where the value is another, is missing, or equals as a bool does an int."""
    assert mismatches(actual, {"epoch": 1, "size": 4, "drop": False}) == names


def test_a_value_that_is_none_is_not_missing():
    """None is a value: it matches None, and a missing name does not."""
    assert mismatches({"order": None}, {"order": None}) == []
    assert mismatches({}, {"order": None}) == ["order"]


def test_both_values_are_shown():
    """A message shows what came and what was expected, and says so where a name is missing."""
    actual, expected = {"size": 4, "digest": "a" * 64}, {"size": 8, "digest": "b" * 64, "epoch": 1}
    shown = show_mismatches(["size", "epoch"], actual, expected, there="in the state", here="here")
    assert shown == "size is 4 in the state and 8 here; epoch is missing in the state and 1 here"
    shown = show_mismatches(["digest"], actual, expected, here="of this one", longest=4)
    assert shown == "digest is aaaa and bbbb of this one"
