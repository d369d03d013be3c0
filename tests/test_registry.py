"""The registry: derivation with a cache, collisions, purposes, reuse, children, copies."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seedregistry import Ledger, SeedRegistry, Stream, derivation, rng
from seedregistry.errors import (
    InvalidNameError,
    InvalidOptionError,
    InvalidSeedError,
    SeedCollisionError,
    SimilarPurposeWarning,
    StreamReuseError,
    StreamReuseWarning,
    UnknownPurposeError,
)
from seedregistry.ledger import Derivation, HandedOut, Run, Scoped, Warned

DESIGN = {
    ("model", "training"): 1958051794,
    ("optimizer", "training"): 1689976434,
    ("dataloader", "training"): 755280155,
    ("model", "lds_0"): 489751117,
    ("model", "lds_1"): 495878693,
}


def test_the_vectors_through_the_registry():
    """The registry derives the documented seeds, and the second time from its cache."""
    registry = SeedRegistry(42)
    for _ in range(2):
        assert {name: registry.seed(*name) for name in DESIGN} == DESIGN
    assert registry.stream("model", "training").seed == 1958051794


@given(
    order=st.permutations([*DESIGN, ("dropout", None), ("noise", 7), ("noise", "x")]),
    cut=st.integers(0, 8),
)
def test_seeds_do_not_depend_on_order_or_company(order, cut):
    """Adding, removing or reordering streams changes no other stream's seed or key."""
    whole = SeedRegistry(42)
    expected = {name: whole.stream(*name).key for name in sorted(order, key=repr)}
    part = SeedRegistry(42)
    assert {name: part.stream(*name).key for name in order[:cut]} == {
        name: expected[name] for name in order[:cut]
    }


def test_components_do_not_disturb_each_other():
    """A model is bit-equal whatever was built, drawn or left out before it."""
    alone = SeedRegistry(42).model(torch.nn.Linear, 3, 2, instance_id="training")
    registry = SeedRegistry(42)
    other = registry.model(torch.nn.Linear, 30, 20, instance_id="other")
    registry.optimizer(torch.optim.SGD, other.parameters(), instance_id="other", lr=0.1)
    registry.generator("noise", "x")
    registry.dataloader([1, 2, 3], shuffle=True)
    assert torch.equal(
        registry.model(torch.nn.Linear, 3, 2, instance_id="training").weight, alone.weight
    )


BAD = [-1, 2**128, 3.9, True, "5", float("nan"), b"1", torch.tensor(3), np.float64(1.0)]


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_bad_master_seeds(value):
    """A bad master seed is a typed error and no generator has moved."""
    with pytest.raises(InvalidSeedError):
        SeedRegistry(value)


@pytest.mark.parametrize("purpose", ["", None, 3, b"x", "\ud800", ("model",)], ids=repr)
@pytest.mark.parametrize("method", ["seed", "stream", "generator", "numpy", "python", "child"])
def test_bad_purposes(method, purpose):
    """A bad purpose is a typed error wherever it is passed, and nothing is recorded."""
    registry = SeedRegistry(1)
    with pytest.raises(InvalidNameError):
        getattr(registry, method)(purpose, "training")
    assert len(registry.ledger) == 1


@pytest.mark.parametrize(
    "instance_id", [True, 1.0, (1,), [1], {}, b"1", "\ud800", np.bool_(True)], ids=repr
)
def test_bad_ids_do_not_reach_the_cache(instance_id):
    """A bad id that equals a good one (True == 1 == 1.0) is refused even when the good one is
    cached."""
    registry = SeedRegistry(42)
    registry.seed("model", 1)
    for method in (registry.seed, registry.stream, registry.generator):
        with pytest.raises(InvalidNameError):
            method("model", instance_id)
    assert len(registry) == 1


