"""The command line: derive a seed; show, verify, compare and export ledgers; attribute trainings.

Exit codes: 0 for yes (verified, equal), 1 for no (faulty, different), 2 for what could not be answered (wrong usage, a file
that is no ledger). Every command has ``--json``. Colours and bars are for terminals only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import attrs

try:
    import click
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table as RichTable
except ImportError as error:
    needed = str(error.name).partition(".")[0]
    message = f"seedregistry.cli needs {needed}: pip install 'seedregistry[cli]'"
    raise ImportError(message, name=error.name) from error

from seedregistry import attribution_cli, derivation
from seedregistry.errors import SeedRegistryError
from seedregistry.ledger import Ledger, codec, tables, verify_file

__all__ = ["cli", "main"]

_YES, _NO, _UNANSWERED = 0, 1, 2

_LARGE_BYTES = 10_000_000
"""Files from here on take long enough to show a bar."""

_LEAST_DIGEST = 12

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_every_stream = click.option("--every-stream", is_flag=True, help="A row for each stream, not for each purpose.")
_file = click.argument("file", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="seedregistry")
def cli() -> None:
    """Derive seeds, and look into the ledgers of experiments."""


@cli.command("derive")
@click.argument("master_seed")
@click.argument("purpose")
@click.argument("instance_id", required=False)
@click.option("--int", "is_int", is_flag=True, help="The instance id is an int: 7 and '7' are two ids under sha256-256.")
@click.option("--scheme", default=derivation.DEFAULT_SCHEME, show_default=True, help="The rule from words to seeds.")
@_as_json
def _derive(master_seed: str, purpose: str, instance_id: Optional[str], scheme: str, *, is_int: bool, as_json: bool) -> int:
    """Print the component seed of MASTER_SEED, PURPOSE and INSTANCE_ID."""
    rule = derivation.find_scheme(scheme)
    number = derivation.validate_master_seed(_integer(master_seed, "MASTER_SEED"))
    name = derivation.validate_purpose(purpose)
    given = _integer(instance_id, "INSTANCE_ID") if is_int and instance_id is not None else instance_id
    identity = derivation.validate_instance_id(given)
    seed = rule.derive(number, name, identity)
    if as_json:
        facts = {
            "master_seed": str(number),
            "scheme": rule.name,
            "purpose": name,
            "instance_id": codec.tag_id(identity),
            "seed": seed,
            "key": derivation.stream_key(number, name, identity).hex(),
        }
        _print_json(facts)
    else:
        click.echo(seed)
    return _YES


@cli.group("ledger")
def _ledger() -> None:
    """Show, verify, compare and export ledger files."""


@_ledger.command("show")
@_file
@_every_stream
@_as_json
def _show(file: Path, *, every_stream: bool, as_json: bool) -> int:
    """Print what was derived and built; exit 1 when the file is damaged."""
    loaded = Ledger.load(file)
    table = loaded.table(every_stream=every_stream)
    if as_json:
        registries = [{**attrs.asdict(section), "master_seed": str(section.master_seed)} for section in table.sections]
        _print_json({"digest": table.digest, "registries": registries})
    elif sys.stdout.isatty():
        _print_table(table)
    else:
        click.echo(tables.to_text(table))
    return _report_damage(loaded)


@_ledger.command("verify")
@_file
@click.option("--digest", "printed", help="A digest that was printed, 12 to 64 digits: the content must have it.")
@_as_json
def _verify(file: Path, printed: Optional[str], *, as_json: bool) -> int:
    """Check chain, header and seal, and derive every seed again; exit 1 when something does not hold.

    A journal that is not closed has no seal: entries lost from its end are found against a digest that was printed.
    """
    if printed is not None and (len(printed) < _LEAST_DIGEST or set(printed) - set("0123456789abcdef")):
        raise click.BadParameter(f"{printed!r} is not 12 to 64 hexadecimal digits.", param_hint="--digest")
    try:
        size = file.stat().st_size
    except OSError:  # reading it will say why
        size = 0
    with Progress(disable=size < _LARGE_BYTES or not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("verifying", total=size)
        found = verify_file(file, progress=lambda size_bytes: bar.update(task, completed=size_bytes))
    has_digest = printed is None or found.digest.startswith(printed)
    if as_json:
        facts = attrs.asdict(found)
        faults = [{**attrs.asdict(fault), "is_fatal": fault.is_fatal} for fault in found.faults]
        facts.update(ok=found.ok and has_digest, has_digest=has_digest, faults=faults)
        _print_json(facts)
    else:
        click.echo(str(found))
        if not has_digest:
            click.echo(f"the digest is {found.digest[: len(printed or '')]}, not {printed}")
    return _YES if found.ok and has_digest else _NO


@_ledger.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@_as_json
def _diff(first: Path, second: Path, *, as_json: bool) -> int:
    """Print what two ledgers differ in; exit 1 when their contents differ."""
    ledgers = [Ledger.load(path) for path in (first, second)]
    found = ledgers[0].diff(ledgers[1])
    if as_json:
        _print_json({"equal": not found, **attrs.asdict(found)})
    else:
        click.echo(str(found))
    damage = max(_report_damage(loaded) for loaded in ledgers)
    return _NO if found else damage


@_ledger.command("export")
@_file
@click.option(
    "--to",
    "form",
    type=click.Choice(["latex", "markdown", "csv", "json", "statement"]),
    default="markdown",
    show_default=True,
    help="What to write.",
)
@_every_stream
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file to write, instead of printing.")
@click.option("--json", "as_json", is_flag=True, help="The same as --to json.")
def _export(file: Path, form: str, output: Optional[Path], *, every_stream: bool, as_json: bool) -> int:
    """Print the ledger as a table for a paper, as data, or as a statement in words; exit 1 when the file is damaged."""
    loaded = Ledger.load(file)
    if as_json or form == "json":
        text = json.dumps(loaded.to_dict(), indent=2, ensure_ascii=False) + "\n"
    elif form == "statement":
        text = loaded.statement() + "\n"
    else:
        text = {"latex": loaded.to_latex, "markdown": loaded.to_markdown, "csv": loaded.to_csv}[form](every_stream=every_stream)
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            with output.open("w", encoding="utf-8", newline="") as target:
                target.write(text)
        except OSError as error:
            raise click.FileError(str(output), error.strerror or "cannot be written") from error
    return _report_damage(loaded)


@_ledger.command("digest")
@_file
@click.option("--short", is_flag=True, help="The first 12 digits, as in a paper.")
@_as_json
def _digest(file: Path, *, short: bool, as_json: bool) -> int:
    """Print the digest of the content; exit 1 when the file is damaged."""
    loaded = Ledger.load(file)
    found = loaded.short_digest if short else loaded.digest
    if as_json:
        _print_json({"digest": found})
    else:
        click.echo(found)
    return _report_damage(loaded)


attribution_cli.add_commands(cli)


def _integer(text: str, name: str) -> int:
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= derivation.MASTER_SEED_BITS):
        raise click.BadParameter(f"{text!r} is not an integer.", param_hint=name)
    return int(sign + digits)


def _report_damage(loaded: Ledger) -> int:
    """Say, beside what was asked for, that a file is damaged; return the exit code."""
    damage = loaded.damage
    if not damage:
        return _YES
    click.echo(f"The file is damaged: {damage[0]}. `seedregistry ledger verify` has every fault.", err=True)
    return _NO


def _print_json(data: Dict[str, Any]) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _print_table(table: tables.Table) -> None:
    console = Console()
    facts = ", ".join(f"{name} {value}" for name, value in table.facts)
    shown = RichTable(title=facts, title_justify="left")
    for name in tables.HEADER:
        is_number = name in {"streams", "seed", "uses"}
        shown.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for cells in table.cells():
        shown.add_row(*map(_escape_markup, cells))
    console.print(shown)


def _escape_markup(text: str) -> str:
    return tables.visible(text).replace("[", r"\[")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line, and return the exit code.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    logging.getLogger("seedregistry").addHandler(logging.NullHandler())  # what it would say is printed here
    given: Optional[List[str]] = None if arguments is None else list(arguments)
    try:
        code = cli.main(args=given, prog_name="seedregistry", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return _UNANSWERED
    except click.Abort:
        return 130
    except ImportError as error:  # a package of an extra that the command needs
        click.echo(f"Error: {error}", err=True)
        return _UNANSWERED
    except SeedRegistryError as error:
        click.echo(f"Error: {error}", err=True)
        return _UNANSWERED
    except (OSError, SystemExit) as error:  # a full disk, or a reader, such as head, that has seen enough: click exits for it
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            click.echo(f"Error: {error}", err=True)
        return _UNANSWERED
    return code if isinstance(code, int) else _YES
