"""Check that an optimizer holds the parameters of every scalarizer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .functional._checks import a_kind_of
from .modules import Scalarizer

_ADVICE = (
    'Give them a group of their own: {"params": scalarizer.parameters(), "lr": 0.01, '
    '"weight_decay": 0.0}.'
)


def check_optimizer(module: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Check that the parameters of every scalarizer in ``module`` are learned, and do not decay.

    If no optimizer has the parameters of UW or IMTL-L, the task weights never change, and no other
    error says so. Call this once, before the training.

    Args:
        module: a scalarizer, or a model that contains scalarizers.
        optimizers: the optimizers that step in the training.

    Raises:
        TypeError: ``module`` is not a module, or there are parameters to learn and an optimizer has
            no parameter groups.
        ValueError: a parameter is in none of the optimizers, or in a group with a learning rate of
            0, or with weight decay, which pulls the task weights back to equal. Frozen parameters
            and those of an ``AveragedModel`` are passed over. A parameter may be in several
            optimizers, as where L-BFGS follows Adam.

    Example:
        >>> from mtl_scalarize import UW
        >>> model, scalarizer = torch.nn.Linear(3, 2), UW(2)
        >>> check_optimizer(scalarizer, torch.optim.AdamW(model.parameters()))
        Traceback (most recent call last):
        ValueError: `optimizers` should have `log_var` of UW(shape=(2,)): found in none of them, ...
        >>> groups = [
        ...     {"params": model.parameters()},
        ...     {"params": scalarizer.parameters(), "lr": 0.01, "weight_decay": 0.0},
        ... ]
        >>> check_optimizer(scalarizer, torch.optim.AdamW(groups))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`module` should be a module. Found {a_kind_of(module)}: the scalarizer comes first, "
            "`check_optimizer(scalarizer, optimizer)`."
        )
    learned = list(_learned(module))
    for optimizer in optimizers if learned else ():
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(
                f"`optimizers` should be optimizers, one by one. Found {a_kind_of(optimizer)}, "
                "without `param_groups`."
            )
    groups = [each for optimizer in optimizers if learned for each in _groups(optimizer)]
    for label, parameter in learned:
        own = [group for group, held in groups if any(each is parameter for each in held)]
        if not own:
            raise ValueError(
                f"`optimizers` should have {label}: found in none of them, so that the task "
                f"weights would never change. {_ADVICE}"
            )
        # A schedule that begins at 0 has kept the rate that it begins from.
        if not any(group.get("lr", 1.0) or group.get("initial_lr") for group in own):
            raise ValueError(
                f"`optimizers` should have {label} with a learning rate above 0, or the task "
                f"weights would never change. {_ADVICE}"
            )
        for group in own:
            if group.get("weight_decay"):
                raise ValueError(
                    f"`optimizers` should have {label} only in groups without weight decay, which "
                    "pulls the task weights back to equal. "
                    f"Found `weight_decay = {group['weight_decay']}`. {_ADVICE}"
                )


def _groups(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """The parameter groups, and the parameters that each of them steps.

    DeepSpeed's optimizers step flattened copies, and keep the parameters of each group in a list.
    """
    groups = optimizer.param_groups
    kept = [getattr(optimizer, f"{dtype}_groups", None) for dtype in ("bit16", "bf16", "fp16")]
    held = next(filter(None, kept), [group["params"] for group in groups])
    yield from zip(groups, held, strict=False)


def _learned(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of scalarizers that an optimizer should have, with what an error calls them.

    Not those that are frozen, or averages of others.
    """
    if isinstance(module, AveragedModel):
        return
    if isinstance(module, Scalarizer):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"`{name}` of {module!r}", parameter
    for child in module.children():
        yield from _learned(child)
