r"""IMTL-L: each loss is multiplied by a learned scale."""

import torch
from torch import Tensor

from ._checks import check_scalar, check_tensors
from ._precision import in_common_dtype, plus
from ._presence import fill_absent
from ._priorities import prioritised, times


def imtll_loss(
    losses: Tensor,
    log_scale: Tensor,
    *,
    priorities: float | Tensor = 1.0,
    eps: float | Tensor = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by the loss balance of Impartial Multi-Task Learning (IMTL-L).

    .. math::
        \sum_i p_i \left( e^{s_i} (\ell_i + \epsilon) - s_i \right)

    This is twice :func:`uw_loss` at the negated parameter:
    ``imtll_loss(losses, s) == 2 * uw_loss(losses, -s)``. The scalar can be negative.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        log_scale: the logarithms :math:`s` of the scales, of shape S; learned, any real number.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        eps: :math:`\epsilon`, non-negative, a number or a 0-d tensor: the size below which a loss
            does not matter. It bounds the weight of a loss that reaches 0.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``log_scale``, at least float32.

    Raises:
        ValueError: ``eps`` is negative.

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang. Towards Impartial Multi-Task Learning.
        ICLR 2021. https://openreview.net/forum?id=IMPnRXEWpvr

    Example:
        >>> losses = torch.tensor([4.0, 1.0])
        >>> imtll_loss(losses, log_scale=torch.zeros(2))
        tensor(5.)
        >>> imtll_loss(losses, log_scale=-losses.log())  # every scaled loss is 1
        tensor(3.3863)
    """
    check_tensors(mask, log_scale=log_scale, losses=losses)
    check_scalar("eps", eps)
    losses, log_scale = in_common_dtype(losses, log_scale)
    priorities, mask = prioritised(losses, priorities, mask)
    losses = fill_absent(plus(losses, eps), 0.0, mask=mask)
    log_scale = fill_absent(log_scale, 0.0, mask=mask)
    return times(torch.exp(log_scale) * losses - log_scale, priorities).sum()


def imtll_weights(
    log_scale: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""The task weights of IMTL-L: the derivative of :func:`imtll_loss` in each loss.

    .. math::
        p_i e^{s_i}

    Args:
        log_scale: the logarithms :math:`s` of the scales, of any shape S.
        priorities: :math:`p`, of shape S, or one number for all.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, non-negative, in the dtype of ``log_scale``, at least float32.

    Example:
        >>> imtll_weights(torch.tensor([0.0, -2.0]))
        tensor([1.0000, 0.1353])
    """
    check_tensors(mask, log_scale=log_scale)
    (log_scale,) = in_common_dtype(log_scale)
    priorities, mask = prioritised(log_scale, priorities, mask)
    log_scale = fill_absent(log_scale, 0.0, mask=mask)
    return fill_absent(times(torch.exp(log_scale), priorities), 0.0, mask=mask)
