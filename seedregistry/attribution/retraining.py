"""Retraining on subsets.

The run itself without some of its examples, in any number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from seedregistry.common.files import write_atomically
from seedregistry.common.options import check_choice
from seedregistry.errors import InvalidOptionError, RecipeError, ReplayError

if TYPE_CHECKING:
    import concurrent.futures
    import os

    from seedregistry.attribution.training import Training
    from seedregistry.registry import SeedRegistry

PROTOCOLS: Dict[str, str] = {
    "weights": "the run itself with weights of zero: initial parameters, order and draws shared",
    "cut": "the same, and the mean is over the examples that are left in a batch",
    "subset": "a loader over the subset with the run's seed: a shorter dataset, so another order",
    "own-order": "an order of its own for each model",
    "own-init": "initial parameters of its own for each model",
    "fresh": "initial parameters, order and draws of its own for each model",
}
"""How a retraining may differ from the run, by name. MAGIC predicts ``"weights"``."""

SUBSETS_PURPOSE = "lds_subsets"

_OWN = {
    "own-order": ("dataloader",),
    "own-init": ("model",),
    "fresh": ("dataloader", "dropout", "model", "optimizer", "scheduler"),
}
"""The purposes whose streams are each retraining's own.

Under the other protocols all are the run's.
"""

_FORMAT = "seedregistry.lds/1"

_Task = Tuple[str, float, int]
"""A name, the fraction left out, and the number of the subset."""


@attrs.frozen(kw_only=True, eq=False)
class Retrainings:
    """What the retrainings on subsets ended in.

    Attributes:
        fraction: share of the training examples that each left out.
        protocol: one of :data:`PROTOCOLS`.
        dropped: indices of the examples that were left out: int64, shape (subsets, dropped).
        values: measured after each: shape (subsets, targets).
        size: number of training examples.
        fingerprint: of the training before its first step.
    """

    fraction: float
    protocol: str
    dropped: torch.Tensor
    values: torch.Tensor
    size: int
    fingerprint: str


def _plain(fraction: Any) -> Any:
    """Return NumPy's floats as python's.

    How they are written depends on the version, and streams are known by it.
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

    Int64 indices, shape (subsets, round(fraction * size)), sorted.

    Each comes from a position of its own in the stream ("lds_subsets", instance_id): adding subsets
    or fractions changes none.

    Raises:
        RecipeError: the fraction leaves out nothing or everything.
        InvalidOptionError: ``subsets`` is not an int > 1.
    """
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise RecipeError(
            f"A fraction to leave out must be a float between 0 and 1; got {fraction!r}."
        )
    fraction = _plain(fraction)
    count = round(fraction * size)
    if not 0 < count < size:
        raise RecipeError(
            f"Leaving out {fraction} of {size} examples leaves out {count}: nothing, or everything."
        )
    if not isinstance(subsets, int) or isinstance(subsets, bool) or subsets < 2:  # noqa: PLR2004 - a correlation needs two
        raise InvalidOptionError(f"subsets must be an int > 1; got {subsets!r}.")
    stream = registry.stream(SUBSETS_PURPOSE, instance_id)
    drawn = [
        torch.randperm(size, generator=stream.at(repr(fraction), i).generator(), device="cpu")[
            :count
        ]
        .sort()
        .values
        for i in range(subsets)
    ]
    return torch.stack(drawn)


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

    The numbers are the same for any executor and any number of workers. Each process first repeats
    the beginning of the run and compares its fingerprint, versions, threads and dtype with the main
    one's. Streams that are not the run's own are in the ledger, derived before anything is trained.

    Args:
        training: the run; its registry gives the subsets, and the ledger notes what was asked for,
            with a digest of the subsets.
        measurement: as for ``magic``.
        fractions: shares of the training examples to leave out, each between 0 and 1.
        subsets: retrainings for each fraction.
        protocol: one of :data:`PROTOCOLS`.
        replicate: int >= 0; another one has the same subsets and, where a protocol has seeds of its
            own, other ones. See ``noise_ceiling``.
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
        For each fraction, what came out.

    Raises:
        InvalidOptionError: an option is not one of its values.
        RecipeError: a fraction leaves out nothing or everything, the data, the step or the
            measurement would not do, or the recipe does not pickle; before anything is trained. Or
            a retraining diverged.
        ReplayError: a process does not repeat the run, or ``store`` is of another one.
        SeedCollisionError: two retrainings would have one seed of their own; before anything is
            trained.
    """
    _check_options(protocol, replicate, workers, at_once)
    registry, recipe = training.registry, training.recipe
    if isinstance(fractions, (int, float)):
        raise RecipeError(
            f"fractions are several shares, as in ({fractions!r},); got {fractions!r}."
        )
    wanted = {
        fraction: drop_sets(
            registry, training.size, fraction, subsets, instance_id=recipe.instance_id
        )
        for fraction in map(_plain, fractions)
    }
    if not wanted:
        raise RecipeError(
            "fractions must name at least one share of the training examples to leave out."
        )
    training.check()
    measured = identify(training, measurement, is_differentiated=False)
    handshake = training.handshake()
    job = Job(
        master_seed=registry.master_seed,
        scheme=registry.scheme,
        recipe=recipe,
        measurement=measurement,
        protocol=protocol,
        replicate=replicate,
        determinism=determinism.current_mode(),
        handshake=handshake,
    )
    prefix = "lds" if recipe.instance_id == "training" else f"{recipe.instance_id}_lds"
    tasks = [
        (f"{prefix}_{fraction!r}", fraction, index)
        for fraction in wanted
        for index in range(subsets)
    ]
    for purpose in _OWN.get(protocol, ()):
        registry.reserve(
            purpose, [retraining_id(name, index, replicate) for name, _, index in tasks]
        )
    title = f"lds {recipe.instance_id} {protocol}" + (f" {replicate}" if replicate else "")
    _note(title, training, job, wanted, subsets)
    identity = {"format": _FORMAT, "protocol": protocol, "replicate": str(replicate)}
    kept = _Store(store, {**identity, **handshake, "measurement": measured.digest})
    with show_progress(progress, "retrain") as tell:
        results = _carry_out(job, training, wanted, tasks, kept, workers, at_once, tell)
    started = [results[task][1] for task in tasks]
    facts = {
        "retrained": len(tasks),
        "distinct_initial_parameters": len(set(started)),
        "initial_parameters_digest": hashlib.sha256("".join(started).encode()).hexdigest(),
    }
    registry.note(**{f"{title} models": facts})
    return tuple(
        Retrainings(
            fraction=fraction,
            protocol=protocol,
            dropped=dropped,
            values=torch.tensor(
                [results[task][0] for task in tasks if task[1] == fraction],
                dtype=torch.float64,
                device="cpu",
            ),
            size=training.size,
            fingerprint=training.fingerprint(0),
        )
        for fraction, dropped in wanted.items()
    )


