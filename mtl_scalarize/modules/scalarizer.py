"""What the four modules share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..functional.precision import at_least_float32


class Scalarizer(nn.Module, ABC):
    """Base class: a module that turns a tensor of losses into one scalar.

    A subclass keeps all its state in parameters and buffers, and its ``forward`` fetches that
    state, calls a pure function of :mod:`mtl_scalarize.functional` and stores what comes back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: Tensor | None = None

    @abstractmethod
    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        """Combine the losses.

        Args:
            losses: the losses, of shape S.
            mask: boolean, of shape S, True where the task is present in this batch. An absent task
                contributes nothing to the scalar nor to any gradient, and its state stays as it
                is. None: all are present.

        Returns:
            The scalar, of shape (), at least float32.

        Raises:
            TypeError: ``losses`` is not a floating-point tensor.
            ValueError: a shape differs from the module's, or ``mask`` is not boolean.
        """

    if TYPE_CHECKING:  # nn.Module's own returns Any

        def __call__(self, losses: Tensor, mask: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def reset(self) -> None:
        """Go back to the start: the state of a new module."""

    @property
    def weights(self) -> Tensor:
        """The task weights that the last call used, of shape S, detached: d scalar / d losses.

        Raises:
            ValueError: the scalarizer has not been called yet.
        """
        if self._weights is None:
            raise ValueError("`weights` are those of the last call. Found no call so far.")
        return self._weights

    def _report(self, weights: Tensor) -> None:
        """Keep the weights of this call; an exported program has no attribute to keep them in."""
        if not torch.compiler.is_exporting():
            # Not by `setattr`: nn.Module would look for a parameter or buffer first, for 1 us.
            self.__dict__["_weights"] = weights

    def _is_learning(self) -> bool:
        """Whether a call may change the state: a validation pass must not."""
        return self.training and torch.is_grad_enabled()

    def _fetch(self, names: Iterable[str]) -> list[Tensor]:
        """The buffers of these names; by attribute each would take 0.4 us more."""
        return [self._buffers[name] for name in names]  # type: ignore[misc]  # none is None here

    def _store(self, state: Iterable[Tensor], new: Iterable[Tensor]) -> None:
        """Write what changed of ``new`` into the buffers ``state``.

        In place, so that a captured CUDA graph, an exported program and a stack of modules under
        ``vmap`` all advance the state that they were given.
        """
        for buffer, value in zip(state, new, strict=True):
            if value is not buffer:
                buffer.copy_(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scalarizer":
        """As ``nn.Module`` does for ``.to()``, ``.half()`` and the like, but keep the precision.

        A model that is cast to half precision must not take the balance of its tasks along.
        """

        def apply(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if not tensor.is_floating_point():
                return applied
            dtype = at_least_float32(applied.dtype)
            return applied if applied.dtype is dtype else tensor.to(applied.device, dtype)

        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        if self._weights is not None:
            self._weights = apply(self._weights)
        return self


def default_dtype() -> torch.dtype:
    """The dtype of new state: torch's default, and never less than float32."""
    return at_least_float32(torch.get_default_dtype())
