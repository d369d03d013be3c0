"""The fourteen tests that no peer passes all of: at least one function each."""

from __future__ import annotations

import copy
import io
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from seedregistry import SeedRegistry, derivation, determinism, rng
from seedregistry.errors import (
    InvalidSeedError,
    LoaderStateError,
    RngStateError,
    SeedCollisionError,
)
from seedregistry.testing import assert_rng_untouched


class Augmented(Dataset):
    """Draws from all three libraries in every item."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(
            [index, random.random(), np.random.rand(), torch.rand(1).item()], dtype=torch.float64
        )


def test_01_scopes_restore_everything(fake_device, monkeypatch):
    """Context: all libraries and devices back after an exception, the function's value returned,
    nested, on one rank."""
    from seedregistry.common import ranks

    fake_device.init()
    registry = SeedRegistry(42)
    stream = registry.stream("dropout", "training")
    with assert_rng_untouched():
        with pytest.raises(ValueError, match="inside"), stream.scope(0), stream.scope(1):
            random.random(), np.random.randn(), torch.rand(1)
            torch.rand(1, generator=fake_device.default_generators[1])
            raise ValueError("inside")
        assert stream.scope(0)(lambda: 17)() == 17
        monkeypatch.setattr(ranks, "world_size", lambda: 2)
        with stream.scope(0, rank=1):
            torch.rand(1)


def test_02_resume_in_mid_epoch():
    """Resume at batch k: indices, augmentation and dropout are bit-equal, whatever the worker
    counts."""
    loader = SeedRegistry(42).dataloader(
        Augmented(), instance_id="training", batch_size=4, shuffle=True
    )
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = list(batches)
    resumed = SeedRegistry(42).dataloader(
        Augmented(), instance_id="training", batch_size=4, shuffle=True, num_workers=2
    )
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(rest, resumed))


@pytest.mark.parametrize("order", ["hashed", "indexed"])
def test_03_no_shared_orders(order):
    """No two of (seed, epoch) share an order, and no sample's draws repeat over seeds, epochs,
    samples and ranks."""
    orders, draws = [], []
    for seed in range(42, 45):
        for rank in range(2):
            registry = SeedRegistry(seed)
            loader = registry.dataloader(
                Augmented(),
                instance_id="training",
                shuffle=True,
                order=order,
                shard=(rank, 2),
                batch_size=2,
                num_workers=rank,
            )
            for epoch in range(3):
                rows = torch.cat([batch for _, batch in loader.steps(epoch)])
                draws += rows[:, 1:].flatten().tolist()
                if rank == 0:
                    whole = registry.dataloader(
                        range(12), instance_id="training", order=order, shuffle=True
                    )
                    orders.append(tuple(whole.indices(epoch).tolist()))
    assert len(set(orders)) == len(orders) == 9
    assert len(set(draws)) == len(draws) == 3 * 3 * 12 * 3


def test_03_positions_are_unique():
    """The part of row 3 that streams give: no two of (seed, epoch, step, rank) on a grid share a
    key."""
    keys = {
        SeedRegistry(seed).stream("dropout", "training").at(epoch, step, "rank", rank).key
        for seed in range(42, 46)
        for epoch in range(6)
        for step in range(6)
        for rank in range(4)
    }
    assert len(keys) == 4 * 6 * 6 * 4


def test_04_augmentation_differs_between_epochs():
    """Augmentation of epoch 2 differs from epoch 1 and repeats from run to run, at num_workers=0
    too."""

    def run() -> list:
        loader = SeedRegistry(42).dataloader(
            Augmented(), instance_id="training", batch_size=4, shuffle=True
        )
        return [torch.cat(list(loader)) for _ in range(2)]

    with assert_rng_untouched():
        one, two = run(), run()
        assert all(torch.equal(a, b) for a, b in zip(one, two))
        assert not torch.equal(one[0][:, 1:], one[1][:, 1:])


def test_04_augmentation_in_workers():
    """The part of row 4 that seeded workers give: epochs differ and runs repeat."""

    def run() -> list:
        loader = SeedRegistry(42).dataloader(
            Augmented(), instance_id="training", batch_size=4, num_workers=1
        )
        return [torch.cat(list(loader)) for _ in range(2)]

    one, two = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert not torch.equal(one[0][:, 1:], one[1][:, 1:])


def train(*, disturbed: bool) -> list:
    registry = SeedRegistry(42)
    data = TensorDataset(torch.linspace(-1, 1, 24).reshape(12, 2), torch.arange(12) % 2)
    model = registry.model(
        lambda: nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
        instance_id="training",
    )
    optimizer = registry.optimizer(
        torch.optim.SGD, model.parameters(), instance_id="training", lr=0.5
    )
    loader = registry.dataloader(data, instance_id="training", batch_size=4, shuffle=True)
    dropout = registry.stream("dropout", "training")
    for epoch in range(3):
        if disturbed:
            next(iter(loader))
            registry.model(nn.Linear, 5, 5, instance_id=f"extra {epoch}")
            for _ in registry.dataloader(data, instance_id=f"validation {epoch}", shuffle=True):
                pass
        for step, (inputs, targets) in loader.steps(epoch):
            with dropout.scope(epoch, step):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [parameter.tolist() for parameter in model.parameters()]


def test_05_nothing_else_changes_the_training():
    """Validation, an extra iter(), another loader and another model change no training number."""
    assert train(disturbed=False) == train(disturbed=True)


def test_06_components_are_independent():
    """Adding, removing or reordering components changes no other component's seed."""
    names = [("model", "a"), ("optimizer", "a"), ("dropout", None), ("noise", 3)]
    expected = {name: SeedRegistry(42).seed(*name) for name in names}
    for order in (names, names[::-1], names[1:], [("extra", 1), *names]):
        registry = SeedRegistry(42)
        seeds = {name: registry.seed(*name) for name in order}
        assert {name: seeds[name] for name in names if name in seeds} == {
            n: expected[n] for n in names if n in seeds
        }