def _check_options(protocol: str, replicate: int, workers: object, at_once: int) -> None:
    check_choice(protocol, "protocol", PROTOCOLS)
    check_workers(workers)
    if not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1:
        raise InvalidOptionError(f"at_once must be an int > 0; got {at_once!r}.")
    if not isinstance(replicate, int) or isinstance(replicate, bool) or replicate < 0:
        raise InvalidOptionError(f"replicate must be an int >= 0; got {replicate!r}.")


def _note(
    title: str, training: Training, job: Job, wanted: Mapping[float, torch.Tensor], subsets: int
) -> None:
    """Put into the ledger what was asked for, and whether it has the streams of the run."""
    shared = "shared" if job.protocol in {"weights", "cut"} else "not those of the run"
    digest = hashlib.sha256(
        b"".join(drawn.numpy().tobytes() for drawn in wanted.values())
    ).hexdigest()
    asked = {
        "fractions": [repr(fraction) for fraction in wanted],
        "subsets": subsets,
        "protocol": job.protocol,
        "run": training.initial_state().fingerprint(),
        **({"replicate": job.replicate} if job.replicate else {}),
        "streams": shared,
        "subsets_digest": digest,
    }
    training.registry.note(**{title: asked})


def _carry_out(
    job: Job,
    training: Training,
    wanted: Mapping[float, torch.Tensor],
    tasks: Sequence[_Task],
    kept: _Store,
    workers: Union[int, concurrent.futures.Executor],
    at_once: int,
    tell: Callable[[int, int], None],
) -> Dict[_Task, Outcome]:
    """Return the outcome of each retraining.

    Of those that are kept, and of the others when they are done.
    """
    results: Dict[_Task, Outcome] = {}
    for task in tasks:
        known = kept.load(task[0], task[2], wanted[task[1]][task[2]])
        if known is not None:
            results[task] = known
    todo = [task for task in tasks if task not in results]
    with contextlib.closing(
        run_chunks(job, training, list(_chunks(todo, wanted, at_once)), workers)
    ) as outcomes:
        for chunk, found in outcomes:
            for index, own_dropped, outcome in zip(chunk.indices, chunk.dropped, found):
                kept.save(chunk.name, index, own_dropped, outcome)
                results[chunk.name, chunk.fraction, index] = outcome
                tell(len(results), len(tasks))
    return results


def _chunks(
    tasks: Sequence[_Task], wanted: Mapping[float, torch.Tensor], size: int
) -> Iterator[Chunk]:
    for fraction, dropped in wanted.items():
        own = [task for task in tasks if task[1] == fraction]
        for start in range(0, len(own), size):
            indices = [index for _, _, index in own[start : start + size]]
            yield Chunk(
                name=own[0][0], fraction=fraction, indices=indices, dropped=dropped[indices]
            )


class _Store:
    """Results by retraining, a file each: whole, or not there."""

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
        return (
            self._folder
            / f"{self._identity['protocol']}-{self._identity['replicate']}-{name}-{index}.json"
        )

    def load(self, name: str, index: int, dropped: torch.Tensor) -> Optional[Outcome]:
        path = self._path(name, index)
        if path is None or not path.exists():
            return None
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None  # cut short when the machine went down: done again
        expected = {**self._identity, "dropped": dropped.tolist()}
        different = [key for key in expected if saved.get(key) != expected[key]]
        if different:
            both = (
                f"{key} {str(saved.get(key))[:12]} there and {str(expected[key])[:12]} here"
                for key in different
            )
            message = (
                f"{str(path)!r} holds a result of another training: {'; '.join(both)}. Name "
                "another folder, or remove it."
            )
            raise ReplayError(message)
        return saved["values"], saved["started"]

    def save(self, name: str, index: int, dropped: torch.Tensor, outcome: Outcome) -> None:
        path = self._path(name, index)
        if path is None:
            return
        values, started = outcome
        content = {
            **self._identity,
            "dropped": dropped.tolist(),
            "values": values,
            "started": started,
        }
        write_atomically(path, json.dumps(content).encode())
