"""Which tasks are present in a batch, and what takes the place of those that are not."""

import torch
from torch import Tensor


def fill_absent(mask: Tensor | None, tensor: Tensor, value: float) -> Tensor:
    """``tensor`` with ``value`` where ``mask`` is False; no gradient flows to those entries.

    Fill the *inputs* of a formula rather than mask its result: a nan that entered would come back
    out of the backward pass as ``0 * nan``.
    """
    return tensor if mask is None else torch.where(mask, tensor, value)


def is_measured(losses: Tensor, mask: Tensor | None) -> Tensor:
    """Where a state function may learn from ``losses``: the task is present and its loss finite."""
    finite = torch.isfinite(losses)
    return finite if mask is None else finite & mask


def masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over all the elements where ``mask`` is True; 0 elsewhere, also if that is all.

    The smallest finite number stands in for minus infinity, so that a batch without any task has
    no nan even inside its backward pass.
    """
    logits = fill_absent(mask, logits, torch.finfo(logits.dtype).min)
    return fill_absent(mask, torch.softmax(logits.flatten(), 0).reshape(logits.shape), 0.0)


def weighted_sum(losses: Tensor, weights: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``sum(weights * losses)`` over the present tasks, and the weights with 0 for the absent."""
    weights = fill_absent(mask, weights, 0.0)
    return (weights * fill_absent(mask, losses, 0.0)).sum(), weights
