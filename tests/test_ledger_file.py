"""Ledger files: what is written is read, whatever is changed is found, and every format ever
written loads."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import (
    ORIGIN,
    bodies_of,
    canonical,
    codes,
    content_digest,
    every_kind,
    forge,
    is_found,
    ledger_of,
    small_ledger,
)

from seedregistry import Ledger, SeedRegistry
from seedregistry.common import digest as digests
from seedregistry.errors import LedgerError, LedgerFormatError, LedgerIntegrityError
from seedregistry.ledger import Built, Derivation, Note, Unknown, chain, codec, records, verify_file
from seedregistry.ledger.content import Contents
from seedregistry.ledger.stretches import Stretch
from seedregistry.ledger.writer import Lines

DATA = Path(__file__).parent / "data"


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "ledger.jsonl"
    small_ledger().save(path)
    return path


# --- writing and reading --------------------------------------------------------------------------


def test_every_kind_comes_back(tmp_path):
    """A record of every kind, with every sort of value, is the same after saving and loading,
    and the digest stands."""
    entries = every_kind()
    assert {codec.kind_of(record) for record in entries} >= set(codec.KINDS)
    ledger = ledger_of(entries)
    ledger.save(tmp_path / "a.jsonl")
    loaded = Ledger.load(tmp_path / "a.jsonl")
    assert list(loaded) == entries
    assert loaded.digest == ledger.digest
    assert loaded.verify().ok, str(loaded.verify())
    assert loaded.verify().is_sealed
    assert str(loaded) == str(ledger)


def test_load_and_save_are_byte_stable(tmp_path):
    """Saving a loaded ledger writes the same bytes."""
    ledger_of(every_kind()).save(tmp_path / "a.jsonl")
    Ledger.load(tmp_path / "a.jsonl").save(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**1000), 2**1000)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@given(
    st.lists(
        st.tuples(st.text(), VALUES, st.none() | st.integers() | st.text(min_size=1)), max_size=4
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_and_values_come_back(tmp_path, drawn):
    """Whatever text, number or nesting a record can hold is the same after saving and loading,
    and saving again is equal."""
    entries = [records.Run(master_seed=42, scheme="sha256-31")]
    for name, value, instance_id in drawn:
        entries += [Note(name=name, value=records.freeze(value))]
        entries += [
            records.Warned(category=name, instance_id=records.freeze(instance_id), message="")
        ]
    ledger_of(entries).save(tmp_path / "a.jsonl")
    loaded = Ledger.load(tmp_path / "a.jsonl")
    assert list(loaded) == entries
    assert loaded.verify().ok
    loaded.save(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_nan_comes_back(tmp_path):
    """NaN, which JSON has no number for, is written with a tag and is NaN again."""
    ledger_of([Note(name="x", value=(float("nan"),))]).save(tmp_path / "a.jsonl")
    value = Ledger.load(tmp_path / "a.jsonl").find(Note)[0].value[0]
    assert value != value  # noqa: PLR0124 - NaN is the one that is not itself


def test_the_fast_writer_is_canonical():
    """What the record writer makes is what canonical JSON of the encoded record is, and decoding
    is its inverse."""
    for record in every_kind():
        body, content = codec.encode_line(record)
        data = codec.encode(record)
        assert body == canonical(data) == codec.canonical(data)
        assert codec.decode(json.loads(body)) == record
        if content is None:
            assert "content" not in data
        else:
            assert content == canonical({"content": data["content"], "kind": data["kind"]})


def test_lines_that_the_fast_reader_takes_are_read_alike(tmp_path):
    """A derivation whose words need escapes, and one that does not, are read to the same record
    by both ways."""
    words = ["plain", 'quote"', "back\\slash", "tab\t", "ü", "模", "\x7f", "", 0, -7, 10**30, None]
    entries = [records.Run(master_seed=42, scheme="sha256-256")]
    for i, word in enumerate(words):
        entries.append(
            Derivation(
                master_seed=42,
                scheme="sha256-256",
                purpose=f"p{i}",
                instance_id=word,
                seed=i,
                call_site=f'"{word}',
            )
        )
    ledger_of(entries).save(tmp_path / "a.jsonl")
    assert list(Ledger.load(tmp_path / "a.jsonl")) == entries


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("ledger-*.jsonl")))
def test_golden_files_load_for_ever(name, tmp_path):
    """Every format ever written loads, verifies and is written back byte for byte."""
    expected = json.loads((DATA / "ledgers.json").read_text(encoding="utf-8"))[name]
    loaded = Ledger.load(DATA / name)
    report = loaded.verify()
    assert report.ok, str(report)
    assert (report.entries, report.seeds, report.digest) == (
        expected["entries"],
        expected["seeds"],
        expected["digest"],
    )
    assert [codec.kind_of(record) for record in loaded] == expected["kinds"]
    if report.is_sealed:
        loaded.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_the_golden_file_is_what_is_written_now(tmp_path):
    """The first format's golden file has a record of every kind, as this version writes them."""
    ledger_of(every_kind()).save(tmp_path / "ledger-1.jsonl")
    assert (tmp_path / "ledger-1.jsonl").read_bytes() == (DATA / "ledger-1.jsonl").read_bytes()


