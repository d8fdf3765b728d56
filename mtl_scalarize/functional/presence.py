"""Which tasks are present in a batch, and what takes the place of those that are not."""

import torch
from torch import Tensor

from .precision import constant, in_common_dtype


def fill_absent(mask: Tensor | None, tensor: Tensor, value: float) -> Tensor:
    """``tensor`` with ``value`` where ``mask`` is False; no gradient flows to those entries.

    Fill the *inputs* of a formula rather than mask its result: a nan that entered would come back
    out of the backward pass as ``0 * nan``.
    """
    return tensor if mask is None else torch.where(mask, tensor, constant(value, tensor))


def where_present(
    losses: Tensor, scales: Tensor, mask: Tensor | None, eps: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``losses + eps`` and their learned scales in one dtype, both 0 where a task is absent."""
    losses, scales = in_common_dtype(losses, scales)
    if eps:
        losses = losses + constant(eps, losses)
    return fill_absent(mask, losses, 0.0), fill_absent(mask, scales, 0.0)


def measured(losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where a state function may learn from ``losses``, and the losses with 0 elsewhere.

    It may where the task is present and its loss finite: where replacing nan and infinity changes
    nothing. (Two operators; ``torch.isfinite`` alone takes four.)
    """
    losses = fill_absent(mask, losses, 0.0)
    finite = torch.nan_to_num(losses, nan=0.0, posinf=0.0, neginf=0.0)
    where = finite == losses
    return (where if mask is None else where & mask), finite


def softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over all the elements where ``mask`` is True; 0 elsewhere, unless that is all.

    The smallest finite number stands in for minus infinity, so that a batch without any task has
    no nan even inside its backward pass.
    """
    logits = fill_absent(mask, logits, torch.finfo(logits.dtype).min)
    if logits.ndim == 1:
        return torch.softmax(logits, 0)
    return torch.softmax(logits.flatten(), 0).reshape(logits.shape)


def sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """``sum(a * b)``, for vectors of up to a thousand tasks in one operator instead of two.

    Beyond that the cascaded summation of ``sum`` is the more accurate, and a compiler fuses better.
    """
    if a.ndim == 1 and not torch.compiler.is_compiling() and a.shape[0] <= 1024:
        return torch.dot(a, b)
    return (a * b).sum()
