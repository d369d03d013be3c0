"""The fourteen tests. Each takes a peer, and raises ``Failed`` with what it saw, or
``NotOffered``."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import tempfile
import unicodedata
from pathlib import Path
from typing import Any, Callable, Dict, List

import attrs
import numpy as np
import torch

from peers.devices import standing_in
from peers.peer import Failed, NotOffered, Peer
from peers.ranks import on_ranks
from peers.work import Step, Work

TESTS: Dict[int, Callable[[Peer], None]] = {}
TITLES: Dict[int, str] = {}


def _test(number: int, title: str) -> Callable[[Callable[[Peer], None]], Callable[[Peer], None]]:
    def keep(function: Callable[[Peer], None]) -> Callable[[Peer], None]:
        TESTS[number], TITLES[number] = function, title
        return function

    return keep


def _expect(holds: object, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)


def _generators() -> Dict[str, Any]:
    """Return the states of the default generators."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tobytes(), *rest),
        "torch": torch.get_rng_state().tolist(),
    }


def _moved(before: Dict[str, Any]) -> str:
    after = _generators()
    return ", ".join(name for name in before if before[name] != after[name])


def _draw() -> List[float]:
    return [random.random(), float(np.random.randn()), float(torch.randn(()))]


def _scramble() -> None:
    """Leave the default generators as a new process has them: anywhere."""
    random.seed()
    np.random.seed(None)
    torch.default_generator.seed()


def _train(peer: Peer, work: Work) -> List[Step]:
    _scramble()
    return peer.train(work)


# --- generators -----------------------------------------------------------------------------------


@_test(
    1,
    "a scope gives every library's generator back, also after an exception, nested and on one rank",
)
def scopes_restore(peer: Peer) -> None:
    before = _generators()
    _expect(
        peer.in_scope(7, lambda: (_draw(), "value")[1]) == "value", "the function's value is lost"
    )
    moved = _moved(before)
    _expect(not moved, f"not restored: {moved}")

    def fails() -> None:
        _draw()
        raise KeyError("body")

    try:
        peer.in_scope(7, fails)
    except KeyError:
        pass
    else:
        raise Failed("an exception is swallowed")
    moved = _moved(before)
    _expect(not moved, f"after an exception not restored: {moved}")

    def nested() -> List[float]:
        first = _draw()
        peer.in_scope(8, _draw)
        return [*first, *_draw()]

    alone = peer.in_scope(7, lambda: [*_draw(), *_draw()])
    if alone == peer.in_scope(7, lambda: [*_draw(), *_draw()]):  # a peer whose scopes also seed
        _expect(
            peer.in_scope(7, nested) == alone, "an inner scope changes what the outer one draws"
        )
    on_ranks(peer, "scope_on_one_rank")


def scope_on_one_rank(peer: Peer, rank: int) -> None:
    """Enter a scope on rank 0 alone; whoever waits for the other rank there waits for ever."""
    before = _generators()
    if rank == 0:
        peer.in_scope(7, _draw)
    _expect(not _moved(before), "on one rank not restored")


@_test(
    2,
    (
        "a run resumed in mid-epoch has the same batches, augmentation and dropout, for any number "
        "of workers"
    ),
)
def resumes(peer: Peer) -> None:
    at, failures = 9, []
    for workers, persistent, then in (
        (0, False, 0),
        (2, False, 2),
        (2, True, 2),
        (0, False, 2),
        (2, False, 0),
    ):
        what = f"{workers}{' persistent' if persistent else ''} workers" + (
            f", then {then}" if then != workers else ""
        )
        with tempfile.TemporaryDirectory() as folder:
            work = Work(workers=workers, persistent=persistent, folder=Path(folder), resumable=True)
            whole = _train(peer, work)
            _expect(len(whole) == 12, f"{what}: {len(whole)} steps instead of 12")
            started = _train(peer, attrs.evolve(work, stop_after=at))
            _expect(
                len(started) == at, f"{what}: {len(started)} steps before the stop instead of {at}"
            )
            try:
                resumed = _train(
                    peer,
                    attrs.evolve(
                        work, resume=True, workers=then, persistent=persistent and then > 0
                    ),
                )
            except Exception as error:
                if then == workers:
                    raise
                failures.append(f"{what}: {type(error).__name__}")
                continue
        expected = whole[at:]
        _expect(
            len(resumed) == len(expected),
            f"{what}: {len(resumed)} steps after the resume instead of {len(expected)}",
        )
        differing = [
            part
            for position, part in enumerate(("indices", "augmentation", "dropout"))
            if [step[position] for step in resumed] != [step[position] for step in expected]
        ]
        if differing:
            failures.append(f"{what}: other {' and '.join(differing)}")
    _expect(not failures, "; ".join(failures))


