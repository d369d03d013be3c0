"""Derivation, scopes and builds, each against its floor or peer."""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import sys
import time

import pytest
import torch
from harness import first_derivations, in_turn, report, report_figure
from torch import nn

from seedregistry import SeedRegistry, deterministic_context
from seedregistry.common.environment import snapshot
from seedregistry.components import model_digest

SCHEMES = ["sha256-31", "sha256-256"]


def repeat(function, calls):
    """Return a body that calls a function ``calls`` times."""

    def body() -> None:
        for _ in range(calls):
            function()

    return body


@pytest.mark.parametrize("scheme", SCHEMES)
def test_first_derivation(benchmark, scheme):
    masters = itertools.count(42)
    times = first_derivations(lambda: SeedRegistry(next(masters), scheme=scheme), rounds=40)
    report(
        benchmark,
        f"first derivation, recorded ({scheme})",
        *times,
        peer_name="`sha256(text)`",
        target="<= 12 x",
    )


def test_cached_derivation(benchmark):
    calls = 20_000
    registry = SeedRegistry(42)
    registry.seed("model", "training")
    table = {("model", "training"): 1}
    purpose, instance_id = "model", "training"

    def measured() -> None:
        seed = registry.seed
        for _ in range(calls):
            seed(purpose, instance_id)

    def floor() -> None:
        for _ in range(calls):
            table[purpose, instance_id]

    times = in_turn(measured, floor, rounds=40, calls=calls)
    report(
        benchmark,
        "the same key again, cached",
        *times,
        peer_name="one dict look-up",
        target="<= 4 x",
    )


def fork_and_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)


def scopes(scheme: str) -> dict:
    stream = SeedRegistry(42, scheme=scheme).stream("dropout", "training")

    def context() -> None:
        with deterministic_context(7):
            pass

    def torch_only() -> None:
        with stream.scope(1, 2, torch_only=True):
            pass

    def everything() -> None:
        with stream.scope(1, 2):
            pass

    return {
        "deterministic_context": context,
        "scope(torch_only=True)": torch_only,
        "scope, all libraries": everything,
    }


@pytest.mark.parametrize(
    ("name", "scheme", "target"),
    [
        ("deterministic_context", "sha256-31", "<= 0.1 x"),
        ("scope(torch_only=True)", "sha256-31", "<= 0.1 x"),
        ("scope, all libraries", "sha256-31", "<= 0.5 x"),
        ("scope(torch_only=True)", "sha256-256", "<= 0.1 x"),
        ("scope, all libraries", "sha256-256", "<= 0.5 x"),
    ],
)
def test_scopes(benchmark, name, scheme, target):
    times = in_turn(
        repeat(scopes(scheme)[name], 100), repeat(fork_and_seed, 100), rounds=40, calls=100
    )
    report(
        benchmark,
        f"{name} ({scheme})",
        *times,
        peer_name="`fork_rng` + `manual_seed`",
        target=target,
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_positions(benchmark, scheme):
    stream = SeedRegistry(42, scheme=scheme).stream("noise", "training")
    times = in_turn(
        repeat(lambda: stream.at(3, 4).generator(), 500),
        repeat(lambda: torch.Generator().manual_seed(5), 500),
        rounds=40,
        calls=500,
    )
    report(
        benchmark,
        f"at(epoch, step).generator() ({scheme})",
        *times,
        peer_name="`Generator().manual_seed`",
        target="",
    )


def fresh_registry() -> SeedRegistry:
    """A registry whose environment is recorded already."""
    registry = SeedRegistry(42, on_reuse="allow")
    registry.model(nn.Identity, instance_id="first")
    return registry


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10))


def test_building_a_model(benchmark):
    def measured(registry) -> None:
        for _ in range(50):
            registry.model(net, instance_id="training")

    def floor() -> None:
        for _ in range(50):
            model_digest(net())

    times = in_turn(measured, floor, rounds=40, calls=50, prepare=lambda: ((fresh_registry(),), ()))
    report(
        benchmark,
        "building a model, its digest apart",
        *times,
        peer_name="factory + digest",
        target="<= +150 us",
        kind="added",
    )


