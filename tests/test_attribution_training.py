"""Training as a pure function: bit-equal to torch's own loop, from any state, for every
optimizer and schedule."""

from __future__ import annotations

import inspect
import math
import pickle
from functools import lru_cache

import numpy as np
import pytest
import torch
from recipes import (
    ADAM,
    CLASSES,
    FEATURES,
    SGD,
    SIZE,
    VARIANTS,
    Checkpointed,
    Counting,
    Replacing,
    Unused,
    batch_norm,
    data,
    held_out,
    mlp,
    mlp_with_dropout,
    recipe,
)
from torch import nn
from torch.utils.data import TensorDataset

from seedregistry import SeedRegistry
from seedregistry.attribution import (
    GroupNorm,
    Recipe,
    Training,
    construct_digits_cnn,
    construct_digits_mlp,
    construct_rn9,
    lds,
    losses_of,
    magic,
    metagradients,
    metasmoothness,
    retrain,
)
from seedregistry.attribution import training as training_module
from seedregistry.attribution.replay import (
    KeptStates,
    best_cut,
    default_keep,
    replayed_steps,
    walk_back,
)
from seedregistry.errors import InvalidOptionError, RecipeError, ReplayError


def plain_loop(plain: Recipe, weights=None) -> nn.Module:
    """The loop that a user of torch would write, with torch's optimizer, on the same registry."""
    registry = SeedRegistry(42)
    model = registry.model(plain.model, instance_id="training").to(plain.dtype)
    groups = model.parameters() if plain.parameter_groups is None else plain.parameter_groups(model)
    optimizer = registry.optimizer(
        plain.optimizer, groups, instance_id="training", **plain.optimizer_options
    )
    loader = registry.dataloader(
        plain.as_dataset(),
        instance_id="training",
        batch_size=plain.batch_size,
        shuffle=True,
        drop_last=plain.drop_last,
    )
    scheduler = None
    if plain.scheduler is not None:
        total = plain.epochs * len(loader)
        options = {
            key: total if value == "steps" else value
            for key, value in plain.scheduler_options.items()
        }
        scheduler = registry.scheduler(
            plain.scheduler, optimizer, instance_id="training", **options
        )
    dropout = registry.stream("dropout", "training")
    for epoch in range(plain.epochs):
        for step, (inputs, targets) in loader.steps(epoch):
            with dropout.scope(epoch, step):
                losses = plain.loss(model(inputs), targets)
            if weights is not None:
                losses = losses * weights[loader.indices(epoch, step)]
            optimizer.zero_grad()
            (losses.sum() / len(targets)).backward()
            if plain.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), plain.clip_norm)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_torchs_own_loop(name, dtype):
    """With every optimizer, schedule and option, and with weights, the result is that of torch's
    loop, bit for bit."""
    if dtype == torch.float32 and name == "augmentation":
        pytest.skip("the dataset is float64")
    plain = recipe(**{**VARIANTS[name], "eps_root": 0.0, "dtype": dtype})
    weights = torch.ones(SIZE, dtype=dtype)
    weights[::7] = 0
    for given in (None, weights):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        expected = plain_loop(plain, given)
        torch.set_num_threads(threads)
        training = Training(SeedRegistry(42), plain)
        for parameter, torchs in zip(
            training.copy_model(training.train(given)).parameters(), expected.parameters()
        ):
            assert torch.equal(parameter, torchs), name


@pytest.mark.skipif(
    "decoupled_weight_decay" not in inspect.signature(torch.optim.Adam).parameters,
    reason="no such option in this torch",
)
def test_adam_with_decoupled_weight_decay():
    """Adam with decoupled weight decay is torch's, bit for bit, and not Adam with the other
    kind."""
    options = {**ADAM, "decoupled_weight_decay": True}
    plain = recipe(optimizer=torch.optim.Adam, optimizer_options=options)
    expected = plain_loop(plain)
    state = Training(SeedRegistry(42), plain).train()
    assert all(
        torch.equal(ours, torchs) for ours, torchs in zip(state.parameters, expected.parameters())
    )
    other = Training(
        SeedRegistry(42), recipe(optimizer=torch.optim.Adam, optimizer_options=ADAM)
    ).train()
    assert not torch.equal(state.parameters[0], other.parameters[0])