@pytest.mark.parametrize(
    "seed", [-1, 2**128, 3.9, True, "5", float("nan"), np.float32(2)], ids=repr
)
def test_07_invalid_seeds(seed):
    """An invalid seed is a typed error and no generator has moved; NumPy integers are accepted."""
    with assert_rng_untouched(), pytest.raises(InvalidSeedError):
        SeedRegistry(seed)
    assert SeedRegistry(np.uint8(42)).seed("model") == SeedRegistry(42).seed("model")


def test_08_encoding_is_injective():
    """("ab", "c") is not ("a", "bc"), 97 is not "a", (1,) is not (1, 0), and text is not
    normalised."""
    pairs = [
        (("ab", "c"), ("a", "bc")),
        (("x", 97), ("x", "a")),
        (("x", 7), ("x", "7")),
        (("é", None), ("e\u0301", None)),
        (("x", None), ("x", "")),
    ]
    for a, b in pairs:
        registry = SeedRegistry(42, scheme="sha256-256")
        assert registry.stream(*a).key != registry.stream(*b).key
    stream = SeedRegistry(42).stream("x")
    assert stream.at(1).key != stream.at(1, 0).key
    registry = SeedRegistry(42)
    registry.seed("x", 7)
    with pytest.raises(SeedCollisionError):
        registry.seed("x", "7")


def test_09_switches_go_back_to_the_caller(monkeypatch):
    """Flags and environment go back to the caller's values; a launcher's bad value is reported
    and not overwritten."""
    import os

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    before = {switch.name: switch.get() for switch in determinism._SWITCHES}
    with pytest.raises(ValueError, match="body"), SeedRegistry(42).set_global_state(
        deterministic="strict"
    ) as handle:
        assert any("CUBLAS" in str(entry) for entry in handle.report.ineffective)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":0:0"
        raise ValueError("body")
    assert {switch.name: switch.get() for switch in determinism._SWITCHES} == before


