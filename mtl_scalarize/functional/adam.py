"""One step of Adam as a pure function."""

import torch
from torch import Tensor

from .precision import constant, scalar_in

# The defaults of Kingma and Ba (https://arxiv.org/abs/1412.6980), which FAMO keeps.
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float | Tensor,
    weight_decay: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``torch.optim.Adam`` does to ``param`` and its state, operation for operation.

    ``step`` counts per element, so that an element updated for the first time gets the bias
    correction of a first step.

    Returns:
        The new ``param``, ``exp_avg``, ``exp_avg_sq`` and ``step``.
    """
    dtype = param.dtype
    weight_decay = scalar_in(dtype, weight_decay)
    # A fused multiply-add rounds once, as Adam's does; `alpha` cannot be a tensor.
    if isinstance(weight_decay, Tensor):
        grad = grad + weight_decay * param
    else:
        grad = torch.add(grad, param, alpha=weight_decay)
    step = step + 1
    exp_avg = torch.lerp(exp_avg, grad, 1 - BETA1)
    exp_avg_sq = torch.addcmul(
        exp_avg_sq * constant(BETA2, exp_avg_sq), grad, grad, value=1 - BETA2
    )

    # In float64, as Adam's Python floats are: 1 - 0.999**1 keeps only four digits in float32.
    time = step.double()
    one = constant(1.0, time)
    correction = (one - torch.pow(constant(BETA1, time), time)).to(dtype)
    correction_sq = (one - torch.pow(constant(BETA2, time), time)).sqrt().to(dtype)

    # The square root has no derivative at 0. This keeps clear of it, by too little to change a bit
    # of the denominator.
    root = exp_avg_sq.clamp(min=(1e-3 * EPS * torch.finfo(dtype).eps) ** 2).sqrt()
    denominator = (root / correction_sq + constant(EPS, root)) * correction
    if isinstance(lr, Tensor):
        param = torch.addcdiv(param, lr.to(dtype) * exp_avg, denominator, value=-1)
    else:
        param = torch.addcdiv(param, exp_avg, denominator, value=-lr)
    return param, exp_avg, exp_avg_sq, step
