"""Retraining on subsets: the run itself without some of its examples, in any number of processes."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import attrs
import torch

from seedregistry.attribution.training import State, Training, pinned_threads
from seedregistry.errors import InvalidOptionError, RecipeError, ReplayError
from seedregistry.registry import SeedRegistry

if TYPE_CHECKING:
    import os

    from seedregistry.attribution.metagradients import Measurement
    from seedregistry.attribution.recipe import Recipe

__all__ = ["PROTOCOLS", "Retrainings", "drop_sets", "retrain"]

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
    """

    fraction: float
    protocol: str
    dropped: torch.Tensor
    values: torch.Tensor


def drop_sets(
    registry: SeedRegistry, size: int, fraction: float, subsets: int, *, instance_id: Any = "training"
) -> torch.Tensor:
    """Return which examples each retraining leaves out: int64 indices, shape (subsets, round(fraction * size)), sorted.

    Each comes from a position of its own in the stream ("lds_subsets", instance_id): adding subsets or fractions changes none.

    Raises:
        RecipeError: the fraction leaves out nothing or everything.
        InvalidOptionError: ``subsets`` is not an int > 1.
    """
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise RecipeError(f"A fraction to leave out must be a float between 0 and 1; got {fraction!r}.")
    count = round(fraction * size)
    if not 0 < count < size:
        raise RecipeError(f"Leaving out {fraction} of {size} examples leaves out {count}: nothing, or everything.")
    if not isinstance(subsets, int) or isinstance(subsets, bool) or subsets < 2:  # noqa: PLR2004 - a correlation needs two
        raise InvalidOptionError(f"subsets must be an int > 1; got {subsets!r}.")
    stream = registry.stream(SUBSETS_PURPOSE, instance_id)
    drawn = [
        torch.randperm(size, generator=stream.at(repr(fraction), i).generator(), device="cpu")[:count].sort().values
        for i in range(subsets)
    ]
    return torch.stack(drawn)


# --- retraining -----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, eq=False)
class _Job:
    """What every worker needs, once: pickled and sent with each task, and unpacked once a process."""

    master_seed: int
    scheme: str
    recipe: Recipe
    measurement: Measurement
    protocol: str
    replicate: int
    fingerprint: str


_unpacked: Dict[str, Tuple[_Job, Training]] = {}
"""The last job of this process, by the digest of its bytes."""


def _work(payload: bytes, name: str, indices: List[int], dropped: List[List[int]]) -> List[List[float]]:
    """Retrain, once for each index; in whatever process."""
    digest = hashlib.sha256(payload).hexdigest()
    if digest not in _unpacked:
        job: _Job = pickle.loads(payload)  # noqa: S301 - from the process that started this one
        training = Training(SeedRegistry(job.master_seed, scheme=job.scheme), job.recipe)
        found = training.fingerprint()
        if found != job.fingerprint:
            message = (
                f"This process does not repeat the run: after its first steps the fingerprint is {found[:12]}, and "
                f"{job.fingerprint[:12]} in the main process. Here: torch {torch.__version__}, {job.recipe.threads} threads, "
                f"{job.recipe.dtype}. Use one type of machine and one version "
                "of torch."
            )
            raise ReplayError(message)
        _unpacked.clear()
        _unpacked[digest] = (job, training)
    return _retrain_all(*_unpacked[digest], name, indices, torch.tensor(dropped, device="cpu"))


def _retrain_all(job: _Job, training: Training, name: str, indices: Sequence[int], dropped: torch.Tensor) -> List[List[float]]:
    """Return the values of each retraining: of one after the other, or of all at once."""
    if len(indices) == 1 or job.protocol not in {"weights", "cut"}:
        return [_retrain(job, training, name, index, own) for index, own in zip(indices, dropped)]
    weights = torch.ones(len(indices), training.size, dtype=job.recipe.dtype, device="cpu").scatter_(1, dropped, 0.0)
    states = training.run_many(weights, cuts=job.protocol == "cut")
    return [_measure(job, training, state, f"{name}_{index}") for index, state in zip(indices, states)]


def _measure(job: _Job, training: Training, state: State, name: str) -> List[float]:
    with torch.no_grad(), pinned_threads(training.recipe.threads):
        values = job.measurement(training, state)
    if not torch.isfinite(values).all():
        raise RecipeError(f"Retraining {name} ended in values that are not finite: {values.tolist()[:5]} ...")
    return [float(value) for value in values]


