"""Components: built in the stream's scope, described for the ledger, and your own."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from seedregistry import Component, SeedRegistry, create_deterministic_model, rng
from seedregistry.components import model_digest
from seedregistry.errors import (
    ComponentCreationError,
    ComponentRegistrationError,
    FactorySignatureError,
    InvalidNameError,
    UnknownPurposeError,
    UnsupportedSchedulerError,
)
from seedregistry.ledger import Built


class Net(nn.Module):
    def __init__(self, width: int = 4, *, classes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.mark.moves_global_state
@pytest.mark.parametrize(
    "factory",
    [
        lambda: nn.Linear(3, 2),
        Net,
        lambda: nn.LSTM(3, 4, 2),
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
    ],
)
def test_three_ways_to_one_model(factory):
    """registry.model, the documented function and manual_seed with the bare constructor give
    bit-equal models."""
    registry = SeedRegistry(42)
    built = registry.model(factory, instance_id="training")
    documented = create_deterministic_model(42, factory, "training")
    torch.manual_seed(registry.seed("model", "training"))
    bare = factory()
    assert model_digest(built) == model_digest(documented) == model_digest(bare)


def test_arguments_reach_the_factory_untouched():
    """Positional and keyword arguments go to the factory as they are."""
    seen = []

    def factory(*args, **kwargs):
        seen.append((args, kwargs))
        return nn.Identity()

    SeedRegistry(1).model(
        factory, 1, "two", instance_id="x", factory=3, cls=4, purpose=5, params=6, self=7
    )
    assert seen == [((1, "two"), {"factory": 3, "cls": 4, "purpose": 5, "params": 6, "self": 7})]


def test_a_build_is_recorded_as_content():
    """The entry has factory, class, parameter count, digest and what drew; call site and version
    are circumstance."""
    registry = SeedRegistry(42)
    model = registry.model(Net, 5, instance_id="training", classes=3)
    optimizer = registry.optimizer(
        torch.optim.SGD, model.parameters(), instance_id="training", lr=0.1, momentum=0.9
    )
    registry.scheduler("OneCycleLR", optimizer, instance_id="training", max_lr=0.1, total_steps=10)
    built = {record.purpose: record for record in registry.ledger.find(Built)}
    assert built["model"].factory == f"{__name__}.Net"
    description = dict(built["model"].description)
    assert description["parameters"] == sum(p.numel() for p in model.parameters())
    assert description["digest"] == model_digest(model)
    assert built["model"].drew == ("torch",)
    assert built["optimizer"].drew == built["scheduler"].drew == ()
    assert built["optimizer"].distribution == "torch"
    assert built["optimizer"].version == torch.__version__
    groups = dict(built["optimizer"].description)["groups"]
    assert dict(groups[0])["momentum"] == 0.9
    assert dict(built["scheduler"].description)["class"].endswith("OneCycleLR")
    assert built["model"].call_site.startswith("test_components.py:")


def test_every_library_that_draws_is_named():
    """drew names python, NumPy and torch when a factory draws from them."""
    import random

    import numpy as np

    registry = SeedRegistry(42)
    for names, draw in (
        (("python",), random.random),
        (("numpy",), np.random.rand),
        (("numpy", "python", "torch"), lambda: (random.random(), np.random.randn(), torch.rand(1))),
        ((), lambda: None),
    ):
        registry.model(lambda draw=draw: draw() and None, instance_id=str(names))
        assert registry.ledger.find(Built, instance_id=str(names))[0].drew == names


def test_a_failing_factory():
    """A factory's exception comes as ComponentCreationError from it, no generator has moved and
    nothing is recorded."""
    registry = SeedRegistry(42)

    def factory():
        torch.rand(3)
        raise KeyError("no weights")

    before = rng.fingerprint()
    with pytest.raises(
        ComponentCreationError, match=r"factory failed.*model/training.*no weights"
    ) as caught:
        registry.model(factory, instance_id="training")
    assert isinstance(caught.value.__cause__, KeyError)
    assert (caught.value.purpose, caught.value.instance_id) == ("model", "training")
    assert rng.fingerprint() == before
    assert not registry.ledger.find(Built)
    with pytest.raises(KeyboardInterrupt):
        registry.model(lambda: (_ for _ in ()).throw(KeyboardInterrupt), instance_id="training")


@pytest.mark.parametrize("maker", ["function", "class", "callable", "keyword_only"])
def test_factories_with_a_reserved_parameter_are_refused(maker):
    """A factory with a parameter that the builder keeps is refused with functools.partial as the
    way out."""

    def function(instance_id):
        return nn.Identity()

    def keyword_only(*, instance_id=None):
        return nn.Identity()

    class WithId(nn.Module):
        def __init__(self, instance_id=None):
            super().__init__()

    class Callable:
        def __call__(self, instance_id):
            return nn.Identity()

    factory = {
        "function": function,
        "class": WithId,
        "callable": Callable(),
        "keyword_only": keyword_only,
    }[maker]
    registry = SeedRegistry(1)
    with pytest.raises(FactorySignatureError, match=r"instance_id.*functools\.partial"):
        registry.model(factory, instance_id="x")
    assert len(registry) == 0
    assert isinstance(
        registry.model(functools.partial(factory, instance_id=3), instance_id="x"), nn.Module
    )


def test_factories_that_take_anything_are_fine():
    """**kwargs and positional-only parameters do not clash; builtins without a signature are
    called."""

    def anything(instance_id, /, **kwargs):
        return nn.Identity()

    registry = SeedRegistry(1)
    registry.model(anything, 3, instance_id="a")
    assert registry.model(dict, a=1, instance_id="b") == {"a": 1}


@pytest.mark.parametrize("factory", [None, 3, "Linear", torch.zeros(1)])
def test_what_is_not_callable_is_refused(factory):
    """A factory is something to call."""
    with pytest.raises(FactorySignatureError, match="class or a function"):
        SeedRegistry(1).model(factory)


def test_schedulers_by_class_and_by_name():
    """A scheduler is given by class or by its name in torch; an unknown name has the nearest one
    in its message."""
    registry = SeedRegistry(1)
    optimizer = registry.optimizer(torch.optim.SGD, [torch.zeros(1, requires_grad=True)], lr=0.1)
    by_name = registry.scheduler("StepLR", optimizer, instance_id="a", step_size=3)
    by_class = registry.scheduler(torch.optim.lr_scheduler.StepLR, optimizer, 3, instance_id="b")
    assert type(by_name) is type(by_class)
    assert by_class.step_size == 3
    registry.scheduler("ReduceLROnPlateau", optimizer, instance_id="c")
    with pytest.raises(
        UnsupportedSchedulerError,
        match=r"Unsupported scheduler type 'StepRL'.*Did you mean 'StepLR'",
    ):
        registry.scheduler("StepRL", optimizer)
    for name in ("LRScheduler", "Optimizer", "math", "_LRScheduler"):
        with pytest.raises(UnsupportedSchedulerError):
            registry.scheduler(name, optimizer)


# --- digests --------------------------------------------------------------------------------------


def test_the_digest_sees_every_part_of_a_model():
    """Names, dtypes, shapes, parameters and buffers change the digest; the order of registration
    does not."""
    torch_only = SeedRegistry(3)

    def make():
        return torch_only.model(Net, instance_id="x")

    reference = model_digest(make())
    assert model_digest(make()) == reference
    changed = make()
    with torch.no_grad():
        changed.body[0].weight[0, 0] += 1e-6
    assert model_digest(changed) != reference
    buffers = make()
    buffers.body[1].running_mean[0] += 1
    assert model_digest(buffers) != reference
    assert model_digest(make().double()) != reference
    one, other = nn.Module(), nn.Module()
    for module, names in ((one, "ab"), (other, "ba")):
        for name in names:
            module.register_parameter(name, nn.Parameter(torch.full((2,), float(ord(name)))))
    assert model_digest(one) == model_digest(other)
    reshaped = nn.Module()
    for name in "ab":
        reshaped.register_parameter(name, nn.Parameter(torch.full((1, 2), float(ord(name)))))
    assert model_digest(reshaped) != model_digest(one)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int8, torch.bool]
)
def test_the_digest_takes_every_dtype(dtype):
    """Parameters of any dtype, empty, scalar and non-contiguous ones are digested by value."""
    module = nn.Module()
    module.register_buffer("scalar", torch.ones((), dtype=dtype))
    module.register_buffer("empty", torch.zeros(0, 3, dtype=dtype))
    module.register_buffer("view", torch.ones(4, 6, dtype=dtype).t()[::2])
    twin = nn.Module()
    for name, tensor in module.named_buffers():
        twin.register_buffer(name, tensor.contiguous().clone())
    assert model_digest(module) == model_digest(twin)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_models_without_bytes_have_no_digest():
    """On device meta and before lazy modules are materialised there is nothing to digest, and
    the entry says None."""
    registry = SeedRegistry(1)
    registry.model(lambda: nn.Linear(2, 2, device="meta"), instance_id="meta")
    registry.model(lambda: nn.LazyLinear(2), instance_id="lazy")
    for record in registry.ledger.find(Built):
        assert dict(record.description)["digest"] is None


# --- your own -------------------------------------------------------------------------------------


@pytest.fixture
def one_rank():
    """A process group of one rank, on the CPU."""
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:DTensor random operators")  # torch 2.2
def test_a_sharded_model_is_built(one_rank):
    """A factory that returns DTensors builds a model, whose entry counts its parameters and says
    why it has no digest; nothing is gathered."""
    tensor = pytest.importorskip("torch.distributed._tensor")
    mesh = tensor.DeviceMesh("cpu", [0])

    def factory():
        module = nn.Linear(4, 2)
        return tensor.distribute_module(
            module,
            mesh,
            lambda _, layer, mesh: layer.register_parameter(
                "weight", nn.Parameter(tensor.distribute_tensor(layer.weight, mesh))
            ),
        )

    registry = SeedRegistry(42)
    model = registry.model(factory, instance_id="training")
    plain = SeedRegistry(42).model(nn.Linear, 4, 2, instance_id="training")
    assert torch.equal(model.weight.to_local(), plain.weight)
    entry = next(record for record in registry.ledger if isinstance(record, Built))
    description = dict(entry.description)
    assert description["parameters"] == 10
    assert description["digest"] is None
    assert description["without_digest"].endswith(".DTensor")


class Wrapped(torch.Tensor):
    """A tensor of a library's that stands for another one, and has no bytes of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise AssertionError(f"{func} was asked of it")


