"""The loader: the documented order, every argument kept, generators of its own."""

from __future__ import annotations

import functools
import inspect

import attrs
import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from seedregistry import SeedRegistry, create_deterministic_dataloader
from seedregistry.data.options import OPTION_NAMES, LoaderOptions
from seedregistry.errors import (
    ComponentCreationError,
    EpochRepeatedWarning,
    FactorySignatureError,
    InvalidOptionError,
)
from seedregistry.ledger import Built

TEN = TensorDataset(torch.arange(10))
EPOCHS = [[8, 9, 5, 2, 3, 0, 4, 6, 7, 1], [2, 0, 4, 6, 5, 3, 9, 8, 7, 1]]


def order(loader) -> list:
    return [int(i) for (batch,) in loader for i in batch]


def make(**kwargs):
    options = {"batch_size": 3, "shuffle": True, **kwargs}
    return SeedRegistry(42).dataloader(TEN, instance_id="training", **options)


class Noisy(Dataset):
    """Draws from torch and NumPy in every item."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(
            [float(index), torch.rand(1).item(), np.random.rand()], dtype=torch.float64
        )


class Counting(IterableDataset):
    def __iter__(self):
        return iter(range(7))


def test_epochs_advance():
    """Plain iteration runs the documented orders one after the other."""
    loader = make()
    assert isinstance(loader, DataLoader)
    assert [order(loader), order(loader)] == EPOCHS
    assert loader.epoch == 2
    loader.epoch = 0
    assert order(loader) == EPOCHS[0]
    loader.set_epoch(1)
    assert order(loader) == EPOCHS[1]


def test_the_full_width_scheme_hashes_its_order():
    """Under sha256-256 the order is randperm with the generator of the position (epoch,), and
    shares none with a neighbour."""
    registry = SeedRegistry(42, scheme="sha256-256")
    loader = registry.dataloader(TEN, instance_id="training", shuffle=True)
    stream = registry.stream("dataloader", "training")
    for epoch in range(3):
        assert order(loader) == torch.randperm(10, generator=stream.at(epoch).generator()).tolist()
    assert dict(registry.ledger.find(Built)[0].description)["order"] == "hashed"
    documented = create_deterministic_dataloader(
        registry, DataLoader, "training", dataset=TEN, shuffle=True
    )
    assert (
        order(documented)
        == torch.randperm(10, generator=torch.Generator().manual_seed(stream.seed)).tolist()
    )


def test_epochs_repeat_when_told_to():
    """With epochs="repeat" an epoch is the same until told otherwise."""
    loader = make(epochs="repeat")
    assert order(loader) == order(loader) == EPOCHS[0]
    assert loader.epoch == 0


def test_the_epoch_ends_with_its_last_batch():
    """The epoch goes up when the last batch has been handed out, not before; an iterator left
    early changes nothing."""
    loader = make()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    assert loader.epoch == 0
    next(batches)
    assert loader.epoch == 1
    next(iter(loader))
    assert loader.epoch == 1
    for _ in zip(range(2), loader):
        pass
    with pytest.warns(EpochRepeatedWarning, match="after 2 batches"):
        again = order(loader)
    assert again == EPOCHS[1]


def test_steps():
    """steps(e) runs epoch e with the step that each batch has."""
    loader = make()
    steps = list(loader.steps(1))
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert [int(i) for _, (batch,) in steps for i in batch] == EPOCHS[1]
    assert loader.epoch == 2
    for bad in (-1, 1.5, True, "1"):
        with pytest.raises(InvalidOptionError):
            loader.set_epoch(bad)


def test_without_shuffle_the_order_is_the_datasets():
    """shuffle=False is the order of the dataset, and so is the default."""
    assert order(make(shuffle=False)) == list(range(10))
    assert order(SeedRegistry(42).dataloader(TEN)) == list(range(10))
    assert order(make(drop_last=True)) == EPOCHS[0][:9]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_leaks(num_workers):
    """Building, iterating and abandoning a loader moves no global generator and no other loader."""
    registry = SeedRegistry(42)
    loader = registry.dataloader(
        TEN, instance_id="training", shuffle=True, num_workers=num_workers, batch_size=5
    )
    other = registry.dataloader(
        TEN, instance_id="validation", shuffle=True, num_workers=num_workers
    )
    next(iter(other))
    assert order(loader) == EPOCHS[0]
    order(other)
    registry.dataloader(TEN, instance_id="third", shuffle=True)
    assert order(loader) == EPOCHS[1]


def test_workers_are_seeded_from_the_stream():
    """What a dataset draws in worker processes repeats from run to run, differs from epoch to
    epoch and between loaders."""

    def run(instance_id) -> list:
        loader = SeedRegistry(42).dataloader(
            Noisy(), instance_id=instance_id, batch_size=4, num_workers=2, shuffle=True
        )
        return [torch.cat(list(loader)) for _ in range(2)]

    first, again, other = run("training"), run("training"), run("validation")
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0][:, 1:], first[1][:, 1:])
    assert not set(first[0][:, 1].tolist()) & set(other[0][:, 1].tolist())
    assert not set(first[0][:, 1].tolist()) & set(first[0][:, 2].tolist())


def test_an_abandoned_iterator_changes_no_worker():
    """A peek into the loader does not shift what workers draw in the epochs after it."""
    loaders = [
        SeedRegistry(42).dataloader(Noisy(), instance_id="x", batch_size=4, num_workers=1)
        for _ in range(2)
    ]
    next(iter(loaders[0]))
    assert torch.equal(torch.cat(list(loaders[0])), torch.cat(list(loaders[1])))


def collate(samples):
    return (torch.stack([sample[0] for sample in samples]),)


def init(worker_id):
    pass


@pytest.mark.parametrize("source", ["dataset", "factory", "partial"])
def test_every_argument_is_kept(source):
    """All arguments of the dataset's loader or of the factory's loader are those of ours."""
    options = {
        "batch_size": 4,
        "shuffle": True,
        "num_workers": 2,
        "collate_fn": collate,
        "drop_last": True,
        "timeout": 30,
        "worker_init_fn": init,
        "prefetch_factor": 3,
        "persistent_workers": True,
        "pin_memory": False,
        "multiprocessing_context": "spawn",
    }
    registry = SeedRegistry(42)
    if source == "dataset":
        loader = registry.dataloader(TEN, instance_id="training", **options)
    elif source == "factory":
        loader = registry.dataloader(lambda: DataLoader(TEN, **options), instance_id="training")
    else:
        loader = registry.dataloader(
            functools.partial(DataLoader, TEN), instance_id="training", **options
        )
    assert loader.collate_fn.collate_fn is collate
    for name in (
        "batch_size",
        "num_workers",
        "drop_last",
        "timeout",
        "worker_init_fn",
        "prefetch_factor",
        "persistent_workers",
    ):
        assert getattr(loader, name) == options[name]
    assert loader.dataset.dataset is TEN
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    if "in_order" in DataLoader.__init__.__code__.co_varnames:
        assert registry.dataloader(TEN, instance_id="o", in_order=False).in_order is False


def test_the_factorys_setting_is_read():
    """registry.dataloader reads from the factory's sampler whether it shuffles."""
    for shuffle in (True, False):
        loader = SeedRegistry(42).dataloader(
            lambda shuffle=shuffle: DataLoader(TEN, batch_size=3, shuffle=shuffle),
            instance_id="training",
        )
        assert order(loader) == (EPOCHS[0] if shuffle else list(range(10)))
    first = make()
    again = SeedRegistry(42).dataloader(lambda: first, instance_id="training")
    assert order(again) == EPOCHS[0]
    unbatched = SeedRegistry(42).dataloader(
        lambda: DataLoader(TEN, batch_size=None, shuffle=True), instance_id="training"
    )
    assert [int(sample[0]) for sample in unbatched] == EPOCHS[0]


