"""What every method promises, asked of each in turn."""

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from methods import EPOCH, METHODS, Batch, Method, after, learn, seeded
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import mtl_scalarize
from mtl_scalarize import Scalarizer
from mtl_scalarize.modules import Stateful

SHAPES = [(), (1,), (3,), (2, 3)]
#: Long enough for DWA to leave its two uniform epochs behind.
LENGTH = 4 * EPOCH

pytestmark = pytest.mark.parametrize("method", METHODS, ids=str)


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


def assert_same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def assert_same_state(scalarizer: Scalarizer, expected: dict[str, Tensor]) -> None:
    assert_same(dict(scalarizer.state_dict()), dict(expected))


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


def test_weights_are_the_derivative_at_the_last_losses_by_the_state_as_it_is(
    method: Method,
) -> None:
    scalarizer, twin = started(method), started(method)
    losses = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    for each in (scalarizer, twin):
        seeded(each, losses)
    read = scalarizer.weights
    assert_same(read, twin.weights)
    read /= 2  # what was read is the reader's
    assert_same(scalarizer.weights, twin.weights)
    with torch.no_grad():
        for parameter in scalarizer.parameters():
            parameter += 1.0
    scalarizer.update(after(losses))
    scalarizer.step()
    if not method.draws:
        variable = losses.clone().requires_grad_()
        (expected,) = torch.autograd.grad(copy.deepcopy(scalarizer).eval()(variable), variable)
        torch.testing.assert_close(scalarizer.weights, expected, rtol=1e-12, atol=0)


def test_there_are_no_weights_before_a_call(method: Method) -> None:
    scalarizer = method.make((3,))
    assert not hasattr(scalarizer, "weights")
    with pytest.raises(AttributeError, match="No `weights` of"):
        _ = scalarizer.weights
    scalarizer(torch.ones(3))
    assert scalarizer.weights.shape == (3,)
    scalarizer.reset()
    assert not hasattr(scalarizer, "weights")
    with pytest.raises(AttributeError, match="no attribute 'loss'"):  # any other, as in torch
        _ = scalarizer.loss


@pytest.mark.parametrize("compiler", [lambda f: f, torch.compile], ids=["eager", "compiled"])
def test_transforms_leave_nothing_dead_behind(
    method: Method, compiler: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
) -> None:
    torch._dynamo.reset()
    scalarizer = started(method, dtype=torch.float32)

    def call(state: dict[str, Tensor], losses: Tensor) -> Tensor:
        return functional_call(scalarizer, state, (losses,))

    losses = torch.tensor([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0]])
    state = {name: torch.stack([value, value]) for name, value in snapshot(scalarizer).items()}
    for function in (call, grad(call, argnums=1)):
        scalarizer(losses[0])
        compiler(vmap(function, randomness="same"))(state, losses)
        assert not hasattr(scalarizer, "weights")
        for twin in (copy.deepcopy(scalarizer), pickle.loads(pickle.dumps(scalarizer))):
            twin.double()(losses[0].double())


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
            assert_same((scalar, weights), learn(reference, index, (losses, None)))


def dtypes(scalarizer: Scalarizer) -> set[torch.dtype]:
    return {value.dtype for value in scalarizer.state_dict().values() if value.is_floating_point()}


def test_float64_losses_give_a_float64_scalar_and_leave_the_state_as_it_is(method: Method) -> None:
    scalarizer = method.make((3,))
    scalarizer(torch.ones(3))
    learn(scalarizer, 0, (torch.ones(3, dtype=torch.float64), None))
    assert scalarizer(torch.ones(3, dtype=torch.float64)).dtype == torch.float64
    assert dtypes(scalarizer) <= {torch.float32}


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_new_state_has_the_default_dtype_and_at_least_float32(
    method: Method, default: torch.dtype
) -> None:
    torch.set_default_dtype(default)
    try:
        scalarizer = method.make((3,))
        scalarizer(torch.ones(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert dtypes(scalarizer) <= {torch.promote_types(default, torch.float32)}


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16], ids=["half", "bfloat16"])
def test_casting_a_model_down_leaves_the_state_as_it_is(
    method: Method, cast: Callable[[nn.Module], nn.Module]
) -> None:
    scalarizer = started(method, dtype=torch.float32)
    expected = snapshot(scalarizer)
    model = cast(nn.ModuleDict({"net": nn.Linear(2, 2), "scalarizer": scalarizer}))
    assert model["net"].weight.dtype.itemsize == 2
    assert_same_state(scalarizer, expected)
    assert dtypes(started(method).half()) <= {torch.float32}  # from double, no lower than single


def test_casting_to_double_and_back_loses_nothing(method: Method) -> None:
    scalarizer, untouched = (started(method, dtype=torch.float32) for _ in range(2))
    scalarizer.double()
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert copy.deepcopy(scalarizer)(losses).dtype == torch.float64
    assert_same_state(scalarizer.float(), untouched.state_dict())


