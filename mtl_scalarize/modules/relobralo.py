"""The module of ReLoBRaLo."""

import torch
import torch.distributed as dist
from torch import Tensor

from ..functional.checks import as_shape, check_scalar, check_share
from ..functional.constant import constant_combine
from ..functional.presence import fill_absent
from ..functional.relobralo import ReLoBRaLoState, relobralo_init, relobralo_update
from .names import Shape
from .scalarizer import Losses, Scalarizer, default_dtype


class ReLoBRaLo(Scalarizer):
    r"""Relative Loss Balancing with Random Lookback: a task that falls more slowly weighs more.

    .. math::
        \sum_i w_i(t) \, \ell_i(t), \qquad
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
        process_group: see :class:`Scalarizer`.

    Raises:
        ValueError: ``temperature`` is not positive, or ``alpha`` or ``rho`` is not from 0 to 1.

    Example:
        >>> scalarizer = ReLoBRaLo(2, temperature=1.0, alpha=0.9)
        >>> for losses in torch.tensor([[2.0, 1.0], [1.0, 1.0]]):
        ...     scalar = scalarizer(losses)
        >>> (scalarizer.weights[1] > scalarizer.weights[0]).item()  # it fell less
        True
    """

    settings = ("temperature", "alpha", "rho")

    running_weights: Tensor
    first: Tensor
    last: Tensor

    def __init__(
        self,
        shape: Shape,
        temperature: float = 0.1,
        alpha: float = 0.999,
        rho: float = 0.999,
        *,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        check_scalar("temperature", temperature, positive=True)
        check_share("alpha", alpha)
        check_share("rho", rho)
        super().__init__(shape)
        self.temperature, self.alpha, self.rho = temperature, alpha, rho
        state = relobralo_init(as_shape(self.shape), dtype=default_dtype())
        # Not called `weights`, which are those of the last call.
        for name, value in zip(("running_weights", "first", "last"), state, strict=True):
            self.register_buffer(name, value)
        self.process_group = process_group

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        losses, mask = self.prepare(losses, mask)
        state = self.state
        if self.learning:
            drawn = self.of_first_rank(torch.rand((), dtype=torch.float32, device=losses.device))
            options = {"alpha": self.alpha, "temperature": self.temperature}
            lookback = drawn >= self.rho
            state = relobralo_update(state, losses.detach(), lookback, mask=mask, **options)
            self.store(self.state, state)
        weights = state.weights.clone()  # the next call may write the buffer before `backward`
        self.report(fill_absent, weights, 0.0, mask=mask)
        return constant_combine(losses, weights, mask=mask)

    def reset(self) -> None:
        super().reset()
        self.store(self.state, relobralo_init(self.first.shape))

    @property
    def state(self) -> ReLoBRaLoState:
        """The state as the functional core takes it."""
        return ReLoBRaLoState(self.running_weights, self.first, self.last)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, temperature={self.temperature}, alpha={self.alpha}, "
            f"rho={self.rho}"
        )
