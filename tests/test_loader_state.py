"""Resume: the rest of an epoch is bit-equal after any batch, in another process, with other
workers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from augmented import Augmented, Items, mixup
from hypothesis import given, settings
from hypothesis import strategies as st

from seedregistry import SeedRegistry
from seedregistry.errors import EpochRepeatedWarning, LoaderStateError
from seedregistry.testing import assert_rng_untouched

HERE = Path(__file__).parent


def make(*, seed=42, scheme="sha256-31", size=23, **kwargs):
    options = {"batch_size": 4, "shuffle": True, "collate_fn": mixup, **kwargs}
    return SeedRegistry(seed, scheme=scheme).dataloader(
        Augmented(size), instance_id="training", **options
    )


def through_torch(state) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def through_json(state) -> dict:
    return json.loads(json.dumps(state))


def contents(batches) -> list:
    return [batch.numpy().tobytes() for batch in batches]


WHOLE = {
    scheme: [contents(batch for _, batch in make(scheme=scheme).steps(epoch)) for epoch in range(3)]
    for scheme in ("sha256-31", "sha256-256")
}


@given(
    stop=st.integers(0, 6),
    epoch=st.integers(0, 1),
    scheme=st.sampled_from(["sha256-31", "sha256-256"]),
    carry=st.sampled_from([through_torch, through_json]),
    by_steps=st.booleans(),
)
@settings(max_examples=60)
def test_the_rest_is_bit_equal(stop, epoch, scheme, carry, by_steps):
    """After any batch of an epoch, a fresh loader with the state yields the rest, and then the
    next epoch."""
    loader = make(scheme=scheme)
    loader.epoch = epoch
    batches = iter(loader)
    got = contents(batch for _, batch in zip(range(stop), batches))
    state = carry(loader.state_dict())
    assert (state["epoch"], state["batches_yielded"]) == (epoch, stop)
    fresh = make(scheme=scheme)
    fresh.load_state_dict(state)
    if by_steps:
        steps = list(fresh.steps(epoch))
        assert [step for step, _ in steps] == list(range(stop, 6))
        got += contents(batch for _, batch in steps)
    else:
        got += contents(fresh)
    assert got == WHOLE[scheme][epoch]
    assert fresh.epoch == epoch + 1
    assert contents(fresh) == WHOLE[scheme][epoch + 1]


@given(stop=st.integers(1, 6), before=st.integers(0, 2), after=st.integers(0, 2))
@settings(max_examples=12)
def test_worker_counts_may_change(stop, before, after):
    """The state counts the batches handed out, with workers and prefetching too, and any number
    of workers goes on."""
    loader = make(num_workers=before)
    got = []
    for step, batch in loader.steps(0):
        got.append(batch.numpy().tobytes())
        state = loader.state_dict()
        assert state["batches_yielded"] == step + 1
        if step + 1 == stop:
            break
    fresh = make(num_workers=after)
    fresh.load_state_dict(through_torch(state))
    assert got + contents(fresh) == WHOLE["sha256-31"][0]


def test_the_state_after_an_epoch_is_the_beginning_of_the_next():
    """In the body of the last batch the rest of the epoch is empty; after the loop the state is
    the next epoch's start."""
    loader = make()
    for _ in loader:
        last = loader.state_dict()
    assert (last["epoch"], last["batches_yielded"]) == (0, 6)
    after = loader.state_dict()
    assert (after["epoch"], after["batches_yielded"]) == (1, 0)
    fresh = make()
    fresh.load_state_dict(last)
    assert contents(fresh) == []
    assert contents(fresh) == WHOLE["sha256-31"][1]
    repeating = make(epochs="repeat")
    repeating.load_state_dict({**last, "batches_yielded": 5})
    assert contents(repeating) == WHOLE["sha256-31"][0][5:]
    assert contents(repeating) == WHOLE["sha256-31"][0]


def test_a_loaded_position_stays_until_it_is_run():
    """set_epoch of the loaded epoch keeps the position, another epoch forgets it, and a peek
    does not use it up."""
    state = make().state_dict()
    state["batches_yielded"] = 3
    expected = WHOLE["sha256-31"]
    loader = make()
    loader.load_state_dict(state)
    loader.set_epoch(0)
    next(iter(loader))
    assert loader.state_dict()["batches_yielded"] == 4
    assert contents(loader) == expected[0][3:]
    loader.load_state_dict(state)
    loader.set_epoch(1)
    loader.set_epoch(0)
    assert contents(loader) == expected[0]
    loader.load_state_dict(state)
    assert contents(batch for _, batch in loader.steps(1)) == expected[1]
    loader.load_state_dict(state)
    for _ in zip(range(2), loader):
        pass
    with pytest.warns(EpochRepeatedWarning):
        rest = contents(loader)
    assert rest == expected[0][3:]


