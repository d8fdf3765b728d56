"""What dtype comes out of which; and that nothing is float64 unless the losses or the state are."""

from functools import partial
from typing import Any

import pytest
import torch
from functions import ROLES, ROWS, Row, value_and_gradients
from methods import EPOCH, METHODS, Method, learn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mtl_scalarize import (
    dwa_accumulate,
    dwa_init,
    dwa_step,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
)

F32, F64 = torch.float32, torch.float64
SINGLE_AND_HALF = [F32, torch.float16, torch.bfloat16]


class NoDoublePrecision(TorchDispatchMode):
    """As a device that has none, such as MPS. 0-d tensors may be on the host: hyperparameters."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        returned = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, returned)):
            if isinstance(leaf, Tensor) and leaf.dtype is F64 and leaf.ndim > 0:
                raise TypeError(f"{function} has a tensor in float64")
        return returned


def cast(leaf: Any, dtype: torch.dtype) -> Any:
    """Tensors with a dimension, and the option `dtype`."""
    if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0:
        return leaf.to(dtype)
    return F32 if leaf is F64 else leaf


@pytest.mark.parametrize("dtype", SINGLE_AND_HALF, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_functions_need_no_double_precision(row: Row, dtype: torch.dtype) -> None:
    dtypes = {"losses": dtype}
    inputs = {
        name: tree_map(partial(cast, dtype=dtypes.get(ROLES[name], F32)), value)
        for name, value in row.inputs().items()
    }
    with NoDoublePrecision():
        value_and_gradients(row.function, inputs)


@pytest.mark.parametrize("dtype", SINGLE_AND_HALF, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_modules_need_no_double_precision(method: Method, dtype: torch.dtype) -> None:
    losses, mask = torch.tensor([1.0, 2.0, 3.0], dtype=dtype), torch.tensor([True, False, True])
    with NoDoublePrecision():
        scalarizer = method.make(["a", "b", "c"])
        for index in range(3 * EPOCH):
            variables = losses.clone().requires_grad_()
            learn(scalarizer, index, (variables, mask if index % 2 else None))
            scalarizer(variables).backward()
        if scalarizer.names is not None:
            scalarizer({"a": variables[0], "c": variables[2]}).backward()
            scalarizer.task_weights()
        scalarizer.eval()(losses)
        scalarizer.load_state_dict(scalarizer.state_dict())
        scalarizer.reset()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_double_precision_is_for_losses_that_have_it(method: Method) -> None:
    losses = torch.ones(3)
    scalarizer = method.make(3)
    with NoDoublePrecision(), pytest.raises(TypeError, match="float64"):
        scalarizer(losses.double())


@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_a_state_keeps_its_dtype(shape: tuple[int, ...]) -> None:
    """Whatever that of the losses, and of hyperparameters in tensors: two 0-d tensors promote."""
    hyper = torch.tensor(0.5, dtype=F64)
    logits, means = famo_init(shape), dwa_init(shape)
    for dtype in (F64, torch.float16):
        losses = torch.ones(shape, dtype=dtype)
        updated = famo_update(logits, losses, lr=hyper, weight_decay=hyper)
        assert [field.dtype for field in updated] == [field.dtype for field in logits]
        stepped = dwa_step(dwa_accumulate(means, losses), hyper)
        assert [field.dtype for field in stepped] == [field.dtype for field in means]


def test_a_bound_does_not_widen_the_losses() -> None:
    losses, bound = torch.tensor(2.0), torch.tensor(0.5, dtype=F64)
    assert famo_weights(losses, torch.tensor(0.0), bound).dtype == F32
    assert famo_combine(losses, torch.tensor(0.0), bound).dtype == F32
    assert famo_delta(losses, losses, bound).dtype == F32


def test_weights_of_dwa_have_the_wider_dtype_of_both_averages() -> None:
    narrow, wide = torch.ones(2), torch.ones(2, dtype=F64)
    assert dwa_weights(narrow, wide).dtype == dwa_weights(wide, narrow).dtype == F64
