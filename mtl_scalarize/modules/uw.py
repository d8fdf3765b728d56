"""The module of Uncertainty Weighting."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..functional.checks import check_scalar, check_scalar_or_shape
from ..functional.uw import halved, uw_loss_and_scale
from .names import Shape, as_named_shape
from .scalarizer import Losses, Scalarizer, default_dtype


class UW(Scalarizer):
    r"""Uncertainty Weighting: learns how noisy each task is, and divides its loss by that.

    .. math::
        \sum_i \left( \tfrac{1}{2} e^{-s_i} \ell_i + \tfrac{1}{2} s_i \right),
        \qquad s_i = \log \sigma_i^2

    - :math:`\ell_i` is the loss of task :math:`i`;
    - :math:`s_i` is its log-variance, the parameter ``log_var``, learned by your optimizer: pass
      ``scalarizer.parameters()`` to it, without weight decay and with a learning rate at which
      they can travel several units.

    Args:
        shape: the shape S of the losses; an int ``n`` means ``(n,)``. Or the names of the tasks, a
            sequence of n strings: then S is ``(n,)``, and a call may also be given the losses by
            name.
        init: where the log-variances start: a number, or a tensor of shape S, such as the logarithm
            of the first losses where these are far from 1.
        eps: added to every loss, non-negative. A loss that stays at exactly 0, as a hinge loss does
            that is satisfied, raises its weight without end, here to about ``0.5 / eps``. The
            default only keeps it finite: for such a loss take the size below which it does not
            matter.
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
        Kendall, Gal and Cipolla. Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
        Geometry and Semantics. CVPR 2018. https://arxiv.org/abs/1705.07115

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> scalarizer = UW(2)
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
        tensor([0.5000, 0.5000])
    """

    log_var: nn.Parameter

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
        self.log_var = nn.Parameter(torch.zeros(as_named_shape(shape), dtype=default_dtype()))
        check_scalar_or_shape("init", init, self.log_var.shape, "log_var")
        self.init = init.detach().clone() if isinstance(init, Tensor) else init
        self.eps = eps
        self.reset()

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        if not isinstance(losses, Tensor):
            losses, mask = self._by_position(losses, mask)
        if self.process_group is not None and self._is_learning():
            losses, mask = self._of_all_ranks(losses, mask)
        loss, scale = uw_loss_and_scale(losses, self.log_var, mask, self.eps)
        self._report(scale)
        return loss

    @property
    def weights(self) -> Tensor:
        return halved(super().weights)

    def reset(self) -> None:
        with torch.no_grad():
            self.log_var.copy_(torch.as_tensor(self.init))
        self._weights = None

    def __repr__(self) -> str:
        return f"UW(shape={self.names or tuple(self.log_var.shape)})"
