"""The module of Random Loss Weighting."""

import torch
from torch import Tensor

from ..functional._checks import check_priorities
from ..functional.random import random_combine, random_weights
from .hyperparameters import Hyperparameter, Value
from .names import Shape
from .scalarizer import Scalarizer


class Random(Scalarizer):
    r"""Random Loss Weighting (RLW): new random weights for every batch.

    .. math::
        \sum_i p_i w_i \ell_i, \qquad w = \mathrm{softmax}(\xi), \qquad \xi_i \sim \mathcal{N}(0, 1)

    The noise :math:`\xi` comes from torch's generator of the device of the losses, so that
    ``torch.manual_seed`` repeats a run, and a trainer that saves the random states resumes it. In a
    process group all ranks use the draw of its first rank. In ``eval()`` and without gradients
    nothing is drawn, and the weights are equal, as they are on average.

    A model compiled by ``torch.compile`` draws other numbers for the same seed, unless
    ``torch._inductor.config.fallback_random`` is set. Under :func:`torch.vmap`, say by its
    ``randomness`` whether the entries of the batch share one draw.

    The function is :func:`~mtl_scalarize.random_combine`, beside
    :func:`~mtl_scalarize.random_weights`, which names the paper.

    Args:
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.
        priorities: :math:`p`, how much each task matters: a number, or one for each task as a
            tensor, a list, or a mapping by name. None: 1.

    Raises:
        ValueError: ``priorities`` is not of shape S, not finite, or negative.

    Example:
        >>> scalarizer = Random()
        >>> scalar = scalarizer(torch.tensor([4.0, 1.0]))
        >>> scalarizer.weights.sum().round(decimals=4)
        tensor(1.)
    """

    priorities = Hyperparameter(1.0, each=check_priorities)

    _noise: Tensor  # of the last call

    def __init__(self, shape: Shape | None = None, *, priorities: Value = None) -> None:
        super().__init__(shape)
        self.priorities = priorities

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        learning = self.learning
        noise = self._ranks.draw(torch.randn_like(losses)) if learning else torch.zeros_like(losses)
        self.keep("_noise", noise)
        return random_combine(losses, noise, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return random_weights(self._noise, priorities=self.priorities, mask=mask)
