r"""FAMO: weights that let all losses fall at the same rate, from the losses alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._adam import adam_step
from ._bounds import EPS, above_bound
from ._checks import as_shape, check_scalar, check_scalar_or_shape, check_state, check_tensors
from ._precision import in_common_dtype, state_dtype
from ._presence import convex_weights, fill_absent, finite_and_present, softmax
from ._priorities import prioritised
from ._saving import saveable


@saveable
class FAMOState(NamedTuple):
    """The task logits of FAMO and their Adam moments; every field has shape S.

    Each field changes with every update.

    Example:
        >>> famo_init(2)._asdict().keys()
        dict_keys(['logits', 'first_moment', 'second_moment', 'updates'])
    """

    #: The logits w; softmax(w) is the share of each task.
    logits: Tensor
    #: Adam's running average of the gradient.
    first_moment: Tensor
    #: Adam's running average of the squared gradient.
    second_moment: Tensor
    #: Number of updates of each task, int64.
    updates: Tensor


def famo_init(
    shape: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> FAMOState:
    """The state of FAMO before the first update: equal logits.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``.
        dtype: floating dtype of the logits and moments, at least float32.
        device: where the state lives. None: the default device.

    Returns:
        A state of zeros, each field of shape S.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints.
        ValueError: ``shape`` has a negative entry.

    Example:
        >>> famo_init(3).logits
        tensor([0., 0., 0.])
    """
    logits = torch.zeros(as_shape(shape), dtype=state_dtype(dtype), device=device)
    return FAMOState(
        logits=logits,
        first_moment=logits.clone(),
        second_moment=logits.clone(),
        updates=torch.zeros_like(logits, dtype=torch.int64),
    )


def famo_weights(
    losses: Tensor,
    logits: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    priorities: float | Tensor = 1.0,
    eps: float | Tensor = EPS,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of FAMO: a convex combination, differentiable in losses and in logits.

    .. math::
        p = \mathrm{softmax}(w - \log d), \qquad d = \ell - b + \epsilon

    In the notation of the paper this is :math:`p_i = c \, z_i / d_i` with
    :math:`z = \mathrm{softmax}(w)` and :math:`c = (\sum_j z_j / d_j)^{-1}`.

    The product of these weights with the task gradients is FAMO's direction. In a functional
    pipeline, ``losses, pullback = torch.func.vjp(losses_fn, params)`` and then
    ``pullback(famo_weights(losses, logits))`` give that direction, and the result is differentiable
    in the logits.

    Args:
        losses: the losses :math:`\ell`, of any shape S, none below ``min_losses``.
        logits: the logits :math:`w`, of shape S.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        priorities: those of :func:`famo_update`, where they act. Here a task whose priority is 0 is
            absent, and the others do not matter.
        eps: :math:`\epsilon`, non-negative, a number or a 0-d tensor: it keeps the logarithm finite
            for a loss at its bound.
        mask: True where the task is present. The softmax runs over those, and the others get 0.

    Returns:
        The weights, of shape S, non-negative, with sum 1 (0 if every task is absent), in the dtype
        of ``losses`` and ``logits``, at least float32. All present ones are nan if a loss is more
        than :math:`\epsilon` below its bound.

    Example:
        >>> famo_weights(torch.tensor([1.0, 3.0]), torch.zeros(2))
        tensor([0.7500, 0.2500])
    """
    above, logits, mask = _above_bound(losses, logits, min_losses, priorities, eps, mask)
    return fill_absent(convex_weights(logits - above.log(), mask=mask), 0.0, mask=mask)


