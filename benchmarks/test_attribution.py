"""Attribution on the digits: the walk back over one training, retrainings a second, memory,
bytes stored."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import attrs
import pytest
import torch
from harness import report_figure
from torch import nn

from seedregistry import SeedRegistry
from seedregistry.attribution import Training, losses_of, magic
from seedregistry.attribution.demo import digits_plan
from seedregistry.attribution.replay import default_keep, replayed_steps

ROUNDS = 5
AT_ONCE = 25


def seconds(work, rounds: int = ROUNDS) -> float:
    """Return the least of a few times."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


@pytest.fixture(scope="module")
def digits():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    registry = SeedRegistry(42)
    plan = digits_plan(registry)
    yield plan, Training(registry, plan.recipe)
    torch.set_num_threads(threads)


def targets(plan, count: int):
    return losses_of(plan.test[0][:count], plan.test[1][:count])


@pytest.mark.parametrize(
    ("count", "keep", "target"),
    [
        (1, None, "<= 8"),
        (8, None, ""),
        (32, None, ""),
        (1, 2, ""),
        (1, 4, ""),
        (1, 8, ""),
        (1, 200, ""),
    ],
)
def test_walk_back(benchmark, digits, count, keep, target):
    plan, training = digits
    measurement = targets(plan, count)
    walk = seconds(lambda: magic(training, measurement, keep=keep, progress=False))
    run = seconds(training.train)
    kept = default_keep(training.steps) if keep is None else keep
    what = (
        f"metagradients of {count} target{'' if count == 1 else 's'}, {kept} states kept, 200 steps"
    )
    report_figure(
        benchmark,
        what,
        walk / run,
        "trainings",
        target=target,
        beside=("steps run again by each", replayed_steps(200, kept) / 200),
    )


@pytest.mark.parametrize("steps", [100, 1000, 10_000])
def test_walk_back_over_more_steps(benchmark, digits, steps):
    plan, _ = digits
    training = Training(SeedRegistry(42), attrs.evolve(plan.recipe, epochs=steps // 10))
    measurement = targets(plan, 1)
    rounds = max(1, 1000 // steps)
    walk, run = (
        seconds(lambda: magic(training, measurement, progress=False), rounds),
        seconds(training.train, rounds),
    )
    kept = default_keep(steps)
    report_figure(
        benchmark,
        f"metagradients of 1 target, {kept} states kept, {steps:,} steps",
        walk / run,
        "trainings",
        target="",
        beside=("steps run again by each", replayed_steps(steps, kept) / steps),
    )


@pytest.mark.parametrize("how", ["one", "many"])
def test_retraining(benchmark, digits, how):
    plan, training = digits
    recipe = plan.recipe
    inputs, labels = recipe.dataset
    data = torch.utils.data.TensorDataset(inputs, labels)

    def bare_loop() -> None:
        """What one writes without this library: a DataLoader, torch.optim, and nothing recorded."""
        torch.random.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.02, total_steps=200, cycle_momentum=False
        )
        loader = torch.utils.data.DataLoader(data, batch_size=120, shuffle=True, drop_last=True)
        for _ in range(20):
            for batch, targets_ in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(batch), targets_).backward()
                optimizer.step()
                scheduler.step()

    one, many = (
        torch.ones(training.size, dtype=torch.float64),
        torch.ones(AT_ONCE, training.size, dtype=torch.float64),
    )
    works = {
        "ours": lambda: training.train(one),
        "many": lambda: training.train_many(many),
        "bare": bare_loop,
    }
    found: dict = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - started)
    rates = {
        name: (AT_ONCE if name == "many" else 1) / statistics.median(times)
        for name, times in found.items()
    }
    what, name, times = {
        "one": ("one by one", "ours", 1),
        "many": (f"{AT_ONCE} at once", "many", 3),
    }[how]
    report_figure(
        benchmark,
        f"retrainings of the digits, {what}",
        rates[name],
        "a second",
        target=f">= {times * rates['bare']:.1f}",
        beside=("a bare loop with a `DataLoader`", rates["bare"]),
    )


def test_bytes_stored(benchmark, digits):
    _, training = digits
    state = training.initial_state()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.tensors())
    batch = training.batch(0)
    each = size + sum(
        tensor.numel() * tensor.element_size() for tensor in (batch.inputs, batch.targets)
    )
    kept = default_keep(training.steps)
    report_figure(
        benchmark,
        "bytes stored for a training step (200 steps)",
        kept * size / training.steps,
        "bytes a step",
        target="",
        beside=("a checkpoint and a batch for every step", each),
    )


MEMORY = """
import sys, torch
from torch import nn
from seedregistry import SeedRegistry
from seedregistry.attribution import Recipe, Training, losses_of, magic
torch.set_num_threads(1)
steps = int(sys.argv[1])
def model(): return nn.Sequential(nn.Linear(64, 1024), nn.GELU(), nn.Linear(1024, 10))
inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
labels = torch.arange(16) % 10
options = {"lr": 1e-4, "momentum": 0.9}
recipe = Recipe(
    model=model, dataset=(inputs, labels), epochs=steps, batch_size=16, optimizer_options=options
)
training = Training(SeedRegistry(42), recipe)
training.advance(training.initial_state(), 3)
magic(training, losses_of(inputs[:1], labels[:1]), keep=0, progress=False) if steps < 200 else None
def most():
    lines = open("/proc/self/status")
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak so far, that of the imports, is forgotten
before = most()
found = magic(training, losses_of(inputs[:1], labels[:1]), progress=False)
print(most() - before, found.states_kept)
"""


@pytest.fixture(scope="module")
def memory() -> dict:
    """Megabytes by number of steps; a state of this model with momentum has 0.6 MB."""
    found = {}
    for steps in (100, 1000, 10_000):
        command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(steps)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found[steps] = float(run.stdout.split()[0])
    return found


@pytest.mark.parametrize("steps", [100, 1000, 10_000])
def test_memory(benchmark, memory, steps):
    every_state = steps * 2 * (64 * 1024 + 1024 + 1024 * 10 + 10) * 4 / 2**20
    what = f"peak memory of the walk back over {steps:,} steps"
    report_figure(
        benchmark, what, memory[steps], "MB", target="", beside=("every state", every_state)
    )
