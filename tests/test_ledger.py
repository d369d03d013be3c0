"""The ledger in memory: records, content and circumstance, digest."""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import json
import pickle
import threading
import types

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seedregistry import Ledger, SeedRegistry
from seedregistry.components import Component
from seedregistry.errors import InvalidOptionError, LedgerError
from seedregistry.ledger import (
    Built,
    Derivation,
    HandedOut,
    Note,
    Record,
    Run,
    Unknown,
    codec,
    records,
)


def experiment(master: int = 42, *, width: int = 4, order: int = 0) -> SeedRegistry:
    registry = SeedRegistry(master)
    registry.note(batch_size=32, lr=0.1)

    def model():
        return registry.model(nn.Linear, 3, width, instance_id="training")

    if order:
        registry.seed("dropout")
        net = model()
    else:
        net = model()
        registry.seed("dropout")
    registry.optimizer(torch.optim.SGD, net.parameters(), instance_id="training", lr=0.1)
    return registry


def test_records_are_frozen_and_plain():
    """Every record class is frozen, and every field holds str, int, bool, float, None or tuples."""
    registry = experiment()
    registry.generator("noise", "x")
    registry.split(range(10), [4, 6])
    for record in registry.ledger:
        assert isinstance(record, Record)
        for field in attrs.fields(type(record)):
            check_plain(getattr(record, field.name))
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            record.purpose = "x"


def check_plain(value) -> None:
    if isinstance(value, tuple):
        for item in value:
            check_plain(item)
    else:
        assert value is None or type(value) in (str, int, bool, float), value


def test_every_record_class_has_a_kind():
    """The table of kinds is complete, and every class and kind is in it once."""
    classes = {
        cls for cls in vars(records).values() if isinstance(cls, type) and issubclass(cls, Record)
    }
    classes -= {Record, Unknown}  # the base, and what stands for all other kinds
    assert set(codec.KINDS.values()) == classes
    assert len(codec.KINDS) == len(classes)


def test_equal_runs_have_equal_digests():
    """Two runs of one experiment have one digest, and the order of building does not count."""
    assert (
        experiment().ledger.digest
        == experiment().ledger.digest
        == experiment(order=1).ledger.digest
    )
    assert len(experiment().ledger.digest) == 64
    assert experiment().ledger.short_digest == experiment().ledger.digest[:12]


def test_what_changes_the_digest():
    """Another seed, another model, another setting, one more derivation or one more use is
    another digest."""
    reference = experiment().ledger.digest
    digests = {experiment(43).ledger.digest, experiment(width=5).ledger.digest}
    noted, derived, built = experiment(), experiment(), experiment()
    noted.note(epochs=3)
    derived.seed("extra")
    built.model(nn.Linear, 3, 4, instance_id="training")
    digests |= {noted.ledger.digest, derived.ledger.digest, built.ledger.digest}
    assert len(digests) == 5
    assert reference not in digests


def test_circumstance_does_not_change_the_digest():
    """Versions, call sites and devices' indices are kept, and outside the digest."""
    ledger = experiment().ledger
    other = Ledger()
    for record in ledger:
        fields = {f.name for f in attrs.fields(type(record)) if f.metadata.get("circumstance")}
        other.append(
            attrs.evolve(
                record,
                **{name: "elsewhere" for name in fields if isinstance(getattr(record, name), str)},
            )
        )
    assert other.digest == ledger.digest
    assert other.to_dict() != ledger.to_dict()
    content = [f.name for f in attrs.fields(Derivation) if not f.metadata.get("circumstance")]
    for name in content:
        changed = Ledger()
        for original in ledger:
            record = original
            if isinstance(original, Derivation):
                value = getattr(original, name)
                record = attrs.evolve(
                    original,
                    **{name: f"{value}x" if isinstance(value, str) or value is None else value + 1},
                )
            changed.append(record)
        assert changed.digest != ledger.digest, name


@given(st.permutations(range(6)))
def test_the_digest_is_of_a_multiset(order):
    """Any order of the same records has one digest; a record more or less has another."""
    made = [Note(name=str(i % 4), value=i % 4) for i in range(6)]
    ledgers = []
    for picks in (range(6), order, list(order)[:5]):
        ledger = Ledger()
        for i in picks:
            ledger.append(made[i])
        ledgers.append(ledger)
    assert ledgers[0].digest == ledgers[1].digest != ledgers[2].digest


