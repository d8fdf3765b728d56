"""The module of ReLoBRaLo."""

import torch
from torch import Tensor

from ..functional._checks import check_positive, check_priorities, check_unit_interval
from ..functional.constant import constant_combine, constant_weights
from ..functional.relobralo import ReLoBRaLoState, relobralo_init, relobralo_update
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Stateful


class ReLoBRaLo(Stateful):
    r"""Relative Loss Balancing with Random Lookback: a task that falls more slowly weighs more.

    .. math::
        \sum_i p_i \, w_i(t) \, \ell_i(t), \qquad
        w(t) = \alpha \big( \rho \, w(t-1) + (1 - \rho) \, b(t, 0) \big)
        + (1 - \alpha) \, b(t, t-1), \qquad
        b(t, t') = K \, \mathrm{softmax} \Big( \frac{\ell(t)}{T \, \ell(t')} \Big)

    - :math:`\ell_i(t)` is the loss of task :math:`i` in batch :math:`t`, positive;
    - :math:`\alpha` says how slowly the weights change;
    - :math:`\rho` is 1 most of the time and else 0: then the weights look back to the first batch;
    - :math:`T` is the temperature.

    All weights are 1 in the first batch. In the second, the first batch is also the last, and both
    :math:`b` are the same. With ``alpha=0`` this is SoftAdapt, from ratios of the losses. The draw
    of :math:`\rho` comes from torch's generator, as that of :class:`Random` does.

    The functions are :func:`~mtl_scalarize.relobralo_update`, which names the paper, and those
    beside it.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`.
        temperature: :math:`T > 0`; the larger, the more uniform the weights.
        alpha: :math:`\alpha`, from 0 to 1.
        rho: the probability that :math:`\rho` is 1, from 0 to 1.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.

    Raises:
        ValueError: ``temperature`` is not positive, ``alpha`` or ``rho`` is not from 0 to 1,
            or ``priorities`` is not of shape S, not finite, or negative.

    Example:
        >>> scalarizer = ReLoBRaLo(2, temperature=1.0, alpha=0.9)
        >>> for losses in torch.tensor([[2.0, 1.0], [1.0, 1.0]]):
        ...     scalar = scalarizer(losses)
        >>> (scalarizer.weights[1] > scalarizer.weights[0]).item()  # it fell less
        True
    """

    priorities = Hyperparameter(1.0, each=check_priorities)
    temperature = Hyperparameter(0.1, check_positive)
    alpha = Hyperparameter(0.999, check_unit_interval)
    rho = Hyperparameter(0.999, check_unit_interval)

    def __init__(
        self,
        shape: Shape,
        temperature: float | Tensor = 0.1,
        alpha: float | Tensor = 0.999,
        rho: float | Tensor = 0.999,
        *,
        priorities: Value = None,
    ) -> None:
        super().__init__(shape, optional=False)
        self.temperature, self.alpha, self.rho = temperature, alpha, rho
        self.priorities = priorities

    def initial_state(self, shape: tuple[int, ...]) -> ReLoBRaLoState:
        return relobralo_init(shape)

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        drawn = self._ranks.draw(torch.rand((), dtype=torch.float32, device=losses.device))
        options = {"alpha": self.alpha, "temperature": self.temperature, "mask": mask}
        self.write(relobralo_update(self.state, losses, drawn >= self.rho, **options))

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        weights = self.state.running_weights.clone()  # the next call may come before `backward`
        return constant_combine(losses, weights, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        weights = self.state.running_weights
        return constant_weights(weights, priorities=self.priorities, mask=mask)
