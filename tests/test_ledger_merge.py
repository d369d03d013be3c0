"""Parts and merging: order does not count, twice is once, and what does not fit is refused
before anything is taken."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import sys
import threading

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import derivation, every_kind, ledger_of, small_ledger
from torch import nn

from seedregistry import Ledger, SeedRegistry
from seedregistry.errors import LedgerError, LedgerIntegrityError, SeedCollisionError
from seedregistry.ledger import Built, Derivation, HandedOut, Note, Run, Split, records, verify_file

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


def work(registry: SeedRegistry, worker: int) -> Ledger:
    """What one worker of a pool does, and hands over."""
    for i in range(20):
        registry.seed("shared", i)
        registry.seed(f"own {worker}", i)
    registry.model(nn.Linear, 2, 2, instance_id=f"lds_{worker}")
    registry.model(nn.Linear, 2, 2, instance_id="training")  # shared on purpose, once by each
    return registry.ledger.part()


def work_elsewhere(payload: bytes, worker: int, path: str) -> bytes:
    part = work(pickle.loads(payload), worker)
    part.save(path)
    return pickle.dumps(part)


def begin() -> SeedRegistry:
    registry = SeedRegistry(42, scheme="sha256-256")
    registry.note(lr=0.1)
    registry.model(nn.Linear, 2, 2, instance_id="training")
    registry.child("fold", 0).seed("x")
    return registry


@pytest.mark.parametrize("method", ["spawn", pytest.param("fork", marks=posix)])
def test_processes_hand_over_what_they_added(tmp_path, method):
    """Four processes at once: nothing lost, nothing twice, each one's file verifies, and the
    merge is the sequential ledger."""
    registry = begin()
    payload = pickle.dumps(registry)
    arguments = [(payload, worker, str(tmp_path / f"{worker}.jsonl")) for worker in range(4)]
    with multiprocessing.get_context(method).Pool(4) as pool:
        parts = [pickle.loads(part) for part in pool.starmap(work_elsewhere, arguments)]
    sequential = begin()
    for worker in range(4):
        work(sequential, worker)
        assert verify_file(tmp_path / f"{worker}.jsonl").ok
    registry.ledger.merge(*parts)
    assert registry.ledger.digest == sequential.ledger.digest
    assert registry.ledger.verify().ok
    assert not registry.ledger.diff(sequential.ledger)
    names = {(record.purpose, record.instance_id) for record in registry.ledger.find(Derivation)}
    assert names == {
        (record.purpose, record.instance_id) for record in sequential.ledger.find(Derivation)
    }
    from_files = begin().ledger.merge(
        *(Ledger.load(tmp_path / f"{worker}.jsonl") for worker in range(4))
    )
    assert from_files.digest == sequential.ledger.digest


def test_threads_append_to_one_ledger():
    """Eight threads of one registry lose nothing and state nothing twice."""
    registry = SeedRegistry(42, scheme="sha256-256")
    threads = [
        threading.Thread(
            target=lambda worker=worker: [
                registry.seed("x", (worker % 2) * 100 + i) for i in range(100)
            ]
        )
        for worker in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.instance_id for record in registry.ledger.find(Derivation)) == list(
        range(200)
    )


def make_parts() -> tuple:
    registry = begin()
    twins = [pickle.loads(pickle.dumps(registry)) for _ in range(3)]
    return registry, [work(twin, index) for index, twin in enumerate(twins)]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_merging_is_idempotent_and_has_no_order(picks):
    """Parts merged in any order, again, one by one or together give one content; the last of
    them changes nothing."""
    registry, parts = make_parts()
    one_by_one, together = copy.copy(registry.ledger), copy.copy(registry.ledger)
    for pick in picks:
        assert one_by_one.merge(parts[pick]) is one_by_one
    together.merge(*(parts[pick] for pick in sorted(picks)))
    assert one_by_one.digest == together.digest
    assert len(one_by_one) == len(together)
    before = one_by_one.digest, len(one_by_one)
    one_by_one.merge(*(parts[pick] for pick in picks), together, one_by_one)
    assert (one_by_one.digest, len(one_by_one)) == before


def test_a_merged_ledger_survives_the_file(tmp_path):
    """Saved and loaded, a merged ledger still knows where its entries come from: merging the
    parts again changes nothing."""
    registry, parts = make_parts()
    registry.ledger.merge(*parts[:2])
    registry.ledger.save(tmp_path / "a.jsonl")
    loaded = Ledger.load(tmp_path / "a.jsonl")
    count = len(loaded)
    loaded.merge(registry.ledger, *parts[:2])
    assert len(loaded) == count
    loaded.merge(parts[2])
    assert loaded.digest == registry.ledger.merge(parts[2]).digest
    loaded.save(tmp_path / "b.jsonl")
    assert Ledger.load(tmp_path / "b.jsonl").verify().ok
    assert Ledger.load(tmp_path / "b.jsonl").digest == loaded.digest


@pytest.mark.parametrize(
    "cuts", [[(0, 3), (2, 6)], [(2, 6), (0, 3)], [(4, 6), (0, 2)], [(0, 6), (1, 2)], [(3, 4)]]
)
def test_overlapping_pieces_of_one_origin(cuts):
    """Of pieces of one ledger that overlap, leave gaps or repeat, each entry is taken once."""
    whole = ledger_of(every_kind()[:6])._snapshot()[0]
    taken = Ledger()
    for start, end in cuts:
        piece = Ledger()
        piece._stretches.insert(0, whole.cut(start, end))
        taken.merge(piece)
        taken.merge(piece)
    expected = sorted({serial for start, end in cuts for serial in range(start, end)})
    found = [serial for part in taken._snapshot() for serial in range(part.start, part.end)]
    assert sorted(found) == expected
    taken.merge(ledger_of(every_kind()[:6]))
    assert len(taken) == 6
    assert taken.digest == ledger_of(every_kind()[:6]).digest


def test_facts_count_once_and_events_add_up():
    """Two processes that state one fact state it once; two that build the same thing have built
    it twice."""
    fact, event = (
        derivation("a", 1),
        HandedOut(master_seed=42, purpose="a", instance_id=1, kind="torch:cpu"),
    )
    both = [fact, event]
    merged = ledger_of(both).merge(ledger_of(both, origin="f" * 16))
    assert merged.digest == ledger_of([fact, event, event]).digest
    assert merged.digest != ledger_of(both).digest
    assert len(merged) == 4


def test_what_is_no_ledger_is_refused():
    """merge takes ledgers; a wrong one among right ones leaves everything as it was."""
    ledger = small_ledger()
    for bad in (None, "x", [], SeedRegistry(42)):
        with pytest.raises(LedgerError, match="merge takes ledgers"):
            ledger.merge(ledger_of(every_kind(), origin="f" * 16), bad)
    assert len(ledger) == len(small_ledger())


def test_collisions_are_looked_for_again():
    """Two workers whose streams share a seed are refused when they meet, and nothing is taken."""
    first, second = SeedRegistry(42), SeedRegistry(42)
    first.seed("model", "a_b")
    second.seed("model_a", "b")
    count = len(first.ledger)
    with pytest.raises(SeedCollisionError, match="Nothing was merged") as refused:
        first.ledger.merge(second.ledger)
    assert {refused.value.first, refused.value.second} == {("model", "a_b"), ("model_a", "b")}
    assert len(first.ledger) == count
    fresh = Ledger()
    with pytest.raises(SeedCollisionError):
        fresh.merge(first.ledger, second.ledger)
    assert len(fresh) == 0
    SeedRegistry(43).ledger.merge(second.ledger)  # another experiment may
    wide = SeedRegistry(42, scheme="sha256-256")
    wide.seed("model", "a_b")
    twin = SeedRegistry(42, scheme="sha256-256")
    twin.seed("model_a", "b")
    wide.ledger.merge(twin.ledger)


def test_collisions_between_a_registry_and_its_child():
    """The map of seeds is one for a registry and its children, also when they meet in a merge."""
    parent = SeedRegistry(42)
    parent.child("fold", 0)
    part = Ledger()
    stolen = attrs.evolve(
        derivation("x", None, master_seed=parent.child("fold", 0).master_seed),
        seed=parent.seed("fold", 0),
    )
    part.append(stolen)
    with pytest.raises(SeedCollisionError):
        parent.ledger.merge(part)


def test_other_indices_for_one_split_are_refused():
    """Two workers that split differently under one name contradict each other, and nothing is
    taken."""
    first, second = SeedRegistry(42), SeedRegistry(42)
    first.split(range(10), [4, 6])
    second.split(range(10), [4, 6])
    first.ledger.merge(second.ledger)
    other = Ledger()
    other.append(attrs.evolve(first.ledger.find(records.Split)[0], indices_digest="0" * 64))
    count = len(first.ledger)
    with pytest.raises(LedgerIntegrityError, match="Nothing was merged"):
        first.ledger.merge(other)
    assert len(first.ledger) == count


def test_two_entries_at_one_place_are_refused():
    """Of two copies of one ledger that say different things at one place, one was changed:
    neither is taken for the other."""
    ledger = ledger_of([Run(master_seed=42, scheme="sha256-31"), Note(name="lr", value=0.1)])
    changed = ledger_of([Run(master_seed=42, scheme="sha256-31"), Note(name="lr", value=0.2)])
    with pytest.raises(LedgerIntegrityError, match="Entry 1 of origin"):
        ledger.merge(changed)
    same = ledger_of([Run(master_seed=42, scheme="sha256-31"), Note(name="lr", value=0.1)])
    ledger.merge(same)
    nan = [ledger_of([Note(name="x", value=float("nan"))]) for _ in range(2)]
    nan[0].merge(nan[1])
    assert len(nan[0]) == 1


def test_a_part_can_be_checked_alone():
    """A part has the runs, and the derivations of inherited streams it used: it verifies, and is
    no more than needed."""
    registry = begin()
    registry.reserve("unused", range(50))
    twin = pickle.loads(pickle.dumps(registry))
    twin.generator("unused", 7)
    part = twin.ledger.part()
    assert part.verify().ok
    assert [record.instance_id for record in part.find(Derivation, purpose="unused")] == [7]
    assert len(part.find(Run)) == 2
    assert len(part) < 8
    again = pickle.loads(pickle.dumps(part))
    assert again.digest == part.digest
    count = len(registry.ledger)
    registry.ledger.merge(again)
    assert len(registry.ledger) == count + 1
    assert registry.ledger.find(HandedOut)[-1].instance_id == 7


def test_a_worker_hands_over_what_its_own_workers_did():
    """What a worker has merged is part of what it hands over."""
    registry = begin()
    worker = pickle.loads(pickle.dumps(registry))
    helper = pickle.loads(pickle.dumps(worker))
    helper.seed("deep")
    worker.ledger.merge(helper.ledger.part())
    worker.seed("middle")
    registry.ledger.merge(worker.ledger.part())
    assert {record.purpose for record in registry.ledger.find(Derivation)} >= {"deep", "middle"}


def test_two_ledgers_that_merge_each_other():
    """Two threads that merge two ledgers into each other, again and again, do not wait for each
    other for ever."""
    first, second = begin().ledger, begin().ledger

    def merge(one: Ledger, two: Ledger) -> None:
        for _ in range(200):
            one.merge(two)

    threads = [
        threading.Thread(target=merge, args=pair, daemon=True)
        for pair in ((first, second), (second, first))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert first.digest == second.digest


def test_merging_while_others_write():
    """Threads that derive while parts are merged lose nothing."""
    registry, parts = make_parts()
    stop = threading.Event()

    def write() -> None:
        i = 0
        while not stop.is_set():
            registry.seed("busy", i)
            i += 1

    thread = threading.Thread(target=write)
    thread.start()
    for part in parts:
        registry.ledger.merge(part)
    stop.set()
    thread.join()
    ids = [record.instance_id for record in registry.ledger.find(Derivation, purpose="busy")]
    assert ids == list(range(len(ids)))
    assert len(registry.ledger.find(Built)) == 1 + 6
    assert registry.ledger.verify().ok


# --- two schemes ----------------------------------------------------------------------------------


def experiment_under(scheme: str, data: int = 10, **options) -> SeedRegistry:
    registry = SeedRegistry(42, scheme=scheme, **options)
    registry.model(nn.Linear, 2, 2, instance_id="training")
    registry.split(range(data), [0.5, 0.5])
    registry.child("fold", 0).seed("model")
    return registry


@pytest.mark.parametrize("swapped", [False, True])
def test_one_master_seed_under_two_schemes(swapped):
    """The table of both has a section for each scheme, with its seeds and uses; equal splits
    have other indices and are no contradiction."""
    schemes = ("sha256-256", "sha256-31") if swapped else ("sha256-31", "sha256-256")
    registries = [experiment_under(scheme) for scheme in schemes]
    alone = [registry.ledger.table(every_stream=True).sections for registry in registries]
    registries[1].model(nn.Linear, 2, 2, instance_id="training")  # a use that the other has not
    alone[1] = registries[1].ledger.table(every_stream=True).sections
    merged = Ledger().merge(*[registry.ledger for registry in registries])

    assert merged.verify()
    sections = merged.table(every_stream=True).sections
    assert {(section.scheme, section.name): section.rows for section in sections} == {
        (section.scheme, section.name): section.rows for side in alone for section in side
    }
    assert len(sections) == 4


def test_two_schemes_hide_no_contradiction():
    """Beside another scheme, a split of one scheme with two sets of indices is refused, and does
    not verify."""
    narrow, wide = experiment_under("sha256-31"), experiment_under("sha256-256")
    other = experiment_under("sha256-256")
    [split] = other.ledger.find(Split)
    changed = ledger_of(
        attrs.evolve(record, indices_digest="5" * 64) if record == split else record
        for record in other.ledger
    )
    merged = Ledger().merge(narrow.ledger, wide.ledger)
    with pytest.raises(LedgerIntegrityError, match="datasets or the versions"):
        merged.merge(changed)
    forged = Ledger()
    for ledger in (merged, changed):
        forged._stretches.extend(ledger._snapshot())
    assert [fault.code for fault in forged.verify().faults] == ["contradiction"]