def test_numpy_integers_are_recorded_as_ints():
    """NumPy integers are accepted as master seed and id, and the ledger has python's."""
    registry = SeedRegistry(np.int64(42))
    assert registry.seed("model", np.int32(7)) == SeedRegistry(42).seed("model", 7)
    assert type(registry.master_seed) is int
    assert type(registry.ledger.find(Derivation)[0].instance_id) is int
    assert ("model", 7) in registry


def test_a_missing_seed_is_drawn_recorded_and_logged(caplog):
    """Without a master seed 128 bits come from the operating system, and the log has the line to
    paste."""
    with caplog.at_level("INFO", logger="seedregistry"):
        registry = SeedRegistry()
    assert f"SeedRegistry({registry.master_seed})" in caplog.text
    assert registry.ledger.find(Run)[0].master_seed == registry.master_seed
    assert SeedRegistry().master_seed != registry.master_seed


def test_the_registry_is_a_container():
    """It counts, contains and lists what was derived, in order, and its repr counts."""
    registry = SeedRegistry(42)
    names = [("model", "training"), ("dropout", None), ("noise", 7), ("noise", "7")]
    registry = SeedRegistry(42, scheme="sha256-256")
    for name in names:
        registry.seed(*name)
    assert list(registry) == names
    assert len(registry) == 4
    assert ("noise", 7) in registry
    assert ("noise", True) not in registry
    assert ("noise", None) not in registry
    assert "noise" not in registry
    assert (["noise"], 7) not in registry
    assert ("noise", [7]) not in registry
    registry.child("fold", 0)
    assert repr(registry) == "<SeedRegistry 42, sha256-256: 5 streams, 1 child, 7 records>"


# --- collisions -----------------------------------------------------------------------------------


def test_the_first_collision_is_refused():
    """Two streams with one 31-bit seed are refused, naming both; the first stays usable and
    nothing is recorded."""
    registry = SeedRegistry(42)
    first = registry.seed("model", "lds_23202")
    with pytest.raises(SeedCollisionError, match=r"lds_23202.*lds_29047.*sha256-256") as caught:
        registry.seed("model", "lds_29047")
    assert caught.value.first == ("model", "lds_23202")
    assert caught.value.second == ("model", "lds_29047")
    assert caught.value.seed == first
    assert len(registry) == len(registry.ledger.find(Derivation)) == 1
    with pytest.raises(SeedCollisionError):
        registry.model(torch.nn.Linear, 1, 1, instance_id="lds_29047")
    assert registry.seed("model", "lds_23202") == first


def test_ids_that_differ_in_type_only_are_refused_with_a_word():
    """7 and "7" hash one text under the documented scheme; the message says that they differ in
    type."""
    registry = SeedRegistry(42)
    registry.seed("model", 7)
    with pytest.raises(SeedCollisionError, match="type of the instance id only"):
        registry.seed("model", "7")
    registry.seed("model_a", "b")
    with pytest.raises(SeedCollisionError):
        registry.seed("model", "a_b")


def test_the_other_scheme_has_no_such_collisions():
    """Under sha256-256 the same words have different keys and are accepted."""
    registry = SeedRegistry(42, scheme="sha256-256")
    names = [
        ("model", 7),
        ("model", "7"),
        ("model_a", "b"),
        ("model", "a_b"),
        ("model", "lds_23202"),
        ("model", "lds_29047"),
    ]
    assert len({registry.stream(*name).key for name in names}) == len(names)


def test_a_child_shares_the_map_of_seeds(monkeypatch):
    """A stream of a child that has the seed of a parent's stream is refused, naming the
    relation."""
    registry = SeedRegistry(42)
    child = registry.child("fold", 0)
    taken = registry.seed("model", "training")
    monkeypatch.setattr(
        child,
        "_scheme",
        derivation.Scheme(
            name="sha256-31",
            derive=lambda *words: taken,
            full_width=False,
            refuses_shared_seeds=True,
        ),
    )
    with pytest.raises(SeedCollisionError, match="related registry of master seed 42"):
        child.seed("model", "training")


