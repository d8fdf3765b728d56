"""Bad input: each message names the argument, and says what was expected or what mends it."""

import re
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from functions import ROLES, ROWS, TASKS, Row
from methods import METHODS, Method
from torch import Tensor

from mtl_scalarize import (
    DWA,
    FAMO,
    IMTLL,
    STCH,
    UW,
    Constant,
    History,
    LogSum,
    Mean,
    Scalarizer,
    check_optimizer,
    constant_combine,
    dwa_combine,
    dwa_init,
    dwa_step,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    relobralo_init,
    relobralo_update,
    uw_loss,
)

L = torch.ones(3)
NAMED = UW(["a", "b"])
ADAM = torch.optim.Adam([torch.ones(1)])


def update_by_nothing() -> None:
    scalarizer = FAMO(3)
    scalarizer(L)
    scalarizer.update(lambda: None)


class WithoutReturn(Scalarizer):
    def weigh(self, losses: Tensor, mask: Tensor | None) -> None:
        losses.reciprocal()


#: A call, and what a user needs to read; "..." is any text.
CASES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: UW(2.5), TypeError, "`shape` ... an int or a sequence of ints. Found `shape = 2.5`"),
    (lambda: FAMO("ab"), TypeError, "`shape` ... an int or a sequence of ints. Found ... 'ab'"),
    (lambda: UW(""), TypeError, "`shape` ... an int or a sequence of ints. Found `shape = ''`"),
    (lambda: UW(True), TypeError, "`shape` ... an int or a sequence of ints. Found ... True"),
    (lambda: IMTLL(None), TypeError, "`shape` ... an int or a sequence of ints. Found ... None"),
    (lambda: dwa_init((2.5,)), TypeError, "`shape` ... an int or a sequence of ints"),
    (lambda: UW("depth"), TypeError, "`shape` ... Found `shape = 'depth'`: pass a list of names"),
    (lambda: DWA(shape=[2, -3]), ValueError, "`shape` ... no negative entry. Found ... [2, -3]"),
    (lambda: famo_init(-3), ValueError, "`shape` ... no negative entry. Found `shape = -3`"),
    (lambda: FAMO((2, 0)), ValueError, "`shape` ... at least one task. Found `shape = (2, 0)`"),
    (lambda: UW([]), ValueError, "`shape` ... at least one task. Found `shape = []`"),
    (lambda: LogSum(["a", "b"]), TypeError, "`min_losses` ... numbers... ['a', 'b']: ... `shape`"),
    (lambda: FAMO(2, lr="1e-3"), TypeError, "`lr` ... a number or a 0-d tensor. Found a str"),
    (lambda: LogSum({"a": 0.0}), ValueError, "`min_losses` ... no mapping without `shape=[...]`"),
    (lambda: LogSum(L > 0), TypeError, "`min_losses` ... real numbers... a mask is given as"),
    (lambda: Constant([]), ValueError, "`weights` ... at least one entry"),
    (
        lambda: LogSum()(L[:0]),
        ValueError,
        "`losses` ... at least one entry... a mask that is False",
    ),
    (lambda: LogSum()([4.0, 1.0]), TypeError, "`losses` ... Found a list."),
    (lambda: UW(3)(L, L), ValueError, "`mask` ... use `mask.bool()`"),
    (lambda: UW(3)(L, (L > 0).to("meta")), ValueError, "`mask` ... on cpu. Found meta: move it"),
    (
        lambda: uw_loss(L.to("meta"), L),
        ValueError,
        "`losses` ... on cpu. Found meta: ... `log_var`",
    ),
    (
        lambda: dwa_combine(dwa_init(3), L),
        TypeError,
        "`state` ... a DWAState. Found a Tensor: a mod",
    ),
    (lambda: famo_update(dwa_init(3), L), TypeError, "`state` ... a FAMOState. Found a DWAState"),
    (
        lambda: dwa_init(3, dtype=torch.int32),
        TypeError,
        "`dtype` ... floating dtype ... torch.int32",
    ),
    (
        lambda: famo_init(3, dtype=torch.cfloat),
        TypeError,
        "`dtype` ... floating... torch.complex64",
    ),
    (
        lambda: FAMO(2).write(dwa_init(2)),
        TypeError,
        "`state` ... FAMOState. ... a DWAS",
    ),
    (
        lambda: FAMO(2).write(famo_init(3)),
        ValueError,
        "`state` ... (2,)... Found ... (3",
    ),
    (
        lambda: setattr(DWA(), "temperatures", 1.0),
        AttributeError,
        "no `temperatures`: use `temperature`",
    ),
    (
        lambda: setattr(DWA(), "priority", 2.0),
        AttributeError,
        "no `priority`: use `priorities`",
    ),
    (
        lambda: update_by_nothing(),
        TypeError,
        "`losses` should return ... a function that returns N",
    ),
    (lambda: WithoutReturn()(L), TypeError, "`weigh` should return the task weights"),
    (lambda: LogSum([L[0].requires_grad_()]), ValueError, "`min_losses` ... no gradient"),
    (lambda: LogSum()(L[0], L[1]), ValueError, "`mask` ... all losses ... `torch.stack(losses)`"),
    (lambda: UW(3)(L.sum()), ValueError, "`losses` ... (3,)... a single loss... balances nothing"),
    (lambda: UW(3)(L.to("meta")), ValueError, "`losses` ... on cpu. Found meta: ... .to(losses.d"),
    (
        lambda: NAMED({"a": L[0], "b": L[1].to("meta")}),
        ValueError,
        "`losses['b']` should be on cpu. Found meta",
    ),
    (lambda: UW({"a": L}.keys()), ValueError, "`shape` ... a list or tuple"),
    (lambda: UW(["a", 1]), ValueError, "`shape` ... of different names... Found ... 1]"),
    (lambda: UW(["a", "b", "a"]), ValueError, "`shape` ... different names... 'b', 'a']"),
    (lambda: dwa_weights(L, L, torch.ones(1)), ValueError, "`temperature` ... a 0-d tensor"),
    (lambda: dwa_step(dwa_init(3), -2.0), ValueError, "`temperature` ... strictly positive"),
    (lambda: uw_loss(L, L, eps=-1.0), ValueError, "`eps` ... non-negative... Found `eps = -1.0`"),
    (lambda: famo_combine(L, L, torch.ones(2)), ValueError, "`min_losses` ... shape (3,)... (2,)"),
    (lambda: famo_delta(L, L, torch.ones(2)), ValueError, "`min_losses` ... shape (3,)... `before"),
    (lambda: constant_combine(L, torch.ones(2)), ValueError, "`losses` ... (2,)... of `weights`"),
    (lambda: relobralo_update(relobralo_init(3), L, 1.5), ValueError, "`lookback` ... from 0 to 1"),
    (lambda: STCH(1.0, L)(torch.ones(2)), ValueError, "`weights` ... shape (2,)... Found ... (3,)"),
    (lambda: LogSum(L)(torch.ones(2)), ValueError, "`min_losses` ... shape (2,)... (3,)"),
    (lambda: Constant({"a": 1.0})(L), ValueError, "`losses` ... shape (1,)... Found ... (3,)"),
    (lambda: UW(3).weights, AttributeError, "`weights` of UW(shape=(3,)): it was not called"),
    (lambda: UW(3).loss, AttributeError, "no attribute 'loss'"),
    (lambda: UW(3).task_weights(), ValueError, "`task_weights` ... without names"),
    (lambda: UW(3)({"a": L[0]}), TypeError, "`losses` ... no names. Found a mapping...=['a']`"),
    (
        lambda: Mean()([L[0], L[0]]),
        TypeError,
        "`losses` ... Found a list: use `torch.stack(losses)",
    ),
    (lambda: NAMED({"c": L[0]}), ValueError, "`losses` ... of the tasks 'a', 'b'. Found 'c'"),
    (lambda: NAMED({"b": L}), ValueError, "`losses['b']` ... a 0-d tensor... take its mean"),
    (lambda: NAMED({"b": L[:1]}), ValueError, "`losses['b']` ... a 0-d tensor... squeeze it"),
    (lambda: NAMED({"b": None}), TypeError, "`losses['b']` ... None: leave an absent task out"),
    (lambda: NAMED({"b": 1.0}), TypeError, "`losses['b']` ... Found 1.0: ... not its `.item()`"),
    (lambda: NAMED({}), ValueError, "`losses` ... 'a', 'b'... a tensor and a mask that is False"),
    (lambda: NAMED({"a": L[0]}, L[:1] > 0), ValueError, "`mask` ... (2,)... `mask.shape = (1,)`"),
    (lambda: History(UW(3), capacity=3), ValueError, "`capacity` ... positive, even int... = 3"),
    (lambda: check_optimizer(ADAM, UW(2)), TypeError, "`module` ... Found an Adam: ... first"),
    (lambda: check_optimizer(UW(2), [ADAM]), TypeError, "`optimizers` ... one by one. ... a list"),
    (
        lambda: check_optimizer(UW(2)),
        ValueError,
        '`optimizers` ... `log_var` of UW(shape=(2,)): found in none... "weight_decay": 0.0}',
    ),
    (
        lambda: check_optimizer(NAMED, torch.optim.AdamW(NAMED.parameters())),
        ValueError,
        "`optimizers` ... ('a', 'b')) only in groups without weight decay... Found ... 0.01`",
    ),
]


