r"""DWA (Dynamic Weight Average): a task that falls more slowly than the others weighs more."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import as_shape, check_positive, check_state, check_tensors
from ._precision import in_common_dtype, scalar_in, state_dtype
from ._presence import convex_weights, fill_absent, finite_and_present
from ._saving import saveable
from .constant import constant_combine


@saveable
class DWAState(NamedTuple):
    """The epoch averages of DWA and the weights they lead to; every field has shape S.

    Example:
        >>> dwa_init(2)._asdict().keys()
        dict_keys(['mean', 'count', 'last', 'previous', 'epoch_weights'])
    """

    #: Mean of the losses counted so far in this epoch. Changes with every batch.
    mean: Tensor
    #: Number of losses in that mean, int64. Changes with every batch.
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which no state needs
    #: Mean loss of the last epoch, L(t-1); 0 before there is one. Changes once an epoch.
    last: Tensor
    #: Mean loss of the epoch before it, L(t-2); 0 before there is one. Changes once an epoch.
    previous: Tensor
    #: Task weights of this epoch. Changes once an epoch.
    epoch_weights: Tensor


def dwa_init(
    shape: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> DWAState:
    """The state of DWA before the first batch: nothing counted, and every weight 1.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``.
        dtype: floating dtype of the means and weights, at least float32.
        device: where the state lives. None: the default device.

    Returns:
        The state, each field of shape S.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints.
        ValueError: ``shape`` has a negative entry.

    Example:
        >>> dwa_init(3).epoch_weights
        tensor([1., 1., 1.])
    """
    last = torch.zeros(as_shape(shape), dtype=state_dtype(dtype), device=device)
    return DWAState(
        mean=last.clone(),
        count=torch.zeros_like(last, dtype=torch.int64),
        last=last,  # not a third clone: in a compiled graph, equal clones become one tensor
        previous=last.clone(),
        epoch_weights=torch.ones_like(last),
    )


def dwa_accumulate(state: DWAState, losses: Tensor, *, mask: Tensor | None = None) -> DWAState:
    r"""Add one batch's losses to the epoch's mean; call it once a batch.

    .. math::
        n_i \leftarrow n_i + 1, \qquad
        \bar\ell_i \leftarrow \bar\ell_i + \frac{\ell_i - \bar\ell_i}{n_i}

    Args:
        state: the state so far, of shape S.
        losses: this batch's losses :math:`\ell`, of shape S.
        mask: True where the task is present in this batch.

    Returns:
        The state with this batch counted, in the dtype of ``state``. A task that is absent, or
        whose loss is not finite, is unchanged.

    Example:
        >>> state = dwa_accumulate(dwa_init(2), torch.tensor([3.0, float("nan")]))
        >>> state.mean, state.count
        (tensor([3., 0.]), tensor([1, 0]))
    """
    check_state(state, DWAState)
    check_tensors(mask, state=state.mean, losses=losses)
    change = (losses.to(state.mean.dtype) - state.mean) / (state.count + 1)
    counted, change = finite_and_present(change, mask=mask)
    # Not `_replace`, which torch.compile below 2.12 does not trace.
    return DWAState(
        mean=state.mean + change,
        count=state.count + counted,
        last=state.last,
        previous=state.previous,
        epoch_weights=state.epoch_weights,
    )


def dwa_step(state: DWAState, temperature: float | Tensor = 2.0) -> DWAState:
    r"""Close the epoch: its means become :math:`L(t-1)`, those before :math:`L(t-2)`.

    Args:
        state: the state after an epoch's batches, of shape S.
        temperature: :math:`T > 0` of :func:`dwa_weights`, a number or a 0-d tensor.

    Returns:
        The state at the start of the next epoch, with its weights. A task that was not seen in this
        epoch keeps its last two means.

    Raises:
        ValueError: ``temperature`` is not positive.

    Example:
        >>> state = dwa_init(2)
        >>> for losses in torch.tensor([[4.0, 2.0], [2.0, 2.0]]):
        ...     state = dwa_accumulate(state, losses)
        >>> dwa_step(state).last
        tensor([3., 2.])
    """
    check_state(state, DWAState)
    seen = state.count > 0
    last = torch.where(seen, state.mean, state.last)
    previous = torch.where(seen, state.last, state.previous)
    return DWAState(
        mean=torch.zeros_like(state.mean),
        count=torch.zeros_like(state.count),
        last=last,
        previous=previous,
        epoch_weights=dwa_weights(last, previous, temperature),
    )


def dwa_weights(
    last: Tensor,
    previous: Tensor,
    temperature: float | Tensor = 2.0,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of DWA, from the mean losses of the last two epochs.

    .. math::
        \lambda_i = m \, \frac{e^{r_i / T}}{\sum_j e^{r_j / T}},
        \qquad r_i = \frac{L_i(t-1)}{L_i(t-2)}

    The softmax runs over the :math:`m` present tasks that have a finite rate :math:`r_i`. The other
    present tasks get weight 1, so that the weights of K tasks always sum to K. A task has no finite
    rate if :math:`L_i(t-2) = 0`, as in its first two epochs.

    Args:
        last: the mean losses :math:`L(t-1)`, of any shape S.
        previous: the mean losses :math:`L(t-2)`, of shape S.
        temperature: :math:`T > 0`, a number or a 0-d tensor; the larger, the more uniform the
            weights. The paper uses 2.
        mask: True where the task is present. Absent tasks get 0.

    Returns:
        The weights, of shape S, in the dtype of ``last`` and ``previous``, at least float32. Their
        relative error is about :math:`r/T` times that of the dtype.

    Raises:
        ValueError: ``temperature`` is not positive.

    References:
        Liu, Johns and Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.
        https://arxiv.org/abs/1803.10704

    Example:
        >>> dwa_weights(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]))
        tensor([0.8756, 1.1244])
    """
    check_tensors(mask, last=last, previous=previous)
    check_positive("temperature", temperature)
    last, previous = in_common_dtype(last, previous)
    has_rate, _ = finite_and_present(last / previous, mask=mask)
    last, previous = (
        fill_absent(each, value, mask=has_rate) for each, value in ((last, 0.0), (previous, 1.0))
    )
    root = previous.abs().sqrt()  # the derivative of one division overflows before the rate does
    rates = last / root / torch.copysign(root, previous)
    exponents = (rates - rates.detach().max()) / scalar_in(rates.dtype, temperature)
    weights = has_rate.sum() * convex_weights(exponents, mask=has_rate)
    return fill_absent(fill_absent(weights, 1.0, mask=has_rate), 0.0, mask=mask)


def dwa_combine(
    losses: Tensor,
    state: DWAState,
    *,
    priorities: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by Dynamic Weight Average (DWA).

    .. math::
        \sum_i p_i \lambda_i \ell_i

    with the weights :math:`\lambda` of the state: all 1 in the first two epochs, then those of
    :func:`dwa_weights`. The state takes no notice of the priorities :math:`p`.

    Args:
        losses: the losses :math:`\ell`, of any shape S.
        state: the state of DWA, of shape S.
        priorities: :math:`p`, of shape S, or one number for all, non-negative: how much each task
            matters.
        mask: True where the task is present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``state``, at least float32.

    Example:
        >>> dwa_combine(torch.tensor([4.0, 1.0]), dwa_init(2))
        tensor(5.)
    """
    check_state(state, DWAState)
    return constant_combine(losses, state.epoch_weights, priorities=priorities, mask=mask)
