"""The methods as in the papers, in exact arithmetic: an oracle that shares no code with torch.

(The docstrings of the functions name them.) Every vector is a NumPy array of mpmath's numbers, one
a task that is present: an absent task is not there, and an empty vector has sum 0.
"""

from typing import Any, NamedTuple

import mpmath
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

mpmath.mp.dps = 50  # decimal digits

Vector = NDArray[Any]

EPS = mpmath.mpf("1e-8")  # inside FAMO's logarithm, and in Adam's denominator
BETA1, BETA2 = mpmath.mpf(0.9), mpmath.mpf(0.999)  # in float64, as Adam has them

exp, log, sqrt = (np.frompyfunc(of, 1, 1) for of in (mpmath.exp, mpmath.log, mpmath.sqrt))


def exact(tensor: Tensor, mask: Tensor | None = None) -> Vector:
    """The entries of the tasks that are present."""
    present = tensor.detach() if mask is None else tensor.detach()[mask]
    return np.array([mpmath.mpf(number) for number in present.flatten().tolist()], dtype=object)


class Combined(NamedTuple):
    terms: Vector  # their sum is the scalar
    weights: Vector  # d scalar / d losses


def uw(losses: Vector, log_var: Vector) -> Combined:
    weights = exp(-log_var) / 2
    return Combined(np.concatenate([weights * losses, log_var / 2]), weights)


def imtll(losses: Vector, log_scale: Vector) -> Combined:
    weights = exp(log_scale)
    return Combined(np.concatenate([weights * losses, -log_scale]), weights)


def softmax(logits: Vector) -> Vector:
    exps = exp(logits)
    return exps / exps.sum()


def dwa_weights(rates: Vector, temperature: float) -> Vector:
    return len(rates) * softmax(rates / temperature)


def log_sum(losses: Vector) -> Combined:
    return Combined(log(losses + EPS), 1 / (losses + EPS))


def geometric_mean(losses: Vector) -> Combined:
    mean = exp(log(losses).sum() / (len(losses) or 1)) if len(losses) else mpmath.mpf(0)
    return Combined(np.array([mean]), mean / (len(losses) or 1) / losses)


def stch(losses: Vector, mu: float, preference: Vector, reference: Vector) -> Combined:
    exponents = preference * (losses - reference) / mu
    terms = [mu * log(exp(exponents).sum())] if len(losses) else []
    return Combined(np.array(terms, dtype=object), preference * softmax(exponents))


def cosmos(losses: Vector, penalty: float, preference: Vector) -> Combined:
    length, wanted = sqrt((losses**2).sum()), preference / (sqrt((preference**2).sum()) or 1)
    along = losses / (length or 1)
    cosine = (along * wanted).sum()
    weights = preference - penalty * (wanted - cosine * along) / (length or 1)
    return Combined(np.append(preference * losses, -penalty * cosine), weights)


def pbi(losses: Vector, penalty: float, preference: Vector, reference: Vector) -> Combined:
    """With what is added in quadrature."""
    distances, direction = losses - reference, preference / (sqrt((preference**2).sum()) or 1)
    along = (distances * direction).sum()
    beside = distances - along * direction
    small = mpmath.mpf("1e-6") * max(abs(distances), default=0)
    length = sqrt((beside**2).sum() + small**2)
    weights = direction + penalty * beside / (length or 1)
    return Combined(np.array([along, penalty * length]), weights)


def relobralo(
    losses: Vector, state: list[Vector], rho: int, alpha: float, temperature: float
) -> Vector:
    """The state is the weights, the first losses and the last."""
    weights, since_first, since_last = (
        state[0],
        *(dwa_weights(losses / earlier, temperature) for earlier in state[1:]),
    )
    return alpha * (rho * weights + (1 - rho) * since_first) + (1 - alpha) * since_last


def famo(distances: Vector, logits: Vector) -> Combined:
    """The distances are l - b + eps."""
    shares = softmax(logits)
    c = 1 / ((shares / distances).sum() or 1)
    return Combined(c * shares * log(distances), c * shares / distances)


def famo_delta(before: Vector, after: Vector) -> Vector:
    with mpmath.workdps(330):  # a loss of 1e-280 has digits beside eps
        return log(before + EPS) - log(after + EPS)


def famo_gradient(logits: Vector, delta: Vector) -> Vector:
    shares = softmax(logits)
    return shares * (delta - (shares * delta).sum())


def adam_change(first_moment: Vector, second_moment: Vector, updates: Vector) -> Vector:
    """What Adam subtracts from a parameter at a learning rate of 1, after so many updates."""
    mean, mean_sq = first_moment / (1 - BETA1**updates), second_moment / (1 - BETA2**updates)
    return mean / (sqrt(mean_sq) + EPS)