def test_ids_and_seeds_are_written_apart():
    """7 and "7" are two ids on the wire, and seeds are strings."""
    registry = SeedRegistry(2**100, scheme="sha256-256")
    for instance_id in (7, "7", None, ""):
        registry.seed("x", instance_id)
    written = [codec.encode(record)["content"] for record in registry.ledger.find(Derivation)]
    assert [entry["instance_id"] for entry in written] == [{"i": "7"}, {"s": "7"}, None, {"s": ""}]
    assert all(
        isinstance(entry["seed"], str) and entry["master_seed"] == str(2**100) for entry in written
    )


def test_find():
    """Records are found by class, purpose and id, in which type counts."""
    registry = SeedRegistry(42, scheme="sha256-256")
    registry.seed("x", 7)
    registry.seed("x", "7")
    registry.generator("y")
    assert len(registry.ledger.find()) == len(registry.ledger) == 5
    assert [r.instance_id for r in registry.ledger.find(Derivation, purpose="x")] == [7, "7"]
    assert len(registry.ledger.find(purpose="x", instance_id="7")) == 1
    assert len(registry.ledger.find(instance_id=None)) == 3
    assert registry.ledger.find(HandedOut)[0].kind == "torch:cpu"
    assert registry.ledger.find(purpose="nothing") == ()


def test_append_refuses_what_is_no_record():
    """Only records of known kinds are appended."""

    class Own(Record):
        pass

    ledger = Ledger()
    for bad in (None, "x", {}, Own(), Record()):
        with pytest.raises(LedgerError, match="derivation"):
            ledger.append(bad)
    assert len(ledger) == 0


def test_to_dict_is_json():
    """to_dict is plain data in which content and circumstance stand apart."""
    data = json.loads(json.dumps(experiment().ledger.to_dict()))
    assert data["format"] == "seedregistry.ledger/1"
    kinds = [record["kind"] for record in data["records"]]
    assert kinds == [
        "run",
        "note",
        "note",
        "derivation",
        "environment",
        "built",
        "derivation",
        "derivation",
        "built",
    ]
    derivation = data["records"][3]
    assert derivation["content"]["seed"] == "1958051794"
    assert derivation["circumstance"]["call_site"].startswith("test_ledger.py:")
    environment = next(record for record in data["records"] if record["kind"] == "environment")
    assert "content" not in environment


def test_summary_and_str():
    """The summary is flat, and printing has a line per purpose, the scheme, the master seed and
    the digest."""
    registry = SeedRegistry(42)
    registry.reserve("model", [f"lds_{i}" for i in range(300)])
    registry.child("fold", 0).seed("model", "training")
    registry.generator("noise", "x" * 100)
    text = str(registry.ledger)
    assert "master seed 42  scheme sha256-31" in text
    assert "lds_0 .. lds_299" in text
    assert "300 streams\n" in text
    assert "child fold 0" in text
    assert f"digest {registry.ledger.short_digest}" in text
    assert max(len(line) for line in text.splitlines()) < 120
    summary = registry.ledger.summary()
    assert summary["seedregistry/digest"] == registry.ledger.digest
    assert all(type(value) in (str, int) for value in summary.values())
    assert (
        repr(registry.ledger)
        == f"<Ledger of {len(registry.ledger)} records, digest {registry.ledger.short_digest}>"
    )
    assert str(Ledger()).startswith("digest")


def test_notes():
    """note takes plain values as content, and refuses others before it records anything."""
    registry = SeedRegistry(42)
    registry.note(
        self=1,
        lr=0.1,
        epochs=np.int64(3),
        name="x",
        flags=[True, None],
        nested={"b": 1, "a": (2, 3)},
    )
    values = {note.name: note.value for note in registry.ledger.find(Note)}
    assert values == {
        "lr": 0.1,
        "epochs": 3,
        "name": "x",
        "self": 1,
        "flags": (True, None),
        "nested": (("a", (2, 3)), ("b", 1)),
    }
    loop = []
    loop.append(loop)
    too_large = (10**5000, "\ud800", loop)
    no_scalars = (b"x", np.complex64(1), np.datetime64("2020"))
    for bad in (object(), torch.zeros(3), {1, 2}, lambda: 3, {3: 4}, *no_scalars, *too_large):
        with pytest.raises(InvalidOptionError):
            registry.note(good=1, bad=bad)
    assert len(registry.ledger.find(Note)) == 6


class Mapped:
    """A mapping by what it can do, as those of configuration libraries are."""

    def __init__(self, **entries):
        self._entries = entries

    def keys(self):
        return self._entries.keys()

    def __getitem__(self, key):
        return self._entries[key]


