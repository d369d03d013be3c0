"""Ledgers for the tests: one with an entry of every kind, and a forger that knows the format and
nothing of the library."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from seedregistry import Ledger, SeedRegistry, derive_component_seed
from seedregistry.ledger import codec, records

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "seedregistry.ledger/1"
ORIGIN = "0123456789abcdef"
DIGEST = "5" * 64
WORDS = ('Zoë\n"\\ü模', (), ("a", ("b",)))


def stream(purpose="model", instance_id="training", **fields) -> dict:
    return {"master_seed": 42, "purpose": purpose, "instance_id": instance_id, **fields}


def derivation(purpose, instance_id, *, master_seed=42) -> records.Derivation:
    return records.Derivation(
        master_seed=master_seed,
        scheme="sha256-31",
        purpose=purpose,
        instance_id=instance_id,
        seed=derive_component_seed(master_seed, purpose, instance_id),
        call_site="train.py:12",
    )


def every_kind() -> list:
    """A record of every kind, with ids and values of every sort, that holds together."""
    child = SeedRegistry(42).child("fold", 7).master_seed
    return [
        records.Run(
            master_seed=42, scheme="sha256-31", began="2026-01-31T12:00:00Z", call_site="train.py:3"
        ),
        records.Note(name="lr", value=0.1),
        records.Note(
            name="mixed", value=(None, True, -3, 2**70, 1e-07, float("inf"), float("-inf"), *WORDS)
        ),
        derivation("model", "training"),
        derivation("model", 7),
        derivation("noise", None),
        derivation("split", ""),
        derivation("fold", 7),
        records.Run(
            master_seed=child, scheme="sha256-31", parent=42, purpose="fold", instance_id=7
        ),
        derivation("dropout", "Zoë 模", master_seed=child),
        records.EnvironmentSeen(
            values=(("cpu_count", 2), ("torch", "2.13.0"), ("torch.cuda", None))
        ),
        records.Built(
            **stream(),
            factory="nets.construct_rn9",
            description=(("digest", DIGEST), ("parameters", 2_300_000)),
            drew=("torch", "numpy"),
            distribution="nets",
            version="1.0",
            call_site="train.py:14",
        ),
        records.HandedOut(
            **stream("noise", None), kind="torch:cuda", device="cuda:1", call_site="train.py:15"
        ),
        records.Scoped(**stream("model", 7), call_site="train.py:16"),
        records.Split(
            **stream("split", ""),
            lengths=(1500, 297),
            indices_digest=DIGEST,
            call_site="train.py:17",
        ),
        records.EpochStarted(**stream(), epoch=3, indices_digest=DIGEST),
        records.Determinism(
            mode="warn",
            fill_uninitialized_memory=False,
            ineffective=("PYTHONHASHSEED",),
            switches=(("cudnn.benchmark", False),),
        ),
        records.LateSeeded(kind="cuda", seed=derivation_of_late_seed()),
        records.Audited(mode="error", undeclared=0, completed=True),
        records.StateSaved(entries=("numpy", "python", "torch")),
        records.StateLoaded(entries=("torch",)),
        records.Warned(
            category="StreamReuseWarning", purpose="noise", instance_id=None, message="used twice"
        ),
        records.Unknown(
            kind="later", body='{"circumstance":{"at":1},"content":{"a":[1.5,null]},"kind":"later"}'
        ),
        records.Unknown(kind="later still", body='{"kind":"later still"}'),
    ]


def derivation_of_late_seed() -> int:
    from seedregistry import derivation as rules

    return rules.late_seed(42, "cuda")


def ledger_of(entries, origin=ORIGIN) -> Ledger:
    ledger = Ledger()
    ledger._current.origin = origin
    for record in entries:
        ledger.append(record)
    return ledger


def small_ledger() -> Ledger:
    """A ledger of a few lines that verifies, for passes over every byte of its file."""
    return ledger_of(
        [
            records.Run(master_seed=42, scheme="sha256-31"),
            derivation("model", "training"),
            records.Note(name="lr", value=0.1),
            records.Built(**stream(), factory="f", description=(("digest", "ab"),), drew=()),
            derivation("noise", 7),
        ]
    )


# --- the format, written down a second time, from docs/ledger-format.md alone ---------------------


def chain_value(previous: bytes, body: bytes, *, is_seal: bool = False) -> bytes:
    tag = f"{FORMAT}/{'seal' if is_seal else 'line'}".encode()
    return hashlib.sha256(tag + previous + body).digest()


def canonical(data) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_digest(bodies) -> str:
    """The digest of the content of entries from one place."""
    contents = sorted(
        canonical({"content": body["content"], "kind": body["kind"]})
        for body in bodies
        if "content" in body
    )
    sha = hashlib.sha256()
    for part in (f"{FORMAT}/content".encode(), *contents):
        sha.update(len(part).to_bytes(8, "big") + part)
    return sha.hexdigest()


def bodies_of(path: Path) -> list:
    """The lines of a file as data, without their chain values."""
    bodies = [json.loads(line) for line in path.read_bytes().splitlines()]
    for body in bodies:
        del body["chain"]
    return bodies


def forge(path: Path, bodies: list) -> None:
    """Write bodies (data, or bytes as they are) as a file whose chain and seal are right."""
    head = hashlib.sha256(f"{FORMAT}/start".encode()).digest()
    out = []
    for given in bodies:
        is_seal = not isinstance(given, bytes) and given["kind"] == "seal"
        body = given
        if is_seal:
            entries = [
                b
                for b in bodies
                if not isinstance(b, bytes) and b["kind"] not in {"header", "part", "seal"}
            ]
            sealed = {"count": len(entries), "digest": content_digest(entries), "head": head.hex()}
            body = {"content": sealed, "kind": "seal"}
        raw = body if isinstance(body, bytes) else canonical(body)
        head = chain_value(head, raw, is_seal=is_seal)
        out.append(b'{"chain":"' + head.hex().encode() + b'",' + raw[1:] + b"\n")
    path.write_bytes(b"".join(out))


def codes(report) -> list:
    return [(fault.line, fault.code) for fault in report.faults]


def is_found(path: Path):
    """Whether verify, on the file and on the loaded ledger, finds damage; the faults, or the
    error of a file refused whole."""
    from seedregistry.errors import LedgerFormatError
    from seedregistry.ledger import verify_file

    try:
        report = verify_file(path)
    except LedgerFormatError as error:
        try:
            Ledger.load(path)
        except LedgerFormatError:
            return True, str(error)
        return False, "verify_file refused what load took"
    loaded = Ledger.load(path).verify()
    assert codes(loaded) == codes(report)
    assert loaded.digest == report.digest
    return not report.ok, report


__all__ = [
    "DIGEST",
    "ORIGIN",
    "bodies_of",
    "canonical",
    "codec",
    "codes",
    "content_digest",
    "derivation",
    "every_kind",
    "forge",
    "is_found",
    "ledger_of",
    "small_ledger",
    "stream",
]
