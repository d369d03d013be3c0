"""MAGIC: exact derivatives of what a training ends in, with respect to the weight of every training example.

The training is walked backwards. At each step the step itself is run once more, this time differentiably, and the adjoint of
the state after it becomes the adjoint of the state before it: momentum, weight decay, schedules and clipping are
differentiated with everything else, since they are part of the step.

Source: A. Ilyas and L. Engstrom, MAGIC: Near-Optimal Data Attribution for Deep Learning, 2025; L. Engstrom and others,
Optimizing ML Training with Metagradient Descent, arXiv 2503.13751.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Sequence, Tuple, Union

import attrs
import torch

from seedregistry.attribution.measurements import Measurement, identify, measure
from seedregistry.attribution.progress import Report, shown
from seedregistry.attribution.replay import Slots, default_slots, walk_back
from seedregistry.attribution.training import State, Training, pinned_threads
from seedregistry.errors import InvalidOptionError, RecipeError, ReplayError

if TYPE_CHECKING:
    import os

__all__ = ["Attribution", "magic"]

_SAVE_EVERY = 50
_PROGRESS_FORMAT = "seedregistry.magic/1"


@attrs.frozen(kw_only=True, eq=False)
class Attribution:
    """What MAGIC found.

    Attributes:
        scores: derivative of each target's measurement by each training example's weight, at weight 1: shape (targets, size),
            in the recipe's dtype. Leaving examples S out changes the measurement by about ``-scores[:, S].sum(1)``.
        values: the measurements after the training, shape (targets,).
        state: the final state.
        states_kept: how many states were kept at one time, besides the first and the one at work.
    """

    scores: torch.Tensor
    values: torch.Tensor
    state: State
    states_kept: int

    def predict(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the predicted measurements: shape (..., targets) for weights of shape (..., size)."""
        return self.values + (weights.to(self.scores.dtype) - 1) @ self.scores.T


def magic(
    training: Training,
    measurement: Measurement,
    *,
    slots: Optional[int] = None,
    spill: Union[str, os.PathLike[str], None] = None,
    vectorized: Union[bool, str] = "auto",
    resume: Union[str, os.PathLike[str], None] = None,
    progress: Report = True,
) -> Attribution:
    """Return the exact metagradients of measurements with respect to the weight of every training example.

    Every number of slots gives the same bits. The training itself is part of the walk, and is not run in advance.

    Args:
        training: what is attributed.
        measurement: such as ``losses_of(test_inputs, test_targets)``, or a function of yours.
        slots: how many states may be kept, besides the first and the one at work; by default twice the binary logarithm of the
            number of steps. Fewer take more time and give the same result.
        spill: a folder for the kept states, instead of memory.
        vectorized: differentiate for all targets at once; ``"auto"`` goes one by one where a layer of the model cannot.
        resume: a file in which progress is kept, so that a walk that was killed goes on; removed at the end.
        progress: show how many steps were walked back; see :data:`~seedregistry.attribution.progress.Report`.

    Raises:
        InvalidOptionError: an option is not one of its values.
        RecipeError: the data, the step or the measurement would not do, which is found before anything is trained; the
            measured values or the scores are not finite.
        ReplayError: ``resume`` is of another training or measurement.
    """
    total = training.steps
    kept = default_slots(total) if slots is None else slots
    if not isinstance(kept, int) or isinstance(kept, bool) or kept < 0:
        raise InvalidOptionError(f"slots must be an int >= 0; got {slots!r}.")
    if vectorized not in (True, False, "auto"):
        raise InvalidOptionError(f"vectorized must be True, False or 'auto'; got {vectorized!r}.")
    training.check()
    identity = identify(training, measurement)
    journal = None if resume is None else _Progress(Path(resume), f"{training.fingerprint()} {identity}", total)
    store = Slots(spill)
    try:
        with pinned_threads(training.recipe.threads), shown(progress, "attribute") as tell:
            return _walk(training, measurement, kept, store, _Adjoint(training, vectorized=vectorized), journal, tell)
    finally:
        store.close()


def _walk(
    training: Training,
    measurement: Measurement,
    slots: int,
    store: Slots,
    adjoint: _Adjoint,
    journal: Optional[_Progress],
    tell: Callable[[int, int], None],
) -> Attribution:
    total = training.steps
    first = training.initial_state()
    saved = None if journal is None else journal.load()
    final = values = None
    stop = total
    if saved is not None:
        stop, final, values = adjoint.restore(saved, first)
    for state in walk_back(first, stop, training.advance, slots=slots, store=store):
        if final is None or values is None:
            final = training.advance(state, total)
            values = adjoint.begin(measurement, final)
        adjoint.step(state)
        tell(total - state.step, total)
        if journal is not None and state.step and (total - state.step) % _SAVE_EVERY == 0:
            journal.save(adjoint.save(state.step, final, values))
    if final is None or values is None:
        raise RecipeError("The training has no steps.")
    if not torch.isfinite(adjoint.scores).all():
        message = (
            "The scores are not finite: the derivative of the training does not exist everywhere. With Adam, set "
            "eps_root=1e-10 in the recipe: the root of a second moment that is zero has an infinite derivative."
        )
        raise RecipeError(message)
    if journal is not None:
        journal.remove()
    return Attribution(scores=adjoint.scores.cpu(), values=values.cpu(), state=final, states_kept=store.most)


