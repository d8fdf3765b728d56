"""The guard against learned weights that nobody learns."""

from typing import Any

import pytest
import torch
from torch import nn

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
