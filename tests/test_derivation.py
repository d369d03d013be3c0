"""Every derivation rule, against frozen vectors and against an independent writing of the rule."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedregistry import derivation
from seedregistry.errors import InvalidNameError, InvalidOptionError, InvalidSeedError

VECTORS = json.loads(
    (Path(__file__).parent / "data" / "derivation.json").read_text(encoding="utf-8")
)

master_seeds = st.integers(0, 2**128 - 1)
names = (
    st.text(min_size=1, max_size=20)
    .filter(lambda text: text.isprintable() or True)
    .filter(lambda text: not any(0xD800 <= ord(c) <= 0xDFFF for c in text))
)
instance_ids = st.one_of(st.none(), st.integers(-(2**70), 2**70), names, st.just(""))
coordinates = st.lists(
    st.one_of(st.integers(0, 2**70), names, st.just("")), min_size=1, max_size=4
).map(tuple)


# The rules again, written on their own from the text of the design.


def ref_field(value: object) -> bytes:
    kind, payload = {
        type(None): (b"n", b""),
        int: (b"i", str(value).encode()),
        str: (b"s", str(value).encode()),
    }[type(value)]
    return kind + struct.pack(">I", len(payload)) + payload


def ref_documented(master: int, purpose: str, instance: object) -> int:
    text = f"{master}_{purpose}" + ("" if instance is None else f"_{instance}")
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest()[:8], 16) % 2**31


def ref_key(master: int, purpose: str, instance: object) -> bytes:
    return hashlib.sha256(
        b"seedregistry/1" + ref_field(master) + ref_field(purpose) + ref_field(instance)
    ).digest()


def ref_position(key: bytes, where: list) -> bytes:
    return hashlib.sha256(
        b"seedregistry/1/at" + key + b"".join(ref_field(c) for c in where)
    ).digest()


def ref_child(key: bytes) -> int:
    return int(hashlib.sha256(b"seedregistry/1/child" + key).hexdigest()[:32], 16)


def words(vector: dict) -> tuple:
    return int(vector["master_seed"]), vector["purpose"], vector["instance_id"]


def test_there_are_enough_vectors():
    """At least twenty frozen vectors stand for every rule."""
    assert len(VECTORS["streams"]) >= 24
    assert len(VECTORS["positions"]) >= 20
    assert {
        "seed_31",
        "seed_256",
        "key",
        "child",
        "python",
        "numpy",
        "numpy_words",
        "mt19937_sha256",
        "philox",
    } <= set(VECTORS["streams"][0])


@pytest.mark.parametrize(
    "vector", VECTORS["streams"], ids=lambda v: f"{v['purpose'][:12]}-{v['instance_id']}"
)
def test_stream_vectors(vector):
    """Every rule from words to seeds gives the frozen value, and so does its independent
    writing."""
    master, purpose, instance = words(vector)
    key = derivation.stream_key(master, purpose, instance)
    assert (
        derivation.documented_seed(master, purpose, instance)
        == vector["seed_31"]
        == ref_documented(*words(vector))
    )
    assert key.hex() == vector["key"] == ref_key(*words(vector)).hex()
    assert derivation.SCHEMES["sha256-31"].derive(master, purpose, instance) == vector["seed_31"]
    assert derivation.SCHEMES["sha256-256"].derive(master, purpose, instance) == vector["seed_256"]
    assert int(vector["key"][:8], 16) % 2**31 == vector["seed_256"]
    assert derivation.child_master_seed(key) == int(vector["child"]) == ref_child(key)
    python = int(hashlib.sha256(b"seedregistry/1/python" + key).hexdigest(), 16)
    assert derivation.python_seed(key) == int(vector["python"]) == python
    legacy = hashlib.sha256(b"seedregistry/1/numpy" + key).digest()
    assert derivation.numpy_seed(key) == vector["numpy"] == struct.unpack(">I", legacy[:4])[0]
    assert (
        list(derivation.numpy_words(key))
        == vector["numpy_words"]
        == list(struct.unpack(">8I", legacy))
    )
    state = hashlib.shake_128(b"seedregistry/1/mt19937" + key).digest(2496)
    assert derivation.mt19937_words(key) == state
    assert hashlib.sha256(state).hexdigest() == vector["mt19937_sha256"]
    assert derivation.philox_seed(key) == int(vector["philox"]) == int(vector["key"][:16], 16)


@pytest.mark.parametrize("vector", VECTORS["positions"], ids=lambda v: str(v["coordinates"])[:30])
def test_position_vectors(vector):
    """The key and the seed of a position have the frozen values."""
    key = bytes.fromhex(vector["stream_key"])
    found = derivation.position_key(
        key, derivation.encode_coordinates(tuple(vector["coordinates"]))
    )
    assert found.hex() == vector["key"] == ref_position(key, vector["coordinates"]).hex()
    assert derivation.seed_of_key(found) == vector["seed"]


DESIGN_TABLE = [
    (42, "model", "training", 1958051794),
    (42, "optimizer", "training", 1689976434),
    (42, "dataloader", "training", 755280155),
    (42, "model", "lds_0", 489751117),
    (42, "model", "lds_1", 495878693),
    (0, "model", None, 1662071425),
    (42, "", None, 1215615489),
    (42, "model", 0, 216437524),
    (42, "model", "0", 216437524),
    (2**63, "ünï", "ß", 701279890),
]


@pytest.mark.parametrize(("master", "purpose", "instance", "seed"), DESIGN_TABLE)
def test_documented_table(master, purpose, instance, seed):
    """The values of the documents' own formula stay as they are for ever."""
    assert derivation.documented_seed(master, purpose, instance) == seed