@_test(
    3,
    (
        "runs of neighbouring seeds share no epoch's order, and no sample of any rank, worker and "
        "epoch draws what another drew"
    ),
)
def nothing_is_shared(peer: Peer) -> None:
    traces = {seed: on_ranks(peer, "train", work=Work(seed=seed, workers=2)) for seed in (5, 6)}
    steps = len(traces[5][0]) // 2
    orders = {
        (seed, epoch): [step[0] for step in traces[seed][0][epoch * steps : (epoch + 1) * steps]]
        for seed in traces
        for epoch in (0, 1)
    }
    for (one, order), (other, other_order) in itertools.combinations(orders.items(), 2):
        text = f"seed {one[0]} epoch {one[1]} has the order of seed {other[0]} epoch {other[1]}"
        _expect(order != other_order, text)
    for library, name in enumerate(("random", "numpy", "torch")):
        draws: Dict[float, str] = {}
        for seed, ranks in traces.items():
            for rank, trace in enumerate(ranks):
                for number, (indices, rows, _) in enumerate(trace):
                    for index, row in zip(indices, rows):
                        where = f"seed {seed} rank {rank} epoch {number // steps} sample {index}"
                        known = draws.setdefault(row[library], where)
                        _expect(known == where, f"{name} draws the same for {known} and {where}")


@_test(4, "the augmentation of epoch 2 is not that of epoch 1")
def augmentation_differs(peer: Peer) -> None:
    for workers, persistent in ((0, False), (2, False), (2, True)):
        trace = _train(peer, Work(workers=workers, persistent=persistent))
        by_sample: Dict[int, List[List[float]]] = {}
        for indices, rows, _ in trace:
            for index, row in zip(indices, rows):
                by_sample.setdefault(index, []).append(row)
        for library, name in enumerate(("random", "numpy", "torch")):
            equal = [
                index for index, (one, other) in by_sample.items() if one[library] == other[library]
            ]
            _expect(
                not equal,
                f"{name} draws the same in both epochs, {workers} workers: {len(equal)} samples",
            )


@_test(
    5,
    (
        "a validation pass, a peek at a loader, another loader or model changes no number of the "
        "training"
    ),
)
def nothing_disturbs(peer: Peer) -> None:
    for workers in (0, 2):
        work = Work(workers=workers)
        expected = _train(peer, work)
        _expect(_train(peer, work) == expected, f"{workers} workers: two runs differ")
        for what in ("validate", "disturb"):
            found = _train(peer, attrs.evolve(work, **{what: True}))
            done = {
                "validate": "a validation pass",
                "disturb": "a peek at a loader, another loader and model",
            }[what]
            _expect(found == expected, f"{workers} workers: {done} changes the training")


@_test(6, "adding, removing or reordering components changes no other component")
def components_are_independent(peer: Peer) -> None:
    names = [("model", "a"), ("model", "b"), ("head", None)]
    expected = peer.build(names)
    for what, order in {
        "reordering": names[::-1],
        "removing one": names[1:],
        "adding one": [("extra", None), *names],
    }.items():
        found = peer.build(order)
        _expect(
            all(found[name] == expected[name] for name in names if name in found),
            f"{what} changes the others",
        )


@_test(7, "a seed that is none is refused by a typed error before any generator has moved")
def wrong_seeds_are_refused(peer: Peer) -> None:
    accepted, moved = [], []
    for value in (-1, 2**128, 3.9, True, "5", float("nan")):
        shown = "2**128" if value == 2**128 else repr(value)
        before = _generators()
        try:
            peer.seed(value)
        except (ValueError, TypeError, OverflowError):
            if _moved(before):
                moved.append(f"{shown} ({_moved(before)})")
        else:
            accepted.append(shown)
    texts = [f"accepted: {', '.join(accepted)}"] if accepted else []
    texts += [f"refused too late: {', '.join(moved)}"] if moved else []
    _expect(not texts, "; ".join(texts))


@_test(8, "different names are different streams, whatever their spelling and type")
def names_are_injective(peer: Peer) -> None:
    composed = unicodedata.normalize("NFC", "e\u0301")
    pairs = (
        (("ab", "c"), ("a", "bc")),
        (("model", "a_b"), ("model_a", "b")),
        (("model", 97), ("model", "97")),
        (("model", 97), ("model", "a")),
        (("model", None), ("model", "")),
        (("model", None), ("model", 0)),
        (("model", composed), ("model", unicodedata.normalize("NFD", composed))),
    )
    for one, other in pairs:
        _expect(
            peer.named_stream(*one) != peer.named_stream(*other),
            f"{one} and {other} are one stream",
        )
    with contextlib.suppress(TypeError, ValueError):  # refused
        _expect(
            peer.named_stream("model", 1) != peer.named_stream("model", bool(1)),
            "1 and True are one stream",
        )


