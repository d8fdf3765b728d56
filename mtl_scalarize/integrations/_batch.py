"""The losses of a batch: what a user's function returns of them, and their means over batches."""

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from ..functional._presence import fill_absent
from ..modules import Scalarizer
from ..modules.names import Losses, Names, by_position

#: Losses; or losses and the mask; or losses, the mask or None, and the number of labels of each
#: task, as a tensor or by name.
Given = Losses | tuple[Losses, Tensor | None] | tuple[Losses, Tensor | None, Any]


def losses_and_mask(given: Given) -> tuple[Losses, Tensor | None]:
    """What the scalarizer is called with."""
    return given[:2] if isinstance(given, tuple) else (given, None)


def is_empty(given: Given) -> bool:
    """True if no task is in the batch: an empty mapping."""
    losses, _ = losses_and_mask(given)
    return isinstance(losses, Mapping) and not losses.keys()


def with_counts(given: Given, names: Names | None) -> tuple[Tensor, Tensor, bool]:
    """The losses, 0 where absent, and the number of labels behind each; 1 where nothing is said.

    Returns:
        The losses and the numbers, of shape S, and True if something was said.

    Raises:
        ValueError: the numbers are not of shape S.
    """
    losses, mask = by_position(*losses_and_mask(given), names)
    counts = given[2] if isinstance(given, tuple) and len(given) > 2 else None
    said = mask is not None or counts is not None
    if isinstance(counts, Mapping):
        counts = [counts.get(name, 0) for name in names or ()]
    number = torch.ones_like(losses) if counts is None else torch.as_tensor(counts).to(losses)
    if number.shape != losses.shape:
        raise ValueError(
            f"`counts` should have shape {tuple(losses.shape)}, the shape of the losses. "
            f"Found {tuple(number.shape)}."
        )
    number = fill_absent(number, 0.0, mask=mask).detach()
    return fill_absent(losses, 0.0, mask=number > 0), number, said


def copied(batch: Any) -> Any:
    """The batch in containers of its own, so that a ``pop`` leaves it whole; with its tensors."""
    if type(batch) in (list, tuple):
        return type(batch)([copied(each) for each in batch])
    if type(batch) is dict:
        return {key: copied(value) for key, value in batch.items()}
    return copy.copy(batch) if isinstance(batch, MutableMapping) else batch


def last_call(scalarizer: Scalarizer) -> tuple[Tensor, Tensor | None]:
    """The losses and the mask of the call just made, in a distributed training of all ranks."""
    assert scalarizer._last_call
    return scalarizer._last_call


class Means:
    """Means over batches, for each task over those that have it."""

    def __init__(self) -> None:
        self.totals: Tensor | None = None  # the sums, and in the last row the sum of the amounts

    def add(self, values: Tensor, amounts: Tensor) -> None:
        """Add rows of values, each of the shape of ``amounts``: how much each task counts."""
        values = torch.where(amounts > 0, values, 0.0).detach() * amounts
        new = torch.cat([values, amounts[None]]).flatten(1)
        self.totals = new if self.totals is None else self.totals + new

    def read(self) -> Tensor:
        """The means of each row, nan for a task that no batch had; then begin anew."""
        totals, self.totals = self.totals, None
        assert totals is not None
        return totals[:-1] / totals[-1]
