r"""COSMOS: the weighted sum, and a reward for losses in the ratio of the weights."""

import torch
from torch import Tensor

from ._checks import check_scalar
from ._directions import length_and_direction
from ._precision import scalar_in
from ._presence import fill_absent
from ._priorities import preferred


def cosmos(
    losses: Tensor,
    lambda_: float | Tensor,
    weights: float | Tensor,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by COSMOS.

    .. math::
        r \cdot \ell - \lambda \frac{r \cdot \ell}{\|r\| \, \|\ell\|}, \qquad r = p \, w

    The fraction is the cosine of the angle between losses and preference: the larger
    :math:`\lambda`, the more the losses end in the ratio of the preference.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        lambda_: :math:`\lambda`, non-negative, a number or a 0-d tensor. The paper uses 0.01 to 8.
        weights: :math:`w`, of shape S, or one number for all, non-negative: the preference. To
            train for all trade-offs, draw it for each batch from a Dirichlet distribution, as in
            the paper, and let the model see it; or give each member of a ``vmap`` its own.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``weights``, at least float32.

    Raises:
        ValueError: ``lambda_`` is negative.

    References:
        Ruchte and Grabocka. Scalable Pareto Front Approximation for Deep Multi-Objective Learning.
        ICDM 2021. https://arxiv.org/abs/2103.13392

    Example:
        >>> cosmos(torch.tensor([4.0, 3.0]), lambda_=1.0, weights=torch.tensor([0.8, 0.6]))
        tensor(4.)
    """
    losses, preference, _ = _losses_and_preference(losses, lambda_, weights, priorities, mask)
    (_, along), (_, wanted) = length_and_direction(losses), length_and_direction(preference)
    cosine = (along * wanted).sum()
    return (preference * losses).sum() - scalar_in(losses.dtype, lambda_) * cosine


def cosmos_weights(
    losses: Tensor,
    lambda_: float | Tensor,
    weights: float | Tensor,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of :func:`cosmos`: its derivative in each loss.

    .. math::
        r - \frac{\lambda}{\|\ell\|} \left( \hat r - (\hat r \cdot \hat\ell) \, \hat\ell \right),
        \qquad \hat r = \frac{r}{\|r\|}, \quad \hat\ell = \frac{\ell}{\|\ell\|}

    A weight is negative where the loss is small for its preference.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        lambda_: :math:`\lambda`, non-negative, a number or a 0-d tensor.
        weights: :math:`w`, of shape S, or one number for all.
        priorities: :math:`p`, of shape S, or one number for all.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses`` and ``weights``, at least float32.

    Raises:
        ValueError: ``lambda_`` is negative.

    Example:
        >>> cosmos_weights(torch.tensor([4.0, 3.0]), lambda_=1.0, weights=torch.tensor([1.0, 0.0]))
        tensor([0.9280, 0.0960])
    """
    losses, preference, mask = _losses_and_preference(losses, lambda_, weights, priorities, mask)
    (length, along), (_, wanted) = length_and_direction(losses), length_and_direction(preference)
    across = wanted - (along * wanted).sum() * along
    slopes = preference - scalar_in(losses.dtype, lambda_) * across / length
    return fill_absent(slopes, 0.0, mask=mask)


def _losses_and_preference(
    losses: Tensor,
    lambda_: float | Tensor,
    weights: float | Tensor,
    priorities: float | Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both of shape S, 0 for an absent task, and the mask."""
    check_scalar("lambda_", lambda_)
    losses, preference, mask = preferred(losses, weights, priorities, mask)
    losses = fill_absent(losses, 0.0, mask=mask)
    return losses, fill_absent(preference * torch.ones_like(losses), 0.0, mask=mask), mask