def test_reserve_derives_all_or_nothing():
    """reserve refuses a collision before the first training, and then nothing has been derived."""
    registry = SeedRegistry(42)
    registry.reserve("model", [f"lds_{i}" for i in range(1000)])
    assert len(registry) == 1000
    assert registry.seed("model", "lds_0") == 489751117
    registry.reserve("model", ["lds_0", "lds_0", 5])
    assert len(registry) == 1001
    fresh = SeedRegistry(42)
    with pytest.raises(SeedCollisionError, match="reserve"):
        fresh.reserve("model", [f"lds_{i}" for i in range(30_000)])
    assert len(fresh) == 0
    assert fresh.seed("model", "lds_29047") == SeedRegistry(42).seed("model", "lds_29047")
    with pytest.raises(InvalidOptionError, match="collection"):
        fresh.reserve("model", "training")
    with pytest.raises(InvalidNameError):
        fresh.reserve("model", [1, True])


def test_an_interrupt_leaves_no_stream_colliding_with_itself(monkeypatch):
    """A derivation or a reserve that was interrupted can be made again."""
    registry = SeedRegistry(1)
    real, calls = SeedRegistry._add, []

    def interrupted(self, *words) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, *words)

    monkeypatch.setattr(SeedRegistry, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.reserve("model", range(5))
    registry.reserve("model", range(5))
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        registry.seed("model", "x")
    assert registry.seed("model", "x") == SeedRegistry(1).seed("model", "x")
    assert len(registry) == len(registry.ledger.find(Derivation)) == 6


def test_copies_while_others_derive():
    """Pickling and deep-copying while another thread derives give whole registries."""
    registry = SeedRegistry(42, scheme="sha256-256")
    stop = threading.Event()

    def derive() -> None:
        i = 0
        while not stop.is_set():
            registry.seed("y", i % 20_000)
            if i < 20_000:  # copies of a ledger without end take without end
                registry.generator("z", i)
            i += 1

    worker = threading.Thread(target=derive)
    worker.start()
    try:
        for _ in range(20):
            for twin in (pickle.loads(pickle.dumps(registry)), copy.deepcopy(registry)):
                assert len(twin.ledger.find(Derivation)) >= len(twin)
    finally:
        stop.set()
        worker.join()


def test_two_hundred_thousand_full_width_streams_differ():
    """Under sha256-256 no two of 200,000 CPU streams agree in their first four words."""
    registry = SeedRegistry(42, scheme="sha256-256")
    master = registry.master_seed
    first_words = set()
    for i in range(200_000):
        # The first words of the state itself: building 200,000 generators takes ten times as long
        # and shows the same.
        first_words.add(derivation.mt19937_words(derivation.stream_key(master, "model", i))[:16])
    assert len(first_words) == 200_000
    sample = [registry.generator("model", i) for i in range(0, 200_000, 4001)]
    outputs = {
        tuple(torch.randint(0, 2**32, (4,), dtype=torch.int64, generator=g).tolist())
        for g in sample
    }
    assert len(outputs) == len(sample)


def test_integer_seeds_of_torch_do_collide():
    """What the full state avoids: torch's CPU generator uses the low 32 bits of an integer seed
    only."""
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1 + 2**32)
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))


# --- purposes -------------------------------------------------------------------------------------


def test_a_slip_in_a_purpose_warns_once():
    """A purpose that nobody registered and that is one edit from a known one warns, once."""
    registry = SeedRegistry(42)
    with pytest.warns(SimilarPurposeWarning, match="'modle'.*'model'") as caught:
        registry.seed("modle", 1)
    assert caught[0].filename == __file__
    registry.seed("modle", 2)
    registry.seed("dropout")
    registry.seed("train1")
    registry.seed("train2")
    assert [record.category for record in registry.ledger.find(Warned)] == ["SimilarPurposeWarning"]


