r"""PBI: how far the losses are along a direction, and how far beside it."""

import torch
from torch import Tensor

from ._checks import check_scalar, check_scalar_or_shape
from ._directions import length_and_direction
from ._precision import plus, scalar_in
from ._presence import fill_absent
from ._priorities import preferred

# Beside the direction, in quadrature, times the largest distance: where the losses are on the
# direction, rounding alone would be a step of full length.
EPS = 1e-6


def pbi(
    losses: Tensor,
    theta: float | Tensor,
    weights: float | Tensor,
    reference: float | Tensor = 0.0,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by Penalty-based Boundary Intersection (PBI).

    .. math::
        d_1 + \theta \, d_2, \qquad d_1 = (\ell - z) \cdot \hat r, \quad
        d_2 = \| \ell - z - d_1 \hat r \|, \qquad \hat r = \frac{p \, w}{\|p \, w\|}

    The larger :math:`\theta`, the more the losses end on the ray from :math:`z` in the direction of
    the preference. A millionth of the largest :math:`|\ell_i - z_i|` is added to :math:`d_2` in
    quadrature, so that its gradient fades on the ray.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        theta: :math:`\theta`, non-negative, a number or a 0-d tensor. The paper uses 5.
        weights: :math:`w`, of shape S, or one number for all, non-negative: the direction.
        reference: the ideal point :math:`z`, of shape S, or one number for all, below the losses.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``weights``, at least float32.

    Raises:
        ValueError: ``theta`` is negative.

    References:
        Zhang and Li. MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition. IEEE
        Transactions on Evolutionary Computation 2007. https://doi.org/10.1109/TEVC.2007.892759

    Example:
        >>> pbi(torch.tensor([4.0, 3.0]), theta=5.0, weights=torch.tensor([1.0, 0.0]))
        tensor(19.)
    """
    along, _, beside, _, _ = _decomposed(losses, theta, weights, reference, priorities, mask)
    return along + scalar_in(along.dtype, theta) * beside


def pbi_weights(
    losses: Tensor,
    theta: float | Tensor,
    weights: float | Tensor,
    reference: float | Tensor = 0.0,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of :func:`pbi`: its derivative in each loss.

    .. math::
        \hat r + \frac{\theta}{d_2} \left( \ell - z - d_1 \hat r \right)

    A weight is negative where the loss is small for its preference.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        theta: :math:`\theta`, non-negative, a number or a 0-d tensor.
        weights: :math:`w`, of shape S, or one number for all.
        reference: the ideal point :math:`z`, of shape S, or one number for all.
        priorities: :math:`p`, of shape S, or one number for all.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses`` and ``weights``, at least float32.

    Raises:
        ValueError: ``theta`` is negative.

    Example:
        >>> pbi_weights(torch.tensor([4.0, 3.0]), theta=5.0, weights=torch.tensor([1.0, 0.0]))
        tensor([1., 5.])
    """
    parts = _decomposed(losses, theta, weights, reference, priorities, mask)
    _, direction, beside, perpendicular, mask = parts
    perpendicular = perpendicular - (perpendicular * direction).sum() * direction
    inverse = torch.where(beside == 0, 0.0, 1 / beside)
    slopes = direction + scalar_in(direction.dtype, theta) * inverse * perpendicular
    return fill_absent(slopes, 0.0, mask=mask)


def _decomposed(
    losses: Tensor,
    theta: float | Tensor,
    weights: float | Tensor,
    reference: float | Tensor,
    priorities: float | Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    r""":math:`d_1`, :math:`\hat r`, :math:`d_2`, the vector of which it is the length, the mask."""
    check_scalar("theta", theta)
    losses, preference, mask = preferred(losses, weights, priorities, mask)
    check_scalar_or_shape("reference", reference, losses.shape, "losses")
    distances = fill_absent(plus(losses, -reference), 0.0, mask=mask)
    preference = fill_absent(preference * torch.ones_like(distances), 0.0, mask=mask)
    _, direction = length_and_direction(preference)
    along = (distances * direction).sum()
    perpendicular = distances - along * direction
    largest = distances.detach().abs().max()
    scaled = perpendicular / torch.where(largest == 0, 1.0, largest)
    beside = largest * (scaled.square().sum() + EPS**2).sqrt()
    return along, direction, beside, perpendicular, mask