class Plain(torch.Tensor):
    """A subclass that adds nothing."""


def test_a_tensor_of_another_class():
    """Of a class with operators of its own nothing is asked but its shape; a subclass that is a
    tensor has the tensor's digest."""

    def factory(kind):
        module = nn.Linear(4, 2)
        module.register_buffer("scale", kind(torch.ones(3)))
        return module

    registry = SeedRegistry(42)
    registry.model(factory, Wrapped, instance_id="a")
    registry.model(factory, lambda ones: ones.as_subclass(Plain), instance_id="b")
    bare = SeedRegistry(42).model(factory, lambda ones: ones, instance_id="b")
    wrapped, plain = (
        dict(record.description) for record in registry.ledger if isinstance(record, Built)
    )
    assert wrapped["digest"] is None
    assert wrapped["without_digest"].endswith("Wrapped")
    assert plain["digest"] == model_digest(bare)
    assert "without_digest" not in plain


class Flip:
    def __init__(self, probability: float, generator: torch.Generator) -> None:
        self.probability = probability
        self.generator = generator

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (
            image.flip(-1) if torch.rand(1, generator=self.generator) < self.probability else image
        )


class Augmentation(Component):
    """The documents' example of a component of one's own."""

    purpose = "augmentation"

    def build(self, stream, factory, /, *args, **kwargs):
        return factory(*args, generator=stream.generator(), **kwargs)

    def describe(self, product):
        return {"class": type(product).__name__, "probability": product.probability}


