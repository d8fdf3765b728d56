"""What both classes do before a training."""

import torch.distributed as dist

from ..modules import Scalarizer


def start(scalarizer: Scalarizer, update_every: int) -> None:
    """Check ``update_every``, and let several ranks balance together.

    Raises:
        ValueError: ``update_every`` is not a positive int, or the scalarizers of the ranks differ.
    """
    if not isinstance(update_every, int) or update_every < 1:
        raise ValueError(
            f"`update_every` should be a positive int. Found `update_every = {update_every!r}`."
        )
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and scalarizer._ranks.group is None:  # or the user has chosen a group
        scalarizer.synchronize()
