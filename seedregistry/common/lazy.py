"""Doors that open late: a package names what it promises, and imports it when it is asked for.

Importing the library costs next to nothing that way, and a program pays for what it uses alone.

Source: PEP 562, module ``__getattr__`` and ``__dir__``.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Callable, List, Mapping, Sequence, Tuple


def lazy_door(
    package: str, homes: Mapping[str, Sequence[str]], rooms: Sequence[str] = ()
) -> Tuple[Callable[[str], Any], Callable[[], List[str]]]:
    """Return the ``__getattr__`` and the ``__dir__`` of a package whose names are imported late.

    Args:
        package: its name, ``__name__``.
        homes: for each module of the library the names that the package promises from it.
        rooms: modules of the package that are attributes of it too, without an import of theirs.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in home_of:
            value = getattr(importlib.import_module(home_of[name]), name)
        elif name in rooms:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # so that it is looked up here once
        return value

    def names() -> List[str]:
        return sorted({*vars(sys.modules[package]), *home_of, *rooms})

    return get, names
