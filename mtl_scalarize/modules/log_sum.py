"""The module of the sum of logarithms."""

from torch import Tensor

from ..functional._checks import check_priorities, check_scalar
from ..functional.log_sum import log_sum, log_sum_weights
from .cautions import looks_like_tasks
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class LogSum(Scalarizer):
    r"""The sum of the logarithms of the losses: no gradient depends on a loss's unit.

    .. math::
        \sum_i p_i \log(\ell_i - b_i + \epsilon)

    - :math:`\ell_i` is the loss of task :math:`i`, above its lower bound :math:`b_i`. A loss below
      its bound makes the scalar and its gradient nan;
    - :math:`p_i` is its priority. Only ratios matter for the direction of a step;
    - :math:`\epsilon` is the size below which a loss counts less.

    Known as the scale-invariant baseline (SI). The function is :func:`~mtl_scalarize.log_sum`,
    which names the papers.

    Args:
        min_losses: the lower bounds :math:`b`: a number, or one for each task as a tensor, a list,
            or a mapping by name. None: 0.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1. A factor before a loss
            changes nothing.
        eps: :math:`\epsilon`, non-negative.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.

    Raises:
        ValueError: ``min_losses`` or ``priorities`` is not of shape S or not finite, or
            ``priorities`` or ``eps`` is negative.

    Example:
        >>> import torch
        >>> LogSum()(torch.tensor([4.0, 1.0]))
        tensor(1.3863)
    """

    priorities = Hyperparameter(1.0, each=check_priorities)
    min_losses = Hyperparameter(0.0)
    eps = Hyperparameter(1e-8, check_scalar)

    def __init__(
        self,
        min_losses: Value = None,
        *,
        priorities: Value = None,
        eps: float | Tensor = 1e-8,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(shape)
        self.min_losses, self.priorities, self.eps = min_losses, priorities, eps
        if shape is None:
            self._cautions.warn(looks_like_tasks("LogSum", "min_losses", min_losses))

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "eps": self.eps}
        return log_sum(losses, self.min_losses, mask=mask, **options)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "eps": self.eps}
        return log_sum_weights(losses, self.min_losses, mask=mask, **options)
