"""The command line: the program, its groups, and what becomes of errors.

Exit codes: 0 for yes (verified, equal), 1 for no (faulty, different), 2 for what could not be
answered (wrong usage, a file that is no ledger). Every command has ``--json``. Colours and bars are
for terminals only.

The modules of the commands import torch, NumPy and rich where a command needs them, so that
``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import List, Optional, Sequence

try:
    import click
    import rich  # noqa: F401 - the commands import what they need of it
except ImportError as error:
    _needed = str(error.name).partition(".")[0]
    _message = f"seedregistry.cli needs {_needed}: pip install 'seedregistry[cli]'"
    raise ImportError(_message, name=error.name) from error

from seedregistry.cli import attribution, derive, ledger
from seedregistry.cli.options import UNANSWERED, YES
from seedregistry.errors import SeedRegistryError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="seedregistry")
def cli() -> None:
    """Derive seeds, look into the ledgers of experiments, and attribute trainings."""


for _command in (
    derive.derive_command,
    ledger.ledger_group,
    attribution.demo_command,
    attribution.magic_command,
    attribution.lds_command,
):
    cli.add_command(_command)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line, and return the exit code.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    logging.getLogger("seedregistry").addHandler(
        logging.NullHandler()
    )  # what it would say is printed here
    given: Optional[List[str]] = None if arguments is None else list(arguments)
    try:
        code = cli.main(args=given, prog_name="seedregistry", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return UNANSWERED
    except click.Abort:
        return 130
    except ImportError as error:  # a package of an extra that the command needs
        click.echo(f"Error: {error}", err=True)
        return UNANSWERED
    except SeedRegistryError as error:
        click.echo(f"Error: {error}", err=True)
        return UNANSWERED
    except (
        OSError,
        SystemExit,
    ) as error:  # a full disk, or a reader, such as head, that has seen enough: click exits for it
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            click.echo(f"Error: {error}", err=True)
        return UNANSWERED
    return code if isinstance(code, int) else YES