def test_the_specification_is_enough(tmp_path):
    """A writer made from the page on the format alone makes the same bytes, digest and seal."""
    ledger = ledger_of(every_kind())
    ledger.save(tmp_path / "a.jsonl")
    bodies = bodies_of(tmp_path / "a.jsonl")
    forge(tmp_path / "b.jsonl", bodies)
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert (
        content_digest([body for body in bodies if body["kind"] not in {"header", "part", "seal"}])
        == ledger.digest
    )


def test_unknown_kinds_stand_as_they_are(tmp_path, saved):
    """A kind that this version does not know loads, counts where it has content, and is written
    back byte for byte."""
    later = {"kind": "later", "content": {"z": 1, "a": [{"b": "ü"}]}, "circumstance": {"when": 1.5}}
    bodies = bodies_of(saved)
    forge(tmp_path / "b.jsonl", [*bodies[:-1], later, bodies[-1]])
    loaded = Ledger.load(tmp_path / "b.jsonl")
    assert loaded.verify().ok, str(loaded.verify())
    assert codec.encode(loaded.find(Unknown)[0]) == later
    assert loaded.digest != small_ledger().digest
    loaded.save(tmp_path / "c.jsonl")
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert "later" in json.dumps(loaded.to_dict())


# --- whatever is changed is found -----------------------------------------------------------------


def line_of(raw: bytes, position: int) -> int:
    return raw.count(b"\n", 0, position) + 1


def check_found(path: Path, changed: bytes, line: int, what: str) -> None:
    path.write_bytes(changed)
    found, report = is_found(path)
    assert found, f"{what} was not found"
    if not isinstance(report, str):
        assert report.faults[0].line == line, f"{what}: {report}"


def test_every_flipped_byte_is_found(tmp_path, saved):
    """Any byte of a saved ledger with its lowest bit flipped is found, at its line."""
    raw = saved.read_bytes()
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1
        check_found(
            tmp_path / "b.jsonl", bytes(changed), line_of(raw, position), f"byte {position}"
        )


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_byte_is_found(tmp_path, saved, data):
    """Any byte changed to any other one is found, at its line or, for a line end that comes too
    early, there."""
    raw = saved.read_bytes()
    position = data.draw(st.integers(0, len(raw) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != raw[position]))
    changed = raw[:position] + bytes([value]) + raw[position + 1 :]
    check_found(
        tmp_path / "b.jsonl", changed, line_of(raw, position), f"byte {position} as {value}"
    )


def test_every_line_that_is_removed_swapped_or_inserted_is_found(tmp_path, saved):
    """A line that is lost, moved or put in is found, at the place where the chain no longer
    holds."""
    lines = saved.read_bytes().splitlines(keepends=True)
    count = len(lines)
    for i in range(count):
        where = (
            i + 1 if i < count - 1 else count - 1
        )  # at the line that took its place; a lost seal at the end
        check_found(
            tmp_path / "b.jsonl", b"".join(lines[:i] + lines[i + 1 :]), where, f"removed {i + 1}"
        )
        for j in range(i + 1, count):
            swapped = list(lines)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            check_found(
                tmp_path / "b.jsonl", b"".join(swapped), i + 1, f"swapped {i + 1} and {j + 1}"
            )
        for j in range(count + 1):
            inserted = [*lines[:j], lines[i], *lines[j:]]
            where = (
                j + 1 if j != i else i + 2
            )  # beside itself, the second of the two is the one too many
            check_found(
                tmp_path / "b.jsonl", b"".join(inserted), where, f"inserted {i + 1} before {j + 1}"
            )