def _retrain(job: _Job, training: Training, name: str, index: int, dropped: torch.Tensor) -> List[float]:
    recipe = job.recipe
    weights = torch.ones(training.size, dtype=recipe.dtype, device="cpu")
    weights[dropped] = 0
    own = f"{name}_{index}" if job.replicate == 0 else f"{name}_{index}_{job.replicate}"
    if job.protocol not in {"weights", "cut"}:
        registry = SeedRegistry(job.master_seed, scheme=job.scheme)
        if job.protocol == "subset":
            kept = weights.nonzero().squeeze(1)
            recipe = attrs.evolve(recipe, dataset=_subset(recipe.as_dataset(), kept))
            weights = torch.ones(len(kept), dtype=recipe.dtype, device="cpu")
        elif job.protocol == "own-order":
            recipe = attrs.evolve(recipe, order_id=own)
        elif job.protocol == "own-init":
            recipe = attrs.evolve(recipe, model_id=own)
        else:
            recipe = attrs.evolve(recipe, instance_id=own)
        training = Training(registry, recipe)
    state = training.run(weights, cuts=job.protocol == "cut")
    return _measure(job, training, state, own)


def _subset(dataset: Any, kept: torch.Tensor) -> Any:
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return torch.utils.data.TensorDataset(*(tensor[kept] for tensor in dataset.tensors))
    return torch.utils.data.Subset(dataset, kept.tolist())


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
    progress: Optional[Callable[[int, int], None]] = None,
) -> Tuple[Retrainings, ...]:
    """Retrain on subsets, and measure each time.

    The numbers are the same for any executor and any number of workers. Each process first repeats the beginning of the run and
    compares its fingerprint with the main one's.

    Args:
        training: the run; its registry gives the subsets, and the ledger notes what was asked for, with a digest of the
            subsets.
        measurement: as for ``magic``.
        fractions: shares of the training examples to leave out, each between 0 and 1.
        subsets: retrainings for each fraction.
        protocol: one of :data:`PROTOCOLS`.
        replicate: int >= 0; another one has the same subsets and, where a protocol has seeds of its own, other ones. See
            ``noise_ceiling``.
        workers: number of processes, 1 for this one alone; or an executor, which may be a cluster's. The recipe must pickle
            then.
        at_once: how many models a process trains as one stack, under the protocols ``"weights"`` and ``"cut"``: several times
            as fast for small models, and equal up to rounding instead of bit for bit. See ``Training.run_many``.
        store: a folder in which each result is kept as it comes, so that retraining that was killed goes on.
        progress: called with (retrainings done, retrainings).

    Returns:
        For each fraction, what came out.

    Raises:
        InvalidOptionError: an option is not one of its values.
        RecipeError: a fraction leaves out nothing or everything, or the recipe does not pickle; before anything is trained.
        ReplayError: a process does not repeat the run, or ``store`` is of another one.
    """
    if protocol not in PROTOCOLS:
        raise InvalidOptionError(f"protocol must be one of {', '.join(map(repr, PROTOCOLS))}; got {protocol!r}.")
    for option, value in (("workers", workers), ("at_once", at_once)):
        is_executor = option == "workers" and isinstance(value, concurrent.futures.Executor)
        if not is_executor and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            also = " or an executor of concurrent.futures" if option == "workers" else ""
            raise InvalidOptionError(f"{option} must be an int > 0{also}; got {value!r}.")
    if not isinstance(replicate, int) or isinstance(replicate, bool) or replicate < 0:
        raise InvalidOptionError(f"replicate must be an int >= 0; got {replicate!r}.")
    registry, recipe = training.registry, training.recipe
    wanted = {
        fraction: drop_sets(registry, training.size, fraction, subsets, instance_id=recipe.instance_id)
        for fraction in fractions
    }
    if not wanted:
        raise RecipeError("fractions must name at least one share of the training examples to leave out.")
    training.check()
    job = _Job(
        master_seed=registry.master_seed,
        scheme=registry.scheme,
        recipe=recipe,
        measurement=measurement,
        protocol=protocol,
        replicate=replicate,
        fingerprint=training.fingerprint(),
    )
    asked = {
        "fractions": [repr(fraction) for fraction in wanted],
        "subsets": subsets,
        "protocol": protocol,
        "run": job.fingerprint,
        **({"replicate": replicate} if replicate else {}),
    }
    shared = "shared" if protocol in {"weights", "cut"} else "not those of the run"
    digest = hashlib.sha256(b"".join(drawn.numpy().tobytes() for drawn in wanted.values())).hexdigest()
    name = f"lds {recipe.instance_id} {protocol}" + (f" {replicate}" if replicate else "")
    registry.note(**{name: {**asked, "streams": shared, "subsets_digest": digest}})
    kept = _Store(store, {"format": _FORMAT, "protocol": protocol, "replicate": str(replicate), "fingerprint": job.fingerprint})
    tasks = [(f"lds_{fraction!r}", fraction, index) for fraction in wanted for index in range(subsets)]
    results = {task: kept.load(task[0], task[2], wanted[task[1]][task[2]]) for task in tasks}
    todo = [task for task in tasks if results[task] is None]
    done = len(tasks) - len(todo)
    for chunk, values in _run(job, training, list(_chunks(todo, wanted, at_once)), workers):
        for index, own_dropped, own_values in zip(chunk.indices, chunk.dropped, values):
            results[chunk.name, chunk.fraction, index] = own_values
            kept.save(chunk.name, index, own_dropped, own_values)
            done += 1
            if progress is not None:
                progress(done, len(tasks))
    return tuple(
        Retrainings(
            fraction=fraction,
            protocol=protocol,
            dropped=dropped,
            values=torch.tensor(
                [results[f"lds_{fraction!r}", fraction, index] for index in range(subsets)], dtype=torch.float64, device="cpu"
            ),
        )
        for fraction, dropped in wanted.items()
    )


