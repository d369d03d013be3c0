"""Retraining on subsets: the same numbers wherever it runs, kept as they come, and scored as the
papers do."""

from __future__ import annotations

import concurrent.futures
import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
import scipy.stats
import torch
from kill import run_until
from recipes import (
    SIZE,
    VARIANTS,
    Noisy,
    data,
    first_outputs_in_deterministic_mode,
    first_outputs_in_the_main_process,
    held_out,
    load,
    mlp_with_dropout,
    recipe,
)

from seedregistry import SeedRegistry, determinism
from seedregistry.attribution import (
    PROTOCOLS,
    ReloadableTensors,
    Retrainings,
    Training,
    drop_sets,
    jobs,
    lds,
    losses_of,
    magic,
    noise_ceiling,
    retrain,
    score,
)
from seedregistry.common.files import seal, unseal
from seedregistry.errors import InvalidOptionError, RecipeError, ReplayError, SeedCollisionError
from seedregistry.ledger import Derivation, Note

HERE = Path(__file__).parent
TESTS = losses_of(*held_out())


@pytest.fixture(scope="module")
def training():
    return Training(
        SeedRegistry(42),
        recipe(epochs=4, optimizer_options={"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    )


def values_of(found) -> list:
    return [retrainings.values for retrainings in found]


def test_magic_predicts_retraining(training):
    """On a small smooth training the scores rank the outcomes of retraining almost perfectly;
    random scores do not."""
    scores = magic(training, TESTS).scores
    found = retrain(training, TESTS, fractions=(0.05, 0.2), subsets=20)
    for retrainings in found:
        scored = score(retrainings, scores, registry=training.registry)
        assert scored.mean > 0.97
        assert scored.interval[0] <= scored.mean <= scored.interval[1]
        assert 0.5 < scored.slope < 2
        assert scored.undefined == 0
        assert (
            abs(
                score(
                    retrainings, torch.randn(5, SIZE, generator=torch.Generator().manual_seed(0))
                ).mean
            )
            < 0.5
        )


def test_retraining_is_the_run_with_weights_of_zero(training):
    """Each retraining is the run itself with the left-out examples at weight zero, bit for bit."""
    (found,) = retrain(training, TESTS, fractions=(0.1,), subsets=3)
    for dropped, values in zip(found.dropped, found.values):
        weights = torch.ones(SIZE, dtype=torch.float64)
        weights[dropped] = 0
        with torch.no_grad():
            assert torch.equal(TESTS(training, training.train(weights)), values)


def test_subsets_are_positions():
    """A subset is a function of its fraction and number: more subsets or other fractions change
    none of them."""
    few = drop_sets(SeedRegistry(42), 100, 0.1, 3)
    many = drop_sets(SeedRegistry(42), 100, 0.1, 7)
    assert torch.equal(few, many[:3])
    assert few.shape == (3, 10)
    assert all(len(set(row.tolist())) == 10 for row in many)
    assert len({tuple(row.tolist()) for row in many}) == 7
    assert not torch.equal(drop_sets(SeedRegistry(43), 100, 0.1, 3), few)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, 0.001, 0.999, 1, "0.1", float("nan")])
def test_fractions_that_are_none(training, fraction):
    """A fraction that leaves out nothing or everything is refused before anything is trained."""
    with pytest.raises(RecipeError, match=r"[Ll]eav"):
        retrain(training, TESTS, fractions=(fraction,), subsets=3)


@pytest.mark.parametrize(
    "options",
    [
        {"subsets": 1},
        {"subsets": 2.5},
        {"protocol": "x"},
        {"workers": 0},
        {"workers": "2"},
        {"workers": True},
        {"at_once": 0},
    ],
)
def test_options_that_are_none(training, options):
    """A wrong option is refused before anything is trained."""
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        retrain(training, TESTS, **{"fractions": (0.1,), "subsets": 3, **options})
    with pytest.raises(RecipeError, match="fractions"):
        retrain(training, TESTS, fractions=())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol(training, protocol):
    """Each protocol retrains, differs from the others in what it shares, and repeats."""
    (found,) = retrain(training, TESTS, fractions=(0.1,), subsets=3, protocol=protocol)
    (again,) = retrain(
        Training(SeedRegistry(42), training.recipe),
        TESTS,
        fractions=(0.1,),
        subsets=3,
        protocol=protocol,
    )
    assert torch.equal(found.values, again.values)
    (shared,) = retrain(training, TESTS, fractions=(0.1,), subsets=3)
    assert torch.equal(found.values, shared.values) == (protocol == "weights")
    assert torch.equal(found.dropped, shared.dropped)


def test_own_init_and_own_order_are_the_documented_streams(training):
    """Models of their own come from the streams ("model", "lds_<fraction>_<i>"), orders likewise
    from ("dataloader", ...)."""
    dropped = drop_sets(training.registry, SIZE, 0.1, 2)
    weights = torch.ones(SIZE, dtype=torch.float64)
    weights[dropped[1]] = 0
    for protocol, change in (
        ("own-init", {"model_id": "lds_0.1_1"}),
        ("own-order", {"order_id": "lds_0.1_1"}),
    ):
        (found,) = retrain(training, TESTS, fractions=(0.1,), subsets=2, protocol=protocol)
        own = Training(SeedRegistry(42), attrs.evolve(training.recipe, **change))
        with torch.no_grad():
            assert torch.equal(TESTS(own, own.train(weights)), found.values[1])


def test_the_ledger_notes_what_was_asked(training):
    """The ledger has fractions, protocol, a digest of the subsets, and whether the streams are
    those of the run."""
    registry = SeedRegistry(42)
    own = Training(registry, training.recipe)
    for protocol, words in (("weights", "shared"), ("own-init", "not those of the run")):
        retrain(own, TESTS, fractions=(0.1,), subsets=2, protocol=protocol)
        note = next(
            record
            for record in registry.ledger.find(Note)
            if record.name == f"lds training {protocol}"
        )
        assert dict(note.value)["streams"] == words
        assert len(dict(note.value)["subsets_digest"]) == 64
    assert registry.ledger.verify().ok


@pytest.mark.parametrize(
    ("protocol", "purposes"),
    [
        ("weights", set()),
        ("cut", set()),
        ("subset", set()),
        ("own-order", {"dataloader"}),
        ("own-init", {"model"}),
        ("fresh", {"dataloader", "dropout", "model", "optimizer", "scheduler"}),
    ],
)
def test_the_ledger_has_the_streams_that_are_not_the_runs(training, protocol, purposes):
    """Streams of a retraining's own are derived in the run's registry: its ledger shows which
    seed was another one."""
    registry = SeedRegistry(42)
    own = Training(registry, training.recipe)
    before = {(record.purpose, record.instance_id) for record in registry.ledger.find(Derivation)}
    retrain(own, TESTS, fractions=(0.1, 0.2), subsets=2, protocol=protocol)
    after = {(record.purpose, record.instance_id) for record in registry.ledger.find(Derivation)}
    expected = {
        (purpose, f"lds_{fraction}_{i}")
        for purpose in purposes
        for fraction in (0.1, 0.2)
        for i in range(2)
    }
    assert after - before - {("lds_subsets", "training")} == expected


def test_a_collision_of_retrainings_is_refused_before_any_training(training, monkeypatch):
    """Two retrainings that would start from one seed are refused, by name, before the first of
    them begins."""
    registry = SeedRegistry(42)
    own = Training(registry, training.recipe)
    drop_sets(registry, SIZE, 0.1, 2)
    monkeypatch.setattr(
        registry, "_scheme", attrs.evolve(registry._scheme, derive=lambda *words: 7)
    )
    monkeypatch.setattr(
        Training, "train", lambda *arguments, **options: pytest.fail("a training began")
    )
    with pytest.raises(SeedCollisionError, match=r"lds_0\.1_0"):
        retrain(own, TESTS, fractions=(0.1,), subsets=2, protocol="own-init")


# --- other processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["weights", "own-init"])
def test_any_number_of_processes_gives_the_same_numbers(training, protocol):
    """One process, a pool of two, and an executor of the user's give equal values and equal
    ledgers."""
    runs = []
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        for workers in (1, 2, threads):
            registry = SeedRegistry(42)
            own = Training(registry, training.recipe)
            found = retrain(
                own, TESTS, fractions=(0.1, 0.2), subsets=3, protocol=protocol, workers=workers
            )
            runs.append((values_of(found), registry.ledger.digest))
    for values, digest in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(values, runs[0][0]))
        assert digest == runs[0][1]


