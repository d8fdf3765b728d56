"""`torch.compile` and `torch.export`: equal to eager, and one graph for a whole training."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch._dynamo
import torch.utils._pytree as pytree
from functions import COMPILED, DEVICES, ROWS, TASKS, Row, cells, stack, value_and_gradients
from methods import EPOCH, METHODS, Method, after, learn
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, grad_and_value, stack_module_state

from mtl_scalarize import (
    DWA,
    FAMO,
    Scalarizer,
    dwa_accumulate,
    dwa_combine,
    dwa_init,
    dwa_step,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    imtll_loss,
    uw_loss,
)

STEPS = 1_000
EPOCHS = 10

Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


class Frames:
    """A compiler that does nothing but count the graphs of each function given to it."""

    def __init__(self) -> None:
        self.counters: dict[str, CompileCounter] = {}

    def __call__(self, function: Function, **options: Any) -> Function:
        counter = self.counters[function.__name__] = CompileCounter()
        return torch.compile(function, fullgraph=True, backend=counter, **options)

    def counts(self) -> dict[str, int]:
        return {name: counter.frame_count for name, counter in self.counters.items()}


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def compiled_equals_eager(row: Row, device: str) -> None:
    compiled = torch.compile(row.function, fullgraph=True)
    for seed in range(3):
        inputs = row.inputs(seed, device)
        found = value_and_gradients(compiled, inputs)
        assert_equal(found, value_and_gradients(row.function, inputs))


def one_graph(row: Row, device: str) -> None:
    """Over a whole training, whatever the values of arguments, state and hyperparameters."""
    frames = Frames()
    compiled, state = frames(row.function), None
    for step in range(STEPS):
        inputs = row.inputs(step, device)
        if state is not None:
            inputs["state"] = state
        returned = compiled(**inputs)
        if isinstance(returned, type(inputs.get("state"))):
            close_epoch = row.function is dwa_accumulate and step % (STEPS // EPOCHS) == 0
            state = dwa_step(returned) if close_epoch else returned
    assert frames.counts() == {row.function.__name__: 1}


def any_number_of_tasks(row: Row, device: str) -> None:
    frames = Frames()
    compiled = frames(row.function, dynamic=True)
    for tasks in range(2, 11):
        inputs = row.inputs(tasks=tasks, device=device)
        assert_equal(compiled(**inputs), row.function(**inputs))
    assert frames.counts() == {row.function.__name__: 1}


class ToExport(nn.Module):
    """A function, and what of its arguments is no tensor, as the module that export asks for."""

    def __init__(self, function: Function, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, **inputs: Any) -> Any:
        return self.function(**inputs, **self.options)


def exported_equals_eager(row: Row, device: str) -> None:
    inputs = [row.inputs(seed, device) for seed in range(3)]
    options = {} if row.takes_tensors() else inputs[0]
    tensors = [example if row.takes_tensors() else {} for example in inputs]
    program = torch.export.export(ToExport(row.function, **options), (), tensors[0])
    # Its own guards are not Python where one field's name begins another's: `exp_avg`,
    # `exp_avg_sq` (torch 2.13, which replaces the names in the guards' text one by one).
    exported = program.module(check_guards=False)
    for example in tensors:
        assert_equal(exported(**example), row.function(**example, **options))


CHECKS = {
    "compile": compiled_equals_eager,
    "one graph": one_graph,
    "any number of tasks": any_number_of_tasks,
    "export": exported_equals_eager,
}


@pytest.mark.parametrize(("row", "column", "device"), cells(COMPILED))
def test_compiled_function(row: Row, column: str, device: str) -> None:
    assert row.mark(column) == "+"
    CHECKS[column](row, device)


def test_every_column_is_checked() -> None:
    assert tuple(CHECKS) == COMPILED


@pytest.mark.parametrize(
    ("function", "name"),
    [(dwa_weights, "temperature"), (famo_update, "lr"), (famo_update, "weight_decay")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_schedule_of_a_number_is_two_graphs(function: Function, name: str) -> None:
    """One for the first number, taken as a constant, and one for all that follow."""
    (row,) = (row for row in ROWS if row.function is function and not row.masked)
    frames = Frames()
    compiled = frames(function)
    for epoch in range(EPOCHS):
        inputs = row.inputs() | {name: 0.1 * 0.9**epoch}
        assert_equal(compiled(**inputs), function(**inputs))
    assert frames.counts() == {function.__name__: 2}


def losses_of_a_run(steps: int, seed: int = 0, device: str = "cpu") -> list[Tensor]:
    """As they come out of a network: with a gradient to give back."""
    generator = torch.Generator().manual_seed(seed)
    drawn = 0.5 + torch.rand(steps, TASKS, generator=generator, dtype=torch.float64)
    return [losses.requires_grad_() for losses in drawn.to(device)]


def masks_of_a_run(steps: int, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list((torch.rand(steps, TASKS, generator=generator) < 0.7).to(device))


def compile_module(scalarizer: Scalarizer, compiler: Function) -> None:
    """Its call, and its other verb where it has one."""
    scalarizer.forward = compiler(scalarizer.forward)
    if isinstance(scalarizer, DWA):
        scalarizer.step = compiler(scalarizer.step)
    if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
        scalarizer.update = compiler(scalarizer.update)


def graphs_of(method: Method) -> dict[str, int]:
    """How many graphs a training with `method` may take."""
    verbs = {"DWA": {"step": 1}, "DWA without shape": {"step": 1}, "FAMO": {"update": 1}}
    # The first call, which finds the shape, is not the others.
    return {"forward": 2 if method.name == "DWA without shape" else 1} | verbs.get(method.name, {})


def trained(
    method: Method, batches: list[tuple[Tensor, Tensor | None]], compiler: Function | None = None
) -> Any:
    """What a training gives at every step, and the state it ends in."""
    scalarizer = method.make((TASKS,)).double().to(batches[0][0].device)
    if compiler is not None:
        compile_module(scalarizer, compiler)
    steps = [learn(scalarizer, index, batch) for index, batch in enumerate(batches)]
    return steps, scalarizer.state_dict()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
def test_a_training_is_one_graph(method: Method, masked: bool, device: str) -> None:
    masks = masks_of_a_run(STEPS, device) if masked else [None] * STEPS
    batches = list(zip(losses_of_a_run(STEPS, device=device), masks, strict=True))
    frames = Frames()
    assert_equal(trained(method, batches, frames), trained(method, batches))
    assert frames.counts() == graphs_of(method)


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_module_equals_the_module(method: Method, device: str) -> None:
    batches = [(losses, None) for losses in losses_of_a_run(5, device=device)]
    found = trained(method, batches, lambda function: torch.compile(function, fullgraph=True))
    assert_equal(found, trained(method, batches))


def test_batches_with_and_without_a_mask_are_two_graphs(method: Method) -> None:
    masks = [mask if i % 2 else None for i, mask in enumerate(masks_of_a_run(20))]
    batches = list(zip(losses_of_a_run(20), masks, strict=True))
    frames = Frames()
    assert_equal(trained(method, batches, frames), trained(method, batches))
    assert frames.counts()["forward"] == graphs_of(method)["forward"] + 1


def test_training_and_validation_are_two_graphs(method: Method) -> None:
    scalarizer = method.make((TASKS,)).double()
    frames = Frames()
    compile_module(scalarizer, frames)
    for epoch in range(EPOCHS):
        scalarizer.train()
        for index, losses in enumerate(losses_of_a_run(EPOCH, seed=epoch)):
            learn(scalarizer, index, (losses, None))
        scalarizer.eval()
        with torch.no_grad():
            for losses in losses_of_a_run(EPOCH, seed=epoch):
                scalarizer(losses)
    assert frames.counts()["forward"] == graphs_of(method)["forward"] + 1


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_exported_module_equals_the_module(method: Method, training: bool) -> None:
    scalarizer = method.make((TASKS,)).double()
    first, *others = losses_of_a_run(5)
    scalarizer(first)  # DWA may take its shape from here
    scalarizer.train(training)
    program = torch.export.export(copy.deepcopy(scalarizer), (first,)).module()
    assert_equal([program(losses) for losses in others], [scalarizer(losses) for losses in others])
    state = scalarizer.state_dict()
    assert_equal({name: program.state_dict()[name] for name in state}, state)


def state_of(scalarizer: nn.Module) -> dict[str, Tensor]:
    return dict(scalarizer.named_parameters()) | dict(scalarizer.named_buffers())


def test_a_functional_call_advances_the_state_it_is_given(method: Method) -> None:
    scalarizer = method.make((TASKS,)).double()
    first, *others = losses_of_a_run(5)
    scalarizer(first)
    twin = copy.deepcopy(scalarizer)
    given = {name: value.detach().clone() for name, value in state_of(scalarizer).items()}
    for losses in others:
        assert_equal(functional_call(twin, given, (losses,)), scalarizer(losses))
    assert_equal(given, {name: value.detach() for name, value in state_of(scalarizer).items()})


class Verb(nn.Module):
    """A method of a scalarizer, as the `forward` that `functional_call` calls."""

    def __init__(self, scalarizer: Scalarizer, name: str) -> None:
        super().__init__()
        self.scalarizer = scalarizer
        self.name = name

    def forward(self, *arguments: Tensor) -> dict[str, Tensor]:
        getattr(self.scalarizer, self.name)(*arguments)
        return dict(self.named_buffers())  # `vmap` wants something returned


def test_a_stack_of_modules_advances_as_its_modules_one_by_one(method: Method) -> None:
    scalarizers = [method.make((TASKS,)).double() for _ in range(8)]
    runs = [losses_of_a_run(4 * EPOCH, seed=seed) for seed in range(8)]

    def one_by_one(index: int) -> Any:
        stepped = [
            learn(scalarizer, index, (run[index].detach(), None))
            for scalarizer, run in zip(scalarizers, runs, strict=True)
        ]
        return torch.stack([scalar for scalar, _ in stepped])

    for index in range(EPOCH):
        one_by_one(index)
    parameters, buffers = stack_module_state(scalarizers)
    template = copy.deepcopy(scalarizers[0])

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], losses: Tensor) -> Tensor:
        return functional_call(template, (parameters, buffers), (losses,))

    def verb(name: str, *arguments: Tensor) -> None:
        module = Verb(template, name)
        state = {f"scalarizer.{key}": value for key, value in (parameters | buffers).items()}
        torch.vmap(lambda state, *arguments: functional_call(module, state, arguments))(
            state, *arguments
        )

    for index in range(EPOCH, 4 * EPOCH):
        losses = torch.stack([run[index].detach() for run in runs])
        gradients, scalars = torch.vmap(grad_and_value(call))(parameters, buffers, losses)
        parameters = {name: parameters[name] - 0.1 * gradients[name] for name in parameters}
        if isinstance(template, DWA) and index % EPOCH == EPOCH - 1:
            verb("step")
        if isinstance(template, FAMO) and not template.amortized:
            verb("update", torch.stack([after(row) for row in losses]))
        assert_equal(scalars, one_by_one(index))
    assert_equal(parameters | buffers, stack(state_of(scalarizer) for scalarizer in scalarizers))


# A training whose every step, the model's second forward pass included, is one pure function.


class Pipeline(NamedTuple):
    """A method by its functions: what is learned with the network, and what it keeps itself."""

    name: str
    init: Callable[..., Any]
    learned: bool
    combine: Callable[[Tensor, Any], Tensor]
    advance: Callable[[Any, Tensor, Callable[[], Tensor]], Any]


PIPELINES = [
    Pipeline("UW", torch.zeros, True, uw_loss, lambda state, before, after: state),
    Pipeline("IMTLL", torch.zeros, True, imtll_loss, lambda state, before, after: state),
    Pipeline(
        "DWA",
        dwa_init,
        False,
        dwa_combine,
        lambda state, before, after: dwa_accumulate(state, before),
    ),
    Pipeline(
        "FAMO",
        famo_init,
        False,
        lambda losses, state: famo_combine(losses, state.logits),
        lambda state, before, after: famo_update(state, famo_delta(before, after())),
    ),
]


class Training(NamedTuple):
    """All that changes in a training: a pytree of tensors."""

    parameters: dict[str, Tensor]
    momentum: dict[str, Tensor]
    state: Any


class PureTraining:
    """A network, a method and SGD with momentum."""

    def __init__(self, pipeline: Pipeline, device: str) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, TASKS))
        self.network = network.double().to(device)
        self.pipeline = pipeline
        self.device = device

    def init(self) -> Training:
        parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        state = self.pipeline.init(TASKS, dtype=torch.float64, device=self.device)
        if self.pipeline.learned:
            parameters, state = parameters | {"scalarizer": state}, None
        return Training(parameters, pytree.tree_map(torch.zeros_like, parameters), state)

    def step(
        self, training: Training, features: Tensor, targets: Tensor
    ) -> tuple[Training, Tensor]:
        """One step of it, and the scalar."""

        def task_losses(parameters: dict[str, Tensor]) -> Tensor:
            weights = {name: p for name, p in parameters.items() if name != "scalarizer"}
            predictions = functional_call(self.network, weights, (features,))
            return (predictions - targets).square().mean(0)

        def objective(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            losses = task_losses(parameters)
            kept = parameters["scalarizer"] if self.pipeline.learned else training.state
            return self.pipeline.combine(losses, kept), losses

        gradients, (scalar, losses) = grad_and_value(objective, has_aux=True)(training.parameters)
        momentum = {n: 0.9 * m + gradients[n] for n, m in training.momentum.items()}
        parameters = {n: p - 0.05 * momentum[n] for n, p in training.parameters.items()}
        state = self.pipeline.advance(training.state, losses, lambda: task_losses(parameters))
        return Training(parameters, momentum, state), scalar

    def run(self, steps: int, compiler: Function | None = None) -> tuple[Training, list[Tensor]]:
        """A training of `EPOCHS` epochs."""
        step = self.step if compiler is None else compiler(self.step)
        close_epoch = dwa_step if compiler is None else compiler(dwa_step)
        generator = torch.Generator().manual_seed(0)
        batches = torch.randn(steps, 16, 3 + TASKS, generator=generator, dtype=torch.float64)
        training, scalars = self.init(), []
        for index, batch in enumerate(batches.to(self.device)):
            training, scalar = step(training, *batch.tensor_split([3], dim=1))
            scalars.append(scalar)
            if self.pipeline.name == "DWA" and index % (steps // EPOCHS) == 0:
                training = training._replace(state=close_epoch(training.state))
        return training, scalars


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
class TestWholeTrainingStep:
    def test_is_one_graph(self, pipeline: Pipeline, device: str) -> None:
        frames = Frames()
        training = PureTraining(pipeline, device)
        assert_equal(training.run(STEPS, frames), training.run(STEPS))
        counts = frames.counts()
        assert counts["step"] == 1
        assert counts["dwa_step"] == (pipeline.name == "DWA")

    def test_compiled_equals_eager(self, pipeline: Pipeline, device: str) -> None:
        training = PureTraining(pipeline, device)
        found = training.run(EPOCHS, lambda f: torch.compile(f, fullgraph=True))
        assert_equal(found, training.run(EPOCHS))
