"""The library's column of the table of fourteen tests: each test that needs no second rank, in
this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RANKS = {1, 3}
"""Tests that start processes of their own: ``nox -s peers`` runs them."""
DEVICES = 13

pytestmark = (
    pytest.mark.moves_global_state
)  # as a user's script does; what must be given back is what is tested


@pytest.fixture(scope="module")
def peers():
    sys.path.insert(0, str(BENCHMARKS))
    yield (
        importlib.import_module("peers.fourteen"),
        importlib.import_module("peers.adapters.own").PEER,
    )
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("number", sorted(set(range(1, 15)) - RANKS))
def test_the_library_passes(peers, number, monkeypatch):
    """The library passes a test that its peers are asked to pass, as the benchmark's adapter
    asks it."""
    if number == DEVICES and not hasattr(torch, "xpu"):
        pytest.skip("not in this torch: torch.xpu")
    fourteen, own = peers
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    fourteen.TESTS[number](own)


def test_a_failure_is_a_failure(peers):
    """The tests can fail: a peer that does what is common practice does not pass them."""
    fourteen, own = peers
    failed = importlib.import_module("peers.peer").Failed

    class Common(type(own)):
        def in_scope(self, seed, function):
            with torch.random.fork_rng(devices=[]):  # it warns where there are several GPUs
                torch.manual_seed(seed)
                return function()

        def build(self, names):
            torch.manual_seed(5)
            return {name: torch.rand(4).tolist() for name in names}

        def named_stream(self, purpose, instance_id):
            return torch.rand(
                4, generator=torch.Generator().manual_seed(hash(f"{purpose}_{instance_id}") % 2**31)
            ).tolist()

    for number, seen in (
        (1, "not restored: python, numpy"),
        (6, "reordering"),
        (8, "are one stream"),
    ):
        with pytest.raises(failed, match=seen):
            fourteen.TESTS[number](Common())