@pytest.mark.filterwarnings("ignore::seedregistry.StreamReuseWarning")
def test_a_component_of_ones_own():
    """A registered component builds by its purpose, with its stream, and its description is
    content of the ledger."""
    flips = []
    for _ in range(2):
        registry = SeedRegistry(42)
        registry.register(Augmentation())
        flip = registry.create("augmentation", Flip, 0.5, instance_id="train")
        flips.append([flip(torch.arange(2)).tolist() for _ in range(20)])
        (built,) = registry.ledger.find(Built)
        assert built.description == (("class", "Flip"), ("probability", 0.5))
    assert flips[0] == flips[1]
    assert len({tuple(f) for f in flips[0]}) == 2


def test_a_component_that_cannot_describe():
    """An exception of describe is a ComponentCreationError from it, and the stream has not been
    used."""

    class Mute(Augmentation):
        def describe(self, product):
            raise KeyError("nothing to say")

    registry = SeedRegistry(1, on_reuse="forbid")
    registry.register(Mute())
    with pytest.raises(ComponentCreationError, match="could not be described by Mute") as caught:
        registry.create("augmentation", lambda generator: generator, instance_id="x")
    assert isinstance(caught.value.__cause__, KeyError)
    assert not registry.ledger.find(Built)


def test_the_default_device_changes_no_order():
    """Orders and splits are drawn on the CPU whatever the default device is."""
    registry = SeedRegistry(42)
    with torch.device("meta"):
        loader = registry.dataloader([0] * 10, instance_id="training", shuffle=True)
        parts = registry.split(range(10), iter([5, 5]))
        assert loader.indices(0).tolist() == [8, 9, 5, 2, 3, 0, 4, 6, 7, 1]
    assert [p.indices for p in parts] == [
        p.indices for p in SeedRegistry(42).split(range(10), [5, 5])
    ]


