r"""STCH (smooth Tchebycheff): a smooth maximum of the losses."""

from torch import Tensor

from ._checks import check_positive, check_scalar_or_shape
from ._precision import plus, scalar_in
from ._presence import fill_absent, largest, logsumexp, softmax, zero_if_none
from ._priorities import preferred


def stch(
    losses: Tensor,
    mu: float | Tensor,
    weights: float | Tensor | None = None,
    reference: float | Tensor = 0.0,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by smooth Tchebycheff scalarization (STCH).

    .. math::
        \mu \log \sum_i \exp \left( \frac{\lambda_i (\ell_i - z_i)}{\mu} \right), \qquad
        \lambda = p \, w

    A smooth upper bound of :math:`\max_i \lambda_i (\ell_i - z_i)`: the smaller :math:`\mu`, the
    closer.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        mu: the smoothing :math:`\mu > 0`, a number or a 0-d tensor, in the unit of the losses times
            their preference. The paper uses 0.01 to 1.
        weights: :math:`w`, of shape S, or one number for all. None: :math:`1/m` for each of the m
            tasks that are present.
        reference: the ideal point :math:`z`, of shape S, or one number for all.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``weights``, at least float32. It is
        0 if every task is absent.

    Raises:
        ValueError: ``mu`` is not positive.

    References:
        Lin, Zhang, Yang, Liu, Wang and Zhang. Smooth Tchebycheff Scalarization for Multi-Objective
        Optimization. ICML 2024. https://arxiv.org/abs/2402.19078

    Example:
        >>> import torch
        >>> losses = torch.tensor([4.0, 1.0])
        >>> stch(losses, mu=1.0), stch(losses, mu=0.01)
        (tensor(2.2014), tensor(2.))
    """
    distances, _, mask = _distances(losses, mu, weights, reference, priorities, mask)
    top = largest(distances, mask=mask)
    mu = scalar_in(distances.dtype, mu)
    smooth = top + mu * logsumexp((distances - top) / mu, mask=mask)
    return zero_if_none(smooth, mask=mask)


def stch_weights(
    losses: Tensor,
    mu: float | Tensor,
    weights: float | Tensor | None = None,
    reference: float | Tensor = 0.0,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of :func:`stch`: its derivative in each loss.

    .. math::
        \lambda \, \mathrm{softmax} \left( \frac{\lambda (\ell - z)}{\mu} \right), \qquad
        \lambda = p \, w

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        mu: the smoothing :math:`\mu > 0`, a number or a 0-d tensor.
        weights: :math:`w`, of shape S, or one number for all. None: :math:`1/m` for each of the m
            tasks that are present.
        reference: the ideal point :math:`z`, of shape S, or one number for all.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses`` and ``weights``, at least float32.

    Raises:
        ValueError: ``mu`` is not positive.

    Example:
        >>> import torch
        >>> stch_weights(torch.tensor([4.0, 1.0]), mu=1.0)
        tensor([0.4088, 0.0912])
    """
    distances, preference, mask = _distances(losses, mu, weights, reference, priorities, mask)
    exponents = (distances - largest(distances, mask=mask)) / scalar_in(distances.dtype, mu)
    return fill_absent(preference * softmax(exponents, mask=mask), 0.0, mask=mask)


def _distances(
    losses: Tensor,
    mu: float | Tensor,
    weights: float | Tensor | None,
    reference: float | Tensor,
    priorities: float | Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, float | Tensor, Tensor | None]:
    r""":math:`\lambda (\ell - z)`, :math:`\lambda`, and the mask as `prioritised` has it."""
    check_positive("mu", mu)
    losses, preference, mask = preferred(losses, weights, priorities, mask)
    check_scalar_or_shape("reference", reference, losses.shape, "losses")
    distances = fill_absent(plus(losses, -reference), 0.0, mask=mask)
    return preference * distances, preference, mask
