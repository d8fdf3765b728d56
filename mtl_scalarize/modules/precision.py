"""State is at least float32: it stays so under ``.half()``, and is refused below it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..functional._checks import check_device
from .names import Losses


def keeping_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a conversion such as ``.half()`` so that its result is at least float32."""

    def convert(tensor: Tensor) -> Tensor:
        new = fn(tensor)
        below = tensor.is_floating_point() and new.itemsize < 4
        return tensor.to(new.device, torch.float32) if below else new

    return convert


def check_kept(state: Mapping[str, Tensor | None], losses: Tensor) -> None:
    """Check that nothing around a module has cast its state below float32, or left it behind.

    Raises:
        ValueError: a tensor is of a smaller dtype, or not on the device of the losses.
    """
    for name, tensor in state.items():
        if tensor is None:
            continue
        check_device("losses", losses, tensor.device, "call `scalarizer.to(losses.device)`")
        if tensor.itemsize < 4 and tensor.is_floating_point():
            raise ValueError(
                f"`{name}` should be at least float32. Found `{name}.dtype = {tensor.dtype}`: keep "
                "the scalarizer outside of the module that is wrapped or cast."
            )


def examine_loaded(module: Any, *_: object) -> None:
    """Hook for ``load_state_dict``: the state may have another dtype now."""
    module._examined.clear()


def computed(losses: Losses | Callable[[], Losses]) -> Losses:
    """The losses, computed now and without gradients if a function is given."""
    if isinstance(losses, (Tensor, Mapping)) or not callable(losses):
        return losses
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()  # autocast keeps the network's weights of before the step
    with torch.no_grad():
        found = losses()
    if found is None:
        raise TypeError("`losses` should return the losses. Found a function that returns None.")
    return found