@pytest.mark.moves_global_state  # Dask draws from python's generator
def test_a_cluster_of_dask(training):
    """The executor of a local Dask cluster gives the numbers of one process."""
    distributed = pytest.importorskip("distributed")
    here = os.path.dirname(__file__)
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        preload=[os.path.join(here, "dask_preload.py")],
    ) as cluster, distributed.Client(cluster) as client:
        found = retrain(training, TESTS, fractions=(0.1,), subsets=4, workers=client.get_executor())
    expected = retrain(training, TESTS, fractions=(0.1,), subsets=4)
    assert torch.equal(found[0].values, expected[0].values)


def test_threads_give_the_same_numbers():
    """An executor with several threads in one process gives the numbers of one: they share
    models and generators."""
    own = Training(SeedRegistry(42), recipe(model=mlp_with_dropout, epochs=4))
    expected = retrain(own, TESTS, fractions=(0.1,), subsets=12)[0].values
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert torch.equal(
            retrain(own, TESTS, fractions=(0.1,), subsets=12, workers=pool)[0].values, expected
        )


def test_fresh_is_fresh_whatever_the_run_took_from_elsewhere(training):
    """Under "fresh" each retraining has seeds of its own, also where the run has another one's
    parameters or order."""
    other = Training(
        SeedRegistry(42), attrs.evolve(training.recipe, model_id="pre", order_id="pre")
    )
    fresh = [
        retrain(one, TESTS, fractions=(0.1,), subsets=3, protocol="fresh")[0].values
        for one in (training, other)
    ]
    assert torch.equal(*fresh)


