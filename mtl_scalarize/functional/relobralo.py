r"""ReLoBRaLo (Relative Loss Balancing with Random Lookback)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import as_shape, check_state, check_tensors, check_unit_interval
from ._precision import scalar_in, state_dtype
from ._presence import finite_and_present
from ._saving import saveable
from .dwa import dwa_weights


@saveable
class ReLoBRaLoState(NamedTuple):
    """The weights of ReLoBRaLo and the losses that it compares with; every field has shape S.

    Example:
        >>> relobralo_init(2)._asdict().keys()
        dict_keys(['running_weights', 'first', 'last'])
    """

    #: Task weights of the last batch. Changes with every batch.
    running_weights: Tensor
    #: The first loss of each task; 0 before there is one. Changes once.
    first: Tensor
    #: The last loss of each task; 0 before there is one. Changes with every batch.
    last: Tensor


def relobralo_init(
    shape: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> ReLoBRaLoState:
    """The state of ReLoBRaLo before the first batch: no losses, and every weight 1.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``.
        dtype: floating dtype of the state, at least float32.
        device: where the state lives. None: the default device.

    Returns:
        The state, each field of shape S.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints.
        ValueError: ``shape`` has a negative entry.

    Example:
        >>> relobralo_init(3).running_weights
        tensor([1., 1., 1.])
    """
    weights = torch.ones(as_shape(shape), dtype=state_dtype(dtype), device=device)
    return ReLoBRaLoState(weights, torch.zeros_like(weights), torch.zeros_like(weights))


def relobralo_weights(
    losses: Tensor,
    earlier: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Task weights by the progress of each loss since an earlier batch.

    .. math::
        b_i(t, t') = m \, \frac{e^{r_i / T}}{\sum_j e^{r_j / T}},
        \qquad r_i = \frac{\ell_i(t)}{\ell_i(t')}

    over the :math:`m` tasks that have a finite rate :math:`r_i`. The other present tasks get 1. It
    is the formula of :func:`dwa_weights`, on the losses of two batches. With the last two batches
    it is also that of SoftAdapt, from ratios of the losses.

    Args:
        losses: the losses :math:`\ell(t)`, of any shape S, positive.
        earlier: the losses :math:`\ell(t')`, of shape S, 0 where there is none.
        temperature: :math:`T > 0`, a number or a 0-d tensor; the larger, the more uniform.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``losses`` and ``earlier``, at least float32. They
        sum to the number of present tasks.

    Raises:
        ValueError: ``temperature`` is not positive.

    References:
        Heydari, Thompson and Mehmood. SoftAdapt: Techniques for Adaptive Loss Weighting of Neural
        Networks with Multi-Part Loss Functions. 2019. https://arxiv.org/abs/1912.12355

    Example:
        >>> relobralo_weights(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]), temperature=1.0)
        tensor([0.7551, 1.2449])
    """
    check_tensors(mask, losses=losses, earlier=earlier)
    return dwa_weights(losses, earlier, temperature, mask=mask)


def relobralo_update(
    state: ReLoBRaLoState,
    losses: Tensor,
    lookback: float | Tensor,
    *,
    alpha: float | Tensor = 0.999,
    temperature: float | Tensor = 0.1,
    mask: Tensor | None = None,
) -> ReLoBRaLoState:
    r"""The weights for a batch, from its losses; :func:`constant_combine` combines by them.

    .. math::
        w(t) = \alpha \big( \rho \, w(t-1) + (1 - \rho) \, b(t, 0) \big)
        + (1 - \alpha) \, b(t, t-1)

    with :math:`b` of :func:`relobralo_weights`, :math:`w(0) = 1` and the random lookback
    :math:`1 - \rho`. The first batch has nothing to compare with and leaves the weights at 1. In
    the second, :math:`b(t, 0)` and :math:`b(t, t-1)` are the same, and the formula is as later
    (the authors' code sets :math:`\alpha = 0` there).

    At :math:`\alpha = 0` this is SoftAdapt, from ratios of the losses.

    Args:
        state: the state so far, of shape S.
        losses: this batch's losses :math:`\ell(t)`, of shape S, positive.
        lookback: :math:`1 - \rho`, a number or a 0-d tensor: 1 compares with the first losses, 0
            does not. Draw it anew for each batch, with a small probability of 1.
        alpha: :math:`\alpha`, from 0 to 1, a number or a 0-d tensor: how slowly the weights change.
        temperature: :math:`T > 0` of :func:`relobralo_weights`.
        mask: True where the task is present in this batch.

    Returns:
        The new state, in the dtype of ``state``. A task that is absent, or whose loss is not
        finite, is unchanged, and the softmax runs over the others.

    Raises:
        ValueError: ``temperature`` is not positive, or ``alpha`` or ``lookback`` not from 0 to 1.

    References:
        Bischof and Kraus. Multi-Objective Loss Balancing for Physics-Informed Deep Learning. 2021.
        https://arxiv.org/abs/2110.09813

    Example:
        >>> state = relobralo_init(2)
        >>> for losses in torch.tensor([[2.0, 1.0], [1.0, 1.0]]):
        ...     state = relobralo_update(state, losses, lookback=0, alpha=0.9)
        >>> state.running_weights  # the second fell less
        tensor([0.9013, 1.0987])
    """
    check_state(state, ReLoBRaLoState)
    check_tensors(mask, state=state.running_weights, losses=losses)
    check_unit_interval("lookback", lookback)
    check_unit_interval("alpha", alpha)
    dtype = state.running_weights.dtype
    where, losses = finite_and_present(losses.to(dtype), mask=mask)
    alpha, rho = scalar_in(dtype, alpha), 1 - scalar_in(dtype, lookback)
    since_first = relobralo_weights(losses, state.first, temperature, mask=where)
    since_last = relobralo_weights(losses, state.last, temperature, mask=where)
    # `lerp`, because the rounding of a sum of products adds up over the steps.
    looked_back = torch.lerp(since_first, state.running_weights, rho)
    weights = torch.lerp(since_last, looked_back, alpha)
    new = weights, torch.where(state.first == 0, losses, state.first), losses
    return ReLoBRaLoState(*(torch.where(where, *pair) for pair in zip(new, state, strict=True)))
