"""Data for attribution: scikit-learn's digits, and CIFAR-10 through torchvision."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Sequence, Tuple, Union

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from seedregistry.errors import RecipeError

if TYPE_CHECKING:
    from seedregistry.registry import SeedRegistry

_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2470, 0.2435, 0.2616)

Pair = Tuple[torch.Tensor, torch.Tensor]


class ReloadableTensors(TensorDataset):
    """Tensors that travel as the call that loads them.

    This is for data too large to be sent to every process of a cluster. With
    ``Recipe(dataset=ReloadableTensors(load_cifar10, root))`` each process that retrains calls
    ``load_cifar10(root)`` itself.

    Example:
        >>> import torch
        >>> from seedregistry.attribution import ReloadableTensors
        >>> def load(size):
        ...     return torch.eye(size), torch.arange(size) % 2
        >>> data = ReloadableTensors(load, 8)
        >>> [tuple(tensor.shape) for tensor in data.tensors]
        [(8, 8), (8,)]

    Args:
        load: a function that other processes can import, since it is pickled by its name. It
            returns the tensors, equal ones each time.
        *args: its arguments.
        **kwargs: its keyword arguments.
    """

    def __init__(
        self, load: Callable[..., Sequence[torch.Tensor]], *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*load(*args, **kwargs))
        self._call = functools.partial(load, *args, **kwargs)

    def __reduce__(self) -> Tuple[Any, ...]:
        """Return the call, which is pickled instead of the tensors."""
        return ReloadableTensors, (self._call,)


def load_digits(registry: SeedRegistry, *, train: int = 1200) -> Tuple[Pair, Pair]:
    """Return 1,797 digits of 8 x 8 pixels, split by the registry's stream ("split", "digits").

    Args:
        registry: derives and records the split.
        train: number of training examples, int, ``0 < train < 1797``.

    Returns:
        The pairs (inputs, targets) for training and for testing. Inputs are float64 in 0 to 1,
        shape (n, 64), and targets int64, shape (n,).

    Raises:
        RecipeError: ``train`` leaves no example for training or none for testing.
    """
    from sklearn.datasets import load_digits as load

    data = load()
    inputs, targets = (
        torch.from_numpy(data.data) / 16,
        torch.from_numpy(data.target).to(torch.int64),
    )
    if not 0 < train < len(inputs):
        raise RecipeError(f"train must be between 1 and {len(inputs) - 1}; got {train!r}.")

    subsets = registry.split(range(len(inputs)), [train, len(inputs) - train], instance_id="digits")
    chosen = [torch.tensor(subset.indices) for subset in subsets]
    return (inputs[chosen[0]], targets[chosen[0]]), (inputs[chosen[1]], targets[chosen[1]])


def _cifar10(root: Union[str, os.PathLike[str]], *, train: bool, download: bool) -> Any:
    try:
        from torchvision.datasets import CIFAR10
    # torch raises a RuntimeError where torchvision is made for another version of it.
    except (ImportError, RuntimeError) as error:
        message = (
            f"CIFAR-10 needs torchvision, made for torch {torch.__version__}: pip install "
            f"torchvision. It said: {error}"
        )
        raise RecipeError(message) from error
    try:
        return CIFAR10(os.fspath(root), train=train, download=download)
    except RuntimeError as error:
        message = (
            f"CIFAR-10 is not in {str(Path(root).resolve())!r}, or damaged: {error} Give the "
            "folder that has cifar-10-batches-py, or download=True."
        )
        raise RecipeError(message) from error


def load_cifar10(
    root: Union[str, os.PathLike[str]], *, train: bool = True, download: bool = False
) -> Pair:
    """Return CIFAR-10 as tensors, each channel normalised by the training set's statistics.

    Args:
        root: the folder that has, or gets, ``cifar-10-batches-py``.
        train: the 50,000 training images, or the 10,000 test images.
        download: fetch the data when they are not there.

    Returns:
        The inputs, float32, shape (n, 3, 32, 32), and the targets, int64, shape (n,).

    Raises:
        RecipeError: torchvision is not installed or made for another torch, or the data are not
            there.
    """
    data = _cifar10(root, train=train, download=download)
    inputs = torch.from_numpy(data.data).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, deviation = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (_CIFAR_MEAN, _CIFAR_STD)
    )
    return (inputs - mean) / deviation, torch.tensor(data.targets, dtype=torch.int64)


class _Tensors(Dataset[Any]):
    """Images and labels; a label is an int, as the documented loader gives it."""

    def __init__(self, pair: Pair) -> None:
        self.inputs, self.targets = pair

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], int(self.targets[index])


def get_cifar10_dataloader(
    root: Union[str, os.PathLike[str]] = "data",
    *,
    batch_size: int = 256,
    split: str = "train",
    num_workers: int = 0,
    shuffle: bool = True,
    download: bool = False,
) -> DataLoader[Any]:
    """Return a plain loader of CIFAR-10: a factory for ``registry.dataloader``.

    Args:
        root: as for :func:`load_cifar10`.
        batch_size: int > 0.
        split: ``"train"`` or ``"test"``.
        num_workers: number of worker processes, int >= 0.
        shuffle: whether the rebuilt loader shuffles.
        download: fetch the data when they are not there.

    Raises:
        RecipeError: torchvision is not installed or made for another torch, the data are not there,
            or another split.
    """
    if split not in {"train", "test"}:
        raise RecipeError(f"split must be 'train' or 'test'; got {split!r}.")
    pair = load_cifar10(root, train=split == "train", download=download)
    return DataLoader(
        _Tensors(pair), batch_size=batch_size, shuffle=shuffle, num_workers=num_workers
    )
