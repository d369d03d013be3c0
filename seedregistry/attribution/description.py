"""What an experiment is, for the ledger: the recipe, the data, the code, the measurement.

A digest that is printed in a paper must be another one for another experiment. What is described
here is given and not computed: it is the same on every machine, and a training need not be done
for it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import types
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Sequence

import torch

from seedregistry.attribution.history import digest_batch
from seedregistry.attribution.states import add_tensors
from seedregistry.data.content import digest_dataset
from seedregistry.ledger import records

if TYPE_CHECKING:
    from torch import nn

    from seedregistry.attribution.measurements import Measurement
    from seedregistry.attribution.recipe import Recipe
    from seedregistry.attribution.states import Batch
    from seedregistry.attribution.training import Training

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DIGITS = 16
_INSTALLED = ("torch", "torchvision", "seedregistry", "transformers", "timm")
"""Packages whose code is known by their version, which the ledger has."""

_DEEPEST = 4

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype)
_CONTAINERS = (list, tuple, dict, functools.partial, types.MethodType)


def describe_recipe(
    recipe: Recipe,
    model: nn.Module,
    tensors: Optional[Sequence[torch.Tensor]],
    first: Callable[[], Batch],
) -> Dict[str, Any]:
    """Return what a training is made of, as plain data for a note in the ledger.

    Args:
        recipe: the recipe.
        model: as built from it.
        tensors: the data, where they are tensors.
        first: returns the first batch.
    """
    return {
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "drop_last": recipe.drop_last,
        "optimizer": _describe_call(recipe.optimizer, recipe.optimizer_options),
        "scheduler": _describe_call(recipe.scheduler, recipe.scheduler_options),
        "clip_norm": recipe.clip_norm,
        "eps_root": recipe.eps_root,
        "dtype": str(recipe.dtype),
        "ids": [recipe.instance_id, recipe.model_id, recipe.order_id],
        "model": _digest_model(model),
        "code": digest_code([recipe.model, recipe.parameter_groups, *_classes(model)]),
        "loss": f"{_name_of(recipe.loss)} {digest_code([recipe.loss])}",
        "data": _digest_data(recipe.dataset, tensors, first),
    }


def note_training(training: Training) -> None:
    """Put what a training is made of into the ledger, unless it is there.

    So the ledger's digest is that of the experiment, on every machine.
    """
    note_once(training, f"training {training.recipe.instance_id}", training.describe())


def note_once(training: Training, name: str, facts: Dict[str, Any]) -> None:
    """Put a note into the ledger of a training, unless it is there.

    Before the work, and not after it: a journal that goes on refuses the note of another one. Work
    that was interrupted and is begun again is noted once.
    """
    registry, value = training.registry, records.freeze(facts)
    notes = registry.ledger.find(records.Note)
    if not any(note.name == name and note.value == value for note in notes):
        registry.note(**{name: facts})


def describe_measurement(measurement: Measurement) -> str:
    """Return name, code and data of a measurement in a line."""
    return f"{_name_of(measurement)} {digest_code([measurement])}"


def _describe_call(callee: Any, options: Any) -> Optional[str]:
    """Return a call as a line, such as ``SGD(lr=0.1)``; None for none."""
    if callee is None:
        return None
    name = callee if isinstance(callee, str) else _name_of(callee)
    return f"{name}({', '.join(f'{key}={_show(value)}' for key, value in sorted(options.items()))})"


def _show(value: Any) -> str:
    """Return a value as text, without addresses in memory."""
    return _ADDRESS.sub("", repr(value))


def _name_of(thing: Any) -> str:
    """Return a name that does not say in which module of the user's a thing is defined."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return getattr(thing, "__qualname__", None) or type(thing).__qualname__


