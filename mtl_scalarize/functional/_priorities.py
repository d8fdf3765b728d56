"""Priorities: how much more the user wants of one task than of another."""

from torch import Tensor

from ._checks import check_priorities, check_scalar_or_shape, check_tensors
from ._precision import in_common_dtype, scalar_in
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


def preferred(
    losses: Tensor,
    weights: float | Tensor | None,
    priorities: float | Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, float | Tensor, Tensor | None]:
    """The losses, the preference that weights and priorities make, and the mask of `prioritised`.

    Without weights, a task's is 1/m, if m are present.
    """
    several = {"weights": weights} if isinstance(weights, Tensor) and weights.ndim else {}
    check_tensors(mask, losses=losses, **several)
    check_scalar_or_shape("weights", 1.0 if weights is None else weights, losses.shape, "losses")
    losses, *given = in_common_dtype(losses, *several.values())
    priorities, mask = prioritised(losses, priorities, mask)
    preference: float | Tensor
    if weights is None:
        preference = 1 / total(losses, 1.0, mask=mask)
    elif given:
        preference = fill_absent(given[0], 0.0, mask=mask)
    else:
        preference = scalar_in(losses.dtype, weights)
    if isinstance(priorities, Tensor):
        preference = preference * priorities
    return losses, preference, mask