def test_a_parameter_without_gradient_stays():
    """As in torch, a parameter that the loss does not depend on is left alone, weight decay or
    not."""
    plain = recipe(model=Unused)
    state = Training(SeedRegistry(42), plain).train()
    expected = plain_loop(plain)
    for parameter, torchs in zip(state.parameters, expected.parameters()):
        assert torch.equal(parameter, torchs)


@pytest.mark.parametrize("name", ["dropout", "augmentation", "one cycle with adamw"])
def test_any_step_can_be_run_again(name):
    """From any state the rest of the training gives the same bits, also in a second training object
    and after other steps."""
    training, other = (Training(SeedRegistry(42), recipe(**VARIANTS[name])) for _ in range(2))
    final = training.train().fingerprint()
    for step in (0, 1, 3, training.steps - 1):
        state = training.advance(training.initial_state(), step)
        training.losses(state, training.batch(step))
        assert other.advance(state, other.steps).fingerprint() == final
    assert training.fingerprint() == other.fingerprint()
    assert (
        training.fingerprint() != Training(SeedRegistry(43), recipe(**VARIANTS[name])).fingerprint()
    )


def test_training_moves_and_keeps_nothing():
    """A training moves no default generator, changes neither the initial state nor the number of
    threads, and draws at positions."""
    training = Training(SeedRegistry(42), recipe(**VARIANTS["dropout"], threads=2))
    before = training.initial_state().fingerprint(), torch.get_num_threads(), torch.get_rng_state()
    training.train()
    assert (training.initial_state().fingerprint(), torch.get_num_threads()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_ledger_has_the_training():
    """Model, optimizer, scheduler and loader of a recipe are built by the registry, and
    recorded."""
    registry = SeedRegistry(42)
    Training(registry, recipe(**VARIANTS["one cycle"]))
    assert [name[0] for name in registry] == [
        "model",
        "dataloader",
        "dropout",
        "optimizer",
        "scheduler",
    ]
    assert registry.ledger.verify().ok


def test_weights_of_zero_and_cutting():
    """Weight zero leaves the others' share as it is; cutting divides by those that are left; a
    batch of nothing still steps."""
    training = Training(SeedRegistry(42), recipe(optimizer_options={"lr": 0.1}))
    state = training.initial_state()
    batch = training.batch(0)
    half = torch.zeros(16, dtype=torch.float64)
    half[:8] = 1
    moves = [
        training.step(state, half, batch, cuts=cuts).parameters[0] - state.parameters[0]
        for cuts in (False, True)
    ]
    assert torch.allclose(moves[0] * 2, moves[1])
    for cuts in (False, True):
        nothing = training.step(state, torch.zeros(16, dtype=torch.float64), batch, cuts=cuts)
        assert torch.equal(nothing.parameters[0], state.parameters[0])
        assert nothing.step == 1


def test_the_model_of_a_state():
    """The model that a state stands for computes what the training's outputs are."""
    training = Training(SeedRegistry(42), recipe(**VARIANTS["dropout"]))
    state = training.train()
    inputs = data()[0]
    with torch.no_grad():
        assert torch.equal(training.copy_model(state)(inputs), training.outputs(state, inputs))


def test_states_and_recipes_pickle():
    """A state keeps its bits, and a recipe of importable functions its meaning, in another
    process."""
    training = Training(SeedRegistry(42), recipe())
    state = training.advance(training.initial_state(), 3)
    assert pickle.loads(pickle.dumps(state)).fingerprint() == state.fingerprint()
    again = Training(SeedRegistry(42), pickle.loads(pickle.dumps(training.recipe)))
    assert again.fingerprint() == training.fingerprint()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": (np.zeros((9, 6)), np.zeros(9))}, "two tensors of one length"),
        (
            {"dataset": TensorDataset(torch.zeros(9, 6), torch.zeros(9), torch.zeros(9))},
            "two tensors of one length",
        ),
        ({"clip_norm": "a"}, "clip_norm"),
        ({"epochs": 0}, "epochs must be an int > 0"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"model": "mlp"}, "model must be callable"),
        ({"optimizer": torch.optim.Adagrad}, "SGD, Adam, AdamW"),
        ({"dataset": (torch.zeros(3), torch.zeros(4))}, "one length"),
        ({"dataset": 7}, "a dataset with a length"),
        ({"dataset": (torch.zeros(0, 2), torch.zeros(0))}, "one length"),
        ({"drop_last": True, "batch_size": 100}, "leaves no batch"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"eps_root": 1e-9}, "eps_root is for Adam"),
        ({"dtype": torch.int64}, "floating dtype"),
        ({"threads": 0}, "threads"),
    ],
)
def test_recipes_that_are_none(changes, words):
    """A wrong argument is one clear error that says what was expected, before anything is built."""
    with pytest.raises(RecipeError, match=words):
        recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": batch_norm}, r"1 \(BatchNorm1d\).*GroupNorm"),
        ({"optimizer_options": {**SGD, "maximize": True}}, "maximize=True"),
        (
            {"optimizer": torch.optim.Adam, "optimizer_options": {**ADAM, "amsgrad": True}},
            "amsgrad=True",
        ),
        (
            {"parameter_groups": lambda model: [{"params": [model[0].weight]}]},
            "each of the model's parameters once",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused(changes, words):
    """A model or option whose steps depend on more than their state is refused by name, before
    any step."""
    with pytest.raises(RecipeError, match=words):
        Training(SeedRegistry(42), recipe(**changes))


def test_steps_that_are_not_pure_are_refused():
    """A model that changes a buffer, and a loss that is one number, are refused at the first
    step."""
    with pytest.raises(RecipeError, match="count"):
        Training(SeedRegistry(42), recipe(model=Counting)).train()
    with pytest.raises(RecipeError, match="changes its buffers while it trains: mean"):
        Training(SeedRegistry(42), recipe(model=Replacing)).train()
    with pytest.raises(RecipeError, match="reduction='none'"):
        Training(SeedRegistry(42), recipe(loss=nn.functional.cross_entropy)).train()


class DrawsFromItsOwn(torch.utils.data.Dataset):
    """Augments from a generator of its own, which no stream sets."""

    def __init__(self) -> None:
        self.inputs, self.targets = data()
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index):
        return self.inputs[index] + torch.randn(
            6, generator=self.generator, dtype=torch.float64
        ), self.targets[index]