def test_building_an_optimizer(benchmark):
    params = list(net().parameters())

    def measured(registry) -> None:
        for _ in range(50):
            registry.optimizer(torch.optim.SGD, params, instance_id="training", lr=0.1)

    def floor() -> None:
        for _ in range(50):
            torch.optim.SGD(params, lr=0.1)

    times = in_turn(measured, floor, rounds=60, calls=50, prepare=lambda: ((fresh_registry(),), ()))
    report(
        benchmark,
        "building an optimizer",
        *times,
        peer_name="`SGD(...)`",
        target="<= +40 us",
        kind="added",
    )


def test_building_a_scheduler(benchmark):
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    step_lr = torch.optim.lr_scheduler.StepLR

    def measured(registry) -> None:
        for _ in range(50):
            registry.scheduler(step_lr, optimizer, instance_id="training", step_size=3)

    def floor() -> None:
        for _ in range(50):
            step_lr(optimizer, step_size=3)

    times = in_turn(measured, floor, rounds=60, calls=50, prepare=lambda: ((fresh_registry(),), ()))
    report(
        benchmark,
        "building a scheduler",
        *times,
        peer_name="`StepLR(...)`",
        target="<= +40 us",
        kind="added",
    )


def test_saving_pythons_generator(benchmark):
    """The part of a scope that no library can avoid: python's own functions copy 625 words one
    by one."""
    key = 2**255 + 12345

    def measured() -> None:
        for _ in range(200):
            state = random.getstate()
            random.seed(key)
            random.setstate(state)

    times = in_turn(measured, repeat(fork_and_seed, 200), rounds=20, calls=200)
    report(
        benchmark,
        "of which `random.getstate`, `seed`, `setstate`",
        *times,
        peer_name="`fork_rng` + `manual_seed`",
        target="",
    )


def test_building_a_loader(benchmark):
    data = torch.utils.data.TensorDataset(torch.arange(100))

    def measured(registry) -> None:
        for _ in range(50):
            registry.dataloader(data, instance_id="training", batch_size=10, shuffle=True)

    def floor() -> None:
        for _ in range(50):
            torch.utils.data.DataLoader(data, batch_size=10, shuffle=True)

    times = in_turn(measured, floor, rounds=40, calls=50, prepare=lambda: ((fresh_registry(),), ()))
    report(benchmark, "building a loader", *times, peer_name="`DataLoader(...)`", target="<= 10 x")


def test_model_digest(benchmark):
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)])
    data = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    times = in_turn(
        lambda: model_digest(model), lambda: hashlib.sha256(data).digest(), rounds=10, calls=1
    )
    report(
        benchmark,
        "digest of a model of 33.6 MB",
        *times,
        peer_name="`sha256` over the bytes",
        target=">= 80 %",
        kind="bandwidth",
    )


def test_environment(benchmark):
    times = in_turn(repeat(snapshot, 20), repeat(fork_and_seed, 20), rounds=20, calls=20)
    report(
        benchmark,
        "the environment record (once a registry)",
        *times,
        peer_name="`fork_rng` + `manual_seed`",
        target="",
    )


CLOCK = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def fresh_processes(script: str, *, count: int = 5) -> list:
    """Return what a script prints, in seconds; a process before them warms the disk."""
    command = [sys.executable, "-c", script]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True)
        for _ in range(count + 1)
    ]
    return [float(run.stdout) for run in runs[1:]]


def report_import(benchmark, what: str, line: str, *, target: str) -> None:
    """Report what a line costs after torch is there, as a share of torch's own import."""
    ours = fresh_processes("import torch; " + CLOCK.format(line))
    torchs = fresh_processes(CLOCK.format("import torch"))
    report(benchmark, what, ours, torchs, peer_name="`import torch`", target=target, kind="share")


def test_import(benchmark):
    what = "`import seedregistry` after `import torch`, a fresh process"
    report_import(benchmark, what, "import seedregistry", target="<= 1 %")


def test_import_and_registry(benchmark):
    what = "`from seedregistry import SeedRegistry; SeedRegistry(42)`, a fresh process"
    line = "from seedregistry import SeedRegistry; SeedRegistry(42)"
    report_import(benchmark, what, line, target="<= 6 %")


def test_help(benchmark):
    commands = ([sys.executable, "-m", "seedregistry", "--help"], [sys.executable, "-c", "pass"])
    ours, python = (min(wall_s(command) for _ in range(5)) * 1e3 for command in commands)
    report_figure(
        benchmark,
        "`seedregistry --help`, a fresh process",
        ours,
        "ms",
        target="<= 150",
        beside=("`python -c pass`", python),
    )


def wall_s(command: list) -> float:
    """Return how long a process takes, in seconds."""
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start
