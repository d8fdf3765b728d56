"""The modules of the weighted sum: the sum, the mean, and the user's own weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..functional._checks import check_priorities
from ..functional.constant import (
    constant_combine,
    mean_combine,
    mean_weights,
    sum_weights,
)
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class Sum(Scalarizer):
    r"""The sum of the losses, the baseline for every other method.

    .. math::
        \sum_i p_i \ell_i

    Args:
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.

    Raises:
        ValueError: ``priorities`` is not of shape S, not finite, or negative.

    Example:
        >>> Sum(priorities={"depth": 0.5}, shape=["depth", "normals"])(
        ...     {"depth": torch.tensor(4.0), "normals": torch.tensor(1.0)}
        ... )
        tensor(3.)
        >>> Sum()(torch.tensor([4.0, 1.0]))
        tensor(5.)
    """

    weights_depend_on = "nothing"
    priorities = Hyperparameter(1.0, each=check_priorities)

    def __init__(self, shape: Shape | None = None, *, priorities: Value = None) -> None:
        super().__init__(shape)
        self.priorities = priorities

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return constant_combine(losses, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return sum_weights(losses, priorities=self.priorities, mask=mask)


class Mean(Scalarizer):
    r"""The mean of the losses, over the tasks that are present.

    .. math::
        \frac{\sum_i p_i \ell_i}{\sum_i p_i}

    Only ratios of the priorities :math:`p` matter.

    Args:
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.

    Raises:
        ValueError: ``priorities`` is not of shape S, not finite, or negative.

    Example:
        >>> Mean()(torch.tensor([4.0, 1.0]))
        tensor(2.5000)
    """

    weights_depend_on = "nothing"
    priorities = Hyperparameter(1.0, each=check_priorities)

    def __init__(self, shape: Shape | None = None, *, priorities: Value = None) -> None:
        super().__init__(shape)
        self.priorities = priorities

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return mean_combine(losses, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return mean_weights(losses, priorities=self.priorities, mask=mask)


class Constant(Scalarizer):
    r"""The sum of the losses with weights of your own: :class:`Sum` with these priorities.

    .. math::
        \sum_i w_i \ell_i

    The weights may be negative, unlike priorities elsewhere. The function is
    :func:`~mtl_scalarize.constant_combine`.

    Args:
        weights: the weights :math:`w`: a tensor of the shape of the losses, a list, or a mapping of
            name to number, which gives the tasks their names. The attribute is ``priorities``. It
            is in no checkpoint.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            that of the weights.

    Raises:
        ValueError: ``weights`` is not of shape S, not finite, or requires gradients.

    Example:
        >>> scalarizer = Constant({"depth": 0.5, "normals": 2.0})
        >>> scalarizer({"depth": torch.tensor(4.0), "normals": torch.tensor(1.0)})
        tensor(4.)
    """

    weights_depend_on = "nothing"
    priorities = Hyperparameter(expand=True, argument="weights")

    def __init__(self, weights: Value, *, shape: Shape | None = None) -> None:
        if shape is None and isinstance(weights, Mapping):
            shape = list(weights)
        super().__init__(shape)
        self.priorities = weights  # as a tensor
        self.shape = tuple(torch.as_tensor(self.priorities).shape)

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return constant_combine(losses, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return sum_weights(losses, priorities=self.priorities, mask=mask)
