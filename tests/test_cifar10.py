"""CIFAR-10: through a stand-in for torchvision's class, and through torchvision itself on small
files in its own format."""

from __future__ import annotations

import hashlib
import pickle
import sys
import types

import attrs
import numpy as np
import pytest
import torch

from seedregistry import SeedRegistry
from seedregistry.attribution import get_cifar10_dataloader, load_cifar10
from seedregistry.attribution.demo import cifar10_plan
from seedregistry.errors import RecipeError

TRAIN, TEST = 40, 10


class FakeCifar10:
    """Stands in for torchvision's class: a few images of its own."""

    def __init__(self, root, *, train, download) -> None:
        assert not download
        count = 30 if train else 10
        self.data = (
            np.arange(count * 32 * 32 * 3, dtype=np.int64)
            .reshape(count, 32, 32, 3)
            .astype(np.uint8)
        )
        self.targets = [i % 10 for i in range(count)]


def test_cifar10(monkeypatch):
    """CIFAR-10 comes as normalised tensors through torchvision, and as the documented loader;
    its absence is said."""
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(RecipeError, match="torchvision"):
        load_cifar10("data")
    datasets = types.ModuleType("torchvision.datasets")
    datasets.CIFAR10 = FakeCifar10
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    inputs, targets = load_cifar10("data")
    assert inputs.shape == (30, 3, 32, 32)
    assert inputs.dtype == torch.float32
    assert targets.tolist()[:3] == [0, 1, 2]
    assert abs(float(inputs.mean())) < 0.5
    loader = SeedRegistry(42).dataloader(
        get_cifar10_dataloader, instance_id="training", batch_size=8
    )
    assert next(iter(loader))[0].shape == (8, 3, 32, 32)
    assert len(get_cifar10_dataloader(split="test", batch_size=5)) == 2
    with pytest.raises(RecipeError, match="split"):
        get_cifar10_dataloader(split="valid")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with files as torchvision unpacks them, a few images in each; torchvision is told
    their checksums."""
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str, count: int) -> list:
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": [i % 10 for i in range(count)]})

    monkeypatch.setattr(
        CIFAR10, "train_list", [batch(f"data_batch_{i}", TRAIN // 5) for i in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", TEST)])
    name, checksum = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return tmp_path


def test_torchvision_reads_its_own_files(root):
    """Through torchvision itself: values, labels and the documented loader; a folder without
    them is named."""
    from torchvision.datasets import CIFAR10

    inputs, targets = load_cifar10(root)
    raw = CIFAR10(str(root))
    assert inputs.shape == (TRAIN, 3, 32, 32)
    assert targets.tolist() == raw.targets
    assert float(inputs[3, 1, 4, 5]) == pytest.approx(
        (raw.data[3, 4, 5, 1] / 255 - 0.4822) / 0.2435, rel=1e-5
    )
    loader = SeedRegistry(42).dataloader(
        get_cifar10_dataloader, root=root, instance_id="training", batch_size=8, split="test"
    )
    assert torch.equal(torch.cat([labels for _, labels in loader]).sort()[0], torch.arange(TEST))
    with pytest.raises(RecipeError, match="nowhere"):
        load_cifar10(root / "nowhere")
    (root / CIFAR10.base_folder / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(RecipeError, match="damaged"):
        load_cifar10(root)


def test_the_demonstration_on_cifar10(root, tmp_path):
    """The whole job runs on images in colour, at small width: training, metagradients,
    retrainings, report."""
    pytest.importorskip("matplotlib")
    from seedregistry.attribution.demo import run_demo

    def plan(registry):
        whole = cifar10_plan(registry, root, width=4)
        return attrs.evolve(
            whole,
            recipe=attrs.evolve(
                whole.recipe, epochs=2, batch_size=8, dtype=torch.float64, threads=1
            ),
            targets=3,
            fractions=(0.1,),
            subsets=6,
            ablation_fractions=(0.1,),
            ablation_subsets=2,
        )

    demo = run_demo(tmp_path / "out", plan=plan)
    assert demo.attribution.scores.shape == (3, TRAIN)
    assert torch.isfinite(demo.attribution.scores).all()
    assert demo.scores["MAGIC"][0].mean > 0.8
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
