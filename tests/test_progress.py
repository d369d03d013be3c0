"""Progress of long work: bars on a terminal, lines in a log, nothing for short work, and no
generator moves."""

from __future__ import annotations

import builtins
import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import VARIANTS, held_out, recipe

from seedregistry import SeedRegistry
from seedregistry.attribution import Training, losses_of, magic, metasmoothness, progress, retrain
from seedregistry.attribution.progress import Display


class Terminal(io.StringIO):
    """Takes what is written for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _from_the_beginning(monkeypatch):
    """Work shows itself from its beginning, and a terminal is drawn on each time."""
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture(scope="module")
def training():
    return Training(SeedRegistry(42), recipe(**VARIANTS["dropout"]))


def capture_stderr(work, stream=None) -> str:
    """Return what work writes to standard error."""
    stream = io.StringIO() if stream is None else stream
    with contextlib.redirect_stderr(stream):
        work()
    return stream.getvalue()


TESTS = losses_of(*held_out())
WORKS = {
    "attribute": (8, lambda training, report: magic(training, TESTS, progress=report)),
    "retrain": (
        3,
        lambda training, report: retrain(
            training, TESTS, fractions=(0.1,), subsets=3, progress=report
        ),
    ),
    "metasmoothness": (
        3,
        lambda training, report: metasmoothness(training, TESTS, progress=report),
    ),
}


@pytest.mark.parametrize("what", WORKS)
def test_work_shows_itself(training, what):
    """Without being asked, work that takes its time shows itself in lines; False is silent; a
    function is told each step."""
    total, work = WORKS[what]
    assert (
        capture_stderr(lambda: work(training, True))
        .splitlines()[-1]
        .endswith(f"s  {what}: {total} of {total}")
    )
    assert capture_stderr(lambda: work(training, False)) == ""
    told = []
    assert (
        capture_stderr(lambda: work(training, lambda done, whole: told.append((done, whole)))) == ""
    )
    assert told == [(done, total) for done in range(1, total + 1)]


def test_short_work_is_silent(training, monkeypatch):
    """Work that takes less than a few seconds shows nothing."""
    monkeypatch.undo()
    assert capture_stderr(lambda: magic(training, TESTS)) == ""


def show(*parts) -> None:
    """Show parts (name, steps) from their first step to their last."""
    with contextlib.closing(Display()) as display:
        for what, steps in parts:
            for done in range(1, steps + 1):
                display(what, done, steps)


def test_a_log_has_a_line_for_each_tenth():
    """However many steps there are, each part of the work has about ten lines in a log."""
    lines = capture_stderr(lambda: show(("retrain", 1000), ("attribute", 3))).splitlines()
    assert [line.split("  ")[-1] for line in lines[-3:]] == [
        f"attribute: {done} of 3" for done in (1, 2, 3)
    ]
    assert len(lines) == 13


def test_a_terminal_has_bars():
    """On a terminal each part has a bar with its counts."""
    text = capture_stderr(lambda: show(("attribute", 5), ("retrain", 2)), Terminal())
    for expected in ("attribute", "5/5", "retrain", "2/2", "━"):
        assert expected in text


def test_without_rich_a_terminal_has_lines(monkeypatch):
    """Where rich is missing there are lines, and the work goes on."""
    real = builtins.__import__

    def without_rich(name, *rest):
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    assert capture_stderr(lambda: show(("attribute", 1)), Terminal()).endswith(
        "attribute: 1 of 1\n"
    )


SCRIPT = """
import random, sys
sys.path.insert(0, sys.argv[1])
from seedregistry import rng
from seedregistry.attribution.progress import Display
sys.stderr.isatty = lambda: True
random.seed(7)
before = rng.fingerprint()
display = Display()
display("retrain", 1, 2)
assert "rich" in sys.modules
display.close()
assert rng.fingerprint() == before
"""


def test_a_bar_moves_no_generator():
    """Importing rich draws from python's generator, and drawing a bar may: neither shows in the
    process's state."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(Path(__file__).parent)]
    subprocess.run(command, check=True, capture_output=True)