def test_two_runs_of_one_registry_have_retrainings_of_their_own(training):
    """Retrainings of another instance id have other seeds, and not only other subsets."""
    registry = SeedRegistry(42)
    for name in ("A", "B"):
        own = Training(
            registry, attrs.evolve(training.recipe, instance_id=name, model_id="training")
        )
        retrain(own, TESTS, fractions=(0.1,), subsets=2, protocol="own-init")
    own_ids = {
        one.instance_id for one in registry.ledger.find(Derivation) if one.purpose == "model"
    }
    assert own_ids == {"training", *(f"{name}_lds_0.1_{i}" for name in "AB" for i in range(2))}


def test_fractions_of_numpy_are_pythons(training):
    """NumPy's floats name the same streams and give the same subsets as python's, whatever the
    version of NumPy."""
    one, two = (
        retrain(training, TESTS, fractions=(kind(0.1),), subsets=2)[0]
        for kind in (float, np.float64)
    )
    assert torch.equal(one.values, two.values)
    assert torch.equal(drop_sets(training.registry, SIZE, np.float64(0.1), 2), one.dropped)
    assert type(two.fraction) is float
    with pytest.raises(RecipeError, match=r"several shares, as in \(0.1,\)"):
        retrain(training, TESTS, fractions=0.1)


