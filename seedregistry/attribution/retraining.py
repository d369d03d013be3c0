"""Retraining on subsets: the training again without some of its examples, in many processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import attrs
import torch

from seedregistry import determinism
from seedregistry.attribution.description import describe_measurement, note_training
from seedregistry.attribution.jobs import (
    Chunk,
    Job,
    Outcome,
    check_workers,
    retraining_id,
    run_chunks,
)
from seedregistry.attribution.measurements import Measurement, identify
from seedregistry.attribution.progress import ProgressOption, show_progress
from seedregistry.common.files import seal, unseal, write_atomically
from seedregistry.common.identities import mismatches, show_mismatches
from seedregistry.common.options import check_choice, check_count
from seedregistry.errors import RecipeError, ReplayError

if TYPE_CHECKING:
    import concurrent.futures
    import os

    from seedregistry.attribution.training import Training
    from seedregistry.registry import SeedRegistry

_log = logging.getLogger(__name__)

PROTOCOLS: Dict[str, str] = {
    "weights": "the training with weights of zero: initial parameters, order and draws shared",
    "cut": "weights of zero, and the mean is over the examples that are left in a batch",
    "subset": "a loader over the subset, same seed: a shorter dataset, so another order",
    "own-order": "an order of its own for each model",
    "own-init": "initial parameters of its own for each model",
    "fresh": "initial parameters, order and draws of its own for each model",
}
"""How a retraining may differ from the training, by name. MAGIC predicts ``"weights"``."""

SUBSETS_PURPOSE = "lds_subsets"

_SEPARATE_PURPOSES = {
    "own-order": ("dataloader",),
    "own-init": ("model",),
    "fresh": ("dataloader", "dropout", "model", "optimizer", "scheduler"),
}
"""The purposes for which each retraining has streams that are not the training's, by protocol.

Under the other protocols there are none.
"""

_FORMAT = "seedregistry.lds/2"

_FILE_NAME = re.compile(r"[\w.\-]{1,100}", re.ASCII)
"""Names of tasks that can be a part of a file's name on every system."""

_DIGITS = 12
"""Characters of a digest, or of a list of indices, that a message shows."""

_Task = Tuple[str, float, int]
"""A name, the fraction left out, and the number of the subset."""


@attrs.frozen(kw_only=True, eq=False)
class Retrainings:
    """What the retrainings for one fraction ended in; :func:`retrain` returns them.

    Immutable, and it pickles.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, losses_of, retrain
        >>> tests = losses_of(torch.eye(8), torch.arange(8) % 2)
        >>> options = {"epochs": 1, "batch_size": 4, "dataset": (torch.eye(8), torch.arange(8) % 2)}
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), **options)
        >>> training = Training(SeedRegistry(42), recipe)
        >>> (quarter,) = retrain(training, tests, fractions=(0.25,), subsets=3, progress=False)
        >>> quarter.dropped.shape, quarter.values.shape
        (torch.Size([3, 2]), torch.Size([3, 8]))

    Attributes:
        fraction: share of the training examples that each left out.
        protocol: a name in :data:`PROTOCOLS`.
        dropped: indices of the examples that were left out: int64, shape (subsets, dropped).
        values: measured after each: float64, shape (subsets, targets).
        size: number of training examples.
        fingerprint: of the training as it went, 64 hexadecimal digits.
        measurement: digest of the measurement, 64 hexadecimal digits.
    """

    fraction: float
    protocol: str
    dropped: torch.Tensor
    values: torch.Tensor
    size: int
    fingerprint: str
    measurement: str


def _as_python(fraction: Any) -> Any:
    """Return NumPy's floats as python's, and leave anything else as it is.

    NumPy 2 writes ``np.float64(0.1)`` where NumPy 1 writes ``0.1``, and streams go by the text.
    """
    return float(fraction) if isinstance(fraction, float) else fraction


