"""The documented setup functions, data and baselines: the documented streams, and a warning
where it matters."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from recipes import SIZE, held_out, mlp, recipe
from torch import nn

from seedregistry import (
    SeedRegistry,
    UnsharedInitialParametersWarning,
    create_deterministic_model,
    derive_component_seed,
    set_global_deterministic_state,
)
from seedregistry.attribution import (
    Training,
    baselines,
    load_digits,
    losses_of,
    retrain,
    score,
    setup_lds_validation,
    setup_magic_training,
    setup_perfect_consistency,
)
from seedregistry.errors import InvalidOptionError, RecipeError
from seedregistry.ledger import Derivation, Note


class Config:
    """A configuration as in the documents, with a small model and data."""

    SEED = 42
    BATCH_SIZE = 4
    NUM_CLASSES = 3
    LR = 0.05
    MOMENTUM = 0.8

    @staticmethod
    def MODEL(num_classes):  # noqa: N802 - a configuration
        return nn.Linear(5, num_classes)

    @staticmethod
    def DATALOADER(**keywords):  # noqa: N802 - a configuration
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.arange(20.0), torch.arange(20)), **keywords
        )


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters()))


def streams(registry) -> set:
    return {(record.purpose, record.instance_id) for record in registry.ledger.find(Derivation)}


@pytest.mark.moves_global_state
def test_magic_training_has_the_documented_streams():
    """Loader, model and optimizer are those of instance id "training", with the documented
    settings."""
    loader, model, optimizer = setup_magic_training(Config)
    assert same(model, create_deterministic_model(42, Config.MODEL, "training", num_classes=3))
    assert {
        name: optimizer.param_groups[0][name] for name in ("lr", "momentum", "weight_decay")
    } == {
        "lr": 0.05,
        "momentum": 0.8,
        "weight_decay": 0,
    }
    assert loader.batch_size == 4
    seed = derive_component_seed(42, "dataloader", "training")
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.cat([batch[1] for batch in loader]), order)


@pytest.mark.moves_global_state
def test_factories_and_keywords_of_ones_own():
    """Other factories, and keywords beside the documented ones, are taken; without a name there
    is the documented default."""

    class Own:
        SEED = 42
        MODEL = staticmethod(mlp)
        DATALOADER = Config.DATALOADER
        DATALOADER_PARAMS = {"batch_size": 5}  # noqa: RUF012 - a configuration
        OPTIMIZER_PARAMS = {"weight_decay": 0.1}  # noqa: RUF012 - a configuration

    loader, _, optimizer = setup_magic_training(Own)
    assert loader.batch_size == 5
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 0.1)

    class OwnOptimizer(Config):
        OPTIMIZER = torch.optim.AdamW

    assert setup_magic_training(OwnOptimizer)[2].param_groups[0]["lr"] == 0.05
    with pytest.raises(InvalidOptionError, match="SimpleNamespace"):
        setup_magic_training({"SEED": 42})


@pytest.mark.moves_global_state
@pytest.mark.parametrize(
    "setup", [setup_magic_training, lambda *given: setup_lds_validation(*given, 2, True)]
)
def test_setups_set_the_global_state_as_documented(setup):
    """Default generators and switches are those of set_global_deterministic_state, with a
    registry too, whatever its seed."""
    set_global_deterministic_state(42)
    expected = random.random(), np.random.rand(), float(torch.rand(1))
    assert expected[0] == 0.6394267984578837
    for given in ((Config,), (SeedRegistry(42), Config)):
        torch.use_deterministic_algorithms(mode=False)
        random.seed(0)
        setup(*given)
        assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected
        assert torch.are_deterministic_algorithms_enabled()

    class Beyond(Config):
        SEED = SeedRegistry(42).child(
            "fold", 1
        )  # its master seed has 128 bits, and NumPy's range is 32

    setup(Beyond)


@pytest.mark.moves_global_state
def test_lds_validation_keeps_the_documented_ids():
    """Models are of ids "lds_0", ... as documented, with a warning; shared on request, without
    one. The loader is the run's."""
    registry = SeedRegistry(42)
    with pytest.warns(UnsharedInitialParametersWarning, match="share_init=True"):
        loader, models, optimizers = setup_lds_validation(registry, Config, 3)
    assert len(models) == len(optimizers) == 3
    for i, model in enumerate(models):
        assert same(model, create_deterministic_model(42, Config.MODEL, f"lds_{i}", num_classes=3))
    assert [batch[1].tolist() for batch in loader] == [
        batch[1].tolist() for batch in setup_magic_training(Config)[0]
    ]
    documented = {("model", f"lds_{i}") for i in range(3)} | {
        ("optimizer", f"lds_opt_{i}") for i in range(3)
    }
    assert streams(registry) - {("global", None)} == documented | {("dataloader", "training")}
    run = setup_magic_training(Config)[1]
    for call in (
        lambda: setup_lds_validation(Config, num_models=2, share_init=True),
        lambda: setup_lds_validation(Config, 2, True),
        lambda: setup_lds_validation(SeedRegistry(42), Config, 2, True),
    ):
        _, shared, _ = call()
        assert len(shared) == 2
        assert all(same(model, run) for model in shared)


