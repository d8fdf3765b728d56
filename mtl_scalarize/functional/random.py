r"""Random Loss Weighting: new random weights for every batch."""

from torch import Tensor

from ._checks import check_tensors
from ._precision import in_common_dtype
from ._presence import convex_weights, fill_absent
from ._priorities import prioritised, times
from .constant import constant_combine


def random_combine(
    losses: Tensor,
    noise: Tensor,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by Random Loss Weighting (RLW).

    .. math::
        \sum_i p_i \, \mathrm{softmax}(\xi)_i \, \ell_i

    The derivative in the losses is :func:`random_weights`.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        noise: :math:`\xi`, of shape S; standard normal in the paper, drawn for each batch.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present. The softmax runs over those.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``noise``, at least float32.

    Example:
        >>> import torch
        >>> random_combine(torch.tensor([4.0, 1.0]), torch.tensor([0.0, 0.0]))
        tensor(2.5000)
    """
    check_tensors(mask, noise=noise, losses=losses)
    losses, noise = in_common_dtype(losses, noise)
    priorities, mask = prioritised(losses, priorities, mask)
    weights = times(convex_weights(noise, mask=mask), priorities)
    return constant_combine(losses, weights, mask=mask)


def random_weights(
    noise: Tensor, *, priorities: float | Tensor = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""The task weights of Random Loss Weighting (RLW), from the noise that is drawn for a batch.

    .. math::
        p_i \, \mathrm{softmax}(\xi)_i

    They are the derivative of :func:`random_combine`. Without priorities, the mean over many draws
    is :math:`1/m` for each of the m present tasks, as are the weights for a noise of 0.

    Args:
        noise: :math:`\xi`, of any shape S; standard normal in the paper, ``torch.randn(S)``.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present. The softmax runs over those, and the others get 0.

    Returns:
        The weights, of shape S, in the dtype of ``noise``, at least float32. Without priorities
        they are positive and sum to 1 (0 if every task is absent).

    References:
        Lin, Ye, Zhang and Tsang. Reasonable Effectiveness of Random Weighting: A Litmus Test for
        Multi-Task Learning. TMLR 2022. https://arxiv.org/abs/2111.10603

    Example:
        >>> import torch
        >>> random_weights(torch.tensor([1.0, 0.0]))
        tensor([0.7311, 0.2689])
    """
    check_tensors(mask, noise=noise)
    (noise,) = in_common_dtype(noise)
    priorities, mask = prioritised(noise, priorities, mask)
    weights = times(convex_weights(noise, mask=mask), priorities)
    return fill_absent(weights, 0.0, mask=mask)
