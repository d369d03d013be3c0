"""MAGIC: exact derivatives of what a training ends in, by the weight of every example.

The training is walked backwards. At each step the step itself is run once more, this time
differentiably, and the adjoint of the state after it becomes the adjoint of the state before it:
momentum, weight decay, schedules and clipping are differentiated with everything else, since they
are part of the step.

Source: A. Ilyas and L. Engstrom, MAGIC: Near-Optimal Data Attribution for Deep Learning, 2025; L.
Engstrom and others, Optimizing ML Training with Metagradient Descent, arXiv 2503.13751.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Sequence, Tuple, Union

import attrs
import torch

from seedregistry.attribution.measurements import Measurement, identify, measure
from seedregistry.attribution.progress import ProgressOption, show_progress
from seedregistry.attribution.replay import KeptStates, default_keep, walk_back
from seedregistry.common.files import write_atomically
from seedregistry.common.identities import mismatches, show_mismatches
from seedregistry.common.options import check_count
from seedregistry.determinism import torch_threads
from seedregistry.errors import InvalidOptionError, RecipeError, ReplayError

if TYPE_CHECKING:
    import os

    from seedregistry.attribution.states import State
    from seedregistry.attribution.training import Training

_log = logging.getLogger(__name__)

_SAVE_EVERY = 50
_MOST_LOST = 0.1
_PROGRESS_FORMAT = "seedregistry.magic/1"


@attrs.frozen(kw_only=True, eq=False)
class Attribution:
    """What MAGIC found.

    Attributes:
        scores: derivative of each target's measurement by each training example's weight, at weight
            1: shape (targets, size), in the recipe's dtype. Leaving examples S out changes the
            measurement by about ``-scores[:, S].sum(1)``.
        values: the measurements after the training, shape (targets,).
        fingerprint: of the training before its first step, by which retrainings of another one are
            told from it.
        state: the final state.
        states_kept: how many states were kept at one time, besides the first and the one at work.
    """

    scores: torch.Tensor
    values: torch.Tensor
    fingerprint: str
    state: State
    states_kept: int

    def predict(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the predicted measurements.

        Shape (..., targets) for weights of shape (..., size).
        """
        return self.values + (weights.to(self.scores.dtype) - 1) @ self.scores.T


def magic(
    training: Training,
    measurement: Measurement,
    *,
    keep: Optional[int] = None,
    spill: Union[str, os.PathLike[str], None] = None,
    vectorized: Union[bool, str] = "auto",
    resume: Union[str, os.PathLike[str], None] = None,
    progress: ProgressOption = True,
) -> Attribution:
    """Return the exact metagradients of measurements by the weight of every training example.

    Every number of kept states gives the same bits. The training itself is part of the walk, and is
    not run in advance.

    Args:
        training: what is attributed.
        measurement: such as ``losses_of(test_inputs, test_targets)``, or a function of yours.
        keep: how many states may be kept, besides the first and the one at work; by default twice
            the binary logarithm of the number of steps. Fewer take more time and give the same
            result.
        spill: a folder for the kept states, instead of memory.
        vectorized: differentiate for all targets at once; ``"auto"`` goes one by one where a layer
            of the model cannot.
        resume: a file in which progress is kept, so that a walk that was killed goes on; removed at
            the end.
        progress: show how many steps were walked back; see
            :data:`~seedregistry.attribution.progress.ProgressOption`.

    Raises:
        InvalidOptionError: an option is not one of its values.
        RecipeError: the data, the step or the measurement would not do, which is found before
            anything is trained; the measured values or the scores are not finite.
        ReplayError: ``resume`` is of another training or measurement.
    """
    total = training.steps
    budget = default_keep(total) if keep is None else check_count(keep, "keep")
    if vectorized not in (True, False, "auto"):
        raise InvalidOptionError(f"vectorized must be True, False or 'auto'; got {vectorized!r}.")
    training.check()
    identity = identify(training, measurement)
    adjoint = _Adjoint(training, identity.targets, vectorized=vectorized)
    progress_file = (
        None
        if resume is None
        else _ProgressFile(Path(resume), f"{training.fingerprint()} {identity.digest}", total)
    )
    store = KeptStates(spill)
    try:
        with torch_threads(training.recipe.threads), show_progress(progress, "attribute") as tell:
            adjoint.try_out()
            attribution = _walk(training, measurement, budget, store, adjoint, progress_file, tell)
    finally:
        store.close()
    # Nothing that arithmetic went into: the ledger's digest is that of the experiment, on whatever
    # machine.
    facts = {"run": training.initial_state().fingerprint(), "targets": identity.targets}
    training.registry.note(**{f"magic {training.recipe.instance_id}": facts})
    return attribution


