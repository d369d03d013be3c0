"""What a ledger says to people: tables for papers, and a statement that claims what was checked
and no more."""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
import subprocess
import warnings

import pytest
import torch
from ledgers import every_kind, ledger_of
from torch import nn

from seedregistry import Ledger, SeedRegistry, StreamReuseWarning
from seedregistry.ledger import Audited, records


def experiment() -> SeedRegistry:
    registry = SeedRegistry(42)
    registry.reserve("model", [f"lds_{i}" for i in range(300)])
    registry.model(nn.Linear, 2, 2, instance_id="lds_0")
    registry.model(nn.Linear, 2, 2, instance_id="lds_1")
    registry.generator("noise", "x")
    registry.child("fold", 0).seed("model", "training")
    return registry


def rows_of(text: str) -> list:
    return [
        row.split(" & ") for row in re.findall(r"^(.*) \\\\$", text, re.MULTILINE) if " & " in row
    ]


# --- tables ---------------------------------------------------------------------------------------


def test_a_row_for_each_purpose():
    """By default a table has a line for each purpose of each registry, with first and last
    instance and the count."""
    ledger = experiment().ledger
    rows = list(csv.DictReader(io.StringIO(ledger.to_csv())))
    assert [(row["registry"], row["purpose"]) for row in rows] == [
        ("", "model"),
        ("", "noise"),
        ("", "fold"),
        ("fold 0", "model"),
    ]
    model = rows[0]
    assert (model["instance"], model["streams"], model["seed"], model["uses"]) == (
        "lds_0 .. lds_299",
        "300",
        "",
        "2",
    )
    assert model["built"] == "2 x Linear"
    assert (rows[1]["seed"], rows[1]["master_seed"]) == (
        str(SeedRegistry(42).seed("noise", "x")),
        "42",
    )
    assert rows[3]["master_seed"] == str(SeedRegistry(42).child("fold", 0).master_seed)


def test_a_row_for_each_stream():
    """On request every stream has a line, with its seed and what was built from it."""
    ledger = experiment().ledger
    rows = list(csv.DictReader(io.StringIO(ledger.to_csv(every_stream=True))))
    assert len(rows) == 303
    registry = SeedRegistry(42)
    assert [row["seed"] for row in rows[:300]] == [
        str(registry.seed("model", f"lds_{i}")) for i in range(300)
    ]
    digest = dict(ledger.find(records.Built)[0].description)["digest"]
    assert rows[0]["built"] == f"Linear {digest[:12]}"


def test_csv_keeps_any_text():
    """Commas, quotes, line ends and any script come back from the CSV as they went in; a formula
    comes back as text."""
    registry = SeedRegistry(42, scheme="sha256-256")
    words = ["a,b", 'quote"', "line\nend", "Zoë 模", "=1+1", "-"]
    for word in words:
        registry.seed("p", word)
    rows = list(csv.DictReader(io.StringIO(registry.ledger.to_csv(every_stream=True), newline="")))
    assert [row["instance"] for row in rows] == [*words[:-2], "'=1+1", "-"]


def test_latex_is_a_booktabs_table():
    """A short table is one float with booktabs rules, a caption with scheme, master seed and
    digest, and a label."""
    ledger = experiment().ledger
    text = ledger.to_latex(label="tab:mine")
    for part in (
        r"\begin{table}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\label{tab:mine}",
        r"\end{table}",
    ):
        assert text.count(part) == 1
    caption = re.search(r"\\caption\{(.*)\}", text).group(1)
    assert "master seed 42" in caption
    assert "scheme sha256{-}31" in caption
    assert ledger.short_digest in caption
    assert len({len(row) for row in rows_of(text)}) == 1


def test_long_latex_tables_are_split():
    """Past a page a table becomes a longtable with its head on every page, and has every row."""
    text = experiment().ledger.to_latex(every_stream=True)
    assert r"\begin{longtable}" in text
    assert r"\endhead" in text
    assert r"\begin{table}" not in text
    assert len(rows_of(text)) == 303 + 2


SPECIAL = (
    "under_score 100% back\\slash {brace} $math$ a&b #1 ~ ^ <tag> |bar| \"q\" 'q' `q` -- "
    "--- … é ß ł"
)