def test_every_truncation_is_found(tmp_path, saved):
    """A saved ledger cut off after any byte is found."""
    raw = saved.read_bytes()
    for length in range(len(raw)):
        (tmp_path / "b.jsonl").write_bytes(raw[:length])
        found, report = is_found(tmp_path / "b.jsonl")
        assert found, f"{length} bytes: {report}"


def test_a_forged_seed_is_found_by_deriving_it_again(tmp_path, saved):
    """A ledger recomputed end to end with another seed for one stream has a right chain and
    seal, and is found at its line."""
    bodies = bodies_of(saved)
    bodies[3]["content"]["seed"] = "1958051795"
    forge(tmp_path / "b.jsonl", bodies)
    assert codes(verify_file(tmp_path / "b.jsonl")) == [(4, "seed")]
    found, report = is_found(tmp_path / "b.jsonl")
    assert found
    assert "1958051794" in str(report)


def forged(saved, tmp_path, change) -> list:
    bodies = bodies_of(saved)
    change(bodies)
    forge(tmp_path / "b.jsonl", bodies)
    report = Ledger.load(tmp_path / "b.jsonl").verify()
    assert codes(report) == codes(verify_file(tmp_path / "b.jsonl"))
    return codes(report)


def derivation_body(purpose, instance_id, seed, master="42", scheme="sha256-31") -> dict:
    words = {
        "instance_id": instance_id,
        "master_seed": master,
        "purpose": purpose,
        "scheme": scheme,
        "seed": seed,
    }
    return {"circumstance": {"call_site": ""}, "content": words, "kind": "derivation"}


