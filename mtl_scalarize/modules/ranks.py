"""The data-parallel ranks that a module balances with."""

import weakref

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import all_reduce_losses, broadcast_from_first


class Ranks:
    """The process group that a module balances with, or none.

    The group is held weakly: one that outlives ``destroy_process_group`` may abort the end of the
    program. Copies share it, and pickles leave it behind.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None) -> None:
        self._reference = None if group is None else weakref.ref(group)
        self.own_mask: Tensor | None = None  # this rank's, of the last average

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """The group, or None. An error if it was destroyed."""
        group = None if self._reference is None else self._reference()
        if group is None and self._reference is not None:
            raise ValueError("The process group was destroyed: call `synchronize` with a new one.")
        return group

    def average(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The losses and the mask of the whole batch, by one collective that all ranks make."""
        if self._reference is None:
            return losses, mask
        self.own_mask = mask
        if mask is None:  # another rank may lack a task, or be at the end of its epoch
            mask = torch.ones_like(losses, dtype=torch.bool)
        return all_reduce_losses(losses, self.group, mask=mask)

    def draw(self, drawn: Tensor) -> Tensor:
        """Random numbers that all ranks share: those of the first."""
        return drawn if self.group is None else broadcast_from_first(drawn, self.group)

    def check_end_of_epoch(self, like: Tensor) -> None:
        """Check that no other rank makes a training call, by a call without any task.

        Raises:
            ValueError: another rank has losses to average.
        """
        if self.group is None:
            return
        nothing = torch.zeros_like(like, dtype=torch.bool)
        _, mask = all_reduce_losses(like, self.group, mask=nothing)
        if mask is not None and mask.any():
            raise ValueError(
                "`step` should follow equally many calls on every rank. Found a rank with another "
                "call on losses: end the epoch of all ranks after as many batches."
            )

    def __deepcopy__(self, memo: object) -> "Ranks":
        return Ranks(self.group)

    def __reduce__(self) -> tuple[type["Ranks"], tuple[()]]:
        return Ranks, ()
