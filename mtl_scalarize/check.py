"""A guard against learned weights that nobody learns."""

import torch
from torch import nn

from .modules import Scalarizer


def check_optimizer(module: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Check that the parameters of every scalarizer in ``module`` are learned, and do not decay.

    UW's and IMTL-L's parameters that no optimizer has been given stay where they are, and so do the
    task weights: nothing else would tell. Call this once, before the training.

    Args:
        module: a scalarizer, or a model that contains scalarizers.
        optimizers: the optimizers that step in the training.

    Raises:
        TypeError: ``module`` is not a module, or an optimizer has no parameter groups.
        ValueError: a parameter is in none of the optimizers, or in a group with weight decay, which
            pulls the task weights back to equal.

    Example:
        >>> from mtl_scalarize import UW
        >>> model, scalarizer = torch.nn.Linear(3, 2), UW(2)
        >>> check_optimizer(scalarizer, torch.optim.AdamW(model.parameters()))
        Traceback (most recent call last):
        ValueError: `optimizers` should have `log_var` of UW(shape=(2,)): found in none of them, ...
        >>> groups = [
        ...     {"params": model.parameters()},
        ...     {"params": scalarizer.parameters(), "weight_decay": 0.0},
        ... ]
        >>> check_optimizer(scalarizer, torch.optim.AdamW(groups))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` should be a module. Found a {type(module).__name__}.")
    for optimizer in optimizers:
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(
                f"`optimizers` should be optimizers. Found a {type(optimizer).__name__}."
            )
    groups = {
        id(parameter): group
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for scalarizer in module.modules():
        if not isinstance(scalarizer, Scalarizer):
            continue
        for name, parameter in scalarizer.named_parameters():
            label = f"`{name}` of {scalarizer!r}"
            group = groups.get(id(parameter))
            if group is None:
                raise ValueError(
                    f"`optimizers` should have {label}: found in none of them, so that the task "
                    "weights would never change. Add a group "
                    '{"params": scalarizer.parameters(), "weight_decay": 0.0}.'
                )
            if group.get("weight_decay"):
                raise ValueError(
                    f"`optimizers` should have {label} in a group without weight decay, which "
                    "pulls the task weights back to equal. "
                    f"Found `weight_decay = {group['weight_decay']}`."
                )
