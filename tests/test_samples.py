"""Samples and batches: equal bytes whatever fetches them, and nothing else moves."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from augmented import (
    Augmented,
    Broken,
    Dicts,
    Dies,
    DividedItems,
    InBatches,
    Items,
    Slow,
    draw,
    mixup,
)
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from seedregistry import SeedRegistry
from seedregistry.data import draws_nothing
from seedregistry.errors import (
    EpochRepeatedWarning,
    InvalidOptionError,
    SampleAddressError,
    UndeclaredRandomnessError,
)
from seedregistry.ledger import Built
from seedregistry.testing import assert_rng_untouched


def make(data=None, *, seed=42, scheme="sha256-31", **kwargs):
    options = {"batch_size": 4, "shuffle": True, **kwargs}
    registry = SeedRegistry(seed, scheme=scheme)
    return registry.dataloader(
        Augmented() if data is None else data, instance_id="training", **options
    )


def epochs(loader, count=2) -> list:
    return [[batch.numpy().tobytes() for batch in loader] for _ in range(count)]


def rows(loader) -> dict:
    return {int(row[0]): tuple(row.tolist()) for batch in loader for row in batch}


@pytest.fixture(scope="module", params=["sha256-31", "sha256-256"])
def reference(request):
    """Two epochs of mixed-up batches, fetched in this process."""
    return request.param, epochs(make(scheme=request.param, collate_fn=mixup))


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 1},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 3, "prefetch_factor": 8},
        {"num_workers": 2, "prefetch_factor": 1, "pin_memory": False},
    ],
    ids=str,
)
def test_equal_over_workers(reference, options):
    """Two epochs of batches are equal bytes for every number of workers, persistent or not, and
    every prefetch factor."""
    scheme, expected = reference
    loader = make(scheme=scheme, collate_fn=mixup, **options)
    assert epochs(loader) == expected
    assert loader.epoch == 2


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_equal_over_start_methods(method):
    """Two epochs of batches are equal bytes for every start method of the workers."""
    options = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": method}
    assert epochs(make(collate_fn=mixup, **options)) == epochs(make(collate_fn=mixup))


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
def test_pinning_changes_nothing():
    """pin_memory changes no value."""
    assert epochs(make(pin_memory=True, num_workers=1)) == epochs(make())


@pytest.mark.parametrize("scheme", ["sha256-31", "sha256-256"])
def test_equal_over_batch_sizes(scheme):
    """A sample of an epoch has the same values at every batch size and with both settings of
    drop_last."""
    expected = rows(make(scheme=scheme))
    assert len(expected) == 23
    for batch_size in (1, 3, 7, 23, 50):
        assert rows(make(scheme=scheme, batch_size=batch_size)) == expected
    kept = rows(make(scheme=scheme, batch_size=5, drop_last=True))
    assert len(kept) == 20
    assert kept.items() <= expected.items()
    single = make(scheme=scheme, batch_size=None)
    assert {int(row[0]): tuple(row.tolist()) for row in single} == expected


@pytest.mark.parametrize("scheme", ["sha256-31", "sha256-256"])
def test_a_sample_is_what_its_scope_gives(scheme):
    """Sample i of epoch e is dataset[i] in the scope of ("sample", e, i), and the k-th
    repetition in ("sample", e, i, k)."""
    data = Augmented(5)
    registry = SeedRegistry(42, scheme=scheme)
    loader = registry.dataloader(data, instance_id="training", shuffle=True, global_batch_size=4)
    stream = registry.stream("dataloader", "training")
    order = loader.indices(1).tolist()
    got = torch.cat([batch for _, batch in loader.steps(1)])
    for position, (index, row) in enumerate(zip(order, got)):
        coordinates = ("sample", 1, index) if position < 5 else ("sample", 1, index, 1)
        with stream.at(*coordinates).scope():
            expected = data[index]
        assert torch.equal(row, expected)
    assert len(order) == 8
    assert order[5:] == order[:3]
    assert not torch.equal(got[5], got[0])


def test_a_batch_is_what_its_scope_gives():
    """What a collate function draws is that of the scope ("collate", e, step, rank)."""
    plain, mixed = make(), make(collate_fn=mixup)
    stream = mixed.stream
    for step, (samples, batch) in enumerate(zip(plain, mixed)):
        with stream.at("collate", 0, step, 0).scope():
            expected = mixup(list(samples))
        assert torch.equal(batch, expected)


def test_epochs_and_runs_differ():
    """Epochs differ in order and in augmentation; runs of neighbouring seeds share neither under
    the indexed order."""
    loader = make(order="indexed")
    one, two = rows(loader), rows(loader)
    assert loader.indices(0).tolist() != loader.indices(1).tolist()
    assert all(one[i][1:] != two[i][1:] for i in one)
    other = make(seed=43, order="indexed")
    zero = rows(other)
    assert other.indices(0).tolist() != loader.indices(1).tolist()
    assert all(zero[i][k] != two[i][k] for i in two for k in (1, 2, 3))
    values = [value for run in (one, two, zero) for row in run.values() for value in row[1:]]
    assert len(set(values)) == len(values)


def test_libraries_have_words_of_their_own():
    """Within a sample no library repeats another's draws."""
    assert all(len(set(row)) == 4 for row in rows(make()).values())


