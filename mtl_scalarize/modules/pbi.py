"""The module of Penalty-based Boundary Intersection."""

from torch import Tensor

from ..functional._checks import check_priorities, check_scalar
from ..functional.pbi import pbi, pbi_weights
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class PBI(Scalarizer):
    r"""Penalty-based Boundary Intersection: losses along a direction, and a penalty beside it.

    .. math::
        d_1 + \theta \, d_2, \qquad d_1 = (\ell - z) \cdot \hat r, \quad
        d_2 = \| \ell - z - d_1 \hat r \|, \qquad \hat r = \frac{p \, w}{\|p \, w\|}

    - :math:`\ell` are the losses;
    - :math:`z` is the ideal point, below them;
    - :math:`\hat r` is the direction of the preference, with the priorities :math:`p`;
    - :math:`\theta` is the penalty.

    A task whose loss is small for its preference gets a negative weight. The function is
    :func:`~mtl_scalarize.pbi`, which names the paper.

    Args:
        theta: :math:`\theta`, non-negative. The paper uses 5.
        weights: :math:`w`, non-negative: a number, or one for each task as a tensor, a list, or a
            mapping by name. The attribute is ``preference``.
        reference: the ideal point :math:`z`, likewise. None: 0.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.

    Raises:
        ValueError: ``theta`` is negative, ``weights``, ``reference`` or ``priorities`` is not of
            shape S or not finite, or ``weights`` or ``priorities`` is negative.

    Example:
        >>> import torch
        >>> PBI(5.0, [1.0, 0.0])(torch.tensor([4.0, 3.0]))
        tensor(19.)
    """

    theta = Hyperparameter(check=check_scalar)
    preference = Hyperparameter(each=check_priorities, argument="weights")
    reference = Hyperparameter(0.0)
    priorities = Hyperparameter(1.0, each=check_priorities)

    def __init__(
        self,
        theta: float | Tensor,
        weights: Value,
        reference: Value = None,
        *,
        priorities: Value = None,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(shape)
        self.theta, self.preference, self.reference = theta, weights, reference
        self.priorities = priorities

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "mask": mask}
        return pbi(losses, self.theta, self.preference, self.reference, **options)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "mask": mask}
        return pbi_weights(losses, self.theta, self.preference, self.reference, **options)