def test_generator_is_refused():
    """generator= beside a dataset is refused with the reason; None is as if it was not there."""
    with pytest.raises(InvalidOptionError, match=r"generator=.*stream"):
        SeedRegistry(42).dataloader(TEN, generator=torch.Generator())
    for name in ("generator", "sampler", "batch_sampler"):
        assert order(SeedRegistry(42).dataloader(TEN, **{name: None})) == list(range(10))


def test_bad_sources():
    """A built loader, something that is no dataset or factory, a factory that returns no loader:
    typed errors."""
    registry = SeedRegistry(42)
    with pytest.raises(FactorySignatureError, match="cannot be taken over"):
        registry.dataloader(DataLoader(TEN))
    with pytest.raises(FactorySignatureError, match="class or a function"):
        registry.dataloader(3)
    with pytest.raises(FactorySignatureError, match="returned a list"):
        registry.dataloader(lambda: [1])
    with pytest.raises(FactorySignatureError, match="no parameter batchsize"):
        registry.dataloader(TEN, batchsize=3)
    with pytest.raises(InvalidOptionError, match="'advance', 'repeat'"):
        registry.dataloader(TEN, epochs="once")
    with pytest.raises(FactorySignatureError, match=r"epochs.*functools\.partial"):
        registry.dataloader(lambda epochs: DataLoader(TEN))
    with pytest.raises(ComponentCreationError):
        registry.dataloader(TEN, batch_size=-1)