@pytest.mark.moves_global_state
def test_the_ledger_flags_models_that_are_not_the_runs():
    """A registry's ledger says of each setup whether its models have the run's streams."""
    registry = SeedRegistry(42, on_reuse="allow")
    with pytest.warns(UnsharedInitialParametersWarning):
        setup_lds_validation(registry, Config, 2)
    setup_lds_validation(registry, Config, 3, True)
    noted = [dict(record.value) for record in registry.ledger.find(Note)]
    assert noted == [
        {"models": 2, "streams": "not those of the run"},
        {"models": 3, "streams": "shared"},
    ]


@pytest.mark.moves_global_state
def test_a_registry_in_place_of_the_seed():
    """With a registry first, or as SEED, the numbers are the same and its ledger is filled."""
    first, second = SeedRegistry(42), SeedRegistry(42)
    plain = setup_magic_training(Config)[1]

    class WithRegistry(Config):
        SEED = second

    assert same(setup_magic_training(first, Config)[1], plain)
    assert same(setup_magic_training(WithRegistry)[1], plain)
    for registry in (first, second):
        assert {purpose for purpose, _ in streams(registry)} - {"global"} == {
            "model",
            "dataloader",
            "optimizer",
        }


def test_perfect_consistency():
    """The two models are equal, and are of the documented id "shared_training"."""
    magic_model, lds_model = setup_perfect_consistency(
        Config, nn.Linear, in_features=3, out_features=2
    )
    assert same(magic_model, lds_model)
    assert magic_model is not lds_model
    assert same(
        magic_model,
        create_deterministic_model(42, nn.Linear, "shared_training", in_features=3, out_features=2),
    )
    assert same(
        setup_perfect_consistency(
            SeedRegistry(42), Config, nn.Linear, in_features=3, out_features=2
        )[0],
        magic_model,
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: setup_magic_training(object()),
        lambda: setup_magic_training(SeedRegistry(43), Config),
        lambda: setup_magic_training(Config, Config),
        lambda: setup_lds_validation(Config, 0),
        lambda: setup_lds_validation(Config, True),
        lambda: setup_lds_validation(Config, 2, "yes"),
        lambda: setup_lds_validation(Config, 2, True, 7),
        lambda: setup_perfect_consistency(Config),
        lambda: setup_perfect_consistency(Config, "mlp"),
    ],
)
def test_wrong_setups(call):
    """No seed, another seed than the registry's, no number of models or no factory: one clear
    error, nothing built."""
    with pytest.raises(InvalidOptionError):
        call()


# --- pickles --------------------------------------------------------------------------------------


def test_pickles_find_what_they_name():
    """Each public class and function stays in the module that recipes and results name when they
    are pickled: pickles that exist can be read for ever."""
    from seedregistry import attribution

    homes = {
        "Attribution": "metagradients",
        "Batch": "states",
        "GroupNorm": "models",
        "LdsScore": "scoring",
        "Metasmoothness": "smoothness",
        "Recipe": "recipe",
        "ReloadableTensors": "datasets",
        "Retrainings": "retraining",
        "State": "states",
        "Training": "training",
        "construct_digits_cnn": "models",
        "construct_digits_mlp": "models",
        "construct_rn9": "models",
        "cross_entropy": "recipe",
        "drop_sets": "retraining",
        "get_cifar10_dataloader": "datasets",
        "lds": "scoring",
        "load_cifar10": "datasets",
        "load_digits": "datasets",
        "losses_of": "measurements",
        "magic": "metagradients",
        "margins_of": "measurements",
        "metasmoothness": "smoothness",
        "noise_ceiling": "scoring",
        "retrain": "retraining",
        "score": "scoring",
        "setup_lds_validation": "setups",
        "setup_magic_training": "setups",
        "setup_perfect_consistency": "setups",
    }
    public = {name: getattr(attribution, name) for name in attribution.__all__}
    assert {name: value.__module__ for name, value in public.items() if callable(value)} == {
        name: f"seedregistry.attribution.{home}" for name, home in homes.items()
    }
    for name, value in public.items():
        if callable(value):
            assert pickle.loads(pickle.dumps(value)) is value, name


