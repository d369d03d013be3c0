"""The doors: the reference documents each public name once, and pages import from doors only."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

import seedregistry

ROOT = Path(seedregistry.__file__).parent
REPOSITORY = Path(__file__).parent.parent

# What `__main__` and `version` name is named by other doors too; `integrations` names nothing.
WITHOUT_PAGE = {"__main__", "version", "common/__init__", "integrations/__init__"}

REFERENCE = sorted((REPOSITORY / "docs" / "reference").glob("*.md"))
DIRECTIVE = re.compile(r"^\.\. (auto\w+|py:\w+):: ([\w.]+)\n((?:[ ]+\S.*\n)*)", re.MULTILINE)
EXCLUDED = re.compile(r"^ +:exclude-members: (.+)$", re.MULTILINE)
PYTHON = re.compile(r"^```(?:python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAME_IN_PROSE = re.compile(r"`(seedregistry(?:\.\w+)+)[^`/\w]*(?:\([^`]*\))?`")


def find_doors() -> set:
    """The modules whose names are promised: the package, the files at its root, the rooms, an
    integration each, and the modules that a room names."""
    files = {path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.py")}
    doors = {
        file.replace("/", ".")
        for file in files - WITHOUT_PAGE
        if "/" not in file or file.endswith("/__init__") or file.startswith("integrations/")
    }
    doors = {f"seedregistry.{door}".replace(".__init__", "") for door in doors}
    return doors | {"seedregistry.attribution.baselines", "seedregistry.attribution.bridges"}


DOORS = find_doors()


def load(door: str):
    """The module of a door; the test is skipped where the framework it needs is missing."""
    try:
        return importlib.import_module(door)
    except ImportError as error:
        return pytest.skip(str(error))


def is_documented_by_itself(thing: object) -> bool:
    """Whether a thing has a docstring of its own, which constants have not."""
    return inspect.isclass(thing) or inspect.isroutine(thing)


def promised_names(door: str) -> list:
    """The names of a door: its __all__, without modules that are doors themselves; for such a
    module, the public functions and classes that it defines."""
    module = load(door)
    exported = getattr(module, "__all__", None)
    if exported is not None:
        return [name for name in exported if f"{door}.{name}" not in DOORS]
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and is_documented_by_itself(thing)
        and thing.__module__ == module.__name__
    ]


def identify(path: str) -> str:
    """Where a thing is defined, so that a name that two doors have is one; a constant is known by
    its door."""
    door, _, name = path.rpartition(".")
    thing = getattr(load(door), name)
    return f"{thing.__module__}.{thing.__qualname__}" if is_documented_by_itself(thing) else path


def read_directives(text: str) -> list:
    """The directives of a page that document something: (directive, target, excluded names)."""
    found = []
    for directive, target, options in DIRECTIVE.findall(text):
        excluded = EXCLUDED.search(options)
        names = {name.strip() for name in excluded.group(1).split(",")} if excluded else set()
        found.append((directive, target, names))
    return found


def find_back_rooms(text: str) -> list:
    """The targets of a page's directives that are no door, nor a name of one."""
    wrong = []
    for directive, target, _ in read_directives(text):
        door, _, name = target.rpartition(".")
        is_named = door in DOORS and name in promised_names(door)
        if not (target in DOORS if directive == "automodule" else is_named):
            wrong.append(target)
    return wrong


def find_documented(text: str) -> list:
    """What a page documents, each thing by where it is defined.

    Of a module Sphinx documents what its __all__ names and has a docstring of its own.
    """
    found = []
    for directive, target, excluded in read_directives(text):
        if directive != "automodule":
            found.append(identify(target))
            continue
        door = load(target)
        found += [
            identify(f"{target}.{name}")
            for name in promised_names(target)
            if name not in excluded and is_documented_by_itself(getattr(door, name))
        ]
    return found


def find_strange_imports(source: str) -> list:
    """The imports of a piece of Python that name no door, or what the door does not name."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a fence of plain text
        return []
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wrong += [
                alias.name
                for alias in node.names
                if alias.name.startswith("seedregistry.") and alias.name not in DOORS
            ]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seedregistry"):
            wrong += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if not is_promised(node.module, alias.name)
            ]
    return wrong


def is_promised(door: str, name: str) -> bool:
    return f"{door}.{name}" in DOORS or (door in DOORS and name in promised_names(door))


def find_strange_names(text: str) -> list:
    """The dotted names in a page's prose that are no door, nor a name of one."""
    return [
        path
        for path in NAME_IN_PROSE.findall(text)
        if path not in DOORS and not is_promised(*path.rpartition(".")[::2])
    ]


