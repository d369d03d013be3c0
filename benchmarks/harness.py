"""What every benchmark here does.

The measured body and its floor in turn, in one run, and a ratio of the two.

Absolute times on a shared machine drift by a third from minute to minute; the ratio of two bodies
that were timed in turn does not. Each body is a function that does ``calls`` calls by itself; the
price of an empty loop is taken off both.
"""

from __future__ import annotations

import gc
import hashlib
import statistics
import threading
import time


def empty_loop(calls: int) -> float:
    """Return the seconds of a loop of ``calls`` turns that does nothing: the least of five."""
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(calls):
            pass
        best = min(best, time.perf_counter() - started)
    return best


def on_a_short_stack(work):
    """Run work in a thread of its own, and return what it returns.

    ``torch.manual_seed`` formats the stack for each device it queues a seed for: deep under pytest
    it would take three times as long as in a user's script, and flatter every ratio against it.
    """
    found: list = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def in_turn(
    measured, peer, *, rounds: int, calls: int, prepare=lambda: ((), ()), collects: bool = True
) -> tuple:
    """Time two bodies in turn.

    Args:
        measured: ``measured(*own)`` does ``calls`` calls.
        peer: ``peer(*own)`` likewise.
        rounds: how many times each.
        calls: calls in one round.
        prepare: returns the arguments of both, before each round and not timed.
        collects: collect garbage before each round. It empties Python's free lists too, which a
            body that makes many small tuples then pays for and a training does not.

    Returns:
        Seconds for a call: one list for the measured body and one for the peer.
    """

    def time_both() -> tuple:
        loop = empty_loop(calls)
        times: tuple = ([], [])
        for _ in range(rounds):
            arguments = prepare()
            if collects:
                gc.collect()
            for body, own, found in zip((measured, peer), arguments, times):
                started = time.perf_counter()
                body(*own)
                found.append(max(time.perf_counter() - started - loop, 1e-12) / calls)
        return times

    return on_a_short_stack(time_both)


def first_derivations(make, *, rounds: int) -> tuple:
    """Time first derivations through new registries, which ``make`` returns, in turn with the
    bare hash of the same texts."""
    calls = 1000
    ids = [f"lds_{i}" for i in range(calls)]

    def prepare() -> tuple:
        registry = make()
        return (registry,), ([f"{registry.master_seed}_model_{i}".encode() for i in ids],)

    def measured(registry) -> None:
        seed = registry.seed
        for i in ids:
            seed("model", i)

    def floor(texts) -> None:
        sha256 = hashlib.sha256
        for text in texts:
            sha256(text).digest()

    return in_turn(measured, floor, rounds=rounds, calls=calls, prepare=prepare)


def report(
    benchmark,
    what: str,
    measured: list,
    peer: list,
    *,
    peer_name: str,
    target: str,
    kind: str = "ratio",
) -> None:
    """Hand a row to ``run.py`` through pytest-benchmark's ``extra_info``.

    Args:
        benchmark: the fixture; it gets the measured times too, so that its own table shows them.
        what: the row's name.
        measured: seconds for a call, of each round.
        peer: likewise.
        peer_name: what the peer is.
        target: such as ``"<= 12 x"``; ``""`` for a row without one.
        kind: ``"ratio"`` (least by least), ``"added"`` (least minus least, in us), ``"percent"``
            (median of the paired differences), ``"bandwidth"`` (peer by measured), ``"share"``
            (measured by peer, in percent).
    """
    low, floor = min(measured), min(peer)
    value = {
        "ratio": low / floor,
        "added": (low - floor) * 1e6,
        "bandwidth": floor / low,
        "share": low / floor,
        "percent": (statistics.median(m / p for m, p in zip(measured, peer)) - 1) * 100,
    }[kind]
    benchmark.extra_info.update(
        what=what,
        measured_us=low * 1e6,
        peer_us=floor * 1e6,
        peer=peer_name,
        value=value,
        kind=kind,
        target=target,
    )
    benchmark.pedantic(lambda: None, rounds=1)


def report_figure(
    benchmark, what: str, value: float, unit: str, *, target: str, beside: tuple
) -> None:
    """Hand a row with a figure of its own unit to ``run.py``, beside another one of the same unit.

    Args:
        benchmark: the fixture.
        what: the row's name.
        value: the figure.
        unit: such as ``"bytes an entry"``.
        target: such as ``"<= 350"``; ``""`` for a row without one.
        beside: name and value of the other figure.
    """
    benchmark.extra_info.update(
        what=what, value=value, kind="figure", unit=unit, target=target, beside=beside
    )
    benchmark.pedantic(lambda: None, rounds=1)
