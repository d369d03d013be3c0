"""Orders: which indices come when, at any position."""

from __future__ import annotations

import pickle
import time
import tracemalloc

import numpy as np
import pytest
import torch

from seedregistry import SeedRegistry
from seedregistry.data.order import documented_order
from seedregistry.errors import InvalidOptionError

N = 100
ORDERS = ["documented", "hashed", "indexed"]


class Huge:
    """A dataset of 10**12 samples."""

    draws_random_numbers = False

    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, index: int) -> int:
        return index


def make(order=None, *, scheme="sha256-31", seed=42, size=N, **kwargs):
    options = {"batch_size": 8, "shuffle": True, **kwargs}
    return SeedRegistry(seed, scheme=scheme).dataloader(
        range(size), instance_id="training", order=order, **options
    )


def test_defaults():
    """The default order is the documented one under sha256-31 and the hashed one under
    sha256-256."""
    assert make().state_dict()["order"] == "documented"
    assert make(scheme="sha256-256").state_dict()["order"] == "hashed"
    assert make(scheme="sha256-256", order="documented").state_dict()["order"] == "documented"
    for scheme in ("sha256-31", "sha256-256"):
        loader = make("documented", scheme=scheme)
        expected = torch.randperm(
            N, generator=torch.Generator().manual_seed(loader.stream.seed + 3)
        )
        assert torch.equal(loader.indices(3), expected)
        hashed = make("hashed", scheme=scheme)
        assert torch.equal(
            hashed.indices(3), torch.randperm(N, generator=hashed.stream.at(3).generator())
        )


@pytest.mark.parametrize("order", ORDERS)
def test_each_epoch_is_a_permutation(order):
    """Every epoch has every index once, and is the same when it is asked for again, in any
    sequence, and after pickling."""
    loader = make(order)
    epochs = [loader.indices(epoch).tolist() for epoch in range(4)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    sampler = pickle.loads(pickle.dumps(loader.sampler))
    for epoch in (2, 0, 3, 1):
        assert loader.indices(epoch).tolist() == epochs[epoch]
        assert list(sampler.indices(epoch)) == epochs[epoch]
        assert [i for batch in loader.steps(epoch) for i in batch[1].tolist()] == epochs[epoch]


@pytest.mark.parametrize("order", ORDERS)
def test_whether_runs_share_orders(order):
    """(seed, epoch 1) and (seed + 1, epoch 0) share an order by the documented rule on plain
    seeds, and by no other."""
    assert torch.equal(documented_order(N, 7, 1), documented_order(N, 8, 0))
    orders = [
        tuple(make(order, seed=seed).indices(epoch).tolist())
        for seed in range(42, 46)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_small_datasets(size, order, drop_last):
    """Empty datasets and those around the batch size have the batches that torch's loader has."""
    loader = make(order, size=size, drop_last=drop_last)
    plain = torch.utils.data.DataLoader(
        range(size), batch_size=8, drop_last=drop_last, generator=torch.Generator()
    )
    assert len(loader) == len(plain)
    assert [len(batch) for batch in loader] == [len(batch) for batch in plain]
    assert loader.epoch == 1


def test_the_middle_of_a_huge_epoch():
    """With 10**12 samples, the first batch from the middle of epoch 7 takes little time and no
    memory that grows."""
    loader = SeedRegistry(42).dataloader(
        Huge(), instance_id="training", batch_size=256, shuffle=True, order="indexed"
    )
    state = {**loader.state_dict(), "epoch": 7, "batches_yielded": 10**9}
    list(zip(range(1), loader.steps(0)))
    tracemalloc.start()
    started = time.perf_counter()
    loader.load_state_dict(state)
    step, batch = next(loader.steps(7))
    elapsed_s = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert step == 10**9
    assert batch.tolist() == loader.indices(7, 10**9).tolist()
    assert len(set(batch.tolist())) == 256
    assert peak < 8 << 20
    assert elapsed_s < 2  # a guard against a walk to the position; the benchmark has the figure
    assert len(loader) == 3906250000
    with pytest.raises(InvalidOptionError, match=r"loader\.indices\(epoch, step\)"):
        loader.indices(7)


def test_random_access_costs_no_epoch():
    """Under the indexed order any step is computed alone and equals the slice of the whole."""
    loader = make("indexed", size=10_000)
    whole = loader.indices(5)
    for step in (0, 3, 999, 1249):
        assert torch.equal(loader.indices(5, step), whole[step * 8 : step * 8 + 8])


def test_the_default_device_does_not_matter():
    """Orders are drawn on the CPU whatever the default device is."""
    expected = [make(order).indices(0) for order in ORDERS]
    with torch.device("meta"):
        assert all(torch.equal(make(order).indices(0), e) for order, e in zip(ORDERS, expected))


def test_indices_are_copies():
    """Changing what indices returned changes no epoch, and the type is int64."""
    loader = make("hashed")
    first = loader.indices(0)
    kept = first.clone()
    first.zero_()
    assert torch.equal(loader.indices(0), kept)
    assert loader.indices(0).dtype == torch.int64
    assert np.array_equal(loader.indices(0, 1).numpy(), kept[8:16].numpy())
