r"""Random Loss Weighting: new random weights for every batch."""

from torch import Tensor

from ._checks import check_tensors
from ._precision import in_common_dtype
from ._presence import convex_weights, fill_absent


def random_weights(noise: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""The task weights of Random Loss Weighting (RLW), from the noise that is drawn for a batch.

    .. math::
        \mathrm{softmax}(\xi)

    :func:`constant_combine` combines the losses by them. Over many draws each present task weighs
    as much as any other, :math:`1/m`, and so it does with noise that is 0.

    Args:
        noise: :math:`\xi`, of any shape S; standard normal in the paper, ``torch.randn(S)``.
        mask: True where the task is present. The softmax runs over those, and the others get 0.

    Returns:
        The weights, of shape S, positive, with sum 1 (0 if every task is absent), in the dtype of
        ``noise``, at least float32.

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
    return fill_absent(convex_weights(noise, mask=mask), 0.0, mask=mask)