class ImpureModel(nn.Module):
    """Perturbs its outputs from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, inputs):
        return self.layer(inputs) * (
            1 + torch.rand(1, generator=self.generator, dtype=torch.float64)
        )


def with_one_target(example: int, target: int) -> tuple:
    inputs, targets = data()
    targets[example] = target
    return inputs, targets


def with_one_input(example: int, value: float) -> tuple:
    inputs, targets = data()
    inputs[example, 2] = value
    return inputs, targets


@pytest.mark.filterwarnings("ignore::seedregistry.DatasetGeneratorWarning")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": DrawsFromItsOwn()}, "first batch was another one"),
        ({"model": ImpureModel}, "another state when it was run again"),
        (
            {"dataset": with_one_target(59, 3)},
            "1 examples are no classes: the model has 3 outputs, and .* example 59 is 3",
        ),
        (
            {"dataset": with_one_target(7, -1)},
            "1 examples are no classes: the model has 3 outputs, and .* example 7 is -1",
        ),
        (
            {"dataset": with_one_input(59, float("nan"))},
            "inputs of 1 examples are not finite; .* example 59",
        ),
        (
            {"dataset": (data()[0][:, :4], data()[1])},
            "failed at step 0 on inputs of shape .*targets of shape",
        ),
    ],
)
def test_what_does_not_replay_is_found_at_once(changes, words):
    """Data, models and targets that no replay can rest on are refused before the first training."""
    training = Training(SeedRegistry(42), recipe(**changes))
    measurement = losses_of(*held_out())
    for call in (lambda: magic(training, measurement), lambda: retrain(training, measurement)):
        with pytest.raises(RecipeError, match=words):
            call()
    with pytest.raises(RecipeError, match="scores must have shape"):
        lds(training, measurement, torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("measurement", "words"),
    [
        (
            lambda training, state: training.recipe.loss(
                training.outputs(state, data()[0][:2]), torch.tensor([0, 7])
            ),
            "failed on",
        ),
        (
            lambda training, state: training.outputs(state, data()[0][:2, :4])[:, 0],
            "failed on the state before step 0",
        ),
        (
            lambda training, state: training.outputs(state, data()[0][:2]),
            r"shape \(targets,\).*got shape \(2, 3\)",
        ),
        (lambda training, state: 3.0, r"shape \(targets,\).*got float"),
    ],
)
def test_measurements_are_tried_before_the_first_training(measurement, words, monkeypatch):
    """A measurement that fails, or is no vector of the state, is refused before hours of
    training, not after."""
    training = Training(SeedRegistry(42), recipe())
    for name in ("train", "advance"):
        monkeypatch.setattr(
            Training, name, lambda *arguments, **options: pytest.fail("a training began")
        )
    for call in (magic, retrain, metasmoothness):
        with pytest.raises(RecipeError, match=words):
            call(training, measurement)


class Triples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index):
        return torch.zeros(6, dtype=torch.float64), 0, index


class WithABadExample(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index):
        return torch.full((6,), float("nan") if index == 17 else 1.0, dtype=torch.float64), 0


class OnceOnly(torch.autograd.Function):
    """Doubles, and has no second derivative."""

    @staticmethod
    def forward(context, inputs):
        return 2 * inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return 2 * gradient


class FailsTwice(torch.autograd.Function):
    """Doubles, and its second derivative is an error, as that of torch's operators without one."""

    @staticmethod
    def forward(context, inputs):
        return 2 * inputs

    @staticmethod
    def backward(context, gradient):
        return Fails.apply(gradient)


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(context, gradient):
        return 2 * gradient

    @staticmethod
    def backward(context, gradient):
        raise RuntimeError("no second derivative here")


