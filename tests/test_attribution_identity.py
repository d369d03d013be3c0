"""Another experiment is not taken for this one: single changes of a recipe, of its data, of its
measurement and of its code."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sys

import attrs
import pytest
import torch
from recipes import CLASSES, FEATURES, SIZE, data, held_out
from torch import nn

from seedregistry import SeedRegistry
from seedregistry.attribution import (
    Recipe,
    Training,
    cross_entropy,
    losses_of,
    magic,
    margins_of,
    noise_ceiling,
    retrain,
    score,
)
from seedregistry.errors import ReplayError
from seedregistry.ledger import Note

TESTS = losses_of(*held_out())
FEW = {"fractions": (0.1,), "subsets": 2, "progress": False}


class Net(nn.Module):
    """A model with an option in each place where one can be."""

    def __init__(self, *, activation=nn.GELU, probability=0.2, scale=1.0, shift=0.0, frozen=()):
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.activation = activation()
        self.dropout = nn.Dropout(probability)
        self.last = nn.Linear(8, CLASSES)
        self.scale = scale
        self.register_buffer("shift", torch.full((8,), float(shift)))
        for name in frozen:
            self.get_parameter(name).requires_grad_(requires_grad=False)

    def forward(self, inputs):
        hidden = self.dropout(self.activation(self.first(inputs)) + self.shift)
        return self.last(hidden * self.scale)


class Labelled(torch.utils.data.Dataset):
    """A dataset that is no tensors, with noise."""

    def __init__(self, *, noise=0.1, relabelled=()):
        self.inputs, self.targets = data()
        self.targets = self.targets.clone()
        for index in relabelled:
            self.targets[index] = (self.targets[index] + 1) % CLASSES
        self.noise = noise

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        noise = self.noise * torch.randn(FEATURES, dtype=torch.float64)
        return self.inputs[index] + noise, self.targets[index]


def model(**options):
    return functools.partial(Net, **options)


def relabel(example):
    inputs, targets = data()
    targets = targets.clone()
    targets[example] = (targets[example] + 1) % CLASSES
    return inputs, targets


def nudge(example):
    inputs, targets = data()
    inputs = inputs.clone()
    inputs[example, 0] += 1e-9
    return inputs, targets


def smoothed(outputs, targets, *, smoothing=0.0):
    return nn.functional.cross_entropy(
        outputs, targets, reduction="none", label_smoothing=smoothing
    )


def first_output(training, state):
    return training.outputs(state, held_out()[0])[:, 0]


def scaled_output(factor):
    return lambda training, state: factor * training.outputs(state, held_out()[0])[:, 0]


BASE = Recipe(
    model=model(),
    dataset=data(),
    epochs=2,
    batch_size=8,
    optimizer_options={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    loss=smoothed,
    dtype=torch.float64,
)
LAST = int(Training(SeedRegistry(42), BASE)._loader.indices(0)[-1])

RECIPES = {
    "activation": {"model": model(activation=nn.ReLU)},
    "option of the activation": {"model": model(activation=lambda: nn.GELU(approximate="tanh"))},
    "dropout": {"model": model(probability=0.21)},
    "attribute of the model": {"model": model(scale=1.001)},
    "buffer": {"model": model(shift=1e-3)},
    "frozen weight": {"model": model(frozen=["first.weight"])},
    "frozen bias": {"model": model(frozen=["last.bias"])},
    "label smoothing": {"loss": functools.partial(smoothed, smoothing=0.01)},
    "loss": {"loss": cross_entropy},
    "loss as a lambda": {"loss": lambda outputs, targets: 1.001 * smoothed(outputs, targets)},
    "a late label": {"dataset": relabel(LAST)},
    "an input, a little": {"dataset": nudge(LAST)},
    "a dataset": {"dataset": Labelled(noise=0.0)},
    "epochs": {"epochs": 3},
    "batch size": {"batch_size": 10},
    "learning rate": {"optimizer_options": {**BASE.optimizer_options, "lr": 0.1001}},
    "momentum": {"optimizer_options": {**BASE.optimizer_options, "momentum": 0.8}},
    "weight decay": {"optimizer_options": {**BASE.optimizer_options, "weight_decay": 0.02}},
    "nesterov": {"optimizer_options": {**BASE.optimizer_options, "nesterov": True}},
    "optimizer": {
        "optimizer": torch.optim.AdamW,
        "optimizer_options": {"lr": 0.1},
        "eps_root": 1e-9,
    },
    "schedule": {"scheduler": "StepLR", "scheduler_options": {"step_size": 15}},
    "clip norm": {"clip_norm": 0.5},
    "drop last": {"drop_last": True},
    "dtype": {"dtype": torch.float32},
    "order": {"order_id": "other"},
    "initial parameters": {"model_id": "other"},
    "groups": {"parameter_groups": lambda net: [{"params": list(net.parameters()), "lr": 0.05}]},
}
MEASUREMENTS = {
    "other examples": losses_of(held_out()[0].flip(0), held_out()[1].flip(0)),
    "another label": losses_of(held_out()[0], (held_out()[1] + 1) % CLASSES),
    "margins": margins_of(*held_out()),
    "a function": first_output,
    "a closure": scaled_output(2.0),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The experiment that the others are told from: its training, scores, retrainings and files."""
    folder = tmp_path_factory.mktemp("base")
    training = Training(SeedRegistry(42), BASE)
    interrupt(training, folder / "walk")
    attribution = magic(training, TESTS, progress=False)
    (retrainings,) = retrain(training, TESTS, store=folder / "store", **FEW)
    return training, attribution, retrainings, folder


