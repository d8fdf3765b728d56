r"""LogSum: the sum of the logarithms, which does not see the units of the losses."""

from torch import Tensor

from ._bounds import EPS, above_bound
from ._checks import check_scalar, check_scalar_or_shape, check_tensors
from ._precision import in_common_dtype
from ._presence import fill_absent
from ._priorities import prioritised, times


def log_sum(
    losses: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    priorities: float | Tensor = 1.0,
    eps: float | Tensor = EPS,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by the sum of their logarithms.

    .. math::
        \sum_i p_i \log d_i, \qquad d = \ell - b + \epsilon

    A factor before a loss that is far above :math:`\epsilon` changes no gradient. A priority
    :math:`p` does, and only ratios of the priorities matter for the direction. This is the
    scale-invariant baseline (SI) of Navon et al. and the logarithmic part of DB-MTL. It is K
    times the logarithm of :func:`geometric_mean`, :func:`uw_loss` at its optimum up to a constant
    and a factor 2, and :func:`famo_combine` with equal logits up to FAMO's factor :math:`c/K`. The
    scalar can be negative.

    Args:
        losses: the losses :math:`\ell`, of any shape S, none below ``min_losses``.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
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
    above, priorities, _ = _above_bound(losses, min_losses, priorities, eps, mask)
    # Below the bound, the gradient of the logarithm alone is a number, by which the loss would be
    # maximised. That of minus infinity is nan.
    return times((above / (above >= 0)).log(), priorities).sum()


def log_sum_weights(
    losses: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    priorities: float | Tensor = 1.0,
    eps: float | Tensor = EPS,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of :func:`log_sum`: its derivative in each loss.

    .. math::
        \frac{p_i}{d_i}, \qquad d = \ell - b + \epsilon

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
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
    above, priorities, mask = _above_bound(losses, min_losses, priorities, eps, mask)
    roots = above.sqrt()  # nan below the bound
    return fill_absent(times(1 / roots / roots, priorities), 0.0, mask=mask)


def _above_bound(
    losses: Tensor,
    min_losses: float | Tensor,
    priorities: float | Tensor,
    eps: float | Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, float | Tensor, Tensor | None]:
    """How far the losses are above their bounds; and priorities and mask, as `prioritised` has."""
    check_tensors(mask, losses=losses)
    check_scalar_or_shape("min_losses", min_losses, losses.shape, "losses")
    check_scalar("eps", eps)
    (losses,) = in_common_dtype(losses)
    priorities, mask = prioritised(losses, priorities, mask)
    return above_bound(losses, min_losses, eps, mask=mask), priorities, mask