@pytest.mark.parametrize(
    ("first", "second", "near"),
    [
        ("modle", "model", True),
        ("mdel", "model", True),
        ("moddel", "model", True),
        ("modem", "model", True),
        ("model", "model", False),
        ("mod", "model", False),
        ("ledom", "model", False),
        ("a", "b", True),
        ("ab", "ba", True),
        ("abc", "cab", False),
    ],
)
def test_one_edit(first, second, near):
    """One insertion, deletion, substitution or swap of neighbours is one edit."""
    from seedregistry.registry.purposes import is_single_edit

    assert is_single_edit(first, second) is is_single_edit(second, first) is near


def test_a_closed_set_of_purposes():
    """With a closed set, another purpose is an error that names the set and the nearest; the
    library's own two are in."""
    registry = SeedRegistry(42, purposes={"model", "dropout"})
    registry.seed("dropout")
    registry.split(range(10), [5, 5])
    with pytest.raises(
        UnknownPurposeError, match=r"'droput'.*'dropout', 'model'.*Did you mean 'dropout'"
    ):
        registry.seed("droput")
    with pytest.raises(UnknownPurposeError):
        registry.optimizer(torch.optim.SGD, [torch.zeros(1)], lr=0.1)
    with pytest.raises(UnknownPurposeError):
        registry.child("fold", 1)
    assert len(registry) == 2
    for bad in ("model", 3, [3], {""}):
        with pytest.raises((InvalidOptionError, InvalidNameError)):
            SeedRegistry(1, purposes=bad)


# --- reuse ----------------------------------------------------------------------------------------


def test_a_stream_without_an_id_used_twice_warns_with_both_lines():
    """A second use of a stream without an instance id is a StreamReuseWarning that shows both
    call sites."""
    registry = SeedRegistry(42)
    registry.model(torch.nn.Linear, 2, 2)
    with pytest.warns(
        StreamReuseWarning, match=r"test_registry\.py:\d+.*test_registry\.py:\d+"
    ) as caught:
        registry.model(torch.nn.Linear, 2, 2)
    assert caught[0].filename == __file__
    assert registry.ledger.find(Warned)[0].category == "StreamReuseWarning"


def test_a_stream_with_an_id_is_shared():
    """With an instance id a second use is sharing: no warning, equal products, and every use is
    in the ledger."""
    registry = SeedRegistry(42)
    models = [registry.model(torch.nn.Linear, 2, 2, instance_id="shared") for _ in range(3)]
    assert torch.equal(models[0].weight, models[2].weight)
    assert len(registry.ledger.find(purpose="model")) == 4
    assert "3 uses" in str(registry.ledger)


def test_generators_of_one_line_warn():
    """A loop that takes a new generator from one line restarts its noise, and is warned about
    even with an id."""
    registry = SeedRegistry(42)
    with pytest.warns(StreamReuseWarning, match="starts over"):
        for _ in range(2):
            registry.generator("noise", "train")
    registry = SeedRegistry(42)
    registry.generator("noise", "train")
    registry.generator("noise", "train")
    registry.numpy("noise", "train")
    assert len(registry.ledger.find(HandedOut)) == 3
    with pytest.warns(StreamReuseWarning):
        for _ in range(2):
            registry.stream("noise", "loop").generator()


def test_scopes_at_the_start_count_and_positions_do_not():
    """Scopes at a stream's start are uses, recorded once; positions are neither."""
    registry = SeedRegistry(42)
    stream = registry.stream("noise")
    for epoch in range(3):
        with stream.scope(epoch):
            pass
        stream.at(epoch).generator()
    assert len(registry.ledger) == 2
    with stream.scope():
        pass
    with pytest.warns(StreamReuseWarning), stream.scope():
        pass
    assert len(registry.ledger.find(Scoped)) == 1