def test_latex_escapes():
    """Every character that LaTeX gives a meaning is escaped, and what pdfLaTeX does not know is
    written by number."""
    registry = SeedRegistry(42)
    registry.seed("special", SPECIAL[:20])
    for word in ("a_b", "50%", "a\\b", "{x}", "$", "&", "#", "~", "^", "模", "\x07"):
        registry.seed("word", word)
    text = registry.ledger.to_latex(every_stream=True)
    body = text[text.index(r"\midrule") :]
    for escaped in (
        r"a\_b",
        r"50\%",
        r"a\textbackslash{}b",
        r"\{x\}",
        r"\$",
        r"\&",
        r"\#",
        r"\textasciitilde{}",
        "U+6A21",
        "U+0007",
    ):
        assert escaped in body
    assert "模" in registry.ledger.to_latex(every_stream=True, unicode=True)
    assert "\x07" not in registry.ledger.to_latex(every_stream=True, unicode=True)


def latex_document(engine: str, encoding: str) -> str:
    """A document with a short table, one with every special character, and one of 2,000 rows."""
    unicode = engine != "pdflatex"
    short = experiment().ledger.to_latex(unicode=unicode)
    registry = SeedRegistry(42, scheme="sha256-256")
    for i, char in enumerate(SPECIAL + "模😀\u0378Ωя"):
        registry.seed("special_%", f"{char}{i}\\")
    for i in range(0x21, 0x250):
        registry.seed("every letter", f"{chr(i)} {i}")
    special = registry.ledger.to_latex(every_stream=True, label="tab:special", unicode=unicode)
    registry = SeedRegistry(42)
    registry.reserve("model", [f"lds_{i}" for i in range(2000)])
    long = registry.ledger.to_latex(every_stream=True, label="tab:long", unicode=unicode)
    packages = rf"{encoding}\usepackage{{booktabs,longtable,textcomp}}"
    references = r"See Tables \ref{tab:seeds}, \ref{tab:special} and \ref{tab:long}."
    body = f"{references}\n{short}\n{special}\n{long}"
    return rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"


@pytest.mark.latex
@pytest.mark.parametrize(
    ("engine", "encoding"),
    [
        ("pdflatex", ""),
        ("pdflatex", r"\usepackage[T1]{fontenc}"),
        ("xelatex", ""),
        ("lualatex", ""),
        ("tectonic", ""),
    ],
)
def test_the_latex_compiles(tmp_path, engine, encoding):
    """The tables compile, with every special character and 2,000 rows, in each engine that is
    installed."""
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed")
    (tmp_path / "paper.tex").write_text(latex_document(engine, encoding), encoding="utf-8")
    options = [] if engine == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    for _ in range(2):
        command = [engine, *options, "paper.tex"]
        run = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False
        )
        assert run.returncode == 0, run.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 50_000
    assert "Reference `" not in run.stdout


def test_markdown_is_one_table():
    """The Markdown table has a row for each purpose, equal numbers of cells, and its special
    characters escaped."""
    registry = experiment()
    registry.seed("pipe|star*", "a\nb")
    text = registry.ledger.to_markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in table}) == 1
    assert r"pipe\|star\*" in text
    assert registry.ledger.short_digest in text.splitlines()[0]


def test_columns_that_say_nothing_are_left_out():
    """A table without children has no column for the registry, and one of single streams none
    for their number."""
    registry = SeedRegistry(42)
    registry.seed("a")
    assert "registry" not in registry.ledger.to_markdown()
    assert "| purpose | instance | seed | uses |" in registry.ledger.to_markdown()


def test_exports_of_an_empty_ledger():
    """A ledger without entries exports tables without rows, and a statement that says so."""
    ledger = Ledger()
    assert ledger.to_csv().count("\n") == 1
    assert "none" in ledger.to_markdown()
    assert r"\bottomrule" in ledger.to_latex()
    assert "No stream was derived." in ledger.statement()
    assert ledger.to_dict()["records"] == []


def test_exports_move_nothing():
    """Making tables and statements draws nothing and adds no entry."""
    registry = experiment()
    state, count = random.getstate(), len(registry.ledger)
    for export in (
        "to_latex",
        "to_markdown",
        "to_csv",
        "to_dict",
        "summary",
        "statement",
        "__str__",
    ):
        getattr(registry.ledger, export)()
    assert random.getstate() == state
    assert len(registry.ledger) == count


