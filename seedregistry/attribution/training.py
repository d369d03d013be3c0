"""A recipe carried out: states, and steps that are pure functions of (state, step, example weights)."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import attrs
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset

import seedregistry
from seedregistry import environment, rng
from seedregistry.attribution.optimizers import OPTIMIZERS, apply_clip, check_options, slot_names
from seedregistry.attribution.recipe import cross_entropy
from seedregistry.errors import RecipeError

if TYPE_CHECKING:
    from seedregistry.attribution.recipe import Recipe
    from seedregistry.registry import SeedRegistry

__all__ = ["Batch", "State", "Training", "pinned_threads"]

_COMPUTES = (
    "machine",
    "numpy",
    "torch",
    "torch.cuda",
    "torch.num_threads",
    "torch.float32_matmul_precision",
    "cuda.matmul.allow_tf32",
    "cudnn.allow_tf32",
    "mkldnn.enabled",
)
"""Facts of the environment that may change the bits of a training."""


@attrs.frozen(kw_only=True, eq=False)
class State:
    """What a step starts from: all that training carries from step to step.

    Attributes:
        parameters: of the model, in the order of ``named_parameters``.
        slots: of the optimizer, for each parameter.
        step: int >= 0, the step that comes next.
    """

    parameters: Tuple[torch.Tensor, ...]
    slots: Tuple[Tuple[torch.Tensor, ...], ...]
    step: int

    def tensors(self) -> Tuple[torch.Tensor, ...]:
        """Return all tensors in one order: parameters, then slots."""
        return (*self.parameters, *(tensor for slots in self.slots for tensor in slots))

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> State:
        """Return a state of the same step with other tensors, in the order of :meth:`tensors`."""
        rest = list(tensors[len(self.parameters) :])
        slots = []
        for own in self.slots:
            slots.append(tuple(rest[: len(own)]))
            del rest[: len(own)]
        return State(parameters=tuple(tensors[: len(self.parameters)]), slots=tuple(slots), step=self.step)

    def fingerprint(self) -> str:
        """Return SHA-256 over step, dtypes, shapes and bytes: 64 hexadecimal digits."""
        sha = hashlib.sha256(str(self.step).encode())
        for tensor in self.tensors():
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """The examples of one step.

    Attributes:
        inputs: of the model.
        targets: of the loss.
        indices: of the examples in the dataset, int64, shape (batch,).
    """

    inputs: Any
    targets: Any
    indices: torch.Tensor


@contextlib.contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Run a block with a number of torch's threads, and give the caller's back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Training:
    """A recipe on a registry. Every step is a pure function of the state, its number and the examples' weights.

    The model, the optimizer, the scheduler and the loader come from the registry and are in its ledger; what dropout draws in
    step s of epoch e is a function of (("dropout", instance id), e, s). So any step can be run again, from its state, at any
    time and in any process with the same versions and threads.

    Lifetime: as long as it is used; it keeps the data and no state. Not thread-safe: torch's default generators belong to the
    process.

    Args:
        registry: where everything is derived and recorded.
        recipe: what to do.

    Attributes:
        steps: number of steps.
        size: number of training examples.

    Raises:
        RecipeError: the model has batch norm statistics or other buffers that training changes, or an option of the optimizer
            cannot be replayed.
        DeviceError: the recipe's device is none, or not there.
    """

    def __init__(self, registry: SeedRegistry, recipe: Recipe) -> None:
        self.registry = registry
        self.recipe = recipe
        self._device = rng.resolve_device(recipe.device)
        name = recipe.instance_id
        model = registry.model(recipe.model, instance_id=name if recipe.model_id is None else recipe.model_id)
        _refuse_running_statistics(model)
        self._model = model.to(self._device, recipe.dtype)
        self._model.train()
        self._names = [parameter_name for parameter_name, _ in self._model.named_parameters()]
        self._buffers = dict(self._model.named_buffers())
        self._versions = {name: buffer._version for name, buffer in self._buffers.items()}
        self._initial = tuple(parameter.detach().clone() for parameter in self._model.parameters())
        dataset = recipe.as_dataset()
        self.size = recipe.size
        self._loader = registry.dataloader(
            dataset,
            instance_id=name if recipe.order_id is None else recipe.order_id,
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=recipe.drop_last,
            shard=False,
        )
        self._tensors = tuple(map(self.place, dataset.tensors)) if type(dataset) is TensorDataset else None
        self._epoch_length = len(self._loader)
        self.steps = recipe.epochs * self._epoch_length
        self._dropout = registry.stream("dropout", name)
        self._orders: Dict[int, torch.Tensor] = {}
        self._hyper = self._schedule()

    # --- what a step is made of ---------------------------------------------------------------------------------------

    def _schedule(self) -> List[Tuple[Dict[str, Any], ...]]:
        """Return, for each step and parameter, the options of its group: read from torch's own optimizer and scheduler."""
        recipe, registry = self.recipe, self.registry
        parameters = list(self._model.parameters())
        groups = parameters if recipe.parameter_groups is None else recipe.parameter_groups(self._model)
        optimizer = registry.optimizer(recipe.optimizer, groups, instance_id=recipe.instance_id, **recipe.optimizer_options)
        check_options(recipe.optimizer, optimizer.param_groups)
        scheduler = None
        if recipe.scheduler is not None:
            options = {name: self.steps if value == "steps" else value for name, value in recipe.scheduler_options.items()}
            scheduler = registry.scheduler(recipe.scheduler, optimizer, instance_id=recipe.instance_id, **options)
        positions = {id(parameter): index for index, parameter in enumerate(parameters)}
        members = [[positions.get(id(parameter), -1) for parameter in group["params"]] for group in optimizer.param_groups]
        if sorted(index for group in members for index in group) != list(range(len(parameters))):
            raise RecipeError("parameter_groups must have each of the model's parameters once.")
        is_decoupled = recipe.optimizer is torch.optim.AdamW
        table = []
        for _ in range(self.steps):
            own: List[Dict[str, Any]] = [{}] * len(parameters)
            for group, indices in zip(optimizer.param_groups, members):
                options = {key: value for key, value in group.items() if key != "params"}
                options["is_decoupled"] = is_decoupled
                for index in indices:
                    own[index] = options
            table.append(tuple(own))
            optimizer.step()  # without gradients it changes nothing; a scheduler wants to see it
            if scheduler is not None:
                scheduler.step()
        return table

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, of the first parameter's group."""
        return float(self._hyper[step][0]["lr"])

    def examples(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs and targets of all training examples, in the dataset's order, on the recipe's device.

        Raises:
            RecipeError: the data are no tensors.
        """
        if self._tensors is None:
            raise RecipeError("This needs data given as two tensors: what a dataset draws while it fetches has no one value.")
        inputs, targets = self._tensors
        return inputs, targets

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode for a block."""
        self._model.eval()
        try:
            yield
        finally:
            self._model.train()

    def place(self, value: Any) -> Any:
        """Return a tensor on the recipe's device, a floating one in its dtype; anything else as it is."""
        return self.recipe.cast(value).to(self._device) if isinstance(value, torch.Tensor) else value

    def ones(self, count: int, *, requires_grad: bool = False) -> torch.Tensor:
        """Return weights of 1 for some examples, shape (count,), on the recipe's device in its dtype."""
        return torch.ones(count, dtype=self.recipe.dtype, device=self._device, requires_grad=requires_grad)

    def position(self, step: int) -> Tuple[int, int]:
        """Return (epoch, step in the epoch) of a step of the run."""
        return divmod(step, self._epoch_length)

    def batch(self, step: int) -> Batch:
        """Return the examples of a step, fetched again by position."""
        epoch, own = self.position(step)
        if self._tensors is None:
            inputs, targets = self._loader.batch(epoch, own)
            return Batch(inputs=self.place(inputs), targets=self.place(targets), indices=self._loader.indices(epoch, own))
        order = self._orders.get(epoch)
        if order is None:
            self._orders.clear()  # walked backwards, one epoch after the other is looked at
            order = self._orders[epoch] = self._loader.indices(epoch)
        size = self.recipe.batch_size
        indices = order[own * size : (own + 1) * size]
        inputs, targets = (tensor[indices] for tensor in self._tensors)
        return Batch(inputs=inputs, targets=targets, indices=indices)

    def initial_state(self) -> State:
        """Return the state before the first step."""
        slots = tuple(
            tuple(torch.zeros_like(parameter) for _ in slot_names(self.recipe.optimizer, hyper))
            for parameter, hyper in zip(self._initial, self._hyper[0])
        )
        return State(parameters=self._initial, slots=slots, step=0)

    # --- steps --------------------------------------------------------------------------------------------------------

    def outputs(self, state: State, inputs: Any) -> torch.Tensor:
        """Return the model's outputs in evaluation mode, differentiable in the state's parameters."""
        with self.evaluating():
            return self.call(state.parameters, self.place(inputs))

    def call(self, parameters: Sequence[torch.Tensor], inputs: Any) -> torch.Tensor:
        """Return the model's outputs in the mode it is in, differentiable in the parameters.

        Args:
            parameters: in the order of a state's.
            inputs: of a batch.

        Raises:
            RecipeError: the model changed its buffers.
        """
        outputs: torch.Tensor = functional_call(self._model, {**dict(zip(self._names, parameters)), **self._buffers}, (inputs,))
        changed = [name for name, buffer in self._buffers.items() if buffer._version != self._versions[name]]
        if changed:
            message = (
                f"The model changes its buffers while it trains: {', '.join(changed)}. A step would depend on more than its "
                "state. Make them parameters, or leave them alone."
            )
            raise RecipeError(message)
        return outputs

    def losses(self, state: State, batch: Batch) -> torch.Tensor:
        """Return the loss of each example of the step that comes next, in training mode: shape (batch,)."""
        epoch, own = self.position(state.step)
        try:
            with self._dropout.scope(epoch, own, rank=None):
                losses = self.recipe.loss(self.call(state.parameters, batch.inputs), batch.targets)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, RecipeError):
                raise
            shapes = f"inputs {_describe(batch.inputs)}, targets {_describe(batch.targets)}"
            raise RecipeError(f"Model or loss failed at step {state.step} on {shapes}: {error}") from error
        if losses.shape != (len(batch.indices),):
            message = f"The loss must be one number an example, shape ({len(batch.indices)},); got shape {tuple(losses.shape)}."
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
            batch: of the step, fetched where it is not given.
            create_graph: make the result differentiable in the state's tensors and the weights, which must then require it.
            cuts: divide by the sum of the weights instead of the batch's full size, as if examples of weight zero were cut out.
        """
        batch = self.batch(state.step) if batch is None else batch
        parameters = state.parameters
        if not create_graph:
            parameters = tuple(parameter.detach().requires_grad_() for parameter in parameters)
        with torch.enable_grad():
            losses = self.losses(attrs.evolve(state, parameters=parameters), batch)
            size = weights.sum().clamp(min=1) if cuts else len(batch.indices)
            loss = (weights * losses).sum() / size
            if not torch.isfinite(loss):
                message = f"The loss of step {state.step} is {loss.item()}: the training diverged. Lower the learning rate."
                raise RecipeError(message)
            gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
        with contextlib.nullcontext() if create_graph else torch.no_grad():
            return self._update(state, gradients)

    def _update(self, state: State, gradients: Sequence[Optional[torch.Tensor]]) -> State:
        rule = OPTIMIZERS[self.recipe.optimizer]
        updated, kept = [], []
        clipped = apply_clip(gradients, self.recipe.clip_norm)
        for parameter, gradient, slots, hyper in zip(state.parameters, clipped, state.slots, self._hyper[state.step]):
            new, new_slots = parameter, slots
            if gradient is not None:
                new, new_slots = rule(parameter, gradient, slots, hyper, state.step, self.recipe.eps_root)
            updated.append(new)
            kept.append(new_slots)
        return State(parameters=tuple(updated), slots=tuple(kept), step=state.step + 1)

    def advance(
        self,
        state: State,
        stop: int,
        weights: Optional[torch.Tensor] = None,
        progress: Optional[Callable[[int], None]] = None,
        *,
        cuts: bool = False,
    ) -> State:
        """Return the state before step ``stop``.

        Args:
            state: where to start.
            stop: int, ``state.step <= stop <= steps``.
            weights: of all training examples, shape (size,); None is 1 for each.
            progress: told the number of each step that is done.
            cuts: as for :meth:`step`.
        """
        whole = self.ones(self.size) if weights is None else self.place(weights)
        for step in range(state.step, stop):
            batch = self.batch(step)
            state = self.step(state, whole[batch.indices], batch, cuts=cuts)
            if progress is not None:
                progress(step)
        return state

    def check(self) -> None:
        """Look at the data, and run the first step twice, from its beginning, and compare: what a replay rests on.

        Raises:
            RecipeError: the batch or the step was not the same the second time, or it failed; the data have a number that is
            not finite, or a class that the model has no output for.
        """
        with pinned_threads(self.recipe.threads):
            self._check_data()
            batches = [self.batch(0) for _ in range(2)]
            first, second = (_bytes_of([batch.inputs, batch.targets, batch.indices]) for batch in batches)
            if first != second:
                message = (
                    "The first batch was another one when it was fetched again: the dataset draws from something that no "
                    "stream sets, such as a generator of its own. Draw from the default generators of python, NumPy or torch."
                )
                raise RecipeError(message)
            weights = self.ones(len(batches[0].indices))
            states = [self.step(self.initial_state(), weights, batch) for batch in batches]
            if states[0].fingerprint() != states[1].fingerprint():
                message = (
                    "The first step ended in another state when it was run again: model or loss draws from something that no "
                    "stream sets, such as a generator of its own, or an operator is not deterministic. Draw from the default "
                    "generators."
                )
                raise RecipeError(message)

    def _check_data(self) -> None:
        """Find examples that would end the training when their turn comes, where the data are tensors."""
        if self._tensors is None:
            return
        inputs, targets = self._tensors
        if inputs.is_floating_point():
            wrong = (~torch.isfinite(inputs).flatten(1).all(1)).nonzero().flatten()
            if len(wrong):
                raise RecipeError(f"The inputs of {len(wrong)} examples are not finite; the first is example {int(wrong[0])}.")
        if self.recipe.loss is cross_entropy and not targets.is_floating_point():
            try:
                with torch.no_grad(), self.evaluating():
                    classes = self.call(self._initial, inputs[:1]).shape[1]
            except (IndexError, RuntimeError, TypeError, ValueError):
                return  # the first step says what is wrong with the model
            wrong = ((targets < 0) | (targets >= classes)).flatten().nonzero().flatten()
            if len(wrong):
                first = int(wrong[0])
                message = (
                    f"The targets of {len(wrong)} examples are no classes: the model has {classes} outputs, and the target of "
                    f"example {first} is {int(targets.flatten()[first])}."
                )
                raise RecipeError(message)

    def run(
        self,
        weights: Optional[torch.Tensor] = None,
        progress: Optional[Callable[[int], None]] = None,
        *,
        cuts: bool = False,
    ) -> State:
        """Train from the first step to the last; see :meth:`advance`."""
        with pinned_threads(self.recipe.threads):
            return self.advance(self.initial_state(), self.steps, weights, progress, cuts=cuts)

    def run_many(self, weights: torch.Tensor, *, cuts: bool = False) -> List[State]:
        """Train many times at once, each with weights of its own, and return the final states.

        One computation over a stack of models (``torch.func.vmap``): for small models several times as fast as one by one,
        and not bit-equal to it, since sums over a stack are done in another order.

        Args:
            weights: of all training examples for each model, shape (models, size).
            cuts: as for :meth:`step`.

        Raises:
            RecipeError: the recipe clips gradients, or the model has a layer that cannot be stacked.
        """
        if self.recipe.clip_norm is not None:
            raise RecipeError("Gradients are clipped model by model: train one by one.")
        count = len(weights)
        state = self.initial_state()
        state = state.with_tensors([tensor.expand(count, *tensor.shape) for tensor in state.tensors()])
        whole = self.place(weights)
        with pinned_threads(self.recipe.threads), torch.no_grad():
            for step in range(self.steps):
                state = self._step_many(state, whole, self.batch(step), cuts=cuts)
        return [state.with_tensors([tensor[i] for tensor in state.tensors()]) for i in range(count)]

    def _step_many(self, state: State, whole: torch.Tensor, batch: Batch, *, cuts: bool) -> State:
        def loss(parameters: Tuple[torch.Tensor, ...], weights: torch.Tensor) -> torch.Tensor:
            losses = self.recipe.loss(self.call(parameters, batch.inputs), batch.targets)
            return (weights * losses).sum() / (weights.sum().clamp(min=1) if cuts else len(batch.indices))

        epoch, own = self.position(state.step)
        try:
            with self._dropout.scope(epoch, own, rank=None):  # one draw for all models, that of a single one
                gradients = vmap(grad(loss), randomness="same")(state.parameters, whole[:, batch.indices])
        except RuntimeError as error:
            raise RecipeError(f"The model cannot be trained as a stack: {error}. Train one by one.") from error
        return self._update(state, gradients)

    def fingerprint(self, steps: int = 10) -> str:
        """Return SHA-256 over the state after the first steps at weight 1, all options of all steps, and the data.

        Two processes with equal fingerprints train alike, as far as that shows: the same initial parameters, order, data,
        arithmetic and schedule. Data that are no tensors show as far as these steps fetch them.
        """
        with pinned_threads(self.recipe.threads):
            state = self.advance(self.initial_state(), min(steps, self.steps))
        sha = hashlib.sha256(f"{state.fingerprint()} {self.steps} {self.size} {self._hyper!r}".encode())
        for data in _bytes_of(self._tensors or ()):
            sha.update(hashlib.sha256(data).digest())
        return sha.hexdigest()

    def handshake(self) -> Dict[str, str]:
        """Return what must be equal in every process that repeats the run, by name: its fingerprint, and what computes it."""
        with pinned_threads(self.recipe.threads):
            facts = dict(environment.snapshot().values)
        return {
            **{name: str(facts[name]) for name in _COMPUTES},
            "seedregistry": seedregistry.__version__,
            "dtype": str(self.recipe.dtype),
            "fingerprint": self.fingerprint(),
        }

    def model(self, state: State) -> nn.Module:
        """Return a model with the parameters of a state, in evaluation mode."""
        model = copy.deepcopy(self._model)
        with torch.no_grad():
            for own, parameter in zip(model.parameters(), state.parameters):
                own.copy_(parameter)
        return model.eval()


def _bytes_of(values: Sequence[Any]) -> List[bytes]:
    """Return the bytes of what a batch holds, where they are tensors."""
    return [
        value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for value in values
        if isinstance(value, torch.Tensor)
    ]


def _describe(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"of type {type(value).__name__}"


def _refuse_running_statistics(model: nn.Module) -> None:
    """Refuse layers that carry state of their own from batch to batch.

    An example of weight zero still enters batch statistics, so its removal could not be predicted either.
    """
    names = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
    ]
    if names:
        message = (
            f"The model carries batch statistics from step to step: {', '.join(names)}. An example of weight 0 still enters "
            "them. Use GroupNorm or LayerNorm."
        )
        raise RecipeError(message)
