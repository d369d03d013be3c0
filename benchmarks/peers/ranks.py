"""Two ranks of one job: each a process of its own, as a launcher starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional

import attrs

from peers.peer import Failed, NotOffered

if TYPE_CHECKING:
    from peers.peer import Peer
    from peers.work import Work

WORLD_SIZE = 2
_SECONDS = 90


def on_ranks(peer: Peer, action: str, *, work: Optional[Work] = None) -> List[Any]:
    """Carry an action out on every rank; return what each found, in the order of the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(rank) for rank in range(WORLD_SIZE)]
        asked = json.dumps(None if work is None else attrs.asdict(work, value_serializer=_plain))
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "peers.cell",
                    peer.name,
                    action,
                    "--work",
                    asked,
                    "--out",
                    str(outs[rank]),
                ],
                env={**os.environ, **_environment(rank, port)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(WORLD_SIZE)
        ]
        try:
            said = [process.communicate(timeout=_SECONDS)[0] for process in processes]
        except subprocess.TimeoutExpired as error:
            raise Failed(
                f"{action.replace('_', ' ')}: one rank waits for the other for ever"
            ) from error
        finally:
            for process in processes:
                process.kill()
        if any(process.returncode for process in processes):
            raise RuntimeError("\n".join(text[-2000:] for text in said))
        found = [json.loads(out.read_text(encoding="utf-8")) for out in outs]
    for one in found:
        if one["outcome"] == "fails":
            raise Failed(one["seen"])
        if one["outcome"] == "nothing":
            raise NotOffered(one["seen"])
    return [one["found"] for one in found]


def _plain(_: Any, __: Any, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _environment(rank: int, port: int) -> dict:
    """Return what torchrun would set."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "LOCAL_WORLD_SIZE": str(WORLD_SIZE),
        "GROUP_RANK": "0",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "OMP_NUM_THREADS": "1",
    }
