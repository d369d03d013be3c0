"""MAGIC: exact derivatives of what a training ends in, by the weight of every example.

The training is walked backwards. Each step is computed once more, this time differentiably, and the
adjoint of the state after it becomes the adjoint of the state before it. Momentum, weight decay,
schedules and clipping are differentiated with everything else, since the step contains them.

Source: A. Ilyas and L. Engstrom, MAGIC: Near-Optimal Data Attribution for Deep Learning, 2025; L.
Engstrom and others, Optimizing ML Training with Metagradient Descent, arXiv 2503.13751.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Sequence, Tuple, Union

import attrs
import numpy as np
import torch
from torch.cuda import OutOfMemoryError

from seedregistry.attribution.description import describe_measurement, note_once, note_training
from seedregistry.attribution.measurements import Measurement, identify, measure
from seedregistry.attribution.progress import ProgressOption, show_progress
from seedregistry.attribution.replay import KeptStates, default_keep, walk_back
from seedregistry.common.files import seal, unseal, write_atomically
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
"""Steps between two writings of the progress file."""

_MOST_LOST = 0.1
"""Limit of a sum's error: a derivative that is lost takes about 1 from it, rounding far less."""

_PROGRESS_FORMAT = "seedregistry.magic/2"


@attrs.frozen(kw_only=True, eq=False)
class Attribution:
    """The scores of all training examples, and the measurements that they are derivatives of.

    Immutable; holds no training.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, losses_of, magic
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), dataset=data, epochs=1,
        ...                 batch_size=4, optimizer_options={"lr": 0.1})
        >>> result = magic(Training(SeedRegistry(42), recipe), losses_of(*data), progress=False)
        >>> without = result.predict((torch.arange(8) != 3).float())
        >>> bool(without[3] > result.values[3])  # the loss of example 3, if it were left out
        True

    Attributes:
        scores: derivative of each target's measurement by each training example's weight, at weight
            1: shape (targets, size), in the recipe's dtype. Leaving examples S out changes the
            measurements by about ``-scores[:, S].sum(1)``.
        values: the measurements after the training, shape (targets,).
        fingerprint: of the training as it went, 64 hexadecimal digits; retrainings of another
            training are told by it.
        measurement: digest of the measurement, 64 hexadecimal digits; retrainings that measured
            something else are told by it.
        state: the final state of the training; None where the scores were read from a file.
        states_kept: the largest number of states that were kept at the same time, besides the first
            and the one at work.
    """

    scores: torch.Tensor
    values: torch.Tensor
    fingerprint: str
    measurement: str
    state: Optional[State] = None
    states_kept: int = 0

    def predict(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the measurements that the scores predict for other weights, to first order.

        Args:
            weights: of all training examples, shape (..., size); 0 leaves an example out.

        Returns:
            Shape (..., targets), in the dtype of the scores.
        """
        return self.values + (weights.to(self.scores.dtype) - 1) @ self.scores.T

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Write scores, values and digests to a file that ``numpy.load`` reads: whole, or not.

        Raises:
            OSError: the file system refused.
        """
        content = io.BytesIO()
        np.savez(
            content,
            scores=self.scores.numpy(),
            values=self.values.numpy(),
            fingerprint=np.array(self.fingerprint),
            measurement=np.array(self.measurement),
        )
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> Attribution:
        """Return what :meth:`save` wrote, without the final state.

        Raises:
            ReplayError: the file is no such file, is damaged, or does not say of which training and
                measurement its scores are.
        """
        try:
            content = io.BytesIO(Path(path).read_bytes())
            with np.load(content, allow_pickle=False) as saved:
                scores, values = (torch.from_numpy(saved[name]) for name in ("scores", "values"))
                digests = [
                    str(saved[name]) for name in ("fingerprint", "measurement") if name in saved
                ]
        except Exception as error:
            raise ReplayError(
                f"{str(path)!r} is no file of scores, or damaged: {error}."
            ) from error
        if len(digests) < 2:  # noqa: PLR2004 - both
            message = (
                f"{str(path)!r} does not say of which training and measurement its scores are. "
                "Files of early versions do not: attribute again."
            )
            raise ReplayError(message)
        fingerprint, measurement = digests
        return cls(scores=scores, values=values, fingerprint=fingerprint, measurement=measurement)


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

    It trains once and then walks the training backwards. Every number of kept states gives the same
    bits.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training, losses_of, magic
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), dataset=data, epochs=1,
        ...                 batch_size=4, optimizer_options={"lr": 0.1})
        >>> training = Training(SeedRegistry(42), recipe)
        >>> magic(training, losses_of(*data), progress=False).scores.shape
        torch.Size([8, 8])

    Args:
        training: the training that is attributed; it need not have been trained.
        measurement: such as ``losses_of(test_inputs, test_targets)``, or a function of yours.
        keep: how many states may be kept, besides the first and the one at work; by default twice
            the binary logarithm of the number of steps. Fewer take more time and give the same
            result.
        spill: a folder for the kept states; None keeps them in memory.
        vectorized: differentiate for all targets at once; ``"auto"`` differentiates for one target
            after the other where a layer of the model cannot do that.
        resume: a file in which progress is kept, so that a walk that was killed goes on; removed at
            the end.
        progress: show how many steps were walked back; see
            :data:`~seedregistry.attribution.progress.ProgressOption`.

    Raises:
        InvalidOptionError: an option is not one of its values.
        RecipeError: the data, the step or the measurement cannot be attributed, which shows before
            anything is trained; or the measured values or the scores are not finite.
        ReplayError: ``resume`` is no file of progress, or that of another training or measurement;
            or a step ended in another state when it was computed again.
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

    # The ledger's digest is that of the experiment on whatever machine, so nothing is noted that
    # arithmetic went into: the state before the first step, and not the scores.
    facts = {
        "run": training.initial_state().fingerprint(),
        "targets": identity.targets,
        "measurement": describe_measurement(measurement),
    }
    store = KeptStates(spill)
    try:
        with torch_threads(training.recipe.threads), show_progress(progress, "attribute") as tell:
            adjoint.try_out()
            note_training(training)
            note_once(training, f"magic {training.recipe.instance_id}", facts)
            scores, values, final = _walk(
                training, measurement, budget, store, adjoint, progress_file, tell
            )
            fingerprint = training.whole_fingerprint()
    finally:
        store.close()

    return Attribution(
        scores=scores,
        values=values,
        fingerprint=fingerprint,
        measurement=identity.digest,
        state=final,
        states_kept=store.most,
    )


