"""Scores of dattri and traker: the right numbers with the right sign, from streams of the
registry, and nothing left behind."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch
from recipes import held_out, recipe
from torch.func import functional_call

from seedregistry import SeedRegistry
from seedregistry.attribution import Training, bridges, losses_of, retrain, score
from seedregistry.errors import RecipeError
from seedregistry.testing import assert_rng_untouched

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def training() -> Training:
    return Training(SeedRegistry(42), recipe())


@pytest.fixture(scope="module")
def state(training):
    return training.train()


def per_example(training, state, inputs, targets, loss) -> torch.Tensor:
    """Return the gradient of each example's loss, one by one: shape (examples, parameters)."""
    model = training.copy_model(state)
    rows = []
    for one, target in zip(inputs, targets):
        model.zero_grad()
        loss(model(one[None]), target[None]).sum().backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    return torch.stack(rows)


def test_dattri_influence_is_the_exact_one(training, state):
    """With enough iterations it is the solve with the explicit Hessian of the mean loss."""
    pytest.importorskip("dattri")
    inputs, targets = training.examples()
    model = training.copy_model(state)
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]
    sizes = [parameter.numel() for parameter in model.parameters()]

    def mean_loss(flat: torch.Tensor) -> torch.Tensor:
        parts = {
            name: part.reshape(shape) for name, part, shape in zip(names, flat.split(sizes), shapes)
        }
        return training.recipe.loss(functional_call(model, parts, (inputs,)), targets).mean()

    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    matrix = torch.func.hessian(mean_loss)(flat) + 5.0 * torch.eye(len(flat), dtype=flat.dtype)
    train, test = (
        per_example(training, state, *pair, training.recipe.loss)
        for pair in (training.examples(), held_out())
    )
    expected = -torch.linalg.solve(matrix, test.T).T @ train.T / training.size
    with assert_rng_untouched():
        found = bridges.dattri_influence(
            training, held_out(), state, regularization=5.0, iterations=12
        )
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    assert torch.allclose(
        found, expected, rtol=1e-4, atol=1e-7
    )  # dattri collects scores in float32
    with pytest.raises(RecipeError, match="not finite"):
        bridges.dattri_influence(training, held_out(), state, regularization=5.0, iterations=200)


def test_trak_is_its_formula(training, state, capfd):
    """With a wide projection it is the kernel's formula on the gradients themselves, up to a
    scale; it repeats to the bit."""
    pytest.importorskip("trak")

    def margin(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        own = outputs.gather(1, targets[:, None])[:, 0]
        return own - outputs.scatter(1, targets[:, None], -torch.inf).logsumexp(1)

    inputs, targets = training.examples()
    train, test = (
        per_example(training, state, *pair, margin) for pair in (training.examples(), held_out())
    )
    kernel = train.T @ train + 1.0 * torch.eye(train.shape[1], dtype=train.dtype)
    with torch.no_grad():
        mistaken = (
            1 - training.copy_model(state)(inputs).softmax(1).gather(1, targets[:, None])[:, 0]
        )
    expected = -(test @ torch.linalg.solve(kernel, train.T)) * mistaken
    handlers = list(logging.getLogger().handlers)
    with assert_rng_untouched():
        found = bridges.traker_trak(
            training, held_out(), state, dimension=2000, regularization=2000 / train.shape[1]
        )
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    correlation = torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]
    assert correlation > 0.98
    assert logging.getLogger().handlers == handlers
    again = Training(SeedRegistry(42), recipe())
    assert torch.equal(
        bridges.traker_trak(again, held_out(), state),
        bridges.traker_trak(training, held_out(), state),
    )
    other = Training(SeedRegistry(43), recipe())
    assert not torch.equal(
        bridges.traker_trak(other, held_out(), state),
        bridges.traker_trak(training, held_out(), state),
    )
    assert capfd.readouterr() == ("", "")


def test_bridges_have_the_sign_of_effects(training, state):
    """Both predict retrainings better than chance, with the sign of MAGIC's scores."""
    pytest.importorskip("dattri")
    pytest.importorskip("trak")
    (found,) = retrain(training, losses_of(*held_out()), fractions=(0.2,), subsets=30)
    assert score(found, bridges.dattri_influence(training, held_out(), state)).mean > 0.3
    assert (
        score(found, bridges.traker_trak(training, held_out(), state, regularization=1.0)).mean
        > 0.2
    )


def test_a_missing_package_is_named_before_any_work(training, state, monkeypatch, tmp_path):
    """Whoever asks for scores of a library that is not installed is told what to install, and
    nothing was done."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    before = len(training.registry.ledger)
    for bridge, package in ((bridges.dattri_influence, "dattri"), (bridges.traker_trak, "traker")):
        with pytest.raises(RecipeError, match=f"pip install {package}"):
            bridge(training, held_out(), state)
    assert len(training.registry.ledger) == before
    pytest.importorskip("matplotlib")
    from seedregistry.attribution.demo import run_demo

    with pytest.raises(RecipeError, match="dattri and traker: pip install dattri traker"):
        run_demo(tmp_path / "out", bridges=True)
    assert not (tmp_path / "out").exists()
