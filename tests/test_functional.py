"""The documented functions: every golden result, every default, every refusal."""

from __future__ import annotations

import hashlib
import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import seedregistry
from seedregistry import SeedRegistry, determinism, functional, rng
from seedregistry.errors import (
    ComponentCreationError,
    DeviceError,
    InvalidNameError,
    InvalidOptionError,
    InvalidSeedError,
    ScopeError,
    SeedDerivationError,
    ShuffleIgnoredWarning,
)
from seedregistry.ledger import Built, Determinism

TEN = TensorDataset(torch.arange(10))


def order(loader) -> list:
    return [int(i) for (batch,) in loader for i in batch]


@pytest.mark.parametrize(
    ("words", "seed"),
    [
        ((0, "model"), 1662071425),
        ((42, ""), 1215615489),
        ((42, "model", 0), 216437524),
        ((42, "model", "0"), 216437524),
        ((2**63, "ünï", "ß"), 701279890),
        ((42, "model", "training"), 1958051794),
    ],
)
def test_golden_seeds(words, seed):
    """derive_component_seed gives the documented values."""
    assert functional.derive_component_seed(*words) == seed


@pytest.mark.parametrize(
    "words",
    [
        (True, "model"),
        (4.2, "model"),
        ("42", "model"),
        (-1, "m"),
        (2**128, "m"),
        (42, 3),
        (42, None),
        (42, "m", 1.5),
        (42, "m", True),
    ],
)
def test_bad_words(words):
    """What is not int, str, or int/str/None is one of the derivation errors."""
    with pytest.raises(SeedDerivationError):
        functional.derive_component_seed(*words)


def test_golden_model():
    """The documented model has the documented bytes."""
    model = functional.create_deterministic_model(42, lambda: nn.Linear(3, 2), "training")
    expected = [-0.48021805, 0.32734758, -0.15183108, -0.32367757, -0.29752994, 0.02623078]
    assert np.allclose(model.weight.detach().numpy().ravel(), expected, atol=5e-9, rtol=0)
    assert (
        hashlib.sha256(model.weight.detach().numpy().tobytes())
        .hexdigest()
        .startswith("bf55316f2b0786e4")
    )


def test_golden_orders():
    """The documented loader has the documented orders, and repeats its epoch until told
    otherwise."""
    loader = functional.create_deterministic_dataloader(
        42, DataLoader, "training", dataset=TEN, shuffle=True, batch_size=3
    )
    assert order(loader) == order(loader) == [8, 9, 5, 2, 3, 0, 4, 6, 7, 1]
    loader.sampler.epoch = 1
    assert order(loader) == [2, 0, 4, 6, 5, 3, 9, 8, 7, 1]
    functional.update_dataloader_epoch(loader, 5)
    assert order(loader) == [1, 6, 5, 8, 2, 7, 9, 0, 3, 4]
    loader._deterministic_sampler.epoch = 0
    assert order(loader) == [8, 9, 5, 2, 3, 0, 4, 6, 7, 1]


def test_golden_sampler():
    """The documented sampler, alone, yields plain ints in the documented orders."""
    sampler = functional.DeterministicSampler(10)
    assert list(sampler) == [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]
    assert list(functional.DeterministicSampler(10, epoch=3)) == [7, 6, 5, 3, 4, 9, 0, 8, 2, 1]
    sampler.set_epoch(3)
    assert list(sampler) == [7, 6, 5, 3, 4, 9, 0, 8, 2, 1]
    assert list(functional.DeterministicSampler(4, shuffle=False)) == [0, 1, 2, 3]
    assert all(type(i) is int for i in sampler)
    assert len(sampler) == 10
    assert isinstance(sampler, torch.utils.data.Sampler)
    for bad in (
        {"dataset_size": -1},
        {"dataset_size": 2.5},
        {"dataset_size": True},
        {"dataset_size": 3, "epoch": -1},
    ):
        with pytest.raises(InvalidOptionError):
            functional.DeterministicSampler(**bad)
    with pytest.raises(InvalidSeedError):
        functional.DeterministicSampler(3, seed=-1)


@pytest.mark.moves_global_state
def test_golden_global_state():
    """set_global_deterministic_state seeds all three libraries with the one documented integer."""
    functional.set_global_deterministic_state(42, enable_deterministic=False)
    assert random.random() == 0.6394267984578837
    assert np.random.rand() == 0.3745401188473625
    assert torch.rand(1).item() == 0.8822692632675171


