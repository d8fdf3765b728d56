"""The module of smooth Tchebycheff scalarization."""

from torch import Tensor

from ..functional._checks import check_positive, check_priorities
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
    - :math:`\lambda_i = p_i w_i` is its preference, with its priority :math:`p_i`;
    - :math:`z_i` is the best value it can have, its component of the ideal point;
    - :math:`\mu` is the smoothing: the smaller, the closer to the maximum.

    The function is :func:`~mtl_scalarize.stch`, which names the paper.

    Args:
        mu: :math:`\mu > 0`, in the unit of the losses times their preference. The paper uses 0.01
            to 1.
        weights: :math:`w`: a number, or one for each task as a tensor, a list, or a mapping by
            name. None: :math:`1/m` for each of the m tasks that are present. The attribute is
            ``preference``.
        reference: the ideal point :math:`z`, likewise. None: 0.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.

    Raises:
        ValueError: ``mu`` is not positive, ``weights``, ``reference`` or ``priorities`` is not of
            shape S or not finite, or ``priorities`` is negative.

    Example:
        >>> import torch
        >>> scalarizer = STCH(mu=0.1)
        >>> scalar = scalarizer(torch.tensor([4.0, 1.0]))
        >>> scalarizer.weights
        tensor([5.0000e-01, 1.5295e-07])
    """

    mu = Hyperparameter(check=check_positive)
    preference = Hyperparameter(optional=True, argument="weights")
    priorities = Hyperparameter(1.0, each=check_priorities)
    reference = Hyperparameter(0.0)

    def __init__(
        self,
        mu: float | Tensor,
        weights: Value = None,
        reference: Value = None,
        *,
        priorities: Value = None,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(shape)
        self.mu, self.preference, self.reference = mu, weights, reference
        self.priorities = priorities
        if shape is None:
            self._cautions.warn(looks_like_tasks("STCH", "mu", mu))

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "mask": mask}
        return stch(losses, self.mu, self.preference, self.reference, **options)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "mask": mask}
        return stch_weights(losses, self.mu, self.preference, self.reference, **options)
