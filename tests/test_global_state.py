"""set_global_state: generators and switches set together, and given back together."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from seedregistry import SeedRegistry, determinism, rng
from seedregistry.errors import InvalidOptionError, ScopeError
from seedregistry.ledger import Determinism, EnvironmentSeen


def switches() -> dict:
    return {switch.name: switch.get() for switch in determinism._SWITCHES}


@pytest.mark.parametrize("master", [42, 2**32 + 42, 2**127])
@pytest.mark.parametrize("scheme", ["sha256-31", "sha256-256"])
def test_set_and_given_back(master, scheme):
    """The block draws the same at every visit; its end gives generators and switches back, on an
    exception too."""
    registry = SeedRegistry(master, scheme=scheme)
    before, before_switches = rng.fingerprint(), switches()
    draws = []
    for _ in range(2):
        with pytest.raises(KeyError), registry.set_global_state(deterministic="warn") as handle:
            draws.append(
                (random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item())
            )
            with registry.stream("dropout", "x").scope(0):
                np.random.rand()
            assert handle.report.mode == "warn"
            assert torch.are_deterministic_algorithms_enabled()
            raise KeyError
        assert rng.fingerprint() == before
        assert switches() == before_switches
    assert draws[0] == draws[1]
    if master == 42:
        assert (draws[0][0], draws[0][1], draws[0][3]) == (
            0.6394267984578837,
            0.3745401188473625,
            0.8822692632675171,
        )
    assert len(registry.ledger.find(Determinism)) == 2
    assert len(registry.ledger.find(EnvironmentSeen)) == 1


def test_a_large_master_seed_gives_each_library_its_own_words():
    """Beyond NumPy's range the libraries are set from the stream "global", not from one integer."""
    registry = SeedRegistry(2**40)
    with registry.set_global_state():
        drawn = torch.rand(3), random.random()
    stream = registry.stream("global")
    assert torch.equal(
        drawn[0], torch.rand(3, generator=torch.Generator().manual_seed(stream.seed))
    )
    assert drawn[1] == stream.python().random()


@pytest.mark.moves_global_state
def test_it_stays_until_reverted():
    """Without a with block the state stays; revert gives it back, once."""
    before = rng.fingerprint()
    handle = SeedRegistry(42).set_global_state()
    assert rng.fingerprint() != before
    handle.revert()
    assert rng.fingerprint() == before
    torch.rand(1)
    moved = rng.fingerprint()
    handle.revert()
    assert rng.fingerprint() == moved


def test_not_inside_a_scope():
    """Inside a scope neither setting nor reverting is possible, and nothing has changed."""
    registry = SeedRegistry(42)
    before = switches()
    handle = registry.set_global_state()
    with registry.stream("x", 1).scope(0):
        inside = rng.fingerprint()
        for call in (lambda: registry.set_global_state(deterministic="strict"), handle.revert):
            with pytest.raises(ScopeError, match="inside a scope"):
                call()
        assert rng.fingerprint() == inside
    handle.revert()
    assert switches() == before


def test_both_or_neither(monkeypatch):
    """If the generators cannot be set the switches go back; a bad mode sets nothing."""
    before = switches()

    def fail(seed):
        raise RuntimeError

    monkeypatch.setattr(rng, "seed_global", fail)
    with pytest.raises(RuntimeError):
        SeedRegistry(42).set_global_state(deterministic="strict")
    assert switches() == before
    for mode, fill in (("on", False), (None, False), ("warn", 1)):
        with pytest.raises(InvalidOptionError):
            SeedRegistry(42).set_global_state(deterministic=mode, fill_uninitialized_memory=fill)


def test_a_partial_seed_is_taken_back(monkeypatch):
    """If one library refuses after another was seeded, the first is put back."""
    before = rng.fingerprint()

    def fail(seed):
        raise RuntimeError

    monkeypatch.setattr(torch, "manual_seed", fail)
    with pytest.raises(RuntimeError):
        SeedRegistry(42).set_global_state()
    assert rng.fingerprint() == before


def test_a_global_philox_is_replaced_and_comes_back():
    """A global bit generator that np.random.seed would refuse is replaced for the block, and is
    back after it."""
    original = np.random.get_bit_generator()
    mine = np.random.Philox(5)
    np.random.set_bit_generator(mine)
    try:
        with SeedRegistry(42).set_global_state():
            assert np.random.rand() == 0.3745401188473625
        assert np.random.get_bit_generator() is mine
    finally:
        np.random.set_bit_generator(original)


@pytest.mark.moves_global_state
def test_an_interrupted_way_back_can_be_gone_again(monkeypatch):
    """Where Ctrl-C comes while the state is given back, a second revert() gives it back."""
    before = rng.fingerprint()
    handle = SeedRegistry(42).set_global_state()
    restore = rng.Captured.restore

    def interrupted(captured, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(rng.Captured, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.revert()
    monkeypatch.setattr(rng.Captured, "restore", restore)
    handle.revert()
    assert rng.fingerprint() == before
    torch.rand(1)
    handle.revert()  # done: nothing more happens
    assert rng.fingerprint() != before
