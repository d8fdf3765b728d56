"""The module of IMTL-L."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..functional.checks import check_scalar, check_scalar_or_shape
from ..functional.imtll import imtll_loss_and_weights
from .names import Shape, as_named_shape
from .scalarizer import Losses, Scalarizer, default_dtype


class IMTLL(Scalarizer):
    r"""The loss balance of Impartial Multi-Task Learning: learns a scale for each loss.

    .. math::
        \sum_i \left( e^{s_i} \ell_i - s_i \right)

    - :math:`\ell_i` is the loss of task :math:`i`;
    - :math:`s_i` is the logarithm of its scale, the parameter ``log_scale``, learned by your
      optimizer: pass ``scalarizer.parameters()`` to it, without weight decay and with a learning
      rate at which they can travel several units.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``. Or the names of the tasks, a
            sequence of n strings: then S is ``(n,)``, and a call may also be given the losses by
            name.
        init: where the logarithms of the scales start: a number, or a tensor of shape S, such as
            minus the logarithm of the first losses where these are far from 1.
        eps: added to every loss, non-negative. A loss that stays at exactly 0, as a hinge loss does
            that is satisfied, raises its weight without end, here to about ``1 / eps``. The default
            only keeps it finite: for such a loss take the size below which it does not matter.
        process_group: the data-parallel ranks that balance their losses together, such as
            ``torch.distributed.group.WORLD``: the training step is then that of one process on the
            whole batch. Every rank must then make the call, all with a mask or all without.
            Validation, in ``eval()`` or without gradients, stays with the rank's own losses. None:
            each rank by itself.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints or of names, or ``init`` neither a
            number nor a tensor.
        ValueError: ``shape`` has a negative entry or a name twice, ``init`` is not of that
            shape, or ``eps`` is negative.

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang. Towards Impartial Multi-Task Learning.
        ICLR 2021. https://openreview.net/forum?id=IMPnRXEWpvr

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = IMTLL(2)
        >>> optimizer = torch.optim.Adam(
        ...     [
        ...         {"params": model.parameters()},
        ...         {"params": scalarizer.parameters(), "lr": 0.02, "weight_decay": 0.0},
        ...     ],
        ...     lr=1e-3,
        ... )
        >>> losses = model(torch.randn(8, 3)).square().mean(dim=0)  # one loss per output
        >>> scalarizer(losses).backward()
        >>> optimizer.step()
        >>> scalarizer.weights
        tensor([1., 1.])
    """

    log_scale: nn.Parameter

    def __init__(
        self,
        shape: Shape,
        *,
        init: float | Tensor = 0.0,
        eps: float = 1e-30,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        check_scalar("eps", eps)
        super().__init__(process_group, shape)
        self.log_scale = nn.Parameter(torch.zeros(as_named_shape(shape), dtype=default_dtype()))
        check_scalar_or_shape("init", init, self.log_scale.shape, "log_scale")
        self.init = init.detach().clone() if isinstance(init, Tensor) else init
        self.eps = eps
        self.reset()

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        if not isinstance(losses, Tensor):
            losses, mask = self._by_position(losses, mask)
        if self.process_group is not None and self._is_learning():
            losses, mask = self._of_all_ranks(losses, mask)
        loss, weights = imtll_loss_and_weights(losses, self.log_scale, mask, self.eps)
        self._report(weights)
        return loss

    def reset(self) -> None:
        with torch.no_grad():
            self.log_scale.copy_(torch.as_tensor(self.init))
        self._weights = None

    def __repr__(self) -> str:
        return f"IMTLL(shape={self.names or tuple(self.log_scale.shape)})"
