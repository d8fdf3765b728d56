"""The identities of the methods, in float64, at losses of every size from 1e-280 to 1e280."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from methods import METHODS, Method, seeded
from strategies import (
    TOLERANCE,
    alike,
    filled_with,
    logits,
    losses,
    masks,
    scales,
    temperatures,
)
from torch import Tensor

import mtl_scalarize as mtl

F64 = torch.float64
ROUNDING = TOLERANCE[F64]


def assert_close(
    actual: Tensor, expected: Tensor, *, rtol: float = ROUNDING, atol: float = 0.0
) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=True)


def gradients(scalar: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    variables = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(scalar(*variables), variables)


# UW and IMTL-L


@given(case=alike(F64, losses, scales, masks))
def test_imtll_is_twice_uw_at_the_negated_scale(
    case: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    """To the last bit: the two differ by a factor of two, which rounds nothing."""
    values, scale, mask = case

    def imtll(values: Tensor, scale: Tensor) -> Tensor:
        return mtl.imtll_loss(values, scale, mask=mask)

    def twice_uw(values: Tensor, scale: Tensor) -> Tensor:
        return 2 * mtl.uw_loss(values, -scale, mask=mask)

    assert torch.equal(imtll(values, scale), twice_uw(values, scale))
    pairs = zip(gradients(imtll, values, scale), gradients(twice_uw, values, scale), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@given(case=alike(F64, losses, scales))
def test_uw_at_its_optimum_is_the_log_of_the_geometric_mean(case: tuple[Tensor, Tensor]) -> None:
    values, elsewhere = case
    optimum = values.log()
    expected = (1 + optimum).sum() / 2
    rounding = ROUNDING * (1 + optimum.abs()).sum().item()  # logarithms may cancel
    assert_close(mtl.uw_loss(values, optimum), expected, rtol=0.0, atol=rounding)
    assert mtl.uw_loss(values, elsewhere) >= expected - rounding
    in_losses, in_log_var = gradients(mtl.uw_loss, values, optimum)
    assert_close(in_log_var, torch.zeros_like(values), atol=ROUNDING)
    assert_close(in_losses, 0.5 / values)  # of the logarithm of the geometric mean


# DWA


@given(case=alike(F64, losses, losses), temperature=temperatures)
def test_dwa_weights_sum_to_the_number_of_tasks(
    case: tuple[Tensor, Tensor], temperature: float
) -> None:
    last, previous = case
    weights = mtl.dwa_weights(last, previous, temperature)
    assert (weights >= 0).all()
    assert_close(weights.sum(), torch.tensor(float(last.numel()), dtype=F64))


@given(
    case=alike(F64, losses), rate=st.integers(-3, 3).map(lambda x: 2.0**x), temperature=temperatures
)
def test_dwa_weights_are_uniform_where_all_rates_agree(
    case: tuple[Tensor], rate: float, temperature: float
) -> None:
    (previous,) = case
    weights = mtl.dwa_weights(rate * previous, previous, temperature)
    assert_close(weights, torch.ones_like(previous))


# FAMO


@given(case=alike(F64, losses, logits, masks))
def test_famo_weights_are_a_convex_combination(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    values, scores, mask = case
    assume(mask is None or mask.any())
    weights = mtl.famo_weights(values, scores, mask=mask)
    assert (weights >= 0).all()
    assert_close(weights.sum(), torch.tensor(1.0, dtype=F64))


# The 1e-8 in FAMO's logarithm is felt by losses of its size. Here they are above 1e9, and the
# tolerance is what it leaves: 1e-8 of 1e9 or more.
large_losses = filled_with(st.floats(9.0, 270.0).map(lambda decade: 10.0**decade))


@given(
    case=alike(F64, large_losses, large_losses, logits),
    units=st.lists(st.floats(1.0, 1e9), min_size=9, max_size=9),
)
def test_famo_does_not_see_the_units_of_the_losses(
    case: tuple[Tensor, Tensor, Tensor], units: list[float]
) -> None:
    """The direction in the logarithms of the losses, and how far they fall (not how far they rise:
    of a rise by 1e16 float64 keeps no digit).
    """
    one, other, scores = case
    before, after = torch.maximum(one, other), torch.minimum(one, other)
    unit = torch.tensor(units[: before.numel()], dtype=F64).reshape(before.shape)

    def direction(values: Tensor) -> Tensor:
        in_logs = mtl.famo_weights(values, scores) * values
        return in_logs / in_logs.sum()

    assert_close(direction(before * unit), direction(before))
    delta = mtl.famo_delta(before * unit, after * unit)
    assert_close(delta, mtl.famo_delta(before, after), atol=ROUNDING)


# The methods without state, and ReLoBRaLo


@given(case=alike(F64, large_losses))
def test_the_methods_of_logarithms_are_one(case: tuple[Tensor]) -> None:
    """LogSum, the geometric mean, UW at its optimum and FAMO with equal logits: one direction."""
    (values,) = case
    logs = mtl.log_sum(values)
    assert_close(logs, values.numel() * mtl.geometric_mean(values).log())
    assert_close(mtl.uw_loss(values, values.log()), (values.numel() + logs) / 2)
    weights = mtl.log_sum_weights(values)
    mean = mtl.geometric_mean(values)
    assert_close(mtl.geometric_mean_weights(values), mean / values.numel() * weights, rtol=1e-11)
    equal = mtl.famo_weights(values, torch.zeros_like(values))
    assert_close(equal, weights / weights.sum())


@given(case=alike(F64, filled_with(st.floats(-5.0, 5.0)), masks), mu=st.floats(0.01, 1.0))
def test_stch_is_a_maximum_from_above(case: tuple[Tensor, Tensor | None], mu: float) -> None:
    values, mask = case
    present = values.flatten() if mask is None else values[mask]
    assume(len(present))
    largest = (present / len(present)).max().item()
    found = mtl.stch(values, mu, mask=mask).item()
    assert largest - 1e-12 <= found <= largest + mu * math.log(len(present)) + 1e-12


@given(case=alike(F64, losses, masks))
def test_no_noise_is_the_mean(case: tuple[Tensor, Tensor | None]) -> None:
    values, mask = case
    mean = mtl.mean_weights(values, mask=mask)
    assert_close(mtl.random_weights(torch.zeros_like(values), mask=mask), mean)


usual = filled_with(st.floats(0.1, 10.0))


@given(case=alike(F64, usual, usual, usual, usual), temperature=temperatures)
def test_relobralo_without_memory_is_softadapt(
    case: tuple[Tensor, ...], temperature: float
) -> None:
    """Of ratios of the losses, as if the first batch were not; its weights sum to K."""
    *fields, values = case
    state = mtl.ReLoBRaLoState(*fields)
    ratios = (values / state.last / temperature).flatten().numpy()
    exps = np.exp(ratios - ratios.max())
    for lookback in (0, 1):
        new = mtl.relobralo_update(state, values, lookback, alpha=0.0, temperature=temperature)
        found = new.running_weights.flatten()
        assert_close(found, torch.from_numpy(len(exps) * exps / exps.sum()), atol=1e-300)


# All methods


@pytest.mark.parametrize("method", [m for m in METHODS if not m.draws], ids=str)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(4)))
def test_every_method_is_equivariant_to_a_permutation_of_the_tasks(
    method: Method, seed: int, order: list[int]
) -> None:
    """Trained on permuted losses, it has the same scalars and permuted weights and state.

    The sizes of the losses are random, and not chosen by hypothesis: where all fall at one rate
    FAMO's gradient is a rounding error, of which Adam makes a step of full length.
    """
    scalarizers = method.make(4).double(), method.make(4).double()
    for preference in vars(scalarizers[1]).values():  # new state is the same for all tasks
        if isinstance(preference, Tensor):
            preference.copy_(preference[order])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        mask = torch.rand(4, generator=generator) < 0.8
        before, after = 10 ** (3 * torch.randn(2, 4, generator=generator, dtype=F64))
        found = []
        for scalarizer, tasks in zip(scalarizers, (range(4), order), strict=True):
            tasks = torch.tensor(tasks)
            scalar = seeded(scalarizer, before[tasks], mask[tasks])
            found.append((scalar.detach(), scalarizer.weights))
            for parameter in scalarizer.parameters():
                parameter.data -= 0.1 * torch.autograd.grad(scalar, parameter)[0].tanh()
            scalarizer.update(after[tasks])
            scalarizer.step()
        (scalar, weights), (permuted_scalar, permuted_weights) = found
        sizes = weights.abs() * before * (1 + before.log().abs())
        assert_close(permuted_scalar, scalar, atol=ROUNDING * sizes.sum().item())
        assert_close(permuted_weights, weights[order])
    state, permuted = (scalarizer.state_dict() for scalarizer in scalarizers)
    for name, value in state.items():
        assert_close(permuted[name], value[order], atol=ROUNDING)
