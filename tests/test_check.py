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
            ValueError, match=r'weight_decay = 0\.01`.*"lr": 0\.02, "weight_decay": 0'
        ):
            check_optimizer(scalarizer, *optimizers)


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
