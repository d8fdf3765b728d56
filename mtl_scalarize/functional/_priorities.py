"""Priorities: how much more the user wants of one task than of another."""

from torch import Tensor

from ._checks import check_priorities
from ._presence import fill_absent


def prioritised(
    losses: Tensor, priorities: float | Tensor, mask: Tensor | None
) -> tuple[float | Tensor, Tensor | None]:
    """The priorities like ``losses``, 0 for absent tasks, and the mask without those that have 0.

    The number 1 is returned as it is, for :func:`times` and :func:`total`: it costs no operation.
    """
    if not isinstance(priorities, Tensor) and priorities == 1:
        return 1.0, mask
    check_priorities("priorities", priorities, losses.shape, "losses")
    if isinstance(priorities, Tensor):
        priorities = priorities.to(losses.dtype).expand(losses.shape)
    else:
        priorities = losses.new_full(losses.shape, priorities)
    priorities = fill_absent(priorities, 0.0, mask=mask)
    return priorities, priorities != 0


def times(tensor: Tensor, priorities: float | Tensor) -> Tensor:
    """``tensor`` times the priorities that :func:`prioritised` returned."""
    return tensor * priorities if isinstance(priorities, Tensor) else tensor


def total(losses: Tensor, priorities: float | Tensor, *, mask: Tensor | None) -> int | Tensor:
    """Sum of the priorities of the present tasks, to divide a tensor of shape S by; 1 if none is.

    Under a compiled ``vmap`` over another number of tasks, neither a mean nor the division of a 0-d
    tensor works.
    """
    if mask is None:
        return losses.numel()
    if not isinstance(priorities, Tensor):
        return mask.sum().clamp(min=1).to(losses.dtype)
    return fill_absent(fill_absent(priorities, 0.0, mask=mask).sum(), 1.0, mask=mask.any())
