"""The user's line: the innermost frame outside this library, for messages and as circumstance in the ledger."""

from __future__ import annotations

import os
import sys
from typing import Dict, Tuple

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_seen: Dict[Tuple[str, int], str] = {}


def call_site(inner: int = 0) -> str:
    """Return ``"file.py:12"`` of the innermost frame outside the library.

    The base name only, never a path.

    Args:
        inner: how many callers of the caller are the library's for certain, and need not be looked
            at.
    """
    frame = sys._getframe(1 + inner)
    while frame.f_code.co_filename.startswith(_PACKAGE):
        outer = frame.f_back
        if outer is None:
            break
        frame = outer
    place = (frame.f_code.co_filename, frame.f_lineno)
    known = _seen.get(place)
    if known is None:
        known = _seen[place] = f"{os.path.basename(place[0])}:{place[1]}"
    return known


def user_line(*passed_over: str) -> Tuple[str, int]:
    """Return (path, line) of the innermost frame outside the library and outside the directories given."""
    frame = sys._getframe(1)
    over = (_PACKAGE, *passed_over)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(over):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def stack_level() -> int:
    """Return the ``stacklevel`` that makes ``warnings.warn``, called by the caller, point at the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level