def _walk(
    training: Training,
    measurement: Measurement,
    keep: int,
    store: KeptStates,
    adjoint: _Adjoint,
    progress_file: Optional[_ProgressFile],
    tell: Callable[[int, int], None],
) -> Tuple[torch.Tensor, torch.Tensor, State]:
    """Train, measure and walk back; or go on with a walk whose progress is in the file.

    Returns:
        The scores, the measured values and the final state.
    """
    total = training.steps
    first = training.initial_state()

    saved = None if progress_file is None else progress_file.load()
    final = values = None
    stop = total
    if saved is not None:
        stop, final, values = adjoint.restore(saved, first)

    for state in walk_back(first, stop, training.advance, keep=keep, store=store):
        # The first state that the walk yields is that before the last step.
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

    return adjoint.scores.cpu(), values.cpu(), final


class _Adjoint:
    """The derivatives of the targets by the state that the walk is at, and the scores so far.

    Attributes:
        scores: derivatives by the examples' weights, of the steps that are walked already: shape
            (targets, size).
    """

    def __init__(self, training: Training, targets: int, *, vectorized: Union[bool, str]) -> None:
        self._training = training
        self._vectorized = vectorized
        self._at_once: Optional[int] = None
        self._adjoints: Tuple[torch.Tensor, ...] = ()
        self._after: Optional[State] = None
        self.scores = training.ones(targets * training.size).reshape(targets, training.size).zero_()

    def try_out(self) -> None:
        """Differentiate the first step, so that a model that cannot be is refused before training.

        Raises:
            RecipeError: an operator has no second derivative, or loses it without an error.
        """
        training = self._training
        state = training.initial_state()
        batch = training.batch(0)
        tensors = [tensor.detach().requires_grad_() for tensor in state.tensors()]
        weights = training.ones(len(batch.indices), requires_grad=True)
        gradients = training.gradients(
            state.with_tensors(tensors), weights, batch, create_graph=True
        )

        # Gradients are linear in the weights, and all weights are 1. So each product below is 1 and
        # its derivatives by the weights have the sum 1 (Euler's theorem on homogeneous functions).
        # An operator that drops its second derivative without an error shows in that sum. Where a
        # gradient is zero by itself, as of the key's bias in attention, there is rounding alone.
        sizes = [
            float(gradient.detach().norm()) if gradient is not None else 0.0
            for gradient in gradients
        ]
        least = max(sizes, default=0.0) * torch.finfo(training.recipe.dtype).eps ** 0.5
        products = [
            (gradient * gradient.detach()).sum() / gradient.detach().square().sum()
            for gradient, size in zip(gradients, sizes)
            if gradient is not None and size > least
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
        """Measure the final state, differentiate the measurement by it, and return the values."""
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
        """Go back over a step: from the state after it to ``state``, the state before it."""
        training = self._training
        batch = training.batch(state.step)
        tensors = [tensor.detach().requires_grad_() for tensor in state.tensors()]
        weights = training.ones(len(batch.indices), requires_grad=True)
        after = training.step(state.with_tensors(tensors), weights, batch, create_graph=True)
        self._compare(after)
        self._after = state

        # The chain rule. With J and W the derivatives of the state after the step by the state
        # before it and by the weights, an adjoint a becomes J^T a, and W^T a is what this step adds
        # to the scores: by then the effect of all later steps is in a. One pass of autograd gives
        # both products, and neither matrix is ever made. A tensor that depends on neither requires
        # no gradient, and autograd would refuse it.
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

        # Added, since an example comes in every epoch.
        self.scores.index_add_(1, batch.indices.to(self.scores.device), by_weight)

    def _compare(self, after: State) -> None:
        """Refuse a state after a step that differs, but for rounding, from what it was before.

        The scores are derivatives of the training only if each step that is differentiated is the
        step that was trained. What a model keeps outside its state, such as a counter, would
        otherwise make them wrong without a sign.

        Raises:
            ReplayError: the states differ.
        """
        if self._after is None:
            return  # the walk goes on from a file, which has no state to compare with

        # Not bit for bit: with a graph to build, torch may choose other kernels, and sums on a GPU
        # have no fixed order. Half of the digits is far from both rounding and another draw.
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
        """Return the adjoints of the inputs, for all targets at once or one after the other.

        Args:
            outputs: tensors of the state after the step.
            inputs: what to differentiate by.
            adjoints: of the outputs, each of shape (targets, ...).

        Returns:
            A tensor of shape (targets, ...) for each input; zeros where nothing depends on it.
        """

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
            # The zeros of materialize_grads would lack the dimension of the targets.
            batch = (len(cotangents[0]),) if is_batched else ()
            return tuple(
                tensor.new_zeros((*batch, *tensor.shape)) if gradient is None else gradient
                for tensor, gradient in zip(inputs, gradients)
            )

        count = len(adjoints[0])
        if self._vectorized and count > 1:
            try:
                return self._pull_together(pull, adjoints)
            except OutOfMemoryError:
                raise
            except RuntimeError as error:
                if self._vectorized is True:
                    message = (
                        f"A layer cannot be differentiated for {count} targets at once: {error}. "
                        "nn.GroupNorm is one; seedregistry.attribution.GroupNorm can. Or go one "
                        "by one: vectorized=False."
                    )
                    raise RecipeError(message) from error
                self._vectorized = False  # for the rest of the walk: the layer stays in the model
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

    def _pull_together(
        self, pull: Callable[..., Tuple[torch.Tensor, ...]], adjoints: Sequence[torch.Tensor]
    ) -> Tuple[torch.Tensor, ...]:
        """Return the adjoints of all targets, as many at once as fit into memory.

        Raises:
            torch.cuda.OutOfMemoryError: not even one target does.
        """
        count = len(adjoints[0])
        while True:
            size = min(self._at_once or count, count)
            try:
                # The graph is kept, since it may be needed once more.
                pieces = [
                    pull(
                        [adjoint[start : start + size] for adjoint in adjoints],
                        is_batched=True,
                        keep=True,
                    )
                    for start in range(0, count, size)
                ]
                return tuple(torch.cat(column) for column in zip(*pieces))
            except OutOfMemoryError:
                if size == 1:
                    raise
                self._at_once = (size + 1) // 2
                if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                    torch.cuda.empty_cache()
                _log.warning(
                    "%d targets at once do not fit into memory: they are done %d at once.",
                    size,
                    self._at_once,
                )

    def save(self, step: int, final: State, values: torch.Tensor) -> dict[str, Any]:
        """Return what a walk needs to go on from the state before ``step``."""
        return {
            "step": step,
            "history": self._training.history.state_dict(),
            "updates": list(final.updates),
            "adjoints": list(self._adjoints),
            "scores": self.scores,
            "final": [tensor.detach() for tensor in final.tensors()],
            "values": values,
        }

    def restore(self, saved: dict[str, Any], first: State) -> Tuple[int, State, torch.Tensor]:
        """Take over what :meth:`save` returned.

        Args:
            saved: as :meth:`save` returned it.
            first: the initial state, which has the form of every other.

        Returns:
            The step to go on from, the final state and the measured values.
        """
        training = self._training
        training.history.load_state_dict(saved["history"])
        # The steps before it are computed again and compared. Of those after it the examples are.
        for step in range(int(saved["step"]), training.steps):
            training.history.check_batch(step, training.batch(step))
        self._adjoints = tuple(map(training.place, saved["adjoints"]))
        self.scores = training.place(saved["scores"])
        final = attrs.evolve(
            first.with_tensors(list(map(training.place, saved["final"]))),
            updates=tuple(saved["updates"]),
            step=training.steps,
        )
        return int(saved["step"]), final, training.place(saved["values"])


class _ProgressFile:
    """The file of a walk that can go on.

    Args:
        path: of the file; folders that are missing are made.
        fingerprint: of the training and of the measurement.
        steps: of the training.
    """

    def __init__(self, path: Path, fingerprint: str, steps: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._identity = {"format": _PROGRESS_FORMAT, "fingerprint": fingerprint, "steps": steps}

    def load(self) -> Optional[dict[str, Any]]:
        """Return what was saved last, or None where there is no file.

        Raises:
            ReplayError: the file is no progress of this walk.
        """
        if not self._path.exists():
            return None
        try:
            content = io.BytesIO(unseal(self._path.read_bytes()))
            saved: dict[str, Any] = torch.load(content, weights_only=True, map_location="cpu")
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
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(self._path, seal(content.getvalue()))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
