"""The module of Uncertainty Weighting."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..functional.checks import (
    as_shape,
    check_has_values,
    check_hyperparameter,
    check_scalar_or_shape,
)
from ..functional.uw import uw_loss, uw_weights
from .names import Shape
from .scalarizer import Losses, Scalarizer, default_dtype, fill, shown


class UW(Scalarizer):
    r"""Uncertainty Weighting: learns how noisy each task is, and divides its loss by that.

    .. math::
        \tfrac{1}{2} \sum_i \left( e^{-s_i} (\ell_i + \epsilon) + s_i \right),
        \qquad s_i = \log \sigma_i^2

    - :math:`\ell_i` is the loss of task :math:`i`;
    - :math:`s_i` is its log-variance, the parameter ``log_var``, learned by your optimizer: pass
      ``scalarizer.parameters()`` to it, without weight decay and with a learning rate at which
      they can travel several units.

    The losses should be positive. The weight of a loss that stays negative grows with every step,
    and ``eps`` does not bound it: add a constant to such a loss.

    The function is :func:`~mtl_scalarize.uw_loss`, which names the paper.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`.
        init: where the log-variances start: a number, or a tensor of shape S, such as the logarithm
            of the first losses if these are far from 1.
        eps: :math:`\epsilon`, added to every loss, non-negative. A loss that stays at exactly 0, as
            a satisfied hinge loss does, raises its weight to about ``0.5 / eps``. The default only
            keeps that finite: for such a loss pass the size below which it does not matter.
        process_group: see :class:`Scalarizer`.

    Raises:
        TypeError: ``init`` is neither a number nor a tensor.
        ValueError: ``init`` is not of shape S, or ``eps`` is negative.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = UW(2)
        >>> optimizer = torch.optim.Adam(
        ...     [
        ...         {"params": model.parameters()},
        ...         {"params": scalarizer.parameters(), "lr": 0.02, "weight_decay": 0.0},
        ...     ],
        ...     lr=1e-3,
        ... )
        >>> losses = model(torch.randn(8, 3)).square().mean(dim=0)  # one loss per output
        >>> scalarizer(losses).backward()
        >>> optimizer.step()
        >>> scalarizer.weights
        tensor([0.5000, 0.5000])
    """

    settings = ("eps",)
    linear = True

    log_var: nn.Parameter

    def __init__(
        self,
        shape: Shape,
        *,
        init: float | Tensor = 0.0,
        eps: float = 1e-30,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        check_hyperparameter("eps", eps)
        super().__init__(shape)
        self.log_var = nn.Parameter(torch.empty(as_shape(self.shape), dtype=default_dtype()))
        check_has_values("init", init)
        check_scalar_or_shape("init", init, self.log_var.shape, "log_var")
        self.init = init.detach().clone() if isinstance(init, Tensor) else init
        self.eps = eps
        self.reset()
        self.process_group = process_group

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        losses, mask = self.prepare(losses, mask)
        log_var = self.log_var
        scalar = uw_loss(losses, log_var, eps=self.eps, mask=mask)
        self.report(uw_weights, log_var.detach().clone(), mask=mask)
        return scalar

    def reset(self) -> None:
        super().reset()
        with torch.no_grad():
            fill(self.log_var, self.init)

    def extra_repr(self) -> str:
        options = shown("init", self.init, 0.0) + shown("eps", self.eps, 1e-30)
        return super().extra_repr() + options
