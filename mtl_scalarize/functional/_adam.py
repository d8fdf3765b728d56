"""One step of Adam as a pure function."""

import math

import torch
from torch import Tensor

from ._precision import scalar_in

# The defaults of Kingma and Ba (https://arxiv.org/abs/1412.6980), which FAMO keeps.
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def adam_step(
    param: Tensor,
    grad: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    updates: Tensor,
    *,
    lr: float | Tensor,
    weight_decay: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of ``torch.optim.Adam``, with its ``weight_decay`` added to the gradient.

    ``updates`` counts per element: an element that is updated for the first time gets the bias
    correction of a first step.

    Returns:
        The new ``param``, ``first_moment``, ``second_moment`` and ``updates``.
    """
    grad = grad + scalar_in(param.dtype, weight_decay) * param
    first_moment = torch.lerp(first_moment, grad, 1 - BETA1)
    second_moment = torch.lerp(second_moment, grad * grad, 1 - BETA2)
    updates = updates + 1
    # 1 - beta**t by expm1: in float32 the difference itself would keep four digits at t = 1.
    time = updates.to(param.dtype)
    correction = -torch.expm1(math.log(BETA1) * time)
    correction_sq = -torch.expm1(math.log(BETA2) * time)
    # A square root has no derivative at 0. This floor, far below EPS**2, keeps it positive.
    floor = (1e-3 * EPS * torch.finfo(param.dtype).eps) ** 2
    root = (second_moment / correction_sq).clamp(min=floor).sqrt()
    param = param - scalar_in(param.dtype, lr) * (first_moment / correction) / (root + EPS)
    return param, first_moment, second_moment, updates
