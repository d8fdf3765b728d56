r"""LogSum: the sum of the logarithms, which does not see the units of the losses."""

from torch import Tensor

from ._bounds import EPS, above_bound
from ._checks import check_scalar, check_scalar_or_shape, check_tensors
from ._precision import in_common_dtype
from ._presence import fill_absent


def log_sum(
    losses: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    eps: float | Tensor = EPS,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by the sum of their logarithms.

    .. math::
        \sum_i \log d_i, \qquad d = \ell - b + \epsilon

    Multiplying a loss that is far above :math:`\epsilon` by a constant changes no gradient. This is
    the scale-invariant baseline (SI) of Navon et al. and the logarithmic part of DB-MTL. It is K
    times the logarithm of :func:`geometric_mean`, :func:`uw_loss` at its optimum up to a constant
    and a factor 2, and :func:`famo_combine` with equal logits up to FAMO's factor :math:`c/K`. The
    scalar can be negative.

    Args:
        losses: the losses :math:`\ell`, of any shape S, none below ``min_losses``.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        eps: :math:`\epsilon`, non-negative, a number or a 0-d tensor: below this size a loss counts
            less.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses``, at least float32. If a loss is more
        than :math:`\epsilon` below its bound, it is nan, and so is the derivative in that loss.

    References:
        Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik and Fetaya. Multi-Task Learning as a
        Bargaining Game. ICML 2022. https://arxiv.org/abs/2202.01017

        Lin, Jiang, Ye, Zhang, Chen, Chen, Liu and Kwok. Dual-Balancing for Multi-Task Learning.
        2023. https://arxiv.org/abs/2308.12029

    Example:
        >>> import torch
        >>> log_sum(torch.tensor([4.0, 1.0]))
        tensor(1.3863)
    """
    above = _above_bound(losses, min_losses, eps, mask)
    # Below the bound, the gradient of the logarithm alone is a number, by which the loss would be
    # maximised. That of minus infinity is nan.
    return (above / (above >= 0)).log().sum()


def log_sum_weights(
    losses: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    eps: float | Tensor = EPS,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of :func:`log_sum`: its derivative in each loss.

    .. math::
        \frac{1}{d_i}, \qquad d = \ell - b + \epsilon

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        eps: :math:`\epsilon`, non-negative, a number or a 0-d tensor: below this size a loss counts
            less.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses``, at least float32.

    Example:
        >>> import torch
        >>> log_sum_weights(torch.tensor([4.0, 1.0]))
        tensor([0.2500, 1.0000])
    """
    roots = _above_bound(losses, min_losses, eps, mask).sqrt()  # nan below the bound
    return fill_absent(1 / roots / roots, 0.0, mask=mask)


def _above_bound(
    losses: Tensor, min_losses: float | Tensor, eps: float | Tensor, mask: Tensor | None
) -> Tensor:
    """How far the losses are above their bounds."""
    check_tensors(mask, losses=losses)
    check_scalar_or_shape("min_losses", min_losses, losses.shape, "losses")
    check_scalar("eps", eps)
    (losses,) = in_common_dtype(losses)
    return above_bound(losses, min_losses, eps, mask=mask)