class BackwardFails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return FailsTwice.apply(torch.tanh(self.layer(inputs)))


class DifferentiableOnce(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return OnceOnly.apply(torch.tanh(self.layer(inputs)))


class Counts(nn.Module):
    """Keeps a count outside its state, and changes with it in the middle of a training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return self.layer(inputs) * (2 if self.calls > 30 else 1)


def test_other_inputs_that_are_none():
    """Examples that are no pairs, tensors as options, a scheduler that wants more, weights of
    another shape: clear errors."""
    for changes, words in (
        ({"dataset": Triples()}, "pairs.*has 3 parts"),
        ({"optimizer_options": {"lr": torch.tensor(0.1)}}, "lr=a tensor"),
        ({"scheduler": "ReduceLROnPlateau"}, "ReduceLROnPlateau"),
        ({"dataset": (data()[0][:, 0], data()[1])}, "failed at step 0"),
    ):
        with pytest.raises(RecipeError, match=words):
            Training(SeedRegistry(42), recipe(**changes)).check()
    with pytest.raises(RecipeError, match=r"shape \(60,\).*got \(1000,\)"):
        Training(SeedRegistry(42), recipe()).train(torch.ones(1000))
    with pytest.raises(RecipeError, match="nothing to train"):
        Training(SeedRegistry(42), recipe(model=lambda: mlp().requires_grad_(requires_grad=False)))


def test_a_bad_example_of_a_dataset_is_named():
    """Where a dataset gives an example whose loss is not finite, the step's error has its index."""
    with pytest.raises(RecipeError, match=r"loss of step \d+ is nan, from examples 17\."):
        Training(SeedRegistry(42), recipe(dataset=WithABadExample())).train()


def test_a_model_without_a_second_derivative_is_refused_before_the_training(monkeypatch):
    """What cannot be differentiated twice is refused before the first training, with the way out
    for attention."""
    monkeypatch.setattr(metagradients, "_walk", lambda *arguments: pytest.fail("the walk began"))
    for model, words in (
        (DifferentiableOnce, "once_differentiable"),
        (BackwardFails, "no second derivative here"),
    ):
        training = Training(SeedRegistry(42), recipe(model=model))
        training.train()
        with pytest.raises(RecipeError, match=rf"cannot be differentiated: .*{words}.*sdpa_kernel"):
            magic(training, losses_of(*held_out()))


def test_a_model_that_keeps_something_outside_its_state_is_caught_on_the_way_back():
    """A step that ends otherwise when it is run again, though the first one did not, is an error
    and gives no scores."""
    with pytest.raises(ReplayError, match=r"Step \d+ ended in another state"):
        magic(Training(SeedRegistry(42), recipe(model=Counts, epochs=4)), losses_of(*held_out()))


def test_what_a_model_draws_in_evaluation_mode_is_the_same_each_time():
    """Draws in evaluation mode come from a position too: scores repeat, and no default generator
    moves."""

    class AlwaysDropsOut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, inputs):
            return nn.functional.dropout(self.layer(inputs), 0.3, training=True)

    training = Training(SeedRegistry(42), recipe(model=AlwaysDropsOut))
    scores = [magic(training, losses_of(*held_out())).scores for _ in range(2)]
    assert torch.equal(*scores)


