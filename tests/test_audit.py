"""The audit: every draw outside every stream is caught and named."""

from __future__ import annotations

import contextlib
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation
from torch.utils.data import TensorDataset

from seedregistry import SeedRegistry, rng
from seedregistry.errors import (
    InvalidOptionError,
    ScopeError,
    UndeclaredRandomnessError,
    UndeclaredRandomnessWarning,
)
from seedregistry.ledger import Audited

DRAWS = {
    "dropout": (lambda: F.dropout(torch.ones(4)), "aten::"),
    "alpha_dropout": (lambda: F.alpha_dropout(torch.ones(4), training=True), "aten::"),
    "gumbel_softmax": (lambda: F.gumbel_softmax(torch.ones(2, 2)), "aten::exponential_"),
    "rand": (lambda: torch.rand(2), "aten::rand"),
    "randn_like": (lambda: torch.randn_like(torch.ones(2)), "aten::randn_like"),
    "randperm": (lambda: torch.randperm(4), "aten::randperm"),
    "multinomial": (lambda: torch.multinomial(torch.ones(4), 1), "aten::"),
    "normal": (lambda: torch.normal(0.0, 1.0, (2,)), "aten::normal"),
    "distribution": (lambda: torch.distributions.Beta(1.0, 2.0).sample(), "aten::"),
    "init": (lambda: nn.Linear(2, 2), "aten::uniform_"),
    "random_": (lambda: torch.empty(2).random_(), "aten::random_"),
    "backward": (
        lambda: F.rrelu(-torch.ones(2, requires_grad=True), training=True).sum().backward(),
        "aten::rrelu",
    ),
    "random.random": (random.random, "random"),
    "random.shuffle": (lambda: random.shuffle([1, 2, 3]), "random"),
    "np.random.rand": (np.random.rand, "numpy.random"),
    "np.random.randn": (np.random.randn, "numpy.random"),
}


@pytest.mark.moves_global_state
@pytest.mark.parametrize("name", DRAWS)
def test_draws_outside_streams_are_caught_and_named(name):
    """Each undeclared draw raises, with its source and, for operators, the device and the
    caller's line."""
    draw, source = DRAWS[name]
    registry = SeedRegistry(42)
    with pytest.raises(UndeclaredRandomnessError) as caught, registry.audit():
        draw()
    assert caught.value.source.startswith(source)
    if source.startswith("aten"):
        assert caught.value.device == "cpu"
        assert "test_audit.py:" in caught.value.line
        assert caught.value.line in str(caught.value)
    (record,) = registry.ledger.find(Audited)
    assert record.undeclared == 1


def test_the_generator_has_not_moved_when_it_raises():
    """In error mode an operator's draw is taken back: torch's generator is where it was."""
    before = rng.fingerprint()
    with pytest.raises(UndeclaredRandomnessError), SeedRegistry(1).audit():
        torch.rand(2)
    assert rng.fingerprint() == before


QUIET = {
    "dropout in eval mode": lambda: nn.Dropout(0.5).eval()(torch.ones(3)),
    "dropout with p=0": lambda: F.dropout(torch.ones(3), p=0.0),
    "attention without dropout": lambda: F.scaled_dot_product_attention(
        *[torch.ones(1, 1, 2, 4)] * 3
    ),
    "own generator": lambda: torch.rand(2, generator=torch.Generator()),
    "own python": lambda: random.Random(1).random(),
    "own numpy": lambda: np.random.default_rng(1).random(),
    "arithmetic": lambda: torch.ones(3) @ torch.ones(3),
    "meta": lambda: torch.empty(2, device="meta").normal_(),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_draws_nothing_passes(name):
    """Operators that draw nothing, and draws from generators of one's own, are not reported."""
    registry = SeedRegistry(42)
    with registry.audit() as audit:
        QUIET[name]()
    assert audit.undeclared == 0
    assert registry.ledger.find(Audited)[0].completed


def test_the_loop_of_the_design_passes():
    """DESIGN's own loop, with dropout in scope(epoch, step) and a shuffled loader, draws nothing
    outside its streams."""
    registry = SeedRegistry(42)
    data = TensorDataset(
        torch.randn(12, 4, generator=registry.generator("data")), torch.arange(12) % 2
    )
    net = registry.model(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), instance_id="net"
    )
    optimizer = registry.optimizer(
        torch.optim.SGD, net.parameters(), instance_id="training", lr=0.1, momentum=0.9
    )
    scheduler = registry.scheduler(
        "OneCycleLR", optimizer, instance_id="training", max_lr=0.1, total_steps=6
    )
    loader = registry.dataloader(data, instance_id="training", batch_size=4, shuffle=True)
    dropout = registry.stream("dropout", "training")
    with registry.audit() as audit:
        for epoch in range(loader.epoch, 2):
            for step, (inputs, targets) in loader.steps(epoch):
                with dropout.scope(epoch, step):
                    optimizer.zero_grad()
                    F.cross_entropy(net(inputs), targets).backward()
                    optimizer.step()
                    scheduler.step()
    assert audit.undeclared == 0
    assert loader.epoch == 2


