"""Small recipes for the tests: importable, so that other processes can unpickle them."""

from __future__ import annotations

import multiprocessing
import os

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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


class Checkpointed(nn.Module):
    """Computes its middle again in the backward pass, as large models do to save memory."""

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(probability))
        self.last = nn.Linear(8, CLASSES)

    def forward(self, inputs):
        hidden = checkpoint(self.middle, self.first(inputs), use_reentrant=False)
        return self.last(hidden)


def checkpointed_with_dropout() -> nn.Module:
    return Checkpointed(0.3)


class Attention(nn.Module):
    """A layer of attention, whose key's bias has no effect: its gradient is rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, 2, batch_first=True)
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        tokens = torch.stack([inputs, inputs.roll(1, 1), inputs.flip(1)], 1)
        attended, _ = self.attention(tokens, tokens, tokens)
        return self.last(attended.mean(1))


class FrozenNorm(nn.Module):
    """Has a batch norm that stays in evaluation mode, as fine-tuned models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, CLASSES)
        )
        self.train()

    def train(self, mode: bool = True):
        super().train(mode)
        self.layers[1].eval()
        return self

    def forward(self, inputs):
        return self.layers(inputs)


def bias_before_a_norm() -> nn.Module:
    """The bias of the convolution is taken away by the norm behind it."""
    return nn.Sequential(
        nn.Unflatten(1, (1, FEATURES)),
        nn.Conv1d(1, 4, 3),
        nn.InstanceNorm1d(4),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(4 * (FEATURES - 2), CLASSES),
    )


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
    "checkpointing": {"model": Checkpointed},
    "checkpointing with dropout": {"model": checkpointed_with_dropout},
    "attention": {"model": Attention},
    "frozen norm": {"model": FrozenNorm},
    "bias before a norm": {"model": bias_before_a_norm},
    "skipping": {"model": Skipping},
    "skipping with adam": {
        "model": Skipping,
        "optimizer": torch.optim.Adam,
        "optimizer_options": ADAM,
        "eps_root": 1e-9,
    },
}
