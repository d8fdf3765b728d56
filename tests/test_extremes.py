"""Losses from the smallest subnormal to the largest finite number, against `mpmath`.

Errors are in units in the last place (ulps) of the dtype that the function computes in. Where terms
of both signs add up, as in UW's scalar, they are ulps of the sum of the terms' sizes: the result
itself may cancel to nothing. A result beyond the largest finite number has to be infinite, and one
within it finite.
"""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from mpmath import mpf
from torch import Tensor

from mtl_scalarize import (
    dwa_accumulate,
    dwa_init,
    dwa_step,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_weights,
    imtll_loss,
    imtll_weights,
    uw_loss,
    uw_weights,
)

mpmath.mp.dps = 360  # decimal digits: the smallest number keeps some beside FAMO's eps

#: What is allowed of each function, in ulps. FAMO's logits are up to 40 apart here, and an exponent
#: of 40 carries its own rounding into its exponential.
LEARNED, DELTA, FAMO_ULPS, DWA_ULPS = 4, 4, 60, 3

FULL = [torch.float32, torch.float64]
HALF = [torch.float16, torch.bfloat16]

Formula = Callable[[mpf, mpf], tuple[mpf, mpf]]


def ulps(found: float, exact: mpf, of: mpf | None = None, *, dtype: torch.dtype) -> float:
    """By how many ulps of `of`, or else of `exact`, the number found is off.

    An infinity stands for all numbers from the first power of two beyond the largest number on.
    """
    limits = torch.finfo(dtype)
    largest = mpf(limits.max)
    if math.isnan(found):
        return math.inf
    if math.isinf(found):
        beyond = largest / (1 - mpf(limits.eps) / 2)
        value = math.copysign(1, found) * max(abs(exact), beyond)
    else:
        value = mpf(found)
    size = min(max(abs(exact) if of is None else of, mpf(limits.tiny)), largest)
    ulp = mpf(2) ** mpmath.floor(mpmath.log(size, 2)) * mpf(limits.eps)
    return float(abs(value - exact) / ulp)


def eps_in(dtype: torch.dtype) -> mpf:
    """FAMO's."""
    return mpf(torch.tensor(1e-8, dtype=dtype).item())


def exact(tensor: Tensor) -> list[mpf]:
    return [mpf(number) for number in tensor.tolist()]


@st.composite
def numbers(draw: DrawFn, dtype: torch.dtype) -> float:
    """Zero, the ends of the range, and every magnitude between them alike."""
    limits = torch.finfo(dtype)
    smallest = limits.tiny * limits.eps
    ends = st.sampled_from([0.0, smallest, limits.tiny, 1.0, limits.max])
    exponents = st.floats(math.log2(smallest), math.log2(limits.max) - 0.01)
    anywhere = exponents.map(lambda exponent: 2.0**exponent)
    return float(torch.tensor(draw(ends | anywhere), dtype=dtype))


def rows(dtype: torch.dtype) -> SearchStrategy[Tensor]:
    lists = st.lists(numbers(dtype), min_size=1, max_size=5)
    return lists.map(lambda values: torch.tensor(values, dtype=dtype))


@st.composite
def losses_and_scales(draw: DrawFn, losses_dtype: torch.dtype, dtype: torch.dtype) -> list[Tensor]:
    """Losses with log-variances: near the optimum log(loss), or anywhere in twice exp's range."""
    losses = draw(rows(losses_dtype))
    limits = torch.finfo(dtype)
    widest = 2 * math.log(limits.max) - 1
    near = [math.log(max(loss, limits.tiny * limits.eps)) for loss in losses.tolist()]
    log_vars = [draw(st.just(s) | st.floats(-widest, widest) | st.floats(-5, 5)) for s in near]
    return [losses, torch.tensor(log_vars, dtype=dtype)]


