"""The commands of attribution: the demonstration, MAGIC and retraining on a user's recipe."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional, Tuple

import click

from seedregistry.cli.options import YES, json_option, print_json

if TYPE_CHECKING:
    from seedregistry.attribution.measurements import Measurement
    from seedregistry.attribution.training import Training


def _count(name: str, text: str, *, least: int = 1) -> Callable[..., Any]:
    """Return an option for an int, at least and by default ``least``."""
    kind = click.IntRange(min=least)
    return click.option(name, default=least, show_default=True, type=kind, help=text)


def _path(
    name: str, text: str, default: Optional[str] = None, **options: Any
) -> Callable[..., Any]:
    """Return an option for a path, with options for ``click.Path``."""
    kind = click.Path(path_type=Path, **options)
    return click.option(name, default=default, show_default=True, type=kind, help=text)


_seed = click.option("--seed", default=42, show_default=True, help="Master seed.")
_workers = _count("--workers", "Processes that retrain.")
_ledger = _path("--ledger", "File for the ledger.")
_scheme = click.option(
    "--scheme", default="sha256-31", show_default=True, help="Scheme of derivation."
)
_recipe = click.argument("recipe", metavar="MODULE:FUNCTION")


@contextlib.contextmanager
def _show_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress from the first step on; yields what is told of it."""
    from seedregistry.attribution.progress import Display

    with contextlib.closing(Display()) as display:
        yield display