def test_a_measurement_without_a_gradient_can_be_retrained_and_not_attributed():
    """Accuracy can be measured after retrainings; magic refuses it, and a copy of the model,
    before anything is trained."""
    training = Training(SeedRegistry(42), recipe())
    inputs, targets = held_out()

    def accuracy(training, state):
        return (training.outputs(state, inputs).argmax(1) == targets).to(torch.float64)

    def of_a_copy(training, state):
        return training.recipe.loss(training.copy_model(state)(inputs), targets)

    (retrainings,) = retrain(training, accuracy, fractions=(0.1,), subsets=2)
    assert set(retrainings.values.flatten().tolist()) <= {0.0, 1.0}
    with pytest.raises(RecipeError, match=r"depends on the state.*without a gradient"):
        magic(training, accuracy)
    with pytest.raises(RecipeError, match=r"No gradient reaches the state.*training\.outputs"):
        magic(training, of_a_copy)


def test_a_training_that_diverges_stops():
    """A loss that is not finite ends the training at its step, with the number of the step."""
    with pytest.raises(RecipeError, match=r"loss of step \d+ is (inf|nan)"):
        Training(SeedRegistry(42), recipe(optimizer_options={"lr": 1e200})).train()


# --- walking back ---------------------------------------------------------------------------------


class Step:
    """A state that is its number."""

    def __init__(self, step: int) -> None:
        self.step = step


@lru_cache(maxsize=None)
def fewest(length: int, keep: int) -> int:
    """The fewest steps that walking back can run, by trying every cut."""
    if length <= 1:
        return 0
    if keep == 0:
        return length * (length - 1) // 2
    return min(cut + fewest(length - cut, keep - 1) + fewest(cut, keep) for cut in range(1, length))


def test_the_schedule_is_optimal():
    """The binomial schedule runs as few steps as any schedule with so many states can."""
    for length in range(1, 80):
        for keep in range(8):
            assert replayed_steps(length, keep) == fewest(length, keep), (length, keep)
    assert best_cut(2, 1) == 1


@pytest.mark.parametrize("length", [0, 1, 2, 3, 50, 333])
@pytest.mark.parametrize("keep", [0, 1, 2, 3, 8, 16, 400])
def test_every_state_comes_once_backwards(length, keep):
    """All states come, the last first, with no more kept than keep allows, and as many steps
    as were promised."""
    counted = []

    def advance(state, step):
        counted.append(step - state.step)
        return Step(step)

    store = KeptStates()
    seen = [state.step for state in walk_back(Step(0), length, advance, keep=keep, store=store)]
    assert seen == list(range(length - 1, -1, -1))
    assert sum(counted) == replayed_steps(length, keep)
    assert store.most <= keep


