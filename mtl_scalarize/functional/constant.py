r"""The weighted sum, the mean, and the weights of both."""

import torch
from torch import Tensor

from ._checks import check_tensors
from ._precision import in_common_dtype
from ._presence import fill_absent
from ._priorities import prioritised, times, total


def constant_combine(
    losses: Tensor,
    weights: Tensor | None = None,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by given weights.

    .. math::
        \sum_i p_i w_i \ell_i

    The derivative in the losses is :func:`constant_weights`.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        weights: the task weights :math:`w`, of shape S, any real numbers, computed by a formula, as
            those of :func:`dwa_weights`. None: 1 for each task.
        priorities: :math:`p`, of shape S, or one number for all: weights of your own.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``weights``, at least float32.

    Example:
        >>> constant_combine(torch.tensor([4.0, 1.0]), priorities=torch.tensor([0.5, 2.0]))
        tensor(4.)
    """
    if weights is None:
        check_tensors(mask, losses=losses)
        (losses,) = in_common_dtype(losses)
    else:
        check_tensors(mask, weights=weights, losses=losses)
        losses, weights = in_common_dtype(losses, weights)
    priorities, mask = prioritised(losses, priorities, mask)
    losses = times(fill_absent(losses, 0.0, mask=mask), priorities)
    return (losses if weights is None else fill_absent(weights, 0.0, mask=mask) * losses).sum()


def constant_weights(
    weights: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""The task weights of :func:`constant_combine`: its derivative in each loss.

    .. math::
        p_i w_i

    Args:
        weights: the weights :math:`w`, of any shape S.
        priorities: :math:`p`, of shape S, or one number for all.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``weights``, at least float32.

    Example:
        >>> constant_weights(torch.tensor([0.5, 1.5]), priorities=torch.tensor([2.0, 1.0]))
        tensor([1.0000, 1.5000])
    """
    check_tensors(mask, weights=weights)
    (weights,) = in_common_dtype(weights)
    priorities, mask = prioritised(weights, priorities, mask)
    return fill_absent(times(weights, priorities), 0.0, mask=mask)


def sum_weights(
    losses: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""The task weights of the sum: 1 for every task, or its priority.

    Args:
        losses: of any shape S. The values are not read.
        priorities: :math:`p`, of shape S, or one number for all.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses``, at least float32.

    Example:
        >>> sum_weights(torch.tensor([4.0, 1.0]))
        tensor([1., 1.])
    """
    check_tensors(mask, losses=losses)
    return constant_weights(torch.ones_like(losses), priorities=priorities, mask=mask)


def mean_combine(
    losses: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""Combine the losses by their mean, over the tasks that are present.

    .. math::
        \frac{\sum_i p_i \ell_i}{\sum_i p_i}

    Only ratios of the priorities matter.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        priorities: :math:`p`, of shape S, or one number for all.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses``, at least float32; 0 if every task is
        absent.

    Example:
        >>> mean_combine(torch.tensor([4.0, 1.0]), priorities=torch.tensor([1.0, 2.0]))
        tensor(2.)
    """
    check_tensors(mask, losses=losses)
    (losses,) = in_common_dtype(losses)
    priorities, mask = prioritised(losses, priorities, mask)
    losses = times(fill_absent(losses, 0.0, mask=mask), priorities)
    return (losses / total(losses, priorities, mask=mask)).sum()


def mean_weights(
    losses: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""The task weights of :func:`mean_combine`: its derivative in each loss.

    .. math::
        \frac{p_i}{\sum_j p_j}

    Args:
        losses: of any shape S. The values are not read.
        priorities: :math:`p`, of shape S, or one number for all.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses``, at least float32. Their sum is 1, and 0
        if every task is absent.

    Example:
        >>> mean_weights(torch.tensor([4.0, 1.0]))
        tensor([0.5000, 0.5000])
    """
    check_tensors(mask, losses=losses)
    (weights,) = in_common_dtype(torch.ones_like(losses))
    priorities, mask = prioritised(weights, priorities, mask)
    weights = times(weights, priorities) / total(weights, priorities, mask=mask)
    return fill_absent(weights, 0.0, mask=mask)
