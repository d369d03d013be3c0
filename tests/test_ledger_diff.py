"""Comparing ledgers: equal runs are equal, and what differs is said, the first stream first."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import attrs
import pytest
import torch
from ledgers import ledger_of
from torch import nn

from seedregistry import Ledger, SeedRegistry
from seedregistry.ledger import Built, EnvironmentSeen, StreamDiff

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    # The first training in a process imports it, and the environment says whether it is there:
    # between two runs of one process, that must be no difference.
    import torch._inductor.config  # noqa: F401

    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def evolved(ledger: Ledger, cls, **changes) -> Ledger:
    """A copy of a ledger in which the records of one class are changed."""
    return ledger_of(
        [
            attrs.evolve(record, **changes) if isinstance(record, cls) else record
            for record in ledger
        ]
    )


def test_two_runs_of_the_example_training(digits, monkeypatch):
    """Equal trainings have one digest; another seed or model changes it, another version does
    not; diff says what differs."""
    first = digits.train(42, 1, "first").registry.ledger
    assert digits.train(42, 1, "again").registry.ledger.digest == first.digest

    same = first.diff(digits.train(42, 1, "again").registry.ledger)
    assert not same
    assert str(same) == f"contents are equal: digest {first.short_digest}"

    other_seed = first.diff(digits.train(43, 1, "seed").registry.ledger)
    assert other_seed
    assert "master seed: 42 and 43" in other_seed.settings
    assert str(other_seed.first).startswith("split 'digits': seed ")

    build = digits.build_model
    monkeypatch.setattr(digits, "build_model", lambda hidden: build(hidden + 1))
    changed = digits.train(42, 1, "model").registry.ledger
    monkeypatch.undo()
    other_model = first.diff(changed)
    assert other_model
    assert other_model.first is None
    model = next(purpose for purpose in other_model.purposes if purpose.purpose == "model")
    assert "digest" in model.rebuilt_in
    assert str(model).startswith("model: 1 rebuilt with other ")
    assert "weights" in str(model)

    other_version = first.diff(evolved(first, Built, version="9.9"))
    assert not other_version
    assert other_version.circumstance == (f"version of torch: {torch.__version__} and 9.9",)
    assert str(other_version).splitlines()[1:] == [
        f"circumstance: version of torch: {torch.__version__} and 9.9"
    ]


def test_what_is_added_removed_and_reseeded():
    """Streams that one lacks or that have another seed are counted by purpose, and the first is
    named."""
    one, two = SeedRegistry(42), SeedRegistry(42)
    one.seed("a")
    two.seed("a")
    one.reserve("b", range(5))
    two.reserve("b", range(2, 8))
    two.seed("c")
    found = one.ledger.diff(two.ledger)
    assert found.first == StreamDiff(
        change="removed", purpose="b", instance_id=0, seed=one.seed("b", 0), other_seed=None
    )
    assert [(p.purpose, p.removed, p.added, p.reseeded) for p in found.purposes] == [
        ("b", 2, 3, 0),
        ("c", 0, 1, 0),
    ]
    assert str(found.purposes[0]) == "b: 3 added, 2 removed (0, 1, 5 and 2 more)"
    back = two.ledger.diff(one.ledger)
    assert [(p.purpose, p.removed, p.added) for p in back.purposes] == [("b", 3, 2), ("c", 1, 0)]


def test_another_scheme_reseeds():
    """The same words under another scheme are other seeds, and the scheme is named."""
    one, two = SeedRegistry(42), SeedRegistry(42, scheme="sha256-256")
    one.seed("a")
    two.seed("a")
    found = one.ledger.diff(two.ledger)
    assert found.settings == ("scheme: sha256-31 and sha256-256",)
    assert found.purposes[0].reseeded == 1


def test_children_are_compared_by_their_place():
    """A child's streams are those at its place, also where the parents have other master seeds."""
    ledgers = []
    for seed in (42, 43):
        registry = SeedRegistry(seed)
        registry.child("fold", 0).seed("model")
        registry.child("fold", 1).seed("model", seed)
        ledgers.append(registry.ledger)
    found = ledgers[0].diff(ledgers[1])
    by_purpose = {purpose.purpose: purpose for purpose in found.purposes}
    assert (by_purpose["fold"].reseeded, by_purpose["fold"].added) == (2, 0)
    model = by_purpose["model"]
    assert (model.reseeded, model.added, model.removed) == (1, 1, 1)
    assert model.instance_ids == ("fold 0/-", "fold 1/42", "fold 1/43")


def test_settings_and_other_entries():
    """Notes, determinism, generators handed out and splits that differ are said, a line each."""
    one, two = SeedRegistry(42), SeedRegistry(42)
    one.note(lr=0.1, epochs=3)
    two.note(lr=0.2, epochs=3, extra="x")
    one.generator("noise", 1)
    two.stream("noise", 1)
    one.split(range(10), [4, 6])
    two.split(range(10), [5, 5])
    found = one.ledger.diff(two.ledger)
    assert found.settings == ("note lr: 0.1 and 0.2", "note extra: none and 'x'")
    assert found.entries == (
        "handed-out: 1 only in the first, 0 only in the second",
        "split: 1 only in the first, 1 only in the second",
    )
    assert found.purposes == ()


def test_building_again_is_a_difference():
    """A model built twice from one stream is not the same as once."""
    one, two = SeedRegistry(42), SeedRegistry(42)
    for registry, times in ((one, 1), (two, 3)):
        for _ in range(times):
            registry.model(nn.Linear, 2, 2, instance_id="training")
    found = one.ledger.diff(two.ledger)
    assert found
    assert found.purposes[0].rebuilt_in == ("times",)


def test_environment_is_circumstance():
    """What differs in the environment is said, and leaves the ledgers equal."""
    one = SeedRegistry(42)
    one.model(nn.Linear, 2, 2, instance_id="training")
    other = evolved(one.ledger, EnvironmentSeen, values=(("torch", "9.9"), ("python", "4.0")))
    found = one.ledger.diff(other)
    assert not found
    assert f"torch: {torch.__version__} and 9.9" in found.circumstance


def test_ledgers_of_nothing():
    """Two empty ledgers are equal; an empty one and another differ."""
    assert not Ledger().diff(Ledger())
    assert Ledger().diff(SeedRegistry(42).ledger)
    assert str(Ledger().diff(SeedRegistry(42).ledger)).splitlines()[1] == "master seed: none and 42"
