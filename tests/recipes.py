"""Small recipes for the tests: importable, so that other processes can unpickle them."""

from __future__ import annotations

import multiprocessing
import os

import torch
from torch import nn

from seedregistry.attribution import Recipe

SIZE, FEATURES, CLASSES = 60, 6, 3


def data(dtype=torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SIZE, FEATURES, generator=generator, dtype=torch.float64)
    targets = (
        inputs[:, :CLASSES]
        + 0.5 * torch.randn(SIZE, CLASSES, generator=generator, dtype=torch.float64)
    ).argmax(1)
    return inputs.to(dtype), targets


def held_out() -> tuple:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(5, FEATURES, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :CLASSES].argmax(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.GELU(), nn.Linear(8, CLASSES))


def mlp_with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))


def mlp_with_norms() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 8),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.LayerNorm(8),
        nn.Linear(8, CLASSES),
    )


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


class Counting(nn.Module):
    """Changes a buffer in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, inputs):
        self.count += 1
        return self.layer(inputs)


class Unused(nn.Module):
    """Has a parameter that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, inputs):
        return self.layer(inputs)


def load(size: int) -> tuple:
    inputs, targets = data()
    return inputs[:size], targets[:size]


def first_outputs_in_deterministic_mode(training, state):
    """Measures a little, and only where deterministic algorithms are on."""
    if not torch.are_deterministic_algorithms_enabled():
        raise ValueError("deterministic algorithms are off here")
    return training.outputs(state, held_out()[0])[:, 0]


def first_outputs_in_the_main_process(training, state):
    """Measures a little, and ends every process that another one started."""
    if multiprocessing.parent_process() is not None:
        os._exit(1)
    return training.outputs(state, held_out()[0])[:, 0]


def half_frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(requires_grad=False)
    return model


class Skipping(nn.Module):
    """Leaves a branch out of some steps: its parameters have no gradient then."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.branch = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        skips = self.training and float(torch.rand(())) < 0.5
        return outputs if skips else outputs + torch.tanh(self.branch(inputs))


class Replacing(nn.Module):
    """Puts another tensor into a buffer in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("mean", torch.zeros(FEATURES))

    def forward(self, inputs):
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
        return self.layer(inputs - self.mean)


class Noisy(torch.utils.data.Dataset):
    """Augments each example with draws of its own."""

    def __init__(self) -> None:
        self.inputs, self.targets = data()

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index):
        return self.inputs[index] + 0.1 * torch.randn(FEATURES, dtype=torch.float64), self.targets[
            index
        ]


def groups(model) -> list:
    return [
        {"params": [model[0].weight, model[2].weight], "weight_decay": 0.1},
        {"params": [model[0].bias, model[2].bias], "lr": 0.02},
    ]


SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
ADAM = {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.05}
ONE_CYCLE = {
    "scheduler": "OneCycleLR",
    "scheduler_options": {"max_lr": 0.1, "total_steps": "steps"},
}


def recipe(**changes) -> Recipe:
    fields = {
        "model": mlp,
        "dataset": data(),
        "epochs": 2,
        "batch_size": 16,
        "optimizer_options": SGD,
        "dtype": torch.float64,
        **changes,
    }
    return Recipe(**fields)


VARIANTS = {
    "plain": {"optimizer_options": {"lr": 0.1}},
    "momentum and weight decay": {},
    "nesterov": {"optimizer_options": {**SGD, "nesterov": True}},
    "dampening": {"optimizer_options": {**SGD, "dampening": 0.2}},
    "adam": {"optimizer": torch.optim.Adam, "optimizer_options": ADAM, "eps_root": 1e-9},
    "adamw": {"optimizer": torch.optim.AdamW, "optimizer_options": ADAM, "eps_root": 1e-9},
    "one cycle": ONE_CYCLE,
    "one cycle with adamw": {
        **ONE_CYCLE,
        "optimizer": torch.optim.AdamW,
        "optimizer_options": ADAM,
        "eps_root": 1e-9,
    },
    "dropout": {"model": mlp_with_dropout},
    "augmentation": {"dataset": Noisy()},
    "clipping": {"clip_norm": 0.5},
    "groups": {"parameter_groups": groups},
    "norms": {"model": mlp_with_norms},
    "drop last": {"drop_last": True},
    "frozen": {"model": half_frozen},
    "frozen with groups": {
        "model": half_frozen,
        "parameter_groups": lambda model: [{"params": [*model[2].parameters(), model[0].bias]}],
    },
    "skipping": {"model": Skipping},
    "skipping with adam": {
        "model": Skipping,
        "optimizer": torch.optim.Adam,
        "optimizer_options": ADAM,
        "eps_root": 1e-9,
    },
}
