"""The module of smooth Tchebycheff scalarization."""

from torch import Tensor

from ..functional._checks import check_positive
from ..functional.stch import stch, stch_weights
from .cautions import looks_like_tasks
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class STCH(Scalarizer):
    r"""Smooth Tchebycheff scalarization: a smooth maximum, so that the worst task weighs most.

    .. math::
        \mu \log \sum_i \exp \left( \frac{\lambda_i (\ell_i - z_i)}{\mu} \right)

    - :math:`\ell_i` is the loss of task :math:`i`;
    - :math:`\lambda_i` is its preference;
    - :math:`z_i` is the best value it can have, its component of the ideal point;
    - :math:`\mu` is the smoothing: the smaller, the closer to the maximum.

    The function is :func:`~mtl_scalarize.stch`, which names the paper.

    Args:
        mu: :math:`\mu > 0`, in the unit of the losses times their preference. The paper uses 0.01
            to 1.
        weights: the preference :math:`\lambda`: a number, or one for each task as a tensor, a list,
            or a mapping by name. None: :math:`1/m` for each of the m tasks that are present. The
            attribute is ``priorities``.
        reference: the ideal point :math:`z`, likewise. None: 0.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.

    Raises:
        ValueError: ``mu`` is not positive, or ``weights`` or ``reference`` is not of shape S or not
            finite.

    Example:
        >>> import torch
        >>> scalarizer = STCH(mu=0.1)
        >>> scalar = scalarizer(torch.tensor([4.0, 1.0]))
        >>> scalarizer.weights
        tensor([5.0000e-01, 1.5295e-07])
    """

    mu = Hyperparameter(check=check_positive)
    priorities = Hyperparameter(optional=True, argument="weights")
    reference = Hyperparameter(0.0)

    def __init__(
        self,
        mu: float | Tensor,
        weights: Value = None,
        reference: Value = None,
        *,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(shape)
        self.mu, self.priorities, self.reference = mu, weights, reference
        if shape is None:
            self._cautions.warn(looks_like_tasks("STCH", "mu", mu))

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return stch(losses, self.mu, self.priorities, self.reference, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return stch_weights(losses, self.mu, self.priorities, self.reference, mask=mask)
