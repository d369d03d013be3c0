"""The user's line: for messages, for warnings, and as circumstance in the ledger.

It is the innermost frame of the user's own code. Frames of this library, of the standard library
and of installed packages only call: click calls a command, pytest a test, Lightning a hook. They
are passed over wherever a frame of the user's is further out.

Where no frame is the user's, as in ``seedregistry demo`` or in a project that is installed itself,
the place is the innermost frame of an installed package that is not known to call other people's
code; and where there is no such frame either, the line of this library that began the work.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Dict, Tuple

if TYPE_CHECKING:
    from types import FrameType

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_STANDARD = (
    os.path.dirname(os.__file__) + os.sep,
    os.path.dirname(os.path.realpath(os.__file__)) + os.sep,
    os.path.join(sys.prefix, "Scripts" if os.name == "nt" else "bin") + os.sep,
)
"""Folders of the standard library and of console scripts. ``sysconfig`` knows them, and is slow."""

_CALLERS = {
    *("click", "fire", "hydra", "typer"),
    *("IPython", "_pytest", "ipykernel", "pluggy", "pytest"),
    *(
        "accelerate",
        "composer",
        "ignite",
        "lightning",
        "pytorch_lightning",
        "torch",
        "transformers",
    ),
    *("dask", "distributed", "joblib", "ray"),
}
"""Packages that run other people's code, by their top-level names."""

_USER, _PROJECT, _CALLER, _LIBRARY = range(4)

_kinds: Dict[str, int] = {}
"""What each file is, by its path as frames have it. Files of one process: it stays small."""

_labels: Dict[Tuple[str, int], str] = {}
"""``"file.py:12"`` by (path, line): made once, since a loop may come here a million times."""


def call_site(inner: int = 0) -> str:
    """Return ``"file.py:12"`` for the user's line: the base name only, never a path.

    Args:
        inner: how many callers of the caller are the library's for certain, and need not be looked
            at.
    """
    frame, _ = _user_frame(sys._getframe(1 + inner))
    place = (frame.f_code.co_filename, frame.f_lineno)
    label = _labels.get(place)
    if label is None:
        label = _labels[place] = f"{os.path.basename(place[0])}:{place[1]}"
    return label


def user_line() -> Tuple[str, int]:
    """Return (path, line) of the user's line."""
    frame, _ = _user_frame(sys._getframe(1))
    return frame.f_code.co_filename, frame.f_lineno


def stack_level() -> int:
    """Return the ``stacklevel`` that makes ``warnings.warn`` point at the user's line.

    For the function that calls both: its own frame has level 1.
    """
    _, depth = _user_frame(sys._getframe(1))
    return depth + 1


def _user_frame(innermost: FrameType) -> Tuple[FrameType, int]:
    """Return the frame whose line is the user's, and its distance from the innermost frame."""
    frame, depth = innermost, 0
    project = edge = None
    while True:
        kind = _kind(frame)
        if kind == _USER:
            return frame, depth
        if kind == _PROJECT and project is None:
            project = frame, depth
        if kind == _LIBRARY and (edge is None or edge[1] == depth - 1):
            edge = frame, depth  # the last of the library's frames before the first of others
        if frame.f_back is None:
            return project or edge or (innermost, 0)
        frame, depth = frame.f_back, depth + 1


def _kind(frame: FrameType) -> int:
    path = frame.f_code.co_filename
    kind = _kinds.get(path)
    if kind is None:
        kind = _kinds[path] = _kind_of_file(path)
    # A spawned process begins in `python -c "from multiprocessing.spawn import ..."`.
    if kind == _USER and path == "<string>" and "spawn_main" in frame.f_code.co_names:
        return _CALLER
    return kind


def _kind_of_file(path: str) -> int:
    if path.startswith(_PACKAGE):
        return _LIBRARY
    for folder in _INSTALLED:
        if folder in path:
            name = path.rpartition(folder)[2].partition(os.sep)[0]
            return _CALLER if name.partition(".")[0] in _CALLERS else _PROJECT
    # Frozen modules, and methods that attrs writes, have names such as "<frozen runpy>".
    if path.startswith((*_STANDARD, "<frozen ", "<attrs ")):
        return _CALLER
    return _USER
