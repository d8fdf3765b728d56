r"""Uncertainty Weighting: each loss is divided by a learned variance."""

import torch
from torch import Tensor

from .checks import check_tensors
from .precision import at_least_float32
from .presence import fill_absent, sum_of_products, where_present


def uw_loss(losses: Tensor, log_var: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Combine the losses by Uncertainty Weighting (UW).

    .. math::
        \sum_i \left( \tfrac{1}{2} e^{-s_i} \ell_i + \tfrac{1}{2} s_i \right),
        \qquad s_i = \log \sigma_i^2

    At its optimum in :math:`s`, :math:`s_i = \log \ell_i`, this is
    :math:`\frac{1}{2} \sum_i (1 + \log \ell_i)`: training with UW minimises the geometric mean of
    the losses. The scalar can therefore be negative.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        log_var: the log-variances :math:`s`, of shape S; learned, any real number.
        mask: boolean, of shape S, True where the task is present. An absent task contributes
            nothing to the scalar nor to any gradient, whatever its loss. None: all are present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``log_var``, at least float32.

    Raises:
        TypeError: ``losses`` or ``log_var`` is not a floating-point tensor.
        ValueError: the shapes differ, or ``mask`` is not boolean.

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
    losses, log_var = where_present(losses, log_var, mask)
    # exp(-s) = exp(-c) * exp(c - s), for a constant c: alone it would overflow where its product
    # with a tiny loss does not.
    half = 0.5 * log_var.detach()
    scaled = (0.5 * torch.exp(-half) * losses) * torch.exp(half - log_var)
    return torch.add(scaled, log_var, alpha=0.5).sum()


def uw_weights(log_var: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""The task weights of UW: the derivative of :func:`uw_loss` in each loss.

    .. math::
        \tfrac{1}{2} e^{-s_i}

    Args:
        log_var: the log-variances :math:`s`, of any shape S.
        mask: boolean, of shape S, True where the task is present; the others weigh 0.

    Returns:
        The weights, of shape S, in the dtype of ``log_var``, at least float32.

    Raises:
        TypeError: ``log_var`` is not a floating-point tensor.
        ValueError: ``mask`` is not boolean or not of shape S.

    References:
        Kendall, Gal and Cipolla. Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
        Geometry and Semantics. CVPR 2018. https://arxiv.org/abs/1705.07115

    Example:
        >>> uw_weights(torch.tensor([0.0, 2.0]))
        tensor([0.5000, 0.0677])
    """
    check_tensors(mask, log_var=log_var)
    root = torch.exp(-0.5 * log_var.to(at_least_float32(log_var.dtype)))
    return fill_absent(mask, 0.5 * root * root, 0.0)


def uw_loss_and_scale(
    losses: Tensor, log_var: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """:func:`uw_loss` of ``losses + eps``, and the (constant) scale of each loss, for modules.

    They keep to log-variances whose exponential is finite; one factor takes 6 us less than two.
    :func:`halved`, the scale is the weight: that is left to whoever reads it, which few calls need.
    """
    check_tensors(mask, log_var=log_var, losses=losses)
    losses, log_var = where_present(losses, log_var, mask, eps)
    scale = torch.exp(-log_var)
    doubled = torch.addcmul(log_var, scale, losses)
    loss = sum_of_products(doubled, torch.full_like(doubled, 0.5))
    return loss, fill_absent(mask, scale.detach(), 0.0)


def halved(scale: Tensor) -> Tensor:
    """The weights of a scale."""
    return 0.5 * scale
