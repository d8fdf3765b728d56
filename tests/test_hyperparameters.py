"""Hyperparameters: each is checked wherever it is assigned, and works in whatever form it comes."""

import copy
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from methods import EPOCH, METHODS, learn
from torch import Tensor, nn

import mtl_scalarize
from mtl_scalarize import COSMOS, FAMO, PBI, STCH, UW, Constant, Scalarizer, functional
from mtl_scalarize.modules.hyperparameters import Hyperparameter

NAMES = ["depth", "normals", "edges"]
TASKS = len(NAMES)
NUMBERS = [0.25, 0.5, 0.75]
NEEDED: dict[type[Scalarizer], dict[str, float]] = {
    STCH: {"mu": 0.5},
    Constant: {"weights": 1.0},
    COSMOS: {"lambda_": 0.5, "weights": 1.0},
    PBI: {"theta": 0.5, "weights": 1.0},
}
Declared = tuple[type[Scalarizer], Hyperparameter]


def declared() -> Iterator[Any]:
    """The class of every method, with each hyperparameter that it declares."""
    for kind in dict.fromkeys(type(method.make((TASKS,))) for method in METHODS):
        for _, each in inspect.getmembers(kind, lambda it: isinstance(it, Hyperparameter)):
            yield pytest.param(kind, each, id=f"{kind.__name__}.{each.name}")


each_hyperparameter = pytest.mark.parametrize(("kind", "it"), [*declared()])
each_of_a_task = pytest.mark.parametrize(
    ("kind", "it"), [case for case in declared() if case.values[1].check is None]
)


def build(kind: type[Scalarizer], **options: Any) -> Scalarizer:
    """With what a class needs."""
    return kind(**{"shape": NAMES, **NEEDED.get(kind, {}), **options})


def run(scalarizer: Scalarizer) -> list[tuple[Tensor, Tensor]]:
    """What a training gives, from its start into the third epoch."""
    scalarizer.reset()
    losses = 1 + torch.rand(2 * EPOCH + 1, TASKS, generator=torch.Generator().manual_seed(0))
    return [learn(scalarizer, index, (row, None)) for index, row in enumerate(losses)]


def assert_same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, check_dtype=False)


@each_hyperparameter
def test_a_value_that_makes_no_sense_is_refused_and_the_old_one_stays(
    kind: type[Scalarizer], it: Hyperparameter
) -> None:
    scalarizer = build(kind, **{it.argument: 0.25 if it.check else NUMBERS})
    kept, shown = getattr(scalarizer, it.name), repr(scalarizer)
    size = (TASKS,) if it.check is None else ()
    for wrong in (
        torch.nan,
        torch.inf,
        -torch.inf,
        torch.full(size, torch.nan),
        torch.full(size, -torch.inf),
        torch.ones(size, requires_grad=True),
        nn.Parameter(torch.ones(size)),
        torch.ones(size, device="meta"),
        torch.ones(size, dtype=torch.complex64),
        torch.ones(2, TASKS),
        "0.5",
        *([-0.5, torch.tensor(-0.5), [0.5]] if it.check else [["0.5"], [torch.nan] * TASKS]),
    ):
        with pytest.raises((TypeError, ValueError), match=f"`{it.argument}` should"):
            build(kind, **{it.argument: wrong})
        with pytest.raises((TypeError, ValueError), match=f"`{it.argument}` should"):
            setattr(scalarizer, it.name, wrong)
        assert getattr(scalarizer, it.name) is kept
        assert repr(scalarizer) == shown


@each_hyperparameter
def test_an_assignment_is_as_the_argument_and_is_shown(
    kind: type[Scalarizer], it: Hyperparameter
) -> None:
    value = 0.25 if it.check else NUMBERS
    built, assigned = build(kind, **{it.argument: value}), build(kind)
    before = run(assigned)
    setattr(assigned, it.name, value)
    assert_same(run(assigned), run(built))
    assert f"{it.argument}={value}" in repr(assigned)
    assert repr(assigned) == repr(built) == repr(eval(repr(built), vars(mtl_scalarize)))
    with pytest.raises(AssertionError):  # so that it does something
        assert_same(run(assigned), before)
    assert not {it.name, it.argument} & assigned.state_dict().keys()


@each_hyperparameter
def test_a_default_is_that_of_the_functions(kind: type[Scalarizer], it: Hyperparameter) -> None:
    prefix = {"LogSum": "log_sum"}.get(kind.__name__, kind.__name__.lower())
    functions = [each for each in functional.__all__ if each.startswith(prefix)]
    for place in (kind, *[getattr(functional, each) for each in functions]):
        parameter = inspect.signature(place).parameters.get(it.argument)
        if parameter and parameter.default not in (None, inspect.Parameter.empty):
            assert parameter.default == it.default