def drop_sets(
    registry: SeedRegistry,
    size: int,
    fraction: float,
    subsets: int,
    *,
    instance_id: Any = "training",
) -> torch.Tensor:
    """Return which examples each retraining leaves out.

    Each subset comes from a position in the stream ("lds_subsets", instance_id) that no other has:
    adding subsets or fractions changes none.

    Example:
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import drop_sets
        >>> drop_sets(SeedRegistry(42), 8, 0.25, 3).shape
        torch.Size([3, 2])

    Args:
        registry: gives the stream.
        size: number of training examples.
        fraction: share of them to leave out, between 0 and 1.
        subsets: how many subsets to draw, int > 1.
        instance_id: of the training.

    Returns:
        Shape (subsets, round(fraction * size)), int64, sorted in each row.

    Raises:
        RecipeError: the fraction leaves out nothing or everything.
        InvalidOptionError: ``subsets`` is not an int > 1.
    """
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise RecipeError(
            f"A fraction to leave out must be a float between 0 and 1; got {fraction!r}."
        )
    fraction = _as_python(fraction)
    count = round(fraction * size)
    if not 0 < count < size:
        raise RecipeError(
            f"Leaving out {fraction} of {size} examples leaves out {count}: nothing, or everything."
        )
    subsets = check_count(subsets, "subsets", least=2)  # a correlation needs two

    stream = registry.stream(SUBSETS_PURPOSE, instance_id)
    rows = []
    for index in range(subsets):
        generator = stream.at(repr(fraction), index).generator()
        order = torch.randperm(size, generator=generator, device="cpu")
        rows.append(order[:count].sort().values)
    return torch.stack(rows)


