"""``seedregistry ledger``: show, verify, compare and export ledger files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import attrs
import click

from seedregistry.cli.options import NO, YES, file_argument, json_option, print_json

if TYPE_CHECKING:
    from seedregistry.ledger import Ledger, tables

_LARGE_BYTES = 10_000_000
"""Files from here on take long enough to show a bar."""

_LEAST_DIGEST = 12

_every_stream = click.option(
    "--every-stream", is_flag=True, help="A row for each stream, not for each purpose."
)


@click.group("ledger")
def ledger_group() -> None:
    """Show, verify, compare and export ledger files."""


@ledger_group.command("show")
@file_argument
@_every_stream
@json_option
def _show(file: Path, *, every_stream: bool, as_json: bool) -> int:
    """Print what was derived and built; exit 1 when the file is damaged."""
    from seedregistry.ledger import tables

    loaded = _load(file)
    table = loaded.table(every_stream=every_stream)
    if as_json:
        registries = [
            {**attrs.asdict(section), "master_seed": str(section.master_seed)}
            for section in table.sections
        ]
        print_json({"digest": table.digest, "registries": registries})
    elif sys.stdout.isatty():
        _print_table(table)
    else:
        click.echo(tables.to_text(table))
    return _report_damage(loaded)


@ledger_group.command("verify")
@file_argument
@click.option(
    "--digest",
    "printed",
    help="A digest that was printed, 12 to 64 digits: the content must have it.",
)
@json_option
def _verify(file: Path, printed: Optional[str], *, as_json: bool) -> int:
    """Check chain, header and seal, and derive every seed again.

    Exit 1 when something does not hold.

    A journal that is not closed has no seal: entries lost from its end are found against a digest
    that was printed.
    """
    if printed is not None and (
        len(printed) < _LEAST_DIGEST or set(printed) - set("0123456789abcdef")
    ):
        raise click.BadParameter(
            f"{printed!r} is not 12 to 64 hexadecimal digits.", param_hint="--digest"
        )
    try:
        size = file.stat().st_size
    except OSError:  # reading it will say why
        size = 0
    from rich.console import Console
    from rich.progress import Progress

    from seedregistry.ledger import verify_file

    with Progress(
        disable=size < _LARGE_BYTES or not sys.stderr.isatty(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("verifying", total=size)
        verification = verify_file(
            file, progress=lambda size_bytes: bar.update(task, completed=size_bytes)
        )
    has_digest = printed is None or verification.digest.startswith(printed)
    if as_json:
        facts = attrs.asdict(verification)
        faults = [
            {**attrs.asdict(fault), "is_fatal": fault.is_fatal} for fault in verification.faults
        ]
        facts.update(ok=verification.ok and has_digest, has_digest=has_digest, faults=faults)
        print_json(facts)
    else:
        click.echo(str(verification))
        if not has_digest:
            click.echo(f"the digest is {verification.digest[: len(printed or '')]}, not {printed}")
    return YES if verification.ok and has_digest else NO


@ledger_group.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
def _diff(first: Path, second: Path, *, as_json: bool) -> int:
    """Print what two ledgers differ in; exit 1 when their contents differ."""
    ledgers = [_load(path) for path in (first, second)]
    difference = ledgers[0].diff(ledgers[1])
    if as_json:
        print_json({"equal": not difference, **attrs.asdict(difference)})
    else:
        click.echo(str(difference))
    damage = max(_report_damage(loaded) for loaded in ledgers)
    return NO if difference else damage


@ledger_group.command("export")
@file_argument
@click.option(
    "--to",
    "form",
    type=click.Choice(["latex", "markdown", "csv", "json", "statement"]),
    default="markdown",
    show_default=True,
    help="What to write.",
)
@_every_stream
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="A file to write, instead of printing."
)
@click.option("--json", "as_json", is_flag=True, help="The same as --to json.")
def _export(
    file: Path, form: str, output: Optional[Path], *, every_stream: bool, as_json: bool
) -> int:
    """Print the ledger as a table for a paper, as data, or as a statement in words.

    Exit 1 when the file is damaged.
    """
    loaded = _load(file)
    if as_json or form == "json":
        text = json.dumps(loaded.to_dict(), indent=2, ensure_ascii=False) + "\n"
    elif form == "statement":
        text = loaded.statement() + "\n"
    else:
        text = {"latex": loaded.to_latex, "markdown": loaded.to_markdown, "csv": loaded.to_csv}[
            form
        ](every_stream=every_stream)
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            with output.open("w", encoding="utf-8", newline="") as target:
                target.write(text)
        except OSError as error:
            raise click.FileError(str(output), error.strerror or "cannot be written") from error
    return _report_damage(loaded)


@ledger_group.command("digest")
@file_argument
@click.option("--short", is_flag=True, help="The first 12 digits, as in a paper.")
@json_option
def _digest(file: Path, *, short: bool, as_json: bool) -> int:
    """Print the digest of the content; exit 1 when the file is damaged."""
    loaded = _load(file)
    digest = loaded.short_digest if short else loaded.digest
    if as_json:
        print_json({"digest": digest})
    else:
        click.echo(digest)
    return _report_damage(loaded)


def _load(path: Path) -> Ledger:
    from seedregistry.ledger import Ledger

    return Ledger.load(path)


def _report_damage(loaded: Ledger) -> int:
    """Say, beside what was asked for, that a file is damaged; return the exit code."""
    damage = loaded.damage
    if not damage:
        return YES
    click.echo(
        f"The file is damaged: {damage[0]}. `seedregistry ledger verify` has every fault.", err=True
    )
    return NO


def _print_table(table: tables.Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    from seedregistry.ledger import tables

    console = Console()
    facts = ", ".join(f"{name} {value}" for name, value in table.facts)
    shown = RichTable(title=facts, title_justify="left")
    for name in tables.HEADER:
        is_number = name in {"streams", "seed", "uses"}
        shown.add_column(
            name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    for cells in table.cells():
        shown.add_row(*(tables.visible(text).replace("[", r"\[") for text in cells))
    console.print(shown)
