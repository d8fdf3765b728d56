"""Bad input: one row an argument. Each message names it, what was expected and what was found."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_scalarize import (
    DWA,
    FAMO,
    IMTLL,
    UW,
    Scalarizer,
    dwa_accumulate,
    dwa_combine,
    dwa_init,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
    imtll_loss,
    imtll_weights,
    uw_loss,
    uw_weights,
)

L = torch.ones(3)

#: How each function takes losses that are wrong, and a mask that is.
LOSSES: dict[str, Callable[[Any], object]] = {
    "UW": lambda losses: UW(3)(losses),
    "IMTLL": lambda losses: IMTLL(3)(losses),
    "DWA": lambda losses: DWA(shape=3)(losses),
    "FAMO": lambda losses: FAMO(3)(losses),
    "FAMO amortized": lambda losses: FAMO(3, amortized=True)(losses),
    "uw_loss": lambda losses: uw_loss(losses, L),
    "imtll_loss": lambda losses: imtll_loss(losses, L),
    "dwa_combine": lambda losses: dwa_combine(losses, dwa_init(3)),
    "dwa_accumulate": lambda losses: dwa_accumulate(dwa_init(3), losses),
    "famo_combine": lambda losses: famo_combine(losses, L),
    "famo_weights": lambda losses: famo_weights(losses, L),
}
MASKS: dict[str, Callable[[Any], object]] = {
    "UW": lambda mask: UW(3)(L, mask),
    "IMTLL": lambda mask: IMTLL(3)(L, mask),
    "DWA": lambda mask: DWA(shape=3)(L, mask),
    "DWA without shape": lambda mask: DWA()(L, mask),
    "FAMO": lambda mask: FAMO(3)(L, mask),
    "FAMO amortized": lambda mask: FAMO(3, amortized=True)(L, mask),
    "uw_loss": lambda mask: uw_loss(L, L, mask=mask),
    "uw_weights": lambda mask: uw_weights(L, mask=mask),
    "imtll_loss": lambda mask: imtll_loss(L, L, mask=mask),
    "imtll_weights": lambda mask: imtll_weights(L, mask=mask),
    "dwa_combine": lambda mask: dwa_combine(L, dwa_init(3), mask=mask),
    "dwa_accumulate": lambda mask: dwa_accumulate(dwa_init(3), L, mask=mask),
    "famo_combine": lambda mask: famo_combine(L, L, mask=mask),
    "famo_weights": lambda mask: famo_weights(L, L, mask=mask),
    "famo_update": lambda mask: famo_update(famo_init(3), L, mask=mask),
}
WRONG_LOSSES: list[tuple[Any, type[Exception], str]] = [
    (torch.ones(4), ValueError, "`losses` should have shape (3,), .* Found .* (4,)"),
    (torch.ones(1), ValueError, "`losses` should have shape (3,), .* Found .* (1,)"),
    (torch.ones(()), ValueError, "`losses` should have shape (3,), .* Found .* ()"),
    (torch.ones(1, 3), ValueError, "`losses` should have shape (3,), .* Found .* (1, 3)"),
    (torch.ones(3, dtype=torch.int64), TypeError, "`losses` should be a .* Found .* torch.int64"),
    (torch.ones(3, dtype=torch.bool), TypeError, "`losses` should be a .* Found .* torch.bool"),
    (L.to(torch.complex64), TypeError, "`losses` should be a .* Found .* torch.complex64"),
    ([1.0, 2.0, 3.0], TypeError, "`losses` should be a .* Found a list"),
    (2.0, TypeError, "`losses` should be a .* Found a float"),
]
WRONG_MASKS: list[tuple[Any, type[Exception], str]] = [
    (torch.ones(2, dtype=torch.bool), ValueError, "`mask` should have shape (3,), .* (2,)"),
    (torch.ones(1, dtype=torch.bool), ValueError, "`mask` should have shape (3,), .* (1,)"),
    (torch.ones((), dtype=torch.bool), ValueError, "`mask` should have shape (3,), .* ()"),
    (torch.ones(3), ValueError, "`mask` should be a boolean tensor. Found .* torch.float32"),
    (torch.ones(3, dtype=torch.uint8), ValueError, "`mask` should be a boolean .* torch.uint8"),
    ([True, False, True], TypeError, "`mask` should be a boolean tensor. Found a list"),
]
OTHERS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "UW, negative size": (lambda: UW(-1), ValueError, "`shape` should .* Found `shape = -1`"),
    "DWA, negative size": (lambda: DWA(shape=-1), ValueError, "`shape` should .* -1"),
    "FAMO, negative size": (lambda: FAMO((2, -3)), ValueError, "`shape` should .* (2, -3)"),
    "dwa_init, negative size": (lambda: dwa_init((2, -3)), ValueError, "`shape` should .* (2, -3)"),
    "famo_init, negative size": (lambda: famo_init(-3), ValueError, "`shape` should .* -3"),
    "UW, shape a float": (lambda: UW(2.5), TypeError, "`shape` should be an int .* 2.5"),
    "IMTLL, shape of floats": (lambda: IMTLL((2.5,)), TypeError, "`shape` should be .* (2.5,)"),
    "FAMO, shape a string": (lambda: FAMO("ab"), TypeError, "`shape` should be .* 'ab'"),
    "FAMO, shape None": (lambda: FAMO(None), TypeError, "`shape` should be .* None"),
    "DWA, zero temperature": (lambda: DWA(0.0), ValueError, "`temperature` should .* 0.0"),
    "DWA, negative temperature": (lambda: DWA(-1), ValueError, "`temperature` should .* -1"),
    "DWA, nan temperature": (lambda: DWA(torch.nan), ValueError, "`temperature` should .* nan"),
    "DWA, temperature a string": (lambda: DWA("2"), TypeError, "`temperature` .* Found a str"),
    "dwa_weights, zero temperature": (
        lambda: dwa_weights(L, L, 0.0),
        ValueError,
        "`temperature` should be strictly positive. Found `temperature = 0.0`",
    ),
    "dwa_weights, temperature (1,)": (
        lambda: dwa_weights(L, L, torch.ones(1)),
        ValueError,
        "`temperature` should be a number or a 0-d tensor. Found `temperature.shape = (1,)`",
    ),
    "dwa_combine, negative temperature": (
        lambda: dwa_combine(L, dwa_init(3), -2.0),
        ValueError,
        "`temperature` should .* -2.0",
    ),
    "dwa_weights, previous (1,)": (
        lambda: dwa_weights(L, torch.ones(1)),
        ValueError,
        "`previous` should have shape (3,), .* (1,)",
    ),
    "FAMO, negative lr": (lambda: FAMO(3, lr=-0.1), ValueError, "`lr` should .* -0.1"),
    "FAMO, nan lr": (lambda: FAMO(3, lr=torch.nan), ValueError, "`lr` should .* nan"),
    "FAMO, negative weight_decay": (
        lambda: FAMO(3, weight_decay=-1e-3),
        ValueError,
        "`weight_decay` should be non-negative. Found `weight_decay = -0.001`",
    ),
    "famo_update, negative lr": (
        lambda: famo_update(famo_init(3), L, lr=-1.0),
        ValueError,
        "`lr` should be non-negative. Found `lr = -1.0`",
    ),
    "famo_update, negative weight_decay": (
        lambda: famo_update(famo_init(3), L, weight_decay=-1.0),
        ValueError,
        "`weight_decay` should be non-negative. Found `weight_decay = -1.0`",
    ),
    "famo_update, lr a list": (
        lambda: famo_update(famo_init(3), L, lr=[0.1]),
        TypeError,
        "`lr` should be a number or a 0-d tensor. Found a list",
    ),
    "famo_update, delta (1,)": (
        lambda: famo_update(famo_init(3), torch.ones(1)),
        ValueError,
        "`delta` should have shape (3,), .* (1,)",
    ),
    "famo_update, integer delta": (
        lambda: famo_update(famo_init(3), torch.ones(3, dtype=torch.int32)),
        TypeError,
        "`delta` should be a .* torch.int32",
    ),
    "famo_delta, after (1,)": (
        lambda: famo_delta(L, torch.ones(1)),
        ValueError,
        "`after` should have shape (3,), .* (1,)",
    ),
    "famo_delta, before a list": (
        lambda: famo_delta([1.0], L),
        TypeError,
        "`before` should be a .* Found a list",
    ),
    "FAMO, min_losses (1,)": (
        lambda: FAMO(3, torch.zeros(1)),
        ValueError,
        "`min_losses` should have shape (3,), .* (1,)",
    ),
    "FAMO, min_losses a list": (
        lambda: FAMO(3, [0.0, 0.0, 0.0]),
        TypeError,
        "`min_losses` should be a .* Found a list",
    ),
    "famo_combine, min_losses (1,)": (
        lambda: famo_combine(L, L, torch.zeros(1)),
        ValueError,
        "`min_losses` should have shape (3,), .* (1,)",
    ),
    "famo_delta, min_losses a list": (
        lambda: famo_delta(L, L, [0.0]),
        TypeError,
        "`min_losses` should be a number or a tensor. Found a list",
    ),
    "FAMO, update first": (
        lambda: FAMO(3).update(L),
        ValueError,
        "`update` should follow a call on the losses. Found no call so far",
    ),
    "FAMO amortized, update": (
        lambda: FAMO(3, amortized=True).update(L),
        ValueError,
        "`update` is for `amortized=False`. Found `amortized=True`",
    ),
    "uw_loss, log_var a list": (
        lambda: uw_loss(L, [0.0] * 3),
        TypeError,
        "`log_var` should be a .* Found a list",
    ),
    "uw_weights, integer log_var": (
        lambda: uw_weights(torch.zeros(3, dtype=torch.int64)),
        TypeError,
        "`log_var` should be a .* torch.int64",
    ),
    "imtll_weights, integer log_scale": (
        lambda: imtll_weights(torch.zeros(3, dtype=torch.int64)),
        TypeError,
        "`log_scale` should be a .* torch.int64",
    ),
}


def message(pattern: str) -> str:
    """A regular expression in which only `.*` is special."""
    return ".*".join(re.escape(part) for part in pattern.split(".*"))


@pytest.mark.parametrize(("losses", "error", "pattern"), WRONG_LOSSES)
@pytest.mark.parametrize("name", LOSSES)
def test_wrong_losses(name: str, losses: Any, error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=message(pattern)):
        LOSSES[name](losses)


@pytest.mark.parametrize(("mask", "error", "pattern"), WRONG_MASKS)
@pytest.mark.parametrize("name", MASKS)
def test_wrong_mask(name: str, mask: Any, error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=message(pattern)):
        MASKS[name](mask)


@pytest.mark.parametrize("name", OTHERS)
def test_wrong_argument(name: str) -> None:
    call, error, pattern = OTHERS[name]
    with pytest.raises(error, match=message(pattern)):
        call()


def bad_calls(scalarizer: Scalarizer) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = []
    for losses, _, _ in WRONG_LOSSES:
        calls.append(lambda losses=losses: scalarizer(losses))
        if isinstance(scalarizer, FAMO):
            calls.append(lambda losses=losses: scalarizer.update(losses))
    for mask, _, _ in WRONG_MASKS:
        calls.append(lambda mask=mask: scalarizer(L, mask))
        if isinstance(scalarizer, FAMO):
            calls.append(lambda mask=mask: scalarizer.update(L, mask))
    if isinstance(scalarizer, DWA):
        calls.append(lambda: setattr(scalarizer, "temperature", -1.0))
    return calls


@pytest.mark.parametrize(
    "scalarizer",
    [UW(3), IMTLL(3), DWA(), DWA(shape=3), FAMO(3), FAMO(3, amortized=True)],
    ids=repr,
)
def test_a_call_that_raises_changes_nothing(scalarizer: Scalarizer) -> None:
    def state() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in scalarizer.state_dict().items()}

    if scalarizer.state_dict() == {}:  # DWA without shape takes the first that it sees
        scalarizer(L)
    for _ in range(2):  # before a good call, and after it
        expected, weights = state(), scalarizer._weights
        for call in bad_calls(scalarizer):
            with pytest.raises((ValueError, TypeError)):
                call()
            torch.testing.assert_close(state(), expected, rtol=0, atol=0, equal_nan=True)
            assert scalarizer._weights is weights
        scalarizer(2 * L)


def test_dwa_without_shape_keeps_that_of_its_first_losses_until_reset() -> None:
    scalarizer = DWA()
    scalarizer(torch.ones(3))
    with pytest.raises(ValueError, match=message("`losses` should have shape (3,), .* (4,)")):
        scalarizer(torch.ones(4))
    scalarizer.reset()
    assert scalarizer(torch.ones(4)) == 4
