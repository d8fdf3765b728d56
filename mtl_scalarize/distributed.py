"""The collective that makes N data-parallel ranks equal one process."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .functional._checks import check_scalar, check_scalar_or_shape, check_tensors
from .functional._precision import in_common_dtype, scalar_in
from .functional._presence import fill_absent


def all_reduce_losses(
    losses: Tensor,
    group: "dist.ProcessGroup | None" = None,
    *,
    mask: Tensor | None = None,
    count: float | Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    r"""Average the losses over the ranks, keeping this rank's gradient.

    .. math::
        \bar\ell_i + \frac{N n_{ir}}{\sum_q n_{iq}} (\ell_{ir} - \mathrm{detach}(\ell_{ir})),
        \qquad \bar\ell_i = \frac{\sum_q n_{iq} \ell_{iq}}{\sum_q n_{iq}}

    for task :math:`i` on rank :math:`r` of :math:`N`, where :math:`n_{ir}` is 1 where the task is
    present and 0 where it is not, or the number of samples behind the loss if ``count`` is given.
    ``DistributedDataParallel`` averages gradients over the ranks; with these losses that average is
    the gradient of one process on the concatenated batch, for any scalarizer.

    Call it on every rank of the group. It costs one collective of K floats, and of 2K with a mask
    or a count.

    Args:
        losses: this rank's losses, each the mean over its samples, of any shape S.
        group: the process group. None: that of all ranks.
        mask: boolean, of shape S, True where the task is present on this rank. Give a mask on every
            rank of the group or on none, and a count likewise.
        count: the number of samples behind the losses on this rank, a number or of shape S, for
            batches of unequal size. None: as many on every rank.

    Returns:
        The losses, of shape S, at least float32, differentiable once. And the mask of the tasks
        that any rank has, boolean, of shape S; None without ``mask`` and ``count``. A task that no
        rank has gets loss 0 and no gradient.

    Raises:
        TypeError: ``losses`` is not a floating-point tensor, or a DTensor, or ``count`` neither a
            number nor a tensor.
        ValueError: ``mask`` is not boolean, it or ``count`` is not of shape S, ``count`` is
            negative, or no process group is initialised.

    Example:
        >>> import tempfile
        >>> import torch.distributed as dist
        >>> store = dist.FileStore(tempfile.mktemp(), 1)
        >>> dist.init_process_group("gloo", rank=0, world_size=1, store=store)
        >>> all_reduce_losses(torch.tensor([1.0, 2.0]), mask=torch.tensor([True, False]))
        (tensor([1., 0.]), tensor([ True, False]))
        >>> dist.destroy_process_group()
    """
    check_tensors(mask, losses=losses)
    if hasattr(losses, "full_tensor"):
        raise TypeError(
            "`losses` should be a plain tensor. Found a DTensor: pass `losses.full_tensor()`, "
            "without a group if that is their mean over the ranks already."
        )
    group = initialised(group)
    (losses,) = in_common_dtype(losses)
    if mask is None and count is None:
        mean = _sum_over_ranks(losses.detach(), group) / group.size()
        return mean + _straight_through(losses), None
    weight = _weight(losses, mask, count)
    local = fill_absent(losses, 0.0, mask=weight > 0)  # the mean over no samples is nan
    # Both rows in one collective. The product comes last: inductor reduces in place, and would
    # reuse the memory of a `weight` that was stacked itself.
    both = weight * torch.stack([local.detach(), torch.ones_like(weight)])
    total, weights = _sum_over_ranks(both, group)
    present = weights > 0
    weights = fill_absent(weights, 1.0, mask=present)
    own = local * (weight * group.size() / weights)
    return total / weights + _straight_through(own), present


def share_first_state(
    module: nn.Module, alike: Mapping[str, object], group: "dist.ProcessGroup | None" = None
) -> "dist.ProcessGroup":
    """Give all ranks of the group the state of its first. Every rank must call it.

    Args:
        module: whose state it is.
        alike: what else should be alike on all ranks, by field. A shape may be None.
        group: the process group. None: that of all ranks.

    Returns:
        The group.

    Raises:
        ValueError: a field or the dtype of the state is not alike on all ranks, or ``group`` is
            not an initialised process group.
    """
    group = initialised(group)
    state: dict[str, Tensor] = module.state_dict()
    dtype = next((tensor.dtype for tensor in state.values() if tensor.numel()), None)
    own = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in alike.items()}
    found: list[Any] = [None] * group.size()
    dist.all_gather_object(found, {**own, "dtype": dtype}, group=group)
    for field in found[0]:
        still_open = field in ("shape", "dtype")  # as of DWA() before its first losses
        known = {
            rank: each[field]
            for rank, each in enumerate(found)
            if not (still_open and each[field] is None)
        }
        first = next(iter(known), 0)
        for rank, value in known.items():
            if value != known[first]:
                raise ValueError(
                    f"`synchronize` should find scalarizers of the same {field} on all ranks. "
                    f"Found {known[first]} on rank {first} and {value} on rank {rank}."
                )
    meta = any(tensor.is_meta for tensor in state.values())
    states = [None if meta else {name: tensor.cpu() for name, tensor in state.items()}]
    dist.broadcast_object_list(states, group=group, group_src=0)
    if states[0] is None:
        raise ValueError(
            "`synchronize` should find a scalarizer with values. Found one on the meta device: "
            "call `to_empty` and `reset` before."
        )
    module.load_state_dict(states[0])
    return group


def broadcast_from_first(tensor: Tensor, group: "dist.ProcessGroup") -> Tensor:
    """The tensor that the first rank of the group has, on every rank."""
    # By a sum to which the others add 0: torch.compile cannot trace a broadcast.
    sent = tensor.clone() if dist.get_rank(group) == 0 else torch.zeros_like(tensor)
    dist.all_reduce(sent, group=group)
    return sent


def _straight_through(own: Tensor) -> Tensor:
    """Adds zero to a value and passes its gradient to ``own``; a loss that is not finite stays."""
    return own - torch.nan_to_num(own.detach())


def _weight(losses: Tensor, mask: Tensor | None, count: float | Tensor | None) -> Tensor:
    """The weight of each loss of this rank in the mean."""
    count = 1.0 if count is None else count
    check_scalar_or_shape("count", count, losses.shape, "losses")
    if not isinstance(count, Tensor):
        check_scalar("count", count)
    weight = torch.ones_like(losses.detach()) * scalar_in(losses.dtype, count)
    return fill_absent(weight, 0.0, mask=mask)


def _sum_over_ranks(tensor: Tensor, group: "dist.ProcessGroup") -> Tensor:
    summed = tensor.clone()
    dist.all_reduce(summed, group=group)
    return summed


def initialised(group: "dist.ProcessGroup | None") -> "dist.ProcessGroup":
    """The group, or that of all ranks; an error if it is none, or no longer one.

    Raises:
        ValueError: ``group`` is not an initialised process group of this rank.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "`group` should be an initialised process group. Found none: call "
            "`torch.distributed.init_process_group` first."
        )
    if group is None:
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        advice = ": pass `mesh.get_group()`" if hasattr(group, "get_group") else ""
        raise ValueError(
            f"`group` should be a process group that this rank belongs to. Found {group!r}{advice}."
        )
    try:
        dist.get_process_group_ranks(group)
    except KeyError:
        raise ValueError(
            "`group` should be an initialised process group. Found one that was destroyed: pass "
            "the new one."
        ) from None
    return group