@pytest.mark.parametrize(
    ("protocol", "distinct"), [("weights", 1), ("own-order", 1), ("own-init", 3), ("fresh", 3)]
)
def test_the_ledger_says_what_retrainings_started_from(training, tmp_path, protocol, distinct):
    """How many initial parameters there were, and a digest of them, is in the ledger; also of
    those that a store kept."""
    digests = []
    for store in (None, tmp_path, tmp_path):
        registry = SeedRegistry(42)
        retrain(
            Training(registry, training.recipe),
            TESTS,
            fractions=(0.1,),
            subsets=3,
            protocol=protocol,
            store=store,
        )
        notes = {record.name: dict(record.value) for record in registry.ledger.find(Note)}
        assert notes[f"lds training {protocol} models"]["retrained"] == 3
        assert notes[f"lds training {protocol} models"]["distinct_initial_parameters"] == distinct
        assert registry.ledger.verify().ok
        digests.append(registry.ledger.digest)
    assert len(set(digests)) == 1
    shown = str(registry.ledger)
    assert f"note lds training {protocol}: " in shown
    assert ("streams not those of the run" in shown) == (protocol != "weights")
    assert f"note lds training {protocol} models: distinct_initial_parameters {distinct}, " in shown


def test_what_cannot_be_sent_is_said(training):
    """A recipe that does not pickle is refused before a process starts, with both ways out."""
    own = Training(SeedRegistry(42), attrs.evolve(training.recipe, model=lambda: recipe().model()))
    with pytest.raises(RecipeError, match="functions of a module, or retrain in this process"):
        retrain(own, TESTS, fractions=(0.1,), subsets=2, workers=2)
    retrain(own, TESTS, fractions=(0.1,), subsets=2)


def test_a_process_that_does_not_repeat_the_run_refuses(training, monkeypatch):
    """The handshake: a process whose first steps have another fingerprint refuses, with both."""
    monkeypatch.setattr(jobs, "_unpacked", {})
    monkeypatch.setattr(
        Training, "fingerprint", lambda self, steps=10: "a" * 64 if self is training else "b" * 64
    )
    words = f"fingerprint is {'b' * 64} here and {'a' * 64} in the main process"
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(ReplayError, match=words):
        retrain(training, TESTS, fractions=(0.1,), subsets=2, workers=pool)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torch", "2.12.0"),
        ("numpy", "1.0"),
        ("torch.num_threads", "64"),
        ("dtype", "torch.float32"),
        ("seedregistry", "0.0"),
    ],
)
def test_another_environment_refuses(training, monkeypatch, name, value):
    """The handshake compares versions, threads and dtype too, and shows both values of what
    differs, and nothing else."""
    honest = training.handshake()
    monkeypatch.setattr(jobs, "_unpacked", {})
    monkeypatch.setattr(
        Training, "handshake", lambda self: honest if self is training else {**honest, name: value}
    )
    words = f"{name} is {value} here and {honest[name]} in the main process. Use"
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(
        ReplayError, match=re.escape(f"run: {words}")
    ):
        retrain(training, TESTS, fractions=(0.1,), subsets=2, workers=pool)


@pytest.mark.moves_global_state
def test_processes_take_the_determinism_switches_along(training):
    """What set_global_state asked for holds in the processes that retrain: spawned ones start
    without it."""
    with determinism.apply("strict"):
        found = retrain(
            training, first_outputs_in_deterministic_mode, fractions=(0.1,), subsets=2, workers=2
        )
        expected = retrain(
            training, first_outputs_in_deterministic_mode, fractions=(0.1,), subsets=2
        )
    assert torch.equal(found[0].values, expected[0].values)
    with pytest.raises(RecipeError, match="off here"):
        retrain(training, first_outputs_in_deterministic_mode, fractions=(0.1,), subsets=2)


def test_a_process_that_dies_is_said(training):
    """Where a process ends before its work is done, the error says why that happens and that the
    store is kept."""
    with pytest.raises(ReplayError, match="before its work was done"):
        retrain(training, first_outputs_in_the_main_process, fractions=(0.1,), subsets=2, workers=2)


