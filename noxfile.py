"""The sessions of the project: ``nox -s SESSION -- ARGUMENTS``; ``nox -l`` lists them."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
FLOOR_PYTHON = "3.8"


def install(session: nox.Session, *groups: str, constraints: str = "dev", library: bool = True) -> None:
    """Install dependency groups of pyproject.toml, and the library, under a constraints file."""
    packages = nox.project.dependency_groups(PROJECT, *groups) if groups else ()
    own = ["-e", "."] if library else []
    session.install("-q", "-c", f"constraints/{constraints}.txt", *own, *packages)


def find_python(version: str) -> str:
    """Return an interpreter of a version: from the PATH, or from pyenv, whose shims hide what is not selected."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")), Path("/root/.pyenv")]
    for root in roots:
        found = sorted(root.glob(f"versions/{version}.*/bin/python"))
        if found:
            return str(found[-1])
    return shutil.which(f"python{version}") or version


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style with ruff: every rule, formatting included."""
    install(session, "lint", library=False)
    session.run("ruff", "check", *(session.posargs or ["."]))
    session.run("ruff", "format", "--check", *(session.posargs or ["."]))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy, strictly; also how a user's code types against the library."""
    install(session, "types")
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session(python=find_python(FLOOR_PYTHON))
def floor(session: nox.Session) -> None:
    """Run the whole suite on the oldest supported pair: Python 3.8 with torch 2.2.2."""
    install(session, "test", constraints="floor")
    session.run("pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation with warnings as errors."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the figures of the project, and print them as a table."""
    install(session, "bench")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the main job: train on real digits from one registry, and dump the ledger."""
    install(session, "demo")
    session.run("python", "docs/examples/digits.py", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the distributions, look into the wheel, and import it from a fresh environment."""
    session.install("-q", "build")
    out = Path(session.create_tmp()) / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(out), *session.posargs, silent=True)
    wheel = next(out.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("seedregistry/py.typed", "seedregistry/rng/scope.py"):
        if wanted not in names:
            session.error(f"{wanted} is missing from {wheel.name}")
    if any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names):
        session.error(f"{wheel.name} holds more than the library")
    session.install("-q", "-c", "constraints/dev.txt", str(wheel))
    session.chdir(session.create_tmp())
    session.run("python", "-c", "import seedregistry; print(seedregistry.SeedRegistry(42).seed('model', 'training'))")
