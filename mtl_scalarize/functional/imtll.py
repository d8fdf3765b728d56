r"""IMTL-L: each loss is multiplied by a learned scale."""

import torch
from torch import Tensor

from .checks import check_tensors
from .precision import at_least_float32
from .presence import fill_absent, where_present


def imtll_loss(losses: Tensor, log_scale: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Combine the losses by the loss balance of Impartial Multi-Task Learning (IMTL-L).

    .. math::
        \sum_i \left( e^{s_i} \ell_i - s_i \right)

    It is :func:`uw_loss` twice over with the sign of :math:`s` turned:
    ``imtll_loss(losses, s) == 2 * uw_loss(losses, -s)``. The scalar can be negative.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        log_scale: the logarithms :math:`s` of the scales, of shape S; learned, any real number.
        mask: boolean, of shape S, True where the task is present. An absent task contributes
            nothing to the scalar nor to any gradient, whatever its loss. None: all are present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``log_scale``, at least float32.

    Raises:
        TypeError: ``losses`` or ``log_scale`` is not a floating-point tensor.
        ValueError: the shapes differ, or ``mask`` is not boolean.

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
    losses, log_scale = where_present(losses, log_scale, mask)
    # exp(s) = exp(c) * exp(s - c), for a constant c: alone it would overflow where its product with
    # a tiny loss does not.
    half = 0.5 * log_scale.detach()
    scaled = (torch.exp(half) * losses) * torch.exp(log_scale - half)
    return (scaled - log_scale).sum()


def imtll_weights(log_scale: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""The task weights of IMTL-L: the derivative of :func:`imtll_loss` in each loss.

    .. math::
        e^{s_i}

    Args:
        log_scale: the logarithms :math:`s` of the scales, of any shape S.
        mask: boolean, of shape S, True where the task is present; the others weigh 0.

    Returns:
        The weights, of shape S, in the dtype of ``log_scale``, at least float32.

    Raises:
        TypeError: ``log_scale`` is not a floating-point tensor.
        ValueError: ``mask`` is not boolean or not of shape S.

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang. Towards Impartial Multi-Task Learning.
        ICLR 2021. https://openreview.net/forum?id=IMPnRXEWpvr

    Example:
        >>> imtll_weights(torch.tensor([0.0, -2.0]))
        tensor([1.0000, 0.1353])
    """
    check_tensors(mask, log_scale=log_scale)
    root = torch.exp(0.5 * log_scale.to(at_least_float32(log_scale.dtype)))
    return fill_absent(mask, root * root, 0.0)


def imtll_loss_and_weights(
    losses: Tensor, log_scale: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """:func:`imtll_loss` of ``losses + eps``, and its (constant) weights, for modules.

    They keep to scales that are finite; one factor takes 8 us less than two.
    """
    check_tensors(mask, log_scale=log_scale, losses=losses)
    losses, log_scale = where_present(losses, log_scale, mask, eps)
    scale = torch.exp(log_scale)
    return (scale * losses - log_scale).sum(), fill_absent(mask, scale.detach(), 0.0)
