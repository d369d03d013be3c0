"""Run the benchmarks and print their tables.

``python benchmarks/run.py [--write] [--quick] [--only NAME]``.

``--write`` puts each table between its markers in ``benchmarks/README.md``; ``--quick`` leaves out
the training steps; ``--only attribution`` runs ``test_attribution.py`` alone.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
README = HERE / "README.md"
TABLES = ("attribution", "cpu", "cuda")


def measure(*, quick: bool, only: str) -> list:
    """Run pytest with its progress on the terminal, and return the rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmarks.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            str(HERE / "pytest.ini"),
            "--rootdir",
            str(HERE),
            "-v",
        ]
        command.append(str(HERE / f"test_{only}.py" if only else HERE))
        command += ["--benchmark-json", str(path), "--benchmark-quiet", "--benchmark-columns=min"]
        if quick:
            command += ["-k", "not training_step"]
        run = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(HERE)})
        if run.returncode:
            sys.exit(run.returncode)
        found = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        return [{**entry["extra_info"], "table": table_of(entry)} for entry in found]


def table_of(entry: dict) -> str:
    """Return the table that a benchmark's row belongs to."""
    if "test_attribution" in entry["fullname"]:
        return "attribution"
    return "cuda" if "(cuda)" in entry["extra_info"]["what"] else "cpu"


def show_time(us: float) -> str:
    """Return a time with the unit that suits it."""
    if us >= 1000:
        return f"{us / 1000:.1f} ms"
    return f"{us * 1000:.0f} ns" if us < 1 else f"{us:.1f} us"


def number(value: float) -> str:
    """Return a figure with as many digits as it has meaning."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def figure_row(info: dict) -> str:
    """Return a row with a figure of its own unit."""
    value, target, (name, other) = info["value"], info["target"], info["beside"]
    met = "-"
    if target:
        limit = float(target.split()[1])
        met = "yes" if (value >= limit if target.startswith(">=") else value <= limit) else "**no**"
    shown = f"{number(value)} {info['unit']}"
    return (
        f"| {info['what']} | {shown} | {name}: {number(other)} | {value / other:.3g} x | "
        f"{target or '-'} | {met} |"
    )


def row(info: dict) -> str:
    """Return a row of the table."""
    if info["kind"] == "figure":
        return figure_row(info)
    shown = {
        "ratio": f"{info['value']:.3g} x",
        "added": f"+{show_time(info['value'])}",
        "percent": f"{info['value']:+.1f} %",
        "bandwidth": f"{info['value'] * 100:.0f} %",
        "share": f"{info['value'] * 100:.2g} %",
    }[info["kind"]]
    target = info["target"]
    met = ""
    if target:
        limit = float(re.search(r"[\d.]+", target).group())
        limit *= 1000 if target.endswith("ms") else 1
        value = info["value"] * (100 if info["kind"] in {"bandwidth", "share"} else 1)
        met = "yes" if (value >= limit if target.startswith(">=") else value <= limit) else "**no**"
    peer = "-" if info["peer"] == "nothing" else f"{info['peer']}: {show_time(info['peer_us'])}"
    return (
        f"| {info['what']} | {show_time(info['measured_us'])} | {peer} | {shown} | "
        f"{target or '-'} | {met or '-'} |"
    )


def table(rows: list) -> str:
    """Return the table with a line on the machine."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    machine = (
        f"{dt.datetime.now(tz=dt.timezone.utc).date()}, {cpu}, {os.cpu_count()} cores{gpu}, "
        f"CPython {platform.python_version()}, torch {torch.__version__}; `nox -s bench -- "
        "--write`."
    )
    head = "| what | measured | floor or peer | ratio | target | met |\n|---|---|---|---|---|---|"
    return "\n".join([machine, "", head, *map(row, rows)])


def write(text: str, which: str) -> None:
    """Replace the table between two markers of the README."""
    begin, end = f"<!-- table: {which} -->", f"<!-- end: {which} -->"
    page = README.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    README.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/README.md"
    )
    parser.add_argument("--quick", action="store_true", help="leave out the training steps")
    parser.add_argument(
        "--only", default="", help="the benchmarks of one file, such as attribution"
    )
    options = parser.parse_args()
    rows = measure(quick=options.quick, only=options.only)
    for which in TABLES:
        chosen = [info for info in rows if info["table"] == which]
        if chosen:
            text = table(chosen)
            print(f"\n{text}")
            if options.write:
                write(text, which)


if __name__ == "__main__":
    main()
