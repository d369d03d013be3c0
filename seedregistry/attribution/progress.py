"""How far long work is, on standard error: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from typing import Any, Callable, Dict, Iterator, Union

from seedregistry import rng

ProgressOption = Union[bool, Callable[[int, int], None]]
"""How work shows its progress.

True shows it when the work takes more than a few seconds, and False never does. A function is
called with (done, total) instead.
"""

_DELAY_S = 3.0
_EVERY_S = 0.1
_LINES = 10
"""Lines in a log for each task."""


class Display:
    """Bars or lines, one for each task of the work.

    A bar needs rich and a terminal; without either there are lines. Nothing is shown before
    ``delay_s``, so that short work is silent. Drawing a bar moves no generator: rich draws from
    python's when it is imported.

    Args:
        delay_s: seconds from the making of the display on.
    """

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        self._started = time.monotonic()
        self._drawn = 0.0
        self._bars: Any = None
        self._tasks: Dict[str, Any] = {}

    def close(self) -> None:
        """Stop drawing, and leave the bars as they are."""
        if self._bars is not None:
            with _keep_generators():
                self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of the ``total`` steps of the task ``what`` are done."""
        now = time.monotonic()
        if now - self._started < self._delay_s or sys.stderr is None:
            return

        # Once there are bars, rich has put a stream in the place of stderr that may say it is no
        # terminal: it is not asked again.
        if self._bars is not None or sys.stderr.isatty():
            if done < total and now - self._drawn < _EVERY_S:
                return
            self._drawn = now
            with _keep_generators():
                if self._draw(what, done, total):
                    return

        if done == total or done % max(1, total // _LINES) == 0:
            sys.stderr.write(f"{now - self._started:7.1f} s  {what}: {done} of {total}\n")
            sys.stderr.flush()

    def _draw(self, what: str, done: int, total: int) -> bool:
        """Draw the bars; False where rich is missing."""
        if self._bars is None:
            try:
                from rich import progress
                from rich.console import Console
            except ImportError:
                return False

            columns = (
                progress.TextColumn("{task.description:24}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
            )
            # Without auto_refresh rich starts no thread, which would draw while a step is in a
            # scope.
            self._bars = progress.Progress(
                *columns, console=Console(stderr=True), auto_refresh=False
            )
            self._bars.start()

        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, refresh=True)
        return True


@contextlib.contextmanager
def _keep_generators() -> Iterator[None]:
    captured = rng.Captured()
    try:
        yield
    finally:
        captured.restore()


@contextlib.contextmanager
def show_progress(option: ProgressOption, what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a block a function to call with (done, total), which shows them as the option asks.

    Args:
        option: how to show progress.
        what: names the work in what is shown.
    """
    if callable(option):
        yield option
    elif not option:
        yield _show_nothing
    else:
        with contextlib.closing(Display(delay_s=_DELAY_S)) as display:
            yield functools.partial(display, what)


def _show_nothing(done: int, total: int) -> None:
    del done, total