CHANGED = {
    "seed": ({"seed": 43}, "master_seed is '42' in the state and '43' here"),
    "scheme": (
        {"scheme": "sha256-256"},
        "scheme is 'sha256-31' in the state and 'sha256-256' here",
    ),
    "length": ({"size": 24}, "samples is 23 in the state and 24 here"),
    "batch size": ({"batch_size": 5}, "batch_size is 4 in the state and 5 here"),
    "order": ({"order": "indexed"}, "order is 'documented' in the state and 'indexed' here"),
    "shuffle": ({"shuffle": False}, "order is 'documented' in the state and 'sequential' here"),
    "world size": ({"shard": (0, 2)}, "world_size is 1 in the state and 2 here"),
    "drop_last": ({"drop_last": True}, "tail is 'keep' in the state and 'drop' here"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_foreign_state_is_refused(name):
    """A state of another seed, scheme, length, batch size, order or world size is refused with
    both values; nothing changes."""
    options, message = CHANGED[name]
    loader = make()
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    other = make(**options)
    other.epoch = 7
    before = other.state_dict()
    with assert_rng_untouched(), pytest.raises(LoaderStateError) as caught:
        other.load_state_dict(state)
    assert message in str(caught.value)
    assert other.state_dict() == before


def of_data(data, **kwargs):
    return SeedRegistry(42).dataloader(data, instance_id="training", batch_size=2, **kwargs)


class Images(torch.utils.data.Dataset):
    """A dataset that holds arrays, and counts what it did."""

    def __init__(self, change=0) -> None:
        self.images = np.arange(40_000, dtype=np.float64).reshape(8, 5000)
        self.images[change] += change
        self.labels = [change, *range(7)]
        self.fetched = 0
        self.folder = f"/home/{os.getpid()}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        self.fetched += 1
        self.labels.append(index)  # as a dataset may
        return self.images[index, 0] + torch.rand(1)


TENSOR, WEIGHTS = torch.arange(8.0), [1.0, 2.0, 3.0]
OTHERS = {
    "tensor": (
        lambda: of_data(torch.utils.data.TensorDataset(TENSOR)),
        lambda: of_data(torch.utils.data.TensorDataset(TENSOR + 1)),
    ),
    "list": (lambda: of_data(list(range(8))), lambda: of_data([0, 1, 2, 3, 4, 5, 6, 8])),
    "texts": (lambda: of_data(["a"] * 8), lambda: of_data(["b"] * 8)),
    "array": (lambda: of_data(np.zeros((8, 3))), lambda: of_data(np.ones((8, 3)))),
    "large": (
        lambda: of_data(torch.zeros(8, 200_000)),
        lambda: of_data(torch.zeros(8, 200_000) + 1e-3),
    ),
    "dtype": (
        lambda: of_data(torch.zeros(8, dtype=torch.int32)),
        lambda: of_data(torch.zeros(8, dtype=torch.float32)),
    ),
    "subset": (
        lambda: of_data(torch.utils.data.Subset(range(9), list(range(8)))),
        lambda: of_data(torch.utils.data.Subset(range(9), list(range(1, 9)))),
    ),
    "one of several": (
        lambda: of_data(torch.utils.data.ConcatDataset([range(4), torch.zeros(4)])),
        lambda: of_data(torch.utils.data.ConcatDataset([range(4), torch.ones(4)])),
    ),
    "the user's": (lambda: of_data(Images()), lambda: of_data(Images(1))),
    "weights": (
        lambda: of_data(range(3), sampler=torch.utils.data.WeightedRandomSampler(WEIGHTS, 8)),
        lambda: of_data(range(3), sampler=torch.utils.data.WeightedRandomSampler([1.0] * 3, 8)),
    ),
    "replacement": (
        lambda: of_data(range(9), sampler=torch.utils.data.RandomSampler(range(9), num_samples=8)),
        lambda: of_data(
            range(9),
            sampler=torch.utils.data.RandomSampler(range(9), replacement=True, num_samples=8),
        ),
    ),
    "indices": (
        lambda: of_data(range(9), sampler=torch.utils.data.SubsetRandomSampler(range(8))),
        lambda: of_data(range(9), sampler=torch.utils.data.SubsetRandomSampler(range(1, 9))),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_other_data_is_refused(name):
    """A state of a dataset of the same length that holds something else, or of another sampler, is
    refused; one of the same data is taken, also after they were used."""
    this, other = OTHERS[name]
    loader = this()
    for _ in loader:
        pass
    state = loader.state_dict()
    this().load_state_dict(through_json(state))
    with pytest.raises(
        LoaderStateError, match=r"(dataset|sampler)_digest is '\w{16}' in the state"
    ):
        other().load_state_dict(state)


def test_what_a_state_cannot_know_is_none():
    """Data on a disk, and a sampler of the user's, are known by nothing, and the state says so."""

    class Files(torch.utils.data.Dataset):
        def __init__(self, folder):
            self.paths = [f"{folder}/{number}.png" for number in range(8)]

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return index

    class Backwards(torch.utils.data.Sampler):
        def __init__(self):
            self.rank = torch.arange(3)

        def __len__(self):
            return 8

        def __iter__(self):
            return iter(range(7, -1, -1))

    state = of_data(Files("/data"), sampler=Backwards()).state_dict()
    assert state["dataset_digest"] is None
    assert state["sampler_digest"] is None
    of_data(Files("/mnt"), sampler=Backwards()).load_state_dict(state)


@pytest.mark.parametrize("name", ["documented", "drawn", "global"])
def test_states_of_the_first_format(name):
    """A state of format 1 is taken, and goes on where it stood."""
    state = json.loads((HERE / "data" / "state-loader-1.json").read_text())[name]
    tensors = torch.utils.data.TensorDataset(torch.arange(23.0))
    options = {
        "documented": {"shuffle": True, "batch_size": 4},
        "global": {"shuffle": True, "global_batch_size": 4, "order": "indexed", "shard": (0, 2)},
        "drawn": {
            "sampler": torch.utils.data.WeightedRandomSampler([1.0, 2.0, 3.0] * 7 + [1.0] * 2, 12),
            "batch_size": 4,
        },
    }[name]
    loader = SeedRegistry(42).dataloader(tensors, instance_id="training", **options)
    loader.load_state_dict(state)
    assert (loader.epoch, loader.state_dict()["batches_yielded"]) == (
        state["epoch"],
        state["batches_yielded"],
    )


@given(before=st.sampled_from([1, 2, 4]), after=st.sampled_from([1, 2, 4]), stop=st.integers(0, 4))
@settings(max_examples=20)
def test_a_global_batch_goes_on_with_another_number_of_ranks(before, after, stop):
    """With global_batch_size a state of any number of ranks is taken by any other: step k is the
    same samples."""

    def ranks(world):
        return [
            SeedRegistry(42).dataloader(
                Augmented(18), instance_id="a", shuffle=True, global_batch_size=4, shard=(r, world)
            )
            for r in range(world)
        ]

    def samples(loaders):
        return [
            [row.numpy().tobytes() for batch in step for row in batch] for step in zip(*loaders)
        ]

    whole = samples(ranks(1))
    first = ranks(before)
    iterators = [iter(loader) for loader in first]
    got = [
        [row.numpy().tobytes() for batch in step for row in batch]
        for _, step in zip(range(stop), zip(*iterators))
    ]
    assert [sorted(step) for step in got] == [sorted(step) for step in whole[:stop]]
    state = first[-1].state_dict()
    rest = ranks(after)
    for loader in rest:
        loader.load_state_dict(through_json(state))
    assert [sorted(step) for step in samples(rest)] == [sorted(step) for step in whole[stop:]]


@pytest.mark.skipif(
    "in_order" not in torch.utils.data.DataLoader.__init__.__code__.co_varnames,
    reason="not in this torch",
)
def test_batches_that_come_as_they_are_ready():
    """With in_order=False there is no state, and the error says why."""
    with pytest.raises(LoaderStateError, match="in_order=False"):
        make(num_workers=1, in_order=False).state_dict()


def test_corrupt_states_are_refused():
    """A missing, foreign or malformed entry is refused by name, and changes nothing."""
    loader = make()
    state = loader.state_dict()
    for bad, match in [
        (None, "dict"),
        ([], "dict"),
        ({}, "format is 'missing'"),
        ({**state, "format": "seedregistry.loader/3"}, "seedregistry.loader/3"),
        ({**state, "epoch": -1}, "epoch is -1"),
        ({**state, "epoch": True}, "epoch is True"),
        ({**state, "epoch": 10**30}, "epoch is 1000000000000000000000000000000"),
        ({**state, "format": "seedregistry.loader/1", "seed": 1}, "seed is 1 in the state"),
        ({**state, "batches_yielded": 7}, "after batch 7 of epoch 0, which has 6"),
        ({**state, "batches_yielded": "1"}, "batches_yielded is '1'"),
        ({**state, "extra": 1}, "it has extra"),
        ({name: value for name, value in state.items() if name != "seed"}, "seed is 'missing'"),
    ]:
        with pytest.raises(LoaderStateError, match=match):
            loader.load_state_dict(bad)
        assert loader.state_dict() == state
    loader.load_state_dict(state)


class Counted(Items):
    """An iterable dataset with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.next = 0

    def __iter__(self):
        while self.next < self.size:
            self.next += 1
            yield torch.tensor([self.next - 1, torch.rand(()).item()], dtype=torch.float64)
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def test_iterable_datasets():
    """An iterable dataset resumes at an epoch's start, and anywhere with a state of its own;
    else the state says why not."""

    def loader(data, **kwargs):
        return SeedRegistry(42).dataloader(data, batch_size=3, **kwargs)

    plain = loader(Items())
    list(plain)
    fresh = loader(Items())
    fresh.load_state_dict(through_json(plain.state_dict()))
    assert contents(fresh) == contents(plain)
    next(iter(plain))
    with pytest.raises(LoaderStateError, match="Items is iterable"):
        plain.state_dict()
    stateful, whole = loader(Counted()), contents(loader(Counted()))
    batches = iter(stateful)
    got = contents(batch for _, batch in zip(range(2), batches))
    fresh = loader(Counted())
    fresh.load_state_dict(through_json(stateful.state_dict()))
    assert got + contents(fresh) == whole
    with pytest.raises(LoaderStateError, match="num_workers=0"):
        busy = loader(Counted(), num_workers=1)
        next(iter(busy))
        busy.state_dict()


TRAINING = """
import json, sys
import torch
from torch import nn
from augmented import Augmented
from seedregistry import SeedRegistry

def train(path, stop, resume, workers):
    registry = SeedRegistry(42)
    model = registry.model(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)),
        instance_id="training",
    )
    optimizer = registry.optimizer(
        torch.optim.SGD, model.parameters(), instance_id="training", lr=0.01, momentum=0.9
    )
    loader = registry.dataloader(
        Augmented(), instance_id="training", batch_size=4, shuffle=True, num_workers=workers
    )
    dropout = registry.stream("dropout", "training")
    if resume:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
    count = 0
    for epoch in range(loader.epoch, 3):
        for step, batch in loader.steps(epoch):
            with dropout.scope(epoch, step):
                loss = (model(batch.float() / 23) - 1).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            count += 1
            if count == stop:
                torch.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "loader": loader.state_dict(),
                    },
                    path,
                )
                return None
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().tobytes().hex()
"""


def compiled(source):
    """Return the function that the script defines."""
    space: dict = {}
    exec(source, space)
    return space["train"]


def test_a_new_process_ends_with_the_same_parameters(tmp_path):
    """Training stopped in mid-epoch and resumed in a new process, with other workers, ends with
    equal parameters."""
    train = compiled(TRAINING)
    expected = train(None, None, False, 0)
    for stop, before, after in ((4, 0, 1), (6, 1, 0), (11, 2, 0)):
        path = tmp_path / f"{stop}.pt"
        assert train(path, stop, False, before) is None
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
        script = TRAINING + f"\nprint(train({str(path)!r}, None, True, {after}))"
        run = subprocess.run(
            [sys.executable, "-c", script],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert run.stdout.strip() == expected


def test_another_dropout_ends_elsewhere():
    """The test above can fail: with another dropout stream the parameters are others."""
    other = TRAINING.replace(
        'registry.stream("dropout", "training")', 'registry.stream("dropout", "other")'
    )
    assert compiled(other)(None, None, False, 0) != compiled(TRAINING)(None, None, False, 0)
