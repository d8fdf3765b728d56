"""Mistakes that would silently waste a training: each a message, or None if it was not made.

No check waits for the device or adds to a compiled graph.
"""

import sys
import warnings
from collections.abc import Mapping
from typing import Any, SupportsIndex

import torch
import torch.distributed as dist
from torch import Tensor, nn

_INTERNAL = ("torch", __name__.split(".")[0])


def warn_user(message: str) -> None:
    """Warn at the user's line: the nearest caller that is neither torch nor this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INTERNAL:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


# What `torch.compiler.assume_constant_result` does, which would import the compiler: torch.compile
# warns once, while it traces the call, and leaves nothing in the graph.
warn_user._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Cautions:
    """Warns of each message once, and counts the calls of FAMO since its last ``update``."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self.calls = 0

    def warn(self, message: str | None) -> None:
        """Warn at the user's line, once for each message. None does nothing."""
        if message is None:
            return
        if torch.compiler.is_compiling():
            warn_user(message)
        elif message not in self._known:
            self._known.add(message)
            warn_user(message)

    def count_call(self) -> None:
        """Warn of the hundredth call without an update."""
        if torch.compiler.is_compiling():
            return
        self.calls += 1
        if self.calls == 100:
            self.warn(
                "FAMO learned nothing from its last 100 calls in training: call `scalarizer.update("
                "lambda: losses_of(batch))` after the optimizer's step, at the latest after every "
                "tenth."
            )


def wasted_call(
    method: str, losses: Tensor, training: bool, parameters: Mapping[str, Any], buffers: object
) -> str | None:
    """The network or the task weights cannot learn from this call, made with gradients enabled."""
    if not training and buffers and losses.requires_grad:
        return (
            f"{method} does not learn in `eval()`, and the losses require gradients: call "
            "`scalarizer.train()` in training, and in evaluation use `torch.no_grad()` or detach "
            "the losses."
        )
    if training and parameters and not losses.requires_grad:
        return (
            "The losses carry no gradient, so that the network learns nothing: combine them "
            "by `torch.stack(losses)`, not by `torch.tensor(losses)`."
        )
    # `functional_call` puts tensors in the place of parameters.
    frozen = [isinstance(p, nn.Parameter) and not p.requires_grad for p in parameters.values()]
    if training and frozen and all(frozen):
        return (
            f"The parameters of {method} are frozen: call `scalarizer.eval()` if they should be, "
            "or `scalarizer.requires_grad_()`."
        )
    return None


def called_in_eval(method: str, verb: str, training: bool) -> str | None:
    """``update`` or ``step`` is called in ``eval()``, and does nothing."""
    done = f"`{verb}` did nothing, for {method} is in `eval()`"
    return None if training else f"{done}: call `scalarizer.train()` before it."


def ranks_alone(method: str) -> str | None:
    """Each rank balances by its own losses alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return None
    return (
        f"{method} is not synchronized: each of the {dist.get_world_size()} ranks balances by its "
        "own losses alone. Call `scalarizer.synchronize()` on every rank, once it is made."
    )


def constant_for_absent(losses: Mapping[str, Tensor]) -> str | None:
    """A constant stands in place of a task that is absent from the batch."""
    constants = [name for name, loss in losses.items() if not loss.requires_grad]
    if not constants or len(constants) == len(losses.keys()):
        return None
    return (
        f"The loss of task {constants[0]!r} carries no gradient, but others do. If this batch "
        "lacks the task, leave it out of the mapping: a 0 in its place is a loss of 0."
    )


def unlikely_shape(losses: Tensor, shape: tuple[int, ...] | None) -> str | None:
    """No shape was given, and these losses were summed before, or not averaged over the batch."""
    if shape is not None or (losses.ndim == 1 and len(losses) > 1):
        return None
    found = f"The losses have the shape {tuple(losses.shape)}"
    if losses.numel() == 1:
        return (
            f"{found}: a single loss, which balances nothing. Pass one loss for each task, "
            "`torch.stack(losses)`."
        )
    return (
        f"{found}, and each entry is a task. If the first dimension is the batch, take the mean "
        f"over it; if not, pass `shape={tuple(losses.shape)}` to the constructor."
    )


def losses_of_the_call(losses: object, last: tuple[Any, ...] | None) -> str | None:
    """``update`` is given the very losses of the last call."""
    if not last or not isinstance(losses, Tensor) or losses.data_ptr() != last[0].data_ptr():
        return None
    return (
        "`update` was given the losses of the last call: compute the losses of the batch again, "
        "after the optimizer's step."
    )


def looks_like_tasks(method: str, argument: str, value: object) -> str | None:
    """An int above 1 in another argument is probably meant as the number of tasks."""
    if isinstance(value, Tensor) or not isinstance(value, SupportsIndex) or int(value) < 2:
        return None
    return (
        f"{method} has the {argument} {value} and no shape. If {value} is the number of "
        f"tasks, pass `shape={value}`; if not, `{argument}={value}.0`."
    )