def run_body(master, *, parent=None, purpose=None, scheme="sha256-31") -> dict:
    words = {
        "instance_id": None,
        "master_seed": master,
        "parent": parent,
        "purpose": purpose,
        "scheme": scheme,
    }
    return {"circumstance": {"began": "", "call_site": ""}, "content": words, "kind": "run"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda b: b[3]["content"].update(purpose="modle"), [(4, "seed"), (6, "stream")]),
        (lambda b: b[3]["content"].update(instance_id={"i": "3"}), [(4, "seed"), (6, "stream")]),
        (lambda b: b[3]["content"].update(scheme="md5"), [(4, "seed"), (4, "run"), (6, "stream")]),
        (lambda b: b[3]["content"].update(purpose=""), [(4, "seed"), (6, "stream")]),
        (lambda b: b.pop(3), [(5, "stream")]),
        (lambda b: b.pop(2), [(3, "run")]),
        (lambda b: b.pop(1), [(2, "origin")]),
        (lambda b: b.pop(0), [(1, "header")]),
        (lambda b: b[2]["content"].update(master_seed="-1"), [(3, "run"), (4, "run")]),
        (
            lambda b: b.insert(3, run_body("7", parent="42", purpose="fold")),
            [(4, "run"), (4, "stream")],
        ),
        (lambda b: b.insert(3, run_body("7", scheme="md5")), [(4, "run")]),
        (
            lambda b: b.insert(4, derivation_body("model_training", None, "1958051794")),
            [(5, "collision")],
        ),
        (lambda b: b[0]["content"].update(form="other"), [(1, "line"), (1, "header")]),
        (lambda b: b.append(b[3]), [(8, "seal"), (8, "seal"), (9, "seal"), (9, "seal")]),
        (lambda b: b.append(b[-1]), [(9, "seal")]),
        (lambda b: b.pop(), [(7, "seal")]),
        (lambda b: b.insert(3, b[0]), [(4, "header")]),
        (lambda b: b[1]["circumstance"].update(origin="x"), [(2, "line"), (3, "origin")]),
        (lambda b: b[1]["circumstance"].update(session=-1), [(2, "line"), (3, "origin")]),
        (lambda b: b[1].update(content={}), [(2, "line"), (3, "origin")]),
        (lambda b: b[4]["content"].update(value={"f": "huge"}), [(5, "line")]),
        (lambda b: b[4]["content"].update(value=10**500), [(5, "line")]),
        (lambda b: b[4]["content"].update(extra=1), [(5, "line")]),
        (lambda b: b[4].update(extra=1), [(5, "line")]),
        (lambda b: b[4].update(kind=7), [(5, "line")]),
        (lambda b: b[4]["content"].update(name=None), [(5, "line")]),
        (lambda b: b[5]["content"].update(drew="torch"), [(6, "line")]),
        (lambda b: b[5]["content"].update(description=[["a"]]), [(6, "line")]),
        (lambda b: b[6]["content"].update(instance_id={"i": "07"}), [(7, "line")]),
        (lambda b: b[6]["content"].update(instance_id=7), [(7, "line")]),
        (lambda b: b[6]["content"].update(seed=7), [(7, "line")]),
    ],
)
def test_forgeries_are_found(saved, tmp_path, change, expected):
    """What contradicts the derivation, the structure or the records is found at its line, though
    chain and seal are right."""
    found = forged(saved, tmp_path, change)
    # a line that is no entry is missing from the count and digest of the seal that the forger made
    assert [code for code in found if code[1] != "seal" or code in expected] == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"content":{"name":"lr", "value":0.1},"kind":"note"}', "canonical"),
        (b'{"content":{"name":"lr","value":1e-1},"kind":"note"}', "canonical"),
        (b'{"content":{"name":"\\u0041","value":1},"kind":"note"}', "canonical"),
        (b'{"kind":"note","content":{"name":"lr","value":1}}', "canonical"),
        (b'{"content":{"name":"lr","value":1,"value":1},"kind":"note"}', "canonical"),
        (b'{"content":{"name":"lr","value":NaN},"kind":"note"}', "NaN"),
        (b'{"content":{"name":"lr","value":1e999},"kind":"note"}', "canonical"),
        (b'{"content":{"name":"\xff","value":1},"kind":"note"}', "UTF-8"),
        (b'{"content":{"name":"\\ud800","value":1},"kind":"note"}', "canonical"),
        (
            b'{"content":{"name":"lr","value":' + b"[" * 5000 + b"]" * 5000 + b'},"kind":"note"}',
            "deep",
        ),
        (b'{"content":{"name":"lr","value":' + b"9" * 100_000 + b'},"kind":"note"}', "digits"),
        (b'{"kind":"later","x":1}', "record has"),
        (b'{"a":1}', "kind"),
        (b"{", "JSON"),
        (b'{"content":{"a":1} ,"kind":"later"}', "canonical"),
        (
            b'{ "content":{"form":"saved","format":"seedregistry.ledger/1"},"kind":"header"}',
            "canonical",
        ),
    ],
)
def test_lines_in_no_canonical_form_are_found(saved, tmp_path, body, reason):
    """A line that says the same in other bytes, or what no record says, is refused even where
    its chain value is right."""
    bodies = bodies_of(saved)
    forge(tmp_path / "b.jsonl", [*bodies[:4], body, *bodies[4:]])
    found, report = is_found(tmp_path / "b.jsonl")
    assert found
    assert report.faults[0].line == 5
    assert reason in report.faults[0].message


@pytest.mark.parametrize("depth", [65, 480, 700, 900, 960, 2000])
def test_every_depth_is_answered(saved, tmp_path, depth):
    """Nesting past that of any record is a fault of its line at every depth, and the rest of the
    file is read."""
    deep = b'{"content":{"name":"x","value":' + b"[" * depth + b"]" * depth + b'},"kind":"note"}'
    bodies = bodies_of(saved)
    for body in (
        deep,
        deep.replace(b"note", b"later"),
        b'{"content":{"name":"x","value":{"f":[]}},"kind":"note"}',
    ):
        forge(tmp_path / "b.jsonl", [*bodies[:4], body, *bodies[4:]])
        report = verify_file(tmp_path / "b.jsonl")
        assert codes(report)[0] == (5, "line")
        assert report.entries == 5
        assert codes(Ledger.load(tmp_path / "b.jsonl").verify()) == codes(report)


