r"""FAMO: weights that let all losses fall at the same rate, from the losses alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .adam import adam_step
from .checks import as_shape, check_scalar, check_scalar_or_shape, check_tensors
from .precision import at_least_float32, constant, in_common_dtype, scalar_in
from .presence import fill_absent, measured, softmax, sum_of_products

# Keeps the logarithm finite at the lower bound; the value of the official implementation.
EPS = 1e-8


class FAMOState(NamedTuple):
    """The task logits of FAMO and their Adam moments; every field has the shape S of the losses.

    Example:
        >>> famo_init(2)._asdict().keys()
        dict_keys(['logits', 'exp_avg', 'exp_avg_sq', 'step'])
    """

    #: The logits w; softmax(w) is the share of each task.
    logits: Tensor
    #: Adam's running average of the gradient.
    exp_avg: Tensor
    #: Adam's running average of the squared gradient.
    exp_avg_sq: Tensor
    #: Number of updates of each task, int64.
    step: Tensor


def famo_init(
    shape: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> FAMOState:
    """The state of FAMO before the first update: equal logits.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``.
        dtype: floating dtype of the logits and moments.
        device: where the state lives. None: the default device.

    Returns:
        A state of zeros.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints.
        ValueError: ``shape`` has a negative entry.

    References:
        Liu, Feng, Stone and Liu. FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023.
        https://arxiv.org/abs/2306.03792

    Example:
        >>> famo_init(3).logits
        tensor([0., 0., 0.])
    """
    logits = torch.zeros(as_shape(shape), dtype=at_least_float32(dtype), device=device)
    return FAMOState(
        logits=logits,
        exp_avg=logits.clone(),
        exp_avg_sq=logits.clone(),
        step=torch.zeros_like(logits, dtype=torch.int64),
    )


def famo_weights(
    losses: Tensor,
    logits: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The task weights of FAMO: a convex combination, differentiable in losses and in logits.

    .. math::
        c \, \frac{z_i}{\ell_i - b_i + \epsilon}, \qquad z = \mathrm{softmax}(w), \qquad
        c = \Big( \sum_j \frac{z_j}{\ell_j - b_j + \epsilon} \Big)^{-1}

    Their product with the task gradients is FAMO's direction. In a functional pipeline,
    ``losses, pullback = torch.func.vjp(losses_fn, params)`` and then
    ``pullback(famo_weights(losses, logits))`` gives that direction exactly, and one can
    differentiate through it.

    Args:
        losses: the losses :math:`\ell`, of any shape S, above ``min_losses``.
        logits: the logits :math:`w`, of shape S.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        mask: boolean, of shape S, True where the task is present; the others weigh 0, and the
            softmax runs over those present. None: all are present.

    Returns:
        The weights, of shape S, non-negative, with sum 1, in the dtype of ``losses`` and
        ``logits``, at least float32.

    Raises:
        TypeError: ``losses`` or ``logits`` is not a floating-point tensor.
        ValueError: the shapes differ, or ``mask`` is not boolean.

    References:
        Liu, Feng, Stone and Liu. FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023.
        https://arxiv.org/abs/2306.03792

    Example:
        >>> famo_weights(torch.tensor([1.0, 3.0]), torch.zeros(2))
        tensor([0.7500, 0.2500])
    """
    distance, share = _distance_and_share(losses, logits, min_losses, mask)
    scaled = share * _common_factor(distance.detach(), mask)
    return fill_absent(mask, scaled / _total(scaled / distance, mask) / distance, 0.0)


