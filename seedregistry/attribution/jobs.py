"""Retrainings as jobs: what a process needs, how it checks that it repeats, and who does which."""

from __future__ import annotations

import concurrent.futures
import hashlib
import multiprocessing
import pickle
import threading
from typing import TYPE_CHECKING, Any, Dict, Generator, List, Mapping, Sequence, Tuple, Union

import attrs
import torch

from seedregistry import determinism
from seedregistry.attribution.measurements import Measurement, measure
from seedregistry.attribution.training import Training
from seedregistry.common.identities import mismatches, show_mismatches
from seedregistry.determinism import torch_threads
from seedregistry.errors import InvalidOptionError, RecipeError, ReplayError
from seedregistry.registry import SeedRegistry

if TYPE_CHECKING:
    from seedregistry.attribution.recipe import Recipe
    from seedregistry.attribution.states import State

Outcome = Tuple[List[float], str]
"""The measured values of a retraining, and the fingerprint of the state that it started from."""


@attrs.frozen(kw_only=True, eq=False)
class Job:
    """What every worker needs: pickled once, and unpacked once in each process."""

    master_seed: int
    scheme: str
    recipe: Recipe
    measurement: Measurement
    protocol: str
    replicate: int
    determinism: str
    handshake: Mapping[str, str]


_LONGEST = 100
"""Characters of a value that a message shows: of versions, threads and digests, all."""

_CANNOT_BE_SENT = (
    "The recipe or the measurement cannot be sent to other processes: {}. Define model, loss and "
    "measurement as functions of a module, or retrain in this process: workers=1. In a notebook, "
    "that module is a file beside it."
)

_received = b""
"""The job that the pool of this process was started with."""

_unpacked: Dict[str, Tuple[Any, Any]] = {}
"""The last job of this process with its training, by the digest of the job's bytes."""

_lock = threading.Lock()
"""Held while this process retrains.

An executor may have threads, and they share torch's generators, threads and models.
"""


def _receive(payload: bytes) -> None:
    """Keep a job for the tasks that come, when a process of a pool starts."""
    global _received  # noqa: PLW0603 - a pool hands its processes nothing else to keep it in
    _received = payload


def _work(payload: bytes, name: str, indices: List[int], dropped: List[List[int]]) -> List[Outcome]:
    """Retrain, once for each index, in whatever process this is.

    Args:
        payload: a pickled job; ``b""`` takes the job that the process was started with.
        name: what the retrainings are called, each with its index.
        indices: numbers of the subsets.
        dropped: the examples that each leaves out.
    """
    with _lock:
        return _work_alone(payload or _received, name, indices, dropped)


def _work_alone(
    payload: bytes, name: str, indices: List[int], dropped: List[List[int]]
) -> List[Outcome]:
    # An executor sends the job with each chunk; unpacked and compared once, it serves all of them.
    digest = hashlib.sha256(payload).hexdigest()
    job, training = _unpacked.get(digest, (None, None))
    if job is None:
        job = _unpickle(payload)
    with determinism.apply(job.determinism):
        if training is None:
            training = Training(SeedRegistry(job.master_seed, scheme=job.scheme), job.recipe)
            _shake_hands(training.handshake(), job.handshake)
            _unpacked.clear()  # only the last: each holds a model and all data
            _unpacked[digest] = (job, training)
        return _retrain_all(job, training, name, indices, torch.tensor(dropped, device="cpu"))


