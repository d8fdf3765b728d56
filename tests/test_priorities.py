"""What priorities mean in each method: as formulas, as properties, and in the modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functions import ROWS, TASKS, Row, value_and_gradients
from hypothesis import given
from hypothesis import strategies as st
from methods import METHODS, NAMED, Method, learn
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import mtl_scalarize as mtl

NAMES = ("depth", "normals", "edges")
PRIORITISED = [row for row in ROWS if "priorities" in row.arguments]
LOSSES, S = torch.tensor([[4.0, 1.0, 0.5], [0.3, -0.2, 1.0]], dtype=torch.float64)

#: The scalar of losses x with a state s and priorities p, as the table of the guide has it.
MEANINGS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "Sum": (
        lambda x, s, **options: mtl.constant_combine(x, **options),
        lambda x, s, p: (p * x).sum(),
    ),
    "Mean": (
        lambda x, s, **options: mtl.mean_combine(x, **options),
        lambda x, s, p: (p * x).sum() / p.sum(),
    ),
    "LogSum": (
        lambda x, s, **options: mtl.log_sum(x, eps=0.0, **options),
        lambda x, s, p: (p * x.log()).sum(),
    ),
    "GeometricMean": (
        lambda x, s, **options: mtl.geometric_mean(x, **options),
        lambda x, s, p: ((p * x.log()).sum() / p.sum()).exp(),
    ),
    "UW": (
        lambda x, s, **options: mtl.uw_loss(x, s, **options),
        lambda x, s, p: (p * (x * (-s).exp() + s)).sum() / 2,
    ),
    "IMTLL": (
        lambda x, s, **options: mtl.imtll_loss(x, s, **options),
        lambda x, s, p: (p * (x * s.exp() - s)).sum(),
    ),
    "DWA": (
        lambda x, s, **options: mtl.dwa_combine(x, mtl.DWAState(s, s, s, s, s), **options),
        lambda x, s, p: (p * s * x).sum(),
    ),
    "Random": (
        lambda x, s, **options: mtl.random_combine(x, s, **options),
        lambda x, s, p: (p * s.softmax(0) * x).sum(),
    ),
    "STCH": (
        lambda x, s, **options: mtl.stch(x, mu=0.7, **options),
        lambda x, s, p: 0.7 * (p * x / len(x) / 0.7).logsumexp(0),
    ),
}


def make(method: Method, priorities: Any = None, shape: Any = NAMES) -> mtl.Scalarizer:
    """In float64; assigned, because `Constant` calls the argument `weights`."""
    scalarizer = method.make(3 if method.lazy else shape).double()
    if priorities is not None:
        scalarizer.priorities = priorities
    return scalarizer


def assert_same(found: object, expected: object, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", MEANINGS)
def test_the_meaning(name: str) -> None:
    function, meaning = MEANINGS[name]
    drawn = torch.tensor([2.0, 0.25, 1.0], dtype=torch.float64)
    of_ours, of_formula = (
        value_and_gradients(each, {"x": LOSSES, "s": S, key: drawn})
        for each, key in ((function, "priorities"), (meaning, "p"))
    )
    assert_same(of_ours, of_formula, 1e-12)
    assert_same(function(LOSSES, S, priorities=3), meaning(LOSSES, S, torch.full((3,), 3.0)), 1e-7)


@pytest.mark.parametrize("row", PRIORITISED, ids=str)
def test_1_is_none(row: Row) -> None:
    """To the last bit, as a number and as a tensor, in value and gradients."""
    inputs = row.inputs()
    ones = inputs.pop("priorities").fill_(1.0)
    value, slopes = value_and_gradients(row.function, inputs)
    for priorities in (1, 1.0, ones, ones[0]):
        found, own = value_and_gradients(row.function, {**inputs, "priorities": priorities})
        assert_same(found, value)
        assert_same(own[: len(slopes)], slopes)


@pytest.mark.parametrize("loss", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("row", PRIORITISED, ids=str)
def test_0_is_a_mask(row: Row, loss: float) -> None:
    """In value and gradients, that of the priority included, whatever the loss."""
    if "mask" not in row.arguments:
        pytest.skip("nothing to compare with: see the masked row")
    watched = torch.arange(TASKS) == 2
    inputs = row.inputs()
    for name in row.of_role("losses"):
        inputs[name] = inputs[name].masked_fill(watched, loss)
    masked = {**inputs, "mask": inputs["mask"] & ~watched}
    inputs["priorities"] = inputs["priorities"].masked_fill(watched, 0.0)
    results = [value_and_gradients(row.function, each) for each in (inputs, masked)]
    assert_same(*results)
    inputs["mask"] = torch.ones(TASKS, dtype=torch.bool)
    nothing = {**inputs, "priorities": 0.0}
    absent = {**inputs, "priorities": 1.0, "mask": torch.zeros(TASKS, dtype=torch.bool)}
    results = [value_and_gradients(row.function, each) for each in (nothing, absent)]
    assert_same(*results)


@given(data=st.data())
@pytest.mark.parametrize("name", ["Sum", "Mean", "LogSum", "GeometricMean", "UW", "IMTLL"])
def test_a_priority_of_n_is_the_task_n_times(name: str, data: st.DataObject) -> None:
    function, _ = MEANINGS[name]
    times = data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any))
    repeats = torch.tensor(times)
    variables = [each.clone().requires_grad_() for each in (LOSSES, S)]
    expected = function(*(each.repeat_interleave(repeats) for each in variables))
    found = function(*variables, priorities=repeats)
    assert_same(found, expected, 1e-12)
    slopes = [
        torch.autograd.grad(each, variables, materialize_grads=True) for each in (found, expected)
    ]
    assert_same(*slopes, 1e-12)


def test_the_optimum_of_uw_is_where_it_was() -> None:
    s = LOSSES.log().requires_grad_()
    scalar = mtl.uw_loss(LOSSES, s, priorities=torch.tensor([4.0, 1.0, 0.5]))
    assert_same(torch.autograd.grad(scalar, s)[0], torch.zeros(3, dtype=torch.float64), 1e-12)


@given(priorities=st.lists(st.floats(0.2, 5.0), min_size=3, max_size=3))
def test_famo_rests_where_the_losses_fall_at_rates_in_proportion(priorities: list[float]) -> None:
    """Of exp(x), one x for each task, a step's fall is in proportion to the share z."""
    p, x = torch.tensor([priorities, [1.0, 0.0, -1.0]], dtype=torch.float64)
    state = mtl.famo_init(3, dtype=torch.float64)._replace(logits=p.log())
    losses = x.exp()
    weights = mtl.famo_weights(losses, state.logits, eps=0.0, priorities=p)
    delta = mtl.famo_delta(losses, (x - 0.01 * weights * losses).exp(), eps=0.0)
    assert_same(delta / delta.sum(), p / p.sum(), 1e-12)
    new = mtl.famo_update(state, delta, priorities=p, weight_decay=0.0)
    assert_same(new.first_moment, torch.zeros_like(p), 1e-15)


