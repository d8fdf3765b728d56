"""What torch has to know of a state to save it."""

from typing import TypeVar

from torch.serialization import add_safe_globals
from torch.utils import _pytree

State = TypeVar("State", bound=type)


def saveable(state: State) -> State:
    """Decorate a NamedTuple so that ``torch.load`` and ``torch.export.save`` know it."""
    add_safe_globals([state])
    # Private: torch has a public counterpart for dataclasses only. Without it, an exported program
    # that takes or returns a state still runs, but is not saved.
    name = f"{__package__}.{state.__name__}"
    _pytree._register_namedtuple(state, serialized_type_name=name)
    return state