def test_reset_makes_a_new_scalarizer_of_any_memory(method: Method) -> None:
    if method.lazy:
        pytest.skip("its shape stays what the first losses have set")
    fresh = method.make((3,)).double()
    with torch.device("meta"):
        made_on_meta = method.make((3,)).to("meta", torch.double)
    made_on_meta.to_empty(device="cpu")
    for buffer in made_on_meta.buffers():
        buffer.fill_(7)  # what memory may hold
    for scalarizer in (started(method), made_on_meta):
        with torch.device("meta"):  # which is not the state's
            scalarizer.reset()
        assert_same_state(scalarizer, fresh.state_dict())
        assert_same(run_on(scalarizer), run_on(copy.deepcopy(fresh)))


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda scalarizer: pickle.loads(pickle.dumps(scalarizer))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_goes_on_as_the_original(
    method: Method, copied: Callable[[Scalarizer], Scalarizer]
) -> None:
    original, twin = started(method), copied(started(method))
    assert_same(twin.weights, original.weights)
    assert_same(run_on(twin), run_on(original))


def test_a_resumed_run_is_bit_identical(method: Method) -> None:
    original = started(method)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    resumed = method.make((3,)).double()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_same(run_on(resumed), run_on(original))


def test_a_shape_may_be_of_any_integers(method: Method) -> None:
    for shape in (np.int64(3), [np.int32(3)]):
        assert method.make(shape)(torch.ones(3)).shape == ()


def test_state_is_what_the_registry_says(method: Method) -> None:
    scalarizer = started(method)
    assert tuple(sorted(scalarizer.state_dict())) == method.keys
    assert tuple(name for name, _ in scalarizer.named_parameters()) == method.parameters


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
    if not training:
        scalarizer.update(after(losses))
        scalarizer.step()
    assert_same_state(scalarizer, expected)
    if not method.learns_first:
        assert_same(scalar, in_training)


def test_a_validation_pass_may_come_first(method: Method) -> None:
    validated, fresh = method.make((3,)).double(), method.make((3,)).double()
    with torch.inference_mode():
        validated(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert_same(run_on(validated), run_on(fresh))


def test_an_absent_task_leaves_no_trace(method: Method) -> None:
    """Whatever stands in its place, down to the bits of its state."""
    results = []
    mask = torch.tensor([True, False, True])
    for junk in (torch.nan, torch.inf, -1.0, 7.0):
        scalarizer = started(method)
        before = snapshot(scalarizer)
        for index in range(EPOCH):
            losses = torch.tensor([3.0, junk, 1.0], dtype=torch.float64, requires_grad=True)
            scalar = scalarizer(losses, mask)
            gradients = torch.autograd.grad(scalar, [losses, *scalarizer.parameters()])
            assert [float(gradient[1]) for gradient in gradients] == [0.0] * len(gradients)
            assert scalarizer.weights[1] == 0
            scalarizer.update(after(losses))
            results.append((index, scalar.detach(), gradients))
        for name, value in scalarizer.state_dict().items():
            if name not in method.rewritten:
                assert_same(value[1], before[name][1])
    for index, scalar, gradients in results[EPOCH:]:
        assert_same((scalar, gradients), results[index][1:])


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
    scalarizer.update(losses)
    assert_same_state(scalarizer, before)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_batch_is_reported_but_not_remembered(method: Method, junk: float) -> None:
    scalarizer, reference = started(method), started(method)
    bad = torch.tensor([3.0, junk, 1.0], dtype=torch.float64)
    assert torch.isfinite(scalarizer(bad)) == (method.is_maximum and junk == -torch.inf)
    torch.manual_seed(LENGTH)  # as `started` did
    reference(bad, torch.isfinite(bad))
    for each in (scalarizer, reference):
        each.update(after(bad))
    assert_same(run_on(scalarizer), run_on(reference))


def test_update_calls_a_function_only_if_it_needs_it_and_without_gradients(method: Method) -> None:
    calls = []

    def again() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return after(losses)

    scalarizer, twin = method.make((3,)), method.make((3,))
    losses = torch.ones(3)
    for each in (scalarizer, twin):
        each(losses)
    assert scalarizer.update(again) is None
    twin.update(again().detach())
    assert calls == [False, True] if method.updates else [True]
    assert_same_state(scalarizer, twin.state_dict())


@pytest.mark.filterwarnings("ignore:.*jit.*")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the shapes that are checked
def test_a_model_with_it_can_be_traced(method: Method) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 3)
            self.scalarizer = method.make((3,))

        def forward(self, features: Tensor) -> Tensor:
            return self.scalarizer(self.net(features).detach().square().mean(0))

    features, model = torch.ones(4, 2), Model().eval()
    expected = model(features)
    assert_same(torch.jit.trace(model, features)(features), expected)


def test_every_public_method_has_a_row(method: Method) -> None:
    public = [getattr(mtl_scalarize, name) for name in mtl_scalarize.__all__]
    methods = {k for k in public if isinstance(k, type) and issubclass(k, Scalarizer)}
    assert {type(row.make((3,))) for row in METHODS} == methods - {Scalarizer, Stateful}