# --- data -----------------------------------------------------------------------------------------


def test_digits():
    """The digits are split by the registry, recorded, in 0 to 1, and the same each time."""
    registry = SeedRegistry(42)
    train, test = load_digits(registry)
    assert (train[0].shape, test[0].shape) == ((1200, 64), (597, 64))
    assert 0 <= float(train[0].min()) < float(train[0].max()) <= 1
    assert torch.equal(load_digits(SeedRegistry(42))[0][0], train[0])
    assert not torch.equal(load_digits(SeedRegistry(43))[0][0], train[0])
    assert ("split", "digits") in registry
    for wrong in (0, 1797):
        with pytest.raises(RecipeError, match="train"):
            load_digits(registry, train=wrong)


# --- baselines ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training():
    return Training(SeedRegistry(42), recipe(epochs=6, optimizer_options={"lr": 0.1}))


def gradients(training, state, inputs, targets) -> torch.Tensor:
    parameters = [parameter.clone().requires_grad_() for parameter in state.parameters]
    rows = []
    for one, target in zip(inputs, targets):
        loss = training.recipe.loss(
            training.outputs(state.with_tensors([*parameters, *state.tensors()[4:]]), one[None]),
            target[None],
        )
        rows.append(
            torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss[0], parameters)])
        )
    return torch.stack(rows)


def test_baselines_are_what_they_say(training):
    """Dot product, TracIn and influence function are those of gradients taken one by one, and of
    an explicit matrix."""
    state = training.train()
    measurement = losses_of(*held_out())
    train, test = (
        gradients(training, state, *training.examples()),
        gradients(training, state, *held_out()),
    )
    assert torch.allclose(
        baselines.gradient_dot_product(training, measurement, state), -test @ train.T
    )
    middle = training.advance(training.initial_state(), 7)
    traced = baselines.tracin(training, measurement, [middle, state])
    expected = 0.1 * (
        baselines.gradient_dot_product(training, measurement, middle) - test @ train.T
    )
    assert torch.allclose(traced, expected)

    product = baselines._gauss_newton(training, state, 0.1)
    identity = torch.eye(train.shape[1], dtype=torch.float64)
    matrix = product(identity)
    assert torch.allclose(matrix, matrix.T, atol=1e-10)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0.0999
    influence = baselines.influence_function(training, measurement, state)
    assert torch.allclose(
        influence, -torch.linalg.solve(matrix, test.T).T @ train.T / SIZE, atol=1e-6
    )
    with pytest.raises(RecipeError, match="damping"):
        baselines.influence_function(training, measurement, state, damping=0)


def test_baselines_look_at_some_examples_at_a_time(training, monkeypatch):
    """However few examples fit at a time, the scores are the same up to rounding."""
    state, measurement = training.train(), losses_of(*held_out())
    works = (baselines.gradient_dot_product, baselines.influence_function)
    expected = [work(training, measurement, state) for work in works]
    sizes = []
    pieces = baselines._pieces
    monkeypatch.setattr(
        baselines, "_pieces", lambda own, count: sizes.append(count) or pieces(own, count)
    )
    for most in (1, 7 * 83, 70 * 83):
        monkeypatch.setattr(baselines, "_MOST_NUMBERS", most)
        monkeypatch.setattr(baselines, "_MOST_INPUTS", most)
        for work, scores in zip(works, expected):
            assert torch.allclose(work(training, measurement, state), scores, rtol=1e-9, atol=1e-12)
    assert {0, 7, 70} <= set(sizes)


def test_baselines_have_the_sign_of_effects(training):
    """Baselines predict retraining better than chance, with the sign of MAGIC's scores."""
    measurement = losses_of(*held_out())
    (found,) = retrain(training, measurement, fractions=(0.2,), subsets=30)
    state = training.train()
    for scores in (
        baselines.gradient_dot_product(training, measurement, state),
        baselines.influence_function(training, measurement, state),
        baselines.tracin(training, measurement, [state]),
    ):
        assert score(found, scores).mean > 0.3
    assert abs(score(found, baselines.random_scores(training, 5)).mean) < 0.3
