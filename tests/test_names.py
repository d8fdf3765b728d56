"""Tasks that have names."""

import io
from collections.abc import Callable

import pytest
import torch
from methods import METHODS, Method, learn
from torch import Tensor

from mtl_scalarize import DWA, FAMO, IMTLL, UW, History, Scalarizer

NAMES = ["segmentation", "depth", "normals"]
TURNED = ["normals", "segmentation", "depth"]

BY_NAME: dict[str, Callable[[list[str]], Scalarizer]] = {
    "UW": UW,
    "IMTLL": IMTLL,
    "DWA": lambda names: DWA(shape=names),
    "FAMO": FAMO,
    "FAMO amortized": lambda names: FAMO(names, amortized=True),
}


@pytest.fixture(params=[method for method in METHODS if method.name in BY_NAME], ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


def by_name(losses: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    present = [True] * len(NAMES) if mask is None else mask.tolist()
    return {name: loss for name, loss, here in zip(NAMES, losses, present, strict=True) if here}


def batches(masked: bool, seed: int = 0) -> list[tuple[Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    losses = 0.1 + torch.rand(8, 3, generator=generator)
    present = torch.rand(8, 3, generator=generator) < 0.6
    return [(row, present[i] if masked else None) for i, row in enumerate(losses)]


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "some missing"])
def test_losses_by_name_are_those_in_the_tensor(method: Method, masked: bool) -> None:
    named, positional = BY_NAME[method.name](NAMES), method.make((3,))
    for index, (losses, mask) in enumerate(batches(masked)):
        leaves = [losses.clone().requires_grad_() for _ in range(2)]
        scalars = [named(by_name(leaves[0], mask)), positional(leaves[1], mask)]
        gradients = []
        for scalar, leaf in zip(scalars, leaves, strict=True):
            (gradient,) = torch.autograd.grad(scalar, leaf, allow_unused=True)
            gradients.append(torch.zeros(3) if gradient is None else gradient)
        torch.testing.assert_close(scalars[0], scalars[1], rtol=0, atol=0)
        torch.testing.assert_close(*gradients, rtol=0, atol=0)
        assert named.task_weights() == dict(zip(NAMES, positional.weights, strict=True))
        for each in (named, positional):
            learn(each, index, (losses, mask))
        state = named.state_dict()
        del state["task_names"]
        torch.testing.assert_close(
            dict(state), dict(positional.state_dict()), rtol=0, atol=0, equal_nan=True
        )


def test_update_takes_names_too() -> None:
    named, positional = FAMO(NAMES), FAMO(3)
    losses, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True])
    for each in (named, positional):
        each(losses)
    named.update(by_name(0.5 * losses.square(), mask))
    positional.update(0.5 * losses.square(), mask)
    torch.testing.assert_close(named.state, positional.state, rtol=0, atol=0)


def test_a_mask_may_come_on_top(method: Method) -> None:
    scalarizer = BY_NAME[method.name](NAMES)
    history = History(scalarizer)
    losses = {"segmentation": torch.tensor(1.0), "depth": torch.tensor(2.0)}
    mask = torch.tensor([True, False, True])
    scalarizer(losses, mask)
    history.record(losses, mask)
    assert (scalarizer.weights > 0).tolist() == [True, False, False]
    assert history.losses.isnan().tolist() == [[False, True, True]]
    if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
        scalarizer({**losses, "normals": torch.tensor(3.0)})
        scalarizer.update(losses, mask)
        assert scalarizer.step.tolist() == [1, 0, 0]


def test_nothing_by_name_is_a_batch_without_any_task(method: Method) -> None:
    assert BY_NAME[method.name](NAMES)({}) == 0


def test_everything_is_on_the_device_of_the_losses() -> None:
    scalarizer = UW(NAMES).to("meta")
    assert scalarizer.task_names.dtype == torch.uint8
    for losses in ({}, {"depth": torch.ones((), device="meta")}):
        assert scalarizer(losses).device.type == "meta"
        assert scalarizer.weights.device.type == "meta"


def test_losses_of_several_dtypes_take_the_widest() -> None:
    losses = {"depth": torch.tensor(2.0).half(), "normals": torch.tensor(1.0).double()}
    assert UW(NAMES)(losses).dtype == torch.float64


