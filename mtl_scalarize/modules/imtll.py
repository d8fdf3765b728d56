"""The module of IMTL-L."""

import torch
from torch import Tensor, nn

from ..functional._checks import check_priorities, check_scalar
from ..functional._precision import default_dtype
from ..functional.imtll import imtll_loss, imtll_weights
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class IMTLL(Scalarizer):
    r"""The loss balance of Impartial Multi-Task Learning: learns a scale for each loss.

    .. math::
        \sum_i p_i \left( e^{s_i} (\ell_i + \epsilon) - s_i \right)

    - :math:`\ell_i` is the loss of task :math:`i`;
    - :math:`s_i` is the logarithm of its scale, the parameter ``log_scale``, learned by your
      optimizer: pass ``scalarizer.parameters()`` to it, without weight decay and with a learning
      rate at which they can move by several units.
    - :math:`p_i` is its priority, which moves its weight and not the optimum of :math:`s_i`.

    The losses should be positive. The weight of a loss that stays negative grows with every step,
    and ``eps`` does not bound it: add a constant to such a loss.

    The function is :func:`~mtl_scalarize.imtll_loss`, which names the paper.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.
        init: where the logarithms of the scales start: a number, or one for each task as a tensor,
            a list, or a mapping by name, such as *minus* the logarithm of the first losses if these
            are far from 1.
        eps: :math:`\epsilon`, added to every loss, non-negative. The weight of a loss that stays at
            exactly 0, as a satisfied hinge loss does, grows with every step: for such a loss pass
            the size below which it does not matter. Its weight then ends at ``1 / eps``.

    Raises:
        ValueError: ``init`` or ``priorities`` is not of shape S or not finite, or ``priorities`` or
            ``eps`` is negative.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = IMTLL(2)
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
        tensor([1., 1.])
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
        self.log_scale = nn.Parameter(torch.empty(self.shape or (), dtype=default_dtype()))
        self.reset()

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "eps": self.eps}
        return imtll_loss(losses, self.log_scale, mask=mask, **options)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return imtll_weights(self.log_scale, priorities=self.priorities, mask=mask)

    def reset(self) -> None:
        super().reset()
        with torch.no_grad():
            self.log_scale.zero_().add_(self.init)
