"""The four methods in plain NumPy float64, task by task: an oracle that shares no code with torch.

Written from the papers' formulas (Kendall 2018, Liu 2021, Liu 2019, Liu 2023). A mask of None
means that every task is present. An absent task is simply not in the loop.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Task = tuple[int, ...]

LOG_EPS = 1e-8  # inside FAMO's logarithm
ADAM_EPS = 1e-8
BETA1, BETA2 = 0.9, 0.999


class Combined(NamedTuple):
    """What a method makes of one batch of losses."""

    scalar: float
    task_weights: Array  # d scalar / d losses; 0 where absent
    magnitude: float  # the sum of the terms' sizes: rounding of the scalar is relative to it


def _present(shape: tuple[int, ...], mask: Array | None) -> Iterator[Task]:
    for task in np.ndindex(shape):
        if mask is None or mask[task]:
            yield task


def _combined(terms: list[float], task_weights: Array) -> Combined:
    scalar, magnitude = sum(terms), sum(abs(term) for term in terms)
    return Combined(float(scalar), task_weights, float(magnitude))


def _softmax(logits: dict[Task, Any]) -> dict[Task, Any]:
    largest = max(logits.values(), default=0.0)
    exps = {task: np.exp(logit - largest) for task, logit in logits.items()}
    total = sum(exps.values())
    return {task: value / total for task, value in exps.items()}


@np.errstate(all="ignore")
def uw(losses: Array, log_var: Array, mask: Array | None = None) -> tuple[Combined, Array]:
    """`sum(0.5*exp(-s)*l + 0.5*s)`, and its gradient in s."""
    task_weights, gradient, terms = np.zeros(losses.shape), np.zeros(losses.shape), []
    for task in _present(losses.shape, mask):
        task_weights[task] = 0.5 * np.exp(-log_var[task])
        gradient[task] = 0.5 - 0.5 * np.exp(-log_var[task]) * losses[task]
        terms += [task_weights[task] * losses[task], 0.5 * log_var[task]]
    return _combined(terms, task_weights), gradient


@np.errstate(all="ignore")
def imtll(losses: Array, log_scale: Array, mask: Array | None = None) -> tuple[Combined, Array]:
    """`sum(exp(s)*l - s)`, and its gradient in s."""
    task_weights, gradient, terms = np.zeros(losses.shape), np.zeros(losses.shape), []
    for task in _present(losses.shape, mask):
        task_weights[task] = np.exp(log_scale[task])
        gradient[task] = np.exp(log_scale[task]) * losses[task] - 1.0
        terms += [task_weights[task] * losses[task], -log_scale[task]]
    return _combined(terms, task_weights), gradient


class DWAState(NamedTuple):
    loss_sum: Array
    count: Array
    last: Array
    previous: Array
    epochs: Array


def dwa_init(shape: tuple[int, ...]) -> DWAState:
    return DWAState(*(np.zeros(shape) for _ in DWAState._fields))


def dwa_accumulate(state: DWAState, losses: Array, mask: Array | None = None) -> DWAState:
    loss_sum, count = state.loss_sum.copy(), state.count.copy()
    for task in _present(losses.shape, mask):
        if np.isfinite(losses[task]):
            loss_sum[task] += losses[task]
            count[task] += 1
    return state._replace(loss_sum=loss_sum, count=count)


def dwa_step(state: DWAState) -> DWAState:
    loss_sum, count, last, previous, epochs = (field.copy() for field in state)
    for task in np.ndindex(count.shape):
        if count[task] > 0:
            previous[task] = last[task]
            last[task] = loss_sum[task] / count[task]
            loss_sum[task] = count[task] = 0
            epochs[task] += 1
    return DWAState(loss_sum, count, last, previous, epochs)


@np.errstate(all="ignore")
def dwa_lambda(state: DWAState, temperature: float) -> Array:
    """`m*softmax(last/previous/T)` over the m tasks that are ready; the others weigh 1."""
    logits = {}
    for task in np.ndindex(state.last.shape):
        rate = state.last[task] / state.previous[task]
        if state.epochs[task] >= 2 and np.isfinite(rate):
            logits[task] = rate / temperature
    lambdas = np.ones(state.last.shape)
    for task, share in _softmax(logits).items():
        lambdas[task] = len(logits) * share
    return lambdas


@np.errstate(all="ignore")
def dwa(losses: Array, state: DWAState, temperature: float, mask: Array | None = None) -> Combined:
    """`sum(lambda*l)` over the present tasks."""
    lambdas = dwa_lambda(state, temperature)
    task_weights, terms = np.zeros(losses.shape), []
    for task in _present(losses.shape, mask):
        task_weights[task] = lambdas[task]
        terms.append(lambdas[task] * losses[task])
    return _combined(terms, task_weights)


@np.errstate(all="ignore")
def famo(losses: Array, logits: Array, min_losses: Array, mask: Array | None = None) -> Combined:
    """`c*sum(z*log(l-b+eps))`, z the softmax over the present tasks, c = 1/sum(z/(l-b+eps))."""
    tasks = list(_present(losses.shape, mask))
    z = _softmax({task: logits[task] for task in tasks})
    gap = {task: losses[task] - min_losses[task] + LOG_EPS for task in tasks}
    c = np.float64(1.0) / sum(z[task] / gap[task] for task in tasks)
    task_weights = np.zeros(losses.shape)
    for task in tasks:
        task_weights[task] = c * z[task] / gap[task]
    return _combined([c * z[task] * np.log(gap[task]) for task in tasks], task_weights)


def famo_jacobians(
    losses: Array, logits: Array, min_losses: Array, mask: Array | None = None
) -> tuple[Array, Array]:
    """Of the task weights p, in log(l-b+eps) and in the logits: p = softmax(logits - log(gap))."""
    p = famo(losses, logits, min_losses, mask).task_weights
    in_logits = np.zeros(p.shape * 2)
    for i in np.ndindex(p.shape):
        for j in np.ndindex(p.shape):
            in_logits[i + j] = p[i] * (float(i == j) - p[j])
    return -in_logits, in_logits


@np.errstate(all="ignore")
def famo_delta(before: Array, after: Array, min_losses: Array) -> Array:
    return np.asarray(np.log(before - min_losses + LOG_EPS) - np.log(after - min_losses + LOG_EPS))


class FAMOState(NamedTuple):
    logits: Array
    exp_avg: Array
    exp_avg_sq: Array
    step: Array


def famo_update(
    state: FAMOState, delta: Array, lr: float, weight_decay: float, mask: Array | None = None
) -> FAMOState:
    """One step of torch.optim.Adam on each present logit, with a step count of its own."""
    tasks = [task for task in _present(delta.shape, mask) if np.isfinite(delta[task])]
    z = _softmax({task: state.logits[task] for task in tasks})
    mean = sum(z[task] * delta[task] for task in tasks)
    logits, exp_avg, exp_avg_sq, step = (field.copy() for field in state)
    for task in tasks:
        gradient = z[task] * (delta[task] - mean) + weight_decay * logits[task]
        step[task] += 1
        exp_avg[task] = BETA1 * exp_avg[task] + (1 - BETA1) * gradient
        exp_avg_sq[task] = BETA2 * exp_avg_sq[task] + (1 - BETA2) * gradient**2
        m = exp_avg[task] / (1 - BETA1 ** step[task])
        v = exp_avg_sq[task] / (1 - BETA2 ** step[task])
        logits[task] -= lr * m / (np.sqrt(v) + ADAM_EPS)
    return FAMOState(logits, exp_avg, exp_avg_sq, step)