def test_the_order_of_uses_changes_no_digest():
    """A scope at the start and a generator of one stream leave the same content in either order."""
    digests = []
    for order in ((0, 1), (1, 0)):
        registry = SeedRegistry(42)
        uses = [
            lambda: registry.stream("noise", "x").scope(),  # noqa: B023
            lambda: registry.generator("noise", "x"),  # noqa: B023
        ]
        for i in order:
            uses[i]()
        digests.append(registry.ledger.digest)
    assert digests[0] == digests[1]


def test_a_copy_does_not_keep_the_original_alive():
    """A deep copy holds nothing of the registry that it was made from."""
    import gc
    import weakref

    registry = SeedRegistry(42)
    registry.generator("noise", "x")
    registry.split(range(10), [5, 5])
    twin = copy.deepcopy(registry)
    gone = weakref.ref(registry._shared)
    del registry
    gc.collect()
    assert gone() is None
    assert len(twin) == 2


@pytest.mark.parametrize("use", ["model", "generator", "scope"])
def test_reuse_can_be_forbidden_allowed_or_warned_about(use):
    """on_reuse="forbid" raises at any second use, "warn" warns, "allow" is silent."""

    def run(registry: SeedRegistry) -> None:
        if use == "model":
            registry.model(torch.nn.Linear, 1, 1, instance_id="x")
        elif use == "generator":
            registry.generator("model", "x")
        else:
            registry.stream("model", "x").scope()

    forbid = SeedRegistry(1, on_reuse="forbid")
    run(forbid)
    records = len(forbid.ledger)
    with pytest.raises(StreamReuseError):
        run(forbid)
    assert len(forbid.ledger) == records
    warn = SeedRegistry(1, on_reuse="warn")
    run(warn)
    with pytest.warns(StreamReuseWarning):
        run(warn)
    allow = SeedRegistry(1, on_reuse="allow")
    for _ in range(3):
        run(allow)


def test_a_failed_build_is_no_use():
    """A factory that failed has not used the stream: the retry is not a reuse."""
    registry = SeedRegistry(1, on_reuse="forbid")
    with pytest.raises(Exception, match="failed"):
        registry.model(lambda: 1 / 0, instance_id="x")
    registry.model(torch.nn.Linear, 1, 1, instance_id="x")


def test_bad_on_reuse():
    """on_reuse is one of its four values."""
    with pytest.raises(InvalidOptionError, match="'auto', 'allow', 'warn', 'forbid'"):
        SeedRegistry(1, on_reuse="never")


# --- streams and children -------------------------------------------------------------------------


def test_streams_are_cached_values():
    """The same words give the same stream object; looking it up is no use; streams with equal
    words are equal."""
    registry = SeedRegistry(42)
    stream = registry.stream("dropout", "training")
    assert registry.stream("dropout", "training") is stream
    assert copy.copy(stream) is copy.deepcopy(stream) is stream
    other = pickle.loads(pickle.dumps(stream))
    assert other == stream
    assert hash(other) == hash(stream)
    assert other != registry.stream("dropout", "x")
    assert other.at(1, "a") == stream.at(1, "a")
    assert pickle.loads(pickle.dumps(stream.at(1, "a"))).key == stream.at(1, "a").key
    assert len(registry.ledger.find(HandedOut)) == 0
    assert (
        repr(stream.at(1, "a"))
        == "Stream('dropout', 'training', seed=2038404106, scheme='sha256-31').at(1, 'a')"
    )


def test_an_unpickled_stream_draws_the_same_and_records_nothing():
    """A stream in another process keeps its words: same draws, no registry."""
    registry = SeedRegistry(42)
    stream = registry.stream("dropout", "training")
    away = pickle.loads(pickle.dumps(stream))
    expected = torch.rand(3, generator=stream.generator())
    records = len(registry.ledger)
    assert torch.equal(torch.rand(3, generator=away.generator()), expected)
    with away.scope(), stream.scope(3):
        pass
    assert away.numpy().random() == stream.at(0).stream.numpy().random()
    assert len(registry.ledger) == records + 1


