"""Every public function under every transform of `torch.func`: rows, columns, devices."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from functions import (
    DEVICES,
    ROLES,
    ROWS,
    Row,
    flat,
    stack,
    synchronization_forbidden,
    value_and_gradients,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from mtl_scalarize import famo_combine, famo_delta, famo_init, famo_update, famo_weights

#: Examples along a mapped dimension.
BATCH = 3


def mapped(row: Row, names: list[str], device: str) -> None:
    """`vmap` over the arguments `names` gives what a loop over them gives."""
    fixed = row.inputs(device=device)
    examples = [
        fixed | {name: row.inputs(seed, device)[name] for name in names}
        for seed in range(1, BATCH + 1)
    ]
    stacked = fixed | {name: stack(example[name] for example in examples) for name in names}
    over_names = {name: 0 if name in names else None for name in fixed}
    found = torch.vmap(lambda inputs: row.function(**inputs), in_dims=(over_names,))(stacked)
    assert_as_a_loop(found, stack(row.function(**example) for example in examples))


def mapped_over_one_bound_for_all(row: Row, name: str, device: str) -> None:
    fixed = row.inputs(device=device)
    bounds = torch.linspace(0.0, 0.4, BATCH, dtype=torch.float64, device=device)

    def bounded(bound: Tensor) -> Any:
        return row.function(**fixed | {name: bound})

    assert_as_a_loop(torch.vmap(bounded)(bounds), stack(bounded(bound) for bound in bounds))


def mapped_twice(row: Row, device: str) -> None:
    """Maps within a map, every argument mapped by both, and each along another dimension."""
    examples = [[row.inputs(2 * i + j, device) for j in range(2)] for i in range(BATCH)]
    stacked = stack(stack(inner) for inner in zip(*examples, strict=True))  # the inner map first

    def function(inputs: dict[str, Any]) -> Any:
        return row.function(**inputs)

    found = torch.vmap(torch.vmap(function), in_dims=1)(stacked)
    assert_as_a_loop(found, stack(stack(function(e) for e in inner) for inner in examples))


def assert_as_a_loop(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def held_constant(row: Row, inputs: dict[str, Any]) -> Callable[..., Any]:
    """The function that the derivatives of `row` at `inputs` are the derivatives of.

    It is the function itself, but for FAMO's factor `c`, which its definition holds constant.
    """
    if row.function is not famo_combine:
        return row.function

    def terms(
        losses: Tensor,
        logits: Tensor,
        min_losses: Tensor,
        priorities: Tensor,  # only those that are 0 would matter
        eps: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        present = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask
        share = torch.softmax(logits[present], 0)
        return share, losses[present] - min_losses[present] + eps

    share, distance = terms(**inputs)
    factor = 1 / (share / distance).sum()

    def combine(**at: Tensor) -> Tensor:
        share, distance = terms(**at)
        return factor * (share * distance.log()).sum()

    return combine


def finite_differences(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The Jacobian of `function` by central differences: its last dimension is that of `point`."""
    steps = 1e-5 * torch.eye(len(point), dtype=point.dtype, device=point.device)
    columns = [(function(point + step) - function(point - step)) / 2e-5 for step in steps]
    return torch.stack(columns, -1)


def derived(row: Row, column: str, device: str) -> None:
    """A derivative by `column` is that of finite differences."""
    inputs = row.inputs(device=device)
    function, point = flat(row.function, inputs)
    held, _ = flat(held_constant(row, inputs), inputs)
    jacobian = finite_differences(held, point)
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(n, generator=generator, dtype=torch.float64).to(device) for n in jacobian.shape
    )
    match column:
        case "grad":
            found, expected = torch.func.grad(lambda x: left @ function(x))(point), left @ jacobian
        case "vjp":
            (found,), expected = torch.func.vjp(function, point)[1](left), left @ jacobian
        case "jvp":
            found, expected = torch.func.jvp(function, (point,), (right,))[1], jacobian @ right
        case "jacrev":
            found, expected = torch.func.jacrev(function)(point), jacobian
        case "jacfwd":
            found, expected = torch.func.jacfwd(function)(point), jacobian
        case "hessian":
            found = torch.func.hessian(function)(point)
            expected = finite_differences(torch.func.jacrev(held), point)
        case _:
            raise NotImplementedError(column)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def checked(row: Row, column: str, device: str, *, raise_exception: bool = True) -> bool:
    """Autograd's own check, of every floating argument at once, forward mode and batches too."""
    function, point = flat(row.function, row.inputs(device=device))
    point.requires_grad_()
    if not function(point).requires_grad:
        return True  # it depends on the shape alone
    if column == "gradcheck":
        return gradcheck(
            function,
            point,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            raise_exception=raise_exception,
        )
    return gradgradcheck(
        function,
        point,
        check_fwd_over_rev=True,
        check_batched_grad=True,
        raise_exception=raise_exception,
    )