def test_registering():
    """Registration takes an instance, once per purpose, and unregister gives it back."""
    registry = SeedRegistry(42)
    component = Augmentation()
    registry.register(component)
    with pytest.raises(ComponentRegistrationError, match="unregister"):
        registry.register(Augmentation())
    assert registry.unregister("augmentation") is component
    with pytest.raises(
        UnknownPurposeError, match=r"No component for purpose 'optimiser'.*Did you mean 'optimizer'"
    ):
        registry.create("optimiser", torch.optim.SGD)
    with pytest.raises(UnknownPurposeError):
        registry.unregister("augmentation")
    for bad in (Augmentation, None, object(), lambda: None):
        with pytest.raises(ComponentRegistrationError):
            registry.register(bad)

    class Nameless(Augmentation):
        purpose = ""

    with pytest.raises(InvalidNameError):
        registry.register(Nameless())
    registry.unregister("model")
    with pytest.raises(UnknownPurposeError, match="'model'"):
        registry.model(nn.Identity)


def test_components_are_abstract_or_final():
    """Component cannot be instantiated, and a subclass must give all three parts."""

    class Half(Component):
        purpose = "half"

        def describe(self, product):
            return {}

    for cls in (Component, Half):
        with pytest.raises(TypeError, match="abstract"):
            cls()


def test_children_have_the_components():
    """A component registered on a registry builds in its children too."""
    registry = SeedRegistry(1)
    registry.register(Augmentation())
    assert registry.child("fold", 0).create("augmentation", Flip, 0.5).probability == 0.5


# --- split ----------------------------------------------------------------------------------------


def test_split_is_random_split():
    """split gives what random_split gives with the stream's generator, and can be made again."""
    registry = SeedRegistry(42)
    parts = registry.split(range(100), [70, 30], instance_id="a")
    generator = torch.Generator().manual_seed(registry.seed("split", "a"))
    expected = torch.utils.data.random_split(range(100), [70, 30], generator=generator)
    assert [part.indices for part in parts] == [list(part.indices) for part in expected]
    again = registry.split(range(100), [0.7, 0.3], instance_id="a")
    assert [part.indices for part in again] == [part.indices for part in parts]
    assert len(registry.ledger.find(purpose="split")) == 2


def test_a_split_that_changed_is_found(monkeypatch):
    """The same split with other indices, as another torch might give, is an integrity error."""
    from seedregistry.errors import LedgerIntegrityError

    registry = SeedRegistry(42)
    registry.split(range(10), [5, 5])
    monkeypatch.setattr(
        "seedregistry.data.split.random_split",
        lambda d, n, generator: [
            torch.utils.data.Subset(d, range(5)),
            torch.utils.data.Subset(d, range(5, 10)),
        ],
    )
    with pytest.raises(LedgerIntegrityError):
        registry.split(range(10), [5, 5])


@pytest.mark.parametrize("lengths", [[5, 6], [0.5, 0.6], "ab", None, [-1, 11]])
def test_bad_lengths(lengths):
    """Lengths that do not fit are a typed error that shows the dataset's length."""
    with pytest.raises(ComponentCreationError, match="10"):
        SeedRegistry(42).split(range(10), lengths)
