"""One test of one peer, or one rank's share of it, in a process of its own: ``python -m
peers.cell PEER WHAT``."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, Dict

from peers import fourteen
from peers.peer import Failed, NotOffered, Peer
from peers.work import Work


def load(name: str) -> Peer:
    """Return the peer of that name."""
    found: Peer = importlib.import_module(f"peers.adapters.{name}").PEER
    return found


def answer(peer: Peer, what: str, work: Work) -> Any:
    """Carry out a test, by number, or a rank's share of one."""
    if what.isdigit():
        return fourteen.TESTS[int(what)](peer)
    if what == "train":
        return peer.train(work)
    return fourteen.scope_on_one_rank(peer, int(os.environ["RANK"]))


def main() -> None:
    """Write the outcome as JSON: passes, fails, nothing of the kind, or broken, with what was
    seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer")
    parser.add_argument("what", help="number of a test, or what a rank is to do")
    parser.add_argument("--work", default="null", help="JSON")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    given = json.loads(options.work) or {}
    if "folder" in given:
        given["folder"] = Path(given["folder"])
    result: Dict[str, Any] = {}
    try:
        peer = load(options.peer)
        result = {
            "title": peer.title,
            "versions": {name: metadata.version(name) for name in ("torch", *peer.packages)},
        }
        result.update(outcome="passes", seen="", found=answer(peer, options.what, Work(**given)))
    except Failed as failure:
        result.update(outcome="fails", seen=str(failure))
    except NotOffered as missing:
        result.update(outcome="nothing", seen=str(missing))
    except Exception:  # noqa: BLE001 - a fault of the adapter is not the peer's
        result.update(outcome="broken", seen=traceback.format_exc())
    options.out.write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    os._exit(
        1 if result["outcome"] == "broken" and not options.what.isdigit() else 0
    )  # some peers' threads never end


if __name__ == "__main__":
    main()
