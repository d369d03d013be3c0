"""Files from somebody else: reading answers or refuses with our errors, in bounded memory, and
runs nothing of them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import bodies_of, canonical, every_kind, forge, ledger_of

import seedregistry
from seedregistry import Ledger
from seedregistry.cli import main
from seedregistry.errors import LedgerError, LedgerFormatError
from seedregistry.ledger import verify_file

MUTATIONS = 10_000
PIECES = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"null",
    b"NaN",
    b"-",
    b"1e999",
)
KEYS = (
    b'"kind":"',
    b'"content":',
    b'"circumstance":',
    b'"seal"',
    b'"header"',
    b'"part"',
    b'{"i":"',
    b'"chain":"',
    b"\\ud800",
)


@pytest.fixture(autouse=True)
def _quiet():
    """Keep ten thousand warnings of damage out of the report."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def noise(rng: random.Random, length: int) -> bytes:
    return bytes([rng.randrange(256) for _ in range(length)])


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One to four changes: bytes flipped, put in, cut out, doubled or moved, and lines made up."""
    for _ in range(rng.randint(1, 4)):
        i, j = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
        near = min(i + rng.randrange(1, 40), len(raw))
        kind = rng.randrange(8)
        if kind == 0 and raw:
            raw = raw[:i] + bytes([rng.randrange(256)]) + raw[i + 1 :]
        elif kind == 1:
            raw = raw[:i] + rng.choice(PIECES + KEYS) + raw[i:]
        elif kind == 2:
            raw = raw[:i] + raw[near:]
        elif kind == 3:
            raw = raw[:i] + raw[i:near] * rng.choice((2, 50)) + raw[near:]
        elif kind == 4:
            raw = raw[:i] + raw[j:]
        elif kind == 5:
            raw = raw[j:] + raw[i:j] + raw[:i]
        elif kind == 6:
            raw = raw[:i] + noise(rng, rng.randrange(1, 20)) + raw[i:]
        else:
            raw = (
                raw[:i]
                + rng.choice((b"[" * 2000, b"9" * 2000, b'{"a":' * 2000, b" " * 50))
                + raw[i:]
            )
    return raw


def consider(path: Path) -> str:
    """What reading makes of a file, by both readers; anything but an answer or our own error is
    raised."""
    answers = []
    for read in (Ledger.load, verify_file):
        try:
            found = read(path)
        except LedgerError:
            answers.append("refused")
            continue
        report = found.verify() if isinstance(found, Ledger) else found
        answers.append("sound" if report.ok else "faulty")
        if isinstance(found, Ledger):
            str(found), repr(found), found.to_markdown(), found.statement(), found.digest
    assert answers[0] == answers[1], answers
    return answers[0]


def test_ten_thousand_mutated_files(tmp_path):
    """Of 10,000 mutated files none is taken for sound, crashes a reader, or differs between the
    two readers."""
    rng = random.Random(7)
    ledger_of(every_kind()[:12]).save(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "mutated.jsonl"
    counts = {"refused": 0, "faulty": 0, "sound": 0}
    for _ in range(MUTATIONS):
        raw = mutate(whole, rng)
        if raw == whole:
            continue
        path.write_bytes(raw)
        counts[consider(path)] += 1
    assert counts["sound"] == 0
    assert counts["faulty"] > MUTATIONS // 2
    assert counts["refused"] > 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.data())
@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_forged_structures(tmp_path, data):
    """A chain that is right over any data whatever, in place of any field, part or line, is
    answered or refused."""
    ledger_of(every_kind()).save(tmp_path / "whole.jsonl")
    bodies = bodies_of(tmp_path / "whole.jsonl")
    index = data.draw(st.integers(0, len(bodies) - 1))
    value = data.draw(JSON)
    body = bodies[index]
    part = data.draw(st.sampled_from(["line", "kind", "content", "circumstance", "field", "new"]))
    if part == "line":
        bodies[index] = {"kind": body["kind"], "content": value}
    elif part == "field":
        inner = body.get("content") or body.get("circumstance")
        if inner:
            inner[data.draw(st.sampled_from(sorted(inner)))] = value
    elif part == "new":
        body[data.draw(st.text(max_size=5))] = value
    else:
        body[part] = value
    try:
        raw = [
            b
            if isinstance(b.get("kind"), str) and b["kind"] == "seal" and b is not body
            else canonical(b)
            for b in bodies
        ]
        forge(tmp_path / "forged.jsonl", raw)
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
        return  # what the forger itself cannot write
    consider(tmp_path / "forged.jsonl")


def test_the_command_line_on_mutated_files(tmp_path):
    """On mutated files every command answers with its exit code and a line, never a traceback."""
    rng = random.Random(8)
    ledger_of(every_kind()).save(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "mutated.jsonl"
    codes = set()
    for i in range(400):
        path.write_bytes(mutate(whole, rng) if i % 10 else noise(rng, 200))
        command = ("show", "verify", "digest", "export")[i % 4]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            codes.add(main(["ledger", command, str(path), *(["--json"] if i % 3 else [])]))
        assert "Traceback" not in err.getvalue()
    assert codes <= {0, 1, 2}
    assert {1, 2} <= codes


def test_a_line_of_two_gigabytes_is_refused_early(tmp_path):
    """A line past the limit is refused after 16 MiB, in bounded memory and at once, wherever it
    stands."""
    ledger_of(every_kind()).save(tmp_path / "first.jsonl")
    (tmp_path / "second.jsonl").write_bytes((tmp_path / "first.jsonl").read_bytes())
    for name, size in (
        ("first.jsonl", 0),
        ("second.jsonl", (tmp_path / "second.jsonl").stat().st_size),
    ):
        with (tmp_path / name).open("r+b") as file:
            file.truncate(size)
            file.truncate(size + (2 << 30))  # a sparse file: a line of zeros
        script = (
            "import resource, sys, seedregistry\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: seedregistry.Ledger.load(sys.argv[1])\n"
            "except seedregistry.LedgerFormatError as error: print(error)\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
        )
        started = time.monotonic()
        command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / name)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        assert time.monotonic() - started < 30
        message, megabytes = run.stdout.splitlines()
        assert "longer than 16777216 bytes" in message
        assert int(megabytes) < 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"content":' + b"[" * 1_000_000,
        b'{"content":' + b'{"a":' * 200_000,
        b'{"content":' + b"9" * 10_000_000 + b',"kind":"x"}',
    ],
    ids=["deep lists", "deep objects", "a long number"],
)
def test_a_line_that_would_cost_much_is_cheap(tmp_path, body):
    """Nesting a million deep and numbers of ten million digits are faults, found in a moment."""
    ledger_of(every_kind()).save(tmp_path / "a.jsonl")
    forge(tmp_path / "b.jsonl", [*bodies_of(tmp_path / "a.jsonl")[:3], body])
    started = time.monotonic()
    assert not verify_file(tmp_path / "b.jsonl")
    assert time.monotonic() - started < 10


def test_nothing_is_unpickled(tmp_path):
    """A pickle is no ledger, and the modules that read files have no way to unpickle, evaluate
    or import what is in them."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "x").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(LedgerFormatError):
        Ledger.load(tmp_path / "x")
    (tmp_path / "y").write_bytes(json.dumps({"py/object": "os.system"}).encode() + b"\n")
    with pytest.raises(LedgerFormatError):
        Ledger.load(tmp_path / "y")
    assert not (tmp_path / "sprung").exists()
    for path in (Path(seedregistry.__file__).parent / "ledger").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not names & {"pickle", "marshal", "shelve", "importlib", "dill"}, path.name
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") not in {
                    "eval",
                    "exec",
                    "compile",
                    "__import__",
                }, path.name