@pytest.mark.parametrize(("call", "error", "needed"), CASES, ids=[case[2] for case in CASES])
def test_a_message_says_what_a_user_needs(
    call: Callable[[], object], error: type[Exception], needed: str
) -> None:
    pieces = [re.escape(piece.strip()) for piece in needed.split("...")]
    with pytest.raises(error, match=".*".join(pieces)) as caught:
        call()
    assert type(caught.value) is error


FLOATING = "`{name}` should be a floating-point tensor. Found "
BOOLEAN = "`mask` should be a boolean tensor. Found "
Wrong = list[tuple[Any, type[Exception], str]]

#: What may take the place of a tensor of the right shape, whose size is (TASKS,).
WRONG_TENSORS: Wrong = [
    *(
        (torch.ones(shape), ValueError, f"Found `{{name}}.shape = {shape}`")
        for shape in [(TASKS + 1,), (1,), (), (1, TASKS)]
    ),
    (torch.ones(TASKS).int(), TypeError, FLOATING + "`{name}.dtype = torch.int32`."),
    (torch.ones(TASKS).bool(), TypeError, FLOATING + "`{name}.dtype = torch.bool`."),
    (torch.ones(TASKS).cfloat(), TypeError, FLOATING + "`{name}.dtype = torch.complex64`."),
    (
        torch.ones(TASKS).to(torch.float8_e4m3fn),
        TypeError,
        FLOATING + "`{name}.dtype = torch.float8_e4m3fn`.",
    ),
    ([1.0] * TASKS, TypeError, FLOATING + "a list"),
    (2.0, TypeError, FLOATING + "a float."),
]
WRONG_MASKS: Wrong = [
    *(
        (torch.ones(shape, dtype=torch.bool), ValueError, f"Found `mask.shape = {shape}`")
        for shape in [(TASKS + 1,), (1,), ()]
    ),
    (torch.ones(TASKS), ValueError, BOOLEAN + "`mask.dtype = torch.float32`"),
    ([True] * TASKS, TypeError, BOOLEAN + "a list."),
]