@pytest.mark.moves_global_state
def test_global_switches(monkeypatch):
    """With enable_deterministic the documented switches are set; without it they stay as they
    are."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    functional.set_global_deterministic_state(1, False)
    assert torch.backends.cudnn.benchmark is True
    assert not torch.are_deterministic_algorithms_enabled()
    functional.set_global_deterministic_state(np.int64(1))
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic is True
    assert torch.backends.cudnn.benchmark is False
    assert torch.utils.deterministic.fill_uninitialized_memory is True
    import os

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.0, True, "42", None])
@pytest.mark.parametrize(
    "function",
    [functional.set_global_deterministic_state, functional.set_seed, functional.make_reproducible],
)
def test_global_seeds_must_fit_numpy(function, seed):
    """A seed outside NumPy's range is refused, and neither a generator nor a switch has changed."""
    with pytest.raises(InvalidSeedError):
        function(seed)


def test_global_state_is_refused_in_a_scope():
    """Inside a scope the global state cannot be set: the scope's end would undo it."""
    with functional.deterministic_context(1), pytest.raises(ScopeError):
        functional.set_global_deterministic_state(1)


def test_golden_context():
    """deterministic_context seeds torch with that integer, restores it on every way out, and
    leaves the others alone."""
    before = rng.fingerprint()
    with functional.deterministic_context(7):
        assert torch.rand(2).tolist() == [0.5349225401878357, 0.19880318641662598]
        inside = rng.fingerprint()
    assert (inside["python"], inside["numpy"]) == (before["python"], before["numpy"])
    with pytest.raises(KeyError), functional.deterministic_context(7, "a name"):
        torch.rand(1)
        raise KeyError
    assert rng.fingerprint() == before
    assert functional.deterministic_context(7)(lambda: torch.rand(1).item())() == 0.5349225401878357
    for bad in (-1, 2**64, 1.5, True, None, "7"):
        with pytest.raises(InvalidSeedError):
            functional.deterministic_context(bad)


def test_optimizers():
    """An optimizer comes back as the class makes it, with its keywords."""
    model = functional.create_deterministic_model(1, nn.Linear, in_features=2, out_features=2)
    optimizer = functional.create_deterministic_optimizer(
        42, torch.optim.Adam, model.parameters(), "training", lr=0.5
    )
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 0.5
    with pytest.raises(ComponentCreationError) as caught:
        functional.create_deterministic_optimizer(42, torch.optim.Adam, model.parameters(), lr=-1)
    assert isinstance(caught.value.__cause__, ValueError)


def make_optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def test_schedulers_have_the_documented_defaults():
    """StepLR, CosineAnnealingLR and OneCycleLR come with the documented defaults; other names of
    torch follow."""
    create = functional.create_deterministic_scheduler
    step = create(42, make_optimizer(), "StepLR", 100)
    assert (step.step_size, step.gamma) == (10, 0.1)
    assert create(42, make_optimizer(), "StepLR", 100, "x", step_size=3).step_size == 3
    assert create(42, make_optimizer(), "CosineAnnealingLR", 100).T_max == 100
    assert create(42, make_optimizer(), "CosineAnnealingLR", 100, t_max=7).T_max == 7
    assert create(42, make_optimizer(), "CosineAnnealingLR", 100, T_max=8).T_max == 8
    optimizer = make_optimizer()
    cycle = create(42, optimizer, "OneCycleLR", 100)
    reference = make_optimizer()
    expected = torch.optim.lr_scheduler.OneCycleLR(
        reference,
        max_lr=0.1,
        total_steps=100,
        pct_start=0.3,
        anneal_strategy="cos",
        div_factor=25,
        final_div_factor=1e4,
    )
    assert cycle.total_steps == expected.total_steps == 100
    assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == {
        k: v for k, v in reference.param_groups[0].items() if k != "params"
    }
    assert create(42, make_optimizer(), "ExponentialLR", 100, gamma=0.5).gamma == 0.5
    assert create(42, make_optimizer(), None, 100) is None
    with pytest.raises(ValueError, match="Unsupported scheduler type"):
        create(42, make_optimizer(), "NoSuchLR", 100)


def collate(samples):
    return (torch.stack([s[0] for s in samples]),)


def init(worker_id):
    pass


def test_the_loader_keeps_every_argument():
    """A factory's loader is rebuilt with every argument kept."""

    def factory(shuffle):
        return DataLoader(
            TEN,
            batch_size=4,
            shuffle=shuffle,
            num_workers=2,
            collate_fn=collate,
            drop_last=True,
            timeout=30,
            worker_init_fn=init,
            multiprocessing_context="spawn",
            prefetch_factor=3,
            persistent_workers=True,
            pin_memory=False,
        )

    loader = functional.create_deterministic_dataloader(42, factory, "training", shuffle=True)
    for name, value in {
        "batch_size": 4,
        "num_workers": 2,
        "drop_last": True,
        "timeout": 30,
        "worker_init_fn": init,
        "prefetch_factor": 3,
        "persistent_workers": True,
    }.items():
        assert getattr(loader, name) == value, name
    assert loader.dataset.dataset is TEN
    assert loader.collate_fn.collate_fn is collate
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert len(loader) == 2


