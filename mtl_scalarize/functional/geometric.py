r"""The geometric mean of the losses."""

from torch import Tensor

from ._checks import check_tensors
from ._precision import in_common_dtype
from ._presence import count_present, fill_absent, zero_if_none


def geometric_mean(losses: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Combine the losses by their geometric mean, the Geometric Loss Strategy (GLS).

    .. math::
        \Big( \prod_i \ell_i \Big)^{1/m} = \exp \Big( \frac{1}{m} \sum_i \log \ell_i \Big)

    over the :math:`m` tasks that are present. A loss of exactly 0 makes the scalar 0 and its
    gradient nan.

    Args:
        losses: the losses :math:`\ell`, of any shape S, positive.
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
    logs = fill_absent(losses, 1.0, mask=mask).log()
    return zero_if_none((logs / count_present(logs, mask=mask)).sum().exp(), mask=mask)


def geometric_mean_weights(losses: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""The task weights of :func:`geometric_mean`: its derivative in each loss.

    .. math::
        \frac{G}{m \, \ell_i}

    with the geometric mean :math:`G` of the :math:`m` tasks that are present.

    Args:
        losses: the losses :math:`\ell`, of any shape S, positive.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses``, at least float32.

    Example:
        >>> import torch
        >>> geometric_mean_weights(torch.tensor([4.0, 1.0]))
        tensor([0.2500, 1.0000])
    """
    rates = geometric_mean(losses, mask=mask) / fill_absent(losses, 1.0, mask=mask)
    return fill_absent(rates / count_present(rates, mask=mask), 0.0, mask=mask)