def interrupt(training, path, measurement=TESTS):
    """Walk back a little, and leave the progress in a file."""

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seedregistry.attribution.metagradients._SAVE_EVERY", 2)
        with pytest.raises(KeyboardInterrupt):
            magic(training, measurement, resume=path, progress=stop)
    assert path.exists()


def is_told(base, training, measurement, tmp_path) -> dict:
    """Which of the five tell an experiment from the base."""
    first, attribution, retrainings, folder = base
    registry = training.registry
    shutil.copytree(folder / "store", tmp_path / "store")
    shutil.copy(folder / "walk", tmp_path / "walk")
    other = magic(training, measurement, progress=False)
    (others,) = retrain(training, measurement, **FEW)

    def refuses(function, *arguments, **options):
        try:
            function(*arguments, **options)
        except ReplayError:
            return True
        return False

    digest = registry.ledger.digest
    return {
        "score": refuses(score, retrainings, other) and refuses(score, others, attribution),
        "noise ceiling": refuses(noise_ceiling, retrainings, others),
        "store": refuses(retrain, training, measurement, store=tmp_path / "store", **FEW),
        "progress": refuses(magic, training, measurement, resume=tmp_path / "walk", progress=False),
        "ledger": digest != first.registry.ledger.digest,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_another_recipe_is_told(base, tmp_path, name):
    """A single change of the recipe, of the model or of the data is seen by scores, retrainings,
    the store, the progress and the ledger's digest."""
    training = Training(SeedRegistry(42), attrs.evolve(BASE, **RECIPES[name]))
    assert set(is_told(base, training, TESTS, tmp_path).values()) == {True}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_another_measurement_is_told(base, tmp_path, name):
    """So is another measurement of the same training."""
    training = Training(SeedRegistry(42), BASE)
    assert set(is_told(base, training, MEASUREMENTS[name], tmp_path).values()) == {True}


def test_the_same_experiment_is_not(base, tmp_path):
    """The experiment itself, made anew, is taken: the checks above can say no."""
    training = Training(SeedRegistry(42), BASE)
    told = is_told(base, training, TESTS, tmp_path)
    assert told == dict.fromkeys(told, False)


SOURCE = """
import torch

def make():
    return Line()

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs) * 1.0
"""


def import_from(path, source, monkeypatch):
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module.make


def test_edited_code_is_told(tmp_path, monkeypatch):
    """An edited line of a model, under the same names, changes the ledger's digest; the same code
    in another file does not."""
    digests = []
    for number, source in enumerate((SOURCE, SOURCE, SOURCE.replace("1.0", "1.1"))):
        make = import_from(tmp_path / f"net_{number}.py", source, monkeypatch)
        registry = SeedRegistry(42)
        magic(Training(registry, attrs.evolve(BASE, model=make)), TESTS, progress=False)
        digests.append([note.value for note in registry.ledger.find(Note)])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("example", [LAST, 0])
def test_data_that_change_behind_an_interrupted_walk(tmp_path, example):
    """A walk is not taken up where the label of any example of a dataset has changed since."""
    recipe = attrs.evolve(BASE, dataset=Labelled())
    interrupt(Training(SeedRegistry(42), recipe), tmp_path / "walk")
    changed = attrs.evolve(BASE, dataset=Labelled(relabelled=[example]))
    with pytest.raises(ReplayError):
        magic(Training(SeedRegistry(42), changed), TESTS, resume=tmp_path / "walk", progress=False)
    magic(Training(SeedRegistry(42), recipe), TESTS, resume=tmp_path / "walk", progress=False)
