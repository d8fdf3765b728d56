"""`torch.compile` and `torch.export`: equal to eager, and one graph for a whole training."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.utils._pytree as pytree
from functions import DEVICES, ROWS, TASKS, Row, stack, value_and_gradients
from methods import EPOCH, METHODS, Method, after, learn, seeded
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, grad_and_value, stack_module_state

from mtl_scalarize import (
    Scalarizer,
    dwa_accumulate,
    dwa_step,
    dwa_weights,
    famo_update,
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


def any_number_of_tasks_in_a_map(row: Row, device: str) -> None:
    def mapped(inputs: dict[str, Any]) -> Any:
        return torch.vmap(lambda tensors: row.function(**tensors))(inputs)

    compiled = torch.compile(mapped, fullgraph=True, backend="aot_eager", dynamic=True)
    for tasks in (2, 3, 5) if row.takes_tensors() else ():
        inputs = pytree.tree_map_only(
            Tensor, lambda leaf: leaf[None], row.inputs(tasks=tasks, device=device)
        )
        assert_equal(compiled(inputs), mapped(inputs))


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
    program, file = (
        torch.export.export(ToExport(row.function, **options), (), tensors[0]),
        io.BytesIO(),
    )
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for example in tensors:
        assert_equal(exported(**example), row.function(**example, **options))


class OfSome(nn.Module):
    """A function of the tasks that are chosen: how many is known when the program runs."""

    def __init__(self, row: Row, options: dict[str, Any]) -> None:
        super().__init__()
        self.row, self.options = row, options

    def forward(self, chosen: Tensor, **inputs: Any) -> Any:
        def choose(leaf: Any) -> Any:
            return leaf[chosen] if leaf.shape else leaf

        options = dict(self.options)
        if "shape" in options:
            options["shape"] = chosen[chosen].shape
        return self.row.function(**pytree.tree_map_only(Tensor, choose, inputs), **options)


def exported_for_any_number_of_tasks(row: Row, device: str) -> None:
    inputs = row.inputs(device=device)
    given, options = (inputs, {}) if row.takes_tensors() else ({}, inputs)
    module = OfSome(row, options)
    chosen = [torch.arange(TASKS, device=device) < most for most in (TASKS - 1, 1, TASKS)]
    exported = torch.export.export(module, (chosen[0],), given).module()
    for each in chosen:
        assert_equal(exported(each, **given), module(each, **given))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "check",
    [
        compiled_equals_eager,
        one_graph,
        any_number_of_tasks,
        any_number_of_tasks_in_a_map,
        exported_equals_eager,
        exported_for_any_number_of_tasks,
    ],
)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_compiled_function(row: Row, check: Callable[[Row, str], None], device: str) -> None:
    check(row, device)


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


VERBS = ("forward", "update", "step")


def compile_module(scalarizer: Scalarizer, compiler: Function) -> None:
    for verb in VERBS:
        setattr(scalarizer, verb, compiler(getattr(scalarizer, verb)))


def assert_one_graph(method: Method, frames: Frames, *, more: int = 0) -> None:
    """One for each verb that does something, and so many ``more`` where the mask comes and goes."""
    counts = frames.counts()
    # The first call, which finds the shape, is not the others.
    assert counts.pop("forward") == 1 + method.lazy + more
    assert method.updates <= counts["update"] <= method.updates * (1 + more)
    assert counts["step"] <= 1


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
    assert_one_graph(method, frames)


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_module_equals_the_module(method: Method, device: str) -> None:
    batches = [(losses, None) for losses in losses_of_a_run(5, device=device)]
    with torch._inductor.config.patch(fallback_random=True):  # the draws of eager mode
        found = trained(method, batches, lambda function: torch.compile(function, fullgraph=True))
    assert_equal(found, trained(method, batches))


def test_batches_with_and_without_a_mask_are_two_graphs(method: Method) -> None:
    masks = [mask if i % 2 else None for i, mask in enumerate(masks_of_a_run(20))]
    batches = list(zip(losses_of_a_run(20), masks, strict=True))
    frames = Frames()
    assert_equal(trained(method, batches, frames), trained(method, batches))
    assert_one_graph(method, frames, more=1)


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
    assert_one_graph(method, frames, more=1)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_exported_module_equals_the_module(method: Method, training: bool) -> None:
    scalarizer = method.make((TASKS,)).double()
    first, *others = losses_of_a_run(5)
    scalarizer(first)  # DWA may take its shape from here
    scalarizer.train(training)
    program = torch.export.export(copy.deepcopy(scalarizer), (first,)).module()
    for losses in others:
        assert_equal(seeded(program, losses), seeded(scalarizer, losses))
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
        found = seeded(functional_call, twin, given, (losses,))
        assert_equal(found, seeded(scalarizer, losses))
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
        if state:  # else there is nothing to map over
            torch.vmap(lambda state, *arguments: functional_call(module, state, arguments))(
                state, *arguments
            )

    for index in range(EPOCH, 4 * EPOCH):
        losses = torch.stack([run[index].detach() for run in runs])
        torch.manual_seed(index)  # as `learn` does
        of_all = torch.vmap(grad_and_value(call), randomness="same")
        gradients, scalars = of_all(parameters, buffers, losses)
        parameters = {name: parameters[name] - 0.1 * gradients[name] for name in parameters}
        if index % EPOCH == EPOCH - 1:
            verb("step")
        verb("update", torch.stack([after(row) for row in losses]))
        assert_equal(scalars, one_by_one(index))
    assert_equal(parameters | buffers, stack(state_of(scalarizer) for scalarizer in scalarizers))


def test_a_copy_of_a_scalarizer_compiled_in_place_is_its_own(method: Method) -> None:
    original, losses = method.make((3,)), torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    original.compile(backend="aot_eager")
    original(losses)
    before = copy.deepcopy(original.state_dict())
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        twin(2 * losses)
        assert_equal(original.state_dict(), before)
