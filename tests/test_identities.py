"""The identities of the four methods, as properties in float64.

Losses range from 1e-30 to 1e30 unless a comment says why an identity cannot hold there.
ROUNDING is relative: some hundred units in the last place, for sums and quotients of a few
terms; where a test asks for more or for less it says why.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    alike,
    filled_with,
    magnitudes,
    masks,
    number_or_tensor,
    positive_losses,
    scales,
    temperatures,
    vectors,
)
from torch import Tensor, nn

import mtl_scalarize as mtl

ROUNDING = 1e-13
F64 = torch.float64
FAMO_EPS = 1e-8

signed_losses = filled_with(magnitudes | magnitudes.map(lambda loss: -loss) | st.just(0.0))


def assert_close(
    actual: Tensor, expected: Tensor, *, rtol: float = ROUNDING, atol: float = 0.0
) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def gradients(scalar: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    variables = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(scalar(*variables), variables)


def fill(mask: Tensor | None, tensor: Tensor) -> Tensor:
    return tensor if mask is None else torch.where(mask, tensor, 0.0)


# --- UW and IMTL-L are one method -----------------------------------------------------------


@given(case=alike(signed_losses, scales, masks))
def test_imtll_is_twice_uw_at_the_negated_scale(
    case: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    """The gradients to the last bit: the two differ by factors of two, which round nothing.

    The scalars up to the order of summation, which costs each term one rounding at most.
    """
    losses, scale, mask = case

    def imtll(losses: Tensor, scale: Tensor) -> Tensor:
        return mtl.imtll_loss(losses, scale, mask=mask)

    def uw(losses: Tensor, log_var: Tensor) -> Tensor:
        return mtl.uw_loss(losses, log_var, mask=mask)

    of_imtll, of_uw = gradients(imtll, losses, scale), gradients(uw, losses, -scale)

    terms = fill(mask, torch.exp(scale) * losses).abs() + fill(mask, scale).abs()
    rounding = torch.finfo(torch.float64).eps * terms.numel() * float(terms.sum())
    assert_close(imtll(losses, scale), 2 * uw(losses, -scale), rtol=0, atol=rounding)
    assert torch.equal(of_imtll[0], 2 * of_uw[0])
    assert torch.equal(of_imtll[1], -2 * of_uw[1])
    assert torch.equal(mtl.imtll_weights(scale, mask=mask), 2 * mtl.uw_weights(-scale, mask=mask))


def sgd(parameters: Iterable[Any], lr: float, factor: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr * factor)


def sgd_with_momentum(parameters: Iterable[Any], lr: float, factor: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr * factor, momentum=0.9)


def adam(parameters: Iterable[Any], lr: float, factor: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, eps=1e-8 / factor)


@pytest.mark.parametrize("optimizer", [sgd, sgd_with_momentum, adam])
@given(
    seed=st.integers(0, 2**32 - 1),
    network_lr=st.floats(1e-3, 0.02),
    scale_lr=st.floats(1e-3, 0.02),
    init=st.floats(-1.0, 1.0),
)
def test_uw_trains_as_imtll_does_with_the_factor_two_in_its_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer],
    seed: int,
    network_lr: float,
    scale_lr: float,
    init: float,
) -> None:
    """UW is half of IMTL-L, so all its gradients are halved: the network's and the scale's.

    SGD, with momentum or without, needs twice the learning rate for *both*. The sign of the
    scale takes care of itself: the negated variable has the negated gradient. Adam divides the
    factor out, up to its eps, which is halved with the gradients.

    The tolerance: the factors of two round nothing, but a matrix product may sum in another
    order when its operands lie elsewhere in memory, and thirty steps carry that on.
    """

    def train(scalarizer: nn.Module, factor: float) -> tuple[list[Tensor], list[Tensor]]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=F64)

        first, second = normal(4, 8).requires_grad_(), normal(8, 3).requires_grad_()
        scale = next(scalarizer.parameters())
        start = [tensor.detach().clone() for tensor in (first, second, scale)]
        groups = [
            optimizer([first, second], network_lr, factor),
            optimizer([scale], scale_lr, factor),
        ]
        for _ in range(30):
            features, targets = normal(16, 4), normal(16, 3)
            losses = ((features @ first).tanh() @ second - targets).square().mean(0)
            for group in groups:
                group.zero_grad()
            scalarizer(losses).backward()
            for group in groups:
                group.step()
        return start, [tensor.detach() for tensor in (first, second, scale)]

    start, (*network, log_scale) = train(mtl.IMTLL(3, init=init).double(), factor=1.0)
    _, (*uw_network, log_var) = train(mtl.UW(3, init=-init).double(), factor=2.0)

    for before, after in zip(start, (*network, log_scale), strict=True):
        assert after.isfinite().all()
        assert not torch.equal(before, after)
    for parameter, uw_parameter in zip(network, uw_network, strict=True):
        assert_close(uw_parameter, parameter, rtol=1e-12, atol=1e-12)
    assert_close(-log_var, log_scale, rtol=1e-12, atol=1e-12)


# --- The gradient in the losses is the task weights -----------------------------------------
#
# One row a method: its scalar, the function that gives its weights, and the formula for them,
# all of (losses, s, mask). For DWA s is the rate of each task, for FAMO its logit.


def dwa_state(rates: Tensor) -> mtl.DWAState:
    """Two epochs, the average losses of which have these rates."""
    state = mtl.dwa_init(rates.shape, dtype=F64)
    for average in (torch.ones_like(rates), rates):
        state = mtl.dwa_step(mtl.dwa_accumulate(state, average))
    return state


def dwa_loss(losses: Tensor, rates: Tensor, *, mask: Tensor | None = None) -> Tensor:
    return mtl.dwa_combine(losses, dwa_state(rates), mask=mask)


def dwa_task_weights(losses: Tensor, rates: Tensor, mask: Tensor) -> Tensor:
    return mtl.dwa_weights(rates, torch.ones_like(rates)) * mask


def dwa_formula(losses: Tensor, rates: Tensor, mask: Tensor) -> Tensor:
    exps = torch.exp(rates / 2.0)
    return losses.numel() * exps / exps.sum() * mask


def famo_formula(losses: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    exps = torch.exp(logits) * mask  # softmax's denominator cancels
    per_loss = exps / (losses + FAMO_EPS)
    return per_loss / per_loss.sum() if mask.any() else per_loss


scalars = {
    "UW": mtl.uw_loss,
    "IMTL-L": mtl.imtll_loss,
    "DWA": dwa_loss,
    "FAMO": mtl.famo_combine,
}
task_weights: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "UW": lambda _, log_var, mask: mtl.uw_weights(log_var, mask=mask),
    "IMTL-L": lambda _, log_scale, mask: mtl.imtll_weights(log_scale, mask=mask),
    "DWA": dwa_task_weights,
    "FAMO": lambda losses, logits, mask: mtl.famo_weights(losses, logits, mask=mask),
}
formulas: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "UW": lambda _, log_var, mask: 0.5 * torch.exp(-log_var) * mask,
    "IMTL-L": lambda _, log_scale, mask: torch.exp(log_scale) * mask,
    "DWA": dwa_formula,
    "FAMO": famo_formula,
}
# The size of each task's terms in the sum, of (losses, s, task weights).
term_sizes: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "UW": lambda losses, log_var, weights: weights * losses + 0.5 * log_var.abs(),
    "IMTL-L": lambda losses, log_scale, weights: weights * losses + log_scale.abs(),
    "DWA": lambda losses, _, weights: weights * losses,
    "FAMO": lambda losses, _, weights: (
        weights * (losses + FAMO_EPS) * (losses + FAMO_EPS).log().abs()
    ),
}
every_method = pytest.mark.parametrize("method", list(scalars))


@every_method
@given(case=alike(positive_losses, scales, masks))
def test_the_gradient_in_the_losses_is_the_task_weights(
    method: str, case: tuple[Tensor, Tensor, Tensor | None]
) -> None:
    losses, scale, mask = case
    present = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask

    (gradient,) = gradients(lambda losses: scalars[method](losses, scale, mask=mask), losses)

    assert_close(gradient, formulas[method](losses, scale, present))
    assert_close(gradient, task_weights[method](losses, scale, present))


# --- UW at its optimum ----------------------------------------------------------------------


@given(case=alike(positive_losses, scales))
def test_uw_at_its_optimum_is_the_log_of_the_geometric_mean(case: tuple[Tensor, Tensor]) -> None:
    losses, elsewhere = case
    optimum = losses.log()
    log_geometric_mean = math.fsum(optimum.flatten().tolist()) / losses.numel()
    expected = 0.5 * losses.numel() * (1.0 + log_geometric_mean)
    # exp(log l) is l up to |log l| < 70 units in the last place; the logarithms may cancel.
    rounding = ROUNDING * (0.5 * (1.0 + optimum.abs())).sum().item()

    assert abs(mtl.uw_loss(losses, optimum).item() - expected) <= rounding
    assert mtl.uw_loss(losses, elsewhere).item() >= expected - rounding  # the optimum it is
    in_losses, in_log_var = gradients(mtl.uw_loss, losses, optimum)
    assert_close(in_log_var, torch.zeros_like(losses), atol=ROUNDING)
    assert_close(in_losses, 0.5 / losses)  # the gradient of the log of the geometric mean


# --- DWA ------------------------------------------------------------------------------------


@given(
    case=alike(positive_losses, positive_losses, positive_losses),
    temperature=number_or_tensor(temperatures),
)
def test_dwa_weights_are_positive_or_zero_and_sum_to_the_number_of_tasks(
    case: tuple[Tensor, Tensor, Tensor], temperature: float | Tensor
) -> None:
    last, previous, losses = case
    tasks = torch.tensor(float(losses.numel()), dtype=F64)
    weights = mtl.dwa_weights(last, previous, temperature)
    assert (weights >= 0).all()
    assert_close(weights.sum(), tasks)
    assert_close(mtl.dwa_weights(last, previous).sum(), tasks)


@given(case=alike(positive_losses, positive_losses, masks, masks))
def test_dwa_weights_sum_to_the_number_of_tasks_when_some_have_no_two_epochs_yet(
    case: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
) -> None:
    first, second, in_first, in_second = case
    state = mtl.dwa_init(first.shape, dtype=F64)
    for average, mask in ((first, in_first), (second, in_second)):
        state = mtl.dwa_step(mtl.dwa_accumulate(state, average, mask=mask))
    (weights,) = gradients(lambda losses: mtl.dwa_combine(losses, state), first)
    assert_close(weights.sum(), torch.tensor(float(first.numel()), dtype=F64))
    assert (weights[state.epochs < 2] == 1.0).all()


@given(
    case=alike(positive_losses),
    rate=st.floats(0.0, 10.0),
    temperature=number_or_tensor(temperatures),
)
def test_dwa_weights_are_uniform_when_all_losses_fall_at_the_same_rate(
    case: tuple[Tensor], rate: float, temperature: float | Tensor
) -> None:
    (previous,) = case
    weights = mtl.dwa_weights(rate * previous, previous, temperature)
    # The quotients differ from the rate by rounding, over a temperature of 0.1 or more: 100 units.
    assert_close(weights, torch.ones_like(previous))


# --- FAMO -----------------------------------------------------------------------------------


@given(case=alike(positive_losses, scales, masks))
def test_famo_task_weights_are_a_convex_combination_of_the_present_tasks(
    case: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    losses, logits, mask = case
    assume(mask is None or mask.any())
    weights = mtl.famo_weights(losses, logits, mask=mask)
    assert (weights >= 0).all()
    assert_close(weights.sum(), torch.tensor(1.0, dtype=F64))
    if mask is not None:
        assert (weights[~mask] == 0).all()


# eps = 1e-8 in the logarithm breaks the invariance near 1e-8, and below it a rescaled loss does
# not change l + eps at all. So losses stay above 1 here, before and after rescaling, and the
# tolerance is what eps leaves: eps / l, relative in the direction and absolute in delta.
large_losses = filled_with(st.floats(3.0, 27.0).map(lambda exponent: 10.0**exponent))
factors = st.floats(-3.0, 3.0).map(lambda exponent: 10.0**exponent)


@given(case=alike(large_losses, large_losses, scales), factor=factors, data=st.data())
def test_famo_does_not_see_the_unit_of_a_single_loss(
    case: tuple[Tensor, Tensor, Tensor], factor: float, data: st.DataObject
) -> None:
    before, after, logits = case
    rescaling = torch.ones_like(before)
    rescaling.view(-1)[data.draw(st.integers(0, before.numel() - 1))] = factor
    smallest = torch.stack([before, after, before * rescaling, after * rescaling]).min().item()
    left_by_eps = 4 * FAMO_EPS / smallest

    def direction(losses: Tensor) -> Tensor:
        """Of the model's update, in terms of the log losses: d scalar / d log(l), normalised."""
        (in_logs,) = gradients(lambda logs: mtl.famo_combine(logs.exp(), logits), losses.log())
        return in_logs / in_logs.sum()

    assert_close(direction(before * rescaling), direction(before), rtol=left_by_eps + ROUNDING)
    # Logarithms of at most 70 in size: their difference is exact to 70 units in the last place.
    assert_close(
        mtl.famo_delta(before * rescaling, after * rescaling),
        mtl.famo_delta(before, after),
        rtol=0.0,
        atol=left_by_eps + ROUNDING,
    )


