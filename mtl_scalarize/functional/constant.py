r"""The weighted sum, and the weights of the plain sum and of the mean."""

import torch
from torch import Tensor

from ._checks import check_tensors
from ._precision import in_common_dtype
from ._presence import count_present, fill_absent


def constant_combine(
    losses: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    r"""Combine the losses by given weights.

    .. math::
        \sum_i w_i \ell_i

    The derivative in the losses is :math:`w`.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        weights: the task weights :math:`w`, of shape S, any real numbers. None: 1 for each task.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``weights``, at least float32.

    Example:
        >>> constant_combine(torch.tensor([4.0, 1.0]), torch.tensor([0.5, 2.0]))
        tensor(4.)
    """
    if weights is None:
        check_tensors(mask, losses=losses)
        (losses,) = in_common_dtype(losses)
        return fill_absent(losses, 0.0, mask=mask).sum()
    check_tensors(mask, weights=weights, losses=losses)
    losses, weights = in_common_dtype(losses, weights)
    return (fill_absent(weights, 0.0, mask=mask) * fill_absent(losses, 0.0, mask=mask)).sum()


def sum_weights(losses: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""The task weights of the plain sum: 1 for every task.

    Args:
        losses: of any shape S. The values are not read.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses``, at least float32.

    Example:
        >>> sum_weights(torch.tensor([4.0, 1.0]))
        tensor([1., 1.])
    """
    check_tensors(mask, losses=losses)
    (losses,) = in_common_dtype(losses)
    return fill_absent(torch.ones_like(losses), 0.0, mask=mask)


def mean_weights(losses: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""The task weights of the mean: :math:`1/m` for each of the :math:`m` tasks that are present.

    Args:
        losses: of any shape S. The values are not read.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses``, at least float32. Their sum is 1, and 0
        if every task is absent.

    Example:
        >>> mean_weights(torch.tensor([4.0, 1.0]))
        tensor([0.5000, 0.5000])
    """
    return sum_weights(losses, mask=mask) / count_present(losses, mask=mask)