# --- the statement --------------------------------------------------------------------------------


def test_the_statement_has_the_facts():
    """The statement names streams, purposes, scheme, master seed, the number of seeds checked,
    versions and digest."""
    registry = experiment()
    text = registry.ledger.statement()
    assert (
        "303 random streams for 3 purposes (fold, model and noise) were derived from master seed "
        "42 under scheme sha256-31" in text
    )
    assert "All 304 recorded seeds" in text
    assert "2 models were built" in text
    assert f"torch {torch.__version__}" in text
    assert text.endswith(f"digest {registry.ledger.short_digest}.")


def test_the_statement_does_not_say_every_without_an_audit():
    """Only a completed audit that found nothing lets the statement say that every draw that was
    seen came from the streams; it names what the audit cannot see."""
    ledger = experiment().ledger
    assert "No audit was made" in ledger.statement()
    assert "every draw" not in ledger.statement()
    ledger.append(Audited(mode="error", undeclared=0, completed=True))
    assert "In 1 audited block of the run, every draw" in ledger.statement()
    for unseen in (
        "every draw that was seen",
        "generators that the program makes itself",
        "random.SystemRandom",
        "set anew inside a scope or a factory",
        "other processes",
        "compiled code",
    ):
        assert unseen in ledger.statement()
    ledger.append(Audited(mode="warn", undeclared=2, completed=False))
    text = ledger.statement()
    assert "every draw" not in text
    assert "2 draws outside these streams were found" in text
    assert "1 audit ended with an exception" in text
    broken = experiment().ledger
    broken.append(Audited(mode="error", undeclared=0, completed=False))
    assert "every draw" not in broken.statement()


@pytest.mark.moves_global_state
def test_the_statement_on_determinism():
    """What was asked of the switches is said in words, and what took no effect too."""
    registry = SeedRegistry(42)
    assert "not set through the registry" in registry.ledger.statement()
    registry.set_global_state(deterministic="warn").revert()
    assert "only warns" in registry.ledger.statement()
    ledger = ledger_of(every_kind())
    assert "took no effect: PYTHONHASHSEED" in ledger.statement()


def test_the_statement_counts_warnings():
    """Recorded warnings are counted by category."""
    registry = SeedRegistry(42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StreamReuseWarning)
        for _ in range(3):
            registry.generator("noise")
    assert "Warnings were recorded: 2 x StreamReuseWarning." in registry.ledger.statement()


def test_the_statement_of_a_forged_ledger():
    """A ledger that does not verify says so, in capitals, and claims no checked seed."""
    ledger = SeedRegistry(42).ledger
    ledger.append(
        records.Derivation(
            master_seed=42, scheme="sha256-31", purpose="model", instance_id="training", seed=1
        )
    )
    text = ledger.statement()
    assert "THE LEDGER DOES NOT VERIFY: 1 fault, the first at line 4 (seed)." in text
    assert "derived again" not in text


def test_no_cell_is_a_formula():
    """A text that a spreadsheet would compute has an apostrophe before it in every text column;
    numbers, and the dash of a stream without an instance id, are as they were."""
    formulas = ("=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "-x")
    registry = SeedRegistry(42)
    for text in formulas:
        registry.seed(text, text)
        registry.child(text).seed("model", text)
    registry.seed("plain", -5)
    registry.seed("none")
    registry.seed("range", -7)
    registry.seed("range", -6)
    for every_stream in (False, True):
        text = registry.ledger.to_csv(every_stream=every_stream)
        rows = list(csv.reader(io.StringIO(text, newline="")))
        cells = [cell for row in rows for cell in row]
        assert {f"'{text}" for text in formulas} <= set(cells)
        starts = ("=", "+", "-", "@", "\t", "\r")
        assert {cell for cell in cells if cell.startswith(starts)} == (
            {"-", "-5", "-6", "-7"} if every_stream else {"-", "-5"}
        )
        assert every_stream or "'-7 .. -6" in cells
        assert all(row[0].isdigit() and row[5].isdigit() for row in rows[1:])