def retrain(  # noqa: PLR0913 - each is an answer to a question of its own
    training: Training,
    measurement: Measurement,
    *,
    fractions: Iterable[float] = (0.01, 0.05, 0.2),
    subsets: int = 50,
    protocol: str = "weights",
    replicate: int = 0,
    workers: Union[int, concurrent.futures.Executor] = 1,
    at_once: int = 1,
    store: Union[str, os.PathLike[str], None] = None,
    progress: ProgressOption = True,
) -> Tuple[Retrainings, ...]:
    """Retrain on subsets, and measure each time.

    The training itself is done once before, unless it was: what it did tells its results from those
    of another one. The numbers are the same for any executor and any number of workers. Each
    process first repeats the beginning of the training and compares its fingerprint, versions,
    threads and dtype with those of the process that called. Streams that are not the training's are
    in the ledger, derived before anything is trained.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, losses_of, retrain
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> make = lambda: torch.nn.Linear(8, 2)
        >>> recipe = Recipe(model=make, dataset=data, epochs=1, batch_size=4)
        >>> training, measurement = Training(SeedRegistry(42), recipe), losses_of(*data)
        >>> options = {"fractions": (0.25, 0.5), "subsets": 3, "progress": False}
        >>> outcomes = retrain(training, measurement, **options)
        >>> [(each.fraction, tuple(each.dropped.shape)) for each in outcomes]
        [(0.25, (3, 2)), (0.5, (3, 4))]

    Args:
        training: what is repeated; its registry gives the subsets, and the ledger notes what was
            asked for, with a digest of the subsets.
        measurement: as for ``magic``: it gives one number for each target.
        fractions: shares of the training examples to leave out, each between 0 and 1.
        subsets: retrainings for each fraction, int > 1.
        protocol: a name in :data:`PROTOCOLS`.
        replicate: int >= 0. Another number has the same subsets, and other seeds for all that the
            protocol does not share with the training. See :func:`noise_ceiling`.
        workers: number of processes, 1 for this one alone; or an executor, which may be a
            cluster's. The recipe must pickle then.
        at_once: how many models a process trains as one stack, under the protocols ``"weights"``
            and ``"cut"``: several times as fast for small models, and equal up to rounding instead
            of bit for bit. See ``Training.train_many``.
        store: a folder in which each result is kept as it comes, so that retraining that was killed
            goes on.
        progress: show how many were done; see
            :data:`~seedregistry.attribution.progress.ProgressOption`.

    Returns:
        For each fraction, in their order, what came out.

    Raises:
        InvalidOptionError: an option is not one of its values.
        RecipeError: a fraction leaves out nothing or everything, the data, the step or the
            measurement would not do, or the recipe does not pickle; before anything is trained. Or
            a retraining diverged.
        ReplayError: a process does not repeat the training, or ``store`` is of another one.
        SeedCollisionError: two retrainings would have one seed; before anything is trained.
    """
    check_choice(protocol, "protocol", PROTOCOLS)
    check_workers(workers)
    at_once = check_count(at_once, "at_once", least=1)
    replicate = check_count(replicate, "replicate")
    subsets = check_count(subsets, "subsets", least=2)
    registry, recipe = training.registry, training.recipe
    dropped = _draw(training, fractions, subsets)
    training.check()
    measured = identify(training, measurement, is_differentiated=False)

    job = Job(
        master_seed=registry.master_seed,
        scheme=registry.scheme,
        recipe=recipe,
        measurement=measurement,
        protocol=protocol,
        replicate=replicate,
        determinism=determinism.current_mode(),
        handshake=training.handshake(),
    )
    prefix = "lds" if recipe.instance_id == "training" else f"{recipe.instance_id}_lds"
    tasks = [
        (f"{prefix}_{fraction!r}", fraction, index)
        for fraction in dropped
        for index in range(subsets)
    ]

    # Before the first training: hours of work are not lost to two seeds that are equal.
    for purpose in _SEPARATE_PURPOSES.get(protocol, ()):
        registry.reserve(
            purpose, [retraining_id(name, index, replicate) for name, _, index in tasks]
        )
    title = f"lds {recipe.instance_id} {protocol}" + (f" {replicate}" if replicate else "")
    _note(title, training, job, dropped, subsets)

    # The training itself, where it was not done yet: what it did tells it from others.
    fingerprint = training.whole_fingerprint()
    identity = {
        "format": _FORMAT,
        "protocol": protocol,
        "replicate": str(replicate),
        **job.handshake,
        "fingerprint": fingerprint,
        "measurement": measured.digest,
    }
    results_store = _Store(store, identity)
    with show_progress(progress, "retrain") as tell:
        results = _carry_out(job, training, dropped, tasks, results_store, workers, at_once, tell)

    starts = [results[task][1] for task in tasks]
    facts = {
        "retrained": len(tasks),
        "distinct_initial_parameters": len(set(starts)),
        "initial_parameters_digest": hashlib.sha256("".join(starts).encode()).hexdigest(),
    }
    registry.note(**{f"{title} models": facts})
    return tuple(
        Retrainings(
            fraction=fraction,
            protocol=protocol,
            dropped=indices,
            values=torch.tensor(
                [results[task][0] for task in tasks if task[1] == fraction],
                dtype=torch.float64,
                device="cpu",
            ),
            size=training.size,
            fingerprint=fingerprint,
            measurement=measured.digest,
        )
        for fraction, indices in dropped.items()
    )


def _draw(
    training: Training, fractions: Iterable[float], subsets: int
) -> Dict[float, torch.Tensor]:
    """Return the subsets to leave out, by fraction.

    Raises:
        RecipeError: the fractions are a single number or none, or one leaves out nothing or
            everything.
    """
    if isinstance(fractions, (int, float)):
        raise RecipeError(
            f"fractions are several shares, as in ({fractions!r},); got {fractions!r}."
        )
    dropped = {
        fraction: drop_sets(
            training.registry,
            training.size,
            fraction,
            subsets,
            instance_id=training.recipe.instance_id,
        )
        for fraction in map(_as_python, fractions)
    }
    if not dropped:
        raise RecipeError(
            "fractions must name at least one share of the training examples to leave out."
        )
    return dropped


def _note(
    title: str, training: Training, job: Job, dropped: Mapping[float, torch.Tensor], subsets: int
) -> None:
    """Put into the ledger what was asked for, and whether it has the training's streams."""
    streams = "shared" if job.protocol in {"weights", "cut"} else "not those of the run"
    digest = hashlib.sha256(
        b"".join(indices.numpy().tobytes() for indices in dropped.values())
    ).hexdigest()
    facts = {
        "fractions": [repr(fraction) for fraction in dropped],
        "subsets": subsets,
        "protocol": job.protocol,
        "run": training.initial_state().fingerprint(),
        # Left out where it is 0: ledgers from before there were replicates keep their digest.
        **({"replicate": job.replicate} if job.replicate else {}),
        "streams": streams,
        "subsets_digest": digest,
        "measurement": describe_measurement(job.measurement),
    }
    note_training(training)
    training.registry.note(**{title: facts})