def _digest_model(model: nn.Module) -> str:
    """Return a digest of a model's structure: layers and options, shapes, what is frozen, buffers.

    Not of its initial parameters, which the ledger's entry of the model has.
    """
    sha = hashlib.sha256(_show(model).encode())
    for name, parameter in model.named_parameters():
        sha.update(f"{name}{tuple(parameter.shape)}{parameter.requires_grad}".encode())
    for name, buffer in model.named_buffers():
        sha.update(name.encode())
        add_tensors(sha, [buffer])
    # Options that no repr shows, such as the probability of a functional dropout. Not those of an
    # installed package's layers, which have others in other versions.
    for name, module in model.named_modules():
        if _is_installed(type(module)):
            continue
        options = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str)) and not key.startswith("_")
        }
        sha.update(f"{name}{sorted(options.items())}".encode())
    return sha.hexdigest()[:_DIGITS]


def _classes(model: nn.Module) -> List[type]:
    """Return the classes of a model's layers, each once."""
    return list(dict.fromkeys(type(module) for module in model.modules()))


def _digest_data(
    dataset: Any, tensors: Optional[Sequence[torch.Tensor]], first: Callable[[], Batch]
) -> str:
    """Return a digest of the data: of tensors whole, else of what is to be seen of a dataset.

    That is its code, the arrays and numbers that it holds, and the first batch.
    """
    if tensors is not None:
        sha = hashlib.sha256()
        add_tensors(sha, tensors)
        return sha.hexdigest()[:_DIGITS]
    code = _source_of(dataset) or _name_of(dataset)
    seen = f"{code} {digest_dataset(dataset)} {digest_batch(first())}"
    return hashlib.sha256(seen.encode()).hexdigest()[:_DIGITS]


def digest_code(things: Iterable[Any]) -> str:
    """Return a digest of the source of functions, classes and objects, and of what they hold.

    What a partial binds, the values of a closure and the defaults of a function count too, and
    the numbers, texts and tensors among the attributes of an object. Code of installed packages
    counts by its name. Where there is no source, as of a C extension, the name alone counts.

    Returns:
        16 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for thing in things:
        _add_code(sha, thing, _DEEPEST)
    return sha.hexdigest()[:_DIGITS]


def _add_code(sha: Any, thing: Any, depth: int) -> None:
    if thing is None or isinstance(thing, _PLAIN):
        sha.update(f"{thing!r};".encode())
    elif isinstance(thing, torch.Tensor):
        add_tensors(sha, [thing])
    elif depth:
        if not isinstance(thing, _CONTAINERS):
            sha.update(f"{_name_of(thing)};{_source_of(thing) or ''}".encode())
        for inner in _parts_of(thing):
            _add_code(sha, inner, depth - 1)
    else:
        sha.update(f"{_name_of(thing)};".encode())


def _parts_of(thing: Any) -> Iterable[Any]:
    """Return what decides what a thing does besides its source: what it holds, binds or closes."""
    if isinstance(thing, functools.partial):
        return thing.func, thing.args, thing.keywords
    if isinstance(thing, (list, tuple)):
        return thing
    if isinstance(thing, dict):
        return [part for key in sorted(thing, key=repr) for part in (key, thing[key])]
    if isinstance(thing, types.MethodType):
        return thing.__func__, thing.__self__
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
        return [thing.__defaults__, thing.__kwdefaults__, *cells]
    is_code = inspect.isclass(thing) or inspect.isroutine(thing)
    return [] if is_code else [value for _, value in sorted(_attributes_of(thing).items())]


def _is_installed(subject: Any) -> bool:
    package = str(getattr(subject, "__module__", "")).partition(".")[0]
    return package in _INSTALLED or package == "builtins"


def _source_of(thing: Any) -> Optional[str]:
    """Return the source of a function, or of the class of an object, unless it is a package's."""
    subject = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    if _is_installed(subject):
        return None
    try:
        return inspect.getsource(subject)
    except (OSError, TypeError):
        return None


def _attributes_of(thing: Any) -> Dict[str, Any]:
    attributes = {
        name: getattr(thing, name)
        for cls in type(thing).__mro__
        for name in getattr(cls, "__slots__", ())
        if isinstance(name, str) and not name.startswith("__") and hasattr(thing, name)
    }
    return {**attributes, **getattr(thing, "__dict__", {})}


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - it raises where the cell is empty
    except ValueError:
        return False
    return True
