"""Attribution on other devices: every tensor is where the recipe says, and nothing depends on
torch's default device."""

from __future__ import annotations

import pytest
import torch
from recipes import VARIANTS, held_out, recipe

from seedregistry import SeedRegistry
from seedregistry.attribution import Training, baselines, losses_of, magic, metasmoothness, retrain
from seedregistry.errors import DeviceError

TESTS = losses_of(*held_out())


def figures(training) -> list:
    """All that can be computed from a training, as tensors."""
    final = training.train()
    found = magic(training, TESTS, keep=2)
    (kept,) = retrain(training, TESTS, fractions=(0.1,), subsets=2)
    (stacked,) = retrain(training, TESTS, fractions=(0.1,), subsets=2, at_once=2)
    return [
        *final.tensors(),
        found.scores,
        found.values,
        kept.values,
        stacked.values,
        torch.tensor(metasmoothness(training, TESTS).value, device="cpu"),
        baselines.gradient_dot_product(training, TESTS, final),
        baselines.influence_function(training, TESTS, final),
        baselines.tracin(training, TESTS, [final]),
        baselines.random_scores(training, 5),
    ]


@pytest.mark.parametrize("variant", ["dropout", "adam"])
def test_a_default_device_changes_nothing(variant):
    """Every tensor names its device: under torch.set_default_device nothing else is computed,
    and nothing elsewhere."""
    training = Training(SeedRegistry(42), recipe(**VARIANTS[variant]))
    expected = figures(training)
    with torch.device("meta"):
        found = figures(training)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


def test_a_device_that_is_not_there_is_refused_before_anything_is_built():
    """A recipe for a device that this machine lacks, or for none, is refused before anything is
    built."""
    registry = SeedRegistry(42)
    for device in ("meta", "nonsense", "cuda:99"):
        with pytest.raises(DeviceError):
            Training(registry, recipe(device=device))
    assert len(registry.ledger) == len(SeedRegistry(42).ledger)


@pytest.mark.cuda
def test_a_gpu_trains_and_attributes_as_the_cpu_does():
    """On a GPU the figures are those of the CPU up to rounding, the initial parameters bit for
    bit, and they repeat."""
    on_cpu = Training(SeedRegistry(42), recipe())
    with SeedRegistry(42).set_global_state(deterministic="strict"):
        on_gpu = Training(SeedRegistry(42), recipe(device="cuda"))
        assert on_gpu.initial_state().parameters[0].is_cuda
        assert on_gpu.initial_state().fingerprint() == on_cpu.initial_state().fingerprint()
        found = figures(on_gpu)
        assert all(torch.equal(one, other) for one, other in zip(found, figures(on_gpu)))
    for one, other in zip(found, figures(on_cpu)):
        assert torch.allclose(one.cpu(), other, rtol=1e-6, atol=1e-9)