def test_generators_of_a_stream():
    """Generators start at the stream's start: manual_seed(seed), PCG64 of the key, Random of its
    tagged hash."""
    registry = SeedRegistry(42)
    stream = registry.stream("noise", "train")
    expected = torch.Generator().manual_seed(stream.seed)
    assert torch.equal(registry.generator("noise", "train").get_state(), expected.get_state())
    key = int.from_bytes(stream.key, "big")
    assert (
        registry.numpy("noise", "train").random()
        == np.random.Generator(np.random.PCG64(key)).random()
    )
    assert (
        registry.python("noise", "train").random()
        == __import__("random").Random(derivation.python_seed(stream.key)).random()
    )
    assert isinstance(registry.numpy("noise", "a"), np.random.Generator)


GOLDEN = {
    "sha256-31": ([13347147, 9431996], 0.0548466075884656, 0.9463170583635963),
    "sha256-256": ([9451716, 15166028], 0.0548466075884656, 0.9463170583635963),
}


@pytest.mark.parametrize("scheme", ["sha256-31", "sha256-256"])
def test_golden_draws(scheme):
    """The first draws of a stream's generators are frozen, for each scheme."""
    stream = Stream(42, scheme, "noise", "train")
    words, from_numpy, from_python = GOLDEN[scheme]
    assert torch.randint(0, 2**24, (2,), generator=stream.generator()).tolist() == words
    assert stream.numpy().random() == from_numpy
    assert stream.python().random() == from_python


def test_full_width_state_is_what_numpy_makes_of_it():
    """Under sha256-256 torch's CPU generator continues like an MT19937 with the same 624 words."""
    stream = Stream(42, "sha256-256", "noise", "train")
    reference = np.random.MT19937(0)
    words = np.frombuffer(derivation.mt19937_words(stream.key), dtype="<u4")
    reference.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.randint(0, 2**24, (1300,), generator=stream.generator()).tolist()
    assert drawn == (reference.random_raw(1300) % 2**24).tolist()
    assert stream.generator().initial_seed() == stream.seed


def test_coordinates_are_plain():
    """NumPy integers among coordinates are kept as python's."""
    position = SeedRegistry(1).stream("x").at(np.int64(3), "a", 4)
    assert [type(coordinate) for coordinate in position.coordinates] == [int, str, int]
    assert position == SeedRegistry(1).stream("x").at(3, "a", 4)


def test_position_needs_coordinates():
    """A position has at least one coordinate."""
    with pytest.raises(InvalidNameError, match="at least one"):
        SeedRegistry(1).stream("x").at()


def test_children():
    """A child is the same object for the same words, has a master seed of its own and writes
    into the same ledger."""
    registry = SeedRegistry(42)
    fold = registry.child("fold", 0)
    assert registry.child("fold", 0) is fold
    assert fold.master_seed == derivation.child_master_seed(derivation.stream_key(42, "fold", 0))
    assert fold.ledger is registry.ledger
    assert fold.scheme == registry.scheme
    assert fold.seed("model") != registry.seed("model")
    assert fold.child("trial").master_seed != registry.child("trial").master_seed
    runs = registry.ledger.find(Run)
    assert [run.parent for run in runs] == [None, 42, fold.master_seed, 42]
    assert fold.seed("model") == SeedRegistry(fold.master_seed).seed("model")


# --- copies, threads, processes -------------------------------------------------------------------


def test_pickle_and_deepcopy_are_independent():
    """A pickled or deep-copied registry has the same seeds, records and guards, and goes on by
    itself."""
    registry = SeedRegistry(42)
    registry.model(torch.nn.Linear, 2, 2, instance_id="a")
    generator = registry.generator("noise", "x")
    registry.child("fold", 0).seed("model")
    for twin in (pickle.loads(pickle.dumps(registry)), copy.deepcopy(registry)):
        assert twin.ledger.digest == registry.ledger.digest
        assert list(twin) == list(registry)
        assert twin.child("fold", 0).ledger is twin.ledger
        with pytest.raises(SeedCollisionError):
            twin.reserve("model", ["lds_23202", "lds_29047"])
        before = len(registry.ledger)
        twin.model(torch.nn.Linear, 2, 2, instance_id="b")
        with pytest.warns(StreamReuseWarning):
            twin.on_reuse = None
            for _ in range(2):
                twin.generator("noise", "x")
        assert len(registry.ledger) == before
        assert torch.equal(
            twin.model(torch.nn.Linear, 2, 2, instance_id="b").weight,
            SeedRegistry(42).model(torch.nn.Linear, 2, 2, instance_id="b").weight,
        )
    assert generator is not None


