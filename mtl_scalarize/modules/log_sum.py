"""The module of the sum of logarithms."""

import torch.distributed as dist
from torch import Tensor

from ..functional.log_sum import log_sum, log_sum_weights
from .names import Shape
from .scalarizer import Losses, Scalarizer


class LogSum(Scalarizer):
    r"""The sum of the logarithms of the losses: no gradient depends on a loss's unit.

    .. math::
        \sum_i \log(\ell_i - b_i + \epsilon)

    - :math:`\ell_i` is the loss of task :math:`i`, above its lower bound :math:`b_i`. A loss below
      its bound makes the scalar and its gradient nan;
    - :math:`\epsilon = 10^{-8}`.

    Known as the scale-invariant baseline (SI). The function is :func:`~mtl_scalarize.log_sum`,
    which names the papers.

    Args:
        min_losses: the lower bounds :math:`b`, of shape S, or one number for all. None: 0.
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            losses of any shape, as a tensor.
        process_group: see :class:`Scalarizer`.

    Raises:
        TypeError: ``min_losses`` is neither a number nor a tensor.
        ValueError: ``min_losses`` is not of shape S.

    Example:
        >>> import torch
        >>> LogSum()(torch.tensor([4.0, 1.0]))
        tensor(1.3863)
    """

    settings = ("min_losses",)

    min_losses: float | Tensor

    def __init__(
        self,
        min_losses: float | Tensor | None = None,
        *,
        shape: Shape | None = None,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        super().__init__(shape)
        self.register_hyperparameter("min_losses", 0.0 if min_losses is None else min_losses)
        self.process_group = process_group

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        losses, mask = self.prepare(losses, mask)
        scalar = log_sum(losses, self.min_losses, mask=mask)
        self.report(log_sum_weights, losses.detach().clone(), self.min_losses, mask=mask)
        return scalar