def test_only_the_keyword_shuffles():
    """The keyword shuffle alone decides; a factory that shuffled inside is warned about."""
    with pytest.warns(ShuffleIgnoredWarning, match="shuffle=True") as caught:
        loader = functional.create_deterministic_dataloader(
            42, lambda: DataLoader(TEN, batch_size=2, shuffle=True)
        )
    assert caught[0].filename == __file__
    assert order(loader) == list(range(10))
    assert order(functional.create_deterministic_dataloader(42, DataLoader, dataset=TEN)) == list(
        range(10)
    )
    with pytest.raises(ComponentCreationError, match="returned a list"):
        functional.create_deterministic_dataloader(42, lambda: [1, 2])


def test_a_factory_need_not_take_shuffle():
    """shuffle=True shuffles the loader of a factory that has no such parameter."""
    loader = functional.create_deterministic_dataloader(
        42, lambda: DataLoader(TEN), "training", shuffle=True
    )
    assert order(loader) == [8, 9, 5, 2, 3, 0, 4, 6, 7, 1]
    loader = functional.create_deterministic_dataloader(
        42, lambda **kwargs: DataLoader(TEN, **kwargs), "training", shuffle=True
    )
    assert order(loader) == [8, 9, 5, 2, 3, 0, 4, 6, 7, 1]


def test_a_loader_without_an_epoch_is_left_alone(caplog):
    """update_dataloader_epoch leaves a foreign loader alone, with a debug line."""
    with caplog.at_level("DEBUG", logger="seedregistry"):
        functional.update_dataloader_epoch(DataLoader(TEN), 3)
        functional.update_dataloader_epoch([1, 2], 3)
    assert caplog.text.count("has no epoch") == 2


@pytest.mark.moves_global_state
def test_seed_worker():
    """seed_worker puts torch.initial_seed() % 2**32 into all three libraries."""
    torch.manual_seed(2**40 + 17)
    for function in (functional.seed_worker, functional.worker_init_fn):
        torch.manual_seed(2**40 + 17)
        function(0)
        assert np.random.rand() == np.random.RandomState(17).rand()
        assert random.random() == random.Random(17).random()
        assert torch.initial_seed() == 17