def assert_refused(call: Callable[[Any], object], name: str, wrong: Wrong) -> None:
    for value, error, expected in wrong:
        with pytest.raises(error, match=re.escape(expected.format(name=name))):
            call(value)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_function_refuses_wrong_tensors(row: Row) -> None:
    inputs = row.inputs()
    tensors = [n for n, value in inputs.items() if isinstance(value, Tensor) and value.ndim]
    hints = get_type_hints(row.function)
    bounds = {name for name in tensors if float in get_args(hints[name])}  # which may be a number
    for name in set(tensors) - {"mask"} - bounds:
        alone = set(tensors) == {name} | bounds and "state" not in inputs  # any shape will do
        for value, error, expected in WRONG_TENSORS:
            if error is ValueError and alone:
                continue
            # The first tensor sets the shape, also where it is the wrong one.
            shape = rf"(`{name}` should have shape|should have shape.* of `{name}`)"
            needed = re.escape(expected.format(name=name)) if error is TypeError else shape
            with pytest.raises(error, match=needed):
                row.function(**inputs | {name: value})
    if "mask" in inputs:
        assert_refused(lambda mask: row.function(**inputs | {"mask": mask}), "mask", WRONG_MASKS)
    for name in bounds:
        with pytest.raises(ValueError, match=rf"`{name}.shape = \(1,\)`"):
            row.function(**inputs | {name: torch.zeros(1)})


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_function_refuses_wrong_numbers(row: Row) -> None:
    inputs, hints = row.inputs(), get_type_hints(row.function)
    for name in (name for name in inputs if float in get_args(hints[name])):
        wrong = ["1", [1.0], torch.inf, torch.nan, torch.ones(2, 7)]
        if not (ROLES[name] == "min_losses" or name == "weights"):  # any numbers
            wrong += [None, -1.0]
        for value in wrong:
            with pytest.raises((TypeError, ValueError), match=f"`{name}` should"):
                row.function(**inputs | {name: value})


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_module_refuses_wrong_tensors_and_stays_as_it_is(method: Method) -> None:
    scalarizer = method.make((TASKS,))
    scalarizer(torch.ones(TASKS))  # which sets the shape of those that were made without
    for _ in range(2):
        state = {name: value.clone() for name, value in scalarizer.state_dict().items()}
        weights, generator = scalarizer.weights, torch.get_rng_state()
        assert_refused(scalarizer, "losses", WRONG_TENSORS)
        assert_refused(lambda mask: scalarizer(torch.ones(TASKS), mask), "mask", WRONG_MASKS)
        if method.updates:
            assert_refused(scalarizer.update, "losses", WRONG_TENSORS)
            assert_refused(
                lambda mask: scalarizer.update(torch.ones(TASKS), mask), "mask", WRONG_MASKS
            )
        found = dict(scalarizer.state_dict())
        torch.testing.assert_close(found, state, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(scalarizer.weights, weights)
        assert torch.equal(torch.get_rng_state(), generator)
        scalarizer(2 * torch.ones(TASKS))


def test_dwa_without_shape_keeps_that_of_its_first_losses() -> None:
    scalarizer = DWA()
    with pytest.raises(ValueError, match="`mask` should have shape"):
        scalarizer(L, torch.ones(2, dtype=torch.bool))
    assert not scalarizer.mean.numel()
    for _ in range(2):
        assert scalarizer(L) == 3
        with pytest.raises(ValueError, match=r"`losses` should have shape \(3,\)"):
            scalarizer(torch.ones(4))
        scalarizer.reset()