# --- All four are equivariant to a permutation of the tasks ---------------------------------


@every_method
@given(case=alike(positive_losses, scales, masks, shapes=vectors), data=st.data())
def test_permuted_tasks_give_the_same_scalar_and_permuted_gradients(
    method: str, case: tuple[Tensor, Tensor, Tensor | None], data: st.DataObject
) -> None:
    losses, scale, mask = case
    order = torch.tensor(data.draw(st.permutations(range(len(losses)))))
    permuted_mask = None if mask is None else mask[order]

    def scalar(losses: Tensor) -> Tensor:
        return scalars[method](losses, scale, mask=mask)

    def permuted_scalar(losses: Tensor) -> Tensor:
        return scalars[method](losses, scale[order], mask=permuted_mask)

    (gradient,) = gradients(scalar, losses)
    (permuted_gradient,) = gradients(permuted_scalar, losses[order])

    # Terms of either sign are summed in another order: rounding is relative to their sizes.
    rounding = ROUNDING * term_sizes[method](losses, scale, gradient).sum().item()
    assert_close(permuted_scalar(losses[order]), scalar(losses), atol=rounding)
    assert_close(permuted_gradient, gradient[order])


@given(case=alike(positive_losses, positive_losses, masks, shapes=vectors), data=st.data())
def test_permuted_tasks_give_permuted_dwa_states_to_the_last_bit(
    case: tuple[Tensor, Tensor, Tensor | None], data: st.DataObject
) -> None:
    first, second, mask = case
    order = torch.tensor(data.draw(st.permutations(range(len(first)))))

    def history(order: Tensor) -> mtl.DWAState:
        state = mtl.dwa_init(first.shape, dtype=F64)
        state = mtl.dwa_accumulate(state, first[order])
        state = mtl.dwa_accumulate(state, second[order], mask=mask if mask is None else mask[order])
        return mtl.dwa_accumulate(mtl.dwa_step(state), second[order])

    for field, permuted in zip(history(torch.arange(len(first))), history(order), strict=True):
        assert torch.equal(permuted, field[order])


