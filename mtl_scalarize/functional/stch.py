r"""STCH (smooth Tchebycheff): a smooth maximum of the losses."""

from torch import Tensor

from .checks import check_scalar, check_scalar_or_shape, check_tensors
from .constant import mean_weights
from .precision import in_common_dtype, scalar_in
from .presence import fill_absent, logsumexp, softmax, zero_if_none


def stch(
    losses: Tensor,
    mu: float | Tensor,
    weights: Tensor | None = None,
    reference: float | Tensor = 0.0,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by smooth Tchebycheff scalarization (STCH).

    .. math::
        \mu \log \sum_i \exp \left( \frac{\lambda_i (\ell_i - z_i)}{\mu} \right)

    A smooth upper bound of :math:`\max_i \lambda_i (\ell_i - z_i)`: the smaller :math:`\mu`, the
    closer.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        mu: the smoothing :math:`\mu > 0`, a number or a 0-d tensor, in the unit of the losses times
            their preference. The paper uses 0.01 to 1.
        weights: the preference :math:`\lambda`, of shape S. None: :math:`1/m` for each of the m
            tasks that are present.
        reference: the ideal point :math:`z`, of shape S, or one number for all.
        mask: boolean, of shape S, True where the task is present. An absent task contributes
            nothing to the scalar or to any gradient, whatever its loss. None: all are present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``weights``, at least float32. It is
        0 if every task is absent.

    Raises:
        TypeError: ``losses`` or ``weights`` is not a floating-point tensor.
        ValueError: the shapes differ, ``mask`` is not boolean, or ``mu`` is not positive.

    References:
        Lin, Zhang, Yang, Liu, Wang and Zhang. Smooth Tchebycheff Scalarization for Multi-Objective
        Optimization. ICML 2024. https://arxiv.org/abs/2402.19078

    Example:
        >>> import torch
        >>> losses = torch.tensor([4.0, 1.0])
        >>> stch(losses, mu=1.0), stch(losses, mu=0.01)
        (tensor(2.2014), tensor(2.))
    """
    exponents, _ = _exponents(losses, mu, weights, reference, mask)
    smooth = scalar_in(exponents.dtype, mu) * logsumexp(exponents, mask=mask)
    return zero_if_none(smooth, exponents, mask=mask)


def stch_weights(
    losses: Tensor,
    mu: float | Tensor,
    weights: Tensor | None = None,
    reference: float | Tensor = 0.0,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of :func:`stch`: its derivative in each loss.

    .. math::
        \lambda \, \mathrm{softmax} \left( \frac{\lambda (\ell - z)}{\mu} \right)

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        mu: the smoothing :math:`\mu > 0`, a number or a 0-d tensor.
        weights: the preference :math:`\lambda`, of shape S. None: :math:`1/m` for each of the m
            tasks that are present.
        reference: the ideal point :math:`z`, of shape S, or one number for all.
        mask: boolean, of shape S, True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses`` and ``weights``, at least float32.

    Raises:
        TypeError: ``losses`` or ``weights`` is not a floating-point tensor.
        ValueError: the shapes differ, ``mask`` is not boolean, or ``mu`` is not positive.

    Example:
        >>> import torch
        >>> stch_weights(torch.tensor([4.0, 1.0]), mu=1.0)
        tensor([0.4088, 0.0912])
    """
    exponents, preference = _exponents(losses, mu, weights, reference, mask)
    return fill_absent(preference * softmax(exponents, mask=mask), 0.0, mask=mask)


def _exponents(
    losses: Tensor,
    mu: float | Tensor,
    weights: Tensor | None,
    reference: float | Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    r""":math:`\lambda (\ell - z) / \mu`, and :math:`\lambda`."""
    preference = mean_weights(losses, mask=mask) if weights is None else weights
    check_tensors(mask, losses=losses, weights=preference)
    check_scalar("mu", mu, positive=True)
    check_scalar_or_shape("reference", reference, losses.shape, "losses")
    losses, preference = in_common_dtype(losses, preference)
    above = fill_absent(losses - scalar_in(losses.dtype, reference), 0.0, mask=mask)
    return preference * above / scalar_in(losses.dtype, mu), preference
