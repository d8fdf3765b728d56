"""Bad input: each message says what is wrong, what was expected and what was found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from functions import ROWS, TASKS, Row
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
    ReLoBRaLo,
    all_reduce_losses,
    check_optimizer,
    constant_combine,
    dwa_init,
    dwa_step,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    imtll_loss,
    relobralo_init,
    relobralo_update,
    uw_loss,
)

L = torch.ones(3)
NAMED = UW(["a", "b"])
GROUP = (
    'Give them a group of their own: {"params": scalarizer.parameters(), "lr": 0.02, '
    '"weight_decay": 0.0}.'
)
Case = tuple[Callable[[], object], type[Exception], str]


def number(name: str, found: str) -> str:
    return f"`{name}` should be a number or a 0-d tensor. Found {found}."


def of_shape(name: str, shape: str, owner: str, found: str) -> str:
    return f"`{name}` should have shape {shape}, the shape of `{owner}`. Found `{found}`."


CASES: list[Case] = [
    (
        lambda: UW(2.5),
        TypeError,
        "`shape` should be an int or a sequence of ints. Found `shape = 2.5`.",
    ),
    (
        lambda: FAMO("ab"),
        TypeError,
        "`shape` should be an int or a sequence of ints. Found `shape = 'ab'`.",
    ),
    *(
        (
            lambda shape=shape: UW(shape),
            TypeError,
            f"`shape` should be an int or a sequence of ints. Found `shape = {shape!r}`.",
        )
        for shape in ("", True)
    ),
    (
        lambda: UW({"a": L}.keys()),
        TypeError,
        "`shape` should be an int, or a list of ints or of names. Found a dict_keys: use "
        "`list(...)`, in an order that stays.",
    ),
    (
        lambda: DWA(temperature=torch.tensor(-1.0)),
        ValueError,
        "`temperature` should be strictly positive. Found `temperature = -1.0`.",
    ),
    (
        lambda: FAMO(3, lr=torch.tensor(0.1, requires_grad=True)),
        ValueError,
        "`lr` should not require gradients, for the state of a module keeps no graph: use the pure "
        "functions. Found `lr.requires_grad = True`.",
    ),
    (
        lambda: IMTLL(None),
        TypeError,
        "`shape` should be an int or a sequence of ints. Found `shape = None`.",
    ),
    (
        lambda: DWA(shape=[2, -3]),
        ValueError,
        "`shape` should have no negative entry. Found `shape = [2, -3]`.",
    ),
    (
        lambda: famo_init(-3),
        ValueError,
        "`shape` should have no negative entry. Found `shape = -3`.",
    ),
    (
        lambda: dwa_init((2.5,)),
        TypeError,
        "`shape` should be an int or a sequence of ints. Found `shape = (2.5,)`.",
    ),
    (
        lambda: UW(["a", 1]),
        TypeError,
        "`shape` should be all names or all ints. Found `shape = ['a', 1]`.",
    ),
    (
        lambda: UW(["a", "b", "a"]),
        ValueError,
        "`shape` should name each task once. Found 'a' twice.",
    ),
    (
        lambda: DWA(0),
        ValueError,
        "`temperature` should be strictly positive. Found `temperature = 0`.",
    ),
    (
        lambda: DWA(torch.nan),
        ValueError,
        "`temperature` should be strictly positive. Found `temperature = nan`.",
    ),
    (lambda: DWA("2"), TypeError, number("temperature", "a str")),
    (
        lambda: dwa_weights(L, L, torch.ones(1)),
        ValueError,
        number("temperature", "`temperature.shape = (1,)`"),
    ),
    (
        lambda: dwa_step(dwa_init(3), -2.0),
        ValueError,
        "`temperature` should be strictly positive. Found `temperature = -2.0`.",
    ),
    (lambda: FAMO(3, lr=-1), ValueError, "`lr` should be non-negative. Found `lr = -1`."),
    (
        lambda: FAMO(3, weight_decay=-1),
        ValueError,
        "`weight_decay` should be non-negative. Found `weight_decay = -1`.",
    ),
    (lambda: famo_update(famo_init(3), L, lr=[0.1]), TypeError, number("lr", "a list")),
    (
        lambda: famo_update(famo_init(3), L, weight_decay=-1.0),
        ValueError,
        "`weight_decay` should be non-negative. Found `weight_decay = -1.0`.",
    ),
    (lambda: UW(3, eps=-1), ValueError, "`eps` should be non-negative. Found `eps = -1`."),
    (lambda: IMTLL(3, eps=-1), ValueError, "`eps` should be non-negative. Found `eps = -1`."),
    (
        lambda: uw_loss(L, L, eps=-1.0),
        ValueError,
        "`eps` should be non-negative. Found `eps = -1.0`.",
    ),
    (lambda: imtll_loss(L, L, eps=torch.ones(1)), ValueError, number("eps", "`eps.shape = (1,)`")),
    (
        lambda: famo_combine(L, L, torch.ones(2)),
        ValueError,
        of_shape("min_losses", "(3,)", "losses", "min_losses.shape = (2,)"),
    ),
    (
        lambda: famo_delta(L, L, torch.ones(2)),
        ValueError,
        of_shape("min_losses", "(3,)", "before", "min_losses.shape = (2,)"),
    ),
    (
        lambda: UW(3, init=[0.0] * 3),
        TypeError,
        "`init` should be a number or a tensor. Found a list.",
    ),
    (
        lambda: IMTLL(3, init=torch.ones(2)),
        ValueError,
        of_shape("init", "(3,)", "log_scale", "init.shape = (2,)"),
    ),
    (
        lambda: FAMO(3, torch.ones(2)),
        ValueError,
        of_shape("min_losses", "(3,)", "losses", "min_losses.shape = (2,)"),
    ),
    (
        lambda: FAMO(3, torch.ones(3, dtype=torch.complex64)),
        TypeError,
        "`min_losses` should be real. Found `min_losses.dtype = torch.complex64`.",
    ),
    (
        lambda: famo_combine(L, L, "0"),
        TypeError,
        "`min_losses` should be a number or a tensor. Found a str.",
    ),
    (lambda: STCH(0), ValueError, "`mu` should be strictly positive. Found `mu = 0`."),
    (
        lambda: STCH(1.0, L)(torch.ones(2)),
        ValueError,
        of_shape("weights", "(2,)", "losses", "weights.shape = (3,)"),
    ),
    (
        lambda: STCH(1.0, L, shape=2),
        ValueError,
        of_shape("preference", "(2,)", "losses", "preference.shape = (3,)"),
    ),
    (
        lambda: LogSum(L)(torch.ones(2)),
        ValueError,
        of_shape("min_losses", "(2,)", "losses", "min_losses.shape = (3,)"),
    ),
    (
        lambda: LogSum([0.0]),
        TypeError,
        "`min_losses` should be a number or a tensor. Found a list.",
    ),
    (
        lambda: Constant([1.0, 2.0]),
        TypeError,
        "`weights` should be a floating-point tensor. Found a list.",
    ),
    (
        lambda: Constant({"a": 1.0})(L),
        ValueError,
        of_shape("losses", "(1,)", "scalarizer", "losses.shape = (3,)"),
    ),
    (
        lambda: constant_combine(L, torch.ones(2)),
        ValueError,
        of_shape("losses", "(2,)", "weights", "losses.shape = (3,)"),
    ),
    (lambda: ReLoBRaLo(3, rho=2), ValueError, "`rho` should be at most 1. Found `rho = 2`."),
    (
        lambda: ReLoBRaLo(3, alpha=-1),
        ValueError,
        "`alpha` should be non-negative. Found `alpha = -1`.",
    ),
    (
        lambda: relobralo_update(relobralo_init(3), L, 1.5),
        ValueError,
        "`lookback` should be at most 1. Found `lookback = 1.5`.",
    ),
    (
        lambda: FAMO(3).update(L),
        ValueError,
        "`update` should follow a call on the losses. Found no call so far.",
    ),
    (
        lambda: UW(3).weights,
        AttributeError,
        "`weights` are those of the last call. Found no call of this UW since it was made, copied "
        "or loaded, or one inside a transform of `torch.func`: use the pure function there.",
    ),
    (
        lambda: UW(3).task_weights(),
        ValueError,
        "`task_weights` are by name. Found a scalarizer without names.",
    ),
    (
        lambda: UW(3)({"a": L[0]}),
        TypeError,
        "`losses` should be a tensor, for the tasks of this scalarizer have no names. "
        "Found a mapping.",
    ),
    (lambda: NAMED({"c": L[0]}), ValueError, "`losses` should be of 'a', 'b'. Found 'c'."),
    (
        lambda: NAMED({"b": L}),
        ValueError,
        "`losses['b']` should be a 0-d tensor. Found `losses['b'].shape = (3,)`.",
    ),
    (
        lambda: NAMED({"b": 1.0}),
        TypeError,
        "`losses['b']` should be a floating-point tensor. Found a float.",
    ),
    (
        lambda: NAMED({}),
        ValueError,
        "`losses` should have at least one of 'a', 'b'. Found an empty mapping: for a batch "
        "without any task, pass the losses that the network gives as a tensor, and a mask that is "
        "False everywhere.",
    ),
    (
        lambda: NAMED({"a": L[0]}, torch.ones(1, dtype=torch.bool)),
        ValueError,
        of_shape("mask", "(2,)", "losses", "mask.shape = (1,)"),
    ),
    (
        lambda: NAMED.load_state_dict(UW(["b", "a"]).state_dict()),
        ValueError,
        "`state_dict` should be of the tasks 'a', 'b', in this order. Found 'b', 'a'.",
    ),
    (
        lambda: History(UW(3), capacity=3),
        ValueError,
        "`capacity` should be a positive, even int. Found `capacity = 3`.",
    ),
    (
        lambda: check_optimizer(torch.optim.SGD([torch.ones(1)]), UW(2)),
        TypeError,
        "`module` should be a module. Found a SGD.",
    ),
    (
        lambda: check_optimizer(UW(2), [torch.optim.SGD([torch.ones(1)])]),
        TypeError,
        "`optimizers` should be optimizers. Found a list.",
    ),
    (
        lambda: check_optimizer(UW(2)),
        ValueError,
        "`optimizers` should have `log_var` of UW(shape=(2,)): found in none of them, so that the "
        "task weights would never change. " + GROUP,
    ),
    (
        lambda: check_optimizer(NAMED, torch.optim.AdamW(NAMED.parameters())),
        ValueError,
        "`optimizers` should have `log_var` of UW(shape=('a', 'b')) only in groups without weight "
        "decay, which pulls the task weights back to equal. Found `weight_decay = 0.01`. " + GROUP,
    ),
    (
        lambda: all_reduce_losses(L),
        ValueError,
        "`group` should be an initialised process group. Found none: call "
        "`torch.distributed.init_process_group` first.",
    ),
]


@pytest.mark.parametrize(("call", "error", "expected"), CASES)
def test_the_message(call: Callable[[], object], error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value) == expected


def floating(found: str) -> str:
    return f"`{{name}}` should be a floating-point tensor. Found {found}."


def of(expected: str, name: str) -> str:
    """The message about an argument of this name: what a list needs is said of losses alone."""
    stack = ": use `torch.stack(losses)`" if name == "losses" else ""
    return expected.format(name=name, stack=stack)


#: What may take the place of a tensor of the right shape, whose size is (TASKS,).
WRONG_TENSORS: list[tuple[Any, type[Exception], str]] = [
    *(
        (torch.ones(shape), ValueError, f"`{{name}}.shape = {shape}`.")
        for shape in [(TASKS + 1,), (1,), (), (1, TASKS)]
    ),
    (torch.ones(TASKS).int(), TypeError, floating("`{name}.dtype = torch.int32`")),
    (torch.ones(TASKS).bool(), TypeError, floating("`{name}.dtype = torch.bool`")),
    (torch.ones(TASKS).cfloat(), TypeError, floating("`{name}.dtype = torch.complex64`")),
    ([1.0] * TASKS, TypeError, floating("a list{stack}")),
    (2.0, TypeError, floating("a float")),
]
WRONG_MASKS: list[tuple[Any, type[Exception], str]] = [
    *(
        (torch.ones(shape, dtype=torch.bool), ValueError, f"`mask.shape = {shape}`.")
        for shape in [(TASKS + 1,), (1,), ()]
    ),
    (
        torch.ones(TASKS),
        ValueError,
        "`mask` should be a boolean tensor. Found `mask.dtype = torch.float32`.",
    ),
    ([True] * TASKS, TypeError, "`mask` should be a boolean tensor. Found a list."),
]


def assert_refused(
    call: Callable[[Any], object], name: str, wrong: list[tuple[Any, type[Exception], str]]
) -> None:
    for value, error, expected in wrong:
        with pytest.raises(error) as caught:
            call(value)
        assert str(caught.value).endswith(of(expected, name))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_function_refuses_wrong_tensors(row: Row) -> None:
    inputs = row.inputs()
    tensors = [n for n, value in inputs.items() if isinstance(value, Tensor) and value.ndim]
    bounds = {"min_losses", "reference"} & set(tensors)  # which may be a number
    for name in set(tensors) - {"mask"} - bounds:
        alone = len(tensors) == 1 and "state" not in inputs  # any shape will do
        for value, error, expected in WRONG_TENSORS:
            if error is ValueError and alone:
                continue
            with pytest.raises(error) as caught:
                row.function(**inputs | {name: value})
            message = str(caught.value)
            if error is TypeError:
                assert message == of(expected, name)
            else:  # the first tensor sets the shape, also where it is the wrong one
                assert "should have shape" in message
                assert f"`{name}`" in message
    if "mask" in inputs:
        assert_refused(lambda mask: row.function(**inputs | {"mask": mask}), "mask", WRONG_MASKS)
    for name in bounds:
        with pytest.raises(ValueError, match=rf"`{name}.shape = \(1,\)`"):
            row.function(**inputs | {name: torch.zeros(1)})


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_module_refuses_wrong_tensors_and_stays_as_it_is(method: Method) -> None:
    scalarizer = method.make((TASKS,))
    scalarizer(torch.ones(TASKS))  # which sets the shape of those that were made without
    for _ in range(2):
        state = {name: value.clone() for name, value in scalarizer.state_dict().items()}
        weights = scalarizer.weights
        assert_refused(scalarizer, "losses", WRONG_TENSORS)
        assert_refused(lambda mask: scalarizer(torch.ones(TASKS), mask), "mask", WRONG_MASKS)
        if method.updates:
            assert_refused(scalarizer.update, "losses", WRONG_TENSORS)
        found = dict(scalarizer.state_dict())
        torch.testing.assert_close(found, state, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(scalarizer.weights, weights)
        scalarizer(2 * torch.ones(TASKS))


def test_dwa_without_shape_keeps_that_of_its_first_losses_until_reset() -> None:
    scalarizer = DWA()
    with pytest.raises(ValueError, match="`mask` should have shape"):
        scalarizer(L, torch.ones(2, dtype=torch.bool))
    assert not scalarizer.mean.numel()
    scalarizer(L)
    with pytest.raises(ValueError, match=r"`losses` should have shape \(3,\)"):
        scalarizer(torch.ones(4))
    scalarizer.reset()
    assert scalarizer(torch.ones(4)) == 4


@pytest.mark.parametrize("temperature", [-1.0, "2"])
def test_a_step_at_a_bad_temperature_is_refused_and_changes_nothing(temperature: Any) -> None:
    scalarizer = DWA(shape=3)
    scalarizer(L)
    scalarizer.temperature = temperature
    with pytest.raises((ValueError, TypeError), match="`temperature` should be"):
        scalarizer.step()
    assert scalarizer.count.tolist() == [1, 1, 1]


def test_the_messages_of_a_process_group() -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        with pytest.raises(ValueError, match=r"`count` should have shape \(3,\)"):
            all_reduce_losses(L, count=torch.ones(2))
        with pytest.raises(ValueError, match=r"`count` should be non-negative\. Found `count = -1"):
            all_reduce_losses(L, count=-1)
        with pytest.raises(ValueError, match=r"process group that this rank belongs to\. Found 3"):
            all_reduce_losses(L, 3)
    finally:
        dist.destroy_process_group()
