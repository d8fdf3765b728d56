"""Which tasks are present in a batch, and what takes the place of those that are not."""

import torch
from torch import Tensor


def fill_absent(tensor: Tensor, value: float, *, mask: Tensor | None) -> Tensor:
    """``tensor`` with ``value`` where ``mask`` is False; no gradient flows to those entries.

    Fill the *inputs* of a formula, not its result: if a nan enters the formula, the backward pass
    returns nan even for an entry whose result is masked, because ``0 * nan`` is nan.

    Args:
        tensor: of shape S.
        value: what an absent entry becomes.
        mask: True where the task is present.

    Returns:
        A tensor of shape S.

    Example:
        >>> fill_absent(torch.tensor([1.0, torch.nan]), 0.0, mask=torch.tensor([True, False]))
        tensor([1., 0.])
    """
    return tensor if mask is None else torch.where(mask, tensor, value)


def finite_and_present(losses: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The tasks that a state function may learn from, and the losses with 0 for the others.

    A state function learns from a task if it is present and its loss is finite.

    Args:
        losses: of any shape S.
        mask: True where the task is present.

    Returns:
        A boolean tensor of shape S, and the losses, of shape S, all finite.

    Example:
        >>> finite_and_present(torch.tensor([1.0, torch.nan]))
        (tensor([ True, False]), tensor([1., 0.]))
    """
    losses = fill_absent(losses, 0.0, mask=mask)
    finite = torch.nan_to_num(losses, nan=0.0, posinf=0.0, neginf=0.0)
    where = finite == losses
    return where if mask is None else where & mask, finite


def zero_if_none(scalar: Tensor, *, mask: Tensor | None) -> Tensor:
    """``scalar``, and 0 if no task is present."""
    return scalar if mask is None else fill_absent(scalar, 0.0, mask=mask.any())


def softmax(logits: Tensor, *, mask: Tensor | None) -> Tensor:
    """Softmax over all entries where ``mask`` is True. Absent entries get 0.

    If every entry is absent, the result is uniform: the smallest finite number takes the place of
    an absent logit, because minus infinity would make that case nan, backward pass included.
    """
    if mask is not None:
        logits = fill_absent(logits, torch.finfo(logits.dtype).min, mask=mask)
    if logits.ndim <= 1:
        return torch.softmax(logits, 0)
    return torch.softmax(logits.flatten(), 0).reshape(logits.shape)


def convex_weights(logits: Tensor, *, mask: Tensor | None) -> Tensor:
    """Softmax that sums to 1 for any number of entries. torch's is off by 1e-4 for 10 million."""
    weights = softmax(logits, mask=mask)
    return weights / weights.sum()


def largest(tensor: Tensor, *, mask: Tensor | None) -> Tensor:
    """Largest entry where ``mask`` is True, detached.

    Subtracted before the division by a small number, it keeps exponents from overflowing.
    """
    return fill_absent(tensor.detach(), torch.finfo(tensor.dtype).min, mask=mask).max()


def logsumexp(exponents: Tensor, *, mask: Tensor | None) -> Tensor:
    """Logarithm of the sum of the exponentials where ``mask`` is True; 0 if that is nowhere.

    The largest exponent is 0, so that the sum is at least 1. `torch.logsumexp` exports no
    data-dependent number of tasks.
    """
    exponents = fill_absent(exponents, torch.finfo(exponents.dtype).min, mask=mask)
    total = exponents.exp().sum()
    return (total if mask is None else fill_absent(total, 1.0, mask=mask.any())).log()
