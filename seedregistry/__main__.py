"""``python -m seedregistry``: the command line, or how to get it."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line and return the exit code: 2 where its packages are missing."""
    try:
        from seedregistry.cli import main as run
    except ImportError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the line for the user
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