def test_the_documented_loop_trains():
    """The training loop sets the epoch, steps the optimizer and returns the mean loss of each
    epoch."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(32, 4, generator=generator), torch.randint(0, 2, (32,), generator=generator)
    )

    def train() -> tuple:
        registry = SeedRegistry(42)
        model = functional.create_deterministic_model(
            registry, nn.Linear, "training", in_features=4, out_features=2
        )
        loader = functional.create_deterministic_dataloader(
            registry, DataLoader, "training", dataset=data, batch_size=8, shuffle=True
        )
        optimizer = functional.create_deterministic_optimizer(
            registry, torch.optim.SGD, model.parameters(), "training", lr=0.5
        )
        losses = functional.deterministic_multi_epoch_training(model, loader, optimizer, 4)
        return losses, model.weight.tolist(), loader.epoch

    losses, weights, epoch = train()
    assert (losses, weights, epoch) == train()
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert epoch == 3


def test_a_registry_in_place_of_the_seed_changes_no_number():
    """Every function takes a registry where it takes the seed: same numbers, and the ledger is
    filled."""
    registry = SeedRegistry(42)
    model = functional.create_deterministic_model(registry, lambda: nn.Linear(3, 2), "training")
    assert torch.equal(
        model.weight,
        functional.create_deterministic_model(42, lambda: nn.Linear(3, 2), "training").weight,
    )
    assert functional.derive_component_seed(registry, "model", "training") == 1958051794
    loader = functional.create_deterministic_dataloader(
        registry, DataLoader, "training", dataset=TEN, shuffle=True
    )
    assert order(loader) == [8, 9, 5, 2, 3, 0, 4, 6, 7, 1]
    optimizer = functional.create_deterministic_optimizer(
        registry, torch.optim.SGD, model.parameters(), "training", lr=0.1
    )
    functional.create_deterministic_scheduler(registry, optimizer, "StepLR", 10, "training")
    assert [record.purpose for record in registry.ledger.find(Built)] == [
        "model",
        "dataloader",
        "optimizer",
        "scheduler",
    ]


@pytest.mark.moves_global_state
def test_a_registry_for_the_global_state():
    """set_global_deterministic_state takes a registry, uses its master seed and records the
    switches."""
    registry = SeedRegistry(42)
    functional.set_global_deterministic_state(registry)
    assert random.random() == 0.6394267984578837
    assert registry.ledger.find(Determinism)[0].mode == "warn"
    with pytest.raises(InvalidSeedError):
        functional.set_global_deterministic_state(SeedRegistry(2**40))


@pytest.mark.moves_global_state
def test_names_that_other_guides_teach(caplog):
    """seed_everything returns the seed, None seeds nothing, set_seed seeds, make_reproducible
    sets the switches too."""
    assert functional.seed_everything() == 42
    assert random.random() == 0.6394267984578837
    before = rng.fingerprint()
    assert functional.seed_everything(None) is None
    assert rng.fingerprint() == before
    assert functional.seed_everything(7) == 7
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert functional.seed_everything(7, True) == 7
    assert determinism.current_mode() == "strict"
    assert torch.backends.cudnn.deterministic
    assert functional.seed_everything(7, False) == 7
    assert determinism.current_mode() == "off"
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.deterministic
    before = rng.fingerprint()
    with pytest.raises(InvalidOptionError, match="True, False or None; got 'yes'"):
        functional.seed_everything(7, "yes")
    with pytest.raises(InvalidSeedError):
        functional.seed_everything(2**32, True)
    assert rng.fingerprint() == before
    assert determinism.current_mode() == "off"
    functional.set_seed(42)
    assert np.random.rand() == 0.3745401188473625
    with caplog.at_level("INFO", logger="seedregistry"):
        functional.make_reproducible(42)
    assert torch.are_deterministic_algorithms_enabled()
    import sys

    assert ("PYTHONHASHSEED" in caplog.text) == bool(sys.flags.hash_randomization)


def test_get_generator():
    """get_generator gives a generator after manual_seed, and refuses bad seeds and devices."""
    assert torch.equal(
        functional.get_generator(5).get_state(), torch.Generator().manual_seed(5).get_state()
    )
    with pytest.raises(InvalidSeedError):
        functional.get_generator(-5)
    with pytest.raises(DeviceError):
        functional.get_generator(5, "meta")


def test_signatures_are_the_documented_ones():
    """Names, order and defaults of the parameters are those of the documents."""
    expected = {
        "derive_component_seed": "(master_seed, purpose, instance_id=None)",
        "set_global_deterministic_state": "(master_seed, enable_deterministic=True)",
        "deterministic_context": "(component_seed, component_name='operation')",
        "create_deterministic_model": "(master_seed, creator_func, instance_id=None, **kwargs)",
        "create_deterministic_optimizer": (
            "(master_seed, optimizer_class, model_params, instance_id=None, **kwargs)"
        ),
        "create_deterministic_scheduler": (
            "(master_seed, optimizer, schedule_type, total_steps, instance_id=None, "
            "**scheduler_params)"
        ),
        "create_deterministic_dataloader": (
            "(master_seed, creator_func, instance_id=None, **kwargs)"
        ),
        "DeterministicSampler": "(dataset_size, shuffle=True, seed=42, epoch=0)",
        "update_dataloader_epoch": "(dataloader, epoch)",
        "seed_worker": "(worker_id)",
        "seed_everything": "(seed=42, deterministic=None)",
        "set_seed": "(seed=42)",
        "make_reproducible": "(seed=42)",
        "get_generator": "(seed, device='cpu')",
        "worker_init_fn": "(worker_id)",
    }
    for name, text in expected.items():
        thing = getattr(functional, name)
        signature = inspect.signature(thing.__init__ if inspect.isclass(thing) else thing)
        parameters = [p for p in signature.parameters.values() if p.name != "self"]
        bare = signature.replace(
            parameters=[p.replace(annotation=inspect.Parameter.empty) for p in parameters],
            return_annotation=inspect.Signature.empty,
        )
        assert str(bare) == text, name
    loop = list(inspect.signature(functional.deterministic_multi_epoch_training).parameters)
    assert loop == ["model", "dataloader", "optimizer", "num_epochs", "loss_fn"]


def test_top_level_names():
    """The documented functions, and the names that other guides teach, are at top level."""
    for name in functional.__all__:
        assert getattr(seedregistry, name) is getattr(functional, name)
        assert name in seedregistry.__all__
    assert InvalidNameError is seedregistry.InvalidNameError