def test_the_registry_takes_the_options_of_a_loader():
    """registry.dataloader has a keyword for each option of a loader, with that option's default."""
    parameters = inspect.signature(SeedRegistry.dataloader).parameters
    for field in attrs.fields(LoaderOptions):
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[field.name].default == field.default
    named = {name for name, taken in parameters.items() if taken.kind is taken.KEYWORD_ONLY}
    assert named - {"instance_id"} == OPTION_NAMES


def test_iterable_datasets():
    """An iterable dataset is iterated in its own order, is marked as not exactly resumable, and
    cannot be shuffled."""
    registry = SeedRegistry(42)
    loader = registry.dataloader(Counting(), instance_id="a", batch_size=3)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5], [6]]
    assert loader.epoch == 1
    loader.epoch = 5
    assert len(list(loader.steps(7))) == 3
    assert loader.epoch == 8
    (built,) = registry.ledger.find(Built)
    assert dict(built.description)["warning"] == "not exactly resumable"
    with pytest.raises(InvalidOptionError, match="iterable"):
        registry.dataloader(Counting(), instance_id="b", shuffle=True)


def test_the_ledger_has_the_definition_of_the_order():
    """The entry has length, batch size and order; worker counts are not in it."""
    digests = []
    for num_workers in (0, 2):
        registry = SeedRegistry(42)
        registry.dataloader(
            TEN, instance_id="training", batch_size=4, shuffle=True, num_workers=num_workers
        )
        description = dict(registry.ledger.find(Built)[0].description)
        assert description["samples"] == 10
        assert description["order"] == "documented"
        digests.append(registry.ledger.digest)
    assert digests[0] == digests[1]


def test_subsets_and_lists_are_datasets():
    """Anything with __getitem__ on its instance is a dataset."""
    registry = SeedRegistry(42)
    assert [int(x) for x in registry.dataloader([3, 1, 2], instance_id="list")] == [3, 1, 2]
    assert order(registry.dataloader(Subset(TEN, [1, 3]), instance_id="subset")) == [1, 3]


def test_a_worker_that_raises():
    """A worker's exception is torch's own error, and the main process's generators are as
    before."""

    class Broken(Noisy):
        def __getitem__(self, index):
            raise ValueError("broken sample")

    loader = SeedRegistry(42).dataloader(Broken(), num_workers=1)
    with pytest.raises(ValueError, match="broken sample"):
        list(loader)
    assert loader.epoch == 0