def test_10_bad_states_are_named(fake_device):
    """A corrupted, missing or foreign RNG state, or a device that changed, is an error naming
    the entry."""
    fake_device.init()
    registry = SeedRegistry(42)
    state = registry.state_dict()
    corrupt, missing, foreign = (copy.deepcopy(state) for _ in range(3))
    corrupt["generators"]["numpy"]["position"] = 3
    del missing["generators"]["torch:cuda:1"]
    foreign["generators"]["torch:cuda:2"] = foreign["generators"]["torch:cuda:1"]
    for broken, name in ((corrupt, "numpy"), (missing, "torch:cuda:1"), (foreign, "torch:cuda:2")):
        with assert_rng_untouched(), pytest.raises(RngStateError, match=name):
            registry.load_state_dict(broken)


def test_11_foreign_loader_states_are_refused():
    """A loader state of another batch size, seed, length or order is refused with both values,
    and nothing has changed."""

    def make(*, seed=42, size=10, **kwargs):
        options = {"batch_size": 4, "shuffle": True, **kwargs}
        return SeedRegistry(seed).dataloader(range(size), instance_id="training", **options)

    state = make().state_dict()
    for loader, both in (
        (make(batch_size=5), ("4", "5")),
        (make(seed=43), ("'42'", "'43'")),
        (make(size=11), ("10", "11")),
        (make(order="indexed"), ("'documented'", "'indexed'")),
    ):
        before = loader.state_dict()
        with pytest.raises(LoaderStateError) as caught:
            loader.load_state_dict(state)
        assert all(value in str(caught.value) for value in both)
        assert loader.state_dict() == before
    make().load_state_dict(state)


def test_12_equal_effective_seeds_are_detected():
    """Two streams with one effective seed are refused under 31 bits, and have other states under
    the full width."""
    registry = SeedRegistry(42)
    with pytest.raises(SeedCollisionError):
        registry.reserve("model", ["lds_23202", "lds_29047"])
    wide = SeedRegistry(42, scheme="sha256-256")
    states = {
        bytes(wide.generator("model", i).get_state().numpy()[24:])
        for i in ("lds_23202", "lds_29047")
    }
    assert len(states) == 2
    assert derivation.documented_seed(42, "model", "lds_23202") == derivation.documented_seed(
        42, "model", "lds_29047"
    )


def test_13_what_is_seeded_is_saved_and_restored(fake_device):
    """Every device kind that a scope seeds is restored by it and stands in the state."""
    fake_device.init()
    registry = SeedRegistry(42)
    before = rng.fingerprint()
    with registry.stream("x").scope(0):
        inside = rng.fingerprint()
    assert {name for name in before if inside[name] != before[name]} == set(before)
    assert rng.fingerprint() == before
    torch_entries = [
        name for name in registry.state_dict()["generators"] if name.startswith("torch:")
    ]
    assert torch_entries == ["torch:cpu", "torch:cuda:0", "torch:cuda:1"]


@pytest.mark.moves_global_state
def test_14_states_load_with_weights_only():
    """An RNG state loads under torch.load(weights_only=True) without an allow-list, and replays."""
    registry = SeedRegistry(42)
    held = registry.generator("noise", "x")
    buffer = io.BytesIO()
    torch.save(registry.state_dict(), buffer)
    expected = (
        random.random(),
        np.random.rand(),
        torch.rand(1).item(),
        torch.rand(1, generator=held).item(),
    )
    buffer.seek(0)
    registry.load_state_dict(torch.load(buffer, weights_only=True))
    assert (
        random.random(),
        np.random.rand(),
        torch.rand(1).item(),
        torch.rand(1, generator=held).item(),
    ) == expected


def test_the_plain_loader_is_not_enough():
    """What the others do is not enough: torch's own loader with one generator changes its next
    epoch after a peek."""
    data = TensorDataset(torch.arange(20))
    orders = []
    for peek in (False, True):
        loader = DataLoader(data, shuffle=True, generator=torch.Generator().manual_seed(1))
        if peek:
            next(iter(loader))
        orders.append([int(batch[0]) for batch in loader])
    assert orders[0] != orders[1]