def test_the_doors_are_those_of_the_readme():
    """The package, the files at its root, the rooms and the integrations are the doors."""
    for door in ("stream", "attribution", "attribution.demo", "integrations.accelerate", "cli"):
        assert f"seedregistry.{door}" in DOORS
    for room in ("common", "attribution.recipe", "ledger.records", "cli.app"):
        assert f"seedregistry.{room}" not in DOORS


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_the_reference_names_doors_only(page):
    """Each directive of the reference names a door, or what a door names."""
    assert find_back_rooms(page.read_text(encoding="utf-8")) == []


def test_a_back_room_in_the_reference_is_caught():
    """The check above finds a module, a class and a function behind a door."""
    wrong = [
        ".. automodule:: seedregistry.attribution.recipe\n",
        ".. autoclass:: seedregistry.attribution.recipe.Recipe\n   :members:\n",
        ".. autofunction:: seedregistry.rng.discover\n",
    ]
    for line in wrong:
        assert find_back_rooms(line) == [line.split()[2]]


def count_documented(*additions: str) -> Counter:
    texts = [page.read_text(encoding="utf-8") for page in REFERENCE]
    return Counter(name for text in (*texts, *additions) for name in find_documented(text))


def collect_promised() -> set:
    return {identify(f"{door}.{name}") for door in DOORS for name in promised_names(door)}


def test_each_public_name_is_on_one_page():
    """What the doors name is documented once each, and nothing else is documented."""
    pytest.importorskip("accelerate")
    pytest.importorskip("click")
    documented = count_documented()
    assert set(documented) == collect_promised()
    assert [name for name, times in documented.items() if times > 1] == []


def test_a_second_page_is_caught():
    """The check above finds a name that is documented a second time, by way of another door."""
    pytest.importorskip("accelerate")
    pytest.importorskip("click")
    documented = count_documented(".. autoclass:: seedregistry.stream.Stream\n")
    assert [name for name, times in documented.items() if times > 1] == [
        "seedregistry.stream.Stream"
    ]


def test_a_missing_page_is_caught(monkeypatch):
    """The check above finds a name that no page documents."""
    pytest.importorskip("accelerate")
    pytest.importorskip("click")
    audit = [page for page in REFERENCE if page.stem == "audit"]
    monkeypatch.setitem(globals(), "REFERENCE", [page for page in REFERENCE if page not in audit])
    assert collect_promised() - set(count_documented()) == {"seedregistry.audit.Audit"}


USERS = sorted(
    path
    for path in [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "docs" / "examples").glob("*.py"),
        *(REPOSITORY / "tests" / "typing").glob("*.py"),
    ]
    if "_build" not in path.parts
)


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_users_are_shown_doors_only(path):
    """The README, the pages, the examples and the public typing import what doors name, and pages
    write no other dotted name."""
    text = path.read_text(encoding="utf-8")
    pieces = PYTHON.findall(text) if path.suffix == ".md" else [text]
    assert [name for piece in pieces for name in find_strange_imports(piece)] == []
    if path.suffix == ".md" and path.stem != "architecture":  # the map names the rooms
        assert find_strange_names(text) == []


def test_an_import_from_a_back_room_is_caught():
    """The check above finds what is behind a door, and what a door does not name."""
    wrong = {
        "from seedregistry.ledger.records import Built": "seedregistry.ledger.records.Built",
        "from seedregistry.ledger import canonical": "seedregistry.ledger.canonical",
        "from seedregistry import no_such_thing": "seedregistry.no_such_thing",
        "import seedregistry.data.permutation": "seedregistry.data.permutation",
    }
    for line, name in wrong.items():
        assert find_strange_imports(f"def inner():\n    {line}\n") == [name]
    assert (
        find_strange_imports("from seedregistry import audit, Stream\nimport seedregistry.rng")
        == []
    )
    assert find_strange_names("see `seedregistry.data.permutation.IndexedPermutation(key, size)`")
    assert not find_strange_names("`seedregistry.ledger/1`, `seedregistry.data.find_generators`")
