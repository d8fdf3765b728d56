"""Tasks that have names."""

from collections.abc import Mapping

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
        gradients = []
        for scalar, leaf in zip(scalars, leaves, strict=True):
            (gradient,) = torch.autograd.grad(scalar, leaf, allow_unused=True)
            gradients.append(torch.zeros(3) if gradient is None else gradient)
        torch.testing.assert_close(scalars[0], scalars[1], rtol=0, atol=0)
        torch.testing.assert_close(*gradients, rtol=0, atol=0)
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
    without_metadata = dict(named.state_dict())  # as safetensors and DCP give it back
    cases: list[tuple[nn.Module, Mapping[str, Tensor]]] = [
        (turned, without_metadata),
        (model(method, 3), named.state_dict()),
        (turned, model(method, 3).state_dict()),
    ]
    for target, state in cases:
        target.load_state_dict(state)
        torch.testing.assert_close(dict(target.state_dict()), dict(state), equal_nan=True)