def _walk(
    training: Training,
    measurement: Measurement,
    keep: int,
    store: KeptStates,
    adjoint: _Adjoint,
    progress_file: Optional[_ProgressFile],
    tell: Callable[[int, int], None],
) -> Attribution:
    total = training.steps
    first = training.initial_state()
    saved = None if progress_file is None else progress_file.load()
    final = values = None
    stop = total
    if saved is not None:
        stop, final, values = adjoint.restore(saved, first)
    for state in walk_back(first, stop, training.advance, keep=keep, store=store):
        if final is None or values is None:
            final = training.advance(state, total)
            values = adjoint.begin(measurement, final)
        adjoint.step(state)
        tell(total - state.step, total)
        if progress_file is not None and state.step and (total - state.step) % _SAVE_EVERY == 0:
            progress_file.save(adjoint.save(state.step, final, values))
    if final is None or values is None:
        raise RecipeError("The training has no steps.")
    if progress_file is not None:
        progress_file.remove()
    return Attribution(
        scores=adjoint.scores.cpu(),
        values=values.cpu(),
        fingerprint=training.fingerprint(0),
        state=final,
        states_kept=store.most,
    )


class _Adjoint:
    """The derivatives of the targets by the state reached, and the scores so far."""

    def __init__(self, training: Training, targets: int, *, vectorized: Union[bool, str]) -> None:
        self._training = training
        self._vectorized = vectorized
        self._adjoints: Tuple[torch.Tensor, ...] = ()
        self._after: Optional[State] = None
        self.scores = training.ones(targets * training.size).reshape(targets, training.size).zero_()

    def try_out(self) -> None:
        """Differentiate the first step.

        A model that cannot be is refused before the training and not after it.

        Raises:
            RecipeError: an operator has no second derivative, or hides it.
        """
        training = self._training
        state = training.initial_state()
        batch = training.batch(0)
        tensors = [tensor.detach().requires_grad_() for tensor in state.tensors()]
        weights = training.ones(len(batch.indices), requires_grad=True)
        gradients = training.gradients(
            state.with_tensors(tensors), weights, batch, create_graph=True
        )
        # Gradients are linear in the weights: each product below is 1, and so must be its
        # derivative along them.
        products = [
            (gradient * gradient.detach()).sum() / gradient.detach().square().sum()
            for gradient in gradients
            if gradient is not None and bool(gradient.detach().square().sum() > 0)
        ]
        problem = (
            "its derivative by the examples' weights is lost on the way, as in an "
            "autograd.Function marked once_differentiable"
        )
        try:
            derivatives = (
                torch.autograd.grad(products, [weights, *tensors], allow_unused=True)
                if products
                else (weights,)
            )
            by_weight = derivatives[0]
            lost = (
                len(products) if by_weight is None else abs(float(by_weight.sum()) - len(products))
            )
        except RuntimeError as error:
            problem, lost = str(error), 1.0
        if products and not lost < _MOST_LOST:
            message = (
                f"The step cannot be differentiated: {problem}. Operators need a second "
                "derivative. Fused attention has none: run the model under "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
            )
            raise RecipeError(message)

    def begin(self, measurement: Measurement, final: State) -> torch.Tensor:
        """Measure the final state, and differentiate the measurement; return the values."""
        tensors = [tensor.detach().requires_grad_() for tensor in final.tensors()]
        values = measure(self._training, measurement, final.with_tensors(tensors))
        if not torch.isfinite(values).all():
            raise RecipeError(
                "The measurement is not finite after the training: "
                f"{values.detach().tolist()[:5]} ..."
            )
        rows = [
            torch.autograd.grad(
                value, tensors, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for value in values
        ]
        self._adjoints = tuple(torch.stack(column) for column in zip(*rows))
        self._after = final
        return values.detach()

    def step(self, state: State) -> None:
        """Go from the state after a step to ``state``, the one before it."""
        training = self._training
        batch = training.batch(state.step)
        tensors = [tensor.detach().requires_grad_() for tensor in state.tensors()]
        weights = training.ones(len(batch.indices), requires_grad=True)
        after = training.step(state.with_tensors(tensors), weights, batch, create_graph=True)
        self._compare(after)
        self._after = state
        outputs, adjoints = zip(
            *(
                (out, adjoint)
                for out, adjoint in zip(after.tensors(), self._adjoints)
                if out.requires_grad
            )
        )
        *before, by_weight = self._pull_back(outputs, [*tensors, weights], adjoints)
        self._adjoints = tuple(before)
        if not all(bool(torch.isfinite(adjoint).all()) for adjoint in (by_weight, *before)):
            message = (
                f"The scores are not finite from step {state.step} back: the training has no "
                "derivative there. With Adam, set eps_root=1e-10 in the recipe: the root of a "
                "second moment that is zero has an infinite derivative."
            )
            raise RecipeError(message)
        self.scores.index_add_(1, batch.indices.to(self.scores.device), by_weight)

    def _compare(self, after: State) -> None:
        """Compare the state after a step with what it was when the step was run before.

        The same but for rounding.

        Raises:
            ReplayError: it was another one.
        """
        if self._after is None:
            return
        for first, again in zip(self._after.tensors(), after.tensors()):
            tolerance = torch.finfo(first.dtype).eps ** 0.5
            if not torch.allclose(
                again.detach(), first, rtol=tolerance, atol=tolerance * float(first.abs().max())
            ):
                message = (
                    f"Step {after.step - 1} ended in another state when it was run again: the "
                    "model, the loss or the dataset keeps or draws something that is no part of "
                    "the state."
                )
                raise ReplayError(message)

    def _pull_back(
        self,
        outputs: Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        adjoints: Sequence[torch.Tensor],
    ) -> Tuple[torch.Tensor, ...]:
        """Return the adjoints of the inputs: for all targets at once, or one after the other."""

        def pull(
            cotangents: Sequence[torch.Tensor], *, is_batched: bool, keep: bool
        ) -> Tuple[torch.Tensor, ...]:
            gradients = torch.autograd.grad(
                outputs,
                inputs,
                cotangents,
                retain_graph=keep,
                is_grads_batched=is_batched,
                allow_unused=True,
            )
            batch = (len(cotangents[0]),) if is_batched else ()
            return tuple(
                tensor.new_zeros((*batch, *tensor.shape)) if gradient is None else gradient
                for tensor, gradient in zip(inputs, gradients)
            )

        count = len(adjoints[0])
        if self._vectorized and count > 1:
            try:
                return pull(adjoints, is_batched=True, keep=self._vectorized == "auto")
            except RuntimeError as error:
                if self._vectorized is True:
                    message = (
                        f"A layer cannot be differentiated for {count} targets at once: {error}. "
                        "nn.GroupNorm is one; seedregistry.attribution.GroupNorm can. Or go one "
                        "by one: vectorized=False."
                    )
                    raise RecipeError(message) from error
                self._vectorized = False
                _log.warning(
                    "A layer cannot be differentiated for %d targets at once: they are done one "
                    "by one, which is slower. nn.GroupNorm is one such layer; "
                    "seedregistry.attribution.GroupNorm is not.",
                    count,
                )
        rows = [
            pull([adjoint[i] for adjoint in adjoints], is_batched=False, keep=i + 1 < count)
            for i in range(count)
        ]
        return tuple(torch.stack(column) for column in zip(*rows))

    def save(self, step: int, final: State, values: torch.Tensor) -> dict[str, Any]:
        """Return what a walk that goes on before ``step`` needs."""
        return {
            "step": step,
            "updates": list(final.updates),
            "adjoints": list(self._adjoints),
            "scores": self.scores,
            "final": [tensor.detach() for tensor in final.tensors()],
            "values": values,
        }

    def restore(self, saved: dict[str, Any], first: State) -> Tuple[int, State, torch.Tensor]:
        """Take up what ``save`` returned; return the step, the final state and the values."""
        self._adjoints, self.scores = tuple(saved["adjoints"]), saved["scores"]
        final = attrs.evolve(
            first.with_tensors(saved["final"]),
            updates=tuple(saved["updates"]),
            step=self._training.steps,
        )
        return int(saved["step"]), final, saved["values"]


class _ProgressFile:
    """The file of a walk that can go on."""

    def __init__(self, path: Path, fingerprint: str, steps: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._identity = {"format": _PROGRESS_FORMAT, "fingerprint": fingerprint, "steps": steps}

    def load(self) -> Optional[dict[str, Any]]:
        if not self._path.exists():
            return None
        try:
            saved: dict[str, Any] = torch.load(self._path, weights_only=True)
        except Exception as error:
            message = (
                f"{str(self._path)!r} is no progress of a walk, or damaged: {error}. "
                "Remove it, or name another file."
            )
            raise ReplayError(message) from error

        actual = saved if isinstance(saved, dict) else {}
        wrong = mismatches(actual, self._identity)
        if wrong:
            # Nothing is cut: the fingerprint is that of the training and that of the measurement
            # behind it, and either may be the one that differs.
            values = show_mismatches(
                wrong, actual, self._identity, there="in the file", here="here"
            )
            message = (
                f"{str(self._path)!r} holds the progress of another training or measurement: "
                f"{values}. Remove it, or name another file."
            )
            raise ReplayError(message)
        return saved

    def save(self, progress: dict[str, Any]) -> None:
        state = {**self._identity, **progress}
        write_atomically(self._path, lambda temporary: torch.save(state, temporary))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