@pytest.mark.parametrize(
    "data", [InBatches(), Subset(Augmented(), range(23)), ConcatDataset([Augmented()])], ids=type
)
def test_kinds_of_datasets(data):
    """__getitems__, Subset and ConcatDataset give the samples that the dataset itself gives."""
    assert rows(make(data)) == rows(make())
    assert rows(make(data, num_workers=2)) == rows(make())


def test_dicts_and_tuples():
    """Samples of any structure pass through."""
    expected = rows(make())
    for workers in (0, 1):
        for batch in make(Dicts(), num_workers=workers):
            assert [tuple(row) for row in batch["x"][0].tolist()] == [
                expected[i] for i in batch["i"].tolist()
            ]


def test_nothing_changes_a_training_batch():
    """Validation, peeks, abandoned iterators, zip, other loaders and models change no batch, and
    no default generator moves."""
    expected = epochs(make(num_workers=0), 3)
    with assert_rng_untouched():
        registry = SeedRegistry(42)
        loader = registry.dataloader(
            Augmented(), instance_id="training", batch_size=4, shuffle=True
        )
        validation = registry.dataloader(
            Augmented(), instance_id="validation", batch_size=4, num_workers=1
        )
        got = []
        for epoch in range(3):
            next(iter(loader))
            iter(loader)
            list(validation)
            registry.dataloader(Augmented(), instance_id=f"other {epoch}", shuffle=True)
            registry.model(torch.nn.Linear, 3, 3, instance_id=f"other {epoch}")
            got.append([])
            for batch in loader:
                got[-1].append(batch.numpy().tobytes())
                next(iter(validation))
                loader.batch(7, 1)
    assert got == expected


