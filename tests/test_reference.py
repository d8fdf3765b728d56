"""The pure functions against exact arithmetic: any shape and mask, the whole domain, both dtypes.

An error is relative to the exact value, and at most TOLERANCE. Where terms cancel it is relative to
the sum of their sizes: the result itself may be 0. A logarithm is as far off near 1, where it
vanishes, as it is where it is 1. An absent task's loss is nan: it should not be read.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from reference import Combined, Vector, exact
from strategies import (
    DECADES,
    TOLERANCE,
    alike,
    filled_with,
    logits,
    losses,
    losses_or_not_finite,
    losses_or_zero,
    masks,
    not_finite,
    numbers,
    scales,
    temperatures,
)
from torch import Tensor

import mtl_scalarize as mtl
from mtl_scalarize.functional._adam import adam_step

bounds = filled_with(st.just(0.0) | st.floats(-1.0, 1.0))
every_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def error(found: Tensor, expected: Any, size: Any = None) -> float:
    """The largest of any entry, relative to `size` or else to what is expected.

    A number above half of the dtype's largest is passed over: a step on the way may overflow.
    """
    limits = torch.finfo(found.dtype)
    expected = np.atleast_1d(np.array(expected, dtype=object))
    sizes = np.broadcast_to(abs(expected) if size is None else size, expected.shape)
    errors = [0.0]
    for number, value, size in zip(found.flatten().tolist(), expected, sizes, strict=True):
        if size < limits.max / 2:
            assert math.isfinite(number), f"{number} should be {value}"
            errors.append(float(abs(mpf(number) - value) / max(size, limits.tiny)))
    return max(errors)


def split(found: Tensor, mask: Tensor | None) -> Tensor:
    """The entries of the tasks that are present; the others should be 0."""
    if mask is None:
        return found.detach()
    assert (found[~mask] == 0).all()
    return found.detach()[mask]


def nan_where_absent(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values.where(mask, torch.nan)


@pytest.mark.parametrize(
    ("loss", "weights", "expected", "sign", "factor"),
    [
        pytest.param(mtl.uw_loss, mtl.uw_weights, reference.uw, -1, 0.5, id="UW"),
        pytest.param(mtl.imtll_loss, mtl.imtll_weights, reference.imtll, 1, 1.0, id="IMTL-L"),
    ],
)
@every_dtype
@given(data=st.data(), eps=st.sampled_from([0.0, 1e-3]))
def test_learned_scales(
    loss: Callable[..., Tensor],
    weights: Callable[..., Tensor],
    expected: Callable[[Vector, Vector], Combined],
    sign: int,
    factor: float,
    dtype: torch.dtype,
    data: st.DataObject,
    eps: float,
) -> None:
    values, scale, mask = data.draw(alike(dtype, losses, scales, masks))
    variables = nan_where_absent(values, mask).requires_grad_(), scale.requires_grad_()

    scalar = loss(*variables, eps=eps, mask=mask)
    in_losses, in_scale = torch.autograd.grad(scalar, variables)

    above_zero = exact(values, mask) + mpf(eps)
    terms, task_weights = expected(above_zero, exact(scale, mask))
    products = task_weights * above_zero
    slope, size = sign * (products - factor), products + factor
    assert error(scalar.detach(), terms.sum(), abs(terms).sum()) <= TOLERANCE[dtype]
    for found in (weights(scale, mask=mask), in_losses):
        assert error(split(found, mask), task_weights) <= TOLERANCE[dtype]
    assert error(split(in_scale, mask), slope, size) <= TOLERANCE[dtype]


@every_dtype
@given(data=st.data(), temperature=temperatures)
def test_dwa_weights(dtype: torch.dtype, data: st.DataObject, temperature: float) -> None:
    """To the tolerance, and r/T times the rounding of r: softmax takes the exponential of r/T.

    So 1e-5 cannot hold in float32 once a loss grows 100-fold from one epoch to the next.
    """
    last, previous = data.draw(alike(dtype, losses, losses_or_zero))
    found = mtl.dwa_weights(last, previous, temperature)
    pairs = zip(exact(last), exact(previous), strict=True)
    rates = np.array([one / other if other else mpf("inf") for one, other in pairs])
    ready = rates < torch.finfo(dtype).max  # the others have no rate
    expected = np.full(rates.shape, mpf(1))
    expected[ready] = reference.dwa_weights(rates[ready], temperature)
    steepest = max(rates[ready] / temperature, default=0)
    allowed = max(TOLERANCE[dtype], 2 * torch.finfo(dtype).eps * steepest)
    assert error(found, expected, np.maximum(expected, mpf(10) ** -DECADES[dtype])) <= allowed


@every_dtype
@given(data=st.data(), temperature=temperatures)
def test_dwa_over_epochs(dtype: torch.dtype, data: st.DataObject, temperature: float) -> None:
    """Means over the batches in which a task has a finite loss; the last two, and the scalar."""
    tasks = 2
    batch = alike(dtype, losses_or_not_finite, masks, shapes=st.just((tasks,)))
    state = mtl.dwa_init(tasks, dtype=dtype)
    means: list[list[Any]] = [[mpf(0), mpf(0)] for _ in range(tasks)]
    for batches in data.draw(st.lists(st.lists(batch, max_size=4), max_size=4)):
        seen: list[list[Any]] = [[] for _ in range(tasks)]
        for values, mask in batches:
            state = mtl.dwa_accumulate(state, values, mask=mask)
            for task in range(tasks):
                if values[task].isfinite() and (mask is None or mask[task]):
                    seen[task].append(mpf(values[task].item()))
        for task, of_epoch in enumerate(seen):
            means[task] += [sum(of_epoch) / len(of_epoch)] if of_epoch else []
        assert state.count.tolist() == [len(of_epoch) for of_epoch in seen]
        state = mtl.dwa_step(state, temperature)
        assert error(state.last, [mean[-1] for mean in means]) <= TOLERANCE[dtype]
        assert error(state.previous, [mean[-2] for mean in means]) <= TOLERANCE[dtype]
        assert torch.equal(
            state.epoch_weights, mtl.dwa_weights(state.last, state.previous, temperature)
        )
        assert (state.mean == 0).all()
        assert (state.count == 0).all()
    values, mask = data.draw(alike(dtype, losses, masks, shapes=st.just((tasks,))))
    variables = nan_where_absent(values, mask).requires_grad_()
    scalar = mtl.dwa_combine(variables, state, mask=mask)
    products = exact(values, mask) * exact(state.epoch_weights, mask)
    assert error(scalar.detach(), products.sum()) <= TOLERANCE[dtype]
    (in_losses,) = torch.autograd.grad(scalar, variables)
    assert error(split(in_losses, mask), exact(state.epoch_weights, mask)) == 0


@pytest.mark.parametrize(
    ("scalar", "weights", "expected"),
    [
        pytest.param(mtl.log_sum, mtl.log_sum_weights, reference.log_sum, id="LogSum"),
        pytest.param(
            mtl.geometric_mean,
            mtl.geometric_mean_weights,
            reference.geometric_mean,
            id="GeometricMean",
        ),
    ],
)
@every_dtype
@given(data=st.data())
def test_logarithms(
    scalar: Callable[..., Tensor],
    weights: Callable[..., Tensor],
    expected: Callable[[Vector], Combined],
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    """To the tolerance, and twice the rounding of the largest logarithm."""
    values, mask = data.draw(alike(dtype, losses, masks))
    variables = nan_where_absent(values, mask).requires_grad_()
    found = scalar(variables, mask=mask)
    (in_losses,) = torch.autograd.grad(found, variables)
    present = exact(values, mask)
    terms, of_tasks = expected(present)
    largest = max(abs(reference.log(present)), default=0)
    allowed = max(TOLERANCE[dtype], 2 * torch.finfo(dtype).eps * largest)
    assert error(found.detach(), terms.sum(), (1 + abs(terms)).sum()) <= allowed
    least = np.maximum(of_tasks, mpf(10) ** -DECADES[dtype])
    for slope in (weights(variables, mask=mask), in_losses):
        assert error(split(slope, mask), of_tasks, least) <= allowed


usual = filled_with(st.floats(0.1, 10.0))


@every_dtype
@given(data=st.data(), mu=st.floats(0.05, 1.0))
def test_stch(dtype: torch.dtype, data: st.DataObject, mu: float) -> None:
    """To the tolerance, and four times the rounding of the largest exponent."""
    values, preference, bound, mask = data.draw(alike(dtype, usual, usual, bounds, masks))
    variables = nan_where_absent(values, mask).requires_grad_()
    scalar = mtl.stch(variables, mu, preference, bound, mask=mask)
    (in_losses,) = torch.autograd.grad(scalar, variables)
    present, liked, ideal = (exact(each, mask) for each in (values, preference, bound))
    terms, weights = reference.stch(present, mu, liked, ideal)
    exponents = abs(liked) * (abs(present) + abs(ideal)) / mu
    allowed = TOLERANCE[dtype] + 4 * torch.finfo(dtype).eps * max(exponents, default=0)
    assert error(scalar.detach(), terms.sum(), mu + abs(terms).sum()) <= allowed
    found = mtl.stch_weights(variables, mu, preference, bound, mask=mask)
    for slope in (found, in_losses):
        assert error(split(slope, mask), weights, np.maximum(weights, 1e-30)) <= allowed


@every_dtype
@given(data=st.data(), penalty=st.floats(0.0, 8.0))
def test_cosmos(dtype: torch.dtype, data: st.DataObject, penalty: float) -> None:
    values, preference, mask = data.draw(alike(dtype, losses, usual, masks))
    variables = nan_where_absent(values, mask).requires_grad_()
    scalar = mtl.cosmos(variables, penalty, preference, mask=mask)
    (in_losses,) = torch.autograd.grad(scalar, variables)
    present, liked = (exact(each, mask) for each in (values, preference))
    terms, weights = reference.cosmos(present, penalty, liked)
    assert error(scalar.detach(), terms.sum(), abs(terms).sum()) <= TOLERANCE[dtype]
    length = reference.sqrt((present**2).sum()) or 1
    for slope in (mtl.cosmos_weights(variables, penalty, preference, mask=mask), in_losses):
        assert error(split(slope, mask), weights, liked + penalty / length) <= TOLERANCE[dtype]


@every_dtype
@given(data=st.data(), penalty=st.floats(0.0, 8.0))
def test_pbi(dtype: torch.dtype, data: st.DataObject, penalty: float) -> None:
    """The weights to the tolerance, and to the rounding of what is beside the direction."""
    values, preference, bound, mask = data.draw(alike(dtype, losses, usual, bounds, masks))
    variables = nan_where_absent(values, mask).requires_grad_()
    scalar = mtl.pbi(variables, penalty, preference, bound, mask=mask)
    (in_losses,) = torch.autograd.grad(scalar, variables)
    present, liked, ideal = (exact(each, mask) for each in (values, preference, bound))
    terms, weights = reference.pbi(present, penalty, liked, ideal)
    largest = max(abs(present) + abs(ideal), default=0)
    assert error(scalar.detach(), terms.sum(), (1 + penalty) * largest) <= TOLERANCE[dtype]
    share = penalty * largest / terms[1] if penalty and terms[1] else 0
    allowed = TOLERANCE[dtype] + 8 * torch.finfo(dtype).eps * share
    for slope in (mtl.pbi_weights(variables, penalty, preference, bound, mask=mask), in_losses):
        assert error(split(slope, mask), weights, 1 + penalty) <= allowed


@every_dtype
@given(
    data=st.data(),
    lookback=st.integers(0, 1),
    alpha=st.floats(0.0, 1.0),
    temperature=temperatures,
)
def test_relobralo(
    dtype: torch.dtype, data: st.DataObject, lookback: int, alpha: float, temperature: float
) -> None:
    """To the tolerance, and four times the rounding of the largest exponent."""
    broken = filled_with(st.floats(0.1, 10.0) | not_finite)
    *fields, values, mask = data.draw(alike(dtype, usual, usual, usual, broken, masks))
    state, options = mtl.ReLoBRaLoState(*fields), {"alpha": alpha, "temperature": temperature}
    new = mtl.relobralo_update(state, values, lookback, mask=mask, **options)
    learned = values.isfinite() if mask is None else values.isfinite() & mask
    for before, after in zip(state, new, strict=True):
        assert torch.equal(after[~learned], before[~learned])
    assert torch.equal(new.first, state.first)
    assert torch.equal(new.last[learned], values[learned])
    present, *old = (exact(each, learned) for each in (values, *state))
    expected = reference.relobralo(present, old, 1 - lookback, alpha, temperature)
    allowed = TOLERANCE[dtype] + 4 * torch.finfo(dtype).eps * 100 / temperature
    assert error(new.running_weights[learned], expected, np.maximum(expected, 1e-30)) <= allowed


def test_relobralo_begins_with_nothing_to_compare_with() -> None:
    """The second batch is compared with the first, looking back or not; a task may come later."""
    first, second = torch.tensor([[2.0, 1.0, torch.nan], [1.0, 1.0, 4.0]], dtype=torch.float64)
    state = mtl.relobralo_update(mtl.relobralo_init(3, dtype=torch.float64), first, 1, alpha=0.5)
    assert state.running_weights.tolist() == [1.0, 1.0, 1.0]
    assert [field.tolist() for field in state[1:]] == [[2.0, 1.0, 0.0]] * 2
    for lookback in (0, 1):
        new = mtl.relobralo_update(state, second, lookback, alpha=0.5, temperature=1.0)
        assert new.first.tolist() == [2.0, 1.0, 4.0]
        balance = torch.tensor([0.5, 1.0], dtype=torch.float64).softmax(0) * 2
        expected = balance if lookback else (1 + balance) / 2
        torch.testing.assert_close(new.running_weights[:2], expected)
        assert new.running_weights[2] == 1


@every_dtype
@given(data=st.data())
def test_famo(dtype: torch.dtype, data: st.DataObject) -> None:
    """To the tolerance, and twice the rounding of the numbers of which softmax takes exponentials.

    So 1e-5 cannot hold in float32 where a loss above 6e27, whose logarithm has lost a digit, meets
    logits far from 0: there it is 1.5e-5.
    """
    above, scores, bound, mask = data.draw(alike(dtype, losses, logits, bounds, masks))
    values = above + bound
    variables = nan_where_absent(values, mask).requires_grad_()

    scalar = mtl.famo_combine(variables, scores, bound, mask=mask)
    (in_losses,) = torch.autograd.grad(scalar, variables)

    distances = exact(values, mask) - exact(bound, mask) + reference.EPS
    terms, weights = reference.famo(distances, exact(scores, mask))
    logs = abs(reference.log(distances))
    sizes = weights * distances * (1 + logs)
    largest = max(logs + abs(exact(scores, mask)), default=0)
    allowed = max(TOLERANCE[dtype], 2 * torch.finfo(dtype).eps * largest)
    assert error(scalar.detach(), terms.sum(), sizes.sum()) <= allowed
    least = np.maximum(weights, mpf(10) ** -DECADES[dtype])
    for found in (mtl.famo_weights(variables, scores, bound, mask=mask), in_losses):
        assert error(split(found, mask), weights, least) <= allowed


@every_dtype
@given(data=st.data(), nearly=st.lists(st.floats(-1e-3, 1e-3), min_size=9, max_size=9))
def test_famo_delta(dtype: torch.dtype, data: st.DataObject, nearly: list[float]) -> None:
    """And its gradients: falls and rises from the last digits to the whole domain."""
    before, after, close = data.draw(alike(dtype, losses, losses, masks))
    if close is not None:
        change = torch.tensor(nearly[: before.numel()], dtype=dtype).reshape(before.shape)
        after = torch.where(close, before * (1 + change), after)
    variables = before.requires_grad_(), after.requires_grad_()
    found = mtl.famo_delta(*variables)
    slopes = torch.autograd.grad(found.sum(), variables)
    before, after = (exact(each.detach()) for each in variables)
    expected = reference.famo_delta(before, after)
    assert error(found.detach(), expected) <= TOLERANCE[dtype]
    assert error(slopes[0], 1 / (before + reference.EPS)) <= TOLERANCE[dtype]
    assert error(slopes[1], -1 / (after + reference.EPS)) <= TOLERANCE[dtype]


@every_dtype
@given(
    data=st.data(),
    lr=st.just(0.0) | st.floats(1e-6, 1.0),
    weight_decay=st.just(0.0) | st.floats(1e-6, 0.1),
    updates=st.integers(0, 10**6),
)
def test_famo_update(
    dtype: torch.dtype, data: st.DataObject, lr: float, weight_decay: float, updates: int
) -> None:
    """The gradient and its averages; then Adam's change from these averages, as they are stored.

    Adam divides a gradient by its size, so that one that cancels to a rounding error makes a step
    of full length in any direction: the two are compared one after the other.
    """
    small, falls = filled_with(numbers(5)), filled_with(numbers(5) | not_finite)
    kinds = logits, small, small, falls, masks
    scores, first_moment, root, delta, mask = data.draw(alike(dtype, *kinds))
    count = torch.full(scores.shape, updates)
    state = mtl.FAMOState(scores, first_moment, root**2, count)

    new = mtl.famo_update(state, delta, lr=lr, weight_decay=weight_decay, mask=mask)

    learned = delta.isfinite() if mask is None else delta.isfinite() & mask
    for before, after in zip(state, new, strict=True):
        assert after.dtype is before.dtype
        assert torch.equal(after[~learned], before[~learned])
    found, old = ([exact(field, learned) for field in of] for of in (new, state))
    decay = weight_decay * old[0]
    gradient = reference.famo_gradient(old[0], exact(delta, learned)) + decay
    size = 5 + abs(decay)  # of the terms of any gradient
    assert (found[3] == updates + 1).all()
    beta1, beta2 = reference.BETA1, reference.BETA2
    average, average_sq = old[1] * beta1, old[2] * beta2
    average_sq = average_sq + (1 - beta2) * gradient**2
    allowed = TOLERANCE[dtype]
    of_avg = abs(average) + (1 - beta1) * size
    assert error(new.first_moment[learned], average + (1 - beta1) * gradient, of_avg) <= allowed
    of_sq = old[2] * beta2 + (1 - beta2) * size**2
    assert error(new.second_moment[learned], average_sq, of_sq) <= allowed
    change = lr * reference.adam_change(found[1], found[2], found[3])
    of_logits = abs(old[0]) + abs(change)
    assert error(new.logits[learned], old[0] - change, of_logits) <= allowed


@every_dtype
@given(updates=st.integers(0, 10**7), gradient=st.floats(1e-3, 1e3), sign=st.sampled_from([-1, 1]))
def test_adams_corrections_are_right_to_four_units_in_the_last_place(
    dtype: torch.dtype, updates: int, gradient: float, sign: int
) -> None:
    """Seen in the change of a parameter at 0."""
    zero, gradients = torch.zeros((), dtype=dtype), torch.tensor(sign * gradient, dtype=dtype)
    averages = gradients, gradients**2, torch.tensor(updates)
    new = adam_step(zero, gradients, *averages, lr=1.0, weight_decay=0.0)
    expected = -reference.adam_change(*(exact(field) for field in new[1:]))
    assert error(new[0], expected) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("seed", range(3))
def test_famo_is_trained_by_the_adam_of_torch(seed: int) -> None:
    """On the gradient that autograd finds, as in the official code."""
    generator = torch.Generator().manual_seed(seed)
    state = mtl.famo_init(5, dtype=torch.float64)
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=1e-3)
    for _ in range(300):
        delta = torch.randn(5, generator=generator, dtype=torch.float64)
        state = mtl.famo_update(state, delta)
        logits.grad = torch.autograd.grad(logits.softmax(0) @ delta, logits)[0]
        adam.step()
        torch.testing.assert_close(state.logits, logits.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("eps", [0.0, 0.5, torch.tensor(0.25, dtype=torch.float64)], ids=str)
def test_eps_is_added_to_the_losses(eps: float | Tensor) -> None:
    losses, logits = torch.tensor([[0.5, 2.0], [0.1, -0.3]], dtype=torch.float64)
    for function, rest in (
        (mtl.log_sum, ()),
        (mtl.log_sum_weights, ()),
        (mtl.famo_combine, (logits,)),
        (mtl.famo_weights, (logits,)),
        (mtl.uw_loss, (logits,)),
        (mtl.imtll_loss, (logits,)),
    ):
        found, expected = function(losses, *rest, eps=eps), function(losses + eps, *rest, eps=0.0)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    found = mtl.famo_delta(losses, 2 * losses, eps=eps)
    torch.testing.assert_close(found, ((losses + eps) / (2 * losses + eps)).log())
    modules = (mtl.LogSum(eps=eps), mtl.FAMO(2, eps=eps), mtl.UW(2, eps=eps), mtl.IMTLL(2, eps=eps))
    for module in modules:
        shifted = copy.deepcopy(module)
        shifted.eps = 0.0
        torch.testing.assert_close(module(losses), shifted(losses + eps), rtol=1e-14, atol=0)


@every_dtype
@given(distance=st.floats(1e-6, 1e-2), sign=st.sampled_from([-1, 1]))
def test_a_logarithm_near_1_keeps_its_digits(
    dtype: torch.dtype, distance: float, sign: int
) -> None:
    loss = torch.tensor(1 + sign * distance, dtype=dtype)
    expected = reference.log(exact(loss))
    assert error(mtl.log_sum(loss, eps=0.0), expected) <= TOLERANCE[dtype]
    found = mtl.famo_combine(loss, torch.zeros_like(loss), eps=0.0)
    assert error(found, expected * exact(loss)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("last", [1.0, -1.0])
def test_a_task_that_rises_without_measure_takes_all(last: float) -> None:
    largest = torch.tensor([1e10, 1.0]), torch.tensor([1e-28, 1.0])
    assert mtl.relobralo_weights(*largest).tolist() == [2.0, 0.0]
    inputs = [torch.tensor([last, 1.0]), torch.tensor([last * 1e-20, 1.0]), torch.tensor(2.0)]
    found = mtl.dwa_weights(*[each.requires_grad_() for each in inputs])
    assert found.tolist() == [2.0, 0.0]
    for slope in torch.autograd.grad(found[0], inputs):
        assert not slope.any()


@pytest.mark.parametrize("first", [1.6e-38, 1e-45, 1e30])
def test_relobralo_survives_any_first_loss(first: float) -> None:
    scalarizer = mtl.ReLoBRaLo(2)
    for batch in ([first, 1.0], [1.0, 1.0], [0.5, 1e-38], [1e30, 2.0]):
        assert scalarizer(torch.tensor(batch)).isfinite()
        torch.testing.assert_close(scalarizer.weights.sum(), torch.tensor(2.0))


@pytest.mark.parametrize("alpha", [0.999, 0.99999])
def test_running_weights_do_not_drift(alpha: float) -> None:
    """Rounding errors that add up over the steps would be 100 times as large."""
    generator = torch.Generator().manual_seed(0)
    states = [mtl.relobralo_init(3, dtype=dtype) for dtype in TOLERANCE]
    for _ in range(2000):
        batch = 0.5 + torch.rand(3, generator=generator)
        states = [mtl.relobralo_update(state, batch, 0, alpha=alpha) for state in states]
    found, expected = (state.running_weights.double() for state in states)
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("size", [20.0, 100.0])
def test_stch_keeps_the_digits_of_large_losses(size: float) -> None:
    batch = size + torch.tensor([0.0, 0.01, 0.02, -0.01])
    found = mtl.stch_weights(batch, mu=0.01)
    expected = mtl.stch_weights(batch.double(), mu=0.01)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", [mtl.random_weights, mtl.famo_weights, mtl.dwa_weights])
def test_the_weights_of_ten_million_tasks_sum_to_1(function: Callable[..., Tensor]) -> None:
    batch = 0.5 + torch.rand(10**7, generator=torch.Generator().manual_seed(0))
    rest = [] if function is mtl.random_weights else [torch.ones_like(batch)]
    total = function(batch, *rest).double().sum() / (10**7 if function is mtl.dwa_weights else 1)
    assert abs(total - 1) < 1e-6


@pytest.mark.parametrize("mask", [None, torch.tensor([True, True, False])], ids=["", "masked"])
def test_a_small_mu_takes_the_maximum_of_large_losses(mask: Tensor | None) -> None:
    losses = torch.tensor([1.0, 1e30, 1e35], requires_grad=True)
    largest = 1 if mask is not None else 2
    scalar = mtl.STCH(mu=1e-10, weights=1.0)(losses, mask)
    scalar.backward()
    assert scalar == losses[largest]
    assert losses.grad.tolist() == [float(task == largest) for task in range(3)]
