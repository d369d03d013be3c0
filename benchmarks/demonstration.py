"""Put the results of several demonstrations into a table.

``python benchmarks/demonstration.py [--write] FOLDER ...``.

Each folder is one that ``seedregistry demo --out FOLDER --seed N --bridges`` wrote. ``--write``
puts the table into ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from run import write

# What the prototype had at master seed 0: the score of MAGIC less that of the method, by fraction
# left out.
PROTOTYPE = {
    "influence function (Gauss-Newton, CG)": (0.204, 0.170, 0.145, 0.157, 0.151),
    "influence function (dattri, CG)": (0.261, 0.231, 0.182, 0.187, 0.186),
    "TRAK (traker, one model)": (0.410, 0.358, 0.330, 0.321, 0.308),
    "TracIn (every epoch)": (0.571, 0.565, 0.532, 0.486, 0.493),
    "gradient dot product": (0.745, 0.672, 0.666, 0.651, 0.633),
    "random": (0.999, 0.955, 0.992, 0.951, 0.951),
}


def span(values: list) -> str:
    """Return the least and the greatest of some scores."""
    return f"{min(values):.3f} to {max(values):.3f}"


def table(runs: list) -> str:
    """Return the scores over all runs, and how far MAGIC's is above each of the others, beside
    the prototype's."""
    fractions = list(runs[0]["lds"])
    seeds = ", ".join(str(run["seed"]) for run in runs)
    head = "".join(f" {100 * float(fraction):g}% |" for fraction in fractions)
    rule = "---|" * len(fractions)
    lines = [
        f"Master seeds {seeds}: the least and the greatest score.",
        "",
        f"| scores |{head}",
        f"|---|{rule}",
    ]
    rows = {"MAGIC": [run["lds"] for run in runs]}
    rows.update({name: [run["baselines"][name] for run in runs] for name in runs[0]["baselines"]})
    for name, found in rows.items():
        lines.append(
            f"| {name} |"
            + "".join(f" {span([one[fraction] for one in found])} |" for fraction in fractions)
        )
    lines += [
        "",
        (
            "MAGIC's score less that of the method: the least of the runs, and in brackets the "
            "prototype's one run."
        ),
        "",
    ]
    lines += [f"| above |{head}", f"|---|{rule}"]
    for name, margins in PROTOTYPE.items():
        if name in rows:
            least = [
                min(run["lds"][one] - run["baselines"][name][one] for run in runs)
                for one in fractions
            ]
            lines.append(
                f"| {name} |"
                + "".join(f" {own:.3f} ({given:.3f}) |" for own, given in zip(least, margins))
            )
    ablated = list(runs[0]["ablation"]["weights"])
    lines += [
        "",
        "One wrong seed:",
        "",
        "| retraining |" + "".join(f" {100 * float(one):g}% |" for one in ablated),
    ]
    lines.append("|---|" + "---|" * len(ablated))
    for name in runs[0]["ablation"]:
        lines.append(
            f"| {name} |"
            + "".join(f" {span([run['ablation'][name][one] for run in runs])} |" for one in ablated)
        )
    seconds = [sum(run["seconds"].values()) for run in runs]
    accuracy = span([run["test_accuracy"] for run in runs])
    lines += [
        "",
        (
            f"Test accuracy {accuracy}; {min(seconds):.0f} to {max(seconds):.0f} s each, dattri's "
            "and traker's scores included."
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    """Read, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/README.md"
    )
    options = parser.parse_args()
    text = table(
        [
            json.loads((folder / "results.json").read_text(encoding="utf-8"))
            for folder in options.folders
        ]
    )
    print(text)
    if options.write:
        write(text, "demonstration")


if __name__ == "__main__":
    main()
