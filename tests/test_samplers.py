"""Samplers of the user's: a function of (stream, epoch), or an error that says how to get there."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from augmented import Augmented, Items
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from seedregistry import DeterministicSampler, SeedRegistry
from seedregistry.data import find_generators
from seedregistry.errors import (
    DatasetGeneratorWarning,
    InvalidOptionError,
    UnrepeatableSamplerError,
)
from seedregistry.ledger import EpochStarted, Warned
from seedregistry.testing import assert_rng_untouched

N = 12


class Shuffled(Sampler):
    """Draws from the default generators of python and NumPy."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return N

    def __iter__(self):
        order = list(range(N))
        random.shuffle(order)
        return iter(np.random.permutation(order).tolist())


class Own(Shuffled):
    """Holds a generator that goes on from epoch to epoch."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.rng.permutation(N).tolist())


class Endless(Shuffled):
    __len__ = None


class Keys(Shuffled):
    """Yields keys that are no ints."""

    def __iter__(self):
        return iter([("row", i) for i in torch.randperm(N).tolist()])


class Buckets(Sampler):
    """A batch sampler with batches of different lengths."""

    def __init__(self, sampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return 4

    def __iter__(self):
        order = list(self.sampler)
        return iter([order[:1], order[1:5], order[5:7], order[7:]])


def make(**kwargs):
    return SeedRegistry(42).dataloader(Augmented(N), instance_id="training", **kwargs)


def contents(batches) -> list:
    return [batch.numpy().tobytes() for batch in batches]


SAMPLERS = {
    "weighted": lambda: {"sampler": WeightedRandomSampler([1.0, 5.0] * 6, 20), "batch_size": 3},
    "subset": lambda: {"sampler": SubsetRandomSampler(range(3, 9)), "batch_size": 3},
    "replacement": lambda: {
        "sampler": RandomSampler(range(N), replacement=True, num_samples=30),
        "batch_size": 3,
    },
    "some": lambda: {"sampler": RandomSampler(range(N), num_samples=5), "batch_size": 3},
    "distributed": lambda: {
        "sampler": DistributedSampler(range(N), num_replicas=2, rank=1, seed=3),
        "batch_size": 3,
    },
    "own": lambda: {"sampler": Shuffled(), "batch_size": 3},
    "list": lambda: {"sampler": [3, 1, 2], "batch_size": 2},
    "batches": lambda: {"batch_sampler": BatchSampler(RandomSampler(range(N)), 5, drop_last=True)},
    "buckets": lambda: {"batch_sampler": Buckets(RandomSampler(range(N)))},
    "buckets of weights": lambda: {"batch_sampler": Buckets(WeightedRandomSampler([1.0] * N, N))},
}
STILL = {"list"}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("by_factory", [False, True], ids=["dataset", "factory"])
def test_samplers_are_functions_of_the_epoch(name, by_factory):
    """A sampler's epochs repeat from run to run and differ, resume in the middle, and move no
    default generator."""

    def build(**extra):
        options = {**SAMPLERS[name](), **extra}
        if by_factory:
            return SeedRegistry(42).dataloader(
                lambda: DataLoader(Augmented(N), **options), instance_id="training"
            )
        return make(**options)

    with assert_rng_untouched():
        loader = build()
        epochs = [contents(loader) for _ in range(2)]
        assert epochs == [
            contents(batch for _, batch in build().steps(epoch)) for epoch in range(2)
        ]
        assert epochs[0] != epochs[1]
        assert (loader.indices(0).tolist() == loader.indices(1).tolist()) is (name in STILL)
        assert contents(b for _, b in build(num_workers=1).steps(1)) == epochs[1]
        state = build().state_dict()
        state["batches_yielded"] = 1
        fresh = build()
        fresh.load_state_dict(state)
        assert contents(fresh) == epochs[0][1:]
        assert len(loader) == len(epochs[0])
        assert loader.batch(1, 1).numpy().tobytes() == epochs[1][1]


def test_a_weighted_sampler_is_torchs_with_the_positions_generator():
    """The indices are those of torch's sampler with the generator of the position (epoch,),
    under every scheme."""
    for scheme in ("sha256-31", "sha256-256"):
        registry = SeedRegistry(42, scheme=scheme)
        sampler = WeightedRandomSampler([1.0, 5.0] * 6, 20)
        loader = registry.dataloader(Augmented(N), instance_id="training", sampler=sampler)
        generator = registry.stream("dataloader", "training").at(3).generator()
        expected = list(WeightedRandomSampler([1.0, 5.0] * 6, 20, generator=generator))
        assert loader.indices(3).tolist() == expected
        assert sampler.generator is None  # the user's object is as it was


def test_a_sample_that_comes_twice_has_two_draws():
    """Each repetition of an index in an epoch has draws of its own."""
    rows = torch.cat(list(make(sampler=[3, 3, 1, 3]))).tolist()
    assert [row[0] for row in rows] == [3, 3, 1, 3]
    assert len({row[1] for row in rows}) == 4


def test_padding_counts_repetitions_on():
    """Where an epoch with repeated indices is padded, the count goes on."""
    loader = make(sampler=[3, 3, 1], global_batch_size=4)
    occurrences = [(address[3], address[4]) for address in loader.sampler]
    assert occurrences == [(3, 0), (3, 1), (1, 0), (3, 2)]


def test_samplers_that_mean_the_loaders_own_order():
    """SequentialSampler and RandomSampler without options are shuffle=False and shuffle=True."""
    assert (
        make(sampler=RandomSampler(range(N))).indices(0).tolist()
        == make(shuffle=True).indices(0).tolist()
    )
    assert make(sampler=SequentialSampler(range(N))).indices(0).tolist() == list(range(N))
    ours = DeterministicSampler(N, seed=5)
    assert (
        SeedRegistry(42)
        .dataloader(lambda: DataLoader(Augmented(N), sampler=ours))
        .state_dict()["order"]
        == "documented"
    )


def test_keys_that_are_no_ints():
    """Samples under other keys draw from their position in the epoch."""

    class Rows(Augmented):
        def __getitem__(self, key):
            return super().__getitem__(key[1])

    def run() -> list:
        loader = SeedRegistry(42).dataloader(
            Rows(N), instance_id="training", sampler=Keys(), batch_size=5
        )
        assert loader.indices(0)[0][0] == "row"
        return contents(loader)

    assert run() == run()


def test_lists_of_indices_as_keys():
    """A batch sampler passed as sampler=, with batch_size=None, makes the dataset fetch its
    batches itself."""

    class Rows(Augmented):
        def __getitem__(self, indices):
            return torch.stack([super(Rows, self).__getitem__(index) for index in indices])

    def run(**extra) -> list:
        sampler = BatchSampler(RandomSampler(range(N)), 5, drop_last=False)
        loader = SeedRegistry(42).dataloader(
            Rows(N), instance_id="training", sampler=sampler, batch_size=None, **extra
        )
        return [contents(loader) for _ in range(2)]

    first = run()
    assert first == run(num_workers=1)
    assert first[0] != first[1]
    assert [len(bytes_) // 32 for bytes_ in first[0]] == [5, 5, 2]


def test_a_loader_of_ours_from_a_factory():
    """A factory's loader that a registry made is made again with its sampler."""
    for name in ("weighted", "buckets"):
        first = make(**SAMPLERS[name]())
        again = SeedRegistry(42).dataloader(lambda first=first: first, instance_id="training")
        assert contents(again) == contents(first)


