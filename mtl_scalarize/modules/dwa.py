"""The module of Dynamic Weight Average."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import all_reduce_losses
from ..functional.checks import check_hyperparameter
from ..functional.dwa import DWAState, dwa_accumulate, dwa_combine, dwa_init, dwa_step
from ..functional.presence import fill_absent
from .names import Shape
from .scalarizer import Losses, Scalarizer, default_dtype, in_transform

# The fields of `DWAState`. The last is not called `weights`, which are those of the last call.
_BUFFERS = ("mean", "count", "last", "previous", "epoch_weights")


class DWA(Scalarizer):
    r"""Dynamic Weight Average: weighs a task by how slowly its loss fell over the last two epochs.

    .. math::
        \sum_i \lambda_i \ell_i, \qquad
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
        shape: the shape S of the losses, or the names of the tasks: see :class:`Scalarizer`. None:
            taken, with dtype and device, from the first losses or from a checkpoint.
        process_group: see :class:`Scalarizer`.

    Raises:
        ValueError: ``temperature`` is not positive.

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

    settings = ("temperature",)
    linear = True

    # Empty until there is a shape, and not None, which torch's tools pass over.
    mean: Tensor
    count: Tensor
    last: Tensor
    previous: Tensor
    epoch_weights: Tensor

    def __init__(
        self,
        temperature: float = 2.0,
        *,
        shape: Shape | None = None,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        check_hyperparameter("temperature", temperature, positive=True)
        super().__init__(shape)
        if shape is None and isinstance(temperature, int) and temperature > 2:
            self.warn_once(
                f"DWA({temperature}) has the temperature {temperature} and finds its shape by "
                f"itself. If {temperature} is the number of tasks, write "
                f"`DWA(shape={temperature})`; if not, `DWA({temperature}.0)`."
            )
        self.temperature = temperature
        self._awaits_step = False  # whether a call has learned since the last `step`
        self._register(dwa_init(0 if self.shape is None else self.shape, dtype=default_dtype()))
        self.process_group = process_group

    def forward(self, losses: Losses, mask: Tensor | None = None) -> Tensor:
        losses, mask = self.prepare(losses, mask)
        state = (
            dwa_init(losses.shape, dtype=losses.dtype, device=losses.device)
            if self._is_open
            else self.state
        )
        weights = state.weights.clone()  # `step` may write the buffer before `backward` reads it
        scalar = dwa_combine(losses, state._replace(weights=weights), mask=mask)
        self.report(fill_absent, weights.detach(), 0.0, mask=mask)
        if self.learning:
            if self._is_open:
                if in_transform():
                    raise ValueError(
                        "`shape` should be given if the first call is inside a transform of "
                        "`torch.func`. Found `shape = None`."
                    )
                self._register(state)
            self.store(self.state, dwa_accumulate(state, losses.detach(), mask=mask))
            self._note(_awaits_step=not torch.compiler.is_compiling())
        return scalar

    def step(self) -> None:
        """Close the epoch: compute the weights of the next one. Only in training mode.

        In a process group every rank must call it, after equally many calls on losses.

        Raises:
            ValueError: the ``temperature`` is not positive, or another rank made a call on losses
                meanwhile.
        """
        if not self.training and self._awaits_step:
            self.warn_once(
                "`step` did not close the epoch, for DWA is in `eval()`: call it before `eval()`, "
                "or `scalarizer.train()` before it."
            )
        if self.training and not self._is_open:
            self._awaits_step = False
            if self.process_group is not None:
                # As a call on losses without any task: what a rank in such a call would meet.
                nothing = torch.zeros_like(self.mean)
                _, mask = all_reduce_losses(nothing, self.process_group, mask=nothing.bool())
                if mask is not None and mask.any():
                    raise ValueError(
                        "`step` should follow equally many calls on every rank. Found a rank with "
                        "another call on losses: end the epoch of all ranks after as many batches."
                    )
            self.store(self.state, dwa_step(self.state, self.temperature))

    def reset(self) -> None:
        super().reset()
        if self.shape is None:
            self._register(dwa_init(0, dtype=self.mean.dtype, device=self.mean.device))
        else:
            self.store(self.state, dwa_init(self.shape))

    @property
    def _is_open(self) -> bool:
        return self.shape is None and self.mean.shape == (0,)

    @property
    def state(self) -> DWAState:
        """The state as the functional core takes it."""
        fields = [self._buffers[name] for name in _BUFFERS]
        return DWAState(*fields)  # type: ignore[arg-type]  # none is None where it is called

    def extra_repr(self) -> str:
        shape = "" if self.shape is None else f", shape={self.names or self.shape}"
        return f"temperature={self.temperature}{shape}"

    def _register(self, state: DWAState) -> None:
        for index, name in enumerate(_BUFFERS):
            self.register_buffer(name, state[index])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        mean = state_dict.get(prefix + "mean")
        if self.shape is None and mean is not None:
            with torch.inference_mode(False):  # or the state could not be trained
                self._register(dwa_init(mean.shape, dtype=mean.dtype, device=mean.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