def test_eight_threads_derive_at_once():
    """Eight threads that derive the same streams lose nothing, record nothing twice and agree."""
    registry = SeedRegistry(42, scheme="sha256-256")
    barrier = threading.Barrier(8)
    found = []

    def work() -> None:
        barrier.wait()
        found.append([registry.seed("model", i) for i in range(500)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seeds == found[0] for seeds in found)
    assert len(registry.ledger.find(Derivation)) == 500


def build_in_child(registry: SeedRegistry) -> tuple:
    model = registry.model(torch.nn.Linear, 3, 2, instance_id="training")
    with registry.stream("dropout", "training").scope(3, 4):
        noise = torch.rand(3).tolist()
    return registry.seed("model", "training"), model.weight.tolist(), noise


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_agree(method):
    """Forked and spawned processes get the same seeds, weights and draws from a registry that
    was sent to them."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        away = pool.submit(build_in_child, SeedRegistry(42)).result(timeout=100)
    assert away == build_in_child(SeedRegistry(42))


FRESH = """
import torch
from seedregistry import SeedRegistry
registry = SeedRegistry(42)
model = registry.model(torch.nn.Linear, 3, 2, instance_id="training")
print(model.weight.tolist(), registry.ledger.digest)
"""


def test_fresh_interpreters_agree():
    """Fresh interpreters with different PYTHONHASHSEED build the same weights and the same
    ledger digest."""
    outputs = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", FRESH],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1


def test_logging_has_structured_extra(caplog):
    """Derivations are logged at debug, builds at info, with the words and the seed as
    attributes; nothing is printed."""
    with caplog.at_level("DEBUG", logger="seedregistry"):
        registry = SeedRegistry(42)
        registry.model(torch.nn.Linear, 1, 1, instance_id="training")
        with registry.stream("dropout", 1).scope(0):
            pass
    created = next(record for record in caplog.records if record.levelname == "INFO")
    assert (created.purpose, created.instance_id, created.component_seed, created.master_seed) == (
        "model",
        "training",
        1958051794,
        42,
    )
    messages = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert any("derived model/training" in message for message in messages)
    assert any("scope of dropout/1" in message for message in messages)


def test_nothing_is_printed(capfd):
    """The library prints nothing."""
    registry = SeedRegistry(42)
    registry.model(torch.nn.Linear, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry.model(torch.nn.Linear, 1, 1)
    assert capfd.readouterr() == ("", "")
    assert not rng.in_scope()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("by", ["seed", "reserve"])
def test_an_interrupt_while_a_seed_is_recorded(monkeypatch, when, by):
    """Ctrl-C before or after the record of a derivation is made leaves one record of it in the end,
    and the digest of a registry that nobody interrupted."""
    registry, calm = SeedRegistry(42), SeedRegistry(42)
    append = Ledger.append_later

    def interrupted(ledger, *arguments):
        if when == "after":
            append(ledger, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "append_later", interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.seed("model", 7)
    monkeypatch.undo()
    for each in (registry, calm):
        if by == "reserve":
            each.reserve("model", [7, "8"])
        assert each.seed("model", 7) == SeedRegistry(42).seed("model", 7)
        each.seed("model", "8")
    assert len(registry.ledger.find(Derivation)) == 2
    assert registry.ledger.digest == calm.ledger.digest