def test_samplers_that_cannot_be_repeated():
    """A generator that goes on between epochs and a sampler without an end are refused with the
    way out."""
    with pytest.raises(UnrepeatableSamplerError, match=r"sampler\.rng.*set_epoch"):
        make(sampler=Own())
    with pytest.raises(
        UnrepeatableSamplerError, match=r"no length.*stream\.at\(epoch\)\.generator\(\)"
    ):
        make(sampler=Endless())
    with pytest.raises(UnrepeatableSamplerError, match=r"sampler\.sampler\.rng"):
        make(batch_sampler=Buckets(Own()))

    class Liar(Shuffled):
        def __len__(self):
            return 5

    with pytest.raises(UnrepeatableSamplerError, match="said it has 5 indices and drew 12"):
        list(make(sampler=Liar()))


def test_options_that_exclude_each_other():
    """Two things that decide the order are refused, and so is dividing a batch sampler or
    ordering an iterable."""
    sampler, batches = Shuffled(), BatchSampler(RandomSampler(range(N)), 5, drop_last=True)
    for options in (
        {"sampler": sampler, "shuffle": True},
        {"sampler": sampler, "order": "indexed"},
        {"sampler": sampler, "batch_sampler": batches},
        {"batch_sampler": batches, "shuffle": True},
        {"batch_sampler": batches, "shard": True},
        {"batch_sampler": batches, "global_batch_size": 4},
        {"order": "random"},
    ):
        with pytest.raises(InvalidOptionError):
            make(**options)
    for options in (
        {"shuffle": True},
        {"order": "indexed"},
        {"global_batch_size": 4},
        {"sampler": sampler},
    ):
        with pytest.raises(InvalidOptionError, match="iterable"):
            SeedRegistry(42).dataloader(Items(), **options)


