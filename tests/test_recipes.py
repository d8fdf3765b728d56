"""The loops of the guides `recipes.md` and `tuning.md`, by their own functions.

What they train is compared with a plain training: one process, one call a step, the whole batch.
"""

import ast
from collections.abc import Callable
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import EPOCH, METHODS, Method
from test_docs import BLOCKS, DOCS
from torch import Tensor, nn

from mtl_scalarize import FAMO, Sum

NAMES = ("depth", "normals", "edges")
TASKS = len(NAMES)
STEPS = 3 * EPOCH
#: Samples in each part of a batch.
PARTS = (5, 4, 1, 2)
SAMPLES = sum(PARTS)

#: Gives the backward pass of a step, and returns what computes its losses again.
Backward = Callable[["Training", int], Callable[[], Any]]

each_method = pytest.mark.parametrize("method", METHODS, ids=str)


@cache
def recipe(function: str) -> dict[str, Any]:
    """The functions of the block of a guide that has this one, without its training."""
    (block,) = [block for block in BLOCKS.values() if f"def {function}(" in block]
    tree, scope = ast.parse(block), {}
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    tree.body = [statement for statement in tree.body if isinstance(statement, kinds)]
    exec(compile(tree, "block", "exec"), scope)
    return scope


class Training:
    """A model with its scalarizer and optimizer."""

    def __init__(self, method: Method) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, TASKS))
        self.model, self.scalarizer = model.double(), method.make(NAMES).double()
        self.optimizer = self.adam(self.model, self.scalarizer)

    def adam(self, *modules: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": module.parameters()} for module in modules], lr=0.02)

    def train(self, backward: Backward) -> list[Tensor]:
        """The state that it ends with, of the model and the scalarizer."""
        for index in range(STEPS):
            self.optimizer.zero_grad()
            torch.manual_seed(index)  # for methods that draw
            again = backward(self, index)
            self.optimizer.step()
            self.scalarizer.update(again)
            if index % EPOCH == EPOCH - 1:
                self.scalarizer.step()
        return [*self.model.state_dict().values(), *self.scalarizer.state_dict().values()]


def trained(method: Method, backward: Backward) -> list[Tensor]:
    return Training(method).train(backward)


def batch_at(index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, targets, and which targets are labels: in some parts, none is for some task.

    At one step a task has none in the whole batch, and at another no task has any.
    """
    generator = torch.Generator().manual_seed(index)
    features = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    labelled = torch.rand(SAMPLES, TASKS, generator=generator) < 0.4
    labelled[:, 1] &= index != 2
    labelled &= index != 4
    return features, features[:, :TASKS].cumsum(1) * torch.tensor([0.3, 1.0, 3.0]), labelled


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


# Gradient accumulation.


def in_one_call(training: Training, index: int) -> Callable[[], Tensor]:
    """Each loss is the mean over the samples with a label, nan over none."""
    features, targets, labelled = batch_at(index)

    def losses_of() -> Tensor:
        errors = torch.where(labelled, training.model(features) - targets, 0.0).square().sum(0)
        return torch.where(labelled.any(0), errors / labelled.sum(0).clamp(min=1), torch.nan)

    training.scalarizer(losses_of(), labelled.any(0)).backward()
    return losses_of


def in_parts(training: Training, index: int, function: str, *scale: Any) -> Callable[[], Tensor]:
    scope = recipe(function)
    scope["model"] = training.model
    parts = list(zip(*(tensor.split(PARTS) for tensor in batch_at(index)), strict=True))
    scope[function](training.scalarizer, parts, *scale)
    return lambda: scope["mean_losses"](parts)


def in_scaled_parts(training: Training, index: int) -> Callable[[], Tensor]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    again = in_parts(training, index, "backward_in_two_passes", scaler.scale)
    scaler.unscale_(training.optimizer)
    return again


def depends_on(method: Method) -> str:
    """What the weights depend on, as the runs of the pure functions show it."""
    rows = 1 + torch.rand(2 * EPOCH + 1, TASKS, generator=torch.Generator().manual_seed(0))
    pairs = [method.functional([(rows[0], None), (row, None)]) for row in rows[1:3]]
    if method.draws or not torch.equal(pairs[0][1][1], pairs[1][1][1]):
        return "losses"
    weights = [weights for _, weights in method.functional([(row, None) for row in rows])]
    return "nothing" if all(map(weights[0].equal, weights)) else "state"


@each_method
def test_a_scalarizer_says_what_its_weights_depend_on(method: Method) -> None:
    assert method.make(TASKS).weights_depend_on == depends_on(method)


@pytest.mark.parametrize("method", [m for m in METHODS if depends_on(m) != "losses"], ids=str)
def test_parts_equal_the_whole_batch(method: Method) -> None:
    found = trained(method, partial(in_parts, function="backward_in_parts"))
    assert_same(found, trained(method, in_one_call))


@each_method
def test_parts_in_two_passes_equal_the_whole_batch(method: Method) -> None:
    expected = trained(method, in_one_call)
    for backward in (partial(in_parts, function="backward_in_two_passes"), in_scaled_parts):
        assert_same(trained(method, backward), expected)


# The loop that has everything.


def loop(name: str) -> Any:
    pytest.importorskip("tensorboard")
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def states(saved: dict[str, Any], *leave_out: str) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in saved.items() if name not in leave_out}


@pytest.mark.parametrize("method", [m for m in METHODS if not m.lazy], ids=str)
def test_the_converted_loop_resumes_bit_identically_and_takes_parts(
    method: Method, tmp_path: Path
) -> None:
    train = partial(loop("loop_after").train, make=method.make)
    whole, best = train(3, tmp_path / "whole")
    train(2, tmp_path / "parts")
    resumed, found = train(3, tmp_path / "parts")
    torch.testing.assert_close(states(resumed), states(whole), rtol=0, atol=0)
    assert found == best
    at_once, _ = train(3, tmp_path / "at once", parts=1)
    found, expected = (states(each, "optimizer") for each in (at_once, whole))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)  # half precision


def test_the_converted_loop_takes_the_steps_of_the_old_one_with_a_sum(tmp_path: Path) -> None:
    after, _ = loop("loop_after").train(2, tmp_path / "after", make=Sum)
    before, _ = loop("loop_before").train(2, tmp_path / "before")
    found = states(after, "scalarizer", "optimizer", "schedule")
    expected = states(before, "optimizer", "schedule")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# Several closures in a step, and a second point.


def losses_at(training: Training, index: int) -> Callable[[], Tensor]:
    features, targets, _ = batch_at(index)
    return lambda: (training.model(features) - targets).square().mean(0)


def plain(training: Training, index: int) -> Callable[[], Tensor]:
    losses_of = losses_at(training, index)
    training.scalarizer(losses_of()).backward()
    return losses_of


def uphill(training: Training, index: int, rho: float = 0.0) -> Callable[[], Tensor]:
    losses_of = losses_at(training, index)
    function = recipe("backward_uphill")["backward_uphill"]
    function(training.scalarizer, training.model, losses_of, rho)
    return losses_of


def lbfgs(*modules: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe")


def closures(training: Training, index: int, make: Any = None) -> Callable[[], Tensor]:
    """By a second optimizer, which has the model alone."""
    if index == 0:
        training.second = (make or training.adam)(training.model)
    losses_of = losses_at(training, index)
    function = recipe("step_with_closures")["step_with_closures"]
    function(training.scalarizer, training.second, losses_of)
    training.model.zero_grad()  # nothing is left for the first one
    return losses_of


@pytest.mark.parametrize("way", [uphill, closures], ids=["SAM at no distance", "one closure"])
@each_method
def test_the_simplest_case_is_the_plain_training(method: Method, way: Any) -> None:
    assert_same(trained(method, way), trained(method, plain))


@pytest.mark.parametrize(
    "way", [partial(uphill, rho=0.1), partial(closures, make=lbfgs)], ids=["SAM", "LBFGS"]
)
@each_method
def test_the_scalarizer_is_called_once_a_step(method: Method, way: Any) -> None:
    training, calls = Training(method), []
    before = losses_at(training, 0)().sum().detach()
    training.scalarizer.register_forward_hook(lambda *call: calls.append(call))
    training.train(way)
    assert len(calls) == STEPS
    # With its weights of the first point, a maximum may lift the others in a line search.
    assert method.is_maximum or losses_at(training, 0)().sum() < before


@pytest.mark.parametrize("method", [row for row in METHODS if row.parameters], ids=str)
def test_lbfgs_may_learn_the_weights_too(method: Method) -> None:
    training, totals = Training(method), []
    optimizer, losses_of = lbfgs(training.model, training.scalarizer), losses_at(training, 0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        totals.append(training.scalarizer(losses_of()))
        totals[-1].backward()
        return totals[-1]

    optimizer.step(closure)
    assert totals[-1] < totals[0]
    assert any(parameter.any() for parameter in training.scalarizer.parameters())


# A loss at its bound.


def test_a_hinge_loss_at_its_bound_stops_the_regression_beside_it() -> None:
    """The ends of the table in the guide."""
    train = recipe("train_beside_a_hinge")["train_beside_a_hinge"]
    losses, weights = train(FAMO(2))
    assert losses[0] == 0
    assert losses[1] > 3
    assert weights[1] < 1e-7
    losses, weights = train(FAMO(2, min_losses=torch.tensor([-0.1, 0.0])))
    assert losses.max() < 0.02
    assert weights[1] > 0.5
