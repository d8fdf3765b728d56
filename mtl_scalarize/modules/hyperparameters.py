"""Hyperparameters: declared once in the class of a method, checked wherever they are assigned."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..functional._checks import check_scalar_or_shape
from ..functional._precision import at_least_float32, default_dtype
from .names import Names, quoted

#: What a user may give for one: a number for all tasks, or a number for each, also by name.
Value = float | Tensor | Sequence[float] | Mapping[str, float] | None


class Hyperparameter:
    """A hyperparameter, as an attribute of the class that has it.

    An assignment checks the value and keeps it: a number, or a detached copy of a tensor, at least
    float32. It is no buffer, so a checkpoint does not have it.

    Args:
        default: the value used for None, which ``repr`` hides. None: there is no default.
        check: ``check(name, value)`` raises if one number for all tasks, or a 0-d tensor, is wrong.
            None: each task may have a number of its own.
        each: ``each(name, value, shape, owner)`` checks such a number, or a tensor of them. By
            default they are finite.
        expand: True if it is kept as a tensor with an entry for each task in any case.
        optional: True if it may be None without a default.
        argument: what the constructor calls it, if not as the attribute.
    """

    def __init__(
        self,
        default: float | None = None,
        check: Callable[[str, Any], None] | None = None,
        *,
        each: Callable[..., None] = check_scalar_or_shape,
        expand: bool = False,
        optional: bool = False,
        argument: str = "",
    ) -> None:
        self.default, self.check, self.each, self.argument = default, check, each, argument
        self.expand, self.optional = expand, optional

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.argument = name, self.argument or name

    if TYPE_CHECKING:

        def __get__(self, module: nn.Module | None, owner: type) -> Any: ...

    # Without `__get__`, Python and torch.compile read the attribute from the instance.
    def __set__(self, module: "Configurable", value: Value) -> None:
        value = self.default if value is None else value
        if value is not None or not self.optional:
            value = self._accepted(value, module)
        module.__dict__[self.name] = value
        module._given = {**module._given, self.name: value}  # of its own, not of a copy
        module._examined.clear()

    def _accepted(self, value: Any, module: "Configurable") -> float | Tensor:
        name, check, shape = self.argument, self.check, module.shape
        if not isinstance(value, Tensor) and hasattr(value, "tolist"):  # NumPy's
            value = value.tolist()
        if isinstance(value, (list, tuple)) and any(isinstance(each, str) for each in value):
            raise TypeError(
                f"`{name}` should be numbers. Found {value!r}: names of tasks are given as `shape`."
            )
        if check is None:
            check = partial(self.each, shape=shape, owner="losses")
            value = self._without_names(value, module.names or ())
        if isinstance(value, Tensor):
            if value.requires_grad or value.is_meta or value.is_complex():
                raise ValueError(
                    f"`{name}` should be real, have values, and need no gradient (a module keeps "
                    f"no graph: use the pure functions). Found {value!r}."
                )
            check(name, value)
            if not value.numel():
                raise ValueError(f"`{name}` should have at least one entry. Found {value!r}.")
            value = value.detach().to(at_least_float32(value.dtype), copy=True)
            numbers = [number.item() for number in value.aminmax()]
        for number in numbers if isinstance(value, Tensor) else [value]:
            check(name, number)
        if self.expand:
            if not isinstance(value, Tensor):
                value = torch.tensor(value, dtype=default_dtype(), device="cpu")
            value = value.expand(value.shape if shape is None else shape).clone()
        return value  # type: ignore[no-any-return]

    def _without_names(self, value: Any, names: Sequence[str]) -> Any:
        if isinstance(value, Mapping):
            incomplete = self.default is None and len(value) < len(names)
            if incomplete or not set(value) <= set(names):
                tasks = (
                    f"of the tasks {quoted(names)}" if names else "no mapping without `shape=[...]`"
                )
                raise ValueError(f"`{self.argument}` should be {tasks}. Found {quoted(value)}.")
            value = [value.get(task, self.default) for task in names]
        if not isinstance(value, (list, tuple)):
            return value
        if any(isinstance(each, Tensor) and each.requires_grad for each in value):
            raise ValueError(f"`{self.argument}` should need no gradient. Found {value!r}.")
        try:  # on the CPU: on the meta device, where a model may be made, the values would be lost
            return torch.tensor(value, dtype=default_dtype(), device="cpu")
        except (TypeError, ValueError):
            raise TypeError(f"`{self.argument}` should be numbers. Found {value!r}.") from None


class Configurable(nn.Module):
    """Base class of a module whose class declares hyperparameters."""

    names: Names | None
    shape: tuple[int, ...] | None

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, Any] = {}  # the hyperparameters, as they were accepted
        #: Calls on such losses need not be examined again.
        self._examined: set[tuple[object, ...]] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a hyperparameter check what it is given, also an ``nn.Parameter``.

        Raises:
            AttributeError: ``name`` is new, and almost that of a hyperparameter.
        """
        declared = getattr(type(self), name, None)
        if isinstance(declared, Hyperparameter):
            declared.__set__(self, value)
            return
        if not hasattr(self, name):
            for meant in get_close_matches(name, self.__dict__.get("_given", ()), cutoff=0.75):
                raise AttributeError(f"{type(self).__name__} has no `{name}`: use `{meant}`.")
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """The shape, or the names, and the hyperparameters that are not at their defaults."""
        shown = [] if self.shape is None else [f"shape={self.names or self.shape}"]
        for name, value in self._given.items():
            declared = getattr(type(self), name)
            if isinstance(value, Tensor):
                changed = declared.default is None or not bool((value == declared.default).all())
                large = f"<tensor of shape {tuple(value.shape)}>"
                value = value.tolist() if value.numel() < 9 else large
            else:
                changed = value != declared.default
            shown += [f"{declared.argument}={value}"] if changed else []
        return ", ".join(shown)

    def move_hyperparameters(self, device_for: Callable[[Tensor], torch.device]) -> None:
        """Move those that are tensors to the device that ``device_for`` says.

        Copied from the accepted values, because a tensor on the meta device has lost its own.
        """
        for name, given in self._given.items():
            tensor = self.__dict__[name]
            if isinstance(tensor, Tensor) and tensor.device != (device := device_for(tensor)):
                with torch.inference_mode(False):  # or no training could use it
                    self.__dict__[name] = given.to(device)
