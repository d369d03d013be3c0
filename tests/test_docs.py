"""Every example in the README, the documentation and the docstrings runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
)
PAGES = [page for page in PAGES if "_build" not in page]
DOORS = [
    f"seedregistry.{name}"
    for name in (
        *("attribution", "audit", "components", "data", "derivation", "determinism", "errors"),
        *("ledger", "registry", "rng", "stream"),
    )
]
"""The doors whose classes show how they are used."""

FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

RUNNER = """
import sys, warnings
import torch, sklearn.datasets
from seedregistry import determinism, rng
path = sys.argv[1]
before = rng.fingerprint(), {switch.name: switch.get() for switch in determinism._SWITCHES}
warnings.simplefilter("error")
namespace = {"__name__": "__main__"}
with open(path, encoding="utf-8") as page:
    source = page.read()
exec(compile(source, path, "exec"), namespace)
after = rng.fingerprint(), {switch.name: switch.get() for switch in determinism._SWITCHES}
# A page that starts a GPU has made its generators, which were not there before.
assert {name: after[0][name] for name in before[0]} == before[0], "the page moved a generator"
assert after[1] == before[1], "the page changed a switch"
"""


def blocks(page: str) -> str:
    """The Python of a page, each block at its own line, so that errors point into the page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [""] * text.count("\n")
    for match in FENCE.finditer(text):
        start = text.count("\n", 0, match.start(1))
        for offset, line in enumerate(match.group(1).splitlines()):
            lines[start + offset] = line
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_pages_run(page, tmp_path):
    """All Python of a page runs in order in a fresh interpreter, without a warning, and leaves
    the process's state alone."""
    source = blocks(page)
    if not source.strip():
        return
    script = tmp_path / "page.py"
    script.write_text(source, encoding="utf-8")
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    run = subprocess.run(
        [sys.executable, "-c", RUNNER, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_there_are_examples():
    """The README, the tutorial and most other pages have examples that run."""
    with_code = [page for page in PAGES if blocks(page).strip()]
    assert {"README.md", "docs/tutorial.md", "docs/leaving.md", "docs/derivation.md"} <= set(
        with_code
    )
    assert len(with_code) >= 12


def test_pages_use_known_fences():
    """Every fence names its language, so that no Python escapes the test above."""
    for page in PAGES:
        for fence in re.findall(
            r"^```+(.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert fence == "" or fence.split()[0].strip("{}") in {
                "python",
                "text",
                "console",
                "bash",
                "toctree",
                "eval-rst",
                "list-table",
                "note",
                "warning",
                "toml",
                "tip",
                "important",
                "json",
            }, f"{page}: {fence}"


FIRST_MET = {
    "Builders.dataloader",
    "Builders.model",
    "Builders.optimizer",
    "Stream.at",
    "Stream.scope",
    "SeedRegistry.generator",
    "SeedRegistry.seed",
    "SeedRegistry.stream",
    "create_deterministic_model",
    "derive_component_seed",
    "deterministic_context",
    "lds",
    "magic",
    "retrain",
    "verify_file",
}
"""The functions that users meet first: each shows how it is called."""


def examples() -> dict:
    """The docstrings with an example, by file and name; a method has the name of its class too."""
    texts = {}
    for path in sorted((ROOT / "seedregistry").rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts[module, "module"] = ast.get_docstring(tree)
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                    prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                    texts[module, prefix + child.name] = ast.get_docstring(child)
    return {place: text for place, text in texts.items() if ">>>" in (text or "")}


EXAMPLES = examples()


@pytest.mark.parametrize("place", sorted(EXAMPLES), ids="-".join)
def test_docstring_examples_run(place, tmp_path, monkeypatch):
    """The examples of a docstring run, in an empty folder, and leave the process as it was."""
    monkeypatch.chdir(tmp_path)
    file, name = place
    test = doctest.DocTestParser().get_doctest(EXAMPLES[place], {}, name, file, 0)
    output = io.StringIO()
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.write)
    assert result.failed == 0, output.getvalue()


def test_the_first_things_show_how_they_are_used():
    """Every class of these doors, and what users meet first, has an example in its docstring."""
    with_example = {name for _, name in EXAMPLES}
    classes = {
        name
        for door in DOORS
        for name in importlib.import_module(door).__all__
        if isinstance(getattr(importlib.import_module(door), name), type)
    }
    assert len(classes) >= 10
    assert classes - with_example == set()
    assert FIRST_MET - with_example == set()


def test_an_example_that_is_wrong_is_caught():
    """An example whose result is another fails."""
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3", {}, "sum", "nowhere", 0)
    assert doctest.DocTestRunner().run(test, out=lambda _: None).failed == 1


@pytest.mark.parametrize("arguments", [["--epochs", "2"], ["--epochs", "1", "--seed", "7"]])
def test_the_example_runs(arguments, tmp_path):
    """The example in docs/examples trains, repeats bit for bit, and leaves a ledger that
    verifies and its table."""
    from seedregistry.ledger import verify_file

    out = tmp_path / "out"
    run = subprocess.run(
        [sys.executable, str(ROOT / "docs/examples/digits.py"), *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    report = verify_file(out / "ledger.jsonl")
    assert report.ok
    assert report.is_sealed
    for text in (
        run.stdout,
        (out / "ledger.tex").read_text(encoding="utf-8"),
        (out / "statement.txt").read_text(encoding="utf-8"),
    ):
        assert report.digest[:12] in text


def test_no_page_names_a_registry_host():
    """No file of the project names the host of a package registry."""
    hosts = [
        "pypi" + ".org",
        "python" + "hosted.org",
        "registry." + "npmjs",
        "download." + "pytorch.org",
    ]
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in listed or PAGES:
        path = ROOT / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not any(host in text for host in hosts), name
