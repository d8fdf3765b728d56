"""What each error says, word for word: it is what a user has to go by."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mtl_scalarize import (
    DWA,
    FAMO,
    IMTLL,
    UW,
    History,
    Scalarizer,
    all_reduce_losses,
    check_optimizer,
    dwa_weights,
    famo_combine,
    famo_init,
    imtll_loss,
    uw_loss,
)

L = torch.ones(3)
NAMED = UW(["a", "b"])


def loading(scalarizer: Scalarizer, **damage: object) -> Callable[[], object]:
    return lambda: scalarizer.load_state_dict({**scalarizer.state_dict(), **damage})


def loading_version_2(scalarizer: Scalarizer) -> None:
    state = scalarizer.state_dict()
    state._metadata[""]["version"] = 2
    scalarizer.load_state_dict(state)


def loading_from_a_model() -> None:
    model = nn.ModuleDict({"s": FAMO(2)})
    model.load_state_dict({**model.state_dict(), "s.step": torch.ones(2)})


def updating_after_reset() -> None:
    scalarizer = FAMO(3)
    scalarizer(L)
    scalarizer.reset()
    scalarizer.update(L)


MESSAGES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: uw_loss([1.0], L),
        TypeError,
        "`losses` should be a floating-point tensor. Found a list.",
    ),
    (
        lambda: uw_loss(L.int(), L),
        TypeError,
        "`losses` should be a floating-point tensor. Found `losses.dtype = torch.int32`.",
    ),
    (
        lambda: imtll_loss(L, torch.ones(2)),
        ValueError,
        "`losses` should have shape (2,), the shape of `log_scale`. Found `losses.shape = (3,)`.",
    ),
    (
        lambda: uw_loss(L, L, mask=[True]),
        TypeError,
        "`mask` should be a boolean tensor. Found a list.",
    ),
    (
        lambda: uw_loss(L, L, mask=L),
        ValueError,
        "`mask` should be a boolean tensor. Found `mask.dtype = torch.float32`.",
    ),
    (
        lambda: uw_loss(L, L, mask=torch.ones(2, dtype=torch.bool)),
        ValueError,
        "`mask` should have shape (3,), the shape of `log_var`. Found `mask.shape = (2,)`.",
    ),
    (
        lambda: famo_combine(L, L, "0"),
        TypeError,
        "`min_losses` should be a number or a tensor. Found a str.",
    ),
    (
        lambda: famo_combine(L, L, torch.ones(2)),
        ValueError,
        "`min_losses` should have shape (3,), the shape of `losses`. "
        "Found `min_losses.shape = (2,)`.",
    ),
    (
        lambda: FAMO(3, torch.ones(2)),
        ValueError,
        "`min_losses` should have shape (3,), the shape of `logits`. "
        "Found `min_losses.shape = (2,)`.",
    ),
    (
        lambda: FAMO(3, "0.5"),
        TypeError,
        "`min_losses` should be a number or a tensor. Found a str.",
    ),
    (
        lambda: FAMO(3, torch.ones(3, dtype=torch.complex64)),
        TypeError,
        "`min_losses` should be real. Found `min_losses.dtype = torch.complex64`.",
    ),
    (
        lambda: UW(3, init=[0.0, 0.0, 0.0]),
        TypeError,
        "`init` should be a number or a tensor. Found a list.",
    ),
    (
        lambda: dwa_weights(L, L, torch.ones(1)),
        ValueError,
        "`temperature` should be a number or a 0-d tensor. Found `temperature.shape = (1,)`.",
    ),
    (
        lambda: dwa_weights(L, L, "2"),
        TypeError,
        "`temperature` should be a number or a 0-d tensor. Found a str.",
    ),
    (
        lambda: dwa_weights(L, L, 0),
        ValueError,
        "`temperature` should be strictly positive. Found `temperature = 0`.",
    ),
    (lambda: FAMO(3, lr=-1), ValueError, "`lr` should be non-negative. Found `lr = -1`."),
    (
        lambda: FAMO(3, weight_decay=-1),
        ValueError,
        "`weight_decay` should be non-negative. Found `weight_decay = -1`.",
    ),
    (lambda: UW(3, eps=-1), ValueError, "`eps` should be non-negative. Found `eps = -1`."),
    (lambda: IMTLL(3, eps=-1), ValueError, "`eps` should be non-negative. Found `eps = -1`."),
    (
        lambda: UW(2.5),
        TypeError,
        "`shape` should be an int or a sequence of ints or of names. Found `shape = 2.5`.",
    ),
    (
        lambda: famo_init("ab"),
        TypeError,
        "`shape` should be an int or a sequence of ints. Found `shape = 'ab'`.",
    ),
    (
        lambda: UW([2, -3]),
        ValueError,
        "`shape` should have no negative entry. Found `shape = [2, -3]`.",
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
        lambda: UW(3).weights,
        ValueError,
        "`weights` are those of the last call. Found no call so far.",
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
        lambda: FAMO(3, amortized=True).update(L),
        ValueError,
        "`update` is for `amortized=False`. Found `amortized=True`: each call updates.",
    ),
    (
        lambda: FAMO(3).update(L),
        ValueError,
        "`update` should follow a call on the losses. Found no call so far.",
    ),
    (
        updating_after_reset,
        ValueError,
        "`update` should follow a call on the losses. Found no call so far.",
    ),
    (
        lambda: loading_version_2(FAMO(3)),
        RuntimeError,
        "Error(s) in loading state_dict for FAMO:\n\tthe state of FAMO should have version 1 or "
        "less. Found version 2, of a later release: upgrade mtl-scalarize.",
    ),
    (
        loading(UW(3), log_var=1.0),
        RuntimeError,
        "Error(s) in loading state_dict for UW:\n\t`log_var` should be a tensor. Found a float.",
    ),
    (
        loading(FAMO(2), logits=L, step=L[:2]),
        RuntimeError,
        "Error(s) in loading state_dict for FAMO:\n\t`logits` should have shape (2,). "
        "Found `logits.shape = (3,)`.\n\t`step` should be an integer tensor. "
        "Found `step.dtype = torch.float32`.",
    ),
    (
        loading(FAMO(2), logits=L[:2].int(), exp_avg=L[:2].cfloat()),
        RuntimeError,
        "Error(s) in loading state_dict for FAMO:\n\t`logits` should be a floating-point tensor. "
        "Found `logits.dtype = torch.int32`.\n\t`exp_avg` should be a floating-point tensor. "
        "Found `exp_avg.dtype = torch.complex64`.",
    ),
    (
        loading_from_a_model,
        RuntimeError,
        "Error(s) in loading state_dict for ModuleDict:\n\t`s.step` should be an integer tensor. "
        "Found `s.step.dtype = torch.float32`.",
    ),
    (
        lambda: NAMED.load_state_dict(UW(["b", "c"]).state_dict()),
        RuntimeError,
        "Error(s) in loading state_dict for UW:\n\t`task_names` should be 'a', 'b', in any order. "
        "Found 'b', 'c'.",
    ),
    (
        loading(NAMED, task_names=3),
        RuntimeError,
        "Error(s) in loading state_dict for UW:\n\t`task_names` should hold the names of the "
        "tasks. Found 3.",
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
        'task weights would never change. Add a group {"params": scalarizer.parameters(), '
        '"weight_decay": 0.0}.',
    ),
    (
        lambda: check_optimizer(NAMED, torch.optim.AdamW(NAMED.parameters())),
        ValueError,
        "`optimizers` should have `log_var` of UW(shape=('a', 'b')) in a group without weight "
        "decay, which pulls the task weights back to equal. Found `weight_decay = 0.01`.",
    ),
    (
        lambda: all_reduce_losses(L),
        ValueError,
        "`group` should be an initialised process group. Found none: call "
        "`torch.distributed.init_process_group` first.",
    ),
]


@pytest.mark.parametrize(("call", "error", "expected"), MESSAGES)
def test_the_message(call: Callable[[], object], error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value) == expected


@pytest.fixture
def alone() -> "dist.ProcessGroup":
    """A process group of this process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_the_messages_of_a_process_group(
    alone: "dist.ProcessGroup", monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the match is exact
        all_reduce_losses(L, alone, count=torch.ones(2))
    assert str(caught.value) == (
        "`count` should have shape (3,), the shape of `losses`. Found `count.shape = (2,)`."
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        all_reduce_losses(L, 3)
    assert str(caught.value) == (
        "`group` should be a process group that this rank belongs to. Found 3."
    )
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    scalarizer = DWA()
    with pytest.warns(UserWarning, match="no process group") as seen:
        scalarizer(L)
    scalarizer(L)  # says nothing more
    assert [str(warning.message) for warning in seen] == [
        "DWA has no process group: each of the 2 ranks balances by its own losses alone. "
        "Pass `process_group=torch.distributed.group.WORLD`."
    ]


@pytest.mark.usefixtures("alone")
def test_the_warning_points_at_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.warns(UserWarning, match="no process group") as seen:
        DWA()(L)
    assert seen[0].filename == __file__