@_test(
    9,
    (
        "determinism switches return to the caller's values, and what the launcher set is "
        "reported, not overwritten"
    ),
)
def switches_return(peer: Peer) -> None:
    def switches() -> Dict[str, Any]:
        return {
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "cudnn.deterministic": torch.backends.cudnn.deterministic,
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            "filled memory": torch.utils.deterministic.fill_uninitialized_memory,
            "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":0:0"  # a launcher's, and not deterministic
    torch.backends.cudnn.benchmark = True
    before = switches()
    report, revert = peer.set_switches()
    _expect(switches() != before, "nothing was set")
    _expect(
        os.environ.get("CUBLAS_WORKSPACE_CONFIG") == ":0:0",
        "CUBLAS_WORKSPACE_CONFIG of the launcher is overwritten",
    )
    _expect(
        "CUBLAS_WORKSPACE_CONFIG" in report,
        "CUBLAS_WORKSPACE_CONFIG that is not deterministic is not reported",
    )
    if revert is None:
        raise Failed("no way back")
    revert()
    after = switches()
    changed = [name for name in before if before[name] != after[name]]
    _expect(not changed, f"not given back: {', '.join(changed)}")


# --- checkpoints ----------------------------------------------------------------------------------


@_test(
    10,
    (
        "a generator state that is missing or cut short is an error that names it, and nothing has "
        "moved"
    ),
)
def damaged_states_are_refused(peer: Peer) -> None:
    for library, damage in (("numpy", peer.without_numpy), ("torch", peer.with_short_torch)):
        state = damage(peer.rng_state())
        _scramble()
        before = _generators()
        try:
            peer.set_rng_state(state)
        except Exception as error:  # noqa: BLE001 - any error is looked at
            named = library in f"{type(error).__name__} {error}".lower()
            _expect(
                named or library == "torch",
                f"{library}: {type(error).__name__}: {error} does not name it",
            )
            _expect(not _moved(before), f"{library} damaged: {_moved(before)} set before the error")
        else:
            raise Failed(f"{library} damaged: accepted")


@_test(
    11, "a loader state of another batch size, seed, dataset or sampler is refused with both values"
)
def other_loaders_are_refused(peer: Peer) -> None:
    accepted = []
    for change, values in (
        ({"batch_size": 3}, ("4", "3")),
        ({"seed": 6}, ("5", "6")),
        ({"size": 32}, ("24", "32")),
        ({"shuffle": False}, ()),
    ):
        with tempfile.TemporaryDirectory() as folder:
            work = Work(folder=Path(folder), resumable=True)
            _train(peer, attrs.evolve(work, stop_after=9))
            try:
                _train(peer, attrs.evolve(work, resume=True, **change))
            except NotOffered:
                raise
            except Exception as error:  # noqa: BLE001 - any error is looked at
                shown = all(value in str(error) for value in values)
                _expect(
                    shown,
                    f"another {next(iter(change))}: the error does not say both values: {error}",
                )
            else:
                accepted.append(next(iter(change)).replace("_", " "))
    _expect(not accepted, f"accepted: another {', '.join(accepted)}")


@_test(12, "two streams that are one on their device are refused or kept apart")
def equal_streams_are_found(peer: Peer) -> None:
    try:
        one, other = peer.equal_streams()
    except (ValueError, RuntimeError):
        return
    _expect(one != other, "the same numbers from two streams, unnoticed")


@_test(13, "every kind of device that is seeded is also given back (MPS and XPU included)")
def devices_return(peer: Peer) -> None:
    with standing_in(peer) as kinds:
        for kind in kinds.values():
            kind.manual_seed_all(11)
        before = {name: kind.states() for name, kind in kinds.items()}

        def seeds() -> None:
            torch.manual_seed(3)

        try:
            peer.in_scope(7, seeds)
        except NotOffered:
            state = peer.rng_state()
            peer.seed(7)
            peer.set_rng_state(state)
        lost = [name for name, kind in kinds.items() if kind.states() != before[name]]
    _expect(not lost, f"seeded and not given back: {', '.join(lost)}")


@_test(14, "the generator states load under torch.load(weights_only=True)")
def states_are_plain(peer: Peer) -> None:
    buffer = io.BytesIO()
    torch.save(peer.rng_state(), buffer)
    buffer.seek(0)
    try:
        state = torch.load(buffer, weights_only=True)
    except Exception as error:
        raise Failed(f"torch refuses: {str(error).split('.')[0]}") from error
    peer.set_rng_state(state)