def without_host_sync(row: Row, device: str) -> None:
    """Nothing waits for the device; without one, tensors that have no values stand in for its."""
    if device == "cuda":
        inputs = row.inputs(device=device)
        with synchronization_forbidden():
            row.function(**inputs)
            if row.takes_tensors():
                function, point = flat(row.function, inputs)
                torch.func.vjp(function, point)[1](function(point))
    else:
        with FakeTensorMode(allow_non_fake_inputs=True):  # those of numbers
            inputs = pytree.tree_map_only(Tensor, on_no_gpu, row.inputs())
            if "device" in inputs:
                inputs["device"] = "cuda"
            returned = row.function(**inputs)
            assert {leaf.device.type for leaf in pytree.tree_leaves(returned)} == {"cuda"}


def on_no_gpu(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cuda")


WITH_TENSORS = [row for row in ROWS if row.takes_tensors()]
every_device = pytest.mark.parametrize("device", DEVICES)
every_row = pytest.mark.parametrize("row", WITH_TENSORS, ids=str)


@every_device
@pytest.mark.parametrize("role", sorted(set(ROLES.values()) - {"shape", "options"}))
@every_row
def test_vmap_over_an_argument(row: Row, role: str, device: str) -> None:
    names = row.of_role(role)
    if names:  # else it takes no argument of this kind
        mapped(row, names, device)
    if role == "min_losses" and names:
        mapped_over_one_bound_for_all(row, names[0], device)


@every_device
@every_row
def test_vmap_over_all_arguments_and_over_two_dimensions(row: Row, device: str) -> None:
    mapped(row, row.arguments, device)
    mapped_twice(row, device)


@every_device
@pytest.mark.parametrize("column", ["grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian"])
@every_row
def test_derivative(row: Row, column: str, device: str) -> None:
    derived(row, column, device)


@every_device
@pytest.mark.parametrize("column", ["gradcheck", "gradgradcheck"])
@every_row
def test_autograds_own_check(row: Row, column: str, device: str) -> None:
    # FAMO's factor c is constant in the backward pass but not in the value, so that its finite
    # differences are others: `test_derivative` holds it against a constant c.
    fails = row.function is famo_combine
    assert checked(row, column, device, raise_exception=not fails) is not fails


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e300, -1e300, 0.0])
@pytest.mark.parametrize("row", [row for row in WITH_TENSORS if row.masked], ids=str)
def test_nothing_sees_an_absent_task(row: Row, value: float) -> None:
    """Whatever stands in its place, in any argument; and no gradient flows to it."""
    inputs, leaves = row.inputs(), []
    for absent in (2.0, value):

        def spoiled(leaf: Tensor, absent: float = absent) -> Tensor:
            of_tasks = leaf.is_floating_point() and leaf.ndim
            return leaf.masked_fill(~inputs["mask"], absent) if of_tasks else leaf

        given = pytree.tree_map_only(Tensor, spoiled, inputs)
        if not math.isfinite(value):  # as no state is
            given |= {"state": inputs["state"]} if "state" in inputs else {}
        leaves.append(pytree.tree_leaves(value_and_gradients(row.function, given)))
    for before, after in zip(*leaves, strict=True):
        if after.ndim:
            # An absent entry of a state is kept, with the gradient of what is kept.
            kept = after[~inputs["mask"]]
            assert "state" in inputs or not kept.any()
            before, after = before[inputs["mask"]], after[inputs["mask"]]
        assert torch.equal(before, after)


@every_device
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_nothing_waits_for_the_device(row: Row, device: str) -> None:
    without_host_sync(row, device)


def test_a_sweep_may_map_whole_runs() -> None:
    """From the first state on, which is made inside the map."""
    learning_rates = torch.tensor([0.0, 0.01, 0.1], dtype=torch.float64)
    before = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def logits(lr: Tensor) -> Tensor:
        state = famo_init(3, dtype=torch.float64)
        for step in range(10):
            after = before * torch.tensor([0.9, 0.5, 1.0 - 0.05 * step], dtype=torch.float64)
            state = famo_update(state, famo_delta(before, after), lr=lr)
        return state.logits

    expected = torch.stack([logits(lr) for lr in learning_rates])
    assert_as_a_loop(torch.vmap(logits)(learning_rates), expected)


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_fresh_state_has_derivatives(tasks: int) -> None:
    """Although Adam's second moment is 0 there, and stays 0 where there is a single task."""
    fresh = famo_init(tasks, dtype=torch.float64)
    hyperparameters = torch.tensor([0.025, 1e-3], dtype=torch.float64)
    delta = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)[:tasks]

    def weights(hyperparameters: Tensor, delta: Tensor) -> Tensor:
        lr, weight_decay = hyperparameters
        state = famo_update(fresh, delta, lr=lr, weight_decay=weight_decay)
        state = famo_update(state, 0.5 * delta, lr=lr, weight_decay=weight_decay)
        return famo_weights(torch.ones_like(delta), state.logits)

    arguments = (hyperparameters.requires_grad_(), delta.requires_grad_())
    assert gradcheck(weights, arguments, check_forward_ad=True)


def test_a_fresh_state_has_derivatives_in_single_precision() -> None:
    """The floor under Adam's second moment is above the smallest number of each dtype."""
    delta = torch.zeros(2, requires_grad=True)
    famo_update(famo_init(2), delta).logits.sum().backward()
    assert delta.grad.isfinite().all()
