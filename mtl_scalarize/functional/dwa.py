r"""Dynamic Weight Average: a task that falls more slowly than the others weighs more."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import as_shape, check_scalar, check_tensors
from .precision import at_least_float32, in_common_dtype
from .presence import fill_absent, measured, softmax, sum_of_products


class DWAState(NamedTuple):
    """What DWA remembers of each task; every field has the shape S of the losses.

    Example:
        >>> dwa_init(2)._asdict().keys()
        dict_keys(['loss_sum', 'count', 'last', 'previous', 'epochs'])
    """

    #: Sum of the losses seen this epoch. In float64: a float32 sum stalls within a long epoch.
    loss_sum: Tensor
    #: Number of losses in that sum, int64.
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which no state needs
    #: Average loss of the last epoch, L(t-1).
    last: Tensor
    #: Average loss of the epoch before it, L(t-2).
    previous: Tensor
    #: Number of epochs in which the task was seen, int64.
    epochs: Tensor


def dwa_init(
    shape: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> DWAState:
    """The state of DWA before the first batch.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``.
        dtype: floating dtype of the averages.
        device: where the state lives. None: the default device.

    Returns:
        A state with nothing seen yet.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints.
        ValueError: ``shape`` has a negative entry.

    References:
        Liu, Johns and Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.
        https://arxiv.org/abs/1803.10704

    Example:
        >>> dwa_init(3).epochs
        tensor([0, 0, 0])
    """
    average = torch.zeros(as_shape(shape), dtype=at_least_float32(dtype), device=device)
    count = torch.zeros_like(average, dtype=torch.int64)
    return DWAState(
        loss_sum=average.to(torch.float64, copy=True),
        count=count,
        last=average,
        previous=average.clone(),
        epochs=count.clone(),
    )


def dwa_accumulate(state: DWAState, losses: Tensor, *, mask: Tensor | None = None) -> DWAState:
    """Add one batch's losses to the epoch; call it once a batch.

    Args:
        state: the state so far, of shape S.
        losses: this batch's losses, of shape S.
        mask: boolean, of shape S, True where the task is present in this batch.

    Returns:
        The state with this batch counted. A task that is absent, or whose loss is not finite, is
        unchanged.

    Raises:
        TypeError: ``losses`` is not a floating-point tensor.
        ValueError: the shapes differ, or ``mask`` is not boolean.

    References:
        Liu, Johns and Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.
        https://arxiv.org/abs/1803.10704

    Example:
        >>> state = dwa_accumulate(dwa_init(2), torch.tensor([1.0, float("nan")]))
        >>> state.loss_sum, state.count
        (tensor([1., 0.], dtype=torch.float64), tensor([1, 0]))
    """
    check_tensors(mask, state=state.last, losses=losses)
    where, losses = measured(losses, mask)
    return state._replace(loss_sum=state.loss_sum + losses, count=state.count + where)


def dwa_accumulate_(loss_sum: Tensor, count: Tensor, losses: Tensor, mask: Tensor | None) -> None:
    """:func:`dwa_accumulate` in place and without its checks: for a module's own buffers.

    It runs once a batch, and new tensors copied into the buffers would take a third of the call.
    """
    where, losses = measured(losses, mask)
    loss_sum.add_(losses)
    count.add_(where)


def dwa_step(state: DWAState) -> DWAState:
    r"""Close the epoch: its averages become :math:`L(t-1)`, and those before :math:`L(t-2)`.

    Args:
        state: the state after an epoch's batches, of shape S.

    Returns:
        The state at the start of the next epoch. A task not seen in this one is unchanged.

    References:
        Liu, Johns and Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.
        https://arxiv.org/abs/1803.10704

    Example:
        >>> state = dwa_init(2)
        >>> for losses in torch.tensor([[4.0, 2.0], [2.0, 2.0]]):
        ...     state = dwa_accumulate(state, losses)
        >>> dwa_step(state).last
        tensor([3., 2.])
    """
    seen = state.count > 0
    average = (state.loss_sum / state.count.clamp(min=1)).to(state.last.dtype)
    return DWAState(
        loss_sum=torch.zeros_like(state.loss_sum),
        count=torch.zeros_like(state.count),
        last=torch.where(seen, average, state.last),
        previous=torch.where(seen, state.last, state.previous),
        epochs=state.epochs + seen,
    )


def dwa_weights(last: Tensor, previous: Tensor, temperature: float | Tensor = 2.0) -> Tensor:
    r"""The task weights of DWA, from the average losses of the last two epochs.

    .. math::
        \lambda_i = m \, \frac{e^{w_i / T}}{\sum_j e^{w_j / T}},
        \qquad w_i = \frac{L_i(t-1)}{L_i(t-2)}

    The softmax runs over the :math:`m` tasks that have a rate :math:`w_i`; the others weigh 1, so
    that the weights of K tasks always sum to K. A task has no rate where :math:`w_i` is not finite,
    as when :math:`L_i(t-2) = 0`.

    Args:
        last: the average losses :math:`L(t-1)`, of any shape S.
        previous: the average losses :math:`L(t-2)`, of shape S.
        temperature: :math:`T > 0`, a number or a 0-d tensor; the larger, the more uniform the
            weights. The paper uses 2.

    Returns:
        The weights, of shape S, in the dtype of ``last`` and ``previous``, at least float32.

    Raises:
        TypeError: ``last`` or ``previous`` is not a floating-point tensor.
        ValueError: the shapes differ, or ``temperature`` is not positive.

    References:
        Liu, Johns and Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.
        https://arxiv.org/abs/1803.10704

    Example:
        >>> dwa_weights(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]))
        tensor([0.8756, 1.1244])
    """
    check_tensors(None, last=last, previous=previous)
    check_scalar("temperature", temperature, positive=True)
    dtype = at_least_float32(last.dtype, previous.dtype)
    # In float64: the rate of a float32 average may overflow, and a large one keeps few digits.
    last, previous = last.double(), previous.double()
    has_rate = torch.isfinite(last / previous)
    rates = last / fill_absent(has_rate, previous, 1.0)
    share = softmax(rates / temperature, has_rate)
    return fill_absent(has_rate, share * has_rate.sum(), 1.0).to(dtype)


def dwa_combine(
    losses: Tensor,
    state: DWAState,
    temperature: float | Tensor = 2.0,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by Dynamic Weight Average (DWA).

    .. math::
        \sum_i \lambda_i \ell_i

    with the :math:`\lambda` of :func:`dwa_weights`: all ones in the first two epochs.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        state: the state of DWA, of shape S.
        temperature: :math:`T > 0`, a number or a 0-d tensor.
        mask: boolean, of shape S, True where the task is present. An absent task contributes
            nothing to the scalar nor to any gradient, whatever its loss. None: all are present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``state``, at least float32.

    Raises:
        TypeError: ``losses`` is not a floating-point tensor.
        ValueError: the shapes differ, ``mask`` is not boolean, or ``temperature`` not positive.

    References:
        Liu, Johns and Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.
        https://arxiv.org/abs/1803.10704

    Example:
        >>> dwa_combine(torch.tensor([4.0, 1.0]), dwa_init(2))
        tensor(5.)
    """
    return dwa_loss_and_weights(losses, weights_of(state, temperature), mask)[0]


def weights_of(state: DWAState, temperature: float | Tensor) -> Tensor:
    """:func:`dwa_weights` of a state, in which a task may have fewer than two epochs behind it."""
    previous = fill_absent(state.epochs >= 2, state.previous, 0.0)  # a rate over 0 is none
    return dwa_weights(state.last, previous, temperature)


def dwa_loss_and_weights(
    losses: Tensor, weights: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:func:`dwa_combine` with weights that are known already, and those weights as used."""
    check_tensors(mask, weights=weights, losses=losses)
    losses, weights = in_common_dtype(losses, weights)
    losses, weights = fill_absent(mask, losses, 0.0), fill_absent(mask, weights, 0.0)
    return sum_of_products(weights, losses), weights
