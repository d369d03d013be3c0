"""Call sites are the user's: what an installed package merely calls is never named in its place."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap
import threading
import warnings

import pytest

from seedregistry import SeedRegistry
from seedregistry.common import callsite
from seedregistry.ledger import Derivation, Run

INSTALLED = sysconfig.get_path("purelib")
USER = "/home/ada/experiment/train.py"
LINES = {
    "click": f"{INSTALLED}/click/core.py",
    "pytest": f"{INSTALLED}/_pytest/python.py",
    "lightning": f"{INSTALLED}/lightning/pytorch/trainer/call.py",
    "unheard of": f"{INSTALLED}/framework/engine.py",
    "Debian": "/usr/lib/python3/dist-packages/framework/engine.py",
    "runpy": "<frozen runpy>",
    "threading": sysconfig.get_path("stdlib") + "/threading.py",
    "console script": sysconfig.get_path("scripts") + "/train",
    "attrs": "<attrs generated init train.Model>",
}


def caller(path: str, line: int):
    """A function that calls another one, as if it stood on that line of that file."""
    namespace: dict = {}
    source = "\n" * (line - 2) + "def call(function):\n    return function()\n"
    exec(compile(source, path, "exec"), namespace)
    return namespace["call"]


def in_stack(*places, then):
    """Call a function from a stack of places, the outermost first, and return what it returns.

    It runs in a thread: the frames of pytest and of this file are not below it.
    """
    result = []

    def enter(rest):
        if not rest:
            return then()
        return caller(*rest[0])(lambda: enter(rest[1:]))

    thread = threading.Thread(target=lambda: result.append(enter(list(places))))
    thread.start()
    thread.join()
    return result[0]


@pytest.fixture(autouse=True)
def this_file_only_calls(monkeypatch):
    """The stack of a test is of this file's making: the file itself is no user's."""
    monkeypatch.setattr(callsite, "_kinds", {__file__: callsite._CALLER})


def seed_site() -> str:
    registry = SeedRegistry(42)
    registry.seed("model")
    return registry.ledger.find(Derivation)[0].call_site


@pytest.mark.parametrize("name", LINES)
def test_what_only_calls_is_passed_over(name):
    """A frame that merely calls is never the place when a user's frame is below it."""
    assert in_stack((USER, 33), (LINES[name], 900), then=seed_site) == "train.py:33"
    assert in_stack((LINES[name], 900), (USER, 33), then=seed_site) == "train.py:33"


def test_the_innermost_of_the_users_frames_is_the_place():
    """Of several lines of the user's the innermost is the place, whatever stands between them."""
    places = [(USER, 33), (LINES["click"], 1), ("/home/ada/experiment/data.py", 7)]
    assert in_stack(*places, (LINES["lightning"], 5), then=seed_site) == "data.py:7"


def test_a_notebook_and_a_command_line_are_the_users():
    """Cells and `python -c` have names that are no paths, and are the user's."""
    for name in ("<ipython-input-3-abc>", "/tmp/ipykernel_12/4242.py", "<string>", "<stdin>"):
        place = in_stack((LINES["runpy"], 1), (name, 3), (LINES["click"], 9), then=seed_site)
        assert place == f"{name.rpartition('/')[2]}:3"


def test_a_project_that_is_installed_is_the_place_where_there_is_no_other():
    """Where all frames are of installed packages, the one that is no known caller is the place."""
    places = [(LINES["console script"], 8), (LINES["click"], 1), (LINES["unheard of"], 70)]
    assert in_stack(*places, (LINES["pytest"], 5), then=seed_site) == "engine.py:70"


def test_where_nobody_is_below_the_librarys_line_is_the_place():
    """Where all frames only call, the line of the library that began the work is the place."""
    places = [(LINES["console script"], 8), (LINES["click"], 1)]
    place = in_stack(*places, then=lambda: SeedRegistry(42).ledger.find(Run)[0].call_site)
    assert place.startswith("registry.py:")


def test_warnings_point_at_the_users_line():
    """A warning points at the user's line, through an installed package that called the library."""

    def reuse() -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            registry = SeedRegistry(42, on_reuse="warn")
            for _ in range(2):
                registry.generator("noise")
        return f"{caught[-1].filename}:{caught[-1].lineno}"

    assert in_stack((USER, 33), (LINES["click"], 900), then=reuse) == f"{USER}:33"


def save_with(script: str, folder, *command: str) -> str:
    """Run a script that saves a ledger, and return the ledger's file."""
    (folder / "train.py").write_text(textwrap.dedent(script), encoding="utf-8")
    command = command or ("train.py",)
    subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
    return (folder / "ledger.jsonl").read_text(encoding="utf-8")


def test_a_command_of_the_users(tmp_path):
    """A derivation in a function that click calls has the function's line."""
    pytest.importorskip("click")
    script = """
    import click, seedregistry
    @click.command()
    def train():
        registry = seedregistry.SeedRegistry(42)
        registry.seed("model")
        registry.ledger.save("ledger.jsonl")
    train()
    """
    for command in ((), ("-m", "train")):
        text = save_with(script, tmp_path, *command)
        assert '"call_site":"train.py:6"' in text
        assert "core.py" not in text


def test_a_command_of_the_librarys(tmp_path):
    """The ledger of `seedregistry magic` has the user's lines, and none of click's."""
    pytest.importorskip("click")
    script = """
    import torch
    from seedregistry.attribution import Recipe, losses_of
    def linear():
        return torch.nn.Linear(4, 2, dtype=torch.float64)
    def plan(registry):
        data = registry.generator("data")
        inputs = torch.randn(8, 4, generator=data, dtype=torch.float64)
        targets = torch.tensor([0, 1] * 4)
        recipe = Recipe(
            model=linear, dataset=(inputs, targets), epochs=1, batch_size=4,
            optimizer_options={"lr": 0.1}, dtype=torch.float64,
        )
        return recipe, losses_of(inputs[:1], targets[:1])
    """
    magic = "-m seedregistry magic train:plan --out scores.npz --ledger ledger.jsonl"
    text = save_with(script, tmp_path, *magic.split())
    assert '"call_site":"train.py:7"' in text
    assert "core.py" not in text
    assert "runpy" not in text


def test_a_process_that_was_spawned(tmp_path):
    """The line that multiprocessing starts its children with is nobody's, and not the place."""
    script = """
    import multiprocessing
    from seedregistry import SeedRegistry
    def derive():
        registry = SeedRegistry(42)
        registry.seed("model")
        registry.ledger.save("ledger.jsonl")
    if __name__ == "__main__":
        process = multiprocessing.get_context("spawn").Process(target=derive)
        process.start()
        process.join()
    """
    assert '"call_site":"train.py:6"' in save_with(script, tmp_path)