@given(case=alike(scales, filled_with(st.floats(-5.0, 5.0)), masks, shapes=vectors), data=st.data())
def test_permuted_tasks_give_permuted_famo_states(
    case: tuple[Tensor, Tensor, Tensor | None], data: st.DataObject
) -> None:
    logits, delta, mask = case
    order = torch.tensor(data.draw(st.permutations(range(len(delta)))))
    start = mtl.famo_init(delta.shape, dtype=F64)

    state = mtl.famo_update(start._replace(logits=logits), delta, mask=mask)
    permuted = mtl.famo_update(
        start._replace(logits=logits[order]),
        delta[order],
        mask=None if mask is None else mask[order],
    )

    # Deltas of at most 5 are averaged in another order. Adam divides the gradient by its own
    # size, so this error is as large in the logits as it was relative to the gradient.
    gradient_error = 5 * ROUNDING
    assert torch.equal(permuted.step, state.step[order])
    assert_close(permuted.exp_avg, state.exp_avg[order], atol=gradient_error)
    assert_close(permuted.exp_avg_sq, state.exp_avg_sq[order], atol=5 * gradient_error)
    denominator = (state.exp_avg_sq[order] / (1 - 0.999)).sqrt() + 1e-8
    difference = (permuted.logits - state.logits[order]).abs()
    assert (difference <= 0.025 * gradient_error / denominator + ROUNDING).all()
