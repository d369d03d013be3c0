"""Scores of other libraries, for the table beside MAGIC.

They are dattri's influence function and traker's TRAK; each needs its package. All have the shape
and the sign of MAGIC's scores: the effect of an example's weight on each measurement, shape
(targets, size). What the libraries draw comes from streams of the registry, ("dattri", instance id)
and ("traker", instance id).

Source: J. Deng and others, dattri: A Library for Efficient Data Attribution, 2024; S. M. Park and
others, TRAK: Attributing Model Behavior at Scale, 2023.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
from typing import TYPE_CHECKING, Any, Dict, Iterator, Tuple

import torch
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from seedregistry.determinism import torch_threads
from seedregistry.errors import RecipeError

if TYPE_CHECKING:
    from seedregistry.attribution.states import State
    from seedregistry.attribution.training import Training

Pair = Tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets."""

_MODULES = {"dattri": "dattri", "traker": "trak"}
"""Distributions and what they are imported as."""


def require(*packages: str) -> None:
    """Raise where a package is missing, before hours of work are spent.

    Args:
        *packages: ``"dattri"``, ``"traker"``; both where none is named.

    Raises:
        RecipeError: a package is not installed; names those to install.
    """
    missing = [
        package
        for package in packages or _MODULES
        if importlib.util.find_spec(_MODULES[package]) is None
    ]
    if missing:
        raise RecipeError(f"This needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def dattri_influence(
    training: Training,
    examples: Pair,
    state: State,
    *,
    regularization: float = 0.1,
    iterations: int = 10,
) -> torch.Tensor:
    """Return dattri's influence function with conjugate gradients, for the losses of test examples.

    Args:
        training: what is attributed; its data must be tensors.
        examples: test inputs and targets, whose losses are measured.
        state: the final state.
        regularization: added to the diagonal of the Hessian.
        iterations: of the conjugate gradients. dattri does all of them, and gets NaN where it had
            converged before.

    Returns:
        Shape (tests, size), on the CPU.

    Raises:
        RecipeError: dattri is not installed, the data are no tensors, or the scores are not finite.
    """
    require("dattri")
    from dattri.algorithm.influence_function import IFAttributorCG
    from dattri.task import AttributionTask

    model = training.copy_model(state)

    def loss(parameters: Dict[str, torch.Tensor], batch: Pair) -> torch.Tensor:
        outputs = functional_call(model, parameters, (batch[0],))
        return training.recipe.loss(outputs, batch[1]).mean()

    train, test = (
        DataLoader(TensorDataset(*pair), batch_size=len(pair[0]))
        for pair in (training.examples(), tuple(map(training.place, examples)))
    )
    with _quietly(training, "dattri"):
        task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
        device = str(state.parameters[0].device)
        attributor = IFAttributorCG(
            task=task, device=device, regularization=regularization, max_iter=iterations
        )
        attributor.cache(train)
        scores: torch.Tensor = attributor.attribute(train, test).detach()

    if not torch.isfinite(scores).all():
        message = (
            f"dattri's scores are not finite: its {iterations} iterations go on after they "
            "have converged. Take fewer."
        )
        raise RecipeError(message)
    return -scores.T.to(training.recipe.dtype).cpu() / training.size


def traker_trak(
    training: Training,
    examples: Pair,
    state: State,
    *,
    dimension: int = 512,
    regularization: float = 100.0,
) -> torch.Tensor:
    """Return traker's TRAK scores of one model, for the margins of a classifier's test examples.

    They are computed in float32, and their scale is traker's: it divides the inverse kernel by its
    mean.

    Args:
        training: what is attributed; its data must be tensors, and its loss the cross-entropy of
            classes.
        examples: test inputs and targets.
        state: the final state.
        dimension: of the random projection of the gradients.
        regularization: added to the diagonal of the projected kernel.

    Returns:
        Shape (tests, size).

    Raises:
        RecipeError: traker is not installed, or the data are no tensors.
    """
    require("traker")
    from trak import TRAKer

    model = training.copy_model(state).to(torch.float32)
    seed = training.registry.seed("traker", training.recipe.instance_id)

    with tempfile.TemporaryDirectory() as folder, _quietly(training, "traker"):
        traker = TRAKer(
            model=model,
            task="image_classification",
            train_set_size=training.size,
            save_dir=folder,
            device=str(state.parameters[0].device),
            proj_dim=dimension,
            projector_seed=seed,
            lambda_reg=regularization,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        traker.load_checkpoint(model.state_dict(), model_id=0)
        for batch in _batches(training, training.examples()):
            traker.featurize(batch=batch, num_samples=len(batch[0]))
        traker.finalize_features()
        traker.start_scoring_checkpoint(
            "test", model.state_dict(), model_id=0, num_targets=len(examples[0])
        )
        for batch in _batches(training, (training.place(examples[0]), training.place(examples[1]))):
            traker.score(batch=batch, num_samples=len(batch[0]))
        # A copy: the file behind the scores goes with its folder.
        scores = torch.tensor(traker.finalize_scores("test"))
    return -scores.T.to(training.recipe.dtype)


def _batches(training: Training, pair: Pair) -> Iterator[Pair]:
    size = training.recipe.batch_size
    for start in range(0, len(pair[0]), size):
        yield pair[0][start : start + size].to(torch.float32), pair[1][start : start + size]


@contextlib.contextmanager
def _quietly(training: Training, purpose: str) -> Iterator[None]:
    """Run another library's code on a stream of the registry, and let nothing of it be seen.

    Its progress bars are not shown, and the handlers of the process's logging are put back.
    """
    root = logging.getLogger()
    handlers: Any = list(root.handlers)
    scope = training.registry.stream(purpose, training.recipe.instance_id).scope(0, rank=None)
    try:
        with torch_threads(training.recipe.threads), scope, contextlib.redirect_stderr(
            io.StringIO()
        ):
            yield
    finally:
        root.handlers[:] = handlers
