"""A ledger's table for papers: LaTeX, Markdown and comma-separated values."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Sequence, Tuple

from seedregistry.ledger.tables import HEADER, visible

if TYPE_CHECKING:
    from seedregistry.ledger.tables import Table

_LONGEST_TABLE = 40
"""Rows: more do not fit on a page, and become a longtable."""

_LATEX: Dict[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # \textquotedbl is not in every encoding
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": "{-}",  # two in a row are a dash otherwise
    "…": r"\ldots{}",
    "[": "{[}",  # after the end of a row it would begin an argument, and a star likewise
    "]": "{]}",
    "*": "{*}",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile("-[0-9]*")
"""An instance id below zero, or the dash of a stream without one."""

_LATIN = frozenset(map(chr, range(0xC0, 0x180))) - set(
    # Signs, and letters that pdfLaTeX does not know, at least not in its first encoding, OT1.
    "\u00d7\u00f7\u00d0\u00f0\u00de\u00fe\u0104\u0105\u0110\u0111\u0118\u0119\u0126\u0127\u012e\u012f\u0138\u013f\u0140\u0149\u014a\u014b"
    "\u0166\u0167\u0172\u0173\u017f"
)
"""Letters that pdfLaTeX knows without a package."""


def to_latex(table: Table, *, label: str, unicode: bool = False) -> str:
    """Return a LaTeX table; see :meth:`seedregistry.Ledger.to_latex`."""
    numeric = {HEADER.index(name) for name in ("streams", "seed", "uses")}
    columns, rows = _columns(table)
    specification = "".join("r" if column in numeric else "l" for column in columns)
    escape = _escaper(unicode=unicode)
    facts = ", ".join(f"{name} {escape(value)}" for name, value in table.facts)
    caption = rf"Random streams: {facts}."
    head = " & ".join(HEADER[column].capitalize() for column in columns) + r" \\"
    body = [" & ".join(escape(cell) for cell in row) + r" \\" for row in rows]
    if len(body) <= _LONGEST_TABLE:
        lines = [
            r"% \usepackage{booktabs,textcomp}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{specification}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"
    width = len(columns)
    lines = [
        r"% \usepackage{booktabs,longtable,textcomp}",
        rf"\begin{{longtable}}{{{specification}}}",
        rf"\caption{{{caption}}}\label{{{label}}}\\",
        r"\toprule",
        head,
        r"\midrule",
        r"\endfirsthead",
        rf"\multicolumn{{{width}}}{{l}}{{\tablename\ \thetable, continued}} \\",
        r"\toprule",
        head,
        r"\midrule",
        r"\endhead",
        r"\midrule",
        r"\endfoot",
        r"\bottomrule",
        r"\endlastfoot",
        *body,
        r"\end{longtable}",
    ]
    return "\n".join(lines) + "\n"


def to_markdown(table: Table) -> str:
    """Return a Markdown table with a line of facts above it."""
    columns, rows = _columns(table)
    facts = ", ".join(f"{name} {_escape_markdown(value)}" for name, value in table.facts)
    lines = [
        f"Random streams: {facts}.",
        "",
        _markdown_row([HEADER[column] for column in columns]),
        _markdown_row(["---"] * len(columns)),
        *(_markdown_row([_escape_markdown(cell) for cell in row]) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Return comma-separated values; see :meth:`seedregistry.Ledger.to_csv`."""
    out = io.StringIO()
    writer = csv.writer(out)
    names = ("master_seed", "scheme", *HEADER)
    writer.writerow(names)
    for section in table.sections:
        for row in section.rows:
            cells = (
                section.name,
                row.purpose,
                row.instance,
                row.streams,
                row.seed,
                row.uses,
                row.built,
            )
            row_cells = (section.master_seed, section.scheme, *cells)
            writer.writerow([_defuse(cell) for cell in row_cells])
    return out.getvalue()


def _defuse(cell: object) -> object:
    """Return a cell with an apostrophe before what a spreadsheet would take for a formula.

    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    if not isinstance(cell, str) or not cell.startswith(_FORMULA) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def _columns(table: Table) -> Tuple[List[int], Iterator[List[str]]]:
    """Return the numbers of the columns that say something, and the rows with these alone.

    The registry is left out where there are no children, and the count where all counts are 1.
    """
    cells = list(table.cells())
    left_out = set()
    for name, idle in (("registry", ""), ("streams", "1"), ("seed", ""), ("built", "")):
        column = HEADER.index(name)
        if all(row[column] == idle for row in cells):
            left_out.add(column)
    columns = [column for column in range(len(HEADER)) if column not in left_out]
    return columns, ([row[column] for column in columns] for row in cells)


def _escaper(*, unicode: bool) -> Callable[[str], str]:
    def escape(text: str) -> str:
        return "".join(
            _LATEX.get(char) or (char if _is_plain(char, unicode=unicode) else _by_number(char))
            for char in text
        )

    return escape


def _is_plain(char: str, *, unicode: bool) -> bool:
    if char.isascii():
        return char.isprintable()
    if unicode:
        return char.isprintable()
    return char in _LATIN


def _by_number(char: str) -> str:
    return rf"\texttt{{U+{ord(char):04X}}}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape_markdown(text: str) -> str:
    escaped = "".join(f"\\{char}" if char in "\\|`*_[]<>#~" else char for char in text)
    return visible(" ".join(escaped.split()))  # no line ends in a cell
