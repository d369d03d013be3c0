"""A word has one sense: names that were given up stay given up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import seedregistry

ROOT = Path(seedregistry.__file__).parent
GLOSSARY = ROOT.parent / "docs" / "glossary.md"

NOWHERE = {"own", "found", "one", "known"}
"""Not the name of anything, nor a part of one: a noun says what it is."""

GIVEN_UP = {
    "Kept",
    "Loaded",
    "PartsDigest",
    "Part",
    "Slots",
    "default_slots",
    "parts_digest",
    "pinned_threads",
    "run_many",
    "words_of",
}
"""Names of things that go by another name now."""

ONLY_IN = {
    "slots": {"attribution/optimizers", "attribution/states", "attribution/training"},
    "journal": {"ledger", "registry"},
    "words": {"rng", "derivation", "data/permutation", "stream"},
}
"""Words with a sense in some rooms alone: buffers, the ledger's file, 32-bit words."""

PARTICIPLE = re.compile(r"[^\W_]*(?<!se)(?<!fe)(?<!ne)ed|written|shown|drawn|given|kept|taken")


def names(tree: ast.AST) -> set:
    """Every name that a file gives to something."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
    return found


def functions(tree: ast.AST) -> set:
    """The functions and methods of a file that are no properties."""
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and not any("property" in ast.dump(mark) for mark in node.decorator_list)
    }


def offences(source: str, module: str) -> list:
    tree = ast.parse(source)
    wrong = []
    for name in names(tree):
        words = set(name.strip("_").lower().split("_"))
        if words & NOWHERE or name in GIVEN_UP:
            wrong.append(name)
        elsewhere = any(
            word in words and not module.startswith(tuple(rooms)) for word, rooms in ONLY_IN.items()
        )
        if elsewhere and not name.startswith("__"):
            wrong.append(name)
    participles = [name for name in functions(tree) if PARTICIPLE.fullmatch(name.strip("_"))]
    return wrong + participles


def sources() -> dict:
    paths = ROOT.rglob("*.py")
    return {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in paths}


@pytest.mark.parametrize("module", sorted(sources()))
def test_no_name_that_was_given_up(module):
    """No identifier is one that was given up, and no function is named by a participle."""
    assert offences(sources()[module].read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    "source",
    [
        "own = 1",
        "def f(own_id): pass",
        "x.found",
        "for one in xs: pass",
        "def counted(): pass",
        "def _checked(): pass",
        "class Slots: pass",
        "magic(slots=3)",
        "journal = open('progress')",
        "stream.words()",
    ],
)
def test_a_name_that_was_given_up_is_caught(source):
    """The check above finds each kind of name, in whatever place it is given."""
    assert offences(source, "attribution/metagradients")


def test_the_glossary_is_complete_and_in_order():
    """The glossary has every word with a special sense, once, in the order of the alphabet."""
    terms = re.findall(r"^([^\n:`][^\n]*)\n: ", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    needed = """
    address component digest door fingerprint journal kept-state late-seed ledger measurement
    peer piece position protocol recipe registry replicate report retraining room run scheme score
    share slot stream stretch training use
    """
    assert {term.replace("-", " ") for term in needed.split()} <= set(terms)
    assert len(terms) == len(set(terms))
    assert terms == sorted(terms, key=str.lower)
    assert not {"part", "word", "words"} & set(terms)
