r"""UW (Uncertainty Weighting): each loss is divided by a learned variance."""

import torch
from torch import Tensor

from ._checks import check_scalar, check_tensors
from ._precision import in_common_dtype, plus
from ._presence import fill_absent
from ._priorities import prioritised, times


def uw_loss(
    losses: Tensor,
    log_var: Tensor,
    *,
    priorities: float | Tensor = 1.0,
    eps: float | Tensor = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by Uncertainty Weighting (UW).

    .. math::
        \tfrac{1}{2} \sum_i p_i \left( e^{-s_i} (\ell_i + \epsilon) + s_i \right),
        \qquad s_i = \log \sigma_i^2

    At its optimum in :math:`s`, :math:`s_i = \log \ell_i` whatever the priorities :math:`p`, this
    is :math:`\frac{1}{2} \sum_i p_i (1 + \log \ell_i)`: training with UW minimises the geometric
    mean of the losses. The scalar can therefore be negative.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        log_var: the log-variances :math:`s`, of shape S; learned, any real number.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        eps: :math:`\epsilon`, non-negative, a number or a 0-d tensor: the size below which a loss
            does not matter. It bounds the weight of a loss that reaches 0.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``log_var``, at least float32.

    Raises:
        ValueError: ``eps`` is negative.

    References:
        Kendall, Gal and Cipolla. Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
        Geometry and Semantics. CVPR 2018. https://arxiv.org/abs/1705.07115

    Example:
        >>> losses = torch.tensor([4.0, 1.0])
        >>> uw_loss(losses, log_var=torch.zeros(2))
        tensor(2.5000)
        >>> uw_loss(losses, log_var=losses.log())  # the optimum in log_var
        tensor(1.6931)
    """
    check_tensors(mask, log_var=log_var, losses=losses)
    check_scalar("eps", eps)
    losses, log_var = in_common_dtype(losses, log_var)
    priorities, mask = prioritised(losses, priorities, mask)
    losses = fill_absent(plus(losses, eps), 0.0, mask=mask)
    log_var = fill_absent(log_var, 0.0, mask=mask)
    return times(torch.exp(-log_var) * losses + log_var, priorities).sum() / 2


def uw_weights(
    log_var: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""The task weights of UW: the derivative of :func:`uw_loss` in each loss.

    .. math::
        \tfrac{1}{2} p_i e^{-s_i}

    Args:
        log_var: the log-variances :math:`s`, of any shape S.
        priorities: :math:`p`, of shape S, or one number for all.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, non-negative, in the dtype of ``log_var``, at least float32.

    Example:
        >>> uw_weights(torch.tensor([0.0, 2.0]))
        tensor([0.5000, 0.0677])
    """
    check_tensors(mask, log_var=log_var)
    (log_var,) = in_common_dtype(log_var)
    priorities, mask = prioritised(log_var, priorities, mask)
    log_var = fill_absent(log_var, 0.0, mask=mask)
    return fill_absent(times(torch.exp(-log_var) / 2, priorities), 0.0, mask=mask)
