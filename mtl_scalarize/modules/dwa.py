"""The module of Dynamic Weight Average."""

from torch import Tensor

from ..functional._checks import check_positive, check_priorities
from ..functional.constant import constant_combine, constant_weights
from ..functional.dwa import DWAState, dwa_accumulate, dwa_init, dwa_step
from . import cautions
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Stateful


class DWA(Stateful):
    r"""Dynamic Weight Average: weighs a task by how slowly its loss fell over the last two epochs.

    .. math::
        \sum_i p_i \lambda_i \ell_i, \qquad
        \lambda_i = m \, \frac{e^{r_i / T}}{\sum_j e^{r_j / T}}, \qquad
        r_i = \frac{L_i(t-1)}{L_i(t-2)}

    - :math:`\ell_i` is the loss of task :math:`i` in this batch;
    - :math:`L_i(t)` is its mean over epoch :math:`t`;
    - :math:`T` is the temperature;
    - :math:`m` is the number of tasks with a finite rate :math:`r`. The others weigh 1, so that the
      weights of K tasks sum to K.

    Call the module on every batch and :meth:`step` once at the end of every epoch. In the first two
    epochs all weights are 1. The functions are :func:`~mtl_scalarize.dwa_weights`, which names the
    paper, and those beside it.

    Args:
        temperature: :math:`T > 0`; the larger, the more uniform the weights. The paper uses 2. An
            assignment to the attribute takes effect at the next :meth:`step`.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            taken, with dtype and device, from the first losses or from a checkpoint.

    Raises:
        ValueError: ``temperature`` is not positive, or ``priorities`` is not of shape S, not
            finite, or negative.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = DWA()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for epoch in range(3):
        ...     for features in torch.randn(4, 8, 3):
        ...         losses = model(features).square().mean(dim=0)  # one loss per output
        ...         optimizer.zero_grad()
        ...         scalarizer(losses).backward()
        ...         optimizer.step()
        ...     scalarizer.step()
        >>> scalarizer.weights.sum().round(decimals=4)
        tensor(2.)
    """

    weights_depend_on = "state"
    priorities = Hyperparameter(1.0, each=check_priorities)
    temperature = Hyperparameter(2.0, check_positive)

    def __init__(
        self,
        temperature: float | Tensor = 2.0,
        *,
        priorities: Value = None,
        shape: Shape | None = None,
    ) -> None:
        super().__init__(shape)
        self.temperature, self.priorities = temperature, priorities
        if shape is None and temperature != 2:
            self._cautions.warn(cautions.looks_like_tasks("DWA", "temperature", temperature))

    def initial_state(self, shape: tuple[int, ...]) -> DWAState:
        return dwa_init(shape)

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        self.write(dwa_accumulate(self.state, losses, mask=mask))

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        weights = self.state.epoch_weights.clone()  # `step` may come before the backward pass
        return constant_combine(losses, weights, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        weights = self.state.epoch_weights
        return constant_weights(weights, priorities=self.priorities, mask=mask)

    def step(self) -> None:
        if self.shape is not None and not self._idle("step"):
            self._ranks.check_end_of_epoch(self.mean)
            self.write(dwa_step(self.state, self.temperature))
