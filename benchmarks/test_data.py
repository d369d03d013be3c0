"""The data layer: orders, seeding of samples, throughput of epochs, each against torch's own
loader."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
import torch
from harness import in_turn, on_a_short_stack, report
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from seedregistry import SeedRegistry

LARGE = 10**7
HUGE = 10**12


class Sized(Dataset):
    """A dataset of which only the length is asked."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Quiet(Sized):
    draws_random_numbers = False


class Images(Dataset):
    """Images of 64 x 64 made here, with pillow's random crop, flip and jitter: about 400 us a
    sample."""

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(0)
        arrays = rng.integers(0, 256, (size, 80, 80, 3), dtype=np.uint8)
        self.images = [Image.fromarray(array) for array in arrays]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        side = random.randint(56, 80)
        left, top = random.randint(0, 80 - side), random.randint(0, 80 - side)
        image = (
            self.images[index]
            .crop((left, top, left + side, top + side))
            .resize((64, 64), Image.Resampling.BILINEAR)
        )
        if torch.rand(()).item() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(0.6 + 0.8 * np.random.rand())
        hue, *others = image.convert("HSV").split()
        shift = random.randint(-12, 12)
        image = Image.merge(
            "HSV", [hue.point(lambda value: (value + shift) % 256), *others]
        ).convert("RGB")
        return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)


def drain(iterable) -> None:
    collections.deque(iterable, maxlen=0)


@pytest.mark.parametrize("order", ["documented", "hashed", "indexed"])
@pytest.mark.parametrize("what", ["in batches", "one by one"])
def test_order(benchmark, order, what):
    loader = SeedRegistry(42).dataloader(
        Sized(LARGE), instance_id="x", batch_size=256, shuffle=True, order=order
    )
    peer = RandomSampler(Sized(LARGE), generator=torch.Generator())
    measured = loader.batch_sampler if what == "in batches" else loader.sampler
    epochs = iter(range(1, 100))

    def next_epoch() -> tuple:
        loader.epoch = next(epochs)  # so that nothing comes from the cache of an epoch
        return (), ()

    times = in_turn(
        lambda: drain(measured), lambda: drain(peer), rounds=3, calls=1, prepare=next_epoch
    )
    report(
        benchmark,
        f"order of 10**7 samples, addresses and all, {what} ({order})",
        *times,
        peer_name="iterating `RandomSampler`",
        target="<= 0.8 x",
    )


def test_entering_a_huge_epoch(benchmark):
    loader = SeedRegistry(42).dataloader(
        Quiet(HUGE), instance_id="x", batch_size=256, shuffle=True, order="indexed"
    )
    state = {**loader.state_dict(), "batches_yielded": HUGE // 512}
    epochs = iter(range(7, 1000))

    def measured() -> None:
        epoch = next(epochs)
        loader.load_state_dict({**state, "epoch": epoch})
        next(loader.steps(epoch))

    times = in_turn(measured, lambda: None, rounds=20, calls=1)
    report(
        benchmark,
        'first batch from the middle of an epoch of 10**12 (`"indexed"`)',
        *times,
        peer_name="nothing",
        target="<= +5 ms",
        kind="added",
    )


@pytest.mark.parametrize(
    ("scheme", "target"), [("sha256-31", "<= +10 us"), ("sha256-256", "<= +25 us")]
)
def test_seeding_a_sample(benchmark, scheme, target):
    loader = SeedRegistry(42, scheme=scheme).dataloader(
        Sized(1024), instance_id="x", batch_size=256
    )
    quiet = SeedRegistry(42, scheme=scheme).dataloader(Quiet(1024), instance_id="x", batch_size=256)
    batches = [loader.sampler.addresses(0, step) for step in range(4)]

    def fetch(dataset):
        def body() -> None:
            for batch in batches:
                dataset.__getitems__(batch)

        return body

    times = in_turn(fetch(loader.dataset), fetch(quiet.dataset), rounds=30, calls=1024)
    report(
        benchmark,
        f"seeding a sample for all libraries ({scheme})",
        *times,
        peer_name="a sample that draws nothing",
        target=target,
        kind="added",
    )


def digits() -> TensorDataset:
    found = load_digits()
    return TensorDataset(torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target))


PIPELINES = {
    "digits as a TensorDataset": (digits, 64, 12),
    "augmented images": (lambda: Images(1024), 64, 4),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("pipeline", "scheme"),
    [
        ("digits as a TensorDataset", "sha256-31"),
        ("augmented images", "sha256-31"),
        ("augmented images", "sha256-256"),
    ],
)
def test_epochs(benchmark, pipeline, scheme, workers):
    make, batch_size, rounds = PIPELINES[pipeline]
    data = make()
    options = {
        "batch_size": batch_size,
        "shuffle": True,
        "num_workers": workers,
        "persistent_workers": workers > 0,
    }
    loader = SeedRegistry(42, scheme=scheme).dataloader(data, instance_id="x", **options)
    peer = DataLoader(data, generator=torch.Generator(), **options)
    on_a_short_stack(lambda: (drain(loader), drain(peer)))  # workers start here
    times = in_turn(
        lambda: drain(loader), lambda: drain(peer), rounds=rounds, calls=len(data), collects=False
    )
    is_heavy = pipeline == "augmented images"
    report(
        benchmark,
        f"a sample of an epoch, {pipeline}, {workers} workers ({scheme})",
        *times,
        peer_name="`DataLoader(shuffle=True)`",
        target="<= +3 %" if is_heavy and scheme == "sha256-31" else "",
        kind="percent",
    )
