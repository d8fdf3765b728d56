"""Mistakes that would silently waste a training: each warns once, at the user's line."""

import linecache
import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from methods import METHODS, Method, learn
from torch import Tensor

from mtl_scalarize import DWA, FAMO, IMTLL, UW, Scalarizer

L = torch.ones(3)


def needing_grad() -> Tensor:
    return torch.ones(3, requires_grad=True)


#: What a mistake is, where it is made, and what the warning says.
MISTAKES: dict[str, tuple[Callable[[], Scalarizer], Callable[[Scalarizer], object], str]] = {
    "UW, no gradient": (lambda: UW(3), lambda s: s(torch.tensor([1.0, 2.0, 3.0])), "torch.stack"),
    "IMTL-L, no gradient": (
        lambda: IMTLL(["a"]),
        lambda s: s({"a": torch.tensor(1.0)}),
        "The losses carry no gradient",
    ),
    "DWA, eval": (lambda: DWA().eval(), lambda s: s(needing_grad()), r"scalarizer\.train\(\)"),
    "FAMO, eval": (
        lambda: FAMO(3).eval(),
        lambda s: s(needing_grad()),
        "FAMO does not learn in `eval",
    ),
    "FAMO, no update": (
        lambda: FAMO(3),
        lambda s: [s(needing_grad()) for _ in range(2)],
        r"call `scalarizer\.update\(\.\.\.\)`",
    ),
    "FAMO, update with the losses of the call": (
        lambda: FAMO(3),
        lambda s: [s(L), s.update(lambda: L)],
        "the losses of the call itself",
    ),
    "FAMO, update in eval": (
        lambda: FAMO(3),
        lambda s: [s.train()(L), s.eval().update(L.clone())],
        "`update` learned nothing",
    ),
    "DWA, step in eval": (
        lambda: DWA(),
        lambda s: [s.train()(L), s.eval().step()],
        "`step` did not close the epoch",
    ),
    "a zero in place of an absent task": (
        lambda: DWA(shape=["a", "b"]),
        lambda s: s({"a": torch.ones((), requires_grad=True), "b": torch.zeros(())}),
        "leave it out of the mapping",
    ),
    "FAMO, an update forgotten": (
        lambda: FAMO(3),
        lambda s: [s(L), s.update(L.clone()), s(L), s(L)],
        "amortized=True",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_warns_once_at_the_line_of_the_user(mistake: str) -> None:
    make, use, message = MISTAKES[mistake]
    scalarizer = make()
    with pytest.warns(UserWarning, match=message) as seen:
        [use(scalarizer) for _ in range(3)]
    (warning,) = [warning for warning in seen if re.search(message, str(warning.message))]
    assert warning.filename == __file__
    assert "lambda s" in linecache.getline(__file__, warning.lineno)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_honest_training_with_validation_is_silent(method: Method) -> None:
    scalarizer = method.make((3,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(6):
            learn(scalarizer, index, (needing_grad(), None))
            with torch.no_grad():
                scalarizer(L)  # in training mode
                scalarizer.eval()(needing_grad())
            scalarizer.eval()(L)
            torch.func.grad(scalarizer)(L)
            scalarizer.train()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_compiled_mistake_costs_no_second_graph(mistake: str) -> None:
    make, use, _ = MISTAKES[mistake]
    scalarizer = make()
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        use(torch.compile(scalarizer, fullgraph=True, backend="aot_eager"))


def test_a_replica_of_data_parallel_says_that_it_learns_for_nothing() -> None:
    replica = DWA(shape=3)._replicate_for_data_parallel()
    with pytest.warns(UserWarning, match="a replica of `DataParallel` is lost"):
        replica(L)


@pytest.mark.parametrize("temperature", [3, 10])
def test_a_number_of_tasks_in_place_of_the_temperature_is_noticed(temperature: int) -> None:
    with pytest.warns(UserWarning, match=rf"write `DWA\(shape={temperature}\)`") as seen:
        DWA(temperature)
    assert seen[0].filename == __file__
    for honest in (lambda: DWA(2), lambda: DWA(float(temperature)), lambda: DWA(3, shape=3)):
        honest()  # says nothing: warnings are errors


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look of a process group; `test_distributed` has real ones."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("method", [m for m in METHODS if not m.make(3).fixed_weights], ids=str)
def test_a_rank_by_itself_is_told_so(method: Method) -> None:
    scalarizer = method.make((3,))
    with pytest.warns(UserWarning, match="process group") as seen:
        [learn(scalarizer, index, (needing_grad(), None)) for index in range(2)]
    (warning,) = seen
    assert str(warning.message) == (
        f"{type(scalarizer).__name__} has no process group: each of the 2 ranks balances by its "
        "own losses alone. Pass `process_group=torch.distributed.group.WORLD`."
    )
    assert warning.filename == learn.__code__.co_filename


@pytest.mark.parametrize(
    ("scalarizer", "expected"),
    [
        (UW(2, init=0.5, eps=1e-3), "UW(shape=(2,), init=0.5, eps=0.001)"),
        (IMTLL(["a"], init=torch.tensor([1.0])), "IMTLL(shape=('a',), init=tensor([1.]))"),
        (FAMO(3, 0.025), "FAMO(shape=(3,), min_losses=0.025, lr=0.025, weight_decay=0.001)"),
        (
            FAMO(9, torch.ones(9)),
            "FAMO(shape=(9,), min_losses=<tensor of shape (9,)>, lr=0.025, weight_decay=0.001)",
        ),
    ],
    ids=str,
)
def test_the_repr_shows_what_is_not_the_default(scalarizer: Scalarizer, expected: str) -> None:
    assert repr(scalarizer) == expected
