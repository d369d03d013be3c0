"""The sessions of the project: ``nox -s SESSION -- ARGUMENTS``; ``nox -l`` lists them."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"  # the first with the form of dependency_groups used here
nox.options.sessions = ["lint", "types", "tests", "docs"]
# Python's own venv: virtualenv has no seed for 3.8 any more. pip installs, so that its settings on
# a machine decide which build of torch comes.
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True  # torch is large; a session's environment is kept
nox.options.error_on_missing_interpreters = True  # no session passes by being skipped

PROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = Path(__file__).parent / ".ci" / "constraints"
FLOOR_PYTHON = "3.8"


def install(
    session: nox.Session, *groups: str, constraints: str = "dev", library: bool = True
) -> None:
    """Install dependency groups of pyproject.toml, and the library, under a constraints file."""
    packages = nox.project.dependency_groups(PROJECT, *groups)
    own = ["-e", "."] if library else []
    session.install("-c", str(CONSTRAINTS / f"{constraints}.txt"), *own, *packages)


def find_python(version: str) -> str:
    """Return an interpreter of a version.

    From pyenv, whose shims on the PATH hide what is not selected, or from the PATH.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    beside_this_one = Path(
        sys.base_prefix
    ).parent  # pyenv's too, where the home directory is another
    for versions in (pyenv, beside_this_one):
        found = sorted(
            versions.glob(f"{version}.*/bin/python"),
            key=lambda path: int(path.parts[-3].split(".")[2]),
        )
        if found:
            return str(found[-1])
    return shutil.which(f"python{version}") or version


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style with ruff: every rule, formatting included."""
    install(session, "lint", library=False)
    where = session.posargs or ["."]
    session.run("ruff", "check", *where)
    session.run("ruff", "format", "--check", *where)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy, strictly; also how a user's code types against the library."""
    install(session, "types")
    session.run("mypy", *session.posargs)


# On every core, each file of tests on one of them: what a file makes once is made once.
PYTEST = ("pytest", "--numprocesses=logical", "--dist=loadfile")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, those with accelerate and Lightning among them."""
    install(session, "test", "frameworks")
    session.run(*PYTEST, *session.posargs)


@nox.session(python=find_python(FLOOR_PYTHON))
def floor(session: nox.Session) -> None:
    """Run the whole suite on the oldest supported set.

    Python 3.8, torch 2.2.2, NumPy 1.24, attrs 22.2.
    """
    install(session, "test", constraints="floor")
    session.run(*PYTEST, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation with warnings as errors."""
    install(session, "docs")
    session.run(
        "sphinx-build",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-b",
        "html",
        *session.posargs,
        "docs",
        "docs/_build/html",
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the figures of the project, and print and write them as a table."""
    install(session, "bench")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """Run the fourteen tests against this library and its peers.

    Composer brings its own torch, with gigabytes of CUDA.
    """
    install(session, "peers")
    composer = (
        Path(session.create_tmp()).resolve()
        / "composer"
        / ("Scripts" if os.name == "nt" else "bin")
        / "python"
    )
    if not composer.exists():
        session.run("python", "-m", "venv", str(composer.parent.parent))
    session.run(
        str(composer),
        "-m",
        "pip",
        "install",
        "-q",
        *nox.project.dependency_groups(PROJECT, "composer"),
        external=True,
    )
    session.run(
        "python", "benchmarks/peers/table.py", "--python", f"composer={composer}", *session.posargs
    )


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demonstration: train on digits, attribute, retrain hundreds of models.

    Write ledger, table and report.
    """
    install(session, "demo")
    session.run("python", "-m", "seedregistry", "demo", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the distributions, look into them, and import the wheel in a fresh environment."""
    session.install("build")
    out = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(out), *session.posargs, silent=True)
    wheel, sdist = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    modules = {
        path.as_posix()
        for path in Path("seedregistry").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if modules - in_wheel or modules - in_sdist:
        session.error(
            f"missing: {sorted(modules - in_wheel)} from the wheel, {sorted(modules - in_sdist)} "
            "from the sdist"
        )
    strangers = sorted(
        name for name in in_wheel if not name.startswith(("seedregistry/", "seedregistry-"))
    )
    if strangers:
        session.error(f"{wheel.name} holds more than the library: {strangers}")
    if "seedregistry/py.typed" not in in_wheel or not any(
        name.endswith("licenses/LICENSE") for name in in_wheel
    ):
        session.error(f"{wheel.name} lacks its type marker or its licence")
    fresh = out.parent / "fresh"
    session.run("python", "-m", "venv", "--clear", str(fresh))
    python = str(fresh / ("Scripts" if os.name == "nt" else "bin") / "python")
    session.run(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        str(CONSTRAINTS / "dev.txt"),
        str(wheel),
        external=True,
    )
    session.chdir(out)  # away from the checkout, so that the installed package is what is imported
    line = (
        "import seedregistry as s; print(s.__version__, s.__file__, "
        "s.SeedRegistry(42).seed('model', 'training'))"
    )
    session.run(python, "-W", "error", "-c", line, external=True)
