"""What a ledger of many entries costs; prints JSON.

A script of its own, so that memory is measured in a fresh process.

python benchmarks/ledger_scale.py 1000000 FOLDER
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import torch

from seedregistry import Ledger, SeedRegistry
from seedregistry.ledger import Derivation, verify_file

SCHEME = "sha256-256"
JOURNALLED = 100_000


def resident() -> int:
    """Bytes of memory that the process has in use, on Linux."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def derive(registry: SeedRegistry, count: int) -> None:
    seed = registry.seed
    for i in range(count):
        seed("model", f"lds_{i}")


def own_memory(count: int) -> float:
    """Bytes an entry in a ledger alone, its records made."""
    ledger = Ledger()
    source = SeedRegistry(42, scheme=SCHEME)
    source.seed("model", "first")
    site = source.ledger.find(Derivation)[0].call_site
    before = resident()
    for i in range(count):
        ledger.append(
            Derivation(
                master_seed=42,
                scheme=SCHEME,
                purpose="model",
                instance_id=f"lds_{i}",
                seed=2**30 + i,
                call_site=site,
            )
        )
    return (resident() - before) / count


def main(count: int, folder: Path) -> None:
    assert torch
    found = {"memory_bytes": own_memory(count)}
    before = resident()
    registry = SeedRegistry(42, scheme=SCHEME)
    found["append"] = count / seconds(lambda: derive(registry, count))
    registry.ledger.find(purpose="none")  # makes the records that were left for later
    found["memory_with_registry_bytes"] = (resident() - before) / count
    path = folder / "ledger.jsonl"
    found["save"] = count / seconds(lambda: registry.ledger.save(path))
    found["disk_bytes"] = path.stat().st_size / count
    found["verify_file"] = count / seconds(lambda: verify_file(path))
    loaded = []
    found["load"] = count / seconds(lambda: loaded.append(Ledger.load(path)))
    found["verify"] = count / seconds(loaded[0].verify)
    for durable in (False, True):
        entries = min(count, JOURNALLED) // (50 if durable else 1)
        registry = SeedRegistry(
            42, scheme=SCHEME, journal=folder / f"journal-{durable}.jsonl", durable=durable
        )
        found["journal_durable" if durable else "journal"] = entries / seconds(
            lambda: derive(registry, entries)  # noqa: B023 - called at once
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