@pytest.mark.parametrize("content", [b"[1,2]", b"5", b"null", b'"ab"'])
def test_content_is_an_object(saved, tmp_path, content):
    """A record whose content is no object is a fault, also of a kind that is not known."""
    bodies = bodies_of(saved)
    forge(
        tmp_path / "b.jsonl",
        [*bodies[:4], b'{"content":' + content + b',"kind":"zzz"}', *bodies[4:]],
    )
    assert codes(verify_file(tmp_path / "b.jsonl"))[0] == (5, "line")


def test_unknown_content_is_compared(tmp_path):
    """Comparing ledgers with kinds that are not known asks nothing of what is in them."""
    odd = Unknown(kind="zzz", body='{"content":{"master_seed":"abc"},"kind":"zzz"}')
    assert "zzz: 1 only in the first" in str(ledger_of([odd]).diff(Ledger()))


def test_an_entry_that_stands_twice_is_found(saved, tmp_path):
    """Two entries with one origin, session and number are found: merging would take one of them."""
    bodies = bodies_of(saved)
    forge(tmp_path / "b.jsonl", [*bodies[:-1], bodies[1], bodies[4], bodies[-1]])
    assert codes(verify_file(tmp_path / "b.jsonl")) == [(8, "origin")]


def test_parts_that_go_on_are_saved_as_one(tmp_path):
    """A ledger that took a worker's entries in several parts is byte-stable too."""
    whole = ledger_of(every_kind(), origin="a" * 16)._snapshot()[0]
    merged = ledger_of(every_kind()[:2])
    for start, end in ((0, 3), (3, 5), (5, 9)):
        piece = Ledger()
        piece._stretches.insert(0, whole.cut(start, end))
        merged.merge(piece)
    merged.save(tmp_path / "a.jsonl")
    Ledger.load(tmp_path / "a.jsonl").save(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (
        not Ledger.load(tmp_path / "a.jsonl")
        .merge(ledger_of([Note(name="x", value=1)], origin="b" * 16))
        .verify()
        .is_sealed
    )


def test_two_sets_of_indices_for_one_split_are_found(saved, tmp_path):
    """A split that says other indices the second time contradicts itself."""
    split = {
        "instance_id": {"s": "training"},
        "master_seed": "42",
        "purpose": "model",
        "lengths": [3, 4],
        "indices_digest": "ab",
    }

    def change(bodies) -> None:
        for digest in ("ab", "cd"):
            bodies.insert(
                4,
                {
                    "circumstance": {"call_site": ""},
                    "content": {**split, "indices_digest": digest},
                    "kind": "split",
                },
            )

    assert forged(saved, tmp_path, change) == [(6, "contradiction")]


def test_a_late_seed_from_nowhere_is_found(saved, tmp_path):
    """The seed of an accelerator that started late is derived again too."""
    late = {"circumstance": {"kind": "cuda", "seed": "5"}, "kind": "late-seed"}
    assert forged(saved, tmp_path, lambda bodies: bodies.insert(4, late)) == [(5, "seed")]


def test_collisions_are_looked_for_in_one_family(tmp_path):
    """Two runs of other master seeds may have a seed in common; a registry and its children may
    not."""
    children = SeedRegistry(42).child("fold", 0).master_seed
    run = records.Run(master_seed=42, scheme="sha256-31")
    twin = Derivation(
        master_seed=42, scheme="sha256-31", purpose="model_a", instance_id="b", seed=0
    )
    twin = attrs.evolve(twin, seed=SeedRegistry(42).seed("model_a", "b"))
    other = attrs.evolve(twin, purpose="model", instance_id="a_b")
    assert codes(ledger_of([run, twin, other]).verify()) == [(5, "collision")]
    apart = attrs.evolve(other, master_seed=43, seed=SeedRegistry(43).seed("model", "a_b"))
    assert (
        ledger_of([run, records.Run(master_seed=43, scheme="sha256-31"), twin, apart]).verify().ok
    )
    assert children != 43


def test_damage_stays_with_the_ledger(saved, tmp_path, caplog):
    """A damaged file loads with a line in the log, says so wherever it is shown, and is neither
    saved nor merged."""
    (tmp_path / "b.jsonl").write_bytes(saved.read_bytes().replace(b'"lr"', b'"lx"'))
    with caplog.at_level(logging.WARNING):
        loaded = Ledger.load(tmp_path / "b.jsonl")
    assert "line 5" in caplog.text
    assert "DAMAGED" in str(loaded)
    assert "DAMAGED" in repr(loaded)
    assert "DOES NOT VERIFY" in loaded.statement()
    with pytest.raises(LedgerIntegrityError, match="line 5"):
        loaded.save(tmp_path / "c.jsonl")
    with pytest.raises(LedgerIntegrityError, match="line 5"):
        Ledger().merge(loaded)
    assert not (tmp_path / "c.jsonl").exists()
    import pickle

    assert pickle.loads(pickle.dumps(loaded)).verify().faults == loaded.verify().faults


def test_verify_in_memory_has_lines_too():
    """A ledger that was never saved is verified as it would be saved, each fault with the line
    it would have."""
    entries = every_kind()
    ledger = ledger_of(entries)
    assert ledger.verify().ok
    ledger.append(attrs.evolve(entries[3], seed=1))
    report = ledger.verify()
    assert codes(report) == [(2 + len(entries) + 1, "seed")]
    assert not report
    assert "NOT VERIFIED" in str(report)
    assert Ledger().verify().ok


# --- files that are none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"hello\n", "no line of a ledger"),
        (b"\x80\x04K\x01.", "no line of a ledger"),
        (b'{"format":"seedregistry.ledger/1"}\n', "no line of a ledger"),
        (b"\n\n\n", "no line of a ledger"),
    ],
)
def test_what_is_no_ledger_is_refused(tmp_path, raw, words):
    """A file that has no line of a ledger is refused, by both readers, with what was expected."""
    (tmp_path / "x").write_bytes(raw)
    for read in (Ledger.load, verify_file):
        with pytest.raises(LedgerFormatError, match=words):
            read(tmp_path / "x")