def test_states_kept_grow_with_the_logarithm():
    """The default of keep is twice the binary logarithm of the steps; each step is then
    run fewer than five times."""
    for steps in (1, 10, 100, 1000, 10_000):
        assert default_keep(steps) <= max(2, 2 * math.ceil(math.log2(steps + 1)))
        assert replayed_steps(steps, default_keep(steps)) < 5 * steps


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.moves_global_state
def test_models():
    """The models take what they say and have the sizes they say; ResNet-9 has 2.4 million
    parameters at its usual width."""
    assert construct_digits_mlp()(torch.zeros(2, 64)).shape == (2, 10)
    assert construct_digits_cnn()(torch.zeros(2, 64)).shape == (2, 10)
    small = construct_rn9(num_classes=7, width=4)
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert 2.3e6 < sum(parameter.numel() for parameter in construct_rn9().parameters()) < 2.5e6
    usual = construct_rn9(width=4, activation="relu", norm="batch", pool="max")
    assert usual(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    for wrong in ({"activation": "x"}, {"norm": "x"}, {"pool": "x"}):
        with pytest.raises(InvalidOptionError, match="x"):
            construct_rn9(**wrong)


@pytest.mark.moves_global_state
def test_group_norm_is_torchs():
    """The group norm of elementary operations is torch's, up to rounding."""
    inputs = torch.randn(
        3, 8, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    ours, torchs = GroupNorm(4, 8).double(), nn.GroupNorm(4, 8).double()
    assert torch.allclose(ours(inputs), torchs(inputs), atol=1e-12)
    assert mlp() is not None


class ReadsItself(nn.Module):
    """Computes a part from a copy of its parameters, which no step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.copies = [self.layer.weight]

    def forward(self, inputs):
        return self.layer(inputs) + inputs @ self.copies[0].T


def test_a_model_that_reads_other_parameters_is_refused():
    """A model that computes from parameters which are not those of the step is refused before
    anything is trained: in the second step its gradient is not a plain loop's."""
    training = Training(SeedRegistry(42), recipe(model=ReadsItself))
    with pytest.raises(RecipeError, match=r"the gradient of layer\.weight is not that of a plain"):
        training.check()


def test_without_the_plain_loop_it_would_not_be_seen(monkeypatch):
    """The check above is what sees it: without it the training goes on."""
    monkeypatch.setattr(training_module, "check_gradients", lambda *_: None)
    Training(SeedRegistry(42), recipe(model=ReadsItself)).check()


def test_the_models_parameters_are_its_own_again():
    """After a training, and after a copy, the model has its own parameters and mode; a checkpointed
    part is computed again with those of the step."""
    training = Training(SeedRegistry(42), recipe(model=Checkpointed))
    before = {name: tensor.clone() for name, tensor in training._model.named_parameters()}
    final = training.train()
    outputs = training.outputs(final, training.examples()[0])
    outputs.sum()
    training.copy_model(final)
    assert training._model.training
    for name, parameter in training._model.named_parameters():
        assert isinstance(parameter, nn.Parameter)
        assert torch.equal(parameter, before[name])


def test_out_of_memory_is_not_the_models_fault():
    """Running out of memory in a step is told as that."""

    def forgetful(outputs, targets):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    training = Training(SeedRegistry(42), recipe(loss=forgetful))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        training.train()


def test_what_is_called_for_evaluation_is_in_its_mode():
    """Inside evaluating() the model is in evaluation mode for every call, and outside it is not."""
    training = Training(SeedRegistry(42), recipe(model=mlp_with_dropout))
    state, (inputs, _) = training.initial_state(), training.examples()
    expected = training.outputs(state, inputs)
    with training.evaluating():
        for _ in range(2):
            assert torch.equal(training.call(state.parameters, inputs), expected)
    with SeedRegistry(42).stream("x").scope(0):
        assert not torch.equal(training.call(state.parameters, inputs), expected)


PAIRS = [(inputs, int(target)) for inputs, target in zip(*data())]


def test_a_list_of_pairs_is_a_dataset():
    """A list of pairs trains as the tensors that it holds."""
    lists, tensors = (
        Training(SeedRegistry(42), recipe(dataset=dataset)) for dataset in (PAIRS, data())
    )
    assert lists.train().fingerprint() == tensors.train().fingerprint()


class Output:
    """What models of some libraries return."""

    def __init__(self, logits) -> None:
        self.logits = logits


class ReturnsOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        return Output(self.layer(inputs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": [{"x": x, "y": y} for x, y in PAIRS]}, r"pairs \(input, target\).*a dict"),
        ({"dataset": [(x, y, 1) for x, y in PAIRS]}, r"pairs \(input, target\).*3 parts"),
        ({"dataset": [({"x": x}, y) for x, y in PAIRS]}, "Model or loss failed at step 0"),
        ({"model": ReturnsOutput}, "Model or loss failed at step 0"),
        ({"loss": lambda outputs, targets: outputs.logits}, "Model or loss failed at step 0"),
        ({"loss": lambda outputs, targets: {}["loss"]}, "Model or loss failed at step 0"),
    ],
)
def test_data_and_models_of_other_forms_are_refused(changes, message):
    """Dicts, triples and outputs that are no tensors are a RecipeError, never a raw one."""
    with pytest.raises(RecipeError, match=message):
        Training(SeedRegistry(42), recipe(**changes)).check()
