"""The functional core, in float64, against the NumPy reference, on any shape, mask and loss.

Unless a test says otherwise the tolerance is ROUNDING, relative to the sizes of the terms that
were summed: some thousand units in the last place, since exp and log of torch and NumPy differ
by units in the last place and sums over at most 27 tasks differ in order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from strategies import (
    Kind,
    alike,
    any_losses,
    filled_with,
    magnitudes,
    masks,
    not_finite,
    number_or_tensor,
    positive_losses,
    scales,
    several,
    temperatures,
)
from torch import Tensor

import mtl_scalarize as mtl

ROUNDING = 1e-12
F64 = torch.float64


def numpy_of(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().numpy()


def assert_agrees(actual: Tensor, expected: ArrayLike, magnitude: float = 0.0) -> None:
    """Equal up to rounding; a nan agrees with a nan, an infinity with the same infinity."""
    atol = ROUNDING * magnitude if np.isfinite(magnitude) else 0.0
    atol += 1e-300  # below, numbers have fewer digits
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=F64), rtol=ROUNDING, atol=atol, equal_nan=True
    )


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


@pytest.mark.parametrize(
    ("loss", "weights", "expected"),
    [
        pytest.param(mtl.uw_loss, mtl.uw_weights, reference.uw, id="UW"),
        pytest.param(mtl.imtll_loss, mtl.imtll_weights, reference.imtll, id="IMTL-L"),
    ],
)
@given(case=alike(any_losses, scales, masks))
def test_learned_scale_methods_agree_with_the_reference(
    loss: Callable[..., Tensor],
    weights: Callable[..., Tensor],
    expected: Callable[..., tuple[reference.Combined, reference.Array]],
    case: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    losses, scale, mask = case
    combined, scale_gradient = expected(losses.numpy(), scale.numpy(), numpy_of(mask))
    losses, scale = losses.clone().requires_grad_(), scale.clone().requires_grad_()

    scalar = loss(losses, scale, mask=mask)
    in_losses, in_scale = torch.autograd.grad(scalar, (losses, scale))

    assert_agrees(scalar, combined.scalar, combined.magnitude)
    assert_agrees(in_losses, combined.task_weights)
    assert_agrees(weights(scale, mask=mask), combined.task_weights)
    # The gradient in the scale is a difference with 1 (IMTL-L) or 1/2 (UW): it may cancel.
    assert_agrees(in_scale, scale_gradient, magnitude=1.0)


def assert_same_dwa_history(state: mtl.DWAState, expected: reference.DWAState) -> None:
    """Exactly: sums, counts and quotients in the same order are the same numbers."""
    actual = {name: numpy_of(field) for name, field in state._asdict().items()}
    for name in ("loss_sum", "count", "epochs"):
        np.testing.assert_array_equal(actual[name], getattr(expected, name), err_msg=name)
    for name, epochs in (("last", 1), ("previous", 2)):  # what an older epoch holds is free
        seen = expected.epochs >= epochs
        np.testing.assert_array_equal(
            actual[name][seen], getattr(expected, name)[seen], err_msg=name
        )


@given(
    case=alike(several(several(any_losses, masks, most=3)), any_losses, masks),
    temperature=number_or_tensor(temperatures),
)
def test_dwa_over_epochs_agrees_with_the_reference(
    case: tuple[list[tuple[list[tuple[Tensor, Tensor | None]]]], Tensor, Tensor | None],
    temperature: float | Tensor,
) -> None:
    epochs, losses, mask = case
    state, expected = mtl.dwa_init(losses.shape, dtype=F64), reference.dwa_init(losses.shape)

    def assert_same_state_and_scalar() -> None:
        assert_same_dwa_history(state, expected)
        combined = reference.dwa(losses.numpy(), expected, float(temperature), numpy_of(mask))
        variable = losses.clone().requires_grad_()
        scalar = mtl.dwa_combine(variable, state, temperature, mask=mask)
        assert_agrees(scalar, combined.scalar, combined.magnitude)
        assert_agrees(torch.autograd.grad(scalar, variable)[0], combined.task_weights)

    assert_same_state_and_scalar()
    for (batches,) in epochs:
        for batch, present in batches:
            state = mtl.dwa_accumulate(state, batch, mask=present)
            expected = reference.dwa_accumulate(expected, batch.numpy(), numpy_of(present))
            assert_same_state_and_scalar()
        state, expected = mtl.dwa_step(state), reference.dwa_step(expected)
        assert_same_state_and_scalar()


epoch_averages = filled_with(st.floats(0.01, 100.0) | st.floats(-100.0, -0.01) | st.just(0.0))


@given(case=alike(epoch_averages, epoch_averages), temperature=number_or_tensor(temperatures))
def test_dwa_weights_agree_with_the_reference(
    case: tuple[Tensor, Tensor], temperature: float | Tensor
) -> None:
    last, previous = case
    ready = reference.dwa_init(last.shape)._replace(
        last=last.numpy(), previous=previous.numpy(), epochs=np.full(last.shape, 2)
    )
    assert_agrees(
        mtl.dwa_weights(last, previous, temperature),
        reference.dwa_lambda(ready, float(temperature)),
        magnitude=1.0,
    )


def lower_bounds(shape: tuple[int, ...]) -> st.SearchStrategy[float | Tensor]:
    bounds = st.floats(-1.0, 1.0)
    return st.just(0.0) | number_or_tensor(bounds) | filled_with(bounds)(shape)


# FAMO's logarithm squeezes everything, but the losses should meet the lower bounds too.
losses_near_bounds = filled_with(st.floats(-1.0, 1.0) | st.floats(1.1, 1e6) | not_finite)
losses_above_bounds = filled_with(st.floats(1.0 + 1e-6, 1e6))


def either(*kinds: Kind) -> Kind:
    return lambda shape: st.one_of(*(kind(shape) for kind in kinds))


def broadcast(bounds: float | Tensor, losses: Tensor) -> reference.Array:
    return np.broadcast_to(np.asarray(bounds), losses.shape)


@given(case=alike(either(losses_above_bounds, losses_near_bounds), scales, lower_bounds, masks))
def test_famo_agrees_with_the_reference_and_is_not_finite_outside_its_domain(
    case: tuple[Tensor, Tensor, float | Tensor, Tensor | None],
) -> None:
    losses, logits, bounds, mask = case
    present = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask
    in_domain = losses.isfinite() & (losses - bounds + reference.LOG_EPS > 0)
    combined = reference.famo(
        losses.numpy(), logits.numpy(), broadcast(bounds, losses), numpy_of(mask)
    )
    losses.requires_grad_()

    scalar = mtl.famo_combine(losses, logits, bounds, mask=mask)

    if not in_domain[present].all():  # log of a negative number is nan, and says so
        assert not scalar.isfinite()
        return
    assert_agrees(scalar, combined.scalar, combined.magnitude)
    assert_agrees(torch.autograd.grad(scalar, losses)[0], combined.task_weights)
    assert_agrees(mtl.famo_weights(losses, logits, bounds, mask=mask), combined.task_weights)


@given(case=alike(losses_above_bounds, scales, lower_bounds, masks))
def test_famo_weights_differentiate_through_losses_and_logits(
    case: tuple[Tensor, Tensor, float | Tensor, Tensor | None],
) -> None:
    losses, logits, bounds, mask = case
    in_log_gap, in_logits = reference.famo_jacobians(
        losses.numpy(), logits.numpy(), broadcast(bounds, losses), numpy_of(mask)
    )

    jacobians = torch.func.jacrev(
        lambda losses, logits: mtl.famo_weights(losses, logits, bounds, mask=mask), (0, 1)
    )(losses, logits)

    # Entries are products of weights in [0, 1]; in units of log(l-b+eps) those in l are too.
    assert_agrees(jacobians[0] * (losses - bounds + 1e-8), in_log_gap, magnitude=1.0)
    assert_agrees(jacobians[1], in_logits, magnitude=1.0)


@given(case=alike(losses_near_bounds, losses_near_bounds, lower_bounds))
def test_famo_delta_agrees_with_the_reference(
    case: tuple[Tensor, Tensor, float | Tensor],
) -> None:
    before, after, bounds = case
    expected = reference.famo_delta(before.numpy(), after.numpy(), broadcast(bounds, before))
    found = mtl.famo_delta(before, after, bounds)
    # Of a loss that is not finite or at the end of the logarithm, it is promised not to be finite.
    expected[~np.isfinite(expected)] = np.nan
    found = torch.where(found.isfinite(), found, torch.nan)
    # A difference of two logarithms, each at most |log(1e-8)| < 20 in size.
    assert_agrees(found, expected, magnitude=20.0)


@given(
    case=alike(scales, several(filled_with(st.floats(-5.0, 5.0) | not_finite), masks, least=1)),
    lr=number_or_tensor(st.floats(0.0, 1.0)),
    weight_decay=number_or_tensor(st.floats(0.0, 0.1)),
)
def test_famo_updates_are_adam_steps_of_the_reference(
    case: tuple[Tensor, list[tuple[Tensor, Tensor | None]]],
    lr: float | Tensor,
    weight_decay: float | Tensor,
) -> None:
    """Each step is compared from the state that the package reached.

    Adam divides by the gradient's own size: where deltas cancel to rounding errors, so that the
    gradient is one, Adam makes of it a step that no implementation shares with another. So the
    tolerance on a logit is the gradient's rounding error over Adam's denominator.
    """
    logits, updates = case
    state = mtl.famo_init(logits.shape, dtype=F64)._replace(logits=logits)
    for delta, mask in updates:
        before = reference.FAMOState(*(numpy_of(field) for field in state))
        expected = reference.famo_update(
            before, delta.numpy(), float(lr), float(weight_decay), numpy_of(mask)
        )

        state = mtl.famo_update(state, delta, lr=lr, weight_decay=weight_decay, mask=mask)

        size = 5.0 + float(weight_decay) * np.abs(before.logits).max()  # of any gradient
        gradient_error = 1e-15 * size
        steps = np.maximum(expected.step, 1)
        v = expected.exp_avg_sq / (1 - reference.BETA2**steps)
        logit_error = float(lr) * (10 * gradient_error / (np.sqrt(v) + 1e-8) + ROUNDING)
        np.testing.assert_array_equal(numpy_of(state.step), expected.step)
        assert_agrees(state.exp_avg, expected.exp_avg, magnitude=size)
        assert_agrees(state.exp_avg_sq, expected.exp_avg_sq, magnitude=size**2)
        difference = np.abs(numpy_of(state.logits) - expected.logits)
        assert (difference <= logit_error + ROUNDING * np.abs(expected.logits)).all()


def dwa_after_two_epochs(last: Tensor) -> mtl.DWAState:
    """The state in which `last` is the rate of every task."""
    state = mtl.dwa_init(last.shape, dtype=F64)
    for average in (torch.ones_like(last), last):
        state = mtl.dwa_step(mtl.dwa_accumulate(state, average))
    return state


def dwa_loss(losses: Tensor, last: Tensor, *, mask: Tensor | None) -> Tensor:
    return mtl.dwa_combine(losses, dwa_after_two_epochs(last), mask=mask)


all_methods = pytest.mark.parametrize(
    "combine",
    [
        pytest.param(mtl.uw_loss, id="UW"),
        pytest.param(mtl.imtll_loss, id="IMTL-L"),
        pytest.param(dwa_loss, id="DWA"),
        pytest.param(mtl.famo_combine, id="FAMO"),
    ],
)
boolean = filled_with(st.sampled_from([0.0, 1.0]))


@all_methods
@given(case=alike(positive_losses, any_losses, scales, boolean))
def test_an_absent_loss_reaches_neither_the_scalar_nor_any_gradient(
    combine: Callable[..., Tensor], case: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    losses, garbage, scale, zero_or_one = case
    mask = zero_or_one.bool()

    def scalar_and_gradients(absent: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs = losses.where(mask, absent).requires_grad_(), scale.clone().requires_grad_()
        scalar = combine(*inputs, mask=mask)
        gradients = torch.autograd.grad(scalar, inputs, allow_unused=True)
        return scalar, gradients[0], gradients[1]

    polluted, clean = scalar_and_gradients(garbage), scalar_and_gradients(torch.ones_like(losses))

    assert polluted[0].isfinite()
    assert (polluted[1][~mask] == 0.0).all()
    for with_garbage, with_ones in zip(polluted, clean, strict=True):
        assert (with_garbage is None) == (with_ones is None)
        if with_garbage is not None and with_ones is not None:
            assert bits(with_garbage) == bits(with_ones)


@all_methods
@given(case=alike(any_losses, scales))
def test_with_every_task_absent_the_scalar_is_zero_and_so_are_the_gradients(
    combine: Callable[..., Tensor], case: tuple[Tensor, Tensor]
) -> None:
    losses, scale = case
    losses.requires_grad_()
    scalar = combine(losses, scale, mask=torch.zeros_like(losses, dtype=torch.bool))
    assert scalar.shape == ()
    assert scalar == 0.0
    assert (torch.autograd.grad(scalar, losses)[0] == 0.0).all()


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(lambda _, scale, mask: mtl.uw_weights(scale, mask=mask), id="UW"),
        pytest.param(lambda _, scale, mask: mtl.imtll_weights(scale, mask=mask), id="IMTL-L"),
        pytest.param(lambda *args: mtl.famo_weights(*args[:2], mask=args[2]), id="FAMO"),
    ],
)
@given(case=alike(any_losses, scales))
def test_with_every_task_absent_the_weights_are_zero(
    weights: Callable[..., Tensor], case: tuple[Tensor, Tensor]
) -> None:
    losses, scale = case
    nothing = torch.zeros_like(losses, dtype=torch.bool)
    assert torch.equal(weights(losses, scale, nothing), torch.zeros_like(losses))


def dwa_epoch(state: mtl.DWAState, losses: Tensor, *, mask: Tensor | None = None) -> mtl.DWAState:
    return mtl.dwa_step(mtl.dwa_accumulate(state, losses, mask=mask))


@pytest.mark.parametrize(
    ("initial", "advance"),
    [
        pytest.param(mtl.dwa_init, mtl.dwa_accumulate, id="dwa_accumulate"),
        pytest.param(mtl.dwa_init, dwa_epoch, id="dwa_step"),
        pytest.param(mtl.famo_init, mtl.famo_update, id="famo_update"),
    ],
)
@given(
    case=alike(
        several(filled_with(magnitudes), least=0, most=3),
        any_losses,
        filled_with(magnitudes),
        boolean,
    )
)
def test_absent_and_not_finite_entries_leave_their_tasks_state_bit_identical(
    initial: Callable[..., Any],
    advance: Callable[..., Any],
    case: tuple[list[tuple[Tensor]], Tensor, Tensor, Tensor],
) -> None:
    history, entries, other, zero_or_one = case
    mask = zero_or_one.bool()
    skipped = ~(mask & entries.isfinite())
    state = initial(entries.shape, dtype=F64)
    for (past,) in history:
        state = advance(state, past)

    following = advance(state, entries, mask=mask)
    of_clean_entries = advance(state, entries.where(~skipped, other), mask=~skipped)

    for before, after, clean in zip(state, following, of_clean_entries, strict=True):
        assert bits(after[skipped]) == bits(before[skipped])
        assert bits(after) == bits(clean)  # and what was skipped reached no other task
