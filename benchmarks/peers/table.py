"""Run the fourteen tests against every peer and print the table.

``python benchmarks/peers/table.py [--write]``.

A peer that needs an environment of its own gets it by ``--python NAME=PATH``. ``--write`` puts the
table between the markers of ``benchmarks/README.md`` and of ``README.md``; ``--peers NAME ...``
runs some of them, and then nothing is written.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parent
PEERS = ("own", "pytorch", "lightning", "accelerate", "composer", "ignite")
SIGNS = {"passes": "yes", "fails": "no", "nothing": "-"}
PAGES = (BENCHMARKS / "README.md", BENCHMARKS.parent / "README.md")
BEGIN, END = "<!-- table: fourteen tests -->", "<!-- end: fourteen tests -->"
_SECONDS = 600

sys.path.insert(0, str(BENCHMARKS))
from peers.fourteen import TITLES  # noqa: E402 - this file is run as a script

Cell = Dict[str, Any]


def measure(peer: str, number: int, python: str) -> Cell:
    """Run one test of one peer in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cell.json"
        env = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"}
        command = [python, "-m", "peers.cell", peer, str(number), "--out", str(out)]
        run = subprocess.run(
            command,
            env=env,
            cwd=folder,
            timeout=_SECONDS,
            check=False,
            capture_output=True,
            text=True,
        )
        if not out.exists():
            raise RuntimeError(
                f"{peer}, test {number}, ended without an answer:\n{run.stdout}\n{run.stderr}"
            )
        cell: Cell = json.loads(out.read_text(encoding="utf-8"))
    if cell["outcome"] == "broken":
        raise RuntimeError(f"{peer}, test {number}:\n{cell['seen']}")
    return cell


def measure_all(peers: List[str], pythons: Dict[str, str]) -> Dict[Tuple[str, int], Cell]:
    """Run every test of every peer, as many at a time as there are cores; a line for each that
    is done."""
    found = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        asked = {
            pool.submit(measure, peer, number, pythons.get(peer, sys.executable)): (peer, number)
            for peer in peers
            for number in TITLES
        }
        for count, done in enumerate(concurrent.futures.as_completed(asked), start=1):
            peer, number = asked[done]
            if done.exception() is not None:
                pool.shutdown(wait=False, cancel_futures=True)
            cell = found[peer, number] = done.result()
            print(
                f"[{count}/{len(asked)}] {peer} {number}: {cell['outcome']} {cell['seen']}",
                flush=True,
            )
    return found


def table(peers: List[str], cells: Dict[Tuple[str, int], Cell]) -> str:
    """Return the table and its count."""
    heads = [cells[peer, 1]["title"] for peer in peers]
    lines = [f"| | | {' | '.join(heads)} |", f"|---|---|{'---|' * len(peers)}"]
    for number, title in TITLES.items():
        signs = [SIGNS[cells[peer, number]["outcome"]] for peer in peers]
        lines.append(
            f"| {number} | {title} | "
            f"{' | '.join(f'**{sign}**' if sign == 'yes' else sign for sign in signs)} |"
        )
    counts = [
        str(sum(cells[peer, number]["outcome"] == "passes" for number in TITLES)) for peer in peers
    ]
    return "\n".join([*lines, f"| | passed | {' | '.join(counts)} |"])


def evidence(peers: List[str], cells: Dict[Tuple[str, int], Cell]) -> str:
    """Return what was seen wherever a test was not passed, and with which versions."""
    lines = []
    for number in TITLES:
        seen = [
            f"  - {cells[peer, number]['title']}: {cells[peer, number]['seen']}."
            for peer in peers
            if cells[peer, number]["outcome"] != "passes"
        ]
        lines += [f"- Test {number}", *seen] if seen else []
    versions = sorted(
        {
            f"{name} {version}"
            for cell in cells.values()
            for name, version in cell["versions"].items()
        }
    )
    when = (
        f"{dt.datetime.now(tz=dt.timezone.utc).date()}, CPython {platform.python_version()}, "
        f"CPU: {', '.join(versions)}."
    )
    return "\n".join([when, "", *lines])


def write(page: Path, text: str) -> None:
    """Replace what is between the markers of a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{page} lacks its markers {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, and write where asked to; fail where the library does not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="interpreter that has a peer",
    )
    parser.add_argument("--write", action="store_true", help="put the table into the pages")
    options = parser.parse_args()
    cells = measure_all(options.peers, dict(given.split("=", 1) for given in options.python))
    compact = table(options.peers, cells)
    whole = f"{compact}\n\n{evidence(options.peers, cells)}"
    print(f"\n{whole}")
    if options.write and set(options.peers) == set(PEERS):
        for page, text in zip(PAGES, (whole, compact)):
            write(page, text)
    if any(cells[peer, number]["outcome"] != "passes" for peer, number in cells if peer == "own"):
        sys.exit("the library does not pass all of them")


if __name__ == "__main__":
    main()