def famo_combine(
    losses: Tensor,
    logits: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    priorities: float | Tensor = 1.0,
    eps: float | Tensor = EPS,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by Fast Adaptive Multitask Optimization (FAMO).

    .. math::
        c \sum_i z_i \log d_i, \qquad d = \ell - b + \epsilon, \qquad
        z = \mathrm{softmax}(w), \qquad c = \Big( \sum_i \frac{z_i}{d_i} \Big)^{-1}

    The factor :math:`c` is held constant in the backward pass, so that the derivative in the losses
    is :math:`p` of :func:`famo_weights`. To differentiate that derivative again, in the logits or
    in a step of the model, use :func:`famo_weights`: the second derivatives of this function lack
    those of :math:`c`, and are wrong without an error.

    Args:
        losses: the losses :math:`\ell`, of any shape S, none below ``min_losses``.
        logits: the logits :math:`w`, of shape S.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        priorities: those of :func:`famo_update`, where they act. Here a task whose priority is 0 is
            absent, and the others do not matter.
        eps: :math:`\epsilon`, non-negative, a number or a 0-d tensor: it keeps the logarithm finite
            for a loss at its bound.
        mask: True where the task is present. The softmax runs over those.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``logits``, at least float32. It is
        nan if a loss is more than :math:`\epsilon` below its bound.

    References:
        Liu, Feng, Stone and Liu. FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023.
        https://arxiv.org/abs/2306.03792

    Example:
        >>> losses = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> famo_combine(losses, torch.zeros(2)).backward()
        >>> losses.grad
        tensor([0.7500, 0.2500])
    """
    above, logits, mask = _above_bound(losses, logits, min_losses, priorities, eps, mask)
    shares, logs = softmax(logits, mask=mask), above.log()
    ratios = shares.detach() / above.detach()
    # Nothing is added but nan, which `logs` are below the bound: then all gradients are nan.
    factor = torch.add(ratios, logs.detach(), alpha=0).sum().reciprocal()
    return factor * (shares * logs).sum()


def famo_delta(
    before: Tensor,
    after: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    eps: float | Tensor = EPS,
) -> Tensor:
    r"""How much each loss fell across a model update, on the logarithmic scale.

    .. math::
        \delta = \log d^{\text{before}} - \log d^{\text{after}}
        = 2 \, \mathrm{asinh} \left( \frac{\ell^{\text{before}} - \ell^{\text{after}}}
            {2 \sqrt{d^{\text{before}} d^{\text{after}}}} \right),
        \qquad d = \ell - b + \epsilon

    The second form keeps the digits of a small change and of a large one.

    Args:
        before: the losses before the update, of any shape S.
        after: the losses after it, on the same batch, of shape S.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        eps: :math:`\epsilon`, non-negative, a number or a 0-d tensor: it keeps the logarithm finite
            for a loss at its bound.

    Returns:
        The falls :math:`\delta`, of shape S, in the dtype of the losses, at least float32; nan
        where a loss is more than :math:`\epsilon` below its bound.

    Example:
        >>> famo_delta(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 3.0]))
        tensor([0.6931, 0.0000])
    """
    check_tensors(None, before=before, after=after)
    check_scalar_or_shape("min_losses", min_losses, after.shape, "before")
    check_scalar("eps", eps)
    before, after = in_common_dtype(before, after)
    roots = [above_bound(losses, min_losses, eps).sqrt() for losses in (before, after)]
    return 2 * torch.asinh((before - after) / (2 * roots[0] * roots[1]))


def famo_update(
    state: FAMOState,
    delta: Tensor,
    *,
    priorities: float | Tensor = 1.0,
    lr: float | Tensor = 0.025,
    weight_decay: float | Tensor = 1e-3,
    mask: Tensor | None = None,
) -> FAMOState:
    r"""One Adam step on the logits, towards the tasks that fell least for their priority.

    .. math::
        g_i = z_i \Big( \frac{\delta_i}{p_i} - \sum_j z_j \frac{\delta_j}{p_j} \Big) + \gamma w_i,
        \qquad z = \mathrm{softmax}(w)

    Where the logits rest, the losses fall at rates in proportion to the priorities :math:`p`. But
    for the weight decay, only ratios of the priorities matter.

    Args:
        state: the state so far, of shape S.
        delta: the falls of :func:`famo_delta`, of shape S.
        priorities: :math:`p`, of shape S, or one number for all, non-negative. A task whose
            priority is 0 is absent.
        lr: Adam's learning rate, non-negative, a number or a 0-d tensor. The paper uses 0.025.
        weight_decay: :math:`\gamma`, non-negative, a number or a 0-d tensor.
        mask: True where the task is present.

    Returns:
        The new state, in the dtype of ``state``. A task that is absent, or whose ``delta`` is not
        finite, is unchanged, and the softmax runs over the others.

    Raises:
        ValueError: a hyperparameter is negative.

    Example:
        >>> famo_update(famo_init(2), torch.tensor([0.7, 0.0])).logits  # the second fell less
        tensor([-0.0250,  0.0250])
    """
    check_state(state, FAMOState)
    check_tensors(mask, state=state.logits, delta=delta)
    check_scalar("lr", lr)
    check_scalar("weight_decay", weight_decay)
    delta = delta.to(state.logits.dtype)
    priorities, mask = prioritised(delta, priorities, mask)
    if isinstance(priorities, Tensor):
        delta = delta / fill_absent(priorities, 1.0, mask=mask)
    where, delta = finite_and_present(delta, mask=mask)
    shares = softmax(state.logits, mask=where)
    grad = shares * (delta - (shares * delta).sum())
    new = adam_step(
        state.logits,
        grad,
        state.first_moment,
        state.second_moment,
        state.updates,
        lr=lr,
        weight_decay=weight_decay,
    )
    return FAMOState(*(torch.where(where, *pair) for pair in zip(new, state, strict=True)))


def _above_bound(
    losses: Tensor,
    logits: Tensor,
    min_losses: float | Tensor,
    priorities: float | Tensor,
    eps: float | Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """How far the losses are above their bounds, the logits, and the mask of `prioritised`."""
    check_tensors(mask, logits=logits, losses=losses)
    check_scalar_or_shape("min_losses", min_losses, losses.shape, "losses")
    check_scalar("eps", eps)
    losses, logits = in_common_dtype(losses, logits)
    _, mask = prioritised(losses, priorities, mask)
    return above_bound(losses, min_losses, eps, mask=mask), logits, mask