class Listed:
    """A sequence by what it can do."""

    def __init__(self, *items):
        self._items = items

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        return self._items[index]

    def __iter__(self):
        return iter(self._items)

    def index(self, item):
        return self._items.index(item)

    def count(self, item):
        return self._items.count(item)


@dataclasses.dataclass
class Options:
    lr: float
    betas: tuple = (0.9, 0.999)


def test_notes_of_configurations():
    """A configuration's mappings and sequences, a namespace and a dataclass are noted as the
    dicts and lists that they are like; what cannot be read is refused by name."""
    plain = {"model": {"width": 8, "layers": [1, [2, 3]]}, "lr": 0.1}
    config = Mapped(model=Mapped(width=8, layers=Listed(1, Listed(2, 3))), lr=0.1)
    space = argparse.Namespace(model={"width": 8, "layers": collections.deque([1, [2, 3]])}, lr=0.1)
    first, second, third = (SeedRegistry(42) for _ in range(3))
    first.note(**plain)
    second.note(**config)
    third.note(**vars(space))
    assert first.ledger.digest == second.ledger.digest == third.ledger.digest
    for alike in (config, space, types.MappingProxyType(plain)):
        registry = SeedRegistry(42)
        registry.note(config=alike, options=Options(0.1))
        assert registry.ledger.find(Note) == (
            Note(name="config", value=records.freeze(plain)),
            Note(name="options", value=records.freeze({"lr": 0.1, "betas": (0.9, 0.999)})),
        )

    class Broken(Mapped):
        def __getitem__(self, key):
            raise LookupError(f"missing mandatory value: {key}")

    registry = SeedRegistry(42)
    for bad in (Mapped(a=torch.zeros(3)), Listed(object()), Options, Broken(lr=1), Options({1})):
        with pytest.raises(InvalidOptionError, match=r"note\(bad=...\)"):
            registry.note(good=1, bad=bad)
    assert registry.ledger.find(Note) == ()


@given(
    st.recursive(
        st.sampled_from(["list", "a", 1]),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["list", "a"]), inner)
        ),
    ),
    st.data(),
)
def test_notes_tell_sequences_from_mappings(value, data):
    """Sequences and mappings that differ are noted differently, all but the empty ones; what is
    no sequence of pairs is noted as it always was."""

    def noted(value):
        registry = SeedRegistry(42)
        registry.note(x=value)
        return registry.ledger.find(Note)[0].value

    def as_pairs(value):
        """The value with mappings for lists of pairs, chosen at random, and the other way."""
        if isinstance(value, dict):
            items = [(key, as_pairs(item)) for key, item in value.items()]
            return sorted(items, key=repr) if data.draw(st.booleans()) else dict(items)
        return [as_pairs(item) for item in value] if isinstance(value, list) else value

    def normal(value):
        if isinstance(value, dict):
            return ("mapping", sorted((k, normal(v)) for k, v in value.items())) if value else ()
        if isinstance(value, (list, tuple)):
            return ("sequence", [normal(item) for item in value]) if value else ()
        return value

    other = as_pairs(value)
    assert (noted(value) == noted(other)) == (repr(normal(value)) == repr(normal(other)))


def test_a_note_of_pairs_is_not_the_mapping():
    """One digest is not that of two settings; the mapping's is as it always was."""
    notes = [{"a": 1}, [("a", 1)], [["list", ("a", 1)]], ["list", ("a", 1)], {"list": {"a": 1}}]
    digests = set()
    for value in notes:
        registry = SeedRegistry(42)
        registry.note(x=value)
        digests.add(registry.ledger.digest)
    assert len(digests) == len(notes)
    for value in ({"a": 1}, [1, "a"], [[0.9, 0.999]], [("a", 1), 2], [], ["list"], [{"a": 1}]):
        registry = SeedRegistry(42)
        registry.note(x=value)
        assert registry.ledger.find(Note)[0].value == records.freeze(value)


