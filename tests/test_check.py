"""The guard against learned weights that nobody learns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mtl_scalarize import DWA, FAMO, IMTLL, UW, Scalarizer, check_optimizer

LEARNED = [UW(2), IMTLL(2)]


def group(scalarizer: Scalarizer, **options: Any) -> dict[str, Any]:
    return {"params": scalarizer.parameters(), **options}


@pytest.mark.parametrize("scalarizer", LEARNED, ids=repr)
def test_parameters_that_no_optimizer_has_are_named(scalarizer: Scalarizer) -> None:
    others = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    name = next(name for name, _ in scalarizer.named_parameters())
    for optimizers in ([], [others]):
        with pytest.raises(ValueError, match=rf"`{name}` of .*found in none of them"):
            check_optimizer(scalarizer, *optimizers)


@pytest.mark.parametrize("scalarizer", LEARNED, ids=repr)
def test_weight_decay_is_named(scalarizer: Scalarizer) -> None:
    decaying = torch.optim.AdamW(scalarizer.parameters(), weight_decay=0.25)
    with pytest.raises(ValueError, match=r"without weight decay.*Found `weight_decay = 0\.25`"):
        check_optimizer(scalarizer, decaying)


@pytest.mark.parametrize("scalarizer", LEARNED, ids=repr)
def test_any_of_the_optimizers_and_groups_will_do(scalarizer: Scalarizer) -> None:
    model = nn.Linear(2, 2)
    others = torch.optim.AdamW(model.parameters())
    check_optimizer(scalarizer, others, torch.optim.SGD(scalarizer.parameters(), lr=0.1))
    groups = [{"params": model.parameters()}, group(scalarizer, weight_decay=0.0)]
    check_optimizer(scalarizer, torch.optim.AdamW(groups))


@pytest.mark.parametrize("scalarizer", LEARNED, ids=repr)
def test_one_group_with_decay_is_too_many_whichever_comes_first(scalarizer: Scalarizer) -> None:
    plain = torch.optim.SGD(scalarizer.parameters(), lr=0.1)
    decaying = torch.optim.AdamW(scalarizer.parameters())
    for optimizers in ((plain, decaying), (decaying, plain)):
        with pytest.raises(
            ValueError, match=r'weight_decay = 0\.01`.*"lr": 0\.01, "weight_decay": 0'
        ):
            check_optimizer(scalarizer, *optimizers)


def test_a_rate_of_zero_is_named_unless_it_is_the_start_of_a_schedule() -> None:
    scalarizer = UW(2)
    optimizer = torch.optim.SGD(scalarizer.parameters(), lr=0.0)
    with pytest.raises(ValueError, match=r"`log_var` of .* a learning rate above 0"):
        check_optimizer(scalarizer, optimizer)
    check_optimizer(scalarizer, optimizer, torch.optim.LBFGS(scalarizer.parameters(), lr=1.0))
    optimizer = torch.optim.SGD(scalarizer.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)
    assert optimizer.param_groups[0]["lr"] == 0
    check_optimizer(scalarizer, optimizer)


@pytest.mark.parametrize("lists", ["bit16_groups", "bf16_groups", "fp16_groups"])
def test_deepspeed_steps_flat_copies(lists: str) -> None:
    """A stand-in with the attributes of DeepSpeed 0.19's optimizers."""
    model, scalarizer = nn.Linear(2, 2), UW(2)
    flat = [nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(2))]
    groups = [
        {"params": [copy], "weight_decay": decay}
        for copy, decay in zip(flat, (0.1, 0.0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    setattr(optimizer, lists, [[*model.parameters()], [scalarizer.log_var]])
    check_optimizer(scalarizer, optimizer)
    setattr(optimizer, lists, [[*model.parameters(), scalarizer.log_var], []])
    with pytest.raises(ValueError, match=r"Found `weight_decay = 0\.1`"):
        check_optimizer(scalarizer, optimizer)


def test_a_placeholder_is_refused_only_where_there_is_something_to_learn() -> None:
    placeholder = pytest.importorskip("accelerate.utils.deepspeed").DummyOptim([])
    check_optimizer(FAMO(2), placeholder)
    with pytest.raises(TypeError, match=r"`optimizers` .* Found a DummyOptim, without `param_gr"):
        check_optimizer(UW(2), placeholder)


@pytest.mark.parametrize("make", [UW, IMTLL])
def test_averages_and_frozen_parameters_need_no_optimizer(make: Callable[..., Scalarizer]) -> None:
    model = nn.ModuleDict({"scalarizer": make(2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    check_optimizer(nn.ModuleList([model, AveragedModel(model)]), optimizer)
    check_optimizer(make(2).requires_grad_(False))


def test_all_scalarizers_of_a_model_are_checked() -> None:
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "first": UW(2), "second": IMTLL(3)})
    optimizer = torch.optim.SGD([*model["net"].parameters(), *model["first"].parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"`log_scale` of IMTLL\(shape=\(3,\)\)"):
        check_optimizer(model, optimizer)
    optimizer.add_param_group(group(model["second"]))
    check_optimizer(model, optimizer)


@pytest.mark.parametrize("scalarizer", [DWA(), FAMO(2)], ids=repr)
def test_there_is_nothing_to_forget_of_dwa_and_famo(scalarizer: Scalarizer) -> None:
    check_optimizer(scalarizer)
