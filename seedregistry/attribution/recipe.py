"""The description of a training.

It has everything that training, retraining and attribution need to know, and nothing random.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator, Mapping, Optional, Tuple

import attrs
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from seedregistry.attribution.datasets import ReloadableTensors
from seedregistry.attribution.optimizers import OPTIMIZERS
from seedregistry.errors import RecipeError


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each example: shape (batch,)."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def _options(value: Optional[Mapping[str, Any]]) -> Mapping[str, Any]:
    return dict(value or {})


@attrs.frozen(kw_only=True, eq=False)
class Recipe:
    """The description of a training.

    Immutable. It pickles when its functions do, which those of a module do.

    The loss of a step is ``sum(w_i * l_i) / b`` over the batch, with the weights of its examples
    and its full size b, so that an example of weight zero leaves the batch without changing
    anything else.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), dataset=data, epochs=1,
        ...                 batch_size=4, optimizer_options={"lr": 0.1})
        >>> Training(SeedRegistry(42), recipe).steps
        2

    Args:
        model: returns the model; called without arguments in the scope of ("model", instance_id).
        dataset: a dataset of pairs (input, target), or a pair of tensors (inputs, targets) of one
            length. It is sent to every process that retrains, and with each task to an executor of
            yours. For tensors too large for that there is
            :class:`~seedregistry.attribution.datasets.ReloadableTensors`.
        loss: ``loss(outputs, targets)``, a tensor of one loss an example, shape (batch,).
        epochs: int > 0.
        batch_size: int > 0.
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW``.
        optimizer_options: options of the optimizer, such as ``{"lr": 0.1, "momentum": 0.9}``.
        scheduler: a scheduler class or name as for ``registry.scheduler``, stepped once a step;
            None keeps the optimizer's options as they are.
        scheduler_options: options of the scheduler. ``"steps"`` as a value, such as that of
            ``total_steps`` or ``T_max``, stands for the number of steps of the training.
        parameter_groups: returns the optimizer's parameter groups for a model; None takes all
            parameters as one.
        drop_last: leave out a last batch that is not full.
        clip_norm: clip the gradients to this total norm before each step, as ``clip_grad_norm_``
            does; None does not clip.
        eps_root: added under the root of Adam and AdamW. Zero is torch's own arithmetic, whose
            derivative is infinite where a second moment is zero; 1e-12 to 1e-8 mends it.
        dtype: floating dtype of parameters and inputs; float64 makes differences measurable.
        instance_id: names the training; its streams are ("model", id), ("dataloader", id),
            ("dropout", id), ...
        model_id: instance id of the model alone, where its initial parameters are another
            training's; None takes ``instance_id``.
        order_id: instance id of the loader alone, where the order of the examples is another
            training's; None takes ``instance_id``.
        threads: number of torch's threads during the training, int > 0; sums on the CPU depend on
            it.
        device: where the training is computed, such as ``"cuda"``. The model is built on the CPU
            and moved, so that its initial parameters are the same on every device. Sums on a GPU
            may depend on the order in which they happen to be done;
            ``registry.set_global_state(deterministic="strict")`` excludes that.

    Raises:
        RecipeError: an argument is not of these kinds; names every such argument.
    """

    model: Callable[[], nn.Module]
    dataset: Any
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy
    epochs: int
    batch_size: int
    optimizer: Any = torch.optim.SGD
    optimizer_options: Mapping[str, Any] = attrs.field(default=None, converter=_options)
    scheduler: Any = None
    scheduler_options: Mapping[str, Any] = attrs.field(default=None, converter=_options)
    parameter_groups: Optional[Callable[[nn.Module], Any]] = None
    drop_last: bool = False
    clip_norm: Optional[float] = None
    eps_root: float = 0.0
    dtype: torch.dtype = torch.float32
    instance_id: Any = "training"
    model_id: Any = None
    order_id: Any = None
    threads: int = 1
    device: Any = "cpu"

    def __attrs_post_init__(self) -> None:
        problems = [
            *self._problems_of_kind(),
            *self._problems_of_value(),
            *self._problems_of_data(),
        ]
        if problems:
            raise RecipeError(f"This is no recipe: {'; '.join(problems)}.")

    def _problems_of_kind(self) -> Iterator[str]:
        for name in ("epochs", "batch_size", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                yield f"{name} must be an int > 0; got {value!r}"
        for name in ("model", "loss"):
            if not callable(getattr(self, name)):
                yield f"{name} must be callable; got {type(getattr(self, name)).__name__}"
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            yield f"dtype must be a floating dtype; got {self.dtype!r}"

    def _problems_of_value(self) -> Iterator[str]:
        if self.optimizer not in OPTIMIZERS:
            names = ", ".join(cls.__name__ for cls in OPTIMIZERS)
            yield f"optimizer must be one of torch.optim's {names}; got {self.optimizer!r}"
        if self.clip_norm is not None and not (
            isinstance(self.clip_norm, (int, float)) and self.clip_norm > 0
        ):
            yield f"clip_norm must be > 0 or None; got {self.clip_norm!r}"
        if self.eps_root < 0 or (self.eps_root and self.optimizer is torch.optim.SGD):
            yield f"eps_root is for Adam and AdamW, and >= 0; got {self.eps_root!r}"

    def _problems_of_data(self) -> Iterator[str]:
        size = self._size()
        if size is None:
            yield "dataset must be a dataset with a length, of pairs, or two tensors of one length"
        elif self.drop_last and isinstance(self.batch_size, int) and size < self.batch_size:
            sizes = f"{size} examples and a batch size of {self.batch_size}"
            yield f"drop_last leaves no batch: {sizes}"

    def _size(self) -> Optional[int]:
        pair = self.dataset
        # The types themselves: a subclass may draw or augment in its __getitem__, and its tensors
        # are then not its examples.
        if type(pair) in {TensorDataset, ReloadableTensors}:
            pair = pair.tensors
        if isinstance(pair, tuple) or (
            isinstance(pair, list) and any(isinstance(item, torch.Tensor) for item in pair)
        ):
            is_pair = [isinstance(item, torch.Tensor) for item in pair] == [True, True]
            return len(pair[0]) if is_pair and len(pair[0]) == len(pair[1]) > 0 else None
        try:
            return len(self.dataset) or None
        except TypeError:
            return None

    @property
    def size(self) -> int:
        """Number of training examples."""
        return self._size() or 0

    def as_dataset(self) -> Dataset[Any]:
        """Return the data as a dataset; floating tensors are in the recipe's dtype."""
        if isinstance(self.dataset, (tuple, list)) and isinstance(self.dataset[0], torch.Tensor):
            inputs, targets = self.dataset
            return TensorDataset(self.cast(inputs), self.cast(targets))
        if type(self.dataset) in {TensorDataset, ReloadableTensors}:
            return TensorDataset(*(self.cast(tensor) for tensor in self.dataset.tensors))
        dataset: Dataset[Any] = self.dataset
        return dataset

    def cast(self, value: Any) -> Any:
        """Return a floating tensor in the recipe's dtype, and anything else as it is."""
        return (
            value.to(self.dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
        )


def split_examples(examples: Any) -> Tuple[Any, Any]:
    """Return the inputs and the targets of a batch."""
    if not isinstance(examples, (tuple, list)) or len(examples) != 2:  # noqa: PLR2004 - a pair
        count = (
            f"{len(examples)} parts"
            if isinstance(examples, (tuple, list))
            else f"a {type(examples).__name__}"
        )
        raise RecipeError(
            f"The dataset must give pairs (input, target); a batch of it has {count}. Wrap it in "
            "a dataset whose __getitem__ returns a pair. The input may be a dict, if the model "
            "takes one."
        )
    inputs, targets = examples
    return inputs, targets