def _carry_out(
    job: Job,
    training: Training,
    dropped: Mapping[float, torch.Tensor],
    tasks: Sequence[_Task],
    store: _Store,
    workers: Union[int, concurrent.futures.Executor],
    at_once: int,
    tell: Callable[[int, int], None],
) -> Dict[_Task, Outcome]:
    """Return the outcome of each task: from the store where it is there, else from retraining."""
    results: Dict[_Task, Outcome] = {}
    for task in tasks:
        name, fraction, index = task
        outcome = store.load(name, index, dropped[fraction][index])
        if outcome is not None:
            results[task] = outcome

    todo = [task for task in tasks if task not in results]
    # Closed, so that an error here, or in `tell`, does not leave the pool's processes working.
    with contextlib.closing(
        run_chunks(job, training, list(_chunks(todo, dropped, at_once)), workers)
    ) as chunks:
        for chunk, outcomes in chunks:
            for index, indices, outcome in zip(chunk.indices, chunk.dropped, outcomes):
                store.save(chunk.name, index, indices, outcome)
                results[chunk.name, chunk.fraction, index] = outcome
                tell(len(results), len(tasks))
    return results


def _chunks(
    tasks: Sequence[_Task], dropped: Mapping[float, torch.Tensor], size: int
) -> Iterator[Chunk]:
    """Yield the tasks, up to ``size`` of them together."""
    # A chunk has one fraction: its models are a stack, whose weights leave out equally many.
    for fraction, rows in dropped.items():
        group = [task for task in tasks if task[1] == fraction]
        for start in range(0, len(group), size):
            indices = [index for _, _, index in group[start : start + size]]
            yield Chunk(name=group[0][0], fraction=fraction, indices=indices, dropped=rows[indices])


class _Store:
    """Outcomes of retrainings, a file each: whole, or not there. Without a folder, none."""

    def __init__(
        self, folder: Union[str, os.PathLike[str], None], identity: Mapping[str, str]
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity = dict(identity)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str, index: int) -> Optional[Path]:
        if self._folder is None:
            return None
        # Protocol and replicate are in the name, so that one folder serves several calls.
        prefix = f"{self._identity['protocol']}-{self._identity['replicate']}"
        # An instance id may hold what no file name may, and may be longer than one.
        if not _FILE_NAME.fullmatch(name):
            name = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / f"{prefix}-{name}-{index}.json"

    def load(self, name: str, index: int, dropped: torch.Tensor) -> Optional[Outcome]:
        """Return an outcome, or None where there is none, or one that is damaged.

        Raises:
            ReplayError: it is of another training, measurement or subset.
        """
        path = self._path(name, index)
        if path is None or not path.exists():
            return None
        try:
            saved = dict(json.loads(unseal(path.read_bytes())))
        except (TypeError, ValueError) as error:
            _log.warning("%s is damaged and is done again: %s.", path, error)
            return None

        expected = {**self._identity, "name": name, "dropped": dropped.tolist()}
        different = mismatches(saved, expected)
        if different:
            values = show_mismatches(
                different, saved, expected, there="there", here="here", longest=_DIGITS
            )
            message = (
                f"{str(path)!r} holds a result of another training: {values}. Name another "
                "folder, or remove it."
            )
            raise ReplayError(message)
        return saved["values"], saved["started"]

    def save(self, name: str, index: int, dropped: torch.Tensor, outcome: Outcome) -> None:
        """Keep an outcome."""
        path = self._path(name, index)
        if path is None:
            return
        values, started = outcome
        content = {
            **self._identity,
            "name": name,
            "dropped": dropped.tolist(),
            "values": values,
            "started": started,
        }
        write_atomically(path, seal(json.dumps(content).encode()))
