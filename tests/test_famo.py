"""What is particular to FAMO."""

import copy
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from mtl_scalarize import FAMO, famo_combine, famo_delta, famo_init, famo_update, famo_weights
from mtl_scalarize.functional._adam import adam_step


def adam(
    start: Tensor, gradients: Tensor, lr: float, weight_decay: float, tensors: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The same gradients to `adam_step` and to `torch.optim.Adam`."""
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=lr, weight_decay=weight_decay)
    moments = torch.zeros_like(start), torch.zeros_like(start)
    state = (start, *moments, torch.zeros(start.shape, dtype=torch.int64))
    hyper = [torch.tensor(x, dtype=torch.float64) if tensors else x for x in (lr, weight_decay)]
    ours, expected = [], []
    for gradient in gradients:
        param, *rest = state
        state = adam_step(param, gradient, *rest, lr=hyper[0], weight_decay=hyper[1])
        theirs.grad = gradient.clone()
        optimizer.step()
        ours.append(state[0])
        expected.append(theirs.detach().clone())
    return ours, expected


@pytest.mark.parametrize("tensors", [False, True], ids=["numbers", "0-d tensors"])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("lr", [0.025, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adam_step_is_the_adam_of_torch(
    dtype: torch.dtype, lr: float, weight_decay: float, tensors: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-12, 3, 40, dtype=dtype)
    gradients = scale * torch.randn(1_000, 40, generator=generator, dtype=dtype)
    start = torch.randn(40, generator=generator, dtype=dtype)
    ours, expected = adam(start, gradients, lr, weight_decay, tensors)
    # Relative to the largest entry: an entry that crosses 0 has no relative error of its own.
    rtol = 1e-13 if dtype is torch.float64 else 1e-5
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol * float(theirs.abs().max()))


def test_adam_step_has_finite_derivatives_at_zero_moments() -> None:
    zeros = torch.zeros(2, dtype=torch.float64)

    def logits(gradient: Tensor, lr: Tensor) -> Tensor:
        step = torch.zeros(2, dtype=torch.int64)
        return adam_step(zeros, gradient, zeros, zeros, step, lr=lr, weight_decay=0.0)[0]

    lr = torch.tensor(0.1, dtype=torch.float64)
    by_gradient, by_lr = torch.func.jacrev(logits, argnums=(0, 1))(zeros, lr)
    # There Adam is -lr * g / (|g| + eps), whose slope at 0 is -lr / eps.
    torch.testing.assert_close(by_gradient, -lr / 1e-8 * torch.eye(2, dtype=torch.float64))
    assert by_lr.tolist() == [0.0, 0.0]
    second = torch.func.hessian(lambda g: logits(g, lr).sum())(zeros)
    assert torch.isfinite(second).all()


def test_the_task_that_falls_least_gains_weight() -> None:
    scalarizer = FAMO(3)
    losses = torch.tensor([1.0, 1.0, 1.0])
    for _ in range(20):
        scalarizer(losses)
        scalarizer.update(losses * torch.tensor([0.5, 1.0, 0.8]))
    share = torch.softmax(scalarizer.logits, 0)
    assert share[0] < share[2] < share[1]


def test_a_task_that_appears_late_has_the_bias_correction_of_a_first_step() -> None:
    early, late = famo_init(2), famo_init(2)
    only_first = torch.tensor([True, False])
    for _ in range(50):
        late = famo_update(late, torch.tensor([0.3, torch.nan]), mask=only_first)
    assert late.updates.tolist() == [50, 0]
    delta = torch.tensor([0.3, 0.1])
    late = famo_update(late._replace(logits=torch.zeros(2)), delta, weight_decay=0.0)
    early = famo_update(early, delta, weight_decay=0.0)
    torch.testing.assert_close(late.logits[1], early.logits[1], rtol=0, atol=0)


def test_update_passes_over_a_task_absent_from_the_call() -> None:
    """Also when the second forward pass finds a number in its place and passes no mask."""
    scalarizer = FAMO(3)
    scalarizer(torch.ones(3))
    scalarizer.update(torch.tensor([0.5, 0.6, 0.7]))
    before = [value[1].clone() for value in scalarizer.state]
    scalarizer(torch.tensor([1.0, 5.0, 1.0]), torch.tensor([True, False, True]))
    scalarizer.update(torch.tensor([0.9, 0.0001, 0.5]))
    torch.testing.assert_close([v[1] for v in scalarizer.state], before, rtol=0, atol=0)
    assert scalarizer.updates.tolist() == [2, 1, 2]


@pytest.mark.parametrize("seldom", [1, 2, 10])
def test_an_update_learns_from_the_last_call_however_many_there_were(seldom: int) -> None:
    scalarizer, state = FAMO(2), famo_init(2)
    generator = torch.Generator().manual_seed(0)
    for index, (losses, factor) in enumerate(torch.rand(20, 2, 2, generator=generator)):
        scalarizer(losses)
        if index % seldom == 0:
            scalarizer.update(losses * factor)
            state = famo_update(state, famo_delta(losses, losses * factor))
    torch.testing.assert_close(scalarizer.state, state, rtol=0, atol=0)
    assert scalarizer.updates.tolist() == [20 // seldom] * 2


def test_in_a_full_batch_loop_the_losses_of_this_step_are_those_after_the_last() -> None:
    ahead, behind = FAMO(2), FAMO(2)
    rows = [torch.tensor(row) for row in ([1.0, 1.0], [0.5, 0.9], [0.4, 0.3])]
    for losses in rows:
        ahead.update(losses)  # the first finds nothing to compare with
        ahead(losses)
    for before, after in itertools.pairwise(rows):
        behind(before)
        behind.update(after)
    torch.testing.assert_close(ahead.state, behind.state, rtol=0, atol=0)
    assert ahead.updates.tolist() == [2, 2]


@pytest.mark.parametrize("around", ["the step", "each pass"])
def test_in_autocast_the_second_look_sees_the_weights_after_the_step(around: str) -> None:
    """Autocast keeps the cast weights of a network for as long as its region lasts."""

    def region(level: str) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16, enabled=around == level)

    torch.manual_seed(0)
    network, scalarizer = torch.nn.Linear(4, 3), FAMO(3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    features = torch.randn(16, 4)

    def losses_of() -> Tensor:
        with region("each pass"):
            return (network(features) * torch.tensor([1.0, 3.0, 9.0])).square().mean(0)

    for _ in range(20):
        optimizer.zero_grad()
        with region("the step"):
            scalarizer(losses_of()).backward()
            optimizer.step()
            scalarizer.update(losses_of)
    assert scalarizer.logits.abs().min() > 0.01


def test_update_may_be_the_first_thing_after_a_checkpoint() -> None:
    source, resumed = FAMO(2), FAMO(2)
    source(torch.tensor([1.0, 1.0]))
    resumed.load_state_dict(source.state_dict())
    for scalarizer in (source, resumed):
        scalarizer.update(torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(resumed.state, source.state, rtol=0, atol=0)
    assert resumed.logits[0] < 0


@pytest.mark.parametrize(
    "bounds", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5])], ids=["number", "0-d", "tensor"]
)
def test_min_losses_is_a_number_or_a_tensor(bounds: float | Tensor) -> None:
    losses, logits = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2])
    for function in (famo_combine, famo_weights):
        expected = function(losses - 0.5, logits)
        torch.testing.assert_close(function(losses, logits, bounds), expected)
    expected = famo_delta(losses - 0.5, losses)
    torch.testing.assert_close(famo_delta(losses, losses + 0.5, bounds), expected)
    torch.testing.assert_close(FAMO(2, bounds)(losses), famo_combine(losses, torch.zeros(2), 0.5))


def test_min_losses_keeps_the_precision_it_was_given_in() -> None:
    bounds = torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert FAMO(2, bounds).double().min_losses.tolist() == [0.1, 0.2]
    assert FAMO(2).min_losses.tolist() == [0.0, 0.0]


def test_min_losses_is_a_number_of_any_size_whatever_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float16)
    try:
        assert FAMO(2, -1e5)(torch.ones(2)).isfinite()
    finally:
        torch.set_default_dtype(torch.float32)


def test_min_losses_is_a_copy() -> None:
    bounds = torch.zeros(2)
    scalarizer = FAMO(2, bounds)
    bounds += 1
    for _ in range(2):
        assert scalarizer.min_losses.tolist() == [0.0, 0.0]
        scalarizer.reset()


def test_weights_are_differentiable_where_combine_holds_its_constant() -> None:
    """The route to hypergradients: `vjp` with `famo_weights`, against central differences."""
    losses = torch.tensor([1.0, 3.0], dtype=torch.float64)
    logits = torch.tensor([0.2, -0.1], dtype=torch.float64)
    torch.autograd.gradcheck(
        famo_weights, (losses.requires_grad_(), logits.requires_grad_()), atol=1e-9
    )
    torch.autograd.gradgradcheck(famo_weights, (losses, logits), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_loss_at_its_bound_is_finite_and_takes_nearly_all_the_weight(dtype: torch.dtype) -> None:
    bounds = torch.tensor([-2.0, 0.5], dtype=dtype)
    losses = torch.tensor([-2.0, 1.5], dtype=dtype, requires_grad=True)
    scalarizer = FAMO(2, bounds).to(dtype)
    scalar = scalarizer(losses)
    scalar.backward()
    assert scalar.isfinite()
    torch.testing.assert_close(losses.grad, torch.tensor([1 - 1e-8, 1e-8], dtype=dtype))
    torch.testing.assert_close(scalarizer.weights, losses.grad)
    scalarizer.update(bounds)  # now both are: the one that fell loses weight
    assert scalarizer.logits.isfinite().all()
    assert scalarizer.logits[1] < 0 < scalarizer.logits[0]


@pytest.mark.parametrize("by", [1e-3, 10.0])
def test_a_loss_below_its_bound_is_reported_and_not_learned_from(by: float) -> None:
    scalarizer, reference = FAMO(3), FAMO(3)
    fine, low = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -by, 3.0]).requires_grad_()
    scalar = scalarizer(low)
    scalar.backward()
    # A gradient with a finite entry could pass for one: the weights have no meaning together.
    assert torch.stack([scalar, *low.grad, *scalarizer.weights]).isnan().all()
    assert famo_weights(low.detach(), scalarizer.logits).isnan().all()
    scalarizer.update(0.9 * fine)
    reference(fine, torch.tensor([True, False, True]))
    reference.update(0.9 * fine)
    torch.testing.assert_close(scalarizer.state, reference.state, rtol=0, atol=0)


def test_the_fall_of_a_loss_below_its_bound_is_not_a_number() -> None:
    before, after = torch.tensor([-1.0, 1.0, -1.0]), torch.tensor([1.0, -1.0, -2.0])
    assert famo_delta(before, after).isnan().all()
    assert famo_delta(before, after, min_losses=-3.0).isfinite().all()


def test_an_absent_task_weighs_nothing_beside_one_that_is_below_its_bound() -> None:
    losses, mask = torch.tensor([7.0, -1.0]), torch.tensor([False, True])
    scalarizer = FAMO(2)
    assert scalarizer(losses, mask).isnan()
    for weights in (scalarizer.weights, famo_weights(losses, torch.zeros(2), mask=mask)):
        assert weights[0] == 0
        assert weights[1].isnan()


def test_a_second_update_after_one_call_learns_nothing() -> None:
    scalarizer = FAMO(2)
    scalarizer(torch.ones(2))
    scalarizer.update(torch.tensor([0.5, 1.0]))
    expected = [value.clone() for value in scalarizer.state]
    scalarizer.update(torch.tensor([0.1, 1.0]))
    scalarizer.eval()
    scalarizer(torch.ones(2))
    scalarizer.train()
    scalarizer.update(torch.tensor([0.1, 1.0]))
    torch.testing.assert_close(list(scalarizer.state), expected, rtol=0, atol=0)


def test_update_passes_over_a_task_that_its_mask_or_the_last_call_lacks() -> None:
    one, all_three = torch.tensor([True, False, True]), torch.ones(3, dtype=torch.bool)
    after = torch.tensor([0.9, 0.1, 0.5])
    for call_mask, update_mask in ((None, one), (one, None), (one, all_three)):
        scalarizer = FAMO(3)
        scalarizer(torch.ones(3))  # without an update, so that its losses are still there
        scalarizer(torch.ones(3), call_mask)
        scalarizer.update(after, update_mask)
        assert scalarizer.updates.tolist() == [1, 0, 1]
        assert scalarizer.updates.dtype == torch.int64


def test_a_copy_made_between_a_call_and_its_update_may_update() -> None:
    scalarizer = FAMO(2)
    scalarizer(torch.ones(2))
    twin = copy.deepcopy(scalarizer)
    for each in (scalarizer, twin):
        each.update(torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(twin.state, scalarizer.state, rtol=0, atol=0)
    assert twin.updates.tolist() == [1, 1]


def test_a_second_derivative_takes_the_weights_and_not_the_scalar() -> None:
    """The loss after a step, in the logits: the factor that is held has a derivative."""
    target = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]], dtype=torch.float64)
    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    logits = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)

    def losses_of(w: Tensor) -> Tensor:
        return (w - target).square().sum(dim=1)

    def by_weights(logits: Tensor) -> Tensor:
        losses, pullback = torch.func.vjp(losses_of, start)
        return pullback(famo_weights(losses, logits))[0]

    def by_scalar(logits: Tensor) -> Tensor:
        return torch.func.grad(lambda w: famo_combine(losses_of(w), logits))(start)

    def after(logits: Tensor, direction: Callable[[Tensor], Tensor]) -> Tensor:
        return losses_of(start - 0.1 * direction(logits)).log().sum()

    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    expected = torch.stack(
        [(after(logits + e, by_weights) - after(logits - e, by_weights)) / 2e-6 for e in steps]
    )
    torch.testing.assert_close(by_scalar(logits), by_weights(logits))
    right, wrong = (torch.func.grad(after)(logits, way) for way in (by_weights, by_scalar))
    torch.testing.assert_close(right, expected, rtol=1e-6, atol=1e-9)
    assert (wrong - expected).abs().max() > 0.1 * expected.abs().max()