@click.command("demo")
@click.option(
    "--data",
    type=click.Choice(["digits", "cifar10"]),
    default="digits",
    show_default=True,
    help="What to train on.",
)
@click.option("--root", default="data", show_default=True, help="Where CIFAR-10 is.")
@_path("--out", "Folder to write to.", "out")
@_seed
@_workers
@click.option("--device", default="cpu", show_default=True, help="Where to train, such as cuda.")
@click.option(
    "--bridges",
    is_flag=True,
    help="Score dattri's influence function and traker's TRAK too, when they are installed.",
)
@json_option
def demo_command(
    data: str,
    root: str,
    out: Path,
    seed: int,
    workers: int,
    device: str,
    *,
    bridges: bool,
    as_json: bool,
) -> int:
    """Train, attribute, retrain on subsets; write ledger, table, scores and a report."""
    from seedregistry.attribution.demo import run_demo

    with _show_progress() as progress:
        demo = run_demo(
            out,
            seed=seed,
            plan=data,
            root=root,
            workers=workers,
            bridges=bridges,
            device=device,
            progress=progress,
        )
    results = demo.results()
    if as_json:
        print_json(results)
        return YES
    click.echo(_table("left out", {"MAGIC": results["lds"], **results["baselines"]}))
    click.echo("\nMAGIC's score against retrainings with one wrong seed:\n")
    click.echo(_table("left out", results["ablation"]))
    click.echo(f"\ntest accuracy {results['test_accuracy']:.3f}\n\n{demo.registry.ledger}\n")
    click.echo(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return YES


def _table(corner: str, rows: Dict[str, Dict[str, float]]) -> str:
    """Return methods by fractions, as lines."""
    fractions = list(next(iter(rows.values())))
    width = max(map(len, [corner, *rows]))
    heads = "".join(f"{100 * float(fraction):>8g}%" for fraction in fractions)
    lines = [f"{corner:<{width}}{heads}"]
    lines += [
        f"{name:<{width}}" + "".join(f"{row[fraction]:>9.3f}" for fraction in fractions)
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def _load(name: str, seed: int, scheme: str) -> Tuple[Training, Measurement]:
    """Return the training and the measurement that the user's function makes of a registry."""
    from seedregistry.attribution import Recipe, Training
    from seedregistry.registry import SeedRegistry

    registry = SeedRegistry(seed, scheme=scheme)

    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise click.BadParameter(
            f"{name!r} is not of the form module:function.", param_hint="MODULE:FUNCTION"
        )
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; a console script does not
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        inspect.signature(function).bind(registry)
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(
            f"{name!r} cannot be imported: {error}.", param_hint="MODULE:FUNCTION"
        ) from error
    except TypeError as error:
        raise click.BadParameter(
            f"{name!r} must take a registry: {error}.", param_hint="MODULE:FUNCTION"
        ) from error

    plan = function(registry)
    if (
        not isinstance(plan, tuple)
        or len(plan) != 2  # noqa: PLR2004 - a pair
        or not isinstance(plan[0], Recipe)
        or not callable(plan[1])
    ):
        raise click.BadParameter(
            f"{name!r} must return (Recipe, measurement) for a registry.",
            param_hint="MODULE:FUNCTION",
        )
    return Training(registry, plan[0]), plan[1]


def _make_folders(*paths: Optional[Path]) -> None:
    """Make the folders of the files that will be written, before the work and not after it."""
    for path in paths:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)


@click.command("magic")
@_recipe
@_seed
@_scheme
@_path("--out", "File for the scores.", "scores.npz")
@_ledger
@click.option("--keep", type=click.IntRange(min=0), help="How many states to keep.")
@_path("--spill", "A folder for them.", file_okay=False)
@json_option
def magic_command(
    recipe: str,
    seed: int,
    scheme: str,
    out: Path,
    ledger: Optional[Path],
    keep: Optional[int],
    spill: Optional[Path],
    *,
    as_json: bool,
) -> int:
    """Attribute a training of yours: MODULE:FUNCTION returns (Recipe, measurement) for a registry.

    Killed and run again, it goes on.
    """
    from seedregistry.attribution import magic

    _make_folders(out, ledger)
    training, measurement = _load(recipe, seed, scheme)
    registry = training.registry

    with _show_progress() as progress:
        attribution = magic(
            training,
            measurement,
            keep=keep,
            spill=spill,
            resume=out.with_name(f".{out.name}.progress"),
            progress=lambda done, total: progress("attribute", done, total),
        )
    attribution.save(out)
    if ledger is not None:
        registry.ledger.save(ledger)

    facts = {
        "targets": len(attribution.values),
        "examples": training.size,
        "steps": training.steps,
        "digest": registry.ledger.digest,
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{out}: {facts['targets']} targets, {facts['examples']} examples")
    return YES


@click.command("lds")
@_recipe
@_seed
@_scheme
@click.option(
    "--scores",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Scores that `magic` wrote.",
)
@click.option(
    "--fraction",
    "fractions",
    multiple=True,
    type=float,
    default=(0.01, 0.05, 0.2),
    show_default=True,
    help="Left out.",
)
@click.option("--subsets", default=50, show_default=True, help="Retrainings for each fraction.")
@click.option(
    "--protocol",
    default="weights",
    show_default=True,
    help="What the retrainings share with the training.",
)
@_count("--at-once", "Models trained as one stack.")
@_count("--replicate", "Another number has other seeds.", least=0)
@_path("--store", "A folder in which results are kept, to go on after a kill.")
@_ledger
@_workers
@json_option
def lds_command(  # noqa: PLR0913 - options of a command
    recipe: str,
    seed: int,
    scheme: str,
    scores: Path,
    fractions: Tuple[float, ...],
    subsets: int,
    protocol: str,
    at_once: int,
    replicate: int,
    store: Optional[Path],
    ledger: Optional[Path],
    workers: int,
    *,
    as_json: bool,
) -> int:
    """Retrain a training of yours on subsets, and score the scores.

    MODULE:FUNCTION as for `magic`.
    """
    from seedregistry.attribution import Attribution, lds
    from seedregistry.errors import ReplayError

    _make_folders(ledger)
    training, measurement = _load(recipe, seed, scheme)
    registry = training.registry
    try:
        given = Attribution.load(scores)
    except ReplayError as error:
        raise click.BadParameter(str(error), param_hint="--scores") from error

    with _show_progress() as progress:
        results = lds(
            training,
            measurement,
            given,
            fractions=fractions,
            subsets=subsets,
            protocol=protocol,
            at_once=at_once,
            replicate=replicate,
            workers=workers,
            store=store,
            progress=lambda done, total: progress("retrain", done, total),
        )
    if ledger is not None:
        registry.ledger.save(ledger)

    if as_json:
        names = ("fraction", "mean", "interval", "slope", "undefined")
        rows = [{name: getattr(score, name) for name in names} for score in results]
        print_json(
            {
                "protocol": protocol,
                "subsets": subsets,
                "lds": rows,
                "digest": registry.ledger.digest,
            }
        )
        return YES
    for score in results:
        low, high = score.interval
        click.echo(
            f"{100 * score.fraction:g}% left out: {score.mean:.3f} "
            f"({low:.3f} to {high:.3f}), slope {score.slope:.2f}"
        )
    return YES