@pytest.mark.parametrize("journal", [False, True])
def test_what_no_file_could_hold_is_refused_when_it_is_made(tmp_path, journal):
    """An entry that is longer than a line may be is refused by name when it is made, alone or
    among others, and the ledger can be saved."""
    registry = SeedRegistry(42, journal=tmp_path / "journal.jsonl" if journal else None)
    long = "x" * (1 << 24)

    class Chatty(Component):
        purpose = "noise"

        def build(self, stream, factory, /, *args, **kwargs):
            return factory()

        def describe(self, product):
            return {"text": product}

    registry.register(Chatty())
    for make, about in (
        (lambda: registry.note(lr=0.1, text=long), "note 'text'"),
        (lambda: registry.note(lr=0.1, text=[["\x00" * (1 << 22)]]), "note 'text'"),
        (lambda: registry.seed(long), f"derivation '{long[:40]}…'"),
        (lambda: registry.reserve("model", [1, long]), f"derivation 'model' '{long[:40]}…'"),
        (lambda: registry.create("noise", lambda: long, instance_id="x"), "built 'noise' 'x'"),
        (
            lambda: registry.ledger.append(
                Unknown(kind="k", body=f'{{"content":{{"a":"{long}"}},"kind":"k"}}')
            ),
            "record k has",
        ),
    ):
        with pytest.raises(LedgerError, match="longer than the 16777216") as refused:
            make()
        assert about in str(refused.value)
    assert list(registry) == [("noise", "x")]
    assert registry.ledger.find((Note, Built, Unknown)) == ()
    registry.note(text=["x" * (1 << 20)] * 15)
    registry.note(text="\x00" * (1 << 20))
    registry.ledger.save(tmp_path / "ledger.jsonl")
    assert Ledger.load(tmp_path / "ledger.jsonl").digest == registry.ledger.digest


def test_whatever_a_product_says_can_be_written():
    """A description with text that cannot be encoded, huge ints, itself inside or odd keys is
    frozen, and the digest stands."""
    loop = []
    loop.append(loop)
    odd = {
        1: "a",
        "1": "b",
        "\ud800": 10**5000,
        "loop": loop,
        "set": {3, "x"},
        "array": np.zeros(3),
        "complex": np.complex64(1),
    }
    ledger = Ledger()
    ledger.append(Note(name="odd", value=records.freeze(odd)))
    assert len(ledger.digest) == 64
    assert json.dumps(ledger.to_dict())


def test_an_unread_ledger_keeps_nothing_alive():
    """The record of a build that nobody has read holds neither the dataset nor the factory."""
    import gc
    import weakref

    registry = SeedRegistry(42)
    data = torch.utils.data.TensorDataset(torch.arange(3))

    def factory(kept=data):
        return nn.Identity()

    gone = weakref.ref(data), weakref.ref(factory)
    registry.dataloader(data, instance_id="x")
    registry.model(factory, instance_id="x")
    del data, factory
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_infinities_are_written():
    """A setting that is not finite is written with a tag, since JSON has no number for it."""
    registry = SeedRegistry(1)
    registry.note(high=float("inf"), low=float("-inf"), none=float("nan"))
    text = json.dumps(registry.ledger.to_dict(), allow_nan=False)
    assert '{"f": "inf"}' in text
    assert registry.ledger.digest


def test_copies_are_independent():
    """Pickles and copies of a ledger hold the same records and go on by themselves."""
    ledger = experiment().ledger
    for twin in (pickle.loads(pickle.dumps(ledger)), copy.copy(ledger), copy.deepcopy(ledger)):
        assert twin.digest == ledger.digest
        assert list(twin) == list(ledger)
        twin.append(Run(master_seed=1, scheme="sha256-31"))
        assert len(twin) == len(ledger) + 1


def test_readers_and_writers_at_once():
    """Reading while eight threads write loses nothing and shows whole records only."""
    registry = SeedRegistry(42, scheme="sha256-256")
    stop = threading.Event()
    seen = []

    def read() -> None:
        while not stop.is_set():
            seen.append(all(isinstance(record, Record) for record in registry.ledger))

    def write(worker: int) -> None:
        for i in range(200):
            registry.seed(f"purpose {worker}", i)

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert all(seen)
    assert len(registry.ledger.find(Derivation)) == 1600


def test_the_same_digest_whatever_drew_late():
    """A build's record that is made when it is read is the one that would have been made at
    once."""
    early, late = experiment(), experiment()
    for record in early.ledger.find(Built):
        assert record.drew in ((), ("torch",))
    assert early.ledger.digest == late.ledger.digest


def test_the_documents_table_of_records_is_the_codecs():
    """The reference has a row for every kind, with its content and its circumstance apart."""
    from pathlib import Path

    page = (Path(__file__).parent.parent / "docs" / "reference" / "ledger.md").read_text(
        encoding="utf-8"
    )
    for kind, cls in codec.KINDS.items():
        parts = ([], [])
        for field in attrs.fields(cls):
            parts[bool(field.metadata.get("circumstance")) or not cls.IS_CONTENT].append(
                f"`{field.name}`"
            )
        content, circumstance = (", ".join(names) or "-" for names in parts)
        assert f"| `{kind}` | {content} | {circumstance} |" in page
