"""What every method promises, asked of each in turn."""

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from methods import EPOCH, METHODS, Batch, Method, after, learn
from torch import Tensor, nn

from mtl_scalarize import FAMO, DWAState, FAMOState, Scalarizer, dwa_init, famo_init

SHAPES = [(), (1,), (3,), (2, 3)]
#: Long enough for DWA to leave its two uniform epochs behind.
LENGTH = 4 * EPOCH


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


def batches(
    shape: tuple[int, ...] = (3,),
    *,
    length: int = LENGTH,
    dtype: torch.dtype = torch.float64,
    masked: bool = False,
    seed: int = 0,
) -> list[Batch]:
    """Positive losses over three orders of magnitude; with masks, each task is absent at times."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(length, *shape, generator=generator, dtype=torch.float64)
    losses = (10 ** (3 * rows)).to(dtype)
    present = torch.rand(length, *shape, generator=generator) < 0.7
    return [(row, present[i] if masked else None) for i, row in enumerate(losses)]


def started(method: Method, *, dtype: torch.dtype = torch.float64) -> Scalarizer:
    """A scalarizer in the middle of its training."""
    scalarizer = method.make((3,)).to(dtype)
    for index, batch in enumerate(batches(length=LENGTH + 1, dtype=dtype)):
        learn(scalarizer, index, batch)
    return scalarizer


def run_on(scalarizer: Scalarizer) -> list[tuple[Tensor, Tensor]]:
    """What a scalarizer gives on the batches that follow, and how its state comes out."""
    followed = [learn(scalarizer, i, b) for i, b in enumerate(batches(seed=1, masked=True))]
    return followed + [(value.clone(), value) for value in scalarizer.state_dict().values()]


def snapshot(scalarizer: Scalarizer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in scalarizer.state_dict().items()}


def assert_same_state(scalarizer: Scalarizer, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(scalarizer.state_dict(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_module_equals_functions(method: Method, shape: tuple[int, ...], masked: bool) -> None:
    run = batches(shape, masked=masked)
    scalarizer = method.make(shape).double()
    found = [learn(scalarizer, index, batch) for index, batch in enumerate(run)]
    # Equal but for the order in which autograd sums a gradient.
    torch.testing.assert_close(found, method.functional(run), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_the_losses_is_the_weights(
    method: Method, shape: tuple[int, ...], masked: bool
) -> None:
    scalarizer = method.make(shape).double()
    for index, (losses, mask) in enumerate(batches(shape, masked=masked)):
        losses.requires_grad_()
        (gradient,) = torch.autograd.grad(scalarizer(losses, mask), losses)
        torch.testing.assert_close(gradient, scalarizer.weights, rtol=1e-12, atol=0)
        assert not scalarizer.weights.requires_grad
        learn(scalarizer, index, (losses.detach(), mask))


def test_weights_stay_those_of_the_call_they_were_read_from(method: Method) -> None:
    scalarizer = method.make((3,)).double()
    read, copies = [], []
    for index, batch in enumerate(batches()):
        learn(scalarizer, index, batch)
        read.append(scalarizer.weights)
        copies.append(scalarizer.weights.clone())
    torch.testing.assert_close(read, copies, rtol=0, atol=0)


def test_weights_need_a_call(method: Method) -> None:
    scalarizer = method.make((3,))
    with pytest.raises(ValueError, match="Found no call so far"):
        _ = scalarizer.weights


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_arithmetic_runs_in_float32(
    method: Method, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    scalarizer, reference = method.make((3,)), method.make((3,))
    for index, (losses, _) in enumerate(batches(dtype=dtype)):
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            scalar, weights = learn(scalarizer, index, (losses, None))
        assert scalar.dtype == weights.dtype == torch.float32
        if dtype is torch.float32:  # the second forward pass of FAMO rounds in half precision
            expected = learn(reference, index, (losses, None))
            torch.testing.assert_close((scalar, weights), expected, rtol=0, atol=0)


def test_float64_losses_give_a_float64_scalar(method: Method) -> None:
    losses = torch.ones(3, dtype=torch.float64)
    assert method.make((3,)).double()(losses).dtype == torch.float64


def test_state_is_at_least_float32_by_default(method: Method) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        scalarizer = method.make((3,))
        scalarizer(torch.ones(3))
    finally:
        torch.set_default_dtype(torch.float32)
    floating = [v for v in scalarizer.state_dict().values() if v.is_floating_point()]
    assert {v.dtype for v in floating} <= {torch.float32, torch.float64}


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16], ids=["half", "bfloat16"])
def test_casting_a_model_down_leaves_the_state_as_it_is(
    method: Method, cast: Callable[[nn.Module], nn.Module]
) -> None:
    scalarizer = started(method, dtype=torch.float32)
    expected = snapshot(scalarizer)
    model = cast(nn.ModuleDict({"net": nn.Linear(2, 2), "scalarizer": scalarizer}))
    assert model["net"].weight.dtype.itemsize == 2
    assert_same_state(scalarizer, expected)


def test_casting_goes_no_lower_than_single(method: Method) -> None:
    scalarizer = method.make((3,)).double().half()
    floating = [v for v in scalarizer.state_dict().values() if v.is_floating_point()]
    assert {v.dtype for v in floating} <= {torch.float32, torch.float64}
    expected = {name: v.dtype for name, v in method.make((3,)).state_dict().items()}
    assert {name: v.dtype for name, v in scalarizer.state_dict().items()} == expected


def test_casting_may_come_with_another_device(method: Method) -> None:
    scalarizer = method.make((3,)).to("meta", torch.half)
    state = scalarizer.state_dict()
    assert {value.device.type for value in state.values()} <= {"meta"}
    assert {value.dtype for value in state.values()} <= {torch.float32, torch.float64, torch.int64}
    scalarizer.to_empty(device="cpu")  # as a model that is made without memory gets some
    scalarizer.reset()
    scalarizer(torch.ones(3))


def test_casting_to_double_and_back_loses_nothing(method: Method) -> None:
    scalarizer, untouched = (started(method, dtype=torch.float32) for _ in range(2))
    scalarizer.double()
    torch.testing.assert_close(scalarizer.weights, untouched.weights.double(), rtol=0, atol=0)
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert copy.deepcopy(scalarizer)(losses).dtype == torch.float64
    scalarizer.float()
    assert_same_state(scalarizer, untouched.state_dict())


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda scalarizer: pickle.loads(pickle.dumps(scalarizer))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_goes_on_as_the_original(
    method: Method, copied: Callable[[Scalarizer], Scalarizer]
) -> None:
    original = started(method)
    twin = copied(original)
    torch.testing.assert_close(twin.weights, original.weights, rtol=0, atol=0)
    torch.testing.assert_close(run_on(twin), run_on(original), rtol=0, atol=0, equal_nan=True)


def test_a_resumed_run_is_bit_identical(method: Method) -> None:
    original = started(method)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    resumed = method.make((3,)).double()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(run_on(resumed), run_on(original), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [0, (2, 0)], ids=str)
def test_no_tasks_are_worth_nothing(method: Method, shape: int | tuple[int, ...]) -> None:
    scalarizer = method.make(shape)
    losses = torch.ones(shape, requires_grad=True)
    scalar, weights = learn(scalarizer, 0, (losses, None))
    assert scalar == 0
    assert weights.shape == losses.shape


def test_a_shape_may_be_of_any_integers(method: Method) -> None:
    for shape in (np.int64(3), [np.int32(3)]):
        assert method.make(shape)(torch.ones(3)).shape == ()


def test_state_dict_has_the_documented_keys(method: Method) -> None:
    assert tuple(sorted(started(method).state_dict())) == method.keys


def test_only_learned_parameters_reach_an_optimizer(method: Method) -> None:
    assert tuple(name for name, _ in method.make((3,)).named_parameters()) == method.parameters


def test_reset_goes_back_to_the_start(method: Method) -> None:
    scalarizer, fresh = started(method), method.make((3,)).double()
    scalarizer.reset()
    assert_same_state(scalarizer, fresh.state_dict())
    torch.testing.assert_close(run_on(scalarizer), run_on(fresh), rtol=0, atol=0, equal_nan=True)


def test_reset_forgets_the_last_call(method: Method) -> None:
    scalarizer = started(method)
    scalarizer.reset()
    with pytest.raises(ValueError, match="Found no call so far"):
        _ = scalarizer.weights


def test_a_copy_of_a_model_keeps_what_it_shares(method: Method) -> None:
    """A scalarizer that is there twice is one in the copy, too."""
    scalarizer = method.make((3,))
    model = nn.ModuleList([scalarizer, scalarizer])
    scalarizer.model = [model]  # not as a module: round in a circle
    for twin in (copy.deepcopy(model), copy.deepcopy(scalarizer).model[0]):
        assert twin[0] is twin[1]
        assert twin[0] is not scalarizer
        assert twin[0].model[0] is twin


def test_repr(method: Method) -> None:
    assert repr(method.make((3,))) == repr(method.make(3)) == method.repr


@pytest.mark.parametrize(
    ("training", "context"),
    [(False, nullcontext), (True, torch.no_grad), (True, torch.inference_mode)],
    ids=["eval", "no_grad", "inference_mode"],
)
def test_a_validation_pass_changes_no_state(
    method: Method, training: bool, context: Callable[[], AbstractContextManager[None]]
) -> None:
    scalarizer = started(method)
    expected = snapshot(scalarizer)
    losses = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    in_training = copy.deepcopy(scalarizer)(losses)
    scalarizer.train(training)
    with context():
        scalar = scalarizer(losses)
    assert_same_state(scalarizer, expected)
    if method.name != "FAMO amortized":  # whose call in training first updates the logits
        torch.testing.assert_close(scalar, in_training, rtol=0, atol=0)


def test_a_validation_pass_may_come_first(method: Method) -> None:
    validated, fresh = method.make((3,)).double(), method.make((3,)).double()
    with torch.inference_mode():
        validated(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(run_on(validated), run_on(fresh), rtol=0, atol=0, equal_nan=True)


def test_an_absent_task_leaves_no_trace(method: Method) -> None:
    """Whatever stands in its place, down to the bits of its state."""
    results = []
    for junk in (torch.nan, torch.inf, -1.0, 7.0):
        scalarizer = started(method)
        before = snapshot(scalarizer)
        mask = torch.tensor([True, False, True])
        for index in range(EPOCH):
            losses = torch.tensor([3.0, junk, 1.0], dtype=torch.float64, requires_grad=True)
            scalar = scalarizer(losses, mask)
            gradients = torch.autograd.grad(scalar, [losses, *scalarizer.parameters()])
            assert [float(gradient[1]) for gradient in gradients] == [0.0] * len(gradients)
            assert scalarizer.weights[1] == 0
            if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
                scalarizer.update(after(losses))
            results.append((index, junk, scalar.detach(), gradients))
        for name, value in scalarizer.state_dict().items():
            if name != "previous_losses":  # that of an absent task is forgotten by plain FAMO
                torch.testing.assert_close(value[1], before[name][1], rtol=0, atol=0)
    for index, _, scalar, gradients in results[EPOCH:]:
        torch.testing.assert_close((scalar, gradients), results[index][2:], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_batch_without_any_task_is_worth_nothing(method: Method) -> None:
    scalarizer = started(method)
    before = snapshot(scalarizer)
    losses = torch.full((3,), torch.nan, dtype=torch.float64, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True):
        scalar = scalarizer(losses, torch.zeros(3, dtype=torch.bool))
        scalar.backward()
    assert scalar == 0
    assert losses.grad.tolist() == [0.0, 0.0, 0.0]
    if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
        scalarizer.update(losses)
        del before["previous_losses"]
    state = {name: scalarizer.state_dict()[name] for name in before}
    torch.testing.assert_close(state, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_batch_is_reported_but_not_remembered(method: Method, junk: float) -> None:
    scalarizer, reference = started(method), started(method)
    bad = torch.tensor([3.0, junk, 1.0], dtype=torch.float64, requires_grad=True)
    scalar = scalarizer(bad)
    assert not torch.isfinite(scalar)
    if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
        scalarizer.update(after(bad))
        reference(bad.detach(), torch.isfinite(bad))
        reference.update(after(bad))
    else:
        reference(bad.detach(), torch.isfinite(bad))
    torch.testing.assert_close(
        run_on(scalarizer), run_on(reference), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("init", [dwa_init, famo_init], ids=lambda init: init.__name__)
def test_no_two_fields_of_a_new_state_share_memory(
    init: Callable[..., DWAState | FAMOState], dtype: torch.dtype
) -> None:
    state = init(3, dtype=dtype)
    assert len({value.data_ptr() for value in state}) == len(state)