@given(
    a=st.tuples(master_seeds, names, instance_ids), b=st.tuples(master_seeds, names, instance_ids)
)
def test_keys_are_injective(a, b):
    """Two streams have one key exactly when their words are equal in value and type."""
    same = [(type(x), x) for x in a] == [(type(x), x) for x in b]
    assert (derivation.stream_key(*a) == derivation.stream_key(*b)) == same


@given(a=coordinates, b=coordinates)
def test_positions_are_injective(a, b):
    """Two positions of a stream have one key exactly when their coordinates are equal in number,
    value and type."""
    same = [(type(x), x) for x in a] == [(type(x), x) for x in b]
    assert (derivation.encode_coordinates(a) == derivation.encode_coordinates(b)) == same


def test_known_ambiguities_are_kept_apart_by_keys():
    """What one text means twice under the documented formula has two keys."""
    assert derivation.documented_seed(1, "model", "a_b") == derivation.documented_seed(
        1, "model_a", "b"
    )
    assert derivation.stream_key(1, "model", "a_b") != derivation.stream_key(1, "model_a", "b")
    assert derivation.stream_key(1, "a", 7) != derivation.stream_key(1, "a", "7")
    assert derivation.stream_key(1, "a", None) != derivation.stream_key(1, "a", "")
    assert derivation.encode_coordinates((1,)) != derivation.encode_coordinates((1, 0))
    assert derivation.encode_coordinates((97,)) != derivation.encode_coordinates(("a",))
    assert derivation.stream_key(1, "é") != derivation.stream_key(1, "e\u0301")


@given(value=st.integers(0, 2**80))
def test_the_short_cut_for_small_ints_changes_no_byte(value):
    """The fast encoding of plain ints is the general one."""
    assert derivation.encode_coordinates((value,)) == derivation.encode_field(value)
    assert derivation.encode_coordinates((np.int64(value % 2**62),)) == derivation.encode_field(
        value % 2**62
    )


BAD_SEEDS = [
    -1,
    2**128,
    3.9,
    42.0,
    True,
    False,
    np.bool_(True),
    "5",
    "",
    None,
    float("nan"),
    b"3",
    [1],
    np.float32(1),
    1j,
]


@pytest.mark.parametrize("value", BAD_SEEDS, ids=repr)
def test_bad_master_seeds_are_refused(value):
    """Everything but an integer in range is a typed error that shows what came."""
    with pytest.raises(InvalidSeedError, match="master seed") as caught:
        derivation.validate_master_seed(value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.value


def test_the_message_for_a_digit_string_suggests_the_number():
    """A seed given as text gets the number to type."""
    with pytest.raises(InvalidSeedError, match=r"Did you mean 42\?"):
        derivation.validate_master_seed(" 42 ")


@pytest.mark.parametrize("value", ["", None, 3, b"model", "\ud800", ["model"]], ids=repr)
def test_bad_purposes_are_refused(value):
    """A purpose is a non-empty encodable str."""
    with pytest.raises(InvalidNameError):
        derivation.validate_purpose(value)


@pytest.mark.parametrize(
    "value", [1.5, True, np.bool_(False), (1,), b"x", "\udfff", object, np.float64(2)], ids=repr
)
def test_bad_instance_ids_are_refused(value):
    """An instance id is None, an int or an encodable str."""
    with pytest.raises(InvalidNameError):
        derivation.validate_instance_id(value)


@pytest.mark.parametrize("value", [-1, True, 1.0, None, (1,), "\ud800", np.int64(-3)], ids=repr)
def test_bad_coordinates_are_refused(value):
    """A coordinate is an int >= 0 or an encodable str, on the short path and on the long one."""
    with pytest.raises(InvalidNameError):
        derivation.encode_coordinates((0, value))
    with pytest.raises(InvalidNameError):
        derivation.validate_coordinates((value,))


def test_numpy_integers_become_ints():
    """NumPy integers are accepted and stored as python's."""
    assert type(derivation.validate_master_seed(np.uint64(7))) is int
    assert type(derivation.validate_instance_id(np.int8(-7))) is int
    assert [type(c) for c in derivation.validate_coordinates((np.int32(3), np.str_("x")))] == [
        int,
        str,
    ]


@pytest.mark.skipif(
    not hasattr(sys, "get_int_max_str_digits"), reason="this python has no limit on digits"
)
def test_ids_with_too_many_digits_are_refused():
    """An id that python refuses to write down is a typed error."""
    with pytest.raises(InvalidNameError, match="too many digits"):
        derivation.validate_instance_id(10**5000)


def test_unknown_schemes_are_refused():
    """A scheme is one of the named ones."""
    with pytest.raises(InvalidOptionError, match="sha256-31"):
        derivation.find_scheme("sha256")


SCRIPT = (
    "from seedregistry import SeedRegistry as R; print([R(42).seed('model', i) for i in "
    "('training', 0, '', None)])"
)


def test_hash_randomisation_changes_nothing():
    """Fresh interpreters with different PYTHONHASHSEED derive the same seeds."""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "random")
    }
    assert len(outputs) == 1
    assert "1958051794" in outputs.pop()
