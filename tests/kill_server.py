"""Children that derive into journals and are killed at random moments.

Run as a script by test_journal.

The library is imported once; each child is forked from here, says which entries had returned, and
is killed by signal 9.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from seedregistry import SeedRegistry


def child(path: Path, pipe: int) -> None:
    """Derive in a loop; after each call that returned, send its number."""
    registry = SeedRegistry(42, scheme="sha256-256", journal=path)
    for i in range(1_000_000):
        registry.seed("model", i)
        os.write(pipe, i.to_bytes(4, "big"))


def main(folder: Path, rounds: int) -> None:
    """Print, for each round, its journal and the number of entries that had returned."""
    moments = random.Random(0)
    for index in range(rounds):
        path = folder / f"{index}.jsonl"
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            child(path, writer)
        os.close(writer)
        os.read(reader, 4)  # it has begun
        time.sleep(moments.expovariate(1 / 0.02))
        os.set_blocking(reader, False)
        returned = 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while True:
            block = os.read(reader, 1 << 16)
            if not block:
                break
            returned += len(block) // 4
        os.close(reader)
        print(path, returned, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