def test_a_missing_task_widens_no_other() -> None:
    scalarizer = UW(NAMES)
    torch.set_default_dtype(torch.float64)
    try:
        assert scalarizer({"depth": torch.tensor(2.0, dtype=torch.float32)}).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_graph_for_the_same_names(method: Method) -> None:
    graphs = []

    def count(module: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(module)
        return module

    torch._dynamo.reset()
    scalarizer = BY_NAME[method.name](NAMES)
    compiled = torch.compile(scalarizer, fullgraph=True, backend=count)
    for losses, _ in batches(masked=False):
        compiled(by_name(losses))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("losses", "error", "complaint"),
    [
        (
            {"depths": torch.ones(())},
            ValueError,
            r"`losses` should be of 'segmentation', 'depth', 'normals'. Found 'depths'",
        ),
        ({"depth": torch.ones(1)}, ValueError, r"`losses\['depth'\]` should be a 0-d tensor"),
        ({"depth": 1.0}, TypeError, r"`losses\['depth'\]` should be a floating-point tensor"),
        ([torch.ones(())] * 3, TypeError, "`losses` should be a floating-point tensor"),
    ],
)
def test_what_is_wrong_is_named(
    method: Method, losses: object, error: type[Exception], complaint: str
) -> None:
    scalarizer = BY_NAME[method.name](NAMES)
    with pytest.raises(error, match=complaint):
        scalarizer(losses)


def test_names_are_needed_for_a_mapping_and_for_task_weights(method: Method) -> None:
    scalarizer = method.make((3,))
    with pytest.raises(TypeError, match="have no names"):
        scalarizer({"depth": torch.ones(())})
    scalarizer(torch.ones(3))
    with pytest.raises(ValueError, match="Found a scalarizer without names"):
        scalarizer.task_weights()


@pytest.mark.parametrize(
    ("shape", "error", "complaint"),
    [
        (["a", "b", "a"], ValueError, "should name each task once. Found 'a' twice"),
        (["a", 1], TypeError, r"should be all names or all ints. Found `shape = \['a', 1\]`"),
        ("depth", TypeError, "should be an int or a sequence of ints or of names"),
    ],
)
def test_bad_names_are_refused(
    method: Method, shape: object, error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        BY_NAME[method.name](shape)


def test_names_show(method: Method) -> None:
    shown = repr(BY_NAME[method.name](("a", "b")))
    assert "shape=('a', 'b')" in shown
    assert shown == repr(eval(shown, {kind.__name__: kind for kind in (UW, IMTLL, DWA, FAMO)}))


def saved(method: Method, names: list[str]) -> dict[str, Tensor]:
    scalarizer = BY_NAME[method.name](names)
    for index, batch in enumerate(batches(masked=True)):
        learn(scalarizer, index, batch)
    file = io.BytesIO()
    torch.save(scalarizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_checkpoint_is_matched_by_name(method: Method) -> None:
    state = saved(method, NAMES)
    order = [NAMES.index(name) for name in TURNED]
    scalarizer, same = (BY_NAME[method.name](names) for names in (TURNED, NAMES))
    for each in (scalarizer, same):
        each.load_state_dict(state)
    for index, (losses, _) in enumerate(batches(masked=False, seed=1)):
        scalar, weights = learn(scalarizer, index, (losses[order], None))
        expected, expected_weights = learn(same, index, (losses, None))
        torch.testing.assert_close(scalar, expected)
        torch.testing.assert_close(weights, expected_weights[order])
        if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
            break  # `learn` gives each position a fall of its own
    assert scalarizer.names == tuple(TURNED)
    again = BY_NAME[method.name](TURNED)
    again.load_state_dict(scalarizer.state_dict())  # its own names are in its checkpoint


@pytest.mark.parametrize("names", [["segmentation", "depth", "flow"], ["depth", "normals"]])
def test_a_checkpoint_of_other_tasks_is_refused(method: Method, names: list[str]) -> None:
    scalarizer = BY_NAME[method.name](NAMES)
    before = {name: value.clone() for name, value in scalarizer.state_dict().items()}
    with pytest.raises(RuntimeError, match="should be 'segmentation', 'depth', 'normals', in any"):
        scalarizer.load_state_dict(BY_NAME[method.name](names).state_dict())
    torch.testing.assert_close(
        dict(scalarizer.state_dict()), before, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(
    "what", [torch.ones(3), 3, *(torch.tensor(list(text)) for text in (b"[1, 2]", b"3", b"["))]
)
def test_what_does_not_hold_names_is_refused(what: object) -> None:
    with pytest.raises(RuntimeError, match="`task_names` should hold the names of the tasks"):
        UW(NAMES).load_state_dict({"log_var": torch.zeros(3), "task_names": what})


def test_a_checkpoint_without_names_is_taken_by_position(method: Method) -> None:
    positional, named = method.make((3,)), BY_NAME[method.name](NAMES)
    learn(positional, 0, batches(masked=False)[0])
    named.load_state_dict(positional.state_dict())
    torch.testing.assert_close(
        {**named.state_dict(), "task_names": torch.ones(1)},
        {**positional.state_dict(), "task_names": torch.ones(1)},
        rtol=0,
        atol=0,
        equal_nan=True,
    )


def test_a_checkpoint_with_names_needs_them() -> None:
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "task_names"'):
        UW(3).load_state_dict(UW(NAMES).state_dict())
