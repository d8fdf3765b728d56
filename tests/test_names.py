"""Tasks that have names."""

import io
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from methods import NAMED, Method, learn, seeded
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import mtl_scalarize
from mtl_scalarize import UW, History

NAMES = ["segmentation", "depth", "normals"]

every_named_method = pytest.mark.parametrize("method", NAMED, ids=str)


def by_name(losses: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    present = [True] * len(NAMES) if mask is None else mask.tolist()
    return {name: loss for name, loss, here in zip(NAMES, losses, present, strict=True) if here}


def batches(masked: bool) -> list[tuple[Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(0)
    losses = 0.1 + torch.rand(8, 3, generator=generator)
    present = torch.rand(8, 3, generator=generator) < 0.6
    present[:, 0] = True
    return [(row, present[i] if masked else None) for i, row in enumerate(losses)]


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "some missing"])
@every_named_method
def test_losses_by_name_are_those_in_the_tensor(method: Method, masked: bool) -> None:
    named, positional = method.make(NAMES), method.make((3,))
    for index, (losses, mask) in enumerate(batches(masked)):
        leaves = [losses.clone().requires_grad_() for _ in range(2)]
        arguments = ((named, by_name(leaves[0], mask), None), (positional, leaves[1], mask))
        scalars = [seeded(*call) for call in arguments]
        for scalar in scalars:
            scalar.backward()
        torch.testing.assert_close(scalars[0], scalars[1], rtol=0, atol=0)
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=0, atol=0)
        assert named.task_weights() == dict(zip(NAMES, positional.weights, strict=True))
        named.update(by_name(0.5 * losses, mask))
        positional.update(0.5 * losses, mask)
        for each in (named, positional):
            learn(each, index, (losses, mask))
        states = dict(named.state_dict()), dict(positional.state_dict())
        torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


@every_named_method
def test_a_mask_may_come_on_top(method: Method) -> None:
    scalarizer = method.make(NAMES)
    history = History(scalarizer)
    losses = {"segmentation": torch.tensor(1.0), "depth": torch.tensor(2.0)}
    mask = torch.tensor([True, False, True])
    scalarizer(losses, mask)
    history.record(losses, mask)
    assert (scalarizer.weights > 0).tolist() == [True, False, False]
    assert history.losses.isnan().tolist() == [[False, True, True]]


def test_everything_is_on_the_device_of_the_losses() -> None:
    scalarizer = UW(NAMES).to("meta")
    assert scalarizer({"depth": torch.ones((), device="meta")}).device.type == "meta"
    assert scalarizer.weights.device.type == "meta"


def test_losses_of_several_dtypes_take_the_widest_and_a_missing_task_widens_none() -> None:
    losses = {"depth": torch.tensor(2.0).half(), "normals": torch.tensor(1.0).double()}
    assert UW(NAMES)(losses).dtype == torch.float64
    scalarizer = UW(NAMES)
    torch.set_default_dtype(torch.float64)
    try:
        assert scalarizer({"depth": torch.tensor(2.0, dtype=torch.float32)}).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@every_named_method
def test_one_graph_for_the_same_names(method: Method) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(method.make(NAMES), fullgraph=True, backend=counter)
    for losses, _ in batches(masked=False):
        compiled(by_name(losses))
    assert counter.frame_count == 1


@every_named_method
def test_names_show(method: Method) -> None:
    shown = repr(method.make(("a", "b")))
    assert "'a'" in shown
    assert shown == repr(eval(shown, vars(mtl_scalarize)))


def model(method: Method, shape: list[str] | int) -> nn.ModuleDict:
    """A model with a scalarizer that has had a step of training."""
    scalarizer = method.make(shape)
    learn(scalarizer, 0, (torch.tensor([1.0, 2.0, 3.0]), None))
    return nn.ModuleDict({"scalarizer": scalarizer})


@every_named_method
def test_a_checkpoint_knows_names_and_order(method: Method) -> None:
    saved = model(method, NAMES).state_dict()
    assert set(saved) == {f"scalarizer.{key}" for key in method.keys}
    model(method, NAMES).load_state_dict(saved)
    for names in (["normals", "segmentation", "depth"], ["segmentation", "depth", "flow"]):
        other = model(method, names)
        before = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(ValueError, match=r"of the tasks .* in this order. Found 'segment"):
            other.load_state_dict(saved)
        torch.testing.assert_close(dict(other.state_dict()), before, equal_nan=True)


@every_named_method
def test_without_names_on_one_side_position_counts(method: Method) -> None:
    named, turned = model(method, NAMES), model(method, ["normals", "segmentation", "depth"])
    cases: list[tuple[nn.Module, Mapping[str, Tensor]]] = [
        (model(method, 3), named.state_dict()),
        (turned, model(method, 3).state_dict()),
    ]
    for target, state in cases:
        target.load_state_dict(state)
        torch.testing.assert_close(dict(target.state_dict()), dict(state), equal_nan=True)


class Tasks(str, Enum):
    SEGMENTATION = "segmentation"
    DEPTH = "depth"
    NORMALS = "normals"


@pytest.mark.parametrize("names", [list(np.array(NAMES)), list(Tasks)], ids=["NumPy", "Enum"])
@every_named_method
def test_names_become_plain_strings_which_every_checkpoint_can_have(
    method: Method, names: Any
) -> None:
    scalarizer = method.make(names)
    assert scalarizer.names == tuple(NAMES)
    assert {type(name) for name in scalarizer.names} == {str}
    file = io.BytesIO()
    torch.save(scalarizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    method.make(NAMES).load_state_dict(loaded)
    with pytest.raises(ValueError, match="in this order"):
        method.make(NAMES[::-1]).load_state_dict(loaded)
    assert scalarizer(dict.fromkeys(names, torch.ones(()))).shape == ()


class Batched(Mapping[str, Tensor]):
    """As a TensorDict: its length is a batch size, and it knows no `in`."""

    def __init__(self, losses: Mapping[str, Tensor], size: int) -> None:
        self.losses, self.size = losses, size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[str]:
        return iter(self.losses)

    def __getitem__(self, name: str) -> Tensor:
        return self.losses[name]

    def __contains__(self, name: object) -> bool:
        raise NotImplementedError

    def keys(self) -> Any:
        return self.losses.keys()


@pytest.mark.parametrize("size", [0, len(NAMES), 7])
@pytest.mark.parametrize("names", [NAMES, NAMES[1:]], ids=["all present", "one missing"])
@every_named_method
def test_a_mapping_may_have_a_length_of_its_own(
    method: Method, names: list[str], size: int
) -> None:
    losses, results = dict(zip(names, torch.rand(3), strict=False)), []
    for given in (losses, Batched(losses, size)):
        scalarizer = method.make(NAMES)
        history = History(scalarizer)
        results.append(seeded(scalarizer, given))
        scalarizer.update(given)
        history.record(given)
        results.append([scalarizer.weights, history.losses, *scalarizer.state_dict().values()])
    torch.testing.assert_close(results[2:], results[:2], rtol=0, atol=0, equal_nan=True)
