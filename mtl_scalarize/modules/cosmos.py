"""The module of COSMOS."""

from torch import Tensor

from ..functional._checks import check_priorities, check_scalar
from ..functional.cosmos import cosmos, cosmos_weights
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class COSMOS(Scalarizer):
    r"""COSMOS: the weighted sum, and a reward for losses in the ratio of the weights.

    .. math::
        r \cdot \ell - \lambda \frac{r \cdot \ell}{\|r\| \, \|\ell\|}, \qquad r = p \, w

    - :math:`\ell` are the losses;
    - :math:`r` is the preference, with the priorities :math:`p`;
    - :math:`\lambda` is the weight of the cosine of the angle between both.

    A task whose loss is small for its preference gets a negative weight. The function is
    :func:`~mtl_scalarize.cosmos`, which names the paper.

    Args:
        lambda_: :math:`\lambda`, non-negative. The paper uses 0.01 to 8.
        weights: :math:`w`, non-negative: a number, or one for each task as a tensor, a list, or a
            mapping by name. The attribute is ``preference``: to train for all trade-offs, assign a
            new one for each batch.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.

    Raises:
        ValueError: ``lambda_`` is negative, or ``weights`` or ``priorities`` is not of shape S, not
            finite, or negative.

    Example:
        >>> import torch
        >>> scalarizer = COSMOS(1.0, [0.8, 0.6])
        >>> scalarizer(torch.tensor([4.0, 3.0]))
        tensor(4.)
    """

    lambda_ = Hyperparameter(check=check_scalar)
    preference = Hyperparameter(each=check_priorities, argument="weights")
    priorities = Hyperparameter(1.0, each=check_priorities)

    def __init__(
        self,
        lambda_: float | Tensor,
        weights: Value,
        *,
        priorities: Value = None,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(shape)
        self.lambda_, self.preference, self.priorities = lambda_, weights, priorities

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "mask": mask}
        return cosmos(losses, self.lambda_, self.preference, **options)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "mask": mask}
        return cosmos_weights(losses, self.lambda_, self.preference, **options)