@attrs.frozen(kw_only=True, eq=False)
class _Chunk:
    """Retrainings that one process does together."""

    name: str
    fraction: float
    indices: List[int]
    dropped: torch.Tensor


def _chunks(tasks: Sequence[_Task], wanted: Mapping[float, torch.Tensor], size: int) -> Iterator[_Chunk]:
    for fraction, dropped in wanted.items():
        own = [task for task in tasks if task[1] == fraction]
        for start in range(0, len(own), size):
            indices = [index for _, _, index in own[start : start + size]]
            yield _Chunk(name=own[0][0], fraction=fraction, indices=indices, dropped=dropped[indices])


def _run(
    job: _Job, training: Training, chunks: Sequence[_Chunk], workers: Union[int, concurrent.futures.Executor]
) -> Iterator[Tuple[_Chunk, List[List[float]]]]:
    """Yield each chunk with its values, as they come."""
    if workers == 1:
        for chunk in chunks:
            yield chunk, _retrain_all(job, training, chunk.name, chunk.indices, chunk.dropped)
        return
    payload = _pickle(job)
    own = None
    if isinstance(workers, int):
        own = workers = concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = {workers.submit(_work, payload, chunk.name, chunk.indices, chunk.dropped.tolist()): chunk for chunk in chunks}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    finally:
        if own is not None:
            own.shutdown(wait=True)


def _pickle(job: _Job) -> bytes:
    try:
        payload = pickle.dumps(job)
        pickle.loads(payload)  # noqa: S301 - our own bytes
    except Exception as error:
        message = (
            f"The recipe or the measurement cannot be sent to other processes: {error}. Define model, loss and measurement as "
            "functions of a module, or retrain in this process: workers=1."
        )
        raise RecipeError(message) from error
    return payload


class _Store:
    """Results by retraining, a file each: whole, or not there."""

    def __init__(self, folder: Union[str, os.PathLike[str], None], identity: Mapping[str, str]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity = dict(identity)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str, index: int) -> Optional[Path]:
        if self._folder is None:
            return None
        return self._folder / f"{self._identity['protocol']}-{self._identity['replicate']}-{name}-{index}.json"

    def load(self, name: str, index: int, dropped: torch.Tensor) -> Optional[List[float]]:
        path = self._path(name, index)
        if path is None or not path.exists():
            return None
        saved = json.loads(path.read_text(encoding="utf-8"))
        expected = {**self._identity, "dropped": dropped.tolist()}
        if {key: saved.get(key) for key in expected} != expected:
            message = f"{str(path)!r} holds a retraining of another run. Name another folder, or remove it."
            raise ReplayError(message)
        values: List[float] = saved["values"]
        return values

    def save(self, name: str, index: int, dropped: torch.Tensor, values: List[float]) -> None:
        path = self._path(name, index)
        if path is not None:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(
                json.dumps({**self._identity, "dropped": dropped.tolist(), "values": values}), encoding="utf-8"
            )
            temporary.replace(path)
