"""What the determinism switches cost a training step."""

from __future__ import annotations

import time

import pytest
import torch
from harness import report
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from seedregistry import SeedRegistry

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 64, 10),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def conv(inputs: int, outputs: int, *, pool: bool = False) -> nn.Module:
    layers = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def resnet9() -> nn.Module:
    return nn.Sequential(
        conv(3, 64), conv(64, 128, pool=True), Residual(128), conv(128, 256, pool=True),
        conv(256, 256, pool=True), Residual(256),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


NETS = {"small CNN": (small_cnn, 64), "ResNet-9": (resnet9, 4)}
MODES = {
    "off, against itself": {"deterministic": "off"},
    "warn": {"deterministic": "warn"},
    "strict": {"deterministic": "strict"},
    "strict, memory filled": {"deterministic": "strict", "fill_uninitialized_memory": True},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning")
def test_training_step(benchmark, net, mode, device):
    factory, batch = NETS[net]
    batch *= 16 if device == "cuda" else 1
    registry = SeedRegistry(42, on_reuse="allow")
    model = registry.model(factory, instance_id=net).to(device)
    optimizer = registry.optimizer(
        torch.optim.SGD, model.parameters(), instance_id=net, lr=0.01, momentum=0.9
    )
    inputs = torch.rand(batch, 3, 32, 32, generator=registry.generator("data", net)).to(device)
    targets = torch.arange(batch, device=device) % 10

    def step() -> float:
        started = time.perf_counter()
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / 2

    measured, peer = [], []
    for turn in range(40):
        for found, switches in (
            ((peer, {}), (measured, MODES[mode]))
            if turn % 2
            else ((measured, MODES[mode]), (peer, {}))
        ):
            with registry.set_global_state(**switches):
                step()
                found.append(step())
    what = f"a training step of a {net}, {mode} ({device})"
    report(
        benchmark, what, measured, peer, peer_name="the same step, off", target="", kind="percent"
    )