def test_the_epoch_rule():
    """Each line of the rule: when the epoch goes up, when it repeats, and when that is said."""
    loader = make()
    expected = epochs(make(), 4)
    batches = iter(loader)
    for k in range(len(loader)):
        assert loader.epoch == 0
        assert next(batches).numpy().tobytes() == expected[0][k]
    assert loader.epoch == 1
    assert next(batches, None) is None
    next(iter(loader))  # one batch: a peek, without a warning
    assert epochs(loader, 1) == expected[1:2]
    for _ in zip(range(3), loader):
        pass
    assert loader.epoch == 2
    with pytest.warns(EpochRepeatedWarning, match=r"Epoch 2 .* after 3 batches") as caught:
        again = epochs(loader, 1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert again == expected[2:3]
    assert [batch.numpy().tobytes() for _, batch in loader.steps(1)] == expected[1]
    assert loader.epoch == 2
    for _ in zip(range(3), loader.steps(2)):
        pass
    assert [batch.numpy().tobytes() for _, batch in loader.steps(2)] == expected[
        2
    ]  # said by name: no warning
    loader.epoch = 3
    assert epochs(loader, 1) == expected[3:4]
    repeating = make(epochs="repeat")
    for _ in zip(range(3), repeating):
        pass
    assert epochs(repeating, 2) == [expected[0], expected[0]]
    assert repeating.epoch == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_which_epoch_it_is_is_decided_at_the_first_batch(num_workers):
    """The epoch that is set between iter() and the first next() is the one that comes: frameworks
    do it in that order. After the first batch a change is the next iterator's."""
    loader = make(num_workers=num_workers)
    expected = epochs(make(), 6)
    batches = iter(loader)
    loader.set_epoch(3)
    got = [next(batches).numpy().tobytes()]
    loader.epoch = 5
    got += [batch.numpy().tobytes() for batch in batches]
    assert got == expected[3]
    assert loader.epoch == 5
    assert epochs(loader, 1) == expected[5:]


def test_an_epoch_that_was_named_stays():
    """steps(epoch) is that epoch, whatever moves the loader before its first batch."""
    loader = make()
    expected = epochs(make(), 3)
    second, first = loader.steps(2), loader.steps(1)
    loader.set_epoch(0)
    assert [batch.numpy().tobytes() for _, batch in first] == expected[1]
    assert [batch.numpy().tobytes() for _, batch in second] == expected[2]
    with pytest.raises(InvalidOptionError):
        loader.steps(-1)  # at once, not at the first batch


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_validation_loader_measures_alike(num_workers):
    """With validation=True each pass is the same, also when a framework counts its epochs; by name
    another epoch can be had."""
    expected = epochs(make(), 3)
    loader = make(validation=True, num_workers=num_workers)
    got = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        loader.sampler_of_epochs.set_epoch(epoch)
        got += epochs(loader, 1)
    assert got == expected[:1] * 3
    for _ in zip(range(2), loader):  # left early: no warning, since it repeats anyway
        pass
    assert epochs(loader, 1) == expected[:1]
    assert [batch.numpy().tobytes() for _, batch in loader.steps(2)] == expected[2]
    loader.epoch = 1
    assert epochs(loader, 2) == expected[1:2] * 2
    with pytest.raises(InvalidOptionError, match="validation must be True or False; got 1"):
        make(validation=1)


def test_the_ledger_knows_a_validation_loader():
    """The entry of a loader says that it validates, and that of another is what it was."""
    registry = SeedRegistry(42)
    registry.dataloader(range(4), instance_id="a", validation=True)
    registry.dataloader(range(4), instance_id="b")
    described = [dict(entry.description) for entry in registry.ledger if isinstance(entry, Built)]
    assert [description.get("validation") for description in described] == [True, None]


def test_passes_that_nobody_named_are_not_repeated_in_silence():
    """Where a loader is iterated several times for one set_epoch, and the next set_epoch takes it
    back to one of these passes, a warning says so, once; told pass by pass there is none."""
    loader = make()
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs(loader, 1)
    loader.set_epoch(2)
    loader.set_epoch(2)
    epochs(loader, 1)
    loader.set_epoch(0)  # back, to what was named
    epochs(loader, 1)
    next(iter(loader))  # begins epoch 1
    with pytest.warns(EpochRepeatedWarning, match=r"set_epoch\(1\) repeats .* set_epoch\(0\)"):
        loader.set_epoch(1)
    epochs(loader, 2)
    loader.set_epoch(3)
    loader.epoch = 2  # assigned: by the user's own word
    epochs(loader, 2)
    loader.set_epoch(2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_access(num_workers):
    """batch(e, step) and indices(e, step) are what iteration gives, and move nothing."""
    loader = make(collate_fn=mixup, num_workers=num_workers)
    with assert_rng_untouched():
        assert [loader.batch(1, k).numpy().tobytes() for k in range(6)] == epochs(
            make(collate_fn=mixup)
        )[1]
        assert (
            torch.cat([loader.indices(1, k) for k in range(6)]).tolist()
            == loader.indices(1).tolist()
        )
    assert loader.indices(1).dtype == torch.int64
    assert loader.epoch == 0
    for bad in ((0, 6), (0, -1), (-1, 0), (0, 1.5), (0, True)):
        with pytest.raises(ValueError, match=r"step|epoch"):
            loader.batch(*bad)
    kept = loader.indices(0)
    kept[0] = 99
    assert loader.indices(0)[0] != 99


def test_plain_indices_are_refused():
    """An index without an address is a typed error with the way out, never epoch 0; so are
    samples for a collate function."""
    loader = make(collate_fn=mixup)
    with assert_rng_untouched():
        for bad in (3, "a", None, (1, 2), torch.tensor(1)):
            with pytest.raises(SampleAddressError, match=r"loader\.dataset\.dataset\[i\]"):
                loader.dataset[bad]
        with pytest.raises(SampleAddressError, match=r"loader\.batch"):
            loader.dataset.__getitems__([1, 2])
        with pytest.raises(SampleAddressError, match=r"loader\.collate_fn\.collate_fn"):
            loader.collate_fn([torch.zeros(4)] * 3)
    assert len(loader.dataset) == 23
    assert loader.dataset.size == 23  # what the wrapper does not have, it asks the dataset for
    assert not hasattr(loader.dataset, "nothing")


def test_datasets_that_draw_nothing():
    """TensorDataset, lists and declared datasets are not seeded, and a declaration that is not
    true is an error."""

    class Declared(Augmented):
        draws_random_numbers = False

    class Quiet(Declared):
        def __getitem__(self, index):
            return index

    data = TensorDataset(torch.arange(5))
    assert draws_nothing(data)
    assert draws_nothing([1, 2])
    assert draws_nothing(Subset(ConcatDataset([data, data]), [1, 7]))
    assert draws_nothing(Quiet())
    assert not draws_nothing(Augmented())
    assert not draws_nothing(Subset(Augmented(), [1]))
    assert [batch.tolist() for batch in make(Quiet(5), shuffle=False)] == [[0, 1, 2, 3], [4]]
    with assert_rng_untouched(), pytest.raises(
        UndeclaredRandomnessError, match="drew from numpy, python, torch"
    ):
        list(make(Declared()))
    with pytest.raises(UndeclaredRandomnessError):
        list(make(Declared(), batch_size=None))


def test_iterable_datasets():
    """Items repeat from run to run, differ between epochs and workers, and move nothing in this
    process."""

    def run(data, **kwargs):
        loader = SeedRegistry(42).dataloader(data, instance_id="x", batch_size=2, **kwargs)
        return [torch.cat(list(loader)) for _ in range(2)]

    with assert_rng_untouched():
        one = run(Items())
        assert all(torch.equal(a, b) for a, b in zip(one, run(Items())))
    assert all(torch.equal(a, b) for a, b in zip(one, run(Items(), num_workers=1)))
    assert all(
        torch.equal(a, b) for a, b in zip(one, run(Items(), num_workers=1, persistent_workers=True))
    )
    assert not set(one[0][:, 2].tolist()) & set(one[1][:, 2].tolist())
    two = run(Items(), num_workers=2)[0]
    assert len(two) == 22
    assert len(set(two[:, 2].tolist())) == 22
    divided = [run(DividedItems(), num_workers=workers) for workers in (0, 1, 2, 3)]
    for got in divided[1:]:
        for a, b in zip(divided[0], got):
            assert sorted(map(tuple, a.tolist())) == sorted(map(tuple, b.tolist()))


def test_iterable_datasets_and_collate_functions():
    """A collate function draws from the position of the batch's first item."""

    def run(workers):
        loader = SeedRegistry(42).dataloader(
            Items(), batch_size=3, collate_fn=mixup, num_workers=workers
        )
        return [batch.numpy().tobytes() for batch in loader]

    assert run(0) == run(1)
    assert len(set(run(0))) == 4
    loader = SeedRegistry(42).dataloader(Items(), batch_size=11, collate_fn=draw, num_workers=2)
    assert (
        len(set(loader)) == 2
    )  # workers that yield the same items do not repeat each other's draws


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataset_that_raises(num_workers):
    """A dataset's exception is its own, and the generators are as before."""
    with assert_rng_untouched(), pytest.raises(ValueError, match="broken sample"):
        list(make(Broken(), num_workers=num_workers))


def test_a_worker_that_dies():
    """A worker that dies gives torch's own error, and the generators are as before."""
    with assert_rng_untouched(), pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(make(Dies(), num_workers=1))


def test_a_worker_that_times_out():
    """A worker that takes too long gives torch's own error, and the generators are as before."""
    with assert_rng_untouched(), pytest.raises(RuntimeError, match="timed out"):
        list(make(Slow(), num_workers=1, timeout=1))


def test_frameworks_can_make_the_loader_again():
    """A loader made from the attributes of ours has its order and samples: with its class, and
    as a plain DataLoader."""
    loader = make(collate_fn=mixup)
    expected = epochs(make(collate_fn=mixup))
    options = {
        "dataset": loader.dataset,
        "collate_fn": loader.collate_fn,
        "generator": loader.generator,
    }
    again = type(loader)(sampler=loader.sampler, batch_size=loader.batch_size, **options)
    assert epochs(again) == expected
    loader.epoch = 1
    assert epochs(DataLoader(batch_sampler=loader.batch_sampler, **options), 1) == expected[1:]
    assert epochs(DataLoader(sampler=loader.sampler, batch_size=4, **options), 1) == expected[1:]
    rebuilt = type(loader.batch_sampler)(loader.sampler, batch_size=4, drop_last=False)
    loader.epoch = 0
    assert epochs(type(loader)(batch_sampler=rebuilt, **options), 1) == expected[:1]
    with pytest.raises(ValueError, match=r"registry\.dataloader"):
        type(loader)(Augmented(), batch_size=4)


def test_the_collate_function_is_left_alone_where_it_draws_nothing():
    """torch's own collate function stays in its place; so does the dataset, one step behind."""
    loader = make()
    assert loader.collate_fn is default_collate
    assert isinstance(loader.dataset.dataset, Augmented)
    built = BatchSampler(SequentialSampler(range(4)), 2, drop_last=False)
    assert [
        batch.tolist()
        for batch in make([1, 2, 3, 4], shuffle=False, batch_size=1, batch_sampler=built)
    ] == [
        [1, 2],
        [3, 4],
    ]


def test_the_state_of_this_process_is_put_back_once_a_batch():
    """In this process a batch is one scope: the caller's draws between batches go on as if
    nothing had been fetched."""
    state = random.Random(3), np.random.RandomState(3)
    captured = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.setstate(state[0].getstate())
        np.random.set_state(state[1].get_state())
        torch.default_generator.manual_seed(3)  # torch.manual_seed would move a GPU's too
        expected = torch.Generator().manual_seed(3)
        for _ in make():
            assert random.random() == state[0].random()
            assert np.random.rand() == state[1].rand()
            assert torch.equal(torch.rand(2), torch.rand(2, generator=expected))
    finally:
        random.setstate(captured[0])
        np.random.set_state(captured[1])
        torch.set_rng_state(captured[2])