@each_hyperparameter
def test_all_forms_of_a_value_are_alike(kind: type[Scalarizer], it: Hyperparameter) -> None:
    by_name = dict(zip(NAMES, NUMBERS, strict=True))
    in_torch = [torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)]
    for_all = [0.25, *in_torch, np.float32(0.25), np.array(0.25)]
    for_each = [
        torch.tensor(NUMBERS),
        NUMBERS,
        tuple(NUMBERS),
        np.array(NUMBERS),
        by_name,
        dict([*by_name.items()][::-1]),
    ]
    one_for_each = [torch.full((TASKS,), 0.25)]
    scalarizer = build(kind)
    for forms in [for_all] if it.check else [for_all + one_for_each, for_each]:
        results = []
        for form in forms:
            setattr(scalarizer, it.name, form)
            results += [run(scalarizer), run(build(kind, **{it.argument: form}))]
        for result in results[1:]:
            assert_same(result, results[0])


@each_of_a_task
def test_a_mapping_has_the_names_of_the_tasks(kind: type[Scalarizer], it: Hyperparameter) -> None:
    by_name = dict(zip(NAMES, NUMBERS, strict=True))
    some = {"depth": 0.25}
    scalarizer = build(kind, **{it.argument: by_name})
    for wrong in (by_name | {"flow": 1.0}, by_name | {"depth": torch.nan}, {"flow": 1.0}):
        with pytest.raises(ValueError, match=f"`{it.argument}` should"):
            setattr(scalarizer, it.name, wrong)
    if it.default is None:
        with pytest.raises(ValueError, match=f"`{it.argument}` should be of .*'depth', 'nor"):
            setattr(scalarizer, it.name, some)
    else:
        setattr(scalarizer, it.name, some)
        rest = [it.default] * (TASKS - 1)
        assert_same(run(scalarizer), run(build(kind, **{it.argument: [0.25, *rest]})))


@each_of_a_task
def test_a_tensor_is_copied_and_at_least_float32(
    kind: type[Scalarizer], it: Hyperparameter
) -> None:
    for dtype in (torch.float16, torch.int64, torch.float64):
        given = torch.tensor([1, 2, 3], dtype=dtype)
        scalarizer = build(kind, **{it.argument: given})
        given += 1
        kept = getattr(scalarizer, it.name)
        assert kept.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert kept.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("built_on", ["meta", "cpu"])
@pytest.mark.parametrize("value", [0.25, NUMBERS, torch.tensor(NUMBERS)], ids=repr)
@each_of_a_task
def test_it_follows_the_module_and_comes_back_from_a_device_without_values(
    kind: type[Scalarizer], it: Hyperparameter, value: Any, built_on: str
) -> None:
    twin = build(kind, **{it.argument: value})
    with torch.device(built_on):
        scalarizer = build(kind, **{it.argument: value})
    if scalarizer.state_dict():
        scalarizer.to("meta")
    assert scalarizer(torch.ones(TASKS, device="meta")).is_meta
    assert isinstance(value, float) or getattr(scalarizer, it.name).is_meta
    assert kind.__name__ in repr(scalarizer)  # reads no values
    scalarizer.to_empty(device="cpu")
    assert_same(run(scalarizer), run(twin))


@each_hyperparameter
def test_a_copy_has_its_own(kind: type[Scalarizer], it: Hyperparameter) -> None:
    original = build(kind, **{it.argument: 0.25})
    shown, expected = repr(original), run(original)
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert repr(twin) == shown
        assert_same(run(twin), expected)
        setattr(twin, it.name, 0.75)
        assert repr(original) == shown != repr(twin)


def test_many_numbers_are_not_shown() -> None:
    assert repr(FAMO(9, torch.ones(9))) == "FAMO(shape=(9,), min_losses=<tensor of shape (9,)>)"


def test_bounds_of_every_task_may_become_one_for_all() -> None:
    scalarizer = FAMO(3, torch.tensor([0.5, 0.0, 0.5]))
    assert FAMO(3).min_losses.tolist() == [0.0] * 3
    losses = torch.tensor([0.1, 0.2, 0.3])
    for bound in (-1.0, -2.0):
        scalarizer.min_losses = bound
        assert scalarizer.min_losses.tolist() == [bound] * 3
        assert_same(scalarizer(losses), FAMO(3, bound)(losses))


def test_the_logarithm_of_a_first_loss_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`init` should be finite\. Found `init = -inf`"):
        UW(2, init=torch.zeros(2).log())