class _Adjoint:
    """The derivatives of the targets by the state that was reached on the way back, and the scores so far."""

    def __init__(self, training: Training, *, vectorized: Union[bool, str]) -> None:
        self._training = training
        self._vectorized = vectorized
        self._adjoints: Tuple[torch.Tensor, ...] = ()
        self.scores = torch.empty(0, device="cpu")

    def begin(self, measurement: Measurement, final: State) -> torch.Tensor:
        """Measure the final state, and differentiate the measurement; return the values."""
        tensors = [tensor.detach().requires_grad_() for tensor in final.tensors()]
        values = measure(self._training, measurement, final.with_tensors(tensors))
        if not torch.isfinite(values).all():
            raise RecipeError(f"The measurement is not finite after the training: {values.detach().tolist()[:5]} ...")
        rows = [
            torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
            for value in values
        ]
        self._adjoints = tuple(torch.stack(column) for column in zip(*rows))
        self.scores = torch.zeros(len(values), self._training.size, dtype=self._training.recipe.dtype, device=values.device)
        return values.detach()

    def step(self, state: State) -> None:
        """Go from the state after a step to ``state``, the one before it."""
        training = self._training
        batch = training.batch(state.step)
        tensors = [tensor.detach().requires_grad_() for tensor in state.tensors()]
        weights = training.ones(len(batch.indices), requires_grad=True)
        after = training.step(state.with_tensors(tensors), weights, batch, create_graph=True)
        outputs, adjoints = zip(*((out, adjoint) for out, adjoint in zip(after.tensors(), self._adjoints) if out.requires_grad))
        *before, by_weight = self._pull_back(outputs, [*tensors, weights], adjoints)
        self._adjoints = tuple(before)
        self.scores.index_add_(1, batch.indices.to(self.scores.device), by_weight)

    def _pull_back(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], adjoints: Sequence[torch.Tensor]
    ) -> Tuple[torch.Tensor, ...]:
        """Return the adjoints of the inputs: for all targets at once, or one after the other."""

        def pull(given: Sequence[torch.Tensor], *, is_batched: bool, keep: bool) -> Tuple[torch.Tensor, ...]:
            found: Tuple[torch.Tensor, ...] = torch.autograd.grad(
                outputs,
                inputs,
                given,
                retain_graph=keep,
                is_grads_batched=is_batched,
                allow_unused=True,
                materialize_grads=True,
            )
            return found

        count = len(adjoints[0])
        if self._vectorized and count > 1:
            try:
                return pull(adjoints, is_batched=True, keep=self._vectorized == "auto")
            except RuntimeError:
                if self._vectorized is True:
                    raise
                self._vectorized = False  # a layer without a rule for it, such as GroupNorm in torch 2.13
        rows = [pull([adjoint[i] for adjoint in adjoints], is_batched=False, keep=i + 1 < count) for i in range(count)]
        return tuple(torch.stack(column) for column in zip(*rows))

    def save(self, step: int, final: State, values: torch.Tensor) -> dict[str, Any]:
        """Return what a walk that goes on before ``step`` needs."""
        return {
            "step": step,
            "adjoints": list(self._adjoints),
            "scores": self.scores,
            "final": [tensor.detach() for tensor in final.tensors()],
            "values": values,
        }

    def restore(self, saved: dict[str, Any], first: State) -> Tuple[int, State, torch.Tensor]:
        """Take up what ``save`` returned; return the step, the final state and the values."""
        self._adjoints, self.scores = tuple(saved["adjoints"]), saved["scores"]
        final = attrs.evolve(first.with_tensors(saved["final"]), step=self._training.steps)
        return int(saved["step"]), final, saved["values"]


class _Progress:
    """The file of a walk that can go on."""

    def __init__(self, path: Path, fingerprint: str, steps: int) -> None:
        self._path = path
        self._identity = {"format": _PROGRESS_FORMAT, "fingerprint": fingerprint, "steps": steps}

    def load(self) -> Optional[dict[str, Any]]:
        if not self._path.exists():
            return None
        try:
            saved: dict[str, Any] = torch.load(self._path, weights_only=True)
        except Exception as error:
            message = f"{str(self._path)!r} is no progress of a walk, or damaged: {error}. Remove it, or name another file."
            raise ReplayError(message) from error
        found = {name: saved.get(name) for name in self._identity}
        if found != self._identity:
            message = (
                f"{str(self._path)!r} holds the progress of another training: {found}, not {self._identity}. Remove it, or "
                "name another file."
            )
            raise ReplayError(message)
        return saved

    def save(self, progress: dict[str, Any]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        torch.save({**self._identity, **progress}, temporary)
        temporary.replace(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
