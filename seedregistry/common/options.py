"""Checks of the options that callers pass.

What is refused is refused with what was expected and the nearest choice that there is.
"""

from __future__ import annotations

import difflib
import numbers
from typing import Any, Collection, Iterable

from seedregistry.errors import InvalidOptionError


class NotGiven:
    """The class of :data:`NOT_GIVEN`: an argument that nobody passed, where None is a value.

    ``stream.scope(0)`` says nothing of ranks and is refused in a job of several; ``stream.scope(0,
    rank=None)`` says that all ranks draw the same. A default of None could not tell the two apart.
    """

    def __repr__(self) -> str:
        return "<not given>"

    def __reduce__(self) -> str:
        return "NOT_GIVEN"  # a copy, or what is unpickled, is the same object


NOT_GIVEN = NotGiven()
"""The only instance of :class:`NotGiven`; compare with ``is``."""


def check_count(value: Any, name: str, *, least: int = 0) -> int:
    """Return a count as an int, or refuse it.

    Args:
        value: an int or a ``numpy.integer``; never a bool, a float or a tensor.
        name: what the message calls it.
        least: the smallest that is accepted.

    Raises:
        InvalidOptionError: it is no such number.
    """
    # A bool is an int and a tensor has __index__; neither is meant as a number of something.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        message = f"{name} must be an int >= {least}; got {value!r} ({type(value).__name__})."
        raise InvalidOptionError(message)
    return int(value)


def check_choice(value: object, name: str, choices: Collection[str], *, hint: str = "") -> None:
    """Refuse a value that is not one of the choices.

    Args:
        value: what came.
        name: what the message calls it.
        choices: the strings that are accepted.
        hint: what the message says behind the list of choices, such as ``", or None for ..."``.

    Raises:
        InvalidOptionError: names the choices and the nearest of them.
    """
    if isinstance(value, str) and value in choices:
        return
    nearest = did_you_mean(value.lower(), choices) if isinstance(value, str) else ""
    message = f"{name} must be one of {join_choices(choices)}{hint}; got {value!r}.{nearest}"
    raise InvalidOptionError(message)


def join_choices(choices: Iterable[object]) -> str:
    """Return choices as a message lists them: ``'off', 'warn', 'strict'``."""
    return ", ".join(map(repr, choices))


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return the end of a message that offers the nearest choice: ``" Did you mean 'model'?"``.

    Returns:
        The question with a space before it; ``""`` where no choice is near.
    """
    nearest = difflib.get_close_matches(name, sorted(choices), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
