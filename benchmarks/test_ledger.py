"""The ledger at a million entries: memory, disk, and entries a second, each beside the same at
ten thousand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import first_derivations, report, report_figure

from seedregistry import SeedRegistry

SMALL, LARGE = 10_000, 1_000_000


def test_journalled_derivation(benchmark, tmp_path):
    names = itertools.count()
    times = first_derivations(
        lambda: SeedRegistry(42, journal=tmp_path / f"{next(names)}.jsonl"), rounds=30
    )
    report(
        benchmark,
        "first derivation, journalled",
        *times,
        peer_name="`sha256(text)`",
        target="<= +25 us",
        kind="added",
    )


@pytest.fixture(scope="module")
def scale(tmp_path_factory) -> dict:
    script = Path(__file__).with_name("ledger_scale.py")
    found = {}
    for count in (SMALL, LARGE):
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(script),
            str(count),
            str(tmp_path_factory.mktemp("ledger")),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found[count] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    ("what", "key", "unit", "target"),
    [
        ("memory of 10**6 entries in the ledger", "memory_bytes", "bytes an entry", "<= 350"),
        (
            "memory with the registry's own maps",
            "memory_with_registry_bytes",
            "bytes an entry",
            "<= 550",
        ),
        ("size of the saved file", "disk_bytes", "bytes an entry", ""),
        ("deriving and appending, in memory", "append", "entries a second", ""),
        ("the same into a journal (10**5 entries)", "journal", "entries a second", ""),
        ("the same with `durable=True` (2,000 entries)", "journal_durable", "entries a second", ""),
        ("`save`", "save", "entries a second", ""),
        ("`load`", "load", "entries a second", ""),
        ("`verify` of a loaded ledger", "verify", "entries a second", ""),
        ("`verify_file`, on raw lines", "verify_file", "entries a second", ">= 100000"),
    ],
)
def test_scale(benchmark, scale, what, key, unit, target):
    report_figure(
        benchmark,
        what,
        scale[LARGE][key],
        unit,
        target=target,
        beside=("at 10**4 entries", scale[SMALL][key]),
    )
