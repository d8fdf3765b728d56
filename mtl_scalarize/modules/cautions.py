"""Warnings of mistakes that would waste a training, once for each scalarizer, at the user's line.

None costs a wait for the device, and none is left in a compiled graph.
"""

import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from .scalarizer import Scalarizer

_INTERNAL = ("torch", __name__.split(".")[0])


def warn_user(message: str) -> None:
    """Warn at the user's line: the nearest caller that is neither torch nor this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INTERNAL:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


_warn_while_tracing = torch.compiler.assume_constant_result(warn_user)  # type: ignore[no-untyped-call]


def caution_of_waste(scalarizer: "Scalarizer", losses: Tensor) -> None:
    """Of losses from which a call, as the scalarizer is now, leads to no learning."""
    if scalarizer.training and torch.is_grad_enabled():
        if scalarizer._parameters and not losses.requires_grad:
            scalarizer.warn_once(
                "The losses carry no gradient, so that the network learns nothing: combine them "
                "by `torch.stack(losses)`, not by `torch.tensor(losses)`."
            )
        elif scalarizer._buffers and getattr(scalarizer, "_is_replica", False):
            scalarizer.warn_once(
                f"What {type(scalarizer).__name__} learns in a replica of `DataParallel` is lost: "
                "keep the scalarizer outside of the module that is wrapped."
            )
    elif scalarizer._buffers and losses.requires_grad and torch.is_grad_enabled():
        scalarizer.warn_once(
            f"{type(scalarizer).__name__} does not learn in `eval()`, and the losses require "
            "gradients: call `scalarizer.train()` in training, and use `torch.no_grad()` in "
            "evaluation."
        )


def caution_of_constants(scalarizer: "Scalarizer", losses: Mapping[str, Tensor]) -> None:
    """Of a 0 in place of a task that is absent from the batch."""
    graph = {name: loss.requires_grad for name, loss in losses.items()}
    if len(set(graph.values())) == 2:
        name = next(name for name in graph if not graph[name])
        scalarizer.warn_once(
            f"The loss of task {name!r} carries no gradient, but others do. If this batch lacks "
            "the task, leave it out of the mapping: a 0 in its place is a loss of 0."
        )


def caution_of_ranks(scalarizer: "Scalarizer") -> None:
    """Of ranks that balance by their own losses; also while a graph is traced."""
    if scalarizer.fixed_weights or not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_world_size() > 1:
        message = (
            f"{type(scalarizer).__name__} has no process group: each of the "
            f"{dist.get_world_size()} ranks balances by its own losses alone. "
            "Pass `process_group=torch.distributed.group.WORLD`."
        )
        if torch.compiler.is_compiling():
            _warn_while_tracing(message)
        else:
            scalarizer.warn_once(message)