def test_famo_gets_there() -> None:
    p, x = torch.tensor([4.0, 1.0, 0.5]), torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    scalarizer = mtl.FAMO(3, priorities=p, weight_decay=0.0)
    for _ in range(300):
        (slope,) = torch.autograd.grad(scalarizer(x.exp()), x)
        x = (x - 0.01 * slope).detach().requires_grad_()
        scalarizer.update(x.exp())
    torch.testing.assert_close(scalarizer.state.logits.softmax(0), p / p.sum(), rtol=0, atol=0.02)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_module_with_0_is_one_with_a_mask(method: Method) -> None:
    """In scalar, gradients and weights, for a run; and another priority is not without effect."""
    priorities = torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64)
    watching, masked = make(method, priorities), make(method, priorities)
    for index in range(7):
        losses = torch.tensor([1.0, torch.inf, 2.0], dtype=torch.float64) * (1 + 0.1 * index)
        learn(watching, index, (losses, None))
        torch.manual_seed(index)
        variable = losses.requires_grad_()
        scalar = watching(variable)
        (slope,) = torch.autograd.grad(scalar, variable)
        assert_same(watching.weights, slope, 1e-12)
        learn(masked, index, (losses.detach(), priorities != 0))
        torch.manual_seed(index)
        assert_same(masked(losses.detach(), priorities != 0), scalar.detach())


@pytest.mark.parametrize("method", NAMED, ids=str)
def test_what_can_be_given(method: Method) -> None:
    outcomes = []
    for priorities in (
        {"edges": 0.25, "depth": 2.0, "normals": 1.0},
        [2.0, 1.0, 0.25],
        (2, 1, 0.25),
        torch.tensor([2.0, 1.0, 0.25]),
    ):
        scalarizer = make(method, priorities)
        state = [learn(scalarizer, index, (LOSSES, None)) for index in range(4)]
        outcomes.append((state, scalarizer.task_weights(), scalarizer.state_dict()))
        assert "priorities" not in scalarizer.state_dict()
        assert_same(dict(scalarizer.task_weights()), outcomes[0][1])
    for other in outcomes[1:]:
        assert_same(other, outcomes[0])
    plain = make(method)
    other = [learn(plain, index, (LOSSES, None)) for index in range(4)]
    assert not torch.equal(other[-1][1], outcomes[0][0][-1][1])
    scalarizer = make(method, {"depth": 2.0, "normals": 1.0, "edges": 1.0})
    for wrong, message in (
        ([1.0, 2.0], "shape"),
        (torch.tensor([1.0, torch.nan, 1.0]), "finite"),
        ({"dept": 2.0}, "tasks"),
        ("high", "number"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            scalarizer.priorities = wrong
    if method.name != "Constant":
        assert "priorities={'depth'" not in repr(scalarizer)
        for wrong in (-1.0, [1.0, -1.0, 1.0], {"depth": -0.5}):
            with pytest.raises(ValueError, match="`priorities` should be non-negative"):
                scalarizer.priorities = wrong
        assert "priorities=[2.0, 1.0, 1.0]" in repr(scalarizer)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_schedule_of_tensors_is_one_graph(method: Method) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled, eager = (make(method, torch.ones(3, dtype=torch.float64)) for _ in range(2))
    if method.lazy:
        for each in (compiled, eager):
            each(LOSSES)
    call = torch.compile(compiled, fullgraph=True, backend=counter)
    for index in range(6):
        scheduled = torch.tensor([1.0, 0.2 * index, 2.0], dtype=torch.float64)
        compiled.priorities = eager.priorities = scheduled
        scalars = []
        for each in (call, eager):
            torch.manual_seed(index)
            scalars.append(each(LOSSES))
        assert_same(*scalars, 1e-12)
    assert counter.frame_count == 1


def test_a_number_may_not_be_negative() -> None:
    for function in (mtl.log_sum, mtl.constant_combine, mtl.mean_combine):
        with pytest.raises(ValueError, match=r"`priorities` should be non-negative\. Found .*-1"):
            function(LOSSES, priorities=-1.0)
        with pytest.raises(ValueError, match=r"`priorities` should have shape \(3,\)"):
            function(LOSSES, priorities=torch.ones(2))
