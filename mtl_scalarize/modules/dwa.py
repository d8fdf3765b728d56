"""The module of Dynamic Weight Average."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..functional.checks import check_scalar, check_tensors
from ..functional.dwa import (
    DWAState,
    dwa_accumulate_,
    dwa_init,
    dwa_loss_and_weights,
    dwa_step,
    weights_of,
)
from .names import Shape, as_named_shape
from .scalarizer import Losses, Scalarizer, default_dtype


class DWA(Scalarizer):
    r"""Dynamic Weight Average: weighs a task by how slowly its loss fell over the last two epochs.

    .. math::
        \sum_i \lambda_i \ell_i, \qquad
        \lambda_i = K \, \frac{e^{w_i / T}}{\sum_j e^{w_j / T}}, \qquad
        w_i = \frac{L_i(t-1)}{L_i(t-2)}

    - :math:`\ell_i` is the loss of task :math:`i` in this batch;
    - :math:`L_i(t)` is its average over epoch :math:`t`;
    - :math:`T` is the temperature, :math:`K` the number of tasks.

    Call the module on every batch and :meth:`step` once at the end of every epoch. In the first two
    epochs all weights are 1. Only calls in training mode (``scalarizer.train()``) with gradients
    enabled are counted, so that a validation pass leaves the averages alone.

    Args:
        temperature: :math:`T > 0`; the larger, the more uniform the weights. The paper uses 2.
        shape: the shape S of the losses; an int ``n`` means ``(n,)``. Or the names of the tasks, a
            sequence of n strings: then S is ``(n,)``, and a call may also be given the losses by
            name. None: taken, with dtype and device, from the first losses or from a checkpoint.
        process_group: the data-parallel ranks that balance their losses together, such as
            ``torch.distributed.group.WORLD``: the training step is then that of one process on the
            whole batch. Every rank must then make the call, all with a mask or all without.
            Validation, in ``eval()`` or without gradients, stays with the rank's own losses. None:
            each rank by itself.

    Raises:
        TypeError: ``shape`` is not an int or a sequence of ints or of names.
        ValueError: ``temperature`` is not positive, or ``shape`` has a negative entry or a name
            twice.

    References:
        Liu, Johns and Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.
        https://arxiv.org/abs/1803.10704

    Example:
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

    _learns_from_losses = True

    # All None as long as there is no shape.
    loss_sum: Tensor
    count: Tensor
    last: Tensor
    previous: Tensor
    epochs: Tensor
    epoch_weights: Tensor

    def __init__(
        self,
        temperature: float = 2.0,
        *,
        shape: Shape | None = None,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        check_scalar("temperature", temperature, positive=True)
        super().__init__(process_group, shape)
        self._temperature = temperature
        self.shape = None if shape is None else as_named_shape(shape)
        self._register(None if self.shape is None else dwa_init(self.shape, dtype=default_dtype()))

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        if not isinstance(losses, Tensor):
            losses, mask = self._by_position(losses, mask)
        learning = self._is_learning()
        if learning:
            losses, mask = self._of_all_ranks(losses, mask)
        if self.shape is None:
            self._adopt(losses, mask, learning)
        loss_sum, count, weights = self._fetch(("loss_sum", "count", "epoch_weights"))
        # A copy: `step` writes in place what `backward` and `weights` may still need.
        weights = torch.ones_like(losses) if weights is None else weights.clone()
        loss, weights = dwa_loss_and_weights(losses, weights, mask)
        self._report(weights)
        if learning:
            dwa_accumulate_(loss_sum, count, losses.detach(), mask)
        return loss

    def step(self) -> None:
        """Close the epoch: average its losses and compute the weights of the next one."""
        if self._has_shape():
            self._store(self.state, dwa_step(self.state))
            self._reweigh()

    def reset(self) -> None:
        if self.shape is None:
            self._register(None)
        else:
            self._store(self.state, dwa_init(self.shape))
            self._reweigh()
        self._weights = None

    @property
    def state(self) -> DWAState:
        """The state as the functional core takes it."""
        return DWAState(*self._fetch(DWAState._fields))

    @property
    def temperature(self) -> float:
        """The temperature T. Setting it changes the weights of the next call."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        check_scalar("temperature", value, positive=True)
        self._temperature = value
        self._reweigh()

    def _register(self, state: DWAState | None) -> None:
        for name in DWAState._fields:
            self.register_buffer(name, None if state is None else getattr(state, name))
        # Kept because they change once an epoch; not saved because they follow from the rest.
        weights = None if state is None else torch.ones_like(state.last)
        self.register_buffer("epoch_weights", weights, persistent=False)

    def _adopt(self, losses: Tensor, mask: Tensor | None, learning: bool) -> None:
        """Take what was left open from the first losses to learn from."""
        last = self._buffers["last"]
        if last is None:
            check_tensors(mask, losses=losses)
            if learning:
                self._register(dwa_init(losses.shape, dtype=losses.dtype, device=losses.device))
        elif last.device != losses.device:
            check_tensors(mask, weights=last, losses=losses)
            self.to(losses.device)  # from that of a checkpoint

    def _has_shape(self) -> bool:
        return self._buffers["last"] is not None

    def _reweigh(self) -> None:
        if self._has_shape():
            self.epoch_weights.copy_(weights_of(self.state, self._temperature))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        last, had_shape = state_dict.get(prefix + "last"), self._has_shape()
        if isinstance(last, Tensor) and not had_shape:
            dtype = last.dtype if last.is_floating_point() else default_dtype()  # to be refused
            with torch.inference_mode(False):  # or it could not be trained on
                self._register(dwa_init(last.shape, dtype=dtype, device=last.device))
        missing_keys, _, error_msgs = args[-3:]
        complaints = len(missing_keys) + len(error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not had_shape and len(missing_keys) + len(error_msgs) > complaints:
            self._register(None)
        elif self._has_shape():
            self.epoch_weights = self.epoch_weights.to(self.last)  # `assign` may have changed it
        self._reweigh()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DWA":
        loss_sum = self.loss_sum
        super()._apply(fn, recurse)
        if self._has_shape() and self.loss_sum.dtype is not loss_sum.dtype:
            self.loss_sum = loss_sum.to(self.loss_sum.device)  # float64 whatever the others are
        return self

    def __repr__(self) -> str:
        shape = "" if self.shape is None else f", shape={self.names or self.shape}"
        return f"DWA(temperature={self.temperature}{shape})"