@pytest.mark.parametrize("dtype", FULL, ids=str)
@pytest.mark.parametrize(
    ("loss", "weights", "sign", "factor"),
    [
        pytest.param(uw_loss, uw_weights, -1, mpf(0.5), id="UW"),
        pytest.param(imtll_loss, imtll_weights, 1, mpf(1), id="IMTL-L"),
    ],
)
@pytest.mark.parametrize("losses_dtype", [None, *HALF], ids=str)
@given(data=st.data())
def test_learned_scales(
    losses_dtype: torch.dtype | None,
    loss: Callable[..., Tensor],
    weights: Callable[[Tensor], Tensor],
    sign: int,
    factor: mpf,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    losses, s = data.draw(losses_and_scales(losses_dtype or dtype, dtype))
    wide = losses.to(dtype).requires_grad_()
    scalar = loss(losses, s)
    in_losses, in_s = torch.autograd.grad(loss(wide, s.requires_grad_()), [wide, s])

    weighed = [factor * mpmath.exp(sign * scale) for scale in exact(s)]
    terms = [weight * value for weight, value in zip(weighed, exact(losses), strict=True)]
    penalties = [-sign * factor * scale for scale in exact(s)]
    size = sum(abs(term) for term in terms + penalties)
    if size < torch.finfo(dtype).max:
        assert ulps(scalar.item(), sum(terms + penalties), size, dtype=dtype) <= LEARNED
    for i, weight in enumerate(weighed):
        assert ulps(in_losses[i].item(), weight, dtype=dtype) <= LEARNED
        assert ulps(weights(s.detach())[i].item(), weight, dtype=dtype) <= LEARNED
        size = terms[i] + factor
        assert ulps(in_s[i].item(), sign * (terms[i] - factor), size, dtype=dtype) <= LEARNED


@pytest.mark.parametrize("dtype", FULL, ids=str)
@pytest.mark.parametrize("losses_dtype", [None, *HALF], ids=str)
@given(data=st.data())
def test_famo_combine_and_weights(
    losses_dtype: torch.dtype | None, dtype: torch.dtype, data: st.DataObject
) -> None:
    losses = data.draw(rows(losses_dtype or dtype))
    logits = torch.tensor([data.draw(st.floats(-20, 20)) for _ in range(len(losses))], dtype=dtype)
    present = [True, *(data.draw(st.booleans()) for _ in losses[1:])]
    mask = None if all(present) else torch.tensor(present)
    wide = losses.to(dtype).requires_grad_()
    scalar = famo_combine(wide, logits, mask=mask)
    (gradient,) = torch.autograd.grad(scalar, wide)

    distances = [loss + eps_in(dtype) for loss in exact(losses)]
    shares = [
        mpmath.exp(x) if here else mpf(0) for x, here in zip(exact(logits), present, strict=True)
    ]
    shares = [share / sum(shares) for share in shares]
    ratios = [share / distance for share, distance in zip(shares, distances, strict=True)]
    c = 1 / sum(ratios)
    terms = [c * z * mpmath.log(d) for z, d in zip(shares, distances, strict=True)]
    sizes = [c * z * (1 + abs(mpmath.log(d))) for z, d in zip(shares, distances, strict=True)]
    if sum(sizes) < torch.finfo(dtype).max:
        assert ulps(scalar.item(), sum(terms), sum(sizes), dtype=dtype) <= FAMO_ULPS
    for found in (gradient, famo_weights(losses, logits, mask=mask)):
        for number, ratio in zip(found.tolist(), ratios, strict=True):
            assert ulps(number, c * ratio, dtype=dtype) <= FAMO_ULPS


@pytest.mark.parametrize("dtype", FULL, ids=str)
@given(data=st.data())
def test_famo_delta(dtype: torch.dtype, data: st.DataObject) -> None:
    """Also of two losses that differ in their last digits only."""
    before = data.draw(rows(dtype))
    nearly = st.floats(-1e-6, 1e-6)
    after = torch.tensor(
        [
            data.draw(numbers(dtype) | nearly.map(lambda x, loss=loss: loss * (1 + x)))
            for loss in before.tolist()
        ],
        dtype=dtype,
    ).clamp(max=torch.finfo(dtype).max)
    found = famo_delta(before, after)
    for number, x, y in zip(found.tolist(), exact(before), exact(after), strict=True):
        expected = mpmath.log((x + eps_in(dtype)) / (y + eps_in(dtype)))
        assert ulps(number, expected, dtype=dtype) <= DELTA


@pytest.mark.parametrize("dtype", FULL, ids=str)
@given(data=st.data(), temperature=st.sampled_from([0.5, 2.0, 8.0]))
def test_dwa_weights(dtype: torch.dtype, data: st.DataObject, temperature: float) -> None:
    previous = data.draw(rows(dtype).filter(lambda row: bool((row > 0).all())))
    last = torch.tensor([data.draw(numbers(dtype)) for _ in range(len(previous))], dtype=dtype)
    rates = [x / y / mpf(temperature) for x, y in zip(exact(last), exact(previous), strict=True)]
    if max(rates) > 1e300:  # has no rate, by definition
        return
    shares = [mpmath.exp(rate - max(rates)) for rate in rates]
    # In float64 a rate's own rounding enters its exponential; float32 is computed in float64.
    allowed = DWA_ULPS * (1 + (float(max(rates)) if dtype is torch.float64 else 0.0))
    for number, share in zip(
        dwa_weights(last, previous, temperature).tolist(), shares, strict=True
    ):
        assert ulps(number, len(rates) * share / sum(shares), dtype=dtype) <= allowed


@pytest.mark.parametrize("dtype", FULL, ids=str)
@given(data=st.data())
def test_the_average_of_an_epoch(dtype: torch.dtype, data: st.DataObject) -> None:
    batches = data.draw(st.lists(numbers(dtype), min_size=1, max_size=8))
    state = dwa_init((), dtype=dtype)
    for loss in batches:
        state = dwa_accumulate(state, torch.tensor(loss, dtype=dtype))
    total = sum(mpf(loss) for loss in batches)
    if total <= torch.finfo(torch.float64).max:
        average = dwa_step(state).last.item()
        assert ulps(average, total / len(batches), dtype=dtype) <= len(batches)