def famo_combine(
    losses: Tensor,
    logits: Tensor,
    min_losses: float | Tensor = 0.0,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Combine the losses by Fast Adaptive Multitask Optimization (FAMO).

    .. math::
        c \sum_i z_i \log(\ell_i - b_i + \epsilon), \qquad z = \mathrm{softmax}(w), \qquad
        c = \Big( \sum_j \frac{z_j}{\ell_j - b_j + \epsilon} \Big)^{-1}

    with :math:`c` held constant in the backward pass and :math:`\epsilon = 10^{-8}`. The
    derivative in the losses is :func:`famo_weights`.

    Args:
        losses: the losses :math:`\ell`, of any shape S, above ``min_losses``.
        logits: the logits :math:`w`, of shape S.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.
        mask: boolean, of shape S, True where the task is present. An absent task contributes
            nothing to the scalar nor to any gradient, whatever its loss, and the softmax runs over
            those present. None: all are present.

    Returns:
        The scalar, of shape (), in the dtype of ``losses`` and ``logits``, at least float32.

    Raises:
        TypeError: ``losses`` or ``logits`` is not a floating-point tensor.
        ValueError: the shapes differ, or ``mask`` is not boolean.

    References:
        Liu, Feng, Stone and Liu. FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023.
        https://arxiv.org/abs/2306.03792

    Example:
        >>> losses = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> famo_combine(losses, torch.zeros(2)).backward()
        >>> losses.grad
        tensor([0.7500, 0.2500])
    """
    return famo_loss_and_weights(losses, logits, min_losses, mask)[0]


def famo_delta(before: Tensor, after: Tensor, min_losses: float | Tensor = 0.0) -> Tensor:
    r"""How much each loss fell across a model update, on the logarithmic scale.

    .. math::
        \delta_i = \log(\ell_i^{\text{before}} - b_i + \epsilon)
                 - \log(\ell_i^{\text{after}} - b_i + \epsilon)

    Args:
        before: the losses before the update, of any shape S.
        after: the losses after it, on the same batch, of shape S.
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all.

    Returns:
        The falls :math:`\delta`, of shape S, in the dtype of the losses, at least float32; not
        finite where a loss is not, or lies below its bound.

    Raises:
        TypeError: ``before`` or ``after`` is not a floating-point tensor.
        ValueError: the shapes differ.

    References:
        Liu, Feng, Stone and Liu. FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023.
        https://arxiv.org/abs/2306.03792

    Example:
        >>> famo_delta(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 3.0]))
        tensor([0.6931, 0.0000])
    """
    check_tensors(None, before=before, after=after)
    before, after = in_common_dtype(before, after)
    # log(x / y) as an area hyperbolic sine of x - y, for the difference of the logarithms of two
    # almost equal losses keeps none of their digits, and x / y may overflow.
    root = torch.sqrt(_distance(before, min_losses)) * torch.sqrt(_distance(after, min_losses))
    half = constant(0.5, root) * ((before - after) / root)
    return constant(2.0, root) * torch.asinh(half)


def famo_update(
    state: FAMOState,
    delta: Tensor,
    *,
    lr: float | Tensor = 0.025,
    weight_decay: float | Tensor = 1e-3,
    mask: Tensor | None = None,
) -> FAMOState:
    r"""One Adam step on the logits, towards the tasks that fell least.

    .. math::
        g_i = z_i \Big( \delta_i - \sum_j z_j \delta_j \Big) + \gamma w_i,
        \qquad z = \mathrm{softmax}(w)

    Args:
        state: the state so far, of shape S.
        delta: the falls of :func:`famo_delta`, of shape S.
        lr: Adam's learning rate, non-negative, a number or a 0-d tensor. The paper uses 0.025.
        weight_decay: :math:`\gamma`, non-negative, a number or a 0-d tensor.
        mask: boolean, of shape S, True where the task is present. None: all are present.

    Returns:
        The new state. A task that is absent, or whose ``delta`` is not finite, is unchanged, and
        the softmax runs over the others.

    Raises:
        TypeError: ``delta`` is not a floating-point tensor.
        ValueError: the shapes differ, ``mask`` is not boolean, or a hyperparameter is negative.

    References:
        Liu, Feng, Stone and Liu. FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023.
        https://arxiv.org/abs/2306.03792

    Example:
        >>> famo_update(famo_init(2), torch.tensor([0.7, 0.0])).logits  # the second fell less
        tensor([-0.0250,  0.0250])
    """
    check_tensors(mask, state=state.logits, delta=delta)
    check_scalar("lr", lr)
    check_scalar("weight_decay", weight_decay)
    where, delta = measured(delta.to(state.logits.dtype), mask)
    share = softmax(state.logits, where)
    grad = share * (delta - sum_of_products(share, delta))
    logits, exp_avg, exp_avg_sq, step = adam_step(
        state.logits,
        grad,
        state.exp_avg,
        state.exp_avg_sq,
        state.step,
        lr=lr,
        weight_decay=weight_decay,
    )
    return FAMOState(
        logits=torch.where(where, logits, state.logits),
        exp_avg=torch.where(where, exp_avg, state.exp_avg),
        exp_avg_sq=torch.where(where, exp_avg_sq, state.exp_avg_sq),
        step=torch.where(where, step, state.step),
    )


def famo_loss_and_weights(
    losses: Tensor, logits: Tensor, min_losses: float | Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:func:`famo_combine` and its (constant) :func:`famo_weights` at the price of one."""
    distance, share = _distance_and_share(losses, logits, min_losses, mask)
    fixed = distance.detach()
    scaled = share * _common_factor(fixed, mask)
    scaled = scaled / _total(scaled.detach() / fixed, mask)
    weights = fill_absent(mask, scaled.detach() / fixed, 0.0)
    return sum_of_products(scaled, torch.log(distance)), weights


def _distance(losses: Tensor, min_losses: float | Tensor) -> Tensor:
    """How far the losses are above their lower bounds."""
    check_scalar_or_shape("min_losses", min_losses, losses.shape, "losses")
    return losses - scalar_in(losses.dtype, min_losses) + constant(EPS, losses)


def _distance_and_share(
    losses: Tensor, logits: Tensor, min_losses: float | Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The losses above their bounds (1 where absent), and the softmax of the logits."""
    check_tensors(mask, logits=logits, losses=losses)
    losses, logits = in_common_dtype(losses, logits)
    distance = fill_absent(mask, _distance(losses, min_losses), 1.0)
    return distance, fill_absent(mask, softmax(logits, mask), 0.0)


def _common_factor(distance: Tensor, mask: Tensor | None) -> Tensor:
    """A common factor for the terms of the sum that normalises the weights, which cancels out.

    Without it, losses near the largest number would leave a sum that underflows. It is not a number
    if a loss is below its bound: there are no weights then.
    """
    distance = fill_absent(mask, distance, torch.finfo(distance.dtype).max)
    return torch.sqrt(distance.amin() if distance.numel() else distance.sum())


def _total(terms: Tensor, mask: Tensor | None) -> Tensor:
    """The sum that normalises the weights; 1 for a batch without any task, whose sum is 0."""
    total = terms.sum()
    return total if mask is None else torch.where(mask.any(), total, 1.0)
