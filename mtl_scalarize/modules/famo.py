"""The module of FAMO."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import finite_and_present
from ..functional._checks import check_priorities, check_scalar
from ..functional.famo import famo_combine, famo_delta, famo_init, famo_update, famo_weights
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Stateful


class FAMO(Stateful):
    r"""Fast Adaptive Multitask Optimization: lets all losses fall at about the same rate.

    .. math::
        c \sum_i z_i \log(\ell_i - b_i + \epsilon), \qquad z = \mathrm{softmax}(w), \qquad
        c = \Big( \sum_j \frac{z_j}{\ell_j - b_j + \epsilon} \Big)^{-1}

    - :math:`\ell_i` is the loss of task :math:`i`, above its lower bound :math:`b_i`. A loss below
      its bound makes the scalar and all gradients nan: give ``min_losses`` if a loss can be
      negative. A loss *at* its bound takes all the weight, and no other task trains: if a loss can
      reach its floor, as a hinge loss reaches 0, give a bound below the floor, lower by the size
      at which the loss no longer matters, such as -0.1 for a loss of about 1;
    - :math:`w_i` is its logit, learned here and not by your optimizer;
    - :math:`c` makes the step a convex combination of the task gradients, and is held constant in
      the backward pass.

    After your optimizer's step, call :meth:`update` with the losses of the same batch, computed
    again. Every tenth step is often enough, but not if one task is solved early: its weight
    grows as its loss falls, and an update moves a logit by about ``lr`` at most. If every step has
    the same batch, its losses are those after the last step: ``scalarizer.update(losses)`` before
    ``scalarizer(losses)`` needs no second forward pass.

    FAMO compares the tasks of one batch. If each batch has one task, in turn, it learns nothing.

    The functions are :func:`~mtl_scalarize.famo_combine`, which names the paper, and those beside
    it.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`.
        min_losses: the lower bounds :math:`b`: a number, or one for each task as a tensor, a list,
            or a mapping by name. None: 0. The attribute is a tensor of shape S.
        lr: learning rate of the logits, non-negative. The paper uses 0.025.
        weight_decay: pull of the logits to 0, non-negative. The default is that of the paper's
            Algorithm 2. The defaults of the official code are 1e-5 and 0.01.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1. :meth:`update` moves the logits until the
            losses fall at rates in proportion to them. A task with 0 is not trained.
        eps: :math:`\epsilon`, non-negative: it keeps the logarithm finite for a loss at its bound.

    Raises:
        ValueError: ``min_losses`` or ``priorities`` is not of shape S or not finite, or
            ``priorities``, ``lr``, ``weight_decay`` or ``eps`` is negative.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = FAMO(2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> features = torch.randn(8, 3)
        >>> losses_of = lambda: model(features).square().mean(dim=0)  # one loss per output
        >>> scalarizer(losses_of()).backward()
        >>> optimizer.step()
        >>> scalarizer.update(losses_of)
        >>> scalarizer.weights.sum().round(decimals=4)
        tensor(1.)
    """

    min_losses = Hyperparameter(0.0, expand=True)
    priorities = Hyperparameter(1.0, each=check_priorities)
    lr = Hyperparameter(0.025, check_scalar)
    weight_decay = Hyperparameter(1e-3, check_scalar)
    eps = Hyperparameter(1e-8, check_scalar)

    previous_losses: Tensor  # of the last training call
    pending: Tensor  # True where no update has used them yet

    def __init__(
        self,
        shape: Shape,
        min_losses: Value = None,
        lr: float | Tensor = 0.025,
        weight_decay: float | Tensor = 1e-3,
        *,
        priorities: Value = None,
        eps: float | Tensor = 1e-8,
    ) -> None:
        super().__init__(shape, optional=False)
        self.register_buffer("previous_losses", torch.zeros_like(self.state.logits))
        self.register_buffer("pending", torch.zeros_like(self.state.logits, dtype=torch.bool))
        self.min_losses, self.lr, self.weight_decay, self.eps = min_losses, lr, weight_decay, eps
        self.priorities = priorities

    def initial_state(self, shape: tuple[int, ...]) -> NamedTuple:
        return famo_init(shape)

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        losses = losses.to(self.previous_losses.dtype)
        pending, finite = finite_and_present(losses, mask=mask)
        self.previous_losses.copy_(finite)
        self.pending.copy_(pending)
        self._cautions.count_call()

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "eps": self.eps, "mask": mask}
        return famo_combine(losses, self.state.logits, self.min_losses, **options)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "eps": self.eps, "mask": mask}
        return famo_weights(losses, self.state.logits, self.min_losses, **options)

    def learn_again(self, losses: Tensor, mask: Tensor | None) -> None:
        before = self.previous_losses
        # In the dtype of the losses before: or the difference would be one of rounding.
        delta = famo_delta(before, losses.to(before.dtype), self.min_losses, eps=self.eps)
        mask = self.pending if mask is None else self.pending & mask
        options = {"lr": self.lr, "weight_decay": self.weight_decay, "mask": mask}
        self.write(famo_update(self.state, delta, priorities=self.priorities, **options))
        self._forget()

    def _forget(self) -> None:
        self.previous_losses.zero_()
        self.pending.zero_()
        self._cautions.calls = 0

    def reset(self) -> None:
        super().reset()
        self._forget()
