r"""The geometric mean of the losses."""

from torch import Tensor

from ._checks import check_tensors
from ._precision import in_common_dtype
from ._presence import fill_absent, zero_if_none
from ._priorities import prioritised, times, total


def geometric_mean(
    losses: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""Combine the losses by their geometric mean, the Geometric Loss Strategy (GLS).

    .. math::
        \exp \left( \frac{\sum_i p_i \log \ell_i}{\sum_i p_i} \right)

    over the tasks that are present. Without priorities :math:`p` it is the m-th root of the product
    of the m losses. Only ratios of the priorities matter. A loss of exactly 0 makes the scalar 0
    and its gradient nan.

    Args:
        losses: the losses :math:`\ell`, of any shape S, positive.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses``, at least float32. It is nan if a loss
        is negative, and 0 if every task is absent.

    References:
        Chennupati, Sistu, Yogamani and Rawashdeh. MultiNet++: Multi-Stream Feature Aggregation and
        Geometric Loss Strategy for Multi-Task Learning. CVPR Workshops 2019.
        https://arxiv.org/abs/1904.08492

    Example:
        >>> import torch
        >>> geometric_mean(torch.tensor([4.0, 1.0]))
        tensor(2.)
    """
    check_tensors(mask, losses=losses)
    (losses,) = in_common_dtype(losses)
    priorities, mask = prioritised(losses, priorities, mask)
    logs = times(fill_absent(losses, 1.0, mask=mask).log(), priorities)
    return zero_if_none((logs / total(logs, priorities, mask=mask)).sum().exp(), mask=mask)


def geometric_mean_weights(
    losses: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""The task weights of :func:`geometric_mean`: its derivative in each loss.

    .. math::
        \frac{p_i}{\sum_j p_j} \frac{G}{\ell_i}

    with the geometric mean :math:`G`, over the tasks that are present.

    Args:
        losses: the losses :math:`\ell`, of any shape S, positive.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses``, at least float32.

    Example:
        >>> import torch
        >>> geometric_mean_weights(torch.tensor([4.0, 1.0]))
        tensor([0.2500, 1.0000])
    """
    mean = geometric_mean(losses, priorities=priorities, mask=mask)
    priorities, mask = prioritised(losses, priorities, mask)
    rates = times(mean / fill_absent(losses, 1.0, mask=mask), priorities)
    return fill_absent(rates / total(rates, priorities, mask=mask), 0.0, mask=mask)
