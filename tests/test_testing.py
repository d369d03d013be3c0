"""The module for users' own tests."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from seedregistry import SeedRegistry
from seedregistry.testing import assert_replays, assert_rng_untouched

pytest_plugins = ["pytester"]


@pytest.mark.moves_global_state
@pytest.mark.parametrize(
    ("draw", "name"),
    [(random.random, "python"), (np.random.randn, "numpy"), (lambda: torch.rand(1), "torch:cpu")],
)
def test_a_moved_generator_is_named(draw, name):
    """assert_rng_untouched fails when a default generator moved, and names it."""
    with pytest.raises(AssertionError, match=name), assert_rng_untouched():
        draw()


def test_untouched_passes():
    """Draws in scopes and from own generators pass, and an exception of the block is not
    replaced."""
    registry = SeedRegistry(1)
    with assert_rng_untouched():
        with registry.stream("x").scope(0):
            torch.rand(1)
        registry.generator("y")
    with pytest.raises(KeyError), assert_rng_untouched():
        raise KeyError


def test_replays():
    """assert_replays passes a pure function through and returns its first result."""
    registry = SeedRegistry(42)

    def step(scale):
        with registry.stream("noise", "x").scope(3):
            return {
                "loss": torch.rand(2) * scale,
                "list": [np.random.rand(), (1, "a", None)],
                "model": torch.nn.Linear(2, 2),
            }

    assert set(assert_replays(step, 2.0, times=3)) == {"loss", "list", "model"}


@pytest.mark.moves_global_state
@pytest.mark.parametrize(
    ("function", "place"),
    [
        (lambda: {"a": [torch.rand(1)]}, r"result\['a'\]\[0\]"),
        (lambda: torch.nn.Linear(2, 2), r"state_dict\(\)"),
        (lambda: np.random.rand(3), "result"),
        (random.random, "result"),
        (lambda state=[]: state.append(1) or len(state), "result"),
        (lambda state=[]: state.append(1) or list(state), r"result"),
        (lambda state=[0.0]: state.append(-state[-1]) or state[-1], "result"),
    ],
)
def test_what_does_not_replay_is_found(function, place):
    """A result that differs in a tensor, an array, a float's bits, a length or a type is an
    error that says where."""
    with pytest.raises(AssertionError, match=f"does not replay.*{place}"):
        assert_replays(function)


def test_times():
    """One call cannot show a difference."""
    with pytest.raises(ValueError, match="at least 2"):
        assert_replays(lambda: 1, times=1)


def test_the_fixture(seed_registry, request):
    """The fixture's registry has a master seed of the test's own, the same in every run."""
    import hashlib

    digest = hashlib.sha256(f"seedregistry/test/{request.node.nodeid}".encode()).digest()
    assert seed_registry.master_seed == int.from_bytes(digest[:16], "big")


def test_the_fixture_in_a_users_suite(pytester):
    """In a user's suite two tests get two master seeds, and the same ones in another run."""
    pytester.makeconftest('pytest_plugins = ["seedregistry.testing"]')
    pytester.makepyfile("""
        def test_one(seed_registry):
            print("seed", seed_registry.master_seed)
        def test_two(seed_registry):
            print("seed", seed_registry.master_seed)
    """)
    runs = []
    for _ in range(2):
        result = pytester.runpytest_subprocess("-s", "-p", "no:cacheprovider")
        result.assert_outcomes(passed=2)
        runs.append(
            [
                word
                for line in result.outlines
                for word in line.split()
                if word.isdigit() and len(word) > 20
            ]
        )
    assert len(set(runs[0])) == 2
    assert runs[0] == runs[1]