# --- generators that a dataset holds --------------------------------------------------------------


class Transform:
    __slots__ = ("gen",)

    def __init__(self) -> None:
        self.gen = torch.Generator()


class Holder(Augmented):
    def __init__(self) -> None:
        super().__init__()
        own = random.Random(3)
        self.transforms = [Transform(), {"noise": np.random.RandomState(0)}, own.random]
        self.shared = np.random.mtrand._rand
        self.again = self.transforms


def test_generators_of_a_dataset_are_reported():
    """Every generator that a dataset holds is named with its path, as a warning and in the
    ledger."""
    registry = SeedRegistry(42)
    with pytest.warns(DatasetGeneratorWarning) as caught:
        registry.dataloader(Holder(), instance_id="x")
    message = str(caught[0].message)
    assert caught[0].filename == __file__
    for path in (
        "dataset.transforms[0].gen (torch._C.Generator)",
        "dataset.transforms[1]['noise'] (numpy.random.mtrand.RandomState)",
        "dataset.transforms[2].__self__ (random.Random)",
    ):
        assert path in message
    assert "shared" not in message
    assert "again" not in message
    assert registry.ledger.find(Warned)[0].category == "DatasetGeneratorWarning"


def test_the_walk_ends():
    """Cycles, large containers, functions and properties that raise do not stop the walk, and
    nothing is called."""

    class Trap:
        @property
        def boom(self):
            raise RuntimeError("called")

    root = Trap()
    root.self = root
    root.many = list(range(10**6))
    root.function = test_the_walk_ends
    root.deep = [[[[np.random.default_rng(1)]]]]
    assert find_generators(root, "r") == [
        ("r.deep[0][0][0][0]", "numpy.random._generator.Generator")
    ]


def test_collate_functions_are_walked_too():
    """A generator in a collate function is reported."""
    own = torch.Generator()

    def collate(samples):
        return own, samples

    with pytest.warns(DatasetGeneratorWarning, match=r"collate_fn\.<own>"):
        make(collate_fn=collate)


# --- the ledger -----------------------------------------------------------------------------------


def test_the_ledger_has_each_epochs_indices():
    """An epoch's indices are digested once, when it starts, alike for workers and ranks; another
    order is another digest."""

    def digests(seed=42, repeats=1, **kwargs) -> list:
        registry = SeedRegistry(seed)
        loader = registry.dataloader(
            Augmented(N), instance_id="training", batch_size=4, shuffle=True, **kwargs
        )
        for _ in range(repeats):
            next(iter(loader))
        list(loader)
        list(loader)
        return [
            (record.epoch, record.indices_digest) for record in registry.ledger.find(EpochStarted)
        ]

    expected = digests()
    assert [epoch for epoch, _ in expected] == [0, 1]
    assert digests(repeats=3, num_workers=1) == expected
    assert digests(shard=(1, 2)) == expected
    assert not set(digests(seed=43)) & set(expected)
    assert not set(digests(order="indexed")) & set(expected)
