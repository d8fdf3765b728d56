"""The module of Uncertainty Weighting."""

import torch
from torch import Tensor, nn

from ..functional._checks import check_priorities, check_scalar
from ..functional._precision import default_dtype
from ..functional.uw import uw_loss, uw_weights
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class UW(Scalarizer):
    r"""Uncertainty Weighting: learns how noisy each task is, and divides its loss by that.

    .. math::
        \tfrac{1}{2} \sum_i p_i \left( e^{-s_i} (\ell_i + \epsilon) + s_i \right),
        \qquad s_i = \log \sigma_i^2

    - :math:`\ell_i` is the loss of task :math:`i`;
    - :math:`s_i` is its log-variance, the parameter ``log_var``, learned by your optimizer: pass
      ``scalarizer.parameters()`` to it, without weight decay and with a learning rate at which
      they can move by several units. :func:`~mtl_scalarize.check_optimizer` raises an error if
      the optimizer lacks them.
    - :math:`p_i` is its priority, which moves its weight and not the optimum of :math:`s_i`.

    The losses should be positive. The weight of a loss that stays negative grows with every step,
    and ``eps`` does not bound it: add a constant to such a loss.

    The function is :func:`~mtl_scalarize.uw_loss`, which names the paper.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.
        init: where the log-variances start: a number, or one for each task as a tensor, a list, or
            a mapping by name, such as the logarithm of the first losses if these are far from 1.
        eps: :math:`\epsilon`, added to every loss, non-negative. The weight of a loss that stays at
            exactly 0, as a satisfied hinge loss does, grows with every step: for such a loss pass
            the size below which it does not matter. Its weight then ends at ``0.5 / eps``.

    Raises:
        ValueError: ``init`` or ``priorities`` is not of shape S or not finite, or ``priorities`` or
            ``eps`` is negative.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = UW(2)
        >>> optimizer = torch.optim.Adam(
        ...     [
        ...         {"params": model.parameters()},
        ...         {"params": scalarizer.parameters(), "lr": 0.01, "weight_decay": 0.0},
        ...     ],
        ...     lr=1e-3,
        ... )
        >>> losses = model(torch.randn(8, 3)).square().mean(dim=0)  # one loss per output
        >>> scalarizer(losses).backward()
        >>> scalarizer.weights
        tensor([0.5000, 0.5000])
        >>> optimizer.step()
    """

    weights_depend_on = "state"
    lower_bound = 0.0
    init = Hyperparameter(0.0)
    priorities = Hyperparameter(1.0, each=check_priorities)
    eps = Hyperparameter(0.0, check_scalar)

    def __init__(
        self,
        shape: Shape,
        *,
        priorities: Value = None,
        init: Value = 0.0,
        eps: float | Tensor = 0.0,
    ) -> None:
        super().__init__(shape, optional=False)
        self.priorities, self.init, self.eps = priorities, init, eps
        self.log_var = nn.Parameter(torch.empty(self.shape or (), dtype=default_dtype()))
        self.reset()

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "eps": self.eps}
        return uw_loss(losses, self.log_var, mask=mask, **options)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return uw_weights(self.log_var, priorities=self.priorities, mask=mask)

    def reset(self) -> None:
        super().reset()
        with torch.no_grad():
            self.log_var.zero_().add_(self.init)
