"""The module of the geometric mean."""

from torch import Tensor

from ..functional._checks import check_priorities
from ..functional.geometric import geometric_mean, geometric_mean_weights
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class GeometricMean(Scalarizer):
    r"""The geometric mean of the losses that are present, the Geometric Loss Strategy (GLS).

    .. math::
        \Big( \prod_i \ell_i^{p_i} \Big)^{1 / \sum_i p_i}

    Only ratios of the priorities :math:`p` matter. A negative loss makes the scalar and all its
    gradients nan. A loss of exactly 0 makes the scalar 0 and its own gradient nan. The function is
    :func:`~mtl_scalarize.geometric_mean`, which names the paper.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.

    Raises:
        ValueError: ``priorities`` is not of shape S, not finite, or negative.

    Example:
        >>> import torch
        >>> GeometricMean()(torch.tensor([4.0, 1.0]))
        tensor(2.)
    """

    lower_bound = 0.0
    priorities = Hyperparameter(1.0, each=check_priorities)

    def __init__(self, shape: Shape | None = None, *, priorities: Value = None) -> None:
        super().__init__(shape)
        self.priorities = priorities

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return geometric_mean(losses, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return geometric_mean_weights(losses, priorities=self.priorities, mask=mask)