def test_after_an_error_nobody_waits_for_the_rest(training, monkeypatch):
    """When one retraining fails, those that have not begun are never begun."""
    begun = []

    def fails(payload, name, indices, dropped):
        begun.append(indices)
        time.sleep(0.05)
        raise RecipeError("the first one fails")

    monkeypatch.setattr(jobs, "_work", fails)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(
        RecipeError, match="the first one"
    ):
        retrain(training, TESTS, fractions=(0.1,), subsets=40, workers=pool)
    assert len(begun) < 5


def test_data_that_load_themselves(training):
    """Loaded data are the tensors that the call returns, and travel as the call: a job of them
    is small."""
    loaded = ReloadableTensors(load, 50)
    plain = Training(SeedRegistry(42), attrs.evolve(training.recipe, dataset=load(50)))
    own = Training(SeedRegistry(42), attrs.evolve(training.recipe, dataset=loaded))
    assert own.fingerprint() == plain.fingerprint()
    assert len(pickle.dumps(loaded)) < 200
    assert all(
        torch.equal(one, two)
        for one, two in zip(pickle.loads(pickle.dumps(loaded)).tensors, load(50))
    )
    runs = [
        retrain(own, TESTS, fractions=(0.1,), subsets=3, workers=workers)[0].values
        for workers in (1, 2)
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize("protocol", ["weights", "cut"])
@pytest.mark.parametrize(
    "name", ["momentum and weight decay", "adamw", "dropout", "norms", "one cycle"]
)
def test_many_at_once(name, protocol):
    """A stack of models trains as each by itself, up to rounding, with the same draws; also in
    other processes."""
    own = Training(SeedRegistry(42), recipe(**VARIANTS[name]))
    (one_by_one,) = retrain(own, TESTS, fractions=(0.1,), subsets=5, protocol=protocol)
    (stacked,) = retrain(own, TESTS, fractions=(0.1,), subsets=5, protocol=protocol, at_once=3)
    assert torch.allclose(stacked.values, one_by_one.values, rtol=1e-10, atol=1e-12)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        (elsewhere,) = retrain(
            own, TESTS, fractions=(0.1,), subsets=5, protocol=protocol, at_once=3, workers=pool
        )
    assert torch.equal(elsewhere.values, stacked.values)


def test_what_cannot_be_stacked_is_said():
    """Clipping by the norm of one model is refused for a stack, with the way out."""
    own = Training(SeedRegistry(42), recipe(**VARIANTS["clipping"]))
    with pytest.raises(RecipeError, match="one by one"):
        retrain(own, TESTS, fractions=(0.1,), subsets=3, at_once=3)


# --- going on -------------------------------------------------------------------------------------


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from recipes import recipe, held_out
from seedregistry import SeedRegistry
from seedregistry.attribution import Training, losses_of, retrain
training = Training(SeedRegistry(42), recipe(epochs=4))
found = retrain(training, losses_of(*held_out()), fractions=(0.1,), subsets=300, store=sys.argv[2],
                progress=lambda done, total: print(done, flush=True))
"""


def test_retraining_that_was_killed_goes_on(tmp_path):
    """Killed with signal 9 and run again, retraining goes on with what it has, and ends with the
    same numbers."""
    here = os.path.dirname(__file__)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, here, str(tmp_path)]
    run_until(command, "20")
    kept = len(list(tmp_path.glob("*.json")))
    assert 20 <= kept < 300
    own = Training(SeedRegistry(42), recipe(epochs=4))
    calls = []
    (found,) = retrain(
        own,
        TESTS,
        fractions=(0.1,),
        subsets=kept + 5,
        store=tmp_path,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(kept + i, kept + 5) for i in range(1, 6)]
    (expected,) = retrain(own, TESTS, fractions=(0.1,), subsets=kept + 5)
    assert torch.equal(found.values, expected.values)


def test_a_store_of_another_run_is_refused(training, tmp_path):
    """Kept results of another training are refused, not mixed in."""
    retrain(training, TESTS, fractions=(0.1,), subsets=2, store=tmp_path)
    with pytest.raises(ReplayError, match="another training"):
        retrain(
            Training(SeedRegistry(43), training.recipe),
            TESTS,
            fractions=(0.1,),
            subsets=2,
            store=tmp_path,
        )
    path = next(tmp_path.glob("*.json"))
    assert json.loads(unseal(path.read_bytes()))["format"] == "seedregistry.lds/2"


def test_a_store_of_another_measurement_or_other_data_is_refused(tmp_path):
    """Results of other test examples, or of data that differ in one example which no early step
    sees, are not taken up."""
    changes = {"batch_size": 4, "epochs": 1}
    training = Training(SeedRegistry(42), recipe(**changes))
    retrain(training, TESTS, fractions=(0.1,), subsets=2, store=tmp_path)
    inputs, targets = held_out()
    with pytest.raises(
        ReplayError, match=r"another training: measurement is \w{12} there and \w{12} here\."
    ):
        retrain(
            training,
            losses_of(inputs.flip(0), targets.flip(0)),
            fractions=(0.1,),
            subsets=2,
            store=tmp_path,
        )
    inputs, targets = data()
    inputs[training._loader.indices(0)[-1]] += 1e-9
    other = Training(SeedRegistry(42), recipe(**changes, dataset=(inputs, targets)))
    one, two = (run.advance(run.initial_state(), 10) for run in (training, other))
    assert one.fingerprint() == two.fingerprint()
    with pytest.raises(
        ReplayError, match=r"another training: fingerprint is \w{12} there and \w{12} here\."
    ):
        retrain(other, TESTS, fractions=(0.1,), subsets=2, store=tmp_path)
    first = min(tmp_path.iterdir())
    whole = first.read_text()
    first.write_text(whole[:40])
    retrain(training, TESTS, fractions=(0.1,), subsets=3, store=tmp_path)
    assert first.read_text() == whole


def test_values_that_are_not_finite_are_refused(training):
    """A retraining that diverges is an error, not a rank."""
    wild = Training(SeedRegistry(42), recipe(optimizer_options={"lr": 1e200}))
    with pytest.raises(RecipeError, match=r"not finite|is inf|is nan"):
        retrain(wild, TESTS, fractions=(0.1,), subsets=2)


def test_datasets_that_draw(training):
    """Datasets with augmentation retrain too, also on a shorter subset."""
    own = Training(
        SeedRegistry(42),
        recipe(dataset=Noisy(), **{k: v for k, v in VARIANTS["dropout"].items() if k != "dataset"}),
    )
    for protocol in ("weights", "subset"):
        (found,) = retrain(own, TESTS, fractions=(0.1,), subsets=2, protocol=protocol)
        assert torch.isfinite(found.values).all()


# --- scoring --------------------------------------------------------------------------------------


def made(values: torch.Tensor, dropped: torch.Tensor, size: int = 10) -> Retrainings:
    return Retrainings(
        fraction=0.1,
        protocol="weights",
        dropped=dropped,
        values=values,
        size=size,
        fingerprint="",
        measurement="",
    )


def test_scores_are_scipys():
    """Spearman and Pearson are those of scipy, target by target; the slope is that of least
    squares."""
    from scipy.stats import pearsonr, spearmanr

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    dropped = torch.stack([torch.randperm(40, generator=generator)[:4] for _ in range(12)])
    predicted = -torch.stack([scores[:, rows].sum(1) for rows in dropped])
    actual = 2 * predicted + torch.randn(12, 3, generator=generator, dtype=torch.float64)
    actual[3] = actual[4]  # ties
    found = score(made(actual, dropped, 40), scores)
    assert np.allclose(
        found.spearman, [spearmanr(predicted[:, i], actual[:, i])[0] for i in range(3)]
    )
    assert math.isclose(
        found.pearson, np.mean([pearsonr(predicted[:, i], actual[:, i])[0] for i in range(3)])
    )
    assert math.isclose(found.mean, np.mean(found.spearman))
    assert 1 < found.slope < 3
    assert math.isnan(found.interval[0])


def test_constant_predictions_are_counted():
    """A target whose predictions are all equal has no correlation: it is counted, and left out
    of the mean."""
    scores = torch.zeros(2, 10, dtype=torch.float64)
    scores[1] = torch.arange(10)
    dropped = torch.tensor([[0], [3], [7]])
    found = score(
        made(-torch.tensor([[1.0, 0.0], [2.0, 3.0], [3.0, 7.0]], dtype=torch.float64), dropped),
        scores,
    )
    assert found.undefined == 1
    assert math.isclose(found.mean, 1.0)
    assert math.isnan(score(made(torch.zeros(3, 2, dtype=torch.float64), dropped), scores).mean)


@pytest.mark.parametrize("shape", [(3, 10), (2,), (2, 5), (2, 11)])
def test_scores_of_another_shape_are_refused(shape):
    """Scores must have a row for each target and a column for each example, and be finite."""
    retrainings = made(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([[0], [3], [7]]))
    with pytest.raises(RecipeError, match="shape"):
        score(retrainings, torch.zeros(shape))
    with pytest.raises(RecipeError, match="finite"):
        score(retrainings, torch.full((2, 10), float("nan")))


def test_scores_are_looked_at_before_anything_is_trained(training, monkeypatch):
    """Another number of targets or examples, or another training, is refused before the first
    retraining."""
    scores = magic(training, TESTS)
    other = magic(Training(SeedRegistry(43), training.recipe), TESTS)
    with pytest.raises(ReplayError, match="another training"):
        score(retrain(training, TESTS, fractions=(0.1,), subsets=2)[0], other)
    assert lds(training, TESTS, scores, fractions=(0.2,), subsets=10)[0].mean > 0.9
    assert (
        lds(training, TESTS, scores.scores.requires_grad_(), fractions=(0.2,), subsets=10)[0].mean
        > 0.9
    )
    monkeypatch.setattr(
        Training, "train", lambda *arguments, **options: pytest.fail("a training began")
    )
    for wrong, error in (
        (torch.zeros(3, SIZE), RecipeError),
        (torch.zeros(5, SIZE + 1), RecipeError),
        (torch.full((5, SIZE), float("inf")), RecipeError),
        (other, ReplayError),
    ):
        with pytest.raises(error):
            lds(training, TESTS, wrong, fractions=(0.1,), subsets=2)


# --- replicates -----------------------------------------------------------------------------------


def test_replicates_have_seeds_of_their_own_and_the_same_subsets(training, tmp_path):
    """Another replicate draws other seeds where the protocol has its own, on the same subsets,
    and is kept apart."""
    registry_before = len(training.registry.ledger.find(Note))
    fresh = [
        retrain(
            training,
            TESTS,
            fractions=(0.2,),
            subsets=3,
            protocol="fresh",
            replicate=replicate,
            store=tmp_path,
        )[0]
        for replicate in (0, 1, 0)
    ]
    assert torch.equal(fresh[0].dropped, fresh[1].dropped)
    assert torch.equal(fresh[0].values, fresh[2].values)
    assert not torch.equal(fresh[0].values, fresh[1].values)
    assert len(list(tmp_path.glob("*.json"))) == 6
    assert (
        len(training.registry.ledger.find(Note)) == registry_before + 6
    )  # what was asked for, and what came of it
    shared = [
        retrain(training, TESTS, fractions=(0.2,), subsets=3, replicate=replicate)[0]
        for replicate in (0, 1)
    ]
    assert torch.equal(shared[0].values, shared[1].values)
    for wrong in (-1, True, 1.0):
        with pytest.raises(InvalidOptionError, match="replicate"):
            retrain(training, TESTS, replicate=wrong)


def test_noise_ceiling(training):
    """Replicates of the run itself predict each other perfectly, fresh ones far less; other
    subsets are refused."""
    shared = [
        retrain(training, TESTS, fractions=(0.2,), subsets=12, replicate=replicate)[0]
        for replicate in (0, 1)
    ]
    fresh = [
        retrain(
            training, TESTS, fractions=(0.2,), subsets=12, protocol="fresh", replicate=replicate
        )[0]
        for replicate in (0, 1)
    ]
    assert noise_ceiling(*shared) == pytest.approx(1)
    assert noise_ceiling(*fresh) < 0.8
    values = [one.values.numpy() for one in fresh]
    expected = np.mean(
        [
            scipy.stats.spearmanr(values[0][:, i], values[1][:, i])[0]
            for i in range(values[0].shape[1])
        ]
    )
    assert noise_ceiling(*fresh) == pytest.approx(expected)
    (other,) = retrain(training, TESTS, fractions=(0.1,), subsets=12)
    with pytest.raises(RecipeError, match="other examples"):
        noise_ceiling(shared[0], other)


# --- files ----------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_store_is_done_again(training, tmp_path, caplog):
    """A kept result of which a bit has changed is not taken: it is done again, and said."""
    expected = retrain(training, TESTS, fractions=(0.1,), subsets=2, store=tmp_path)[0].values
    paths = sorted(tmp_path.iterdir())
    whole = [path.read_bytes() for path in paths]
    for position in range(0, len(whole[0]), 97):
        flipped = bytearray(whole[0])
        flipped[position] ^= 1
        paths[0].write_bytes(bytes(flipped))
        with caplog.at_level("WARNING", logger="seedregistry"):
            (again,) = retrain(training, TESTS, fractions=(0.1,), subsets=2, store=tmp_path)
        assert torch.equal(again.values, expected)
        assert "is damaged and is done again" in caplog.text
        caplog.clear()
        assert [path.read_bytes() for path in paths] == whole


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{", b'{"values": [NaN]}', seal(b"null")]
)
def test_what_is_no_result_of_a_store_is_refused_or_done_again(training, tmp_path, content):
    """A file in a store that holds something else never gives values."""
    expected = retrain(training, TESTS, fractions=(0.1,), subsets=2, store=tmp_path)[0].values
    first = min(tmp_path.iterdir())
    first.write_bytes(content)
    try:
        (again,) = retrain(training, TESTS, fractions=(0.1,), subsets=2, store=tmp_path)
    except ReplayError:
        return
    assert torch.equal(again.values, expected)


@pytest.mark.parametrize("instance_id", ["a/b", "n" * 300, "with\nlines", "..", "ünï"])
def test_instance_ids_that_are_no_file_names(tmp_path, instance_id):
    """Results are kept for every instance id, and go on."""
    training = Training(SeedRegistry(42), recipe(epochs=1, instance_id=instance_id))
    store = tmp_path / "store"
    first = retrain(training, TESTS, fractions=(0.1,), subsets=2, store=store)
    assert len(list(tmp_path.rglob("*.json"))) == len(list(store.iterdir())) == 2
    again = retrain(training, TESTS, fractions=(0.1,), subsets=2, store=store)
    assert torch.equal(first[0].values, again[0].values)


UNGUARDED = """
import torch
from seedregistry import SeedRegistry
from seedregistry.attribution import Training, losses_of, retrain
from recipes import held_out, recipe
training = Training(SeedRegistry(42), recipe(epochs=1))
retrain(training, losses_of(*held_out()), fractions=(0.1,), subsets=2, workers=2, progress=False)
"""


def test_a_script_without_a_guard(tmp_path):
    """A script that starts processes outside `if __name__ == '__main__':` is told to write that."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])},
        timeout=100,
    )
    assert run.returncode != 0
    assert "Put what it does below `if __name__ == '__main__':`" in run.stderr
    assert "An attempt has been made to start a new process" not in run.stderr
