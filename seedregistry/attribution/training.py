"""Recipes carried out: steps that are pure functions of (state, step, example weights)."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import attrs
import torch
from torch import nn
from torch.cuda import OutOfMemoryError
from torch.func import functional_call, grad, vmap
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.data import TensorDataset

from seedregistry import rng
from seedregistry.attribution.description import describe_recipe
from seedregistry.attribution.history import History
from seedregistry.attribution.optimizers import OPTIMIZERS, apply_clip, check_options, slot_names
from seedregistry.attribution.recipe import split_examples
from seedregistry.attribution.states import FAILURES, Batch, State, add_tensors
from seedregistry.attribution.trials import (
    COMPUTES,
    advise_determinism,
    bytes_of,
    check_data,
    check_gradients,
    describe_batch,
    explain_loss,
    refuse_running_statistics,
)
from seedregistry.common import environment
from seedregistry.determinism import torch_threads
from seedregistry.errors import RecipeError
from seedregistry.version import __version__

if TYPE_CHECKING:
    from seedregistry.attribution.recipe import Recipe
    from seedregistry.registry import SeedRegistry

_log = logging.getLogger(__name__)


class Training:
    """A recipe on a registry.

    Every step is a pure function of the state, its number and the examples' weights.

    The model, the optimizer, the scheduler and the loader come from the registry and are in its
    ledger. What dropout draws in step s of epoch e is a function of (("dropout", instance id), e,
    s). So any step can be computed again from the state before it, at any time and in any process
    with equal versions and as many threads.

    Lifetime: as long as it is used; it keeps the data and no state. Not thread-safe: torch's
    default generators belong to the process.

    Example:
        >>> import torch
        >>> from seedregistry import SeedRegistry
        >>> from seedregistry.attribution import Recipe, Training
        >>> data = torch.eye(8), torch.arange(8) % 2
        >>> recipe = Recipe(model=lambda: torch.nn.Linear(8, 2), dataset=data, epochs=1,
        ...                 batch_size=4, optimizer_options={"lr": 0.1})
        >>> training = Training(SeedRegistry(42), recipe)
        >>> training.steps, training.train().fingerprint() == training.train().fingerprint()
        (2, True)

    Args:
        registry: where everything is derived and recorded.
        recipe: the description of the training.

    Attributes:
        registry: as given.
        recipe: as given.
        steps: number of steps, int > 0.
        history: what the steps fetched and computed, as far as they were done.
        size: number of training examples, int > 0.

    Raises:
        RecipeError: the model carries batch statistics or has nothing to train, a parameter is in
            no group, or an option of the optimizer or the scheduler cannot be replayed.
        DeviceError: ``device`` is no device, or one that is not there.
    """

    def __init__(self, registry: SeedRegistry, recipe: Recipe) -> None:
        self.registry = registry
        self.recipe = recipe
        self._device = rng.resolve_device(recipe.device)

        name = recipe.instance_id
        model = registry.model(
            recipe.model, instance_id=name if recipe.model_id is None else recipe.model_id
        )
        self._model = model.to(self._device, recipe.dtype)
        self._model.train()
        refuse_running_statistics(self._model)
        named = list(self._model.named_parameters())
        self._names = [
            parameter_name for parameter_name, parameter in named if parameter.requires_grad
        ]
        if not self._names:
            raise RecipeError(
                "The model has no parameter that requires a gradient: there is nothing to train."
            )
        self._put_in: Optional[ContextManager[None]] = None
        self._is_evaluating = False
        self._buffers = dict(self._model.named_buffers())
        # torch counts the changes in place of each tensor: `call` finds a model that makes one.
        self._versions = {name: buffer._version for name, buffer in self._buffers.items()}
        self._initial = tuple(
            parameter.detach().clone() for _, parameter in named if parameter.requires_grad
        )

        dataset = recipe.as_dataset()
        self.size = recipe.size
        self._loader = registry.dataloader(
            dataset,
            instance_id=name if recipe.order_id is None else recipe.order_id,
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=recipe.drop_last,
            shard=False,  # each process trains on all examples
        )
        # Tensors are indexed without the loader, which is quicker. The type itself: a subclass may
        # draw in its __getitem__.
        self._tensors = (
            tuple(map(self.place, dataset.tensors)) if type(dataset) is TensorDataset else None
        )
        self._data_hash: Optional[bytes] = None

        self._epoch_length = len(self._loader)
        self.steps = recipe.epochs * self._epoch_length
        self._dropout = registry.stream("dropout", name)
        self.history = History(self.steps, self._device, by_index=self._tensors is not None)
        self._orders: Dict[int, torch.Tensor] = {}
        self._group_of, self._hyper = self._schedule()

    # --- what a step is made of -------------------------------------------------------------------

    def _schedule(self) -> Tuple[Tuple[int, ...], List[Tuple[Dict[str, Any], ...]]]:
        """Return the group of each parameter, and the options of the groups at each step.

        torch's optimizer and scheduler are stepped through the whole training without gradients,
        and what they show at each step is written down.
        """
        recipe, registry = self.recipe, self.registry
        groups = (
            list(self._model.parameters())
            if recipe.parameter_groups is None
            else recipe.parameter_groups(self._model)
        )
        optimizer = registry.optimizer(
            recipe.optimizer, groups, instance_id=recipe.instance_id, **recipe.optimizer_options
        )
        check_options(recipe.optimizer, optimizer.param_groups)

        scheduler = None
        if recipe.scheduler is not None:
            options = {
                name: self.steps if value == "steps" else value
                for name, value in recipe.scheduler_options.items()
            }
            scheduler = registry.scheduler(
                recipe.scheduler, optimizer, instance_id=recipe.instance_id, **options
            )

        members = [
            (id(parameter), index)
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        ]
        trained = [
            id(parameter) for parameter in self._model.parameters() if parameter.requires_grad
        ]
        frozen = {
            id(parameter) for parameter in self._model.parameters() if not parameter.requires_grad
        }
        if sorted(member for member, _ in members if member not in frozen) != sorted(trained):
            message = (
                "parameter_groups must have each of the model's parameters once; frozen "
                "ones may be left out."
            )
            raise RecipeError(message)
        group_of = dict(members)

        # In newer versions of torch AdamW is Adam with an option; in older ones its groups have
        # none that says so.
        is_decoupled = recipe.optimizer is torch.optim.AdamW
        table = []
        for _ in range(self.steps):
            row = []
            for group in optimizer.param_groups:
                options = {key: value for key, value in group.items() if key != "params"}
                options["is_decoupled"] = is_decoupled or bool(
                    group.get("decoupled_weight_decay", False)
                )
                row.append(options)
            table.append(tuple(row))
            optimizer.step()  # without gradients it changes nothing; a scheduler wants to see it
            if scheduler is not None:
                self._step_schedule(scheduler)

        return tuple(group_of[parameter_id] for parameter_id in trained), table

    def _step_schedule(self, scheduler: Any) -> None:
        try:
            scheduler.step()
        except TypeError as error:
            message = (
                f"{type(scheduler).__name__} cannot be stepped once a step without "
                f"arguments: {error}. Use another schedule."
            )
            raise RecipeError(message) from error

    def _hyper_of(self, step: int) -> List[Dict[str, Any]]:
        """Return the options of each parameter at a step."""
        row = self._hyper[step]
        return [row[group] for group in self._group_of]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step, int, ``0 <= step < steps``.

        It is that of the first parameter's group.
        """
        return float(self._hyper_of(step)[0]["lr"])

    def examples(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets of all examples in the dataset's order, on the device.

        Raises:
            RecipeError: the data are no tensors.
        """
        if self._tensors is None:
            raise RecipeError(
                "This needs data given as two tensors: what a dataset draws while it fetches has "
                "no one value."
            )
        inputs, targets = self._tensors
        return inputs, targets

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode for a block, and back also when the block raises."""
        self._is_evaluating = True
        self._take_out()
        try:
            yield
        finally:
            self._is_evaluating = False
            self._take_out()

    def place(self, value: Any) -> Any:
        """Return a tensor on the recipe's device, and anything else as it is.

        A floating tensor is in the recipe's dtype.
        """
        return (
            self.recipe.cast(value).to(self._device) if isinstance(value, torch.Tensor) else value
        )

    def ones(self, count: int, *, requires_grad: bool = False) -> torch.Tensor:
        """Return weights of 1, shape (count,), on the recipe's device and in its dtype."""
        return torch.ones(
            count, dtype=self.recipe.dtype, device=self._device, requires_grad=requires_grad
        )

    def position(self, step: int) -> Tuple[int, int]:
        """Return (epoch, step in the epoch) of a step of the training."""
        return divmod(step, self._epoch_length)

    def batch(self, step: int) -> Batch:
        """Return the examples of a step, int, ``0 <= step < steps``.

        They are fetched by position, each time anew.
        """
        epoch, step_in_epoch = self.position(step)
        if self._tensors is None:
            inputs, targets = split_examples(self._loader.batch(epoch, step_in_epoch))
            return Batch(
                inputs=self.place(inputs),
                targets=self.place(targets),
                indices=self._loader.indices(epoch, step_in_epoch),
            )

        order = self._orders.get(epoch)
        if order is None:
            self._orders.clear()  # forwards or backwards, all steps of an epoch come in a row
            order = self._orders[epoch] = self._loader.indices(epoch)
        size = self.recipe.batch_size
        indices = order[step_in_epoch * size : (step_in_epoch + 1) * size]
        inputs, targets = (tensor[indices] for tensor in self._tensors)
        return Batch(inputs=inputs, targets=targets, indices=indices)

    def initial_state(self) -> State:
        """Return the state before the first step."""
        slots = tuple(
            tuple(torch.zeros_like(parameter) for _ in slot_names(self.recipe.optimizer, hyper))
            for parameter, hyper in zip(self._initial, self._hyper_of(0))
        )
        return State(parameters=self._initial, slots=slots, updates=(0,) * len(slots), step=0)

    # --- steps ------------------------------------------------------------------------------------

    def outputs(self, state: State, inputs: Any) -> torch.Tensor:
        """Return the model's outputs in evaluation mode, differentiable in the state's parameters.

        What the model draws in evaluation mode comes from the position ("evaluation",) of the
        dropout stream, so that equal states have equal outputs.

        Args:
            state: of this training.
            inputs: what the model is called with, such as a tensor of shape (batch, ...).
        """
        placed = self.place(inputs)
        with self._dropout.scope("evaluation", rank=None):
            return self._run(state.parameters, placed, is_training=False)

    def call(self, parameters: Sequence[torch.Tensor], inputs: Any) -> torch.Tensor:
        """Return the model's outputs in the mode it is in, differentiable in the parameters.

        Args:
            parameters: in the order of ``State.parameters``.
            inputs: what the model is called with, on the recipe's device.

        Raises:
            RecipeError: the model changed its buffers.
        """
        self._take_out()
        given = {**dict(zip(self._names, parameters)), **self._buffers}
        outputs: torch.Tensor = functional_call(self._model, given, (inputs,))
        # torch puts into `given` what the model ended with.
        self._refuse_changed_buffers(given)
        return outputs

    def _run(
        self, parameters: Sequence[torch.Tensor], inputs: Any, *, is_training: bool
    ) -> torch.Tensor:
        """Return what :meth:`call` does, and leave parameters and mode in the model afterwards.

        Activation checkpointing computes a part of the model again in the backward pass, and reads
        both then. They stay until the next call, or until :meth:`_take_out`.
        """
        self._take_out()
        if self._model.training != is_training:
            self._model.train(is_training)
        given = {**dict(zip(self._names, parameters)), **self._buffers}
        context = _reparametrize_module(self._model, given, tie_weights=True)
        context.__enter__()
        self._put_in = context
        outputs: torch.Tensor = self._model(inputs)
        self._refuse_changed_buffers(dict(self._model.named_buffers()))
        return outputs

    def _take_out(self) -> None:
        """Give the model its own parameters back, and the mode that it is called in."""
        context, self._put_in = self._put_in, None
        if context is not None:
            context.__exit__(None, None, None)
        if self._model.training == self._is_evaluating:
            self._model.train(not self._is_evaluating)

    def _refuse_changed_buffers(self, buffers: Mapping[str, torch.Tensor]) -> None:
        changed = [
            name
            for name, buffer in self._buffers.items()
            if buffer._version != self._versions[name] or buffers.get(name) is not buffer
        ]
        if changed:
            message = (
                f"The model changes its buffers while it trains: {', '.join(changed)}. A step "
                "would depend on more than its state. Make them parameters, or leave them alone."
            )
            raise RecipeError(message)

    def losses(self, state: State, batch: Batch) -> torch.Tensor:
        """Return the loss of each example in the step that comes next, in training mode.

        Args:
            state: the state before the step.
            batch: the examples of the step.

        Returns:
            Shape (batch,), differentiable in the state's parameters.

        Raises:
            RecipeError: the model or the loss failed, or the loss is not one number an example.
        """
        epoch, step_in_epoch = self.position(state.step)
        try:
            with self._dropout.scope(epoch, step_in_epoch, rank=None):
                outputs = self._run(state.parameters, batch.inputs, is_training=True)
                losses = self.recipe.loss(outputs, batch.targets)
        except FAILURES as error:
            if isinstance(error, (RecipeError, OutOfMemoryError)):
                raise
            message = (
                f"Model or loss failed at step {state.step} on {describe_batch(batch)}: {error}"
            )
            raise RecipeError(message) from error

        if losses.shape != (len(batch.indices),):
            message = (
                f"The loss must be one number an example, shape ({len(batch.indices)},); "
                f"got shape {tuple(losses.shape)}."
            )
            raise RecipeError(f"{message} Use reduction='none'.")
        return losses

    def step(
        self,
        state: State,
        weights: torch.Tensor,
        batch: Optional[Batch] = None,
        *,
        create_graph: bool = False,
        cuts: bool = False,
    ) -> State:
        """Return the state after one step; a pure function.

        Args:
            state: the state before.
            weights: of the examples of the batch, shape (batch,), in the recipe's dtype.
            batch: the examples of the step; None fetches them.
            create_graph: make the result differentiable in the state's tensors and the weights,
                which must then require a gradient.
            cuts: divide by the sum of the weights instead of the batch's full size, as if examples
                of weight zero were cut out.

        Raises:
            RecipeError: the model or the loss failed, or the loss is not finite or not one number
                an example.
        """
        batch = self.batch(state.step) if batch is None else batch
        gradients, _ = self._differentiate(
            state, weights, batch, create_graph=create_graph, cuts=cuts
        )
        with contextlib.nullcontext() if create_graph else torch.no_grad():
            return self._update(state, gradients)

    def gradients(
        self,
        state: State,
        weights: torch.Tensor,
        batch: Batch,
        *,
        create_graph: bool = False,
        cuts: bool = False,
    ) -> Tuple[Optional[torch.Tensor], ...]:
        """Return the gradient of each parameter for the next step, None where it has none.

        The gradients are as the loss gives them: not clipped, and without weight decay.

        Args:
            state: the state before.
            weights: of the examples of the batch, shape (batch,), in the recipe's dtype.
            batch: the examples of the step.
            create_graph: make the result differentiable in the state's tensors and the weights,
                which must then require a gradient.
            cuts: divide by the sum of the weights instead of the batch's full size.

        Raises:
            RecipeError: the model or the loss failed, or the loss is not finite or not one number
                an example.
        """
        gradients, _ = self._differentiate(
            state, weights, batch, create_graph=create_graph, cuts=cuts
        )
        return gradients

    def _differentiate(
        self, state: State, weights: torch.Tensor, batch: Batch, *, create_graph: bool, cuts: bool
    ) -> Tuple[Tuple[Optional[torch.Tensor], ...], torch.Tensor]:
        """Return the gradients of the next step, and the loss of each of its examples."""
        parameters = state.parameters
        if not create_graph:
            parameters = tuple(parameter.detach().requires_grad_() for parameter in parameters)
        with torch.enable_grad():
            losses = self.losses(attrs.evolve(state, parameters=parameters), batch)
            # At least 1, so that a batch of which nothing is left steps by zero and not by 0 / 0.
            size = weights.sum().clamp(min=1) if cuts else len(batch.indices)
            loss = (weights * losses).sum() / size
            if not torch.isfinite(loss):
                raise RecipeError(explain_loss(state.step, loss.item(), batch, losses))
            gradients = torch.autograd.grad(
                loss, parameters, create_graph=create_graph, allow_unused=True
            )
        if not create_graph:
            self._take_out()
        return gradients, losses.detach()

    def _update(self, state: State, gradients: Sequence[Optional[torch.Tensor]]) -> State:
        """Return the state after the optimizer's step with the gradients of the loss."""
        rule = OPTIMIZERS[self.recipe.optimizer]
        updated, kept, counts = [], [], []

        # The order of torch's loop: backward, clip_grad_norm_, optimizer.step. The norm is that of
        # the loss's gradients alone; weight decay is the optimizer's, which adds it afterwards.
        clipped = apply_clip(gradients, self.recipe.clip_norm)
        hypers = self._hyper_of(state.step)
        for parameter, gradient, slots, count, hyper in zip(
            state.parameters, clipped, state.slots, state.updates, hypers
        ):
            # As torch: a parameter whose gradient is None is left alone, by momentum and decay too,
            # and its bias correction does not count the step. A gradient of zeros would move it.
            new, new_slots = parameter, slots
            if gradient is not None:
                new, new_slots = rule(
                    parameter, gradient, slots, hyper, count, self.recipe.eps_root
                )
            updated.append(new)
            kept.append(new_slots)
            counts.append(count + (gradient is not None))

        return State(
            parameters=tuple(updated), slots=tuple(kept), updates=tuple(counts), step=state.step + 1
        )

    def advance(
        self,
        state: State,
        stop: int,
        weights: Optional[torch.Tensor] = None,
        progress: Optional[Callable[[int, int], None]] = None,
        *,
        cuts: bool = False,
    ) -> State:
        """Return the state before step ``stop``.

        Args:
            state: where to start.
            stop: int, ``state.step <= stop <= steps``.
            weights: of all training examples, shape (size,); None is 1 for each.
            progress: called with (steps done, steps of the training) after each step.
            cuts: divide by the sum of the weights instead of the batch's full size, as if examples
                of weight zero were cut out.

        Raises:
            RecipeError: the weights have another shape, or the training diverged.
        """
        whole = self.ones(self.size) if weights is None else self.place(weights)
        if whole.shape != (self.size,):
            raise RecipeError(
                f"weights must have shape ({self.size},), one for each example; got "
                f"{tuple(whole.shape)}."
            )

        for step in range(state.step, stop):
            batch = self.batch(step)
            gradients, losses = self._differentiate(
                state, whole[batch.indices], batch, create_graph=False, cuts=cuts
            )
            if weights is None:
                self.history.add(step, batch, losses)
            with torch.no_grad():
                state = self._update(state, gradients)
            if weights is None and state.step == self.steps:
                self.history.end(state)
            if progress is not None:
                progress(step + 1, self.steps)
        return state

    def check(self) -> None:
        """Look at the data, compute the first step twice from its beginning, and compare.

        A replay rests on this: a step that is computed again must be the step that was.

        Raises:
            RecipeError: the batch or the step was another one the second time, or it failed; the
                data have a number that is not finite, or a class that the model has no output for.
        """
        with torch_threads(self.recipe.threads):
            if self._tensors is not None:
                check_data(self, *self._tensors)

            # The batch before the step: a dataset that draws outside the streams would show in the
            # step too, but as a fault of the model.
            batches = [self.batch(0) for _ in range(2)]
            first, second = (
                bytes_of([batch.inputs, batch.targets, batch.indices]) for batch in batches
            )
            if first != second:
                message = (
                    "The first batch was another one when it was fetched again: the dataset "
                    "draws from something that no stream sets, such as a generator of its own. "
                    "Draw from the default generators of python, NumPy or torch."
                )
                raise RecipeError(message)

            # Bit for bit, unlike the walk back: both steps are computed in one way, so a difference
            # in the last place is one that comes back in every replay.
            initial = self.initial_state()
            weights = self.ones(len(batches[0].indices))
            states = [self.step(initial, weights, batch) for batch in batches]
            if states[0].fingerprint() != states[1].fingerprint():
                message = (
                    "The first step ended in another state when it was run again: model or loss "
                    "draws from something that no stream sets, such as a generator of its own, "
                    "or an operator is not deterministic. Draw from the default generators."
                )
                raise RecipeError(message + advise_determinism(self._device))

            steps = [(initial, batches[0])]
            if self.steps > 1:
                steps.append((states[0], self.batch(1)))
            check_gradients(self, self._names, self._dropout, steps)

    def train(
        self,
        weights: Optional[torch.Tensor] = None,
        progress: Optional[Callable[[int, int], None]] = None,
        *,
        cuts: bool = False,
    ) -> State:
        """Return the state after the last step of a training from the initial state.

        Args:
            weights: of all training examples, shape (size,); None is 1 for each.
            progress: called with (steps done, steps of the training) after each step.
            cuts: divide by the sum of the weights instead of the batch's full size, as if examples
                of weight zero were cut out.

        Raises:
            RecipeError: the weights have another shape, or the training diverged.
        """
        with torch_threads(self.recipe.threads):
            return self.advance(self.initial_state(), self.steps, weights, progress, cuts=cuts)

    def train_many(self, weights: torch.Tensor, *, cuts: bool = False) -> List[State]:
        """Train many models at once, with different weights, and return the final states.

        It is one computation over a stack of models (``torch.func.vmap``). For small models it is
        several times as fast as training one after the other. It is not bit-equal to that, since
        sums over a stack are done in another order.

        Args:
            weights: of all training examples for each model, shape (models, size).
            cuts: divide by the sum of the weights instead of the batch's full size, as if examples
                of weight zero were cut out.

        Raises:
            RecipeError: the recipe clips gradients, or the model has a layer that cannot be
                stacked.
        """
        if self.recipe.clip_norm is not None:
            raise RecipeError("Gradients are clipped model by model: train one by one.")

        count = len(weights)
        state = self.initial_state()
        state = state.with_tensors(
            [tensor.expand(count, *tensor.shape) for tensor in state.tensors()]
        )
        whole = self.place(weights)

        with torch_threads(self.recipe.threads), torch.no_grad():
            for step in range(self.steps):
                state = self._step_many(state, whole, self.batch(step), cuts=cuts)
        return [state.with_tensors([tensor[i] for tensor in state.tensors()]) for i in range(count)]

    def _step_many(self, state: State, whole: torch.Tensor, batch: Batch, *, cuts: bool) -> State:
        def loss(parameters: Tuple[torch.Tensor, ...], weights: torch.Tensor) -> torch.Tensor:
            losses = self.recipe.loss(self.call(parameters, batch.inputs), batch.targets)
            return (weights * losses).sum() / (
                weights.sum().clamp(min=1) if cuts else len(batch.indices)
            )

        epoch, step_in_epoch = self.position(state.step)
        try:
            # One draw for all models of the stack: what a training by itself would draw.
            with self._dropout.scope(epoch, step_in_epoch, rank=None):
                gradients = vmap(grad(loss), randomness="same")(
                    state.parameters, whole[:, batch.indices]
                )
        except RuntimeError as error:
            raise RecipeError(
                f"The model cannot be trained as a stack: {error}. Train one by one."
            ) from error
        return self._update(state, gradients)

    def fingerprint(self, steps: int = 10) -> str:
        """Return SHA-256 over the state after the first steps, the recipe, options and data.

        Two processes with equal fingerprints have equal initial parameters, orders, data and
        schedules, and equal arithmetic as far as the first steps show it. Data that are no tensors
        show as far as these steps fetch them.

        Args:
            steps: int >= 0, how many steps are computed for it.

        Returns:
            64 hexadecimal digits.
        """
        recipe = self.recipe
        with torch_threads(recipe.threads):
            state = self.advance(self.initial_state(), min(steps, self.steps))

        # Saved scores and stores of retrainings hold this digest: what is hashed, and its order,
        # cannot change.
        name = getattr(recipe.loss, "__qualname__", type(recipe.loss).__qualname__)
        loss = f"{getattr(recipe.loss, '__module__', type(recipe.loss).__module__)}.{name}"
        named = (
            self.steps,
            self.size,
            recipe.batch_size,
            recipe.optimizer.__name__,
            recipe.clip_norm,
            recipe.eps_root,
            loss,
        )
        sha = hashlib.sha256(f"{state.fingerprint()} {named} {self._group_of}".encode())
        for row in self._hyper:
            sha.update(repr(row).encode())
        sha.update(self._hash_data())
        return sha.hexdigest()

    def describe(self) -> Dict[str, Any]:
        """Return what the training is made of, as plain data: options, and digests of the rest."""
        return describe_recipe(self.recipe, self._model, self._tensors, lambda: self.batch(0))

    def whole_fingerprint(self) -> str:
        """Return SHA-256 over the recipe and over what the whole training did with it.

        Trains once where that was not done yet. Two trainings with one such fingerprint had the
        same data in the same batches, the same loss for each example in each step, and the same
        end. It depends on the arithmetic of the machine.

        Returns:
            64 hexadecimal digits.

        Raises:
            RecipeError: the training diverged.
        """
        if not self.history.is_whole:
            self.train()
        sha = hashlib.sha256(f"{self.fingerprint(0)} {self.history.fingerprint()}".encode())
        self._take_out()
        add_tensors(sha, self._buffers.values())
        add_tensors(sha, (p for p in self._model.parameters() if not p.requires_grad))
        return sha.hexdigest()

    def _hash_data(self) -> bytes:
        """Return SHA-256 over the data where they are tensors; read once, as they may be large."""
        if self._data_hash is None:
            sha = hashlib.sha256()
            add_tensors(sha, self._tensors or ())
            self._data_hash = sha.digest()
        return self._data_hash

    def handshake(self) -> Dict[str, str]:
        """Return what must be equal in every process that repeats the training, by name.

        It is the training's fingerprint, and the facts of the environment that may change its bits.
        """
        with torch_threads(self.recipe.threads):
            facts = dict(environment.snapshot().values)
        return {
            **{name: str(facts.get(name)) for name in COMPUTES},
            "seedregistry": __version__,
            "dtype": str(self.recipe.dtype),
            "fingerprint": self.fingerprint(),
        }

    def copy_model(self, state: State) -> nn.Module:
        """Return a copy of the model with the parameters of a state, in evaluation mode.

        Its outputs are not differentiable in the state. A measurement calls :meth:`outputs`
        instead.
        """
        self._take_out()
        model = copy.deepcopy(self._model)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in zip(self._names, state.parameters):
                parameters[name].copy_(parameter)
        return model.eval()
