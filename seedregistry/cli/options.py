"""Options, exit codes and forms of output that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import click

YES, NO, UNANSWERED = 0, 1, 2
"""Exit codes."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
file_argument = click.argument("file", type=click.Path(path_type=Path))


def print_json(data: Dict[str, Any]) -> None:
    """Print plain data."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))