@pytest.mark.moves_global_state
def test_warn_mode_counts_and_goes_on():
    """In warn mode each line warns once, every draw is counted, and the block runs to its end."""
    registry = SeedRegistry(42)
    with pytest.warns(UndeclaredRandomnessWarning) as caught, registry.audit("warn") as audit:
        for _ in range(3):
            torch.rand(2)
        random.random()
    assert audit.undeclared == 4
    assert len(caught) == 2
    assert caught[0].filename == __file__
    assert registry.ledger.find(Audited)[0].undeclared == 4


@pytest.mark.moves_global_state
def test_an_audit_inside_a_scope():
    """Inside a scope every draw is the scope's; in a torch-only scope python's and NumPy's still
    are not."""
    registry = SeedRegistry(1)
    with registry.stream("x").scope(0), registry.audit() as audit:
        torch.rand(1), np.random.rand(), random.random()
    assert audit.undeclared == 0
    with registry.stream("x").scope(0, torch_only=True):
        with registry.audit():
            torch.rand(1)
        with pytest.raises(UndeclaredRandomnessError, match="numpy"), registry.audit():
            np.random.rand()


def test_an_error_that_was_caught_inside_is_raised_at_the_end():
    """A block that swallows the audit's error does not pass."""
    swallowed = contextlib.suppress(UndeclaredRandomnessError)
    with pytest.raises(UndeclaredRandomnessError, match="aten::rand"), SeedRegistry(
        1
    ).audit(), swallowed:
        torch.rand(1)


@pytest.mark.moves_global_state
@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox, np.random.SFC64])
def test_other_bit_generators_under_numpy_are_watched(kind):
    """A global bit generator of another kind is found when it moves, and only then."""
    original = np.random.get_bit_generator()
    np.random.set_bit_generator(kind(3))
    try:
        np.random.rand()
        with SeedRegistry(1).audit():
            pass
        with pytest.raises(UndeclaredRandomnessError, match="numpy"), SeedRegistry(1).audit():
            np.random.rand()
    finally:
        np.random.set_bit_generator(original)


@pytest.mark.moves_global_state
def test_draws_of_other_threads_are_found():
    """A draw in another thread is found at the end, by the state of the generator."""
    with pytest.raises(UndeclaredRandomnessError, match="another thread"), SeedRegistry(1).audit():
        thread = threading.Thread(target=lambda: torch.rand(3))
        thread.start()
        thread.join()


def test_an_exception_of_the_body_goes_on():
    """An exception of the audited block is not replaced, and the entry says that the block did
    not complete."""
    registry = SeedRegistry(1)
    with pytest.raises(KeyError), registry.audit():
        raise KeyError
    assert registry.ledger.find(Audited)[0].completed is False


def test_an_audit_is_one_block():
    """One audit cannot be entered twice."""
    audit = SeedRegistry(1).audit()
    with audit:
        pass
    with pytest.raises(ScopeError, match="one block"), audit:
        pass


def test_audits_are_not_content():
    """An audit changes no digest: a run that was audited equals one that was not."""
    registry = SeedRegistry(1)
    digest = registry.ledger.digest
    with registry.audit():
        pass
    assert registry.ledger.digest == digest
    assert len(registry.ledger) == 2


@pytest.mark.parametrize("mode", ["raise", None, True])
def test_bad_modes(mode):
    """The mode is error or warn."""
    with pytest.raises(InvalidOptionError):
        SeedRegistry(1).audit(mode)


@pytest.mark.moves_global_state
def test_an_audit_that_does_not_watch_is_caught(monkeypatch):
    """With the watcher taken away, the state comparison still finds torch's draw."""
    monkeypatch.setattr(
        "seedregistry.audit._Watcher.__torch_dispatch__",
        lambda self, f, t, a=(), k=None: f(*a, **(k or {})),
    )
    with pytest.raises(UndeclaredRandomnessError, match="torch:cpu"), SeedRegistry(1).audit():
        torch.rand(2)