def test_another_version_is_refused(tmp_path):
    """A sound file of another version is refused by name; one flipped byte in the name of ours
    is damage, and read on."""
    other = b'{"content":{"form":"saved","format":"seedregistry.ledger/2"},"kind":"header"}'
    head = chain.link(b"2" * 32, other)
    (tmp_path / "x").write_bytes(
        chain.join(head, other) + chain.join(chain.link(b"3" * 32, other), b'{"kind":"new"}')
    )
    with pytest.raises(LedgerFormatError, match=r"ledger/2.*reads 'seedregistry.ledger/1'"):
        Ledger.load(tmp_path / "x")
    small_ledger().save(tmp_path / "y")
    (tmp_path / "y").write_bytes((tmp_path / "y").read_bytes().replace(b"ledger/1", b"ledger/2"))
    assert codes(verify_file(tmp_path / "y"))[0] == (1, "chain")


@pytest.mark.parametrize("path", ["nosuch/ledger.jsonl", ".", "a\0b", 7, None])
def test_paths_that_are_none(tmp_path, monkeypatch, path):
    """A path that cannot be read or written is one clear error, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    for call in (Ledger.load, verify_file, small_ledger().save):
        with pytest.raises(LedgerError, match="Could not"):
            call(path)
    assert list(tmp_path.iterdir()) == []


# --- a file system that refuses -------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(saved, monkeypatch):
    """Saving on a full disk is one clear error; the old file is whole and nothing is left beside
    it."""
    before = saved.read_bytes()

    def full(descriptor) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match="No space left on device"):
        ledger_of(every_kind()).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_real_limit_on_file_size(saved):
    """The same with a limit that the kernel keeps: the file stops growing in the middle of the
    ledger."""
    before = saved.read_bytes()
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from seedregistry import SeedRegistry, LedgerError\n"
        "registry = SeedRegistry(42); registry.reserve('model', range(3000))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: registry.ledger.save(sys.argv[1])\n"
        "except LedgerError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(saved)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "File too large" in run.stdout
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs /proc, a folder that takes no files"
)
def test_a_folder_that_takes_no_files():
    """Saving into a folder that cannot be written is one clear error."""
    with pytest.raises(LedgerError, match=r"Could not write '/proc/self/ledger\.jsonl'"):
        small_ledger().save("/proc/self/ledger.jsonl")


def test_saving_keeps_mode_and_link(tmp_path):
    """The file keeps its permissions, and a link to it stays a link."""
    target = tmp_path / "real.jsonl"
    small_ledger().save(target)
    target.chmod(0o640)
    (tmp_path / "link.jsonl").symlink_to(target)
    ledger_of(every_kind()).save(tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert Ledger.load(target).digest == ledger_of(every_kind()).digest


def test_an_entry_too_long_for_a_reader_is_not_written(tmp_path):
    """What no reader would take is refused when it is written."""
    ledger = ledger_of([])
    ledger._records.append(Note(name="x", value="y" * (1 << 24)))  # as earlier versions took it
    with pytest.raises(LedgerError, match="longer than"):
        ledger.save(tmp_path / "x.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_text_that_cannot_be_encoded_is_written_with_a_mark(tmp_path):
    """A lone surrogate, as in the name of a file, does not stop a ledger from being saved."""
    ledger_of([Built(**{**vars_of_built(), "factory": "a\udcffb"})]).save(tmp_path / "x.jsonl")
    assert Ledger.load(tmp_path / "x.jsonl").find(Built)[0].factory == "a?b"


def vars_of_built() -> dict:
    return {
        "master_seed": 42,
        "purpose": "m",
        "instance_id": None,
        "factory": "f",
        "description": (),
        "drew": (),
    }


def test_origins_are_apart():
    """Every ledger has an origin of its own, from the operating system and not from a generator."""
    seen = set()
    for _ in range(50):
        ledger = Ledger()
        ledger.append(Note(name="x", value=1))
        seen.add(ledger._snapshot()[0].origin)
    assert len(seen) == 50
    assert ORIGIN not in seen


# --- files that are long in an odd way ------------------------------------------------------------


def test_parts_and_seals_are_read_in_one_pass(tmp_path, monkeypatch):
    """A stretch is looked up and not searched for, and a seal that follows nothing new takes no
    digest again: the work grows with the file, not with its square."""
    path, lines, contents = tmp_path / "journal.jsonl", Lines(), Contents()
    out = [lines.header("journal")]
    body, content = codec.encode_line(records.Note(name="lr", value=0.1))
    for session in range(400):
        out.append(lines.place("0" * 16, session, 0))
        contents.begin("0" * 16, session)
        contents.add("note", content)
        out += [lines.entry(body), lines.seal(session + 1, contents.digest())]
    path.write_bytes(b"".join(out))

    counts = Counter()
    place = Stretch.place.fget
    monkeypatch.setattr(
        Stretch, "place", property(lambda self: (counts.update(["place"]), place(self))[1])
    )
    sort = digests.digest_sorted
    monkeypatch.setattr(
        digests, "digest_sorted", lambda *args: (counts.update(["digest"]), sort(*args))[1]
    )
    ledger = Ledger.load(path)
    assert not ledger.verify().faults
    ledger.save(tmp_path / "saved.jsonl")
    assert counts["place"] < 400 * 20
    assert counts["digest"] < 10


def test_empty_lines_in_a_row_are_a_single_fault(tmp_path):
    """A file of empty lines is refused or reported as quickly as it is read."""
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"\n" * 100_000)
    with pytest.raises(LedgerFormatError, match="no line of a ledger"):
        Ledger.load(path)
    small_ledger().save(path)
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, b"\n" * 1000, second, b"\n", *rest]))
    report = verify_file(path)
    assert [(line, code) for line, code in codes(report) if code == "line"] == [
        (2, "line"),
        (1003, "line"),
    ]
    assert codes(Ledger.load(path).verify()) == codes(report)