def _shake_hands(here: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Refuse a process that does not repeat the training.

    Raises:
        ReplayError: with both values of everything that differs.
    """
    different = mismatches(here, there)
    if not different:
        return
    values = show_mismatches(
        different, here, there, there="here", here="in the main process", longest=_LONGEST
    )
    raise ReplayError(
        f"This process does not repeat the run: {values}. Use one type of machine and one set "
        "of versions. What your program sets, such as the precision of matrix products, set "
        "in the recipe's module, which every process imports."
    )


def _retrain_all(
    job: Job, training: Training, name: str, indices: Sequence[int], dropped: torch.Tensor
) -> List[Outcome]:
    """Return the outcome of each retraining: trained one by one, or as one stack."""
    if len(indices) == 1 or job.protocol not in {"weights", "cut"}:
        return [_retrain(job, training, name, index, row) for index, row in zip(indices, dropped)]

    weights = torch.ones(
        len(indices), training.size, dtype=job.recipe.dtype, device="cpu"
    ).scatter_(1, dropped, 0.0)
    states = training.train_many(weights, cuts=job.protocol == "cut")

    started = training.initial_state().fingerprint()
    return [
        (_measure(job, training, state, f"{name}_{index}"), started)
        for index, state in zip(indices, states)
    ]


def _measure(job: Job, training: Training, state: State, name: str) -> List[float]:
    with torch_threads(training.recipe.threads):
        values = measure(training, job.measurement, state, is_differentiated=False)
    if not torch.isfinite(values).all():
        raise RecipeError(
            f"Retraining {name} ended in values that are not finite: {values.tolist()[:5]} ..."
        )
    return [float(value) for value in values]


def _retrain(job: Job, training: Training, name: str, index: int, dropped: torch.Tensor) -> Outcome:
    recipe = job.recipe
    weights = torch.ones(training.size, dtype=recipe.dtype, device="cpu")
    weights[dropped] = 0
    instance_id = retraining_id(name, index, job.replicate)

    if job.protocol not in {"weights", "cut"}:
        # Not the training's registry: its ledger shall not differ with who retrains.
        registry = SeedRegistry(job.master_seed, scheme=job.scheme)
        if job.protocol == "subset":
            kept = weights.nonzero().squeeze(1)
            recipe = attrs.evolve(recipe, dataset=_subset(recipe.as_dataset(), kept))
            weights = torch.ones(len(kept), dtype=recipe.dtype, device="cpu")
        elif job.protocol == "own-order":
            recipe = attrs.evolve(recipe, order_id=instance_id)
        elif job.protocol == "own-init":
            recipe = attrs.evolve(recipe, model_id=instance_id)
        else:
            recipe = attrs.evolve(recipe, instance_id=instance_id, model_id=None, order_id=None)
        training = Training(registry, recipe)

    state = training.train(weights, cuts=job.protocol == "cut")
    return _measure(job, training, state, instance_id), training.initial_state().fingerprint()


def retraining_id(name: str, index: int, replicate: int) -> str:
    """Return the instance id of the streams that a retraining does not share."""
    return f"{name}_{index}" if replicate == 0 else f"{name}_{index}_{replicate}"


def _subset(dataset: Any, kept: torch.Tensor) -> Any:
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return torch.utils.data.TensorDataset(*(tensor[kept] for tensor in dataset.tensors))
    return torch.utils.data.Subset(dataset, kept.tolist())


@attrs.frozen(kw_only=True, eq=False)
class Chunk:
    """Retrainings that one process does together."""

    name: str
    fraction: float
    indices: List[int]
    dropped: torch.Tensor


def check_workers(workers: object) -> None:
    """Refuse what is neither a number of processes nor an executor.

    Raises:
        InvalidOptionError: it is neither.
    """
    is_number = isinstance(workers, int) and not isinstance(workers, bool) and workers > 0
    if not is_number and not isinstance(workers, concurrent.futures.Executor):
        raise InvalidOptionError(
            f"workers must be an int > 0 or an executor of concurrent.futures; got {workers!r}."
        )


def process_pool(workers: int, payload: bytes = b"") -> concurrent.futures.ProcessPoolExecutor:
    """Return a pool of spawned processes, each with a job that its tasks need not bring.

    Raises:
        RecipeError: called while a process of such a pool imports the user's script.
    """
    # multiprocessing's own mark of a process that imports the script it was started from.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RecipeError(
            "This script starts processes each time it is imported, and each of its processes "
            "imports it. Put what it does below `if __name__ == '__main__':`."
        )
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_receive, initargs=(payload,)
    )


def run_chunks(
    job: Job,
    training: Training,
    chunks: Sequence[Chunk],
    workers: Union[int, concurrent.futures.Executor],
) -> Generator[Tuple[Chunk, List[Outcome]], None, None]:
    """Yield each chunk with its outcomes, as they come.

    Raises:
        RecipeError: the job does not pickle, or a retraining diverged.
        ReplayError: a process does not repeat the training, or ended early.
    """
    if workers == 1:
        for chunk in chunks:
            yield chunk, _retrain_all(job, training, chunk.name, chunk.indices, chunk.dropped)
        return

    payload = _pickle(job)
    pool = None
    if isinstance(workers, int):
        pool = process_pool(workers, payload)
        payload = b""  # each process has it, and needs it with no task
    executor: concurrent.futures.Executor = pool if pool is not None else workers  # type: ignore[assignment]
    futures: Dict[concurrent.futures.Future[List[Outcome]], Chunk] = {}
    try:
        for chunk in chunks:
            futures[
                executor.submit(_work, payload, chunk.name, chunk.indices, chunk.dropped.tolist())
            ] = chunk
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except concurrent.futures.BrokenExecutor as error:
        message = (
            "A process that retrained has ended before its work was done: out of memory, or "
            "started by a script that is read from standard input or starts processes outside "
            "`if __name__ == '__main__':`. What is in the store is kept."
        )
        raise ReplayError(message) from error
    finally:
        for future in futures:
            future.cancel()  # after an error nobody waits for the rest
        if pool is not None:
            pool.shutdown(wait=True)


def _pickle(job: Job) -> bytes:
    try:
        payload = pickle.dumps(job)
    except Exception as error:
        raise RecipeError(_CANNOT_BE_SENT.format(error)) from error
    _unpickle(payload)  # what pickles may still not unpickle: said here, before a process starts
    return payload


def _unpickle(payload: bytes) -> Job:
    try:
        job: Job = pickle.loads(payload)  # noqa: S301 - from the process that started this one
    except Exception as error:
        raise RecipeError(_CANNOT_BE_SENT.format(error)) from error
    return job
